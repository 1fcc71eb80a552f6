"""How weights of other libraries are read, where their files do not say."""

from dataclasses import dataclass, field
from typing import Literal

from ddpm_jax import display
from ddpm_jax.errors import UserError


@dataclass(frozen=True)
class OpenAIConfig:
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
    small_size: int | None = None
    """small_size of a super-resolution model, in pixels: of the image that it is shown, brought to full size."""

    __repr__ = display.of_fields


@dataclass(frozen=True)
class DDPConfig:
    """How a file of denoising-diffusion-pytorch was made."""

    objective: Literal["pred_noise", "pred_x0", "pred_v"] | None = None
    """objective, where the file does not say; of a Unet saved alone, pred_v unless given."""
    dropout: float | None = None
    """dropout, for training on."""

    __repr__ = display.of_fields


@dataclass(frozen=True)
class DiTImportConfig:
    """How a file of facebookresearch/DiT was made.

    Raises:
        UserError: a share of labels outside its range.
    """

    num_heads: int | None = None
    """Attention heads; those of the paper unless given, for its widths of 384, 768, 1024 and 1152."""
    label_dropout: float = 0.1
    """class_dropout_prob, in [0, 1): above 0 the table of classes has one row more, for none, and guidance is possible."""

    __repr__ = display.of_fields

    def __post_init__(self) -> None:
        if not 0 <= self.label_dropout < 1:
            raise UserError(f"dit.label_dropout must lie in [0, 1); got {self.label_dropout:g}.")


@dataclass(frozen=True)
class ImportConfig:
    """What is taken of a folder, a file or a repository of the Hub, and what it does not say."""

    weights: Literal["ema", "params"] | None = None
    """The averaged parameters, or those being trained, where there are both; ema unless given."""
    variant: str | None = None
    """Which of the weights in a folder of diffusers, as fp16; those without one, or the only ones, unless given."""
    revision: str | None = None
    """For a repository of the Hub: branch, tag or commit; main unless given."""
    data: str = ""
    """What the network was trained on, as --data.source: evaluate compares samples with it, finetune trains on it."""
    image_size: int | None = None
    """Height and width of the images, in pixels, where the files do not say."""
    num_classes: int | None = None
    """Number of classes, where the files do not say."""
    scheduler: bool = True
    """Take the process and the sampler from the folder's scheduler; otherwise they are those of Ho et al. 2020."""
    openai: OpenAIConfig = field(default_factory=OpenAIConfig)
    """For a checkpoint of improved-diffusion or guided-diffusion."""
    ddp: DDPConfig = field(default_factory=DDPConfig)
    """For a file of denoising-diffusion-pytorch."""
    dit: DiTImportConfig = field(default_factory=DiTImportConfig)
    """For a file of facebookresearch/DiT."""

    __repr__ = display.of_fields
