"""How programs are compiled: `jit` is jax.jit with the compiler options that suit the platform it runs on."""

import functools
from collections.abc import Callable
from typing import Any

import jax


def jit(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """jax.jit(function, **options) with this platform's compiler options, settled at the first call rather than at import."""

    @functools.cache
    def compiled() -> Callable[..., Any]:
        return jax.jit(function, compiler_options=compiler_options(), **options)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return compiled()(*args, **kwargs)

    return call


@functools.cache
def compiler_options() -> dict[str, Any]:
    """On CPU, convolutions are kept from XLA's YNNPACK path, which is about half as fast on these networks as the older one.

    The option is experimental: a jaxlib that does not know it gets none.
    """
    if jax.default_backend() != "cpu":
        return {}
    options = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_DOT,LIBRARY_FUSION_TYPE_REDUCE"}
    try:
        jax.jit(lambda x: x, compiler_options=options).lower(0.0).compile()
    except (jax.errors.JaxRuntimeError, ValueError):
        return {}
    return options


def once() -> dict[str, Any]:
    """Compiler options for a program that runs once, on CPU: what would take long is to optimise it."""
    return compiler_options() | ({"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else {})
