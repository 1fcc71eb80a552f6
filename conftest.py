"""Compiled programs are kept between tests and between runs of them."""

import os
from collections.abc import Iterator

import jax
import jaxtyping
import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Compiling takes most of the tests' time: XLA's results are kept beside pytest's own cache, for commands too."""
    if getattr(config, "cache", None) is None or "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    options = {
        "jax_compilation_cache_dir": str(config.cache.mkdir("xla")),
        "jax_persistent_cache_min_compile_time_secs": 0.1,
    }
    for name, value in options.items():
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)


@pytest.fixture
def without_the_checker() -> Iterator[None]:
    """Nobody's program checks annotations but the tests'."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)
