"""`double_conv_unet`: system 2's larger network, the classical U-Net with BatchNorm."""

from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Num

from ddpm_jax.errors import UserError
from ddpm_jax.models.config import ModelConfig
from ddpm_jax.models.convolution import Image, Resized
from ddpm_jax.models.layers import Conv, ConvTranspose
from ddpm_jax.models.network import Network
from ddpm_jax.models.normalization import BatchNorm
from ddpm_jax.models.remat import Block
from ddpm_jax.models.timesteps import TimeProj, check_table, look_up, timestep_table


@dataclass(frozen=True)
class DoubleConvUNetConfig(ModelConfig, network="double_conv_unet"):
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
        self._at_least_1("channels", "dim", "num_steps", "time_dim")
        check_table(self.num_steps, self.timestep_table)
        if self.image_size < 16:
            raise UserError(f"image_size must be at least 16, to be halved four times; got {self.image_size}.")

    def module(self, rngs: nnx.Rngs) -> "DoubleConvUNet":
        """The network of these options."""
        return DoubleConvUNet(self, rngs=rngs)


class DoubleConv(Block):
    """3x3 convolution, BatchNorm, ReLU; twice."""

    def __init__(self, in_dim: int, out_dim: int, *, rngs: nnx.Rngs):
        self.conv1 = Conv(in_dim, out_dim, 3, rngs=rngs)
        self.norm1 = BatchNorm(out_dim, rngs=rngs)
        self.conv2 = Conv(out_dim, out_dim, 3, rngs=rngs)
        self.norm2 = BatchNorm(out_dim, rngs=rngs)

    def __call__(self, x: Image) -> Resized:
        """(B, H, W, in) -> (B, H, W, out)."""
        x = nnx.relu(self.norm1(self.conv1(x)))
        return nnx.relu(self.norm2(self.conv2(x)))


class DownStage(nnx.Module):
    """The time added to what comes in, halved where asked for, then a double convolution."""

    def __init__(self, in_dim: int, out_dim: int, time_dim: int, *, pool: bool, rngs: nnx.Rngs):
        self.pool = pool
        self.time_proj = TimeProj(time_dim, in_dim, rngs=rngs)
        self.block = DoubleConv(in_dim, out_dim, rngs=rngs)

    def __call__(self, x: Image, time: Float[Array, "b d"]) -> Resized:
        """(B, H, W, in) -> (B, H / 2, W / 2, out), or the same size without pooling."""
        x = x + self.time_proj(time)
        return self.block(nnx.max_pool(x, (2, 2), strides=(2, 2)) if self.pool else x)


class UpStage(nnx.Module):
    """The time added to what comes in, doubled, joined with the skip, then a double convolution."""

    def __init__(self, in_dim: int, time_dim: int, *, rngs: nnx.Rngs):
        self.time_proj = TimeProj(time_dim, in_dim, rngs=rngs)
        self.upsample = ConvTranspose(in_dim, in_dim // 2, 2, stride=2, rngs=rngs)
        self.block = DoubleConv(in_dim, in_dim // 2, rngs=rngs)

    def __call__(self, x: Image, skip: Float[Array, "b h2 w2 c2"], time: Float[Array, "b d"]) -> Resized:
        """(B, H, W, in) and (B, ~2 H, ~2 W, in / 2) -> (B, ~2 H, ~2 W, in / 2)."""
        x = self.upsample(x + self.time_proj(time))
        missing = [skip.shape[axis] - x.shape[axis] for axis in (1, 2)]
        sides = [(m // 2, m - m // 2) for m in missing]  # of an odd size, the pixel that the pooling lost
        return self.block(jnp.concatenate([jnp.pad(x, ((0, 0), *sides, (0, 0))), skip], axis=-1))


class DoubleConvUNet(Network):
    """(x_t, t) -> eps; see `DoubleConvUNetConfig`."""

    def __init__(self, config: DoubleConvUNetConfig, *, rngs: nnx.Rngs):
        self.config = config
        widths = [config.dim * 2**level for level in range(5)]
        self.down = nnx.List(
            [
                DownStage(wide, wider, config.time_dim, pool=level > 0, rngs=rngs)
                for level, (wide, wider) in enumerate(zip([config.channels, *widths[:-1]], widths, strict=True))
            ]
        )
        self.up = nnx.List([UpStage(width, config.time_dim, rngs=rngs) for width in reversed(widths[1:])])
        self.conv_out = Conv(config.dim, config.channels, 1, rngs=rngs)

    def __call__(
        self,
        x_t: Image,
        t: Num[Array, "b"],
        labels: None = None,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b h w c"]:
        """Predict from x_t (B, H, W, C) at t (B,) in 0..num_steps - 1. It knows no classes."""
        time = look_up(
            timestep_table(self.config.num_steps, self.config.time_dim, self.config.timestep_table), t, x_t.dtype
        )
        x, skips = x_t, []
        for down in self.down:
            x = down(x, time)
            skips.append(x)
        skips.pop()
        for up in self.up:
            x = up(x, skips.pop(), time)
        return self.conv_out(x)
