"""Files of facebookresearch/DiT: what they do not say of the network, and the process that its authors trained it on."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ddpm_jax import schedules
from ddpm_jax.errors import UserError
from ddpm_jax.models import DiTConfig
from ddpm_jax.presets import SampleConfig
from ddpm_jax.processes import GaussianDiffusion
from ddpm_jax.samplers import Ancestral
from ddpm_jax.weights import from_dit

COLOURS = (1, 3)
"""Channels of images; others are those of an autoencoder's latents."""


def from_file(
    path: Path, tensors: Mapping[str, np.ndarray], *, image_size: int | None = None, num_heads: int | None = None
) -> tuple[DiTConfig, dict[str, np.ndarray], GaussianDiffusion, SampleConfig]:
    """A network, the twin's state dict, and how it was trained and is sampled, of what `read_tensors` found.

    image_size: in pixels, which the file says. num_heads: None for those of the paper at its widths. The authors' code knows one
    diffusion, of 1,000 steps with linear betas, and draws 250 of them with all of the network's variance.

    Raises:
        UserError: image_size is another one than the file's, num_heads is missing, or the network is one of latents.
    """
    model, ours = from_dit(tensors, num_heads=num_heads)
    if model.channels not in COLOURS:
        raise UserError(
            f"{path.name} takes {model.channels} channels: it works on the latents of an autoencoder, which is not here; of DiT, "
            "networks of pixels are imported (weights.from_dit reads any)."
        )
    if image_size not in (None, model.image_size):
        raise UserError(
            f"image_size must be {model.image_size}, as the positions in {path.name} say; got {image_size}."
        )
    loss, variance = ("hybrid", "learned") if model.learn_variance else ("mse", "beta")
    process = GaussianDiffusion(schedules.linear(1000), loss=loss)  # type: ignore[arg-type]
    return model, ours, process, SampleConfig(Ancestral(variance), 250, spacing="linspace")  # type: ignore[arg-type]
