"""Training in both frameworks in lockstep: why a port trains differently."""

from ddpm_jax.verify.lockstep.comparison import TrainingReport, compare_training
from ddpm_jax.verify.lockstep.jax_side import JaxTraining, observed
from ddpm_jax.verify.lockstep.torch_side import TorchTraining

__all__ = ["JaxTraining", "TorchTraining", "TrainingReport", "compare_training", "observed"]
