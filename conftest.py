"""Compiled programs are kept between tests and between runs of them."""

import os

import jax
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
