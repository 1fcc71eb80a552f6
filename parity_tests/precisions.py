"""Which precision a parity test runs in at every commit, where it takes seconds in each."""

import pytest

FLOAT32_SLOWLY = pytest.mark.parametrize(
    "dtype", ["float64", pytest.param("float32", marks=pytest.mark.slow)], indirect=True, scope="module"
)
"""In float64, whose tolerance is the sharper; in float32 with the slow tests, as the networks and the records are besides."""
