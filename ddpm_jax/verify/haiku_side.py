"""Haiku: a transformed function and its parameters as a program; its modules are watched by intercepting their methods."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import haiku
import jax

from ddpm_jax.verify.observing import Site, current
from ddpm_jax.verify.program import Program
from ddpm_jax.verify.settings import settings_of
from ddpm_jax.weights.structure import dotted


def program_of(transformed: Any, variables: Any) -> Program:
    """The program of transformed.apply(params, key, ...).

    transformed: of haiku.transform or transform_with_state. variables: params; or (params, state), of the latter.
    """
    with_state = isinstance(transformed, haiku.TransformedWithState)
    params, state = variables if with_state else (variables, {})

    def call(variables: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, Any]:
        given = (variables["params"], variables["state"]) if with_state else (variables["params"],)
        with watched():
            found = transformed.apply(*given, jax.random.key(0), *args, **kwargs)
        return found if with_state else (found, {})

    return Program(
        {"params": dict(params)}, {"state": dict(state)}, call, tree={"params": dict(params)} if params else None
    )


def watched() -> Any:
    """While entered, calls of haiku's modules are taken note of."""

    def around(function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], context: Any) -> Any:
        observer = current()
        if observer is None or context.method_name != "__call__":
            return function(*args, **kwargs)
        path = dotted((context.module.module_name,))
        site = Site(path, type(context.module).__name__, settings_of(context.module), dict)
        return observer.call(site, partial(function), args, kwargs)

    return haiku.intercept_methods(around)
