"""Annotations of shapes are checked while the tests run: in every module that has one."""

import tomllib
from pathlib import Path

import jax.numpy as jnp
import jaxtyping
import pytest
from checker import unchecked

from ddpm_jax import processes, schedules

ROOT = Path(__file__).parents[1]
OPTION = "--jaxtyping-packages="


def checked_modules() -> list[str]:
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]["addopts"]
    (found,) = (option.removeprefix(OPTION).split(",")[:-1] for option in options if option.startswith(OPTION))
    return found


def test_every_module_with_shapes_is_checked():
    checked = checked_modules()
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in ROOT.glob("ddpm_jax/**/*.py")}
    with_shapes = [f"{name}." for name, path in modules.items() if "from jaxtyping import" in path.read_text()]
    assert len(with_shapes) > 40
    assert not [name for name in with_shapes if not name.startswith(tuple(f"{package}." for package in checked))]
    assert not [package for package in checked if not any(name.startswith(f"{package}.") for name in with_shapes)]


def test_a_wrong_shape_is_caught():
    """Times for three images beside two."""
    process = processes.GaussianDiffusion(schedules.create("linear", 10))
    wrong = jnp.zeros((2, 4, 4, 1)), jnp.zeros((2, 4, 4, 1)), jnp.zeros(3, int)
    with pytest.raises(jaxtyping.TypeCheckError):
        process.estimate(*wrong)
    with unchecked(), pytest.raises((TypeError, ValueError), match="broadcast"):
        process.estimate(*wrong)
