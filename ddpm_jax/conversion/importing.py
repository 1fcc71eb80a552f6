"""`ddpm import`: weights of other libraries, from a path or the Hugging Face Hub, as a run folder that names its source."""

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_jax.conversion import denoising_diffusion, hub
from ddpm_jax.conversion.folders import is_diffusers_folder, read_folder
from ddpm_jax.conversion.published import FILES, Published
from ddpm_jax.conversion.runs import to_run
from ddpm_jax.conversion.scheduler import from_scheduler
from ddpm_jax.errors import UserError
from ddpm_jax.model_configs import RMSUNet, UNet
from ddpm_jax.presets import ProcessConfig, SampleConfig
from ddpm_jax.weights import from_diffusers, from_openai, read_tensors
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
    DDPM's. data: what the network was trained on, as `--data.source`. openai: fields of `Published` for a file that is not one of
    `published.FILES`, None for those that are left out. ddp: weights (`ema` or `model` of a Trainer's file) and the options of
    `denoising_diffusion.from_file`, None for those that are left out.

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
    path: Path, image_size: int | None, openai: Mapping[str, Any], ddp: dict[str, Any]
) -> tuple[str, UNet | RMSUNet, dict[str, np.ndarray], ProcessConfig, SampleConfig]:
    averaged = ("ema",) if ddp.pop("weights", None) != "model" else ()
    tensors = read_tensors(path, (*averaged, "state_dict", "model"))
    if is_denoising_diffusion(tensors):
        found = denoising_diffusion.from_file(path, tensors, image_size=image_size, **ddp)
        return "denoising-diffusion-pytorch", *found
    return "openai", *_openai(path, tensors, image_size, openai)


def _openai(
    path: Path, tensors: Mapping[str, np.ndarray], image_size: int | None, given: Mapping[str, Any]
) -> tuple[UNet, dict[str, np.ndarray], ProcessConfig, SampleConfig]:
    options = {name: value for name, value in given.items() if value is not None}
    if image_size is not None:
        options["image_size"] = image_size
    known = FILES.get(path.stem)
    if known is None and "image_size" not in options:
        raise UserError(
            f"{path.name} is none of the files that OpenAI published ({', '.join(FILES)}): pass --image-size, and whatever of "
            "--openai.num-heads, --openai.head-dim, --openai.num-steps, --openai.schedule, --openai.rescale-timesteps and "
            "--openai.new-attention-order it was trained with."
        )
    if known is not None and {"num_heads", "head_dim"} & options.keys():
        known = dataclasses.replace(known, num_heads=None, head_dim=None)
    made = Published(**options) if known is None else dataclasses.replace(known, **options)
    model, ours = from_openai(
        tensors,
        image_size=made.image_size,
        num_heads=made.num_heads,
        head_dim=made.head_dim,
        new_attention_order=made.new_attention_order,
        time_scale=1000 / made.num_steps if made.rescale_timesteps else 1.0,
        dropout=made.dropout,
    )
    # their linear betas are those of 1,000 steps, spread over the number of steps
    betas: dict[str, Any] = (
        {"beta_start": 0.1 / made.num_steps, "beta_end": 20 / made.num_steps} if made.schedule == "linear" else {}
    )
    loss: Any = "hybrid" if model.learn_variance else "mse"
    process = ProcessConfig(made.schedule, made.num_steps, **(betas if made.schedule == "linear" else {}), loss=loss)
    return model, ours, process, SampleConfig("ancestral", variance="learned" if model.learn_variance else "beta")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
