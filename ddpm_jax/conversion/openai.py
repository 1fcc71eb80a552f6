"""Files of improved-diffusion and guided-diffusion: what they themselves do not say, and the process that follows from it.

What OpenAI published is known by name; of other files it is told.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ddpm_jax import schedules
from ddpm_jax.conversion.denoising_diffusion import spread_betas
from ddpm_jax.errors import UserError
from ddpm_jax.models import UNetConfig
from ddpm_jax.presets import SampleConfig
from ddpm_jax.processes import GaussianDiffusion
from ddpm_jax.samplers import Ancestral
from ddpm_jax.weights import Which, from_openai


@dataclass(frozen=True)
class Published:
    """How a checkpoint of either library was made, in their terms."""

    image_size: int
    """Height and width of the images, in pixels."""
    num_heads: int | None = None
    """Attention heads, num_heads there."""
    head_dim: int | None = None
    """Width of one, num_head_channels there."""
    num_steps: int = 1000
    """diffusion_steps."""
    schedule: Literal["linear", "cosine"] = "linear"
    """noise_schedule."""
    dropout: float = 0.0
    """dropout."""
    rescale_timesteps: bool = False
    """rescale_timesteps: the network is told t 1000 / diffusion_steps."""
    new_attention_order: bool = False
    """use_new_attention_order."""


# fmt: off
FILES: dict[str, Published] = {
    "cifar10_uncond_50M_500K":          Published(32, 4, None, 4000, "cosine", 0.3, rescale_timesteps=True),
    "cifar10_uncond_vlb_50M_500K":      Published(32, 4, None, 4000, "cosine", 0.3, rescale_timesteps=True),
    "imagenet64_uncond_100M_1500K":     Published(64, 4, None, 4000, "cosine", rescale_timesteps=True),
    "imagenet64_uncond_vlb_100M_1500K": Published(64, 4, None, 4000, "cosine", rescale_timesteps=True),
    "imagenet64_cond_270M_250K":        Published(64, 4, None, 4000, "cosine"),
    "lsun_uncond_100M_1200K_bs128":     Published(256, 1),
    "lsun_uncond_100M_2400K_bs64":      Published(256, 1),
    "64x64_diffusion":                  Published(64, None, 64, 1000, "cosine", 0.1, new_attention_order=True),
    "128x128_diffusion":                Published(128, 4),
    "256x256_diffusion":                Published(256, None, 64),
    "256x256_diffusion_uncond":         Published(256, None, 64),
    "512x512_diffusion":                Published(512, None, 64),
    "lsun_bedroom":                     Published(256, None, 64, dropout=0.1),
    "lsun_cat":                         Published(256, None, 64, dropout=0.1),
    "lsun_horse":                       Published(256, None, 64, dropout=0.1),
    "lsun_horse_nodropout":             Published(256, None, 64),
}
"""Name of a file, without its suffix -> how it was made, as the READMEs of both libraries say."""
# fmt: on


def which_of(path: Path) -> Which | None:
    """What the name of a file says of its weights: training writes ema_RATE_STEP and modelSTEP; None: it is neither."""
    found = re.fullmatch(r"(ema)_[\d.]+_\d+|model\d+", path.stem)
    return None if found is None else "ema" if found[1] else "params"


def from_file(
    path: Path, tensors: Mapping[str, np.ndarray], *, image_size: int | None = None, **told: Any
) -> tuple[UNetConfig, dict[str, np.ndarray], GaussianDiffusion, SampleConfig]:
    """A network, the twin's state dict, and how it was trained and is sampled, of what `read_tensors` found.

    image_size, told: fields of `Published`, None for those that are left out; of a file of `FILES` they replace what is known.

    Raises:
        UserError: the file is unknown and image_size missing, or the network has no counterpart here.
    """
    options = {name: value for name, value in {"image_size": image_size, **told}.items() if value is not None}
    known = FILES.get(path.stem)
    if known is None and "image_size" not in options:
        raise UserError(
            f"{path.name} is none of the files that OpenAI published ({', '.join(FILES)}): pass --image-size, and whatever of "
            "--openai.num-heads, --openai.head-dim, --openai.num-steps, --openai.schedule, --openai.rescale-timesteps and "
            "--openai.new-attention-order it was trained with."
        )
    if known is not None and {"num_heads", "head_dim"} & options.keys():
        known = replace(known, num_heads=None, head_dim=None)
    made = Published(**options) if known is None else replace(known, **options)
    model, ours = from_openai(
        tensors,
        image_size=made.image_size,
        num_heads=made.num_heads,
        head_dim=made.head_dim,
        new_attention_order=made.new_attention_order,
        time_scale=1000 / made.num_steps if made.rescale_timesteps else 1.0,
        dropout=made.dropout,
    )
    betas: dict[str, Any] = spread_betas(made.num_steps) if made.schedule == "linear" else {}
    schedule = schedules.create(made.schedule, made.num_steps, **betas)
    process = GaussianDiffusion(schedule, loss="hybrid" if model.learn_variance else "mse")
    return model, ours, process, SampleConfig(Ancestral("learned" if model.learn_variance else "beta"))
