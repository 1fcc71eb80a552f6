"""`convnext_unet`: system 1, class-conditional digits, and its large variant for 224x224 images."""

import functools
from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Num

from ddpm_jax.errors import UserError
from ddpm_jax.models.config import ModelConfig
from ddpm_jax.models.convnext import ConvNeXtBlock
from ddpm_jax.models.convolution import Image, Resized
from ddpm_jax.models.layers import Attention, Conv, ConvTranspose, Vector, gelu, linear
from ddpm_jax.models.network import Network
from ddpm_jax.models.normalization import GroupNorm
from ddpm_jax.models.timesteps import convnext_table, look_up


@dataclass(frozen=True)
class ConvNeXtUNetConfig(ModelConfig, network="convnext_unet"):
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
        self._at_least_1("channels", "image_size", "num_classes", "num_steps", "expansion")
        size = self.image_size
        for stride in self.strides:
            # a 3x3 convolution of stride 3, padded by 1, and back again only fits sizes of this remainder
            if (stride == 3 and size % 3 != 1) or (stride == 2 and size % 2):
                raise UserError(
                    f"image_size must go through strides {self.strides} and back unchanged, as 28 and 224 do; "
                    f"got {self.image_size}."
                )
            size = -(-size // stride)

    def module(self, rngs: nnx.Rngs) -> "ConvNeXtUNet":
        """The network of these options."""
        return ConvNeXtUNet(self, rngs=rngs)


@dataclass(frozen=True)
class ConvNeXtUNet224Config(ConvNeXtUNetConfig, network="convnext_unet_224"):
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


class Stage(nnx.Module):
    """A ConvNeXt block, then attention with one head."""

    def __init__(self, block: ConvNeXtBlock, dim: int, *, rngs: nnx.Rngs):
        self.block = block
        self.attention = Attention(
            GroupNorm(dim, rngs=rngs), linear(dim, 3 * dim, rngs=rngs), linear(dim, dim, rngs=rngs), num_heads=1
        )

    def __call__(self, x: Image, time: Vector | None, classes: Vector | None) -> Resized:
        """(B, H, W, in) -> (B, H, W, dim)."""
        return self.attention(self.block(x, time, classes))


class ConvNeXtUNet(Network):
    """(x_t, t, labels) -> eps; see `ConvNeXtUNetConfig`."""

    def __init__(self, config: ConvNeXtUNetConfig, *, rngs: nnx.Rngs):
        self.config = config
        dim = 4 * config.image_size
        block = functools.partial(
            ConvNeXtBlock,
            expansion=config.expansion,
            cond_dims={"time": dim, "class": dim},
            cond_act=nnx.silu,
            gelu=gelu,
            rngs=rngs,
        )

        def stage(in_dim: int, out_dim: int) -> Stage:
            return Stage(block(in_dim, out_dim), out_dim, rngs=rngs)

        widths, strides = config.widths, config.strides
        self.class_embed = nnx.Embed(config.num_classes, dim, embedding_init=nnx.initializers.normal(1.0), rngs=rngs)
        self.down = nnx.List([stage(config.channels, widths[0]), *(stage(w, w) for w in widths[1:-1])])
        self.downsamples = nnx.List(
            [
                Conv(wide, wider, 3, stride=stride, padding=1, rngs=rngs)
                for wide, wider, stride in zip(widths[:-1], widths[1:], strides, strict=True)
            ]
        )
        self.middle = stage(widths[-1], widths[-1])
        # (in - 1) stride + 1 pixels come of it: of a stride of 2, one less than the skip has
        self.upsamples = nnx.List(
            [
                ConvTranspose(
                    wider,
                    wide,
                    3,
                    stride=stride,
                    padding=1,
                    output_padding=int(stride == 2),
                    rngs=rngs,
                )
                for wide, wider, stride in reversed(list(zip(widths[:-1], widths[1:], strides, strict=True)))
            ]
        )
        ups = [*reversed(widths[1:-1]), config.out_width]
        self.up = nnx.List([stage(wider, wide) for wider, wide in zip(reversed(widths[1:]), ups, strict=True)])
        self.block_out = block(config.out_width, config.channels)

    def __call__(
        self,
        x_t: Image,
        t: Num[Array, "b"] | None = None,
        labels: Int[Array, "b"] | None = None,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b h w c"]:
        """Predict from x_t (B, H, W, C) at t (B,) in 0..num_steps, for classes labels (B,); None leaves that conditioning out."""
        table = convnext_table(self.config.num_steps, 4 * self.config.image_size)
        time = None if t is None else look_up(table, t, x_t.dtype)
        classes = None if labels is None else self.class_embed.embedding[labels].astype(x_t.dtype)
        x, skips = x_t, []
        for stage, downsample in zip(self.down, self.downsamples, strict=True):
            x = stage(x, time, classes)
            skips.append(x)
            x = downsample(x)
        x = self.middle(x, time, classes)
        for stage, upsample in zip(self.up, self.upsamples, strict=True):
            x = stage(jnp.concatenate([upsample(x), skips.pop()], axis=-1), time, classes)
        return self.block_out(x, time, classes)
