"""Folders of the library diffusers: a `UNet2DModel` alone, or a pipeline's with its scheduler; read and written."""

import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_jax.conversion.scheduler import to_scheduler
from ddpm_jax.errors import UserError
from ddpm_jax.presets import Preset
from ddpm_jax.weights import read_tensors, to_diffusers, write_tensors

CONFIG, SCHEDULER, PIPELINE = "config.json", "scheduler_config.json", "model_index.json"
WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
"""The network's files, the first that is there."""


@dataclass(frozen=True)
class DiffusersFolder:
    """What a folder holds."""

    config: dict[str, Any]
    """The network's config.json."""
    tensors: dict[str, np.ndarray]
    scheduler: dict[str, Any] | None
    """scheduler_config.json; None: there is none."""
    files: tuple[Path, ...]
    """What was read."""
    root: Path
    """The folder that all of them lie in."""


def is_diffusers_folder(folder: Path) -> bool:
    """Whether a folder looks like one: a pipeline's, or a network's config.json that names its class."""
    if (folder / PIPELINE).is_file() or (folder / "unet" / CONFIG).is_file():
        return True
    path = folder / CONFIG
    return path.is_file() and "_class_name" in _json(path)


def read_folder(folder: Path) -> DiffusersFolder:
    """The network, and the scheduler if any; both in folders `unet` and `scheduler`, or, as in early pipelines, side by side.

    Raises:
        UserError: files are missing or damaged, or hold anything but plain tensors.
    """
    inside = folder / "unet" if (folder / "unet").is_dir() else folder
    config = inside / CONFIG
    if not config.is_file():
        raise UserError(f"{folder} holds no {CONFIG}, alone or in a folder unet: it is no folder of diffusers.")
    found = [inside / name for name in WEIGHTS if (inside / name).is_file()]
    if not found:
        raise UserError(f"{inside} holds no weights: {' or '.join(WEIGHTS)} is needed.")
    places = [folder / "scheduler" / SCHEDULER, folder / SCHEDULER]
    if folder.name == "unet":
        places.append(folder.parent / "scheduler" / SCHEDULER)
    scheduler = next((path for path in places if path.is_file()), None)
    return DiffusersFolder(
        _json(config),
        read_tensors(found[0]),
        None if scheduler is None else _json(scheduler),
        (config, found[0], *([] if scheduler is None else [scheduler])),
        folder.parent if scheduler is not None and folder not in scheduler.parents else folder,
    )


def write_folder(folder: Path, config: Preset, tensors: dict[str, np.ndarray]) -> list[Path]:
    """Write a pipeline's folder of a run's config and the twin's state dict; returns the files.

    Raises:
        UserError: the folder exists, or something has no counterpart there (all of it is named).
    """
    if folder.exists():
        raise UserError(f"{folder} exists; choose another name for the folder.")
    model, theirs = to_diffusers(config.model, tensors)  # type: ignore[arg-type]
    scheduler = to_scheduler(config)
    kind = scheduler["_class_name"]
    pipeline = {
        "_class_name": kind.replace("Scheduler", "Pipeline"),
        "unet": ["diffusers", model["_class_name"]],
        "scheduler": ["diffusers", kind],
    }
    files = {PIPELINE: pipeline, f"unet/{CONFIG}": model, f"scheduler/{SCHEDULER}": scheduler}
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            for name, content in files.items():
                (made / name).parent.mkdir(exist_ok=True)
                (made / name).write_text(json.dumps(content, indent=2) + "\n")
            write_tensors(made / "unet" / WEIGHTS[0], theirs, metadata={"format": "pt"})
            made.chmod(0o755)
            made.rename(folder)
        finally:
            shutil.rmtree(made, ignore_errors=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror or error}.") from error
    return [folder / name for name in (*files, f"unet/{WEIGHTS[0]}")]


def _json(path: Path) -> dict[str, Any]:
    try:
        tree = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} cannot be read: {error}.") from error
    if not isinstance(tree, dict):
        raise UserError(f"{path} cannot be read: it holds no options.")
    return tree
