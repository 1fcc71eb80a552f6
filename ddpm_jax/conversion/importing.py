"""`ddpm import`: weights of other libraries, from a path or the Hugging Face Hub, as a run folder that names its source."""

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from ddpm_jax import models
from ddpm_jax.conversion import denoising_diffusion, dit, edm, hub, openai
from ddpm_jax.conversion.folders import SCHEDULER, is_diffusers_folder, read_folder
from ddpm_jax.conversion.runs import to_run
from ddpm_jax.conversion.scheduler import from_scheduler
from ddpm_jax.errors import UserError
from ddpm_jax.hub import NAME
from ddpm_jax.models import ModelConfig
from ddpm_jax.presets import DataConfig, ImportConfig, SampleConfig
from ddpm_jax.processes import EDM, Process
from ddpm_jax.samplers import Ancestral
from ddpm_jax.schedules import Linear
from ddpm_jax.training.run import Run
from ddpm_jax.weights import Which, from_diffusers, read_weights
from ddpm_jax.weights.denoising_diffusion import is_denoising_diffusion
from ddpm_jax.weights.dit import is_dit


class Imported(NamedTuple):
    """What was read, in our terms."""

    library: str
    model: ModelConfig
    tensors: dict[str, np.ndarray]
    """The twin's state dict."""
    weights: Which | None
    """Whether they are averaged or those being trained; None: the files do not say."""
    process: Process
    sampling: SampleConfig
    files: tuple[Path, ...]
    """All that was read."""
    root: Path
    """The folder that they lie in."""
    label_dropout: float = 0.0
    """Share of the labels that were hidden from the network while it was trained."""


def import_weights(source: str, out: Path, how: ImportConfig | None = None) -> Path:
    """Make a run folder `out` of what lies at a path, or in a repository of the Hub (owner/name). Returns it.

    A folder is taken for one of diffusers, a .pkl for a pickled network of NVlabs/edm, and any other file for a checkpoint of
    denoising-diffusion-pytorch or of facebookresearch/DiT where its names say so, and of improved-diffusion or guided-diffusion
    otherwise. how: None for an ImportConfig's defaults.

    Raises:
        UserError: nothing is there, it cannot be read or holds more than plain tensors, it has no counterpart here (by name), or it
            does not hold the weights that were asked for.
    """
    how = how or ImportConfig()
    if out.exists():
        raise UserError(f"{out} exists; choose another --out.")
    path, commit = _found(source, how.revision, how.variant)
    if path.is_file():
        if how.variant is not None:
            raise UserError(f"--variant belongs to a folder of diffusers, and {source} is a file.")
        found = _checkpoint(path, how)
    elif is_diffusers_folder(path):
        found = _folder(path, how)
    else:
        raise UserError(f"{path} is no folder of diffusers: no config.json there says _class_name.")
    if how.weights is not None and found.weights != how.weights:
        raise UserError(f"--weights {how.weights}: {source} {_HOLDS[found.weights]}.")
    origin = {
        "source": source if commit else str(path.absolute()),
        "library": found.library,
        "weights": found.weights,
        "revision": commit,
        "licence": hub.licence(found.root),
        "sha256": {str(file.relative_to(found.root)): _sha256(file) for file in found.files},
    }
    shown = openai.condition_of(path, found.model, how.openai.small_size)
    options: dict[str, Any] = {
        "process": found.process,
        "sampling": found.sampling,
        "label_dropout": found.label_dropout,
    }
    options["data"] = DataConfig(how.data, condition=shown)
    return to_run(out, found.model, found.tensors, origin=origin, **options)


_HOLDS = {
    "ema": "holds averaged weights alone",
    "params": "holds weights that are not averaged",
    None: "does not say whether its weights are averaged; leave --weights out",
}


