"""The state of training: one immutable pytree of arrays, and the structure of the network they belong to."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from ddpm_jax import denoisers, display, models
from ddpm_jax.denoisers import Denoiser
from ddpm_jax.errors import UserError, kind_of
from ddpm_jax.processes import Process
from ddpm_jax.training.averages import lengths_of
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
    """Running statistics of BatchNorm, and whatever else a network keeps that is not trained; empty where it keeps nothing."""
    ema_params: Any
    """Exponential moving average of params: what samples are drawn with."""
    opt_state: optax.OptState
    """The optimiser's own."""
    averages: Any = None
    """Averages of the further lengths, a tuple of trees like params, where several are kept; None: there is the one."""
    loss_history: Any = None
    """The latest losses of every timestep, a `LossHistory`; None where times are not drawn by them."""
    graphdef: nnx.GraphDef[Any] = dataclasses.field(kw_only=True, repr=False, metadata={"static": True})
    """The network's structure, for evaluation, as `models.split` gives it."""

    def __repr__(self) -> str:
        return display.line(self, f"step {display.short(self.step)}", f"{display.count(self.params):,} parameters")

    def variables(self, *, ema: bool) -> models.Variables:
        """What `models.apply` takes: with the averaged parameters, or those being trained."""
        return {"params": self.ema_params if ema else self.params, "batch_stats": self.batch_stats}

    def denoiser(
        self,
        process: Process,
        labels: Any = None,
        *,
        ema: bool = True,
        null_label: int | None = None,
        dtype: Any = None,
    ) -> Denoiser:
        """What the network believes, with arrays of its own: it outlives the steps that consume the state.

        labels: classes, (B,) or one for all. ema: with the averaged parameters, or those being trained. null_label: the class that
        stood for none where labels were dropped, the network's last: then it can be guided. dtype: what the network computes in,
        None for that of its parameters.

        Raises:
            UserError: no process, or labels that are no whole numbers.
        """
        variables = copied(self.variables(ema=ema))
        options: dict[str, Any] = {"labels": labels, "null_label": null_label, "dtype": dtype}
        believed = denoisers.of_network((self.graphdef, variables), process, **options)
        network = models.merge(self.graphdef, variables)
        return denoisers.self_conditioned(believed) if models.fact(network, "self_conditioning") else believed


def create_state(
    model: nnx.Module,
    optimizer: optax.GradientTransformation,
    *,
    ema: Any = 0.9999,
    loss_history: LossHistory | None = None,
) -> TrainState:
    """The state before the first update of a network as it is, which keeps its own arrays: steps consume those of the state.

    optimizer: any of optax's, the one that `make_step` is given. ema: what that is given: several lengths of averages are several
    trees; any decay is one. loss_history: `loss_aware.empty(T)` to draw times by their losses.

    Raises:
        UserError: no network, no optimiser, or lengths out of range.
    """
    if not isinstance(model, nnx.Module):
        raise UserError(f"model must be an nnx.Module; got {kind_of(model)}.")
    graphdef, variables = models.split(model)
    return state_of(graphdef, in_one_program(copied, variables), optimizer, ema=ema, loss_history=loss_history)


def state_of(
    graphdef: nnx.GraphDef[Any],
    variables: models.Variables,
    optimizer: optax.GradientTransformation,
    *,
    ema: Any = 0.9999,
    loss_history: LossHistory | None = None,
) -> TrainState:
    """The state before the first update from given parameters and running statistics: averages start as copies."""
    check_optimizer(optimizer)
    further = len(lengths_of(ema)) - 1

    def begin(variables: models.Variables, loss_history: LossHistory | None) -> TrainState:
        params = variables["params"]
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            batch_stats=variables["batch_stats"],
            ema_params=copied(params),  # a donated buffer must not stand in two places
            averages=tuple(copied(params) for _ in range(further)) or None,
            opt_state=optimizer.init(params),
            loss_history=loss_history,
            graphdef=graphdef,
        )

    return in_one_program(begin, variables, loss_history)


def check_optimizer(optimizer: Any) -> None:
    """Refuse what optax did not make.

    Raises:
        UserError: it has no init and update.
    """
    if not (callable(getattr(optimizer, "init", None)) and callable(getattr(optimizer, "update", None))):
        raise UserError(f"optimizer must be an optax optimiser, as optax.adam(2e-4); got {kind_of(optimizer)}.")


def copied(tree: Any) -> Any:
    """The same arrays elsewhere in memory."""
    return jax.tree.map(jnp.copy, tree)


def in_one_program(function: Callable[..., Any], *args: Any) -> Any:
    """function(*args), compiled as a whole: array by array, every shape would be a program of its own."""
    return jax.jit(function)(*args)
