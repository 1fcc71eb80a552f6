"""The state of training: one immutable pytree of arrays."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from ddpm_jax import display, models
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

    def __repr__(self) -> str:
        return display.line(self, f"step {display.short(self.step)}", f"{display.count(self.params):,} parameters")

    def variables(self, *, ema: bool) -> models.Variables:
        """What `models.apply` takes: with the averaged parameters, or those being trained."""
        return {"params": self.ema_params if ema else self.params, "batch_stats": self.batch_stats}


def create_state(model: nnx.Module, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first update of a network as it is, which keeps its own arrays: steps consume those of the state."""
    return state_of(_in_one_program(_copied, models.split(model)[1]), optimizer)


def state_of(
    variables: models.Variables, optimizer: optax.GradientTransformation, loss_history: LossHistory | None = None
) -> TrainState:
    """The state before the first update from given parameters and running statistics: the average starts as a copy."""

    def begin(variables: models.Variables, loss_history: LossHistory | None) -> TrainState:
        params = variables["params"]
        start = jnp.zeros((), jnp.int32)
        # a copy: a donated buffer must not stand in two places
        opt_state = optimizer.init(params)
        return TrainState(start, params, variables["batch_stats"], _copied(params), opt_state, loss_history)

    return _in_one_program(begin, variables, loss_history)


def _copied(tree: Any) -> Any:
    return jax.tree.map(jnp.copy, tree)


def _in_one_program(function: Callable[..., Any], *args: Any) -> Any:
    """function(*args), compiled as a whole: array by array, every shape would be a program of its own."""
    return jax.jit(function)(*args)
