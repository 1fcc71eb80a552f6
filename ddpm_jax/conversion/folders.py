"""Folders of the library diffusers: a `UNet2DModel` alone, or a pipeline's with its scheduler; read and written."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_jax.conversion.json_files import read_json
from ddpm_jax.conversion.scheduler import to_scheduler
from ddpm_jax.conversion.weight_files import WEIGHTS, find_weights
from ddpm_jax.errors import UserError
from ddpm_jax.files import new_folder
from ddpm_jax.presets import Preset
from ddpm_jax.weights import Which, to_diffusers, write_tensors
from ddpm_jax.weights.diffusers import is_averaged

CONFIG, SCHEDULER, PIPELINE = "config.json", "scheduler_config.json", "model_index.json"
TRAINED, AVERAGED, CHECKPOINT = "unet", "unet_ema", "checkpoint-"
"""Folders: of a network, of its average beside it, and what the name of a checkpoint of training begins with."""


@dataclass(frozen=True)
class DiffusersFolder:
    """What a folder holds."""

    config: dict[str, Any]
    """The network's config.json."""
    tensors: dict[str, np.ndarray]
    weights: Which | None
    """Whether the tensors are averaged or those being trained; None: nothing there says."""
    scheduler: dict[str, Any] | None
    """scheduler_config.json; None: there is none."""
    files: tuple[Path, ...]
    """What was read."""
    root: Path
    """The folder that all of them lie in."""


def is_diffusers_folder(folder: Path) -> bool:
    """Whether a folder looks like one: a pipeline's, or a network's config.json that names its class."""
    if (folder / PIPELINE).is_file() or any((folder / name / CONFIG).is_file() for name in (AVERAGED, TRAINED)):
        return True
    path = folder / CONFIG
    return path.is_file() and "_class_name" in read_json(path)


def read_folder(folder: Path, *, weights: Which | None = None, variant: str | None = None) -> DiffusersFolder:
    """The network, and the scheduler if any: in folders `unet` and `scheduler`, side by side as in early pipelines, or as training
    scripts leave them, the average in `unet_ema` beside `unet`, and the scheduler in the folder that holds the checkpoint.

    weights: the average, or those being trained; None: the average where there is one. variant: see `find_weights`.

    Raises:
        UserError: files are missing or damaged, or hold anything but plain tensors; or there are no such weights.
    """
    folder = folder.absolute()
    inside = _network(folder, weights)
    path = inside / CONFIG
    if not path.is_file():
        raise UserError(f"{inside} holds no {CONFIG}, alone or in a folder unet: it is no folder of diffusers.")
    config = read_json(path)
    found = find_weights(inside, variant=variant, which=weights)
    which = found.which or ("ema" if is_averaged(config) or inside.name == AVERAGED else None)
    if which is None and inside.name == TRAINED and (inside.parent / AVERAGED).is_dir():
        which = "params"
    scheduler = _scheduler(folder)
    files = (path, *found.files, *([] if scheduler is None else [scheduler]))
    root = folder if all(folder in file.parents for file in files) else Path(os.path.commonpath(files))
    return DiffusersFolder(
        config, found.read(), which, None if scheduler is None else read_json(scheduler), files, root
    )


def _network(folder: Path, weights: Which | None) -> Path:
    """The folder of the network that was asked for."""
    averaged, trained = ((folder / name).is_dir() for name in (AVERAGED, TRAINED))
    if averaged and weights != "params":
        return folder / AVERAGED
    if averaged and not trained:
        raise UserError(f"{folder} holds averaged weights alone ({AVERAGED}); those being trained were asked for.")
    return folder / TRAINED if trained else folder


def _scheduler(folder: Path) -> Path | None:
    """The scheduler that belongs to a folder: its own, or that of the folder around a network or a checkpoint of training."""
    for path in (folder / "scheduler" / SCHEDULER, folder / SCHEDULER):
        if path.is_file():
            return path
    if folder.name in (AVERAGED, TRAINED) or folder.name.startswith(CHECKPOINT):
        return _scheduler(folder.parent)
    return None


def write_folder(folder: Path, config: Preset, tensors: dict[str, np.ndarray]) -> list[Path]:
    """Write a pipeline's folder of a run's config and the twin's state dict; returns the files.

    Raises:
        UserError: the folder exists, or something has no counterpart there (all of it is named).
    """
    if folder.exists():
        raise UserError(f"{folder} exists; choose another name for the folder.")
    model, theirs = to_diffusers(config.model, tensors)
    scheduler = to_scheduler(config)
    kind = scheduler["_class_name"]
    pipeline = {
        "_class_name": kind.replace("Scheduler", "Pipeline"),
        "unet": ["diffusers", model["_class_name"]],
        "scheduler": ["diffusers", kind],
    }
    files = {PIPELINE: pipeline, f"unet/{CONFIG}": model, f"scheduler/{SCHEDULER}": scheduler}
    with new_folder(folder) as made:
        for name, content in files.items():
            (made / name).parent.mkdir(exist_ok=True)
            (made / name).write_text(json.dumps(content, indent=2) + "\n")
        write_tensors(made / "unet" / WEIGHTS[0], theirs, metadata={"format": "pt"})
    return [folder / name for name in (*files, f"unet/{WEIGHTS[0]}")]
