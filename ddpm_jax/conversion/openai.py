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
    small_size: int | None = None
    """small_size of a super-resolution model, whose image_size is large_size there."""


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
    "64_256_upsampler":                 Published(256, 4, small_size=64),
    "128_512_upsampler":                Published(512, None, 64, small_size=128),
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


def condition_of(path: Path, model: Any, small_size: int | None) -> str | None:
    """What a super-resolution model is shown, as `DataConfig.condition`; None: it is none.

    small_size: in pixels, where it is told; None: that of the file of `FILES`.

    Raises:
        UserError: it is missing for a model that is shown a second image, given for another, or does not divide the image's.
    """
    known = FILES.get(path.stem)
    small = small_size if small_size is not None or known is None else known.small_size
    if not getattr(model, "condition_channels", 0):
        if small_size is not None:
            raise UserError(
                f"openai.small_size is for a super-resolution model; got {small_size} for one that is shown none."
            )
        return None
    if small is None:
        raise UserError(
            f"{path.name} is a super-resolution model: pass --openai.small-size, the size in pixels of the image it is shown."
        )
    if small < 1 or small >= model.image_size or model.image_size % small:
        raise UserError(f"openai.small_size must divide the image_size, {model.image_size}, and be less; got {small}.")
    return f"downsample:{model.image_size // small}"


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
