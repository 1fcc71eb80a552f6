"""How programs are compiled in tests, and that they are kept between tests and between runs of them."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
from checker import unchecked

QUICK = (
    "--xla_cpu_parallel_codegen_split_count=1",
    # XLA ends the process at a flag that it does not know
    *(["--xla_cpu_use_fusion_emitters=false"] if jax.__version_info__ < (0, 11, 1) else []),
)
"""XLA compiles in a third of the time."""
MOST_MAPS = 20_000
"""Pieces of memory that a process may have before compiled programs are dropped: Linux allows 65,530, a program takes dozens."""
UNOPTIMISED = ("--xla_backend_optimization_level=0", "--xla_llvm_disable_expensive_passes=true")
"""And in a tenth: for programs that run for milliseconds. The convolutions of slow tests, in float64, would run for minutes."""


def pytest_configure(config: pytest.Config) -> None:
    """Compiling takes most of the tests' time: it is done quickly, and what comes of it is kept beside pytest's own cache; in
    commands that tests start as well."""
    if not hasattr(config, "workerinput"):  # xdist's workers have the flags from here
        quick = (*QUICK, *(UNOPTIMISED if config.option.markexpr == "not slow" else ()))
        os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *quick]).strip()
    gc.set_threshold(50_000, 20, 20)  # of all that tests and JAX have made, most stays
    if getattr(config, "cache", None) is None or "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    options = {
        "jax_compilation_cache_dir": str(config.cache.mkdir("xla")),
        "jax_persistent_cache_min_compile_time_secs": 0.1,
    }
    for name, value in options.items():
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)


def pytest_sessionfinish() -> None:
    """Nothing is searched for what might be freed: pytest does so five times before it ends, for seconds each."""
    gc.freeze()


@pytest.fixture(autouse=True, scope="module")
def few_programs() -> Iterator[None]:
    """What JAX has compiled it keeps for good: gigabytes, which a search for garbage goes through again and again."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > MOST_MAPS:
        jax.clear_caches()
        gc.collect()


@pytest.fixture
def without_the_checker() -> Iterator[None]:
    """Nobody's program checks annotations but the tests'."""
    with unchecked():
        yield
