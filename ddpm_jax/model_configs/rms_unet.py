"""The options of `rms_unet`."""

from dataclasses import dataclass

from ddpm_jax import display
from ddpm_jax.errors import UserError
from ddpm_jax.model_configs.checks import at_least_1, divides, droppable, even_dim, for_each_level


@dataclass(frozen=True)
class RMSUNet:
    """The `Unet` of denoising-diffusion-pytorch 2.x: RMS norms, attention with a learned memory, two skips a level.

    Raises:
        UserError: widths or an image size that do not fit, or a number out of range.
    """

    __repr__ = display.of_fields

    channels: int = 3
    """Channels of the images."""
    image_size: int = 128
    """Height and width of the images, in pixels."""
    dim: int = 64
    """Base width, in channels: that of the sinusoids of t."""
    dim_mults: tuple[int, ...] = (1, 2, 4, 8)
    """Width that each level leads to, as a multiple of dim; every level but the last halves the image."""
    init_dim: int | None = None
    """Width of the first convolution, in channels; None: dim."""
    num_heads: int = 4
    """Attention heads."""
    head_dim: int = 32
    """Width of one attention head, in channels."""
    full_attention: tuple[bool, ...] | None = None
    """For each level, whether its attention is full or of linear cost; None: the last alone. That of the middle is full."""
    dropout: float = 0.0
    """Share of activations dropped in each residual block while training, in [0, 1)."""
    learn_variance: bool = False
    """Twice the output channels: the second half says where the variance lies (improved DDPM)."""
    self_conditioning: bool = False
    """Twice the input channels: the second half is the network's last estimate of x_0 (Chen et al. 2023)."""

    @property
    def width_in(self) -> int:
        """Width of the first convolution, in channels."""
        return self.dim if self.init_dim is None else self.init_dim

    @property
    def full(self) -> tuple[bool, ...]:
        """For each level, whether its attention is full."""
        if self.full_attention is None:
            return (False,) * (len(self.dim_mults) - 1) + (True,)
        return self.full_attention

    def __post_init__(self) -> None:
        at_least_1(self, "channels", "image_size", "num_heads", "head_dim")
        even_dim(self)
        if self.width_in < 1:
            raise UserError(f"init_dim must be at least 1, or None; got {self.init_dim}.")
        for_each_level(self, "dim_mults")
        if len(self.full) != len(self.dim_mults):
            raise UserError(
                f"full_attention must say True or False for each of {len(self.dim_mults)} levels; got {self.full_attention}."
            )
        droppable(self)
        divides(self, "image_size", 2 ** (len(self.dim_mults) - 1))
