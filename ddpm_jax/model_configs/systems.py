"""The options of the networks of the five systems, in their order."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from ddpm_jax import display
from ddpm_jax.errors import UserError
from ddpm_jax.model_configs.checks import at_least_1, divides, even_dim, for_each_level


@dataclass(frozen=True)
class ConvNeXtUNet:
    """System 1's network: ConvNeXt blocks conditioned on time and class, attention at every level.

    Raises:
        UserError: an image size that the strides do not divide, or a number below 1.
    """

    __repr__ = display.of_fields

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
        at_least_1(self, "channels", "image_size", "num_classes", "num_steps", "expansion")
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

    __repr__ = display.of_fields

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

    __repr__ = display.of_fields

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
        at_least_1(self, "channels", "image_size", "dim", "num_steps", "time_dim")
        divides(self, "image_size", 8)
        _check_table(self)


@dataclass(frozen=True)
class DoubleConvUNet:
    """System 2's larger network.

    Raises:
        UserError: an image size below 16, or a number below 1.
    """

    __repr__ = display.of_fields

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
        at_least_1(self, "channels", "dim", "num_steps", "time_dim")
        _check_table(self)
        if self.image_size < 16:
            raise UserError(f"image_size must be at least 16, to be halved four times; got {self.image_size}.")


def _check_table(config: TinyUNet | DoubleConvUNet) -> None:
    if config.timestep_table == "original" and config.num_steps % 2:
        raise UserError(f"num_steps must be even with the original timestep table; got {config.num_steps}.")


@dataclass(frozen=True)
class AnnotatedUNet:
    """System 3's network.

    Raises:
        UserError: widths or an image size that do not fit the blocks, or a number below 1.
    """

    __repr__ = display.of_fields

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
        at_least_1(self, "channels", "image_size", "expansion")
        even_dim(self)
        for_each_level(self, "dim_mults")
        divides(self, "image_size", 2 ** (len(self.dim_mults) - 1))
        if self.block == "resnet" and self.dim % 8:
            raise UserError(f"dim must be divisible by 8, the groups of a resnet block's norms; got {self.dim}.")


@dataclass(frozen=True)
class MLP:
    """System 4's network for points.

    Raises:
        UserError: a number out of range.
    """

    __repr__ = display.of_fields

    data_dim: int = 2
    """Coordinates of a point."""
    dim: int = 256
    """Width of the three hidden layers."""
    num_steps: int = 1000
    """T of the schedule: t lies in 0..T-1."""

    def __post_init__(self) -> None:
        at_least_1(self, "data_dim", "dim")
        if self.num_steps < 2:
            raise UserError(f"num_steps must be at least 2; got {self.num_steps}.")


@dataclass(frozen=True)
class ConvNet:
    """System 5's smallest network.

    Raises:
        UserError: a number below 1.
    """

    __repr__ = display.of_fields

    channels: int = 3
    """Channels of the images."""
    image_size: int = 32
    """Height and width of the images, in pixels; the network takes any size."""
    dim: int = 64
    """Width of the hidden layer, in channels."""

    def __post_init__(self) -> None:
        at_least_1(self, "channels", "image_size", "dim")


@dataclass(frozen=True)
class StridedUNet:
    """System 5's U-Net.

    Raises:
        UserError: an image size that cannot be halved four times, or a number below 1.
    """

    __repr__ = display.of_fields

    channels: int = 3
    """Channels of the images."""
    image_size: int = 32
    """Height and width of the images, in pixels."""
    num_classes: int | None = None
    """Number of classes the network is told about; None: unconditional."""

    def __post_init__(self) -> None:
        at_least_1(self, "channels", "image_size", *(["num_classes"] if self.num_classes is not None else []))
        divides(self, "image_size", 16)


@dataclass(frozen=True)
class StridedUNetConditional(StridedUNet):
    """System 5's U-Net with classes."""

    __repr__ = display.of_fields

    num_classes: int | None = 10
    """Number of classes the network is told about."""
