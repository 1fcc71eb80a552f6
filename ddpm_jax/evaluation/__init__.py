"""Evaluation: how good samples are, by figures that need no download."""

from ddpm_jax.evaluation.agreement import Agreement, class_agreement
from ddpm_jax.evaluation.report import evaluate_run

__all__ = ["Agreement", "class_agreement", "evaluate_run"]
