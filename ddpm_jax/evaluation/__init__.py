"""Evaluation: how good samples are, by figures that need no download, and by FID, which needs the weights of a network."""

from ddpm_jax.evaluation.classifier import Classifier, train_classifier
from ddpm_jax.evaluation.distances import frechet_distance, frechet_of_moments, kernel_distance, nearest_distances
from ddpm_jax.evaluation.fid import evaluate_fid
from ddpm_jax.evaluation.likelihood import Bound, evaluate_likelihood, variational_bound
from ddpm_jax.evaluation.manifolds import PrecisionRecall, precision_recall
from ddpm_jax.evaluation.points import mmd, sliced_wasserstein
from ddpm_jax.evaluation.report import Evaluation, Metric, evaluate_run

__all__ = [
    "Bound",
    "Classifier",
    "Evaluation",
    "Metric",
    "PrecisionRecall",
    "evaluate_fid",
    "evaluate_likelihood",
    "evaluate_run",
    "frechet_distance",
    "frechet_of_moments",
    "kernel_distance",
    "mmd",
    "nearest_distances",
    "precision_recall",
    "sliced_wasserstein",
    "train_classifier",
    "variational_bound",
]
