"""The options of `unet`."""

from dataclasses import dataclass
from typing import Literal, get_args

from ddpm_jax import display
from ddpm_jax.errors import UserError
from ddpm_jax.model_configs.checks import at_least_1, droppable, even_dim, for_each_level

Resampling = Literal["conv", "residual", "fixed"]
RESAMPLING: tuple[str, ...] = get_args(Resampling)
"""How a level may halve, or be reached on the way up."""


@dataclass(frozen=True)
class UNet:
    """The U-Net of Ho et al. 2020 (the defaults: their CIFAR-10 network) and of its successors.

    Raises:
        UserError: an image size the levels cannot halve, or widths that groups or heads do not divide.
    """

    __repr__ = display.of_fields

    image_size: int = 32
    """Height and width of the images, in pixels."""
    channels: int = 3
    """Channels of the images: 1 or 3."""
    num_classes: int | None = None
    """Number of classes the network is told about; None: unconditional."""
    dim: int = 128
    """Base width, in channels: that of the first convolution and of the sinusoids of t."""
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
    resample: Resampling = "conv"
    """How levels halve and double: a convolution (DDPM), a resampling residual block (ADM), or fixed: 2x2 means and nearest
    neighbours alone (ADM with conv_resample = False).
    """
    learn_variance: bool = False
    """Twice the output channels: the second half says where the variance lies (improved DDPM)."""
    self_conditioning: bool = False
    """Twice the input channels: the second half is the network's last estimate of x_0 (Chen et al. 2023)."""
    widths: tuple[int, ...] | None = None
    """Width of each level, in channels, in place of dim_mults; the first convolution then has the first of them."""
    time_dim: int | None = None
    """Width of the embedding of time and class; None: four times dim."""
    up_attention_resolutions: tuple[int, ...] | None = None
    """attention_resolutions of the way up; None: the same."""
    halving: tuple[Resampling, ...] | None = None
    """How each level but the last halves, the largest first; None: all as resample says."""
    doubling: tuple[Resampling, ...] | None = None
    """How each level but the last is reached on the way up, the largest first; None: all as resample says."""
    middle: Literal["attention", "plain", "none"] = "attention"
    """Between the ways down and up: two blocks with attention between them, two blocks, or nothing."""
    middle_norm_groups: int | None = None
    """Groups of the norm before the middle's attention, 0 for no norm; None: norm_groups."""
    middle_scale: float = 1.0
    """What the middle's blocks and attention divide their sums by."""
    norm_eps: float = 1e-6
    """Epsilon of every GroupNorm."""
    activation: Literal["silu", "gelu", "mish", "relu"] = "silu"
    """Activation within residual blocks."""
    cos_first: bool = False
    """The sinusoids of t begin with the cosines (improved DDPM) instead of the sines."""
    freq_shift: int = 1
    """The sinusoids' last frequency is 1/10000 (1), or one short of it (0, improved DDPM)."""
    time_scale: float = 1.0
    """What t is multiplied by before it is embedded; 1000 / T in improved DDPM."""
    pad_all_sides: bool = False
    """A halving convolution is padded all around (improved DDPM) instead of at the bottom and right."""
    center_input: bool = False
    """Take x_t to 2 x_t - 1 first."""
    class_embedding: Literal["table", "sinusoidal"] = "table"
    """A class is looked up in a table, or embedded as the time is, by layers of its own."""

    @property
    def level_widths(self) -> tuple[int, ...]:
        """Width of each level, in channels."""
        return tuple(self.dim * mult for mult in self.dim_mults) if self.widths is None else self.widths

    @property
    def width_in(self) -> int:
        """Width of the first convolution, in channels."""
        return self.dim if self.widths is None else self.widths[0]

    @property
    def attention_sizes(self) -> tuple[frozenset[int], frozenset[int]]:
        """The image sizes of levels with attention, on the way down and on the way up."""
        sizes = [self.image_size // 2**level for level in range(len(self.level_widths))]
        up = self.attention_resolutions if self.up_attention_resolutions is None else self.up_attention_resolutions
        return frozenset(sizes).intersection(self.attention_resolutions), frozenset(sizes).intersection(up)

    def resampling(self, way: Literal["down", "up"]) -> tuple[str, ...]:
        """How each level but the last halves, or is reached on the way up: one of RESAMPLING, the largest first."""
        given = self.halving if way == "down" else self.doubling
        return (self.resample,) * (len(self.level_widths) - 1) if given is None else given

    def heads(self, width: int) -> int:
        """Attention heads at a width."""
        return self.num_heads if self.head_dim is None else width // self.head_dim

    def __post_init__(self) -> None:
        at_least_1(self, "image_size", "channels", "dim", "num_blocks", "num_heads", "norm_groups")
        for_each_level(self, "dim_mults")
        if self.widths is not None:
            for_each_level(self, "widths")
        for name in ("time_dim", "head_dim"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, or None; got {getattr(self, name)}.")
        for name in ("middle_scale", "norm_eps", "time_scale"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name} must be positive; got {getattr(self, name)}.")
        if self.freq_shift not in (0, 1):
            raise UserError(f"freq_shift must be 0 or 1; got {self.freq_shift}.")
        for name in ("halving", "doubling"):
            kinds = getattr(self, name)
            if kinds is not None and (len(kinds) != len(self.level_widths) - 1 or {*kinds} - {*RESAMPLING}):
                raise UserError(
                    f"{name} must be one of {', '.join(RESAMPLING)} for each of {len(self.level_widths) - 1} levels; got {kinds}."
                )
        if self.num_classes is not None and self.num_classes < 1:
            raise UserError(f"num_classes must be at least 1, or None; got {self.num_classes}.")
        droppable(self)
        halvings = len(self.level_widths) - 1
        if self.image_size % 2**halvings:
            raise UserError(
                f"image_size must be divisible by {2**halvings}, because {halvings + 1} dim_mults halve the image "
                f"{halvings} times; got {self.image_size}."
            )
        even_dim(self)
        for width in {self.width_in, *self.level_widths}:
            if width % self.norm_groups:
                raise UserError(f"norm_groups must divide every width; got {self.norm_groups} for a width of {width}.")
        if self.middle_norm_groups is not None and (
            self.middle_norm_groups < 0 or (self.middle_norm_groups and self.level_widths[-1] % self.middle_norm_groups)
        ):
            raise UserError(
                f"middle_norm_groups must divide the last width, {self.level_widths[-1]}, or be 0; got {self.middle_norm_groups}."
            )
        divisor, option = (self.num_heads, "num_heads") if self.head_dim is None else (self.head_dim, "head_dim")
        sizes = self.attention_sizes[0] | self.attention_sizes[1]
        for level, width in enumerate(self.level_widths):
            attends = self.image_size // 2**level in sizes or (level == halvings and self.middle == "attention")
            if attends and width % divisor:
                raise UserError(
                    f"{option} = {divisor} must divide every width with attention; {width} is not a multiple of it."
                )
