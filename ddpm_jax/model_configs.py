"""The options of every network: one frozen dataclass each, free of jax so that the command line can list them quickly."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

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
    resample: Literal["conv", "residual"] = "conv"
    """How levels halve and double: a convolution (DDPM), or a resampling residual block (ADM)."""
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
    halving: tuple[Literal["conv", "residual"], ...] | None = None
    """How each level but the last halves, the largest first; None: all as resample says."""
    doubling: tuple[Literal["conv", "residual"], ...] | None = None
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
        """How each level but the last halves, or is reached on the way up: `conv` or `residual`, the largest first."""
        given = self.halving if way == "down" else self.doubling
        return (self.resample,) * (len(self.level_widths) - 1) if given is None else given

    def heads(self, width: int) -> int:
        """Attention heads at a width."""
        return self.num_heads if self.head_dim is None else width // self.head_dim

    def __post_init__(self) -> None:
        _at_least_1(self, "image_size", "channels", "dim", "num_blocks", "num_heads", "norm_groups")
        for name, numbers in (("dim_mults", self.dim_mults), ("widths", (1,) if self.widths is None else self.widths)):
            if not numbers or min(numbers) < 1:
                raise UserError(f"{name} must be positive integers, one for each level; got {numbers}.")
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
            if kinds is not None and (len(kinds) != len(self.level_widths) - 1 or {*kinds} - {"conv", "residual"}):
                raise UserError(
                    f"{name} must be `conv` or `residual` for each of {len(self.level_widths) - 1} levels; got {kinds}."
                )
        if self.num_classes is not None and self.num_classes < 1:
            raise UserError(f"num_classes must be at least 1, or None; got {self.num_classes}.")
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout must lie in [0, 1); got {self.dropout:g}.")
        halvings = len(self.level_widths) - 1
        if self.image_size % 2**halvings:
            raise UserError(
                f"image_size must be divisible by {2**halvings}, because {halvings + 1} dim_mults halve the image "
                f"{halvings} times; got {self.image_size}."
            )
        if self.dim % 2 or self.dim < 4:
            raise UserError(f"dim must be even and at least 4; got {self.dim}.")
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


@dataclass(frozen=True)
class ConvNeXtUNet:
    """System 1's network: ConvNeXt blocks conditioned on time and class, attention at every level.

    Raises:
        UserError: an image size that the strides do not divide, or a number below 1.
    """

    channels: int = 1
    """Channels of the images."""
    image_size: int = 28
    """Height and width of the images, in pixels; four times it is the width of the embeddings."""
    num_classes: int = 10
    """Number of classes the network is told about."""
    num_steps: int = 500
    """T of the schedule: t lies in 0..T."""
    expansion: int = 3
    """Width within a block, as a multiple of the block's output width."""

    widths: ClassVar[tuple[int, ...]] = (16, 32, 64, 128)
    """Width of each level, in channels."""
    strides: ClassVar[tuple[int, ...]] = (2, 2, 3)
    """What each level but the last divides the image by."""
    out_width: ClassVar[int] = 8
    """Width of the last stage, in channels."""

    def __post_init__(self) -> None:
        _at_least_1(self, "channels", "image_size", "num_classes", "num_steps", "expansion")
        size = self.image_size
        for stride in self.strides:
            # a 3x3 convolution of stride 3, padded by 1, and back again only fits sizes of this remainder
            if (stride == 3 and size % 3 != 1) or (stride == 2 and size % 2):
                raise UserError(
                    f"image_size must go through strides {self.strides} and back unchanged, as 28 and 224 do; "
                    f"got {self.image_size}."
                )
            size = -(-size // stride)


@dataclass(frozen=True)
class ConvNeXtUNet224(ConvNeXtUNet):
    """System 1's large variant, for ImageNet."""

    channels: int = 3
    """Channels of the images."""
    image_size: int = 224
    """Height and width of the images, in pixels; four times it is the width of the embeddings."""
    num_classes: int = 1000
    """Number of classes the network is told about."""

    widths: ClassVar[tuple[int, ...]] = (16, 32, 64, 128, 256, 512)
    """Width of each level, in channels."""
    strides: ClassVar[tuple[int, ...]] = (2, 2, 2, 2, 2)
    """What each level but the last divides the image by."""
    out_width: ClassVar[int] = 16
    """Width of the last stage, in channels."""


@dataclass(frozen=True)
class TinyUNet:
    """System 2's small network.

    Raises:
        UserError: an image size that cannot be halved three times, or a number below 1.
    """

    channels: int = 1
    """Channels of the images."""
    image_size: int = 32
    """Height and width of the images, in pixels."""
    dim: int = 10
    """Width of the first level, in channels; the next two have twice and four times it."""
    num_steps: int = 1000
    """T of the schedule: t lies in 0..T-1."""
    time_dim: int = 100
    """Width of the timestep table."""
    timestep_table: Literal["original", "sinusoidal"] = "original"
    """The table that the published weights were trained with, or the textbook's."""

    def __post_init__(self) -> None:
        _at_least_1(self, "channels", "image_size", "dim", "num_steps", "time_dim")
        _divides(self, "image_size", 8)
        _check_table(self)


@dataclass(frozen=True)
class DoubleConvUNet:
    """System 2's larger network.

    Raises:
        UserError: an image size below 16, or a number below 1.
    """

    channels: int = 3
    """Channels of the images."""
    image_size: int = 32
    """Height and width of the images, in pixels: at least 16; the network takes any size."""
    dim: int = 64
    """Width of the first level, in channels; each of the next four has twice the one before."""
    num_steps: int = 1000
    """T of the schedule: t lies in 0..T-1."""
    time_dim: int = 100
    """Width of the timestep table."""
    timestep_table: Literal["original", "sinusoidal"] = "original"
    """The table that the published weights were trained with, or the textbook's."""

    def __post_init__(self) -> None:
        _at_least_1(self, "channels", "dim", "num_steps", "time_dim")
        _check_table(self)
        if self.image_size < 16:
            raise UserError(f"image_size must be at least 16, to be halved four times; got {self.image_size}.")


@dataclass(frozen=True)
class AnnotatedUNet:
    """System 3's network.

    Raises:
        UserError: widths or an image size that do not fit the blocks, or a number below 1.
    """

    channels: int = 1
    """Channels of the images."""
    image_size: int = 28
    """Height and width of the images, in pixels."""
    dim: int = 28
    """Base width, in channels."""
    dim_mults: tuple[int, ...] = (1, 2, 4)
    """Width of each level, as a multiple of dim; every level but the last halves the image."""
    gelu: Literal["tanh", "exact"] = "tanh"
    """GELU's tanh approximation, as in the original's framework, or the exact one."""
    conv_bias: bool = False
    """Give the convolutions of blocks and resampling a bias, as the original's PyTorch ancestor does."""
    block: Literal["convnext", "resnet"] = "convnext"
    """What each level is made of."""
    expansion: int = 2
    """Width within a ConvNeXt block, as a multiple of the block's output width."""

    def __post_init__(self) -> None:
        _at_least_1(self, "channels", "image_size", "expansion")
        if self.dim < 4 or self.dim % 2:
            raise UserError(f"dim must be even and at least 4; got {self.dim}.")
        if not self.dim_mults or min(self.dim_mults) < 1:
            raise UserError(f"dim_mults must be positive integers, one for each level; got {self.dim_mults}.")
        _divides(self, "image_size", 2 ** (len(self.dim_mults) - 1))
        if self.block == "resnet" and self.dim % 8:
            raise UserError(f"dim must be divisible by 8, the groups of a resnet block's norms; got {self.dim}.")


@dataclass(frozen=True)
class RMSUNet:
    """The `Unet` of denoising-diffusion-pytorch 2.x: RMS norms, attention with a learned memory, two skips a level.

    Raises:
        UserError: widths or an image size that do not fit, or a number out of range.
    """

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
        _at_least_1(self, "channels", "image_size", "num_heads", "head_dim")
        if self.dim < 4 or self.dim % 2:
            raise UserError(f"dim must be even and at least 4; got {self.dim}.")
        if self.width_in < 1:
            raise UserError(f"init_dim must be at least 1, or None; got {self.init_dim}.")
        if not self.dim_mults or min(self.dim_mults) < 1:
            raise UserError(f"dim_mults must be positive integers, one for each level; got {self.dim_mults}.")
        if len(self.full) != len(self.dim_mults):
            raise UserError(
                f"full_attention must say True or False for each of {len(self.dim_mults)} levels; got {self.full_attention}."
            )
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout must lie in [0, 1); got {self.dropout:g}.")
        _divides(self, "image_size", 2 ** (len(self.dim_mults) - 1))


@dataclass(frozen=True)
class MLP:
    """System 4's network for points.

    Raises:
        UserError: a number out of range.
    """

    data_dim: int = 2
    """Coordinates of a point."""
    dim: int = 256
    """Width of the three hidden layers."""
    num_steps: int = 1000
    """T of the schedule: t lies in 0..T-1."""

    def __post_init__(self) -> None:
        _at_least_1(self, "data_dim", "dim")
        if self.num_steps < 2:
            raise UserError(f"num_steps must be at least 2; got {self.num_steps}.")


@dataclass(frozen=True)
class ConvNet:
    """System 5's smallest network.

    Raises:
        UserError: a number below 1.
    """

    channels: int = 3
    """Channels of the images."""
    image_size: int = 32
    """Height and width of the images, in pixels; the network takes any size."""
    dim: int = 64
    """Width of the hidden layer, in channels."""

    def __post_init__(self) -> None:
        _at_least_1(self, "channels", "image_size", "dim")


@dataclass(frozen=True)
class StridedUNet:
    """System 5's U-Net.

    Raises:
        UserError: an image size that cannot be halved four times, or a number below 1.
    """

    channels: int = 3
    """Channels of the images."""
    image_size: int = 32
    """Height and width of the images, in pixels."""
    num_classes: int | None = None
    """Number of classes the network is told about; None: unconditional."""

    def __post_init__(self) -> None:
        _at_least_1(self, "channels", "image_size", *(["num_classes"] if self.num_classes is not None else []))
        _divides(self, "image_size", 16)


@dataclass(frozen=True)
class StridedUNetConditional(StridedUNet):
    """System 5's U-Net with classes."""

    num_classes: int | None = 10
    """Number of classes the network is told about."""


def _check_table(config: TinyUNet | DoubleConvUNet) -> None:
    if config.timestep_table == "original" and config.num_steps % 2:
        raise UserError(f"num_steps must be even with the original timestep table; got {config.num_steps}.")


def _at_least_1(config: object, *names: str) -> None:
    for name in names:
        if getattr(config, name) < 1:
            raise UserError(f"{name} must be at least 1; got {getattr(config, name)}.")


def _divides(config: object, name: str, divisor: int) -> None:
    if getattr(config, name) % divisor:
        raise UserError(f"{name} must be divisible by {divisor}; got {getattr(config, name)}.")


NETWORKS: dict[str, type] = {
    "annotated_unet": AnnotatedUNet,
    "conv_net": ConvNet,
    "convnext_unet": ConvNeXtUNet,
    "convnext_unet_224": ConvNeXtUNet224,
    "double_conv_unet": DoubleConvUNet,
    "mlp": MLP,
    "rms_unet": RMSUNet,
    "strided_unet": StridedUNet,
    "strided_unet_conditional": StridedUNetConditional,
    "tiny_unet": TinyUNet,
    "unet": UNet,
}
"""name -> the options of that network; without any, exactly what its author built."""

ModelConfig = (
    UNet
    | AnnotatedUNet
    | ConvNet
    | ConvNeXtUNet
    | ConvNeXtUNet224
    | DoubleConvUNet
    | MLP
    | RMSUNet
    | StridedUNet
    | StridedUNetConditional
    | TinyUNet
)
"""The options of any network."""


def create(name: str, options: Mapping[str, Any]) -> Any:
    """The config of a network by name.

    Raises:
        UserError: an unknown name or option (lists what exists), or options that do not fit together.
    """
    kind = kind_of(name)
    known = [option.name for option in fields(kind)]
    for option in options:
        if option not in known:
            raise UserError(f"{name} has no option {option!r}; it has {', '.join(known)}.")
    return kind(**options)


def kind_of(name: str) -> type:
    """The class of the options of a network.

    Raises:
        UserError: an unknown name (lists what exists).
    """
    if name not in NETWORKS:
        raise UserError(f"the network must be one of {', '.join(NETWORKS)}; got {name!r}.")
    return NETWORKS[name]


def name_of(config: Any) -> str:
    """The name of the network that a config describes."""
    return next(name for name, kind in NETWORKS.items() if kind is type(config))


def shape(config: Any) -> tuple[int, ...]:
    """The shape of one example that the network takes: (H, W, C) of an image, (data_dim,) of a point."""
    if isinstance(config, MLP):
        return (config.data_dim,)
    return (config.image_size, config.image_size, config.channels)
