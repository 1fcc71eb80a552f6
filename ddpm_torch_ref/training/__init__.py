"""Training: the state, the step that changes it, and the optimiser's companions."""

from ddpm_torch_ref.training.optimizers import forgetful, learning_rate, make_optimizer
from ddpm_torch_ref.training.state import TrainState, create_state
from ddpm_torch_ref.training.step import Step, make_step
from ddpm_torch_ref.training.update import Chance, Examples, Gradients, Update

__all__ = [
    "Chance",
    "Examples",
    "Gradients",
    "Step",
    "TrainState",
    "Update",
    "create_state",
    "forgetful",
    "learning_rate",
    "make_optimizer",
    "make_step",
]
