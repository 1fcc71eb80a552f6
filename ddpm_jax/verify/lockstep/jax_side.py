"""The JAX side of a training: its step, and what the step's state says of gradients, moments, statistics and average."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from ddpm_jax import display
from ddpm_jax.errors import UserError, kind_of
from ddpm_jax.verify.lockstep.history import Arrays, History, Step
from ddpm_jax.weights.bridge import Entry, gradients_by_tensor, tensors_from
from ddpm_jax.weights.structure import leaves_by_path, with_leaves

PARTS = {
    "params": ("params",),
    "opt_state": ("opt_state",),
    "statistics": ("batch_stats", "statistics"),
    "average": ("ema_params", "ema", "average"),
}
"""What a training state holds -> the names that it may have there."""

MOMENTS = {"mu": "first", "nu": "second", "trace": "momentum", "sum_of_squares": "sum"}
"""What optax calls what an optimiser remembers -> its name in a history."""


class Observed(NamedTuple):
    """State of an optimiser that remembers what it was given."""

    inner: Any
    """The state of each transformation."""
    seen: Any
    """The gradients as they came to each transformation."""


def observed(*transformations: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Optax's `chain` of the transformations, whose state remembers the gradients that came to each.

    Put it where a training script of your own makes its optimiser, and `compare_training` sees gradients before and after clipping.
    """
    stages = [optax.with_extra_args_support(stage) for stage in transformations]

    def init(params: Any) -> Observed:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return Observed(tuple(stage.init(params) for stage in stages), (zeros,) * len(stages))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Observed]:
        seen, inner = [], []
        for stage, before in zip(stages, state.inner, strict=True):
            seen.append(updates)
            updates, after = stage.update(updates, before, params, **extra)
            inner.append(after)
        return updates, Observed(tuple(inner), tuple(seen))

    return optax.GradientTransformationExtraArgs(init, update)


class JaxTraining:
    """A training in JAX, of its parts: loss, parameters, optimiser.

    loss: (params, *batch) -> loss; with statistics, (params, statistics, *batch) -> (loss, statistics). params: an NNX or equinox
    module, or any tree of arrays; the loss is given the same. An NNX module's running statistics are taken care of. optimizer:
    optax's, or a sequence of transformations to chain, which lets gradients be seen before and after each. statistics: a tree of
    running statistics, such as linen's batch_stats. ema: the average's decay, or (average, params, step) -> average for one tree
    each, step from 0.
    """

    def __init__(
        self, loss: Callable[..., Any], params: Any, optimizer: Any, *, statistics: Any = None, ema: Any = None
    ):
        if not callable(loss):
            raise UserError(f"loss must be a function (params, *batch) -> loss; got {kind_of(loss)}.")
        stages = optimizer if isinstance(optimizer, tuple | list) and not hasattr(optimizer, "update") else (optimizer,)
        for stage in stages:
            if not hasattr(stage, "init") or not hasattr(stage, "update"):
                raise UserError(f"optimizer must be one of optax's, or a sequence of them; got {kind_of(stage)}.")
        tx = observed(*stages)
        self.side, call, trained, statistics = _parts(loss, params, statistics)
        self.init: Callable[..., Any] | None = tx.init  # called with the weights, in the precision of the comparison
        self.state: Any = {"params": trained, "opt_state": (), "statistics": statistics, "step": 0}
        if ema is not None:
            self.state["average"] = trained
        decay = ema if callable(ema) or ema is None else lambda average, new, step: _mixed(average, new, ema)

        def step(state: Any, *batch: Any) -> tuple[Any, Any]:
            def of(params: Any) -> tuple[Any, Any]:
                return call(params, state["statistics"], *batch)

            (value, after), grads = jax.value_and_grad(of, has_aux=True)(state["params"])
            updates, opt_state = tx.update(grads, state["opt_state"], state["params"])
            new = {"params": optax.apply_updates(state["params"], updates), "opt_state": opt_state, "statistics": after}
            if decay is not None:
                new["average"] = decay(state["average"], new["params"], state["step"])
            return new | {"step": state["step"] + 1}, value

        self.step: Callable[..., Any] = jax.jit(step)

    @classmethod
    def of_step(cls, step: Callable[..., Any], state: Any, *, model: Any = None) -> "JaxTraining":
        """A training by its own step, (state, *batch) -> (state, loss), compiled or not.

        state: a mapping or dataclass (flax's TrainState, say) with params, opt_state, and where there are any batch_stats and
        ema_params. Gradients are seen if its optimiser is `observed`. model: the module that params belong to, whose layers' types
        say how weights map; their names alone do otherwise.

        Raises:
            UserError: the state has no params or opt_state.
        """
        made = cls.__new__(cls)
        made.step, made.state, made.init = step, state, None
        for part in ("params", "opt_state"):
            if _get(state, part) is None:
                raise UserError(f"state must have {part!r}, as flax's TrainState has; got {kind_of(state)}.")
        statistics = _get(state, "statistics")
        variables = {"params": _get(state, "params"), **({"batch_stats": statistics} if statistics else {})}
        made.side = variables if model is None else model
        return made

    def __repr__(self) -> str:
        return display.line(self, display.short(_get(self.state, "params")))


