"""Flax NNX: a module whose weights are PyTorch's, or its own, as a program of its arrays."""

import dataclasses
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from ddpm_jax.verify.observing import Site, current
from ddpm_jax.verify.options import Options
from ddpm_jax.verify.patching import patched
from ddpm_jax.verify.program import Program, cast
from ddpm_jax.verify.recording import arrays_of
from ddpm_jax.verify.settings import settings_of

TAG = "_verified_as"
"""Attribute by which a copy of a module knows its path, also where a transformation of NNX takes it apart and puts it together."""


@dataclasses.dataclass(frozen=True)
class Tag:
    """A module's path; another object at every tracing, so that nnx.jit does not take what it compiled before."""

    path: str
    of: int


def program_of(
    model: nnx.Module, function: Callable[..., Any] | None, state: Mapping[str, Any], options: Options
) -> Program:
    """The program of model(...), or of function(model, ...).

    state: PyTorch's tensors, where they are to be carried over.
    """
    training = options.training
    view = nnx.view(model, deterministic=not training, use_running_average=not training, raise_if_not_found=False)
    graphdef, params, stats, rest = nnx.split(view, nnx.Param, nnx.BatchStat, ...)  # type: ignore[misc]
    given: dict[str, Any] = {"params": nnx.to_pure_dict(params), "batch_stats": nnx.to_pure_dict(stats)}
    if callable(options.weights):
        given |= options.weights(state)
    frozen = {jnp.dtype(x.dtype) for x in jax.tree.leaves(params) if hasattr(x, "dtype")}

    def call(params: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, Any]:
        dtype = next((x.dtype for x in jax.tree.leaves(params)), jnp.dtype(options.dtype))
        states = (
            nnx.State(jax.tree.map(kind, tree))
            for kind, tree in ((nnx.Param, params["params"]), (nnx.BatchStat, params["batch_stats"]))
        )
        module = nnx.merge(graphdef, *states, cast(rest, dtype))
        _prepare(module, dtype, frozen, options)
        run = module if function is None else partial(function, module)
        kinds = {type(part) for _, part in nnx.iter_modules(module)}
        with patched(kinds, _observed) if current() else nullcontext():
            output = run(*args, **kwargs)
        return output, {"batch_stats": nnx.to_pure_dict(nnx.state(module, nnx.BatchStat))}

    return Program(
        {"params": given["params"]},
        {"batch_stats": given["batch_stats"]},
        call,
        layers=[_path(path) for path, _ in nnx.iter_modules(model) if path],
        tree=model if given["params"] or given["batch_stats"] else None,
        carried=bool(state),
    )


def _path(path: tuple[Any, ...]) -> str:
    return ".".join(map(str, path))


def _prepare(module: nnx.Module, dtype: Any, frozen: set[Any], options: Options) -> None:
    """Name the parts of a copy; let layers that settled their dtype when they were made follow the parameters; dropout off."""
    serial = id(current())
    for path, part in nnx.iter_modules(module):
        setattr(part, TAG, Tag(_path(path), serial))
        settled = getattr(part, "dtype", None)
        if settled is not None and _is_dtype(settled) and jnp.dtype(settled) in frozen:
            part.dtype = dtype  # type: ignore[attr-defined]
        if not options.dropout:
            for name in ("rate", "dropout_rate"):
                if isinstance(getattr(part, name, None), float) and (name != "rate" or isinstance(part, nnx.Dropout)):
                    setattr(part, name, 0.0)


def _is_dtype(value: Any) -> bool:
    try:
        return jnp.issubdtype(jnp.dtype(value), jnp.floating)
    except TypeError:
        return False


def _observed(call: Callable[..., Any], module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    observer, tag = current(), vars(module).get(TAG)
    if observer is None or not isinstance(tag, Tag) or not tag.path:
        return call(module, *args, **kwargs)
    own = {name: value for name, value in vars(module).items() if isinstance(value, nnx.Variable)}
    concrete = {
        name: x for name, x in ((n, v.get_value()) for n, v in own.items()) if not isinstance(x, jax.core.Tracer)
    }
    site = Site(tag.path, type(module).__name__, settings_of(module), lambda: arrays_of(concrete, copy=False))
    return observer.call(site, partial(call, module), args, kwargs)