def recognised(run: Run) -> list[str]:
    """What an imported run was taken for, in lines: network, weights, noise, prediction, sampler."""
    config, origin = run.config, run.origin or {}
    params = models.split(models.abstract(config.model))[1]["params"]
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    size = "x".join(map(str, run.shape))
    classes = f", {len(run.class_names)} classes" if run.class_names else ""
    shown = f", shown {run.condition!r}" if run.condition is not None else ""
    process, sample = config.process, config.sample
    learned = ", and the variance" if getattr(config.model, "learn_variance", False) else ""
    steps = f"{sample.steps or process.sampling_steps(None):,} steps"
    spacing = f", spacing {sample.spacing}" if sample.spacing else ""
    variance = f", variance {sample.sampler.variance}" if isinstance(sample.sampler, Ancestral) else ""
    clip = "nothing clipped" if sample.clip is None else f"x_0 clipped at {sample.clip:g}"
    told = {"ema": "averaged", "params": "those being trained, not averaged", None: "the files do not say which"}
    files = ", ".join(name for name in origin["sha256"] if not name.endswith("config.json"))
    return [
        f"network: {config.model.network} of {origin.get('library')}, {count:,} parameters, {size}{classes}{shown}",
        f"weights: {told[origin['weights']]} ({files})",
        f"noise: {_noise(process, origin)}",
        f"prediction: {getattr(process, 'prediction', process.name)}{learned}",
        f"sampler: {sample.sampler.name}, {steps}{spacing}{variance}, {clip}",
    ]


def _noise(process: Any, origin: dict[str, Any]) -> str:
    if isinstance(process, EDM):
        return f"sigma from {process.sigma_max:g} to {process.sigma_min:g}, sigma_data {process.sigma_data:g}"
    schedule = process.schedule
    noise = f"{schedule.name}, {schedule.num_steps:,} steps"
    if isinstance(schedule, Linear):
        noise += f", betas from {schedule.beta_start:g} to {schedule.beta_end:g}"
    if schedule.zero_terminal_snr:
        noise += ", zero terminal SNR"
    if origin.get("library") == "diffusers" and not any(SCHEDULER in name for name in origin["sha256"]):
        noise += f" (no {SCHEDULER} there: as in Ho et al. 2020)"
    return noise


def _found(source: str, revision: str | None, variant: str | None) -> tuple[Path, str | None]:
    """Where the files are, and the commit that they are of (None: they are no repository's)."""
    path = Path(source)
    if path.exists():
        if revision is not None:
            raise UserError(f"--revision belongs to a repository of the Hub, and {source} is a path.")
        return path, None
    if not NAME.fullmatch(source):
        raise UserError(f"{source} does not exist, and is no id of the Hub (owner/name) either.")
    return hub.snapshot(source, revision, variant)


def _folder(path: Path, how: ImportConfig) -> Imported:
    folder = read_folder(path, weights=how.weights, variant=how.variant)
    sizes = {"image_size": how.image_size, "num_classes": how.num_classes}
    model, tensors = from_diffusers(folder.config, folder.tensors, **sizes)
    fixed = {"variance_type": "learned_range" if model.learn_variance else "fixed_large"}
    options = folder.scheduler if how.scheduler and folder.scheduler is not None else fixed
    process, sampling = from_scheduler(options, model)
    return Imported("diffusers", model, tensors, folder.weights, process, sampling, folder.files, folder.root)


def _checkpoint(path: Path, how: ImportConfig) -> Imported:
    if path.suffix == ".pkl":
        model, ours, process, sampling = edm.from_file(path)
        return Imported("edm", model, ours, "ema", process, sampling, (path,), path.parent)
    tensors, which = read_weights(path, how.weights)
    label_dropout = 0.0
    if is_denoising_diffusion(tensors):
        tensors, of_two = denoising_diffusion.chosen(path, tensors, how.weights)
        library, which = "denoising-diffusion-pytorch", of_two or which
        made: Any = denoising_diffusion.from_file(path, tensors, image_size=how.image_size, **vars(how.ddp))
    elif is_dit(tensors):
        made = dit.from_file(path, tensors, image_size=how.image_size, num_heads=how.dit.num_heads)
        library, label_dropout = "DiT", how.dit.label_dropout
    else:
        library, which = "openai", which or openai.which_of(path)
        made = openai.from_file(path, tensors, image_size=how.image_size, **vars(how.openai))
    model, ours, process, sampling = made
    return Imported(library, model, ours, which, process, sampling, (path,), path.parent, label_dropout)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
