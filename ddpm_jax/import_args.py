"""The arguments of `ddpm import`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class OpenAIArgs:
    """How a checkpoint of improved-diffusion or guided-diffusion was made; the files that OpenAI published are known by name."""

    num_heads: int | None = None
    """Attention heads; or head_dim."""
    head_dim: int | None = None
    """Width of an attention head, num_head_channels there."""
    num_steps: int | None = None
    """diffusion_steps; 1000 unless given."""
    schedule: Literal["linear", "cosine"] | None = None
    """noise_schedule; linear unless given."""
    rescale_timesteps: bool | None = None
    """rescale_timesteps: the network is told t 1000 / diffusion_steps (improved-diffusion's default)."""
    new_attention_order: bool | None = None
    """use_new_attention_order."""
    dropout: float | None = None
    """dropout, for training on."""


@dataclass(frozen=True)
class DDPArgs:
    """How a file of denoising-diffusion-pytorch was made, and which of its networks to take."""

    weights: Literal["ema", "model"] | None = None
    """Of a Trainer's file: the averaged weights, or those being trained; ema unless given."""
    objective: Literal["pred_noise", "pred_x0", "pred_v"] | None = None
    """objective, where the file does not say; of a Unet saved alone, pred_v unless given."""
    dropout: float | None = None
    """dropout, for training on."""


@dataclass(frozen=True, kw_only=True)
class ImportArgs:
    """Make a run folder of other libraries' weights: a folder of a UNet2DModel or of its pipeline (diffusers), from a path or from
    the Hugging Face Hub; or a checkpoint of improved-diffusion, guided-diffusion or denoising-diffusion-pytorch."""

    out: Path
    """The run folder."""
    revision: str | None = None
    """Of a repository of the Hub: branch, tag or commit; main unless given."""
    data: str = ""
    """What the network was trained on, as --data.source: evaluate compares samples with it, finetune trains on it."""
    image_size: int | None = None
    """Height and width of the images, in pixels, where the files do not say."""
    num_classes: int | None = None
    """Number of classes, where the files do not say."""
    scheduler: bool = True
    """Take the process and the sampler from the folder's scheduler; otherwise they are those of Ho et al. 2020."""
    openai: OpenAIArgs = field(default_factory=OpenAIArgs)
    ddp: DDPArgs = field(default_factory=DDPArgs)
