"""Files of denoising-diffusion-pytorch: which network of an EMA is taken, and the process that its tables tell of."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ddpm_jax import schedules
from ddpm_jax.errors import UserError
from ddpm_jax.models import RMSUNetConfig
from ddpm_jax.presets import SampleConfig
from ddpm_jax.processes import GaussianDiffusion
from ddpm_jax.samplers import Ancestral
from ddpm_jax.weights import Which, from_denoising_diffusion

OBJECTIVES: dict[str, Literal["eps", "x0", "v"]] = {"pred_noise": "eps", "pred_x0": "x0", "pred_v": "v"}
SCHEDULES = {"sigmoid": "sigmoid_cumprod", "cosine": "cosine", "linear": "linear"}
"""Names there and here."""

AGREEMENT = 1e-3
"""Relative, of betas: the tables are kept in float32, and their sigmoid is computed in it at both ends."""


def chosen(
    path: Path, tensors: Mapping[str, np.ndarray], which: Which | None
) -> tuple[dict[str, np.ndarray], Which | None]:
    """One of the two networks that the state dict of an EMA holds, and which; any other as it is, and None.

    Raises:
        UserError: the network being trained is asked of an EMA that was saved without it.
    """
    averaged, trained = (
        {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        for prefix in ("ema_model.", "online_model.")
    )
    if not averaged:
        return dict(tensors), None
    if which != "params":
        return averaged, "ema"
    if not trained:
        raise UserError(f"{path} holds averaged weights alone; those being trained were asked for.")
    return trained, "params"


def from_file(
    path: Path,
    tensors: Mapping[str, np.ndarray],
    *,
    image_size: int | None = None,
    dropout: float | None = None,
    objective: str | None = None,
) -> tuple[RMSUNetConfig, dict[str, np.ndarray], GaussianDiffusion, SampleConfig]:
    """A network, the twin's state dict, and how it was trained and is sampled, of what `chosen` gave.

    image_size: in pixels, never in a file. dropout: the one it was trained with; 0 unless given. objective: one of OBJECTIVES,
    where the file has no weights of the loss to tell it by.

    Raises:
        UserError: image_size or the objective is missing, or the network, schedule or weights of the loss have no counterpart here.
    """
    if image_size is None:
        raise UserError(f"{path.name} does not say how large the images are: pass --image-size.")
    inner = {key.removeprefix("model."): value for key, value in tensors.items() if key.startswith("model.")}
    model, ours = from_denoising_diffusion(inner or tensors, image_size=image_size, dropout=dropout or 0.0)
    if "betas" in tensors:
        process = _process(path, tensors, objective)
    else:  # a Unet that was saved alone: everything as it is there unless told otherwise
        usual = "pred_noise" if model.learn_variance else "pred_v"  # LearnedGaussianDiffusion knows no pred_v
        process = _told(GaussianDiffusion(schedules.SigmoidCumprod(1000)), objective or usual)
    if model.learn_variance:
        process = replace(process, loss="hybrid", learned_variance=True, weighting="none")
    return model, ours, process, SampleConfig(Ancestral("learned" if model.learn_variance else "posterior"))


def spread_betas(num_steps: int) -> dict[str, float]:
    """The ends of linear betas that are those of 1,000 steps, spread over the number of steps: OpenAI's too."""
    return {"beta_start": 0.1 / num_steps, "beta_end": 20 / num_steps}


def _told(process: GaussianDiffusion, objective: str) -> GaussianDiffusion:
    # their weights: those of x_0's error by SNR, except for the noise's, which are 1
    options: dict[str, Any] = {"weighting": "none" if objective == "pred_noise" else "snr"}
    return replace(process, prediction=OBJECTIVES[objective], **options)


def _process(path: Path, tables: Mapping[str, np.ndarray], objective: str | None) -> GaussianDiffusion:
    betas = tables["betas"].astype(np.float64)
    num_steps = len(betas)
    ends = spread_betas(num_steps)
    for name in SCHEDULES.values():
        options: dict[str, Any] = ends if name == "linear" else {}
        if name == "linear" and num_steps < 20:
            continue  # the last beta would exceed 1
        schedule = schedules.create(name, num_steps, **options)
        if np.allclose(schedule.betas, betas, rtol=AGREEMENT, atol=0):
            break
    else:
        raise UserError(
            f"{path.name}: its {num_steps} betas, from {betas[0]:.4g} to {betas[-1]:.4g}, are none of the schedules "
            f"{', '.join(SCHEDULES)} with their default options, and others have no counterpart here."
        )
    process = GaussianDiffusion(schedule)
    told = "loss_weight" in tables
    if not told and objective is None:
        raise UserError(
            f"{path.name} does not say what the network predicts: pass --ddp.objective, one of {', '.join(OBJECTIVES)}."
        )
    if not told:
        return _told(process, objective or "pred_v")
    read, process = _weighted(path, tables["loss_weight"].astype(np.float64), schedule.snr, process)
    if objective not in (None, read):
        raise UserError(f"--ddp.objective {objective}: the weights of the loss in {path.name} are those of {read}.")
    return process


def _weighted(
    path: Path, weights: np.ndarray, snr: np.ndarray, process: GaussianDiffusion
) -> tuple[str, GaussianDiffusion]:
    """The objective, and the process with it, by the weights of the loss at each t.

    Those of the error of x_0 are min(SNR, gamma), or the SNR; those of another output follow from them.
    """
    per_output = {"pred_noise": snr, "pred_x0": np.ones_like(snr), "pred_v": snr + 1}
    for objective, factor in per_output.items():
        of_x_0 = weights * factor
        gamma = float(of_x_0.max())
        if np.allclose(of_x_0, np.minimum(snr, gamma), rtol=10 * AGREEMENT, atol=0):
            clipped = gamma < snr.max() * (1 - 10 * AGREEMENT)
            weighting = "min_snr" if clipped else "none" if objective == "pred_noise" else "snr"
            options: dict[str, Any] = {"prediction": OBJECTIVES[objective], "weighting": weighting}
            if clipped:
                options["min_snr_gamma"] = round(gamma, 3)
            return objective, replace(process, **options)
    raise UserError(f"{path.name}: its loss_weight is that of no objective of {', '.join(OBJECTIVES)}.")
