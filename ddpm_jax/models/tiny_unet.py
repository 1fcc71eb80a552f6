"""`tiny_unet`: system 2's small network, with LayerNorm over whole maps."""

import itertools
from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Num

from ddpm_jax.models.config import ModelConfig
from ddpm_jax.models.convolution import Image, Resized
from ddpm_jax.models.layers import Conv, ConvTranspose
from ddpm_jax.models.network import Network
from ddpm_jax.models.normalization import MapNorm
from ddpm_jax.models.remat import Block
from ddpm_jax.models.timesteps import TimeProj, check_table, look_up, timestep_table


@dataclass(frozen=True)
class TinyUNetConfig(ModelConfig, network="tiny_unet"):
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
        self._at_least_1("channels", "image_size", "dim", "num_steps", "time_dim")
        self._divides("image_size", 8)
        check_table(self.num_steps, self.timestep_table)

    def module(self, rngs: nnx.Rngs) -> "TinyUNet":
        """The network of these options."""
        return TinyUNet(self, rngs=rngs)


class Unit(nnx.Module):
    """LayerNorm over the whole map, 3x3 convolution, SiLU."""

    def __init__(self, size: int, in_dim: int, out_dim: int, *, rngs: nnx.Rngs):
        self.norm = MapNorm(size, size, in_dim, rngs=rngs)
        self.conv = Conv(in_dim, out_dim, 3, rngs=rngs)

    def __call__(self, x: Image) -> Resized:
        """(B, H, W, in) -> (B, H, W, out)."""
        return nnx.silu(self.conv(self.norm(x)))


class Stage(Block):
    """The time, added to the input, then three units."""

    def __init__(self, size: int, widths: tuple[int, int, int, int], time_dim: int, *, rngs: nnx.Rngs):
        self.time_proj = TimeProj(time_dim, widths[0], rngs=rngs)
        self.units = nnx.List([Unit(size, a, b, rngs=rngs) for a, b in itertools.pairwise(widths)])

    def __call__(self, x: Image, time: Float[Array, "b d"]) -> Resized:
        """(B, H, W, in) -> (B, H, W, out)."""
        x = x + self.time_proj(time)
        for unit in self.units:
            x = unit(x)
        return x


class TinyUNet(Network):
    """(x_t, t) -> eps; see `TinyUNetConfig`."""

    def __init__(self, config: TinyUNetConfig, *, rngs: nnx.Rngs):
        self.config = config
        size, dim = config.image_size, config.dim

        def stage(level: int, *widths: int) -> Stage:
            a, b, c, d = widths
            return Stage(size // 2**level, (a, b, c, d), config.time_dim, rngs=rngs)

        widths = [dim, 2 * dim, 4 * dim]
        self.down = nnx.List(
            [stage(i, a, w, w, w) for i, (a, w) in enumerate(zip([config.channels, *widths[:-1]], widths, strict=True))]
        )
        self.downsamples = nnx.List([Conv(w, w, 4, stride=2, padding=1, rngs=rngs) for w in widths])
        self.middle = stage(3, 4 * dim, 2 * dim, 2 * dim, 4 * dim)
        self.upsamples = nnx.List([ConvTranspose(w, w, 4, stride=2, padding=1, rngs=rngs) for w in reversed(widths)])
        self.up = nnx.List(
            [
                stage(2, 8 * dim, 4 * dim, 2 * dim, 2 * dim),
                stage(1, 4 * dim, 2 * dim, dim, dim),
                stage(0, 2 * dim, dim, dim, dim),
            ]
        )
        self.conv_out = Conv(dim, config.channels, 3, rngs=rngs)

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
        for stage, downsample in zip(self.down, self.downsamples, strict=True):
            x = stage(x, time)
            skips.append(x)
            x = downsample(x)
        x = self.middle(x, time)
        for stage, upsample in zip(self.up, self.upsamples, strict=True):
            x = stage(jnp.concatenate([skips.pop(), upsample(x)], axis=-1), time)
        return self.conv_out(x)
