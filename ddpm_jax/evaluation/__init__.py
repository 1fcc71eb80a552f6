"""Evaluation: how good samples are, by figures that need no download."""

from ddpm_jax.evaluation.classifier import Classifier, train_classifier
from ddpm_jax.evaluation.distances import frechet_distance, kernel_distance, nearest_distances
from ddpm_jax.evaluation.likelihood import Bound, evaluate_likelihood, variational_bound
from ddpm_jax.evaluation.points import mmd, sliced_wasserstein
from ddpm_jax.evaluation.report import Evaluation, Metric, evaluate_run

__all__ = [
    "Bound",
    "Classifier",
    "Evaluation",
    "Metric",
    "evaluate_likelihood",
    "evaluate_run",
    "frechet_distance",
    "kernel_distance",
    "mmd",
    "nearest_distances",
    "sliced_wasserstein",
    "train_classifier",
    "variational_bound",
]
