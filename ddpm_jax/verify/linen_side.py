"""Flax linen: a module and its variables as a program; its layers are watched by intercepting their methods."""

from collections.abc import Callable, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen

from ddpm_jax.paths import renamed
from ddpm_jax.verify.observing import Site, current
from ddpm_jax.verify.options import Options
from ddpm_jax.verify.program import Program
from ddpm_jax.verify.recording import Arrays, arrays_of, leaves, to_array
from ddpm_jax.verify.settings import settings_of
from ddpm_jax.weights.structure import COLLECTIONS

STATISTICS = {"mean": "running_mean", "var": "running_var"}
"""What a running statistic of linen is called in PyTorch."""


def program_of(module: linen.Module, variables: Mapping[str, Any], options: Options) -> Program:
    """The program of module.apply(variables, ...).

    variables: as `module.init` returns them, or its "params" alone.
    """
    variables = dict(variables) if "params" in variables else {"params": dict(variables)}
    frozen = {jnp.dtype(x.dtype) for x in jax.tree.leaves(variables["params"])}
    others = {name: tree for name, tree in variables.items() if name != "params"}
    mutable = list(others) if options.training else []

    def call(variables: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, Any]:
        dtype = next((x.dtype for x in jax.tree.leaves(variables["params"])), jnp.dtype(options.dtype))
        with intercepted(dtype, frozen, options):
            rngs = {name: jax.random.key(0) for name in ("dropout", "params")}
            found = module.apply(variables, *args, **kwargs, mutable=mutable or False, rngs=rngs)
        return found if mutable else (found, {})

    def statistics(after: Mapping[str, Any]) -> Arrays:
        found = {}
        for place, leaf in leaves(after.get("batch_stats", {})):
            path, _, name = place.rpartition(".")
            array = to_array(leaf)
            if array is not None:
                found[f"{renamed(path, options.names)[0]}.{STATISTICS.get(name, name)}"] = array
        return found

    tree = {name: variables[name] for name in COLLECTIONS if variables.get(name)}
    return Program({"params": variables["params"]}, others, call, statistics=statistics, tree=tree or None)


@contextmanager
def intercepted(dtype: Any, frozen: set[Any], options: Options) -> Any:
    """While entered, calls of linen modules are watched; those that settled their dtype follow the parameters; dropout is off.

    dtype: of the parameters. frozen: dtypes that are given up for it.
    """

    def around(function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], context: Any) -> Any:
        module = context.module
        if context.method_name != "__call__":
            return function(*args, **kwargs)
        settled = getattr(module, "dtype", None)
        if settled is not None and jnp.issubdtype(settled, jnp.floating) and jnp.dtype(settled) in frozen:
            object.__setattr__(module, "dtype", dtype)  # a copy that lives for this call alone
        if isinstance(module, linen.BatchNorm):
            kwargs = {**kwargs, "use_running_average": not options.training}
            object.__setattr__(module, "use_running_average", None)
        if not options.dropout:
            if isinstance(module, linen.Dropout):
                function = _through
            if isinstance(getattr(module, "dropout_rate", None), float):
                object.__setattr__(module, "dropout_rate", 0.0)
        observer, path = current(), ".".join(module.path)
        if observer is None or not path:
            return function(*args, **kwargs)
        own = module.variables.get("params", {}) if module.scope is not None else {}
        concrete = {n: x for n, x in own.items() if isinstance(x, jax.Array) and not isinstance(x, jax.core.Tracer)}
        site = Site(path, type(module).__name__, settings_of(module), lambda: arrays_of(concrete, copy=False))
        return observer.call(site, partial(function), args, kwargs)

    with linen.intercept_methods(around):
        yield


def _through(inputs: Any, *_: Any, **__: Any) -> Any:
    return inputs
