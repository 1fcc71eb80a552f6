"""Runs that travel: a config and one file of averaged weights, in 16 bits, in place of checkpoints."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_jax import models, weights
from ddpm_jax.archives import read_npz
from ddpm_jax.errors import UserError
from ddpm_jax.files import write_atomically
from ddpm_jax.run_names import WEIGHTS

_STEP = "step"
"""Beside the weights: the step they are of."""


def is_packed(folder: Path) -> bool:
    """Whether a run folder has its weights in one file."""
    return (folder / WEIGHTS).is_file()


def write(folder: Path, arrays: Mapping[str, np.ndarray], step: int) -> Path:
    """Write weights, under the twin's names, into a run folder: as float16, or as they are where that does not hold them."""
    brief = {name: _brief(array) for name, array in arrays.items()}
    return write_atomically(
        folder / WEIGHTS,
        lambda path: np.savez_compressed(path, allow_pickle=False, **{_STEP: np.asarray(step)}, **brief),
    )


def read(folder: Path) -> tuple[dict[str, np.ndarray], int]:
    """The weights of a packed run, under the twin's names, as float32; and their step.

    Raises:
        UserError: the file cannot be read.
    """
    path = folder / WEIGHTS
    arrays = read_npz(path)
    step = arrays.pop(_STEP, None)
    if step is None or step.shape or step.dtype.kind != "i":
        raise UserError(f"{path} is no file of a packed run: it does not say which step its weights are of.")
    return {key: array.astype(np.float32) if array.dtype.kind == "f" else array for key, array in arrays.items()}, int(
        step
    )


def variables(folder: Path, model: Any, *, ema: bool, step: int | None) -> tuple[models.Variables, int]:
    """The parameters and running statistics of a packed run, and their step. model: config of its network.

    Raises:
        UserError: the file cannot be read or does not fit the network; or what is asked for is not in it: weights that are not
            averaged, or those of another step.
    """
    arrays, there = read(folder)
    if not ema:
        raise UserError(f"{folder} is packed: it holds averaged weights alone, and those being trained were asked for.")
    if step not in (None, there):
        raise UserError(f"{folder} is packed: it holds the weights of step {there} alone; step {step} was asked for.")
    try:
        tree = weights.from_torch(weights.layout(models.abstract(model)), arrays)
    except UserError as error:
        raise UserError(f"{folder / WEIGHTS} does not fit the run's config. {error}") from error
    return tree, there


def _brief(array: np.ndarray) -> np.ndarray:
    fits = array.dtype.kind == "f" and (not array.size or np.abs(array).max() <= np.finfo(np.float16).max)
    return array.astype(np.float16) if fits else array
