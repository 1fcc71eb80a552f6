"""What importing the package brings along, and what it costs: each case in a process of its own."""

import os
import subprocess
import sys

import pytest

import ddpm_jax

JAX = {"jax", "flax", "optax", "orbax", "grain"}
OTHERS = {
    "torch",
    "tensorflow",
    "tensorflow_datasets",
    "sklearn",
    "diffusers",
    "diffrax",
    "safetensors",
    "datasets",
    "wandb",
}


@pytest.mark.parametrize(
    ("code", "heavy"),
    [
        ("import ddpm_jax", JAX | OTHERS | {"numpy"}),
        ("import ddpm_jax.presets", JAX | OTHERS | {"numpy"}),
        ("import ddpm_jax.cli, ddpm_jax.__main__", JAX | OTHERS | {"numpy"}),
        ("from ddpm_jax import data; data.open_source('digits')", JAX | OTHERS - {"sklearn"}),
        (f"from ddpm_jax import {', '.join(ddpm_jax.__all__)}", OTHERS),
    ],
)
def test_nothing_heavy_comes_along(code, heavy):
    """The last of them is the whole public surface: JAX is enough for it."""
    assert not imported(code) & heavy


def test_importing_the_package_is_quick():
    """Measured 0.02 s; the limit is what a busy machine may take."""
    assert (
        float(output("import time; begun = time.perf_counter(); import ddpm_jax; print(time.perf_counter() - begun)"))
        < 1.5
    )


def imported(code):
    return set(output(f"{code}\nimport sys; print(*sys.modules)").split())


def output(code):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    ).stdout
