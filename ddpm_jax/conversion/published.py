"""What OpenAI published of improved-diffusion and guided-diffusion: by file, what the files themselves do not say."""

from dataclasses import dataclass
from typing import Literal


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