def _parts(loss: Callable[..., Any], params: Any, statistics: Any) -> tuple[Any, Callable[..., Any], Any, Any]:
    """What the bridge reads, (trained, statistics, *batch) -> (loss, statistics), and the two trees."""
    if isinstance(params, nnx.Module):
        graphdef, trained, running, rest = nnx.split(params, nnx.Param, nnx.BatchStat, ...)  # type: ignore[misc]

        def call_nnx(trained: Any, running: Any, *batch: Any) -> tuple[Any, Any]:
            kinds = ((nnx.Param, trained), (nnx.BatchStat, running))
            states = (nnx.State(jax.tree.map(kind, tree)) for kind, tree in kinds)
            module = nnx.merge(graphdef, *states, rest)
            value = loss(module, *batch)
            return value, nnx.to_pure_dict(nnx.state(module, nnx.BatchStat))

        return params, call_nnx, nnx.to_pure_dict(trained), nnx.to_pure_dict(running)
    floats = jax.tree.map(lambda leaf: leaf if _is_float(leaf) else None, params)
    fixed = jax.tree.map(lambda leaf: None if _is_float(leaf) else leaf, params)

    def call(trained: Any, running: Any, *batch: Any) -> tuple[Any, Any]:
        both = jax.tree.map(lambda a, b: b if a is None else a, trained, fixed, is_leaf=lambda leaf: leaf is None)
        return (loss(both, *batch), running) if statistics is None else loss(both, running, *batch)

    side = {"params": floats, **({"batch_stats": statistics} if statistics is not None else {})}
    return side, call, floats, {} if statistics is None else statistics


def _is_float(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)


def _mixed(average: Any, new: Any, decay: float) -> Any:
    return jax.tree.map(lambda a, b: decay * a + (1 - decay) * b, average, new)


def _get(state: Any, part: str) -> Any:
    for name in PARTS[part]:
        found = state.get(name) if isinstance(state, Mapping) else getattr(state, name, None)
        if found is not None:
            return found
    return None


def _set(state: Any, part: str, value: Any) -> Any:
    for name in PARTS[part]:
        if isinstance(state, Mapping):
            if name in state:
                return {**state, name: value}
        elif getattr(state, name, None) is not None:
            return (
                state.replace(**{name: value})
                if hasattr(state, "replace")
                else dataclasses.replace(state, **{name: value})
            )
    return state


