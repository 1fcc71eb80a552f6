"""The one step of training: an update of the state, compiled, with the state donated; `make_step` makes it."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ddpm_jax import display, models, parallel
from ddpm_jax.compilation import jit
from ddpm_jax.data.scaling import as_x_0
from ddpm_jax.errors import UserError, kind_of
from ddpm_jax.noise import as_key
from ddpm_jax.parallel import ALONE, Layout
from ddpm_jax.processes import Process
from ddpm_jax.training.averages import lengths_of
from ddpm_jax.training.state import TrainState, check_optimizer
from ddpm_jax.training.update import Update

_KEYS = {"x_0", "label", "condition"}
"""What a batch may hold."""


def make_step(
    process: Process,
    optimizer: optax.GradientTransformation,
    *,
    ema: Any = 0.9999,
    accumulate: int = 1,
    label_dropout: float = 0.0,
    dtype: Any = None,
    skip_nonfinite: bool = False,
    bounded: bool = True,
) -> "Step":
    """The compiled step of training: step(state, batch, key) -> (state, metrics); the state given is consumed.

    One algorithm for every process (DDPM, Ho et al. 2020, algorithm 1, for one), any network of `create_state` and any optimiser
    of optax.

    process: what is learned. optimizer: the one that the state was created with. ema: decay of the parameters' average, in [0, 1);
    after k steps it is (1 + k) / (10 + k) where that is less; or lengths of power-function averages, as (0.05, 0.1), of which the
    first is drawn with (Karras et al. 2024): the state is created with the same. accumulate: parts that a batch is gone through
    in, to save memory; the same update, but that BatchNorm sees each part alone. label_dropout: share of the labels replaced by the
    network's last class, which then stands for none, in [0, 1) (Ho & Salimans 2022). dtype: what the network computes in, as
    "bfloat16"; None: the dtype of its parameters. skip_nonfinite: where loss or gradients are not finite, leave the state as it
    was, but for its step. bounded: images beyond [-1, 1] are refused, as 0..255 in floats would be; False: any are taken.

    Raises:
        UserError: an argument that is no process, no optimiser, or out of range.
    """
    if not isinstance(process, Process):
        raise UserError(f"process must be a process, as processes.GaussianDiffusion(schedule); got {process!r:.60}.")
    check_optimizer(optimizer)
    lengths_of(ema)
    if not 0 <= label_dropout < 1:
        raise UserError(f"label_dropout must lie in [0, 1); got {label_dropout}.")
    if accumulate < 1:
        raise UserError(f"accumulate must be at least 1; got {accumulate}.")
    try:
        dtype = None if dtype is None else jnp.dtype(dtype)
    except TypeError as error:
        raise UserError(f"dtype must be one of JAX's, as 'bfloat16', or None; got {dtype!r}.") from error
    return Step(Update(process, optimizer, ema, accumulate, label_dropout, dtype, skip_nonfinite), bounded)


@dataclass(frozen=True, eq=False)
class Step:
    """What `make_step` makes. Called as step(state, batch, key) -> (state, {"loss": …, "grad_norm": …})."""

    update: Update
    """Its equations."""
    bounded: bool = False
    """See `make_step`."""
    layout: Layout = ALONE
    """The devices that share the work."""

    def __repr__(self) -> str:
        return display.line(self, self.update, self.layout)

    @functools.cached_property
    def _seen(self) -> set[Any]:
        """Forms of batches and states that were found to fit."""
        return set()

    def on(self, layout: Layout) -> "Step":
        """The same for other devices: `layout.place` puts a state there, `layout.feed` a batch."""
        return replace(self, layout=layout)

    def __call__(self, state: TrainState, batch: Any, key: Any) -> tuple[TrainState, dict[str, jax.Array]]:
        """One update of the state, which is consumed: go on with the one returned.

        batch: {"x_0": (B, ...), "label": (B,)}, or with `image` for x_0; (x_0, labels); or x_0 alone. x_0: uint8 images, scaled
        to [-1, 1], or what the network is to see. A network with condition_channels C' is shown "condition", (B, ..., C') of the
        same kinds, behind x_t. key: a key or a seed, the same for all steps: it is folded with the state's
        step, so that a resumed run draws what the uninterrupted one would have drawn.

        Returns:
            The state, and loss and grad_norm, the mean loss of the batch and the joint norm of its gradients, as scalars.

        Raises:
            UserError: a state that was consumed, or made for another optimiser; a batch of another form, without labels for a
                network with classes or a condition for one that is shown one, or beyond the range of the data (looked at when its
                shape is first seen).
        """
        batch = as_batch(batch)
        self._check(state, batch, stacked=False)
        return self._one(state, batch, as_key(key))

    def many(self, state: TrainState, batches: Any, key: Any) -> tuple[TrainState, dict[str, jax.Array]]:
        """An update for each of the batches stacked along a first axis K, in one call; so are the metrics, (K,).

        What pays where a step takes no longer than its dispatch. Otherwise as a call of the step.
        """
        batches = as_batch(batches)
        self._check(state, batches, stacked=True)
        return self._many(state, batches, as_key(key))

    @functools.cached_property
    def _one(self) -> Callable[..., Any]:
        update = parallel.shared(self.update, self.layout)

        def train_step(state: TrainState, batch: Any, key: jax.Array) -> Any:
            return update(state, batch, key)

        return jit(train_step, donate_argnums=0)

    @functools.cached_property
    def _many(self) -> Callable[..., Any]:
        update = parallel.shared(self.update, self.layout)

        def train_steps(state: TrainState, batches: Any, key: jax.Array) -> Any:
            return jax.lax.scan(lambda state, batch: update(state, batch, key), state, batches)

        return jit(train_steps, donate_argnums=0)

    def program(self, *, stacked: bool = False, elsewhere: bool = False) -> Callable[..., Any]:
        """The compiled function behind a call, or behind `many`: its `lower` and `trace` take shapes in the place of arrays.

        elsewhere: to be lowered for a platform that is not this one's, without this one's compiler options.
        """
        found: Any = self._many if stacked else self._one
        return found.elsewhere if elsewhere else found

    def _check(self, state: TrainState, batch: dict[str, Any], *, stacked: bool) -> None:
        if not isinstance(state, TrainState):
            raise UserError(f"state must be a TrainState, as training.create_state makes; got {kind_of(state)}.")
        if isinstance(state.step, jax.Array) and state.step.is_deleted():
            raise UserError(
                "this state was consumed by an earlier step: go on with the state which that step returned."
            )
        shapes = tuple((name, np.shape(value), jnp.result_type(value)) for name, value in batch.items())
        kept = 1 + len(state.averages or ())
        form = stacked, shapes, jax.tree.structure(state.opt_state), kept
        if form in self._seen:
            return
        leading = 1 + stacked
        x_0 = batch["x_0"]
        size = np.shape(x_0)[stacked : stacked + 1]
        if np.ndim(x_0) <= leading or not size or not size[0]:
            raise UserError(f"x_0 must be a batch of examples, (B, ...); got the shape {np.shape(x_0)}.")
        if size[0] % self.update.accumulate:
            raise UserError(f"accumulate = {self.update.accumulate} must divide the batch; got {size[0]} examples.")
        network = models.merge(state.graphdef, state.variables(ema=False))
        self._check_labels(network, batch, np.shape(x_0)[:leading])
        _check_condition(network, batch, np.shape(x_0))
        if self.bounded and np.ndim(x_0) == leading + 3:
            as_x_0("x_0", x_0)
        expected = jax.eval_shape(self.update.optimizer.init, state.params)
        if jax.tree.structure(expected) != jax.tree.structure(state.opt_state):  # type: ignore[operator]
            raise UserError(
                "the state was made for another optimiser than this step's: create it with the optimiser that make_step was given."
            )
        wanted = max(1, len(lengths_of(self.update.ema)))
        if kept != wanted:
            raise UserError(
                f"the state keeps {kept} averages and this step {wanted}: create it with the ema that make_step was given."
            )
        self._seen.add(form)

    def _check_labels(self, network: Any, batch: dict[str, Any], shape: tuple[int, ...]) -> None:
        classes = models.fact(network, "num_classes")
        if "label" not in batch:
            if classes:
                raise UserError(f"the network has {classes} classes, so that a batch needs labels; got x_0 alone.")
            if self.update.label_dropout:
                raise UserError(f"label_dropout = {self.update.label_dropout:g} needs a batch with labels.")
            return
        labels = batch["label"]
        if np.shape(labels) != shape or not np.issubdtype(jnp.result_type(labels), np.integer):
            raise UserError(
                f"labels must be whole numbers of the shape {shape}, one for each example; got {jnp.result_type(labels)} of "
                f"the shape {np.shape(labels)}."
            )
        if self.update.label_dropout and not classes:
            raise UserError("label_dropout needs a network that says how many classes it has, as num_classes.")


def _check_condition(network: Any, batch: dict[str, Any], shape: tuple[int, ...]) -> None:
    """Refuse a batch that shows a network more or less than its condition_channels."""
    channels = models.fact(network, "condition_channels")
    if "condition" not in batch:
        if channels:
            raise UserError(
                f"the network has condition_channels = {channels}, so that a batch needs 'condition', "
                f"{(*shape[:-1], channels)}; got {', '.join(batch)}."
            )
        return
    shown = batch["condition"]
    if channels == 0:  # None where a network of somebody's own does not say
        raise UserError("a batch must have no 'condition' for a network with condition_channels = 0; got one.")
    wanted = (*shape[:-1], np.shape(shown)[-1] if channels is None and np.ndim(shown) else channels)
    kind = jnp.result_type(shown)
    if np.shape(shown) != wanted or not (kind == jnp.uint8 or jnp.issubdtype(kind, jnp.floating)):
        raise UserError(
            f"condition must be uint8 pixels or floats of the shape {wanted}; got {kind} of {np.shape(shown)}."
        )


def as_batch(batch: Any) -> dict[str, Any]:
    """A batch in one of its forms as {"x_0": …, "label": …, "condition": …}, the latter two where there are any.

    Raises:
        UserError: another form (says which there are).
    """
    if isinstance(batch, dict):
        if {"x_0"} <= batch.keys() <= _KEYS and not isinstance(batch.get("label"), (list, tuple)):
            return batch
        found = {"x_0" if name == "image" else name: value for name, value in batch.items() if value is not None}
    elif isinstance(batch, (tuple, list)) and len(batch) in (1, 2):
        found = {name: value for name, value in zip(("x_0", "label"), batch, strict=False) if value is not None}
    else:
        found = {"x_0": batch}
    if "x_0" not in found or found.keys() - _KEYS or not hasattr(found["x_0"], "shape"):
        shown = sorted(batch) if isinstance(batch, dict) else type(batch).__name__
        raise UserError(
            f"a batch must be {{'x_0': array, 'label': array}}, (x_0, labels) or x_0 alone, as arrays, in a dict with 'condition' "
            f"for a network that is shown an image; got {shown}."
        )
    return found | ({"label": np.asarray(found["label"])} if isinstance(found.get("label"), (list, tuple)) else {})
