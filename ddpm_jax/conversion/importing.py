"""`ddpm import`: weights of other libraries, from a path or the Hugging Face Hub, as a run folder that names its source."""

import hashlib
from pathlib import Path
from typing import Any

from ddpm_jax.conversion import hub
from ddpm_jax.conversion.folders import DiffusersFolder, is_diffusers_folder, read_folder
from ddpm_jax.conversion.runs import to_run
from ddpm_jax.conversion.scheduler import from_scheduler
from ddpm_jax.errors import UserError
from ddpm_jax.presets import ProcessConfig, SampleConfig
from ddpm_jax.weights import from_diffusers


def import_weights(
    source: str,
    out: Path,
    *,
    revision: str | None = None,
    image_size: int | None = None,
    num_classes: int | None = None,
    scheduler: bool = True,
    data: str = "",
) -> Path:
    """Make a run folder `out` of what lies at a path, or in a repository of the Hub (owner/name). Returns it.

    revision: of the repository: a branch, tag or commit; None: main. image_size, num_classes: where the files do not say them.
    scheduler: take the process and the way of sampling from the folder's scheduler; otherwise, and where there is none, they are
    DDPM's. data: what the network was trained on, as `--data.source`.

    Raises:
        UserError: nothing is there, it cannot be read or holds more than plain tensors, or it has no counterpart here (by name).
    """
    if out.exists():
        raise UserError(f"{out} exists; choose another --out.")
    path, commit, licence = _found(source, revision)
    if not is_diffusers_folder(path):
        raise UserError(f"{path} is no folder of diffusers (a config.json with _class_name, or a model_index.json).")
    found = read_folder(path)
    model, tensors = from_diffusers(found.config, found.tensors, image_size=image_size, num_classes=num_classes)
    process, sampling = _process(found, model, scheduler)
    origin = {
        "source": source if commit else str(path.absolute()),
        "library": "diffusers",
        "revision": commit,
        "licence": licence,
        "sha256": {str(file.relative_to(_root(path, found))): _sha256(file) for file in found.files},
    }
    return to_run(out, model, tensors, process=process, sampling=sampling, data=data, origin=origin)


def _found(source: str, revision: str | None) -> tuple[Path, str | None, str | None]:
    """Where the files are, the commit they are of (None: they are no repository's), and their licence."""
    path = Path(source)
    if path.exists():
        if revision is not None:
            raise UserError(f"--revision belongs to a repository of the Hub, and {source} is a path.")
        return path, None, hub.licence(path) if path.is_dir() else None
    if not hub.NAME.fullmatch(source):
        raise UserError(f"{source} does not exist, and is no id of the Hub (owner/name) either.")
    folder, commit = hub.snapshot(source, revision)
    return folder, commit, hub.licence(folder)


def _process(found: DiffusersFolder, model: Any, scheduler: bool) -> tuple[ProcessConfig, SampleConfig]:
    options = found.scheduler if scheduler and found.scheduler is not None else {}
    if not options and model.learn_variance:
        options = {"variance_type": "learned_range"}
    elif not options:
        options = {"variance_type": "fixed_large"}
    return from_scheduler(options, model)


def _root(path: Path, found: DiffusersFolder) -> Path:
    return path if all(path in file.parents for file in found.files) else path.parent


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
