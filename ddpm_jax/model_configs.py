"""The options of every network: one frozen dataclass each, free of jax so that the command line can list them quickly."""

from dataclasses import dataclass
from typing import Literal

from ddpm_jax.errors import UserError


@dataclass(frozen=True)
class UNet:
    """The U-Net of Ho et al. 2020 (the defaults: their CIFAR-10 network) and of its successors.

    Raises:
        UserError: an image size the levels cannot halve, or widths that groups or heads do not divide.
    """

    image_size: int = 32
    """Height and width of the images, in pixels."""
    channels: int = 3
    """Channels of the images: 1 or 3."""
    num_classes: int | None = None
    """Number of classes the network is told about; None: unconditional."""
    dim: int = 128
    """Base width, in channels."""
    dim_mults: tuple[int, ...] = (1, 2, 2, 2)
    """Width of each level, as a multiple of dim; every level but the last halves the image."""
    num_blocks: int = 2
    """Residual blocks in each level on the way down (one more on the way up)."""
    attention_resolutions: tuple[int, ...] = (16,)
    """Image sizes, in pixels, at which every block is followed by self-attention."""
    num_heads: int = 1
    """Attention heads, unless head_dim is given."""
    head_dim: int | None = None
    """Width of one attention head, in channels."""
    dropout: float = 0.0
    """Share of activations dropped in each residual block while training, in [0, 1)."""
    norm_groups: int = 32
    """Groups of every GroupNorm."""
    time_conditioning: Literal["add", "scale_shift"] = "add"
    """How time enters a block: added (DDPM), or as scale and shift of its second norm (ADM)."""
    resample: Literal["conv", "residual"] = "conv"
    """How levels halve and double: a convolution (DDPM), or a resampling residual block (ADM)."""
    learn_variance: bool = False
    """Twice the output channels: the second half says where the variance lies (improved DDPM)."""

    def __post_init__(self) -> None:
        positive = ("image_size", "channels", "dim", "num_blocks", "num_heads", "norm_groups")
        for name in positive:
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1; got {getattr(self, name)}.")
        if not self.dim_mults or min(self.dim_mults) < 1:
            raise UserError(f"dim_mults must be positive integers, one for each level; got {self.dim_mults}.")
        if self.num_classes is not None and self.num_classes < 1:
            raise UserError(f"num_classes must be at least 1, or None; got {self.num_classes}.")
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout must lie in [0, 1); got {self.dropout:g}.")
        halvings = len(self.dim_mults) - 1
        if self.image_size % 2**halvings:
            raise UserError(
                f"image_size must be divisible by {2**halvings}, because {len(self.dim_mults)} dim_mults halve the image "
                f"{halvings} times; got {self.image_size}."
            )
        if self.dim % 2 or self.dim < 4:
            raise UserError(f"dim must be even and at least 4; got {self.dim}.")
        for width in {self.dim, *(self.dim * mult for mult in self.dim_mults)}:
            if width % self.norm_groups:
                raise UserError(f"norm_groups must divide every width; got {self.norm_groups} for a width of {width}.")
        for width in {self.dim * mult for mult in self.dim_mults}:
            heads = self.num_heads if self.head_dim is None else max(width // self.head_dim, 1)
            if width % heads or (self.head_dim and width % self.head_dim):
                option = f"num_heads = {self.num_heads}" if self.head_dim is None else f"head_dim = {self.head_dim}"
                raise UserError(f"{option} must divide every width; {width} is not a multiple of it.")
