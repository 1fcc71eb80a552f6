"""Training: the state, the compiled step, and the loop from a preset to a run folder."""

from ddpm_jax.training.conditions import Conditions
from ddpm_jax.training.finetune import finetune
from ddpm_jax.training.loop import Outcome, train
from ddpm_jax.training.optimizers import forgetful, learning_rate, make_optimizer
from ddpm_jax.training.run import Run, open_run
from ddpm_jax.training.samples import Drawing
from ddpm_jax.training.state import TrainState, create_state
from ddpm_jax.training.step import Step, make_step
from ddpm_jax.training.trackers import TRACKERS, Tracker
from ddpm_jax.training.update import Chance, Examples, Gradients, Update

__all__ = [
    "TRACKERS",
    "Chance",
    "Conditions",
    "Drawing",
    "Examples",
    "Gradients",
    "Outcome",
    "Run",
    "Step",
    "Tracker",
    "TrainState",
    "Update",
    "create_state",
    "finetune",
    "forgetful",
    "learning_rate",
    "make_optimizer",
    "make_step",
    "open_run",
    "train",
]
