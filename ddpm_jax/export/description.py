"""What an exported file says of itself, as JSON: enough to sample with it where none of this package is installed."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, get_args

import numpy as np

import ddpm_jax
from ddpm_jax import models, presets
from ddpm_jax.errors import UserError
from ddpm_jax.processes import EDM, GaussianDiffusion, LinearPath, Process
from ddpm_jax.training.run import Run
from ddpm_jax.weights import Which

OUTPUTS = {
    "eps": "the noise: x_t = alpha x_0 + sigma eps",
    "x0": "the clean data x_0",
    "v": "alpha eps - sigma x_0",
    "flow": "the velocity eps - x_0",
    "blending": "the velocity x_0 - eps",
    "edm": "F in x_0 = c_skip x_t + c_out F (Karras et al. 2022, table 1); c_in and c_noise are within",
}
"""What a network that learns this says."""
INPUTS = {
    "seed": "start of the random draws",
    "numbers": "which samples of the seed; each is the same in every batch",
    "x_t": "noised data",
    "guess": "an earlier estimate of x_0, or zeros",
    "labels": "positions in class_names, or null_label where that is a number",
}
"""What each input is; that of t depends on the process."""


def load(run: Run, which: Which) -> tuple[models.Variables, int]:
    """A run's averaged weights, or those being trained, and their step.

    Raises:
        UserError: neither was asked for, a run with data.condition, or there is no checkpoint that fits.
    """
    if run.condition is not None:
        raise UserError(
            f"an export is of a network that is shown no image; {run.folder} has data.condition = {run.condition!r}."
        )
    if which not in get_args(Which):
        raise UserError(f"weights must be one of {', '.join(get_args(Which))}; got {which!r}.")
    return run.load_variables(ema=which == "ema")


def describe(run: Run, weights: Which, step: int) -> dict[str, Any]:
    """What holds for every file of a run: its network and process as in config.json, its path, its data, and which weights.

    path: of a chain the levels by time, `alphas[i]` and `sigmas[i]` those of the time `times[i]`, the clean end first; of a path in
    continuous time their formulas, or nothing of one that is not known here. scaling: data = x_0 * std + mean, pixels from 0 to
    255.
    """
    config = json.loads(presets.to_json(run.config))
    return {
        "ddpm_jax": ddpm_jax.__version__,
        "network": run.config.model.network,
        "model": config["model"],
        "process": config["process"],
        "sample": config["sample"],
        "path": _path(run.process),
        "class_names": list(run.class_names),
        "null_label": run.null_label if run.class_names else None,
        "scaling": {**dataclasses.asdict(run.scaling), "of": "pixels" if run.holds_images else "points"},
        "weights": {"which": weights, "step": step},
    }


def output(run: Run) -> dict[str, Any]:
    """What the network's output stands for."""
    process = run.process
    prediction = process.prediction if isinstance(process, GaussianDiffusion) else process.name
    learned = bool(getattr(process, "learned_variance", False))
    said = {"prediction": prediction, "is": OUTPUTS[prediction], "learned_variance": learned}
    if learned:
        said["variance"] = (
            "the second half of the channels places log variance between its bounds: -1 posterior's, 1 beta's"
        )
    return said


def inputs(process: Process, given: Mapping[str, Any]) -> dict[str, str]:
    """Every input by name in words: its type, its shape, and what it is; given: arrays, or what has their dtype and shape.

    A first axis is that of the batch.
    """
    if isinstance(process, GaussianDiffusion):
        first, last = process.schedule.timesteps[[0, -1]]
        meanings = INPUTS | {"t": f"timesteps {first}..{last}, {last} the noisiest"}
    else:
        first = process.times(1)[0]
        meanings = INPUTS | {"t": f"times from {first:g}, the noisiest, down to the clean 0"}
    return {
        name: f"{array.dtype} ({', '.join(['batch', *map(str, array.shape[1:])][: len(array.shape)])}): {meanings[name]}"
        for name, array in given.items()
    }


def _path(process: Process) -> dict[str, Any]:
    if not isinstance(process, GaussianDiffusion):
        formulas = {LinearPath: {"alpha": "1 - t", "sigma": "t"}, EDM: {"alpha": "1", "sigma": "t"}}
        return next((path for kind, path in formulas.items() if isinstance(process, kind)), {})
    schedule = process.schedule
    clean = 1 - schedule.first  # a chain that starts at 0 has its clean end one step before its tables
    return {
        "times": list(range(schedule.first - 1, int(schedule.timesteps[-1]) + 1)),
        "alphas": np.append(np.ones(clean), schedule.sqrt_alphas_cumprod).tolist(),
        "sigmas": np.append(np.zeros(clean), schedule.sqrt_one_minus_alphas_cumprod).tolist(),
    }
