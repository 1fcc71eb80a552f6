"""`ddpm import`: weights of other libraries, from a path or the Hugging Face Hub, as a run folder that names its source."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_jax.conversion import denoising_diffusion, hub, openai
from ddpm_jax.conversion.folders import is_diffusers_folder, read_folder
from ddpm_jax.conversion.runs import to_run
from ddpm_jax.conversion.scheduler import from_scheduler
from ddpm_jax.errors import UserError
from ddpm_jax.model_configs import RMSUNet, UNet
from ddpm_jax.presets import ProcessConfig, SampleConfig
from ddpm_jax.weights import from_diffusers, read_tensors
from ddpm_jax.weights.denoising_diffusion import is_denoising_diffusion


def import_weights(
    source: str,
    out: Path,
    *,
    revision: str | None = None,
    image_size: int | None = None,
    num_classes: int | None = None,
    scheduler: bool = True,
    data: str = "",
    openai: Mapping[str, Any] | None = None,
    ddp: Mapping[str, Any] | None = None,
) -> Path:
    """Make a run folder `out` of what lies at a path, or in a repository of the Hub (owner/name). Returns it.

    A folder is taken for one of diffusers, a file for a checkpoint of denoising-diffusion-pytorch where its names say so, and of
    improved-diffusion or guided-diffusion otherwise.

    revision: of the repository: a branch, tag or commit; None: main. image_size, num_classes: where the files do not say them.
    scheduler: take the process and the way of sampling from the folder's scheduler; otherwise, and where there is none, they are
    DDPM's. data: what the network was trained on, as `--data.source`. openai: the options of `openai.from_file`, None for those
    that are left out. ddp: weights (`ema` or `model` of a Trainer's file) and the options of `denoising_diffusion.from_file`, None
    for those that are left out.

    Raises:
        UserError: nothing is there, it cannot be read or holds more than plain tensors, or it has no counterpart here (by name).
    """
    if out.exists():
        raise UserError(f"{out} exists; choose another --out.")
    path, commit = _found(source, revision)
    files: tuple[Path, ...] = (path,)
    if path.is_file():
        root = path.parent
        library, model, tensors, process, sampling = _checkpoint(path, image_size, openai or {}, dict(ddp or {}))
    elif is_diffusers_folder(path):
        found = read_folder(path)
        library, files, root = "diffusers", found.files, found.root
        model, tensors = from_diffusers(found.config, found.tensors, image_size=image_size, num_classes=num_classes)
        variance = "learned_range" if model.learn_variance else "fixed_large"
        options = found.scheduler if scheduler and found.scheduler is not None else {"variance_type": variance}
        process, sampling = from_scheduler(options, model)
    else:
        raise UserError(f"{path} is no folder of diffusers: no config.json there says _class_name.")
    origin = {
        "source": source if commit else str(path.absolute()),
        "library": library,
        "revision": commit,
        "licence": hub.licence(root),
        "sha256": {str(file.relative_to(root)): _sha256(file) for file in files},
    }
    return to_run(out, model, tensors, process=process, sampling=sampling, data=data, origin=origin)


def _found(source: str, revision: str | None) -> tuple[Path, str | None]:
    """Where the files are, and the commit that they are of (None: they are no repository's)."""
    path = Path(source)
    if path.exists():
        if revision is not None:
            raise UserError(f"--revision belongs to a repository of the Hub, and {source} is a path.")
        return path, None
    if not hub.NAME.fullmatch(source):
        raise UserError(f"{source} does not exist, and is no id of the Hub (owner/name) either.")
    return hub.snapshot(source, revision)


def _checkpoint(
    path: Path, image_size: int | None, openai_options: Mapping[str, Any], ddp_options: dict[str, Any]
) -> tuple[str, UNet | RMSUNet, dict[str, np.ndarray], ProcessConfig, SampleConfig]:
    averaged = ("ema",) if ddp_options.pop("weights", None) != "model" else ()
    tensors = read_tensors(path, (*averaged, "state_dict", "model"))
    if is_denoising_diffusion(tensors):
        found = denoising_diffusion.from_file(path, tensors, image_size=image_size, **ddp_options)
        return "denoising-diffusion-pytorch", *found
    return "openai", *openai.from_file(path, tensors, image_size=image_size, **openai_options)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