def run(
    training: JaxTraining,
    entries: list[Entry],
    weights: Mapping[Any, np.ndarray],
    batches: list[tuple[Any, ...]],
    dtype: str | None,
) -> History:
    """The history of a training that begins with these weights, by path."""
    trained = {path[1:]: array for path, array in weights.items() if path[0] == "params"}
    running = {path[1:]: array for path, array in weights.items() if path[0] == "batch_stats"}
    own = _named(entries, "params", _get(training.state, "params"), tensors_from)
    state = _cast(training.state, dtype)
    params = with_leaves(_get(state, "params"), {path: jnp.asarray(array) for path, array in trained.items()})
    state = _set(state, "params", params)
    if running:
        statistics = with_leaves(_get(state, "statistics"), {path: jnp.asarray(a) for path, a in running.items()})
        state = _set(state, "statistics", statistics)
    if _get(state, "average") is not None:
        state = _set(state, "average", params)
    if training.init is not None:
        state = _set(state, "opt_state", training.init(params))
    history = History("JAX", own, _read(state, entries, [], 0.0))
    for batch in batches:
        arrays = jax.tree.map(lambda leaf: jnp.asarray(_typed(leaf, dtype)), batch)
        fed = [np.asarray(leaf) for leaf in jax.tree.leaves(arrays)]
        state, loss = training.step(state, *arrays)
        history.steps.append(_read(state, entries, fed, _loss_of(loss)))
    return history


def _loss_of(value: Any) -> float:
    """The loss that a step returned: a number, or the entry "loss" of its metrics, or the first of a tuple."""
    if isinstance(value, Mapping):
        value = value["loss"] if "loss" in value else next(iter(value.values()))
    if isinstance(value, tuple | list):
        value = value[0]
    return float(np.asarray(value))


def _typed(leaf: Any, dtype: str | None) -> Any:
    leaf = np.asarray(leaf)
    return leaf.astype(dtype) if dtype and leaf.dtype.kind == "f" else leaf


def _cast(tree: Any, dtype: str | None) -> Any:
    if dtype is None:
        return tree
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype) if _is_float(leaf) else leaf, tree)


def _read(state: Any, entries: list[Entry], inputs: list[np.ndarray], loss: float) -> Step:
    params = _named(entries, "params", _get(state, "params"), tensors_from)
    step = Step(inputs, loss, {}, params)
    opt_state = _get(state, "opt_state")
    for ours, name in MOMENTS.items():
        found = [value for _, value in optax.tree.get_all_with_path(opt_state, ours)]
        if found:
            linear = name in ("first", "momentum")
            step.moments[name] = {}
            for tree in found:
                step.moments[name] |= _named(entries, "params", tree, gradients_by_tensor if linear else tensors_from)
    stages = [node for node in jax.tree.leaves(opt_state, is_leaf=_is_observed) if _is_observed(node)]
    if stages:
        seen = [_named(entries, "params", tree, gradients_by_tensor) for tree in stages[0].seen]
        step.gradients = seen[0]
        remembers = [any(optax.tree.get_all_with_path(inner, name) for name in MOMENTS) for inner in stages[0].inner]
        step.fed = seen[remembers.index(True)] if True in remembers and len(seen) > 1 else {}
    statistics, average = _get(state, "statistics"), _get(state, "average")
    if statistics:
        step.statistics = _named(entries, "batch_stats", statistics, tensors_from)
    if average is not None:
        step.average = _named(entries, "params", average, tensors_from)
    return step


def _is_observed(node: Any) -> bool:
    return isinstance(node, Observed)


def _named(entries: list[Entry], collection: str, tree: Any, carry: Callable[..., Arrays]) -> Arrays:
    """The arrays of a tree by their names in PyTorch, in its order of axes."""
    leaves = {(collection, *path): leaf for path, leaf in leaves_by_path(tree).items() if hasattr(leaf, "shape")}
    wanted = [entry for entry in entries if entry.path in leaves]
    return {key: np.asarray(array) for key, array in carry(wanted, leaves).items()}
