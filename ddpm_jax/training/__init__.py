"""Training: the state, the compiled step, and the loop from a preset to a run folder."""

from ddpm_jax.training.finetune import finetune
from ddpm_jax.training.loop import Outcome, train
from ddpm_jax.training.run import Run, open_run
from ddpm_jax.training.samples import Drawing
from ddpm_jax.training.state import TrainState, create_state
from ddpm_jax.training.step import Inputs, learning_rate, make_optimizer, train_step, train_steps, update

__all__ = [
    "Drawing",
    "Inputs",
    "Outcome",
    "Run",
    "TrainState",
    "create_state",
    "finetune",
    "learning_rate",
    "make_optimizer",
    "open_run",
    "train",
    "train_step",
    "train_steps",
    "update",
]
