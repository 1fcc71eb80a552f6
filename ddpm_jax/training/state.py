"""The state of training: one immutable pytree of arrays."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from ddpm_jax import models
from ddpm_jax.training.loss_aware import LossHistory


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Everything that an update changes."""

    step: Any
    """Number of steps done, an int32 scalar (any leaf where jax maps over the tree)."""
    params: Any
    """Trained parameters, nested dict of float32 arrays."""
    batch_stats: Any
    """Running statistics of BatchNorm, empty where a network has none."""
    ema_params: Any
    """Exponential moving average of params: what samples are drawn with."""
    opt_state: optax.OptState
    """Adam's moments and counts."""
    loss_history: Any = None
    """The latest losses of every timestep, a `LossHistory`; None where times are not drawn by them."""

    def variables(self, *, ema: bool) -> models.Variables:
        """What `models.apply` takes: with the averaged parameters, or those being trained."""
        return {"params": self.ema_params if ema else self.params, "batch_stats": self.batch_stats}


def create_state(model: nnx.Module, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first update of a network as it is, which keeps its own arrays: steps consume those of the state."""
    return state_of(jax.tree.map(jnp.copy, models.split(model)[1]), optimizer)


def state_of(
    variables: models.Variables, optimizer: optax.GradientTransformation, loss_history: LossHistory | None = None
) -> TrainState:
    """The state before the first update from given parameters and running statistics: the average starts as a copy."""
    params = variables["params"]
    copy = jax.tree.map(jnp.copy, params)  # a donated buffer must not stand in two places
    start = jnp.zeros((), jnp.int32)
    return TrainState(start, params, variables["batch_stats"], copy, optimizer.init(params), loss_history)
