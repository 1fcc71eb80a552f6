"""A run folder's config.json, before jax is there to make a run of it: mistakes in it, or in its name, need not wait for that."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddpm_jax import presets
from ddpm_jax.errors import UserError
from ddpm_jax.presets import Preset
from ddpm_jax.run_names import CONFIG, Place, place_of
from ddpm_jax.typed import value_of

FORMAT = 4
"""Version of the run folder's layout: 3 has manifests in its checkpoints, 4 a config in which each option belongs to its noun."""
READABLE = (2, 3, FORMAT)
"""Versions that can be read; a run that is resumed is written in the newest."""


@dataclass(frozen=True)
class RunConfig:
    """What config.json says; the fields are those of `training.run.Run`."""

    config: Preset
    class_names: tuple[str, ...]
    scaling: dict[str, Any]
    """The fields of a `data.Scaling`."""
    origin: dict[str, Any] | None
    place: Place
    """Where it lies."""


def read_run(folder: Path) -> RunConfig:
    """What the config.json in a folder that `ddpm train` made, or of a run by name, says; jax is imported, for the network's
    options.

    Raises:
        UserError: the folder is missing or is no run, or its config cannot be read (names the field).
    """
    place = place_of(folder)
    path, tree = place.folder / CONFIG, read_tree(place.folder)
    try:
        return RunConfig(
            presets.from_json(json.dumps(tree["config"])),
            value_of(tuple[str, ...], tree["class_names"], "class_names"),
            value_of(dict[str, Any], tree["scaling"], "scaling"),
            value_of(dict[str, Any] | None, tree.get("origin"), "origin"),
            place,
        )
    except KeyError as error:
        raise UserError(f"{path} cannot be read: {error} is missing.") from error
    except UserError as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def read_tree(folder: Path) -> dict[str, Any]:
    """The JSON that a run's config.json holds, of a version that can be read; without jax.

    Raises:
        UserError: the folder is missing or is no run, or its config is no such JSON; there is no run of that name.
    """
    folder = place_of(folder).folder
    path = folder / CONFIG
    if not path.is_file():
        raise UserError(_no_run(folder))
    try:
        tree = json.loads(path.read_bytes())
        version = tree["format"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {error}.") from error
    if version not in READABLE:
        raise UserError(
            f"{path} has format {version!r}; this version of ddpm-jax reads the formats {READABLE[0]} to {FORMAT}."
        )
    return tree


def _no_run(folder: Path) -> str:
    if folder.is_file():
        return f"{folder} is a file, and a run is a folder, which ddpm train makes: ddpm train PRESET --out FOLDER."
    if folder.is_dir():
        return f"{folder} holds no {CONFIG}, so it is no run folder. ddpm train PRESET --out FOLDER makes one."
    return f"{folder} does not exist. Make it with: ddpm train PRESET --out {folder}"
