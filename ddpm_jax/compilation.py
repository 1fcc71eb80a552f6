"""How programs are compiled: `jit` is jax.jit with the compiler options that suit the platform and how often the program runs."""

import functools
from collections.abc import Callable
from typing import Any

import jax

CONVOLUTIONS = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_DOT,LIBRARY_FUSION_TYPE_REDUCE"}
"""On CPU: keeps convolutions from XLA's YNNPACK path, which is about half as fast on these networks as the older one."""

QUICK = {"xla_cpu_use_fusion_emitters": False, "xla_cpu_parallel_codegen_split_count": 1}
"""On CPU: beside no optimisation, compiles in a third of the time."""

LITTLE_WORK = 1e9
"""FLOP that take a few seconds without optimisation, in float64, which is what it takes to optimise a network's program."""


def jit(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """jax.jit(function, **options) with this platform's compiler options, settled at the first call rather than at import.

    It has jax.jit's own `lower` and `trace`; and `elsewhere`, the same by jax.jit alone, to be lowered for a platform that is not
    this one's.
    """

    @functools.cache
    def compiled(_: bool) -> Callable[..., Any]:
        return jax.jit(function, compiler_options=compiler_options(), **options)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return compiled(_unoptimised())(*args, **kwargs)

    for name in ("lower", "trace"):
        setattr(call, name, lambda *args, name=name, **kwargs: getattr(compiled(_unoptimised()), name)(*args, **kwargs))
    call.elsewhere = jax.jit(function, **options)  # type: ignore[attr-defined]
    return call


def compiler_options() -> dict[str, Any]:
    """What suits the platform; jax_disable_most_optimizations, where it is set, is carried further.

    The options are experimental: a jaxlib that does not know one goes without.
    """
    return _known(**CONVOLUTIONS) | (_known(**QUICK) if _unoptimised() else {})


def once() -> dict[str, Any]:
    """Compiler options for a program that runs once, on CPU: what would take long is to optimise it."""
    if jax.default_backend() != "cpu":
        return {}
    return _known(**CONVOLUTIONS) | _known(**QUICK) | {"xla_backend_optimization_level": 0}


def compile_for(runs: int, function: Callable[..., Any], *args: Any) -> Callable[..., Any]:
    """The program of function(*args), to be called a few times: optimised where it does enough work to gain by it."""
    lowered = jax.jit(function).lower(*args)
    work = runs * (lowered.cost_analysis() or {}).get("flops", 0)
    return lowered.compile(once() if work < LITTLE_WORK else compiler_options())


def _unoptimised() -> bool:
    return bool(jax.config.read("jax_disable_most_optimizations"))


@functools.cache
def _known(**options: Any) -> dict[str, Any]:
    if jax.default_backend() != "cpu":
        return {}
    try:
        jax.jit(lambda x: x, compiler_options=options).lower(0.0).compile()
    except (jax.errors.JaxRuntimeError, ValueError):
        return {}
    return options
