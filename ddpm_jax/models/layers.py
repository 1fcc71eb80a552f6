"""The layers that networks share: time embedding, residual block, attention, resampling. Images are NHWC."""

import math
from collections.abc import Callable
from typing import Literal

import jax.numpy as jnp
from einops import rearrange, repeat
from flax import nnx
from jaxtyping import Array, Float, Num

from ddpm_jax.models.attention import attend
from ddpm_jax.models.convolution import Image, Resized, convolve
from ddpm_jax.models.normalization import GroupNorm

xavier = nnx.initializers.variance_scaling(1.0, "fan_avg", "uniform")
zeros = nnx.initializers.zeros_init()


def timestep_embedding(t: Num[Array, "b"], dim: int, dtype: jnp.dtype) -> Float[Array, "b {dim}"]:
    """Sines, then cosines, of t at dim / 2 frequencies from 1 down to 1/10000 (Ho et al. 2020).

    t: (B,) timesteps. dim: even, at least 4. Computed in float32 at least, whatever the dtype, since t reaches thousands.
    """
    exact = jnp.promote_types(dtype, jnp.float32)
    half = dim // 2
    frequencies = jnp.exp(-math.log(10_000) / (half - 1) * jnp.arange(half, dtype=exact))
    angles = t.astype(exact)[:, None] * frequencies
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1).astype(dtype)


def conv(
    in_dim: int,
    out_dim: int,
    size: int,
    *,
    stride: int = 1,
    padding: int | tuple[int, int] | None = None,
    init: nnx.Initializer = xavier,
    rngs: nnx.Rngs,
) -> nnx.Conv:
    """A square convolution with bias; padding: pixels on (every) side, size // 2 unless given."""
    pad = size // 2 if padding is None else padding
    sides = (pad, pad) if isinstance(pad, int) else pad
    return nnx.Conv(
        in_dim,
        out_dim,
        (size, size),
        strides=stride,
        padding=(sides, sides),
        kernel_init=init,
        conv_general_dilated=convolve,
        rngs=rngs,
    )


def group_norm(dim: int, groups: int, *, rngs: nnx.Rngs) -> GroupNorm:
    """GroupNorm with epsilon 1e-6."""
    return GroupNorm(dim, groups, epsilon=1e-6, rngs=rngs)


class TimeMLP(nnx.Module):
    """Timesteps -> embedding: sinusoids, linear, SiLU, linear."""

    def __init__(self, dim: int, out_dim: int, *, rngs: nnx.Rngs):
        self.dim = dim
        self.linear1 = nnx.Linear(dim, out_dim, kernel_init=xavier, rngs=rngs)
        self.linear2 = nnx.Linear(out_dim, out_dim, kernel_init=xavier, rngs=rngs)

    def __call__(self, t: Num[Array, "b"], dtype: jnp.dtype) -> Float[Array, "b d"]:
        """t (B,) -> (B, out_dim) in the given dtype."""
        return self.linear2(nnx.silu(self.linear1(timestep_embedding(t, self.dim, dtype))))


def halve_mean(x: Image) -> Float[Array, "b h//2 w//2 c"]:
    """2x2 average pooling."""
    return nnx.avg_pool(x, (2, 2), strides=(2, 2))


def double_nearest(x: Image) -> Float[Array, "b 2*h 2*w c"]:
    """Every pixel becomes 2x2 pixels."""
    return repeat(x, "b h w c -> b (h 2) (w 2) c")


class ResBlock(nnx.Module):
    """Two convolutions, each after GroupNorm and SiLU, with time between them, added to the input.

    `resample` is applied to both branches before the first convolution (ADM's up- and downsampling block).
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        time_dim: int,
        *,
        groups: int,
        dropout: float,
        conditioning: Literal["add", "scale_shift"],
        resample: Callable[[Image], Resized] | None = None,
        rngs: nnx.Rngs,
    ):
        self.scale_shift = conditioning == "scale_shift"
        self.resample = resample
        self.norm1 = group_norm(in_dim, groups, rngs=rngs)
        self.conv1 = conv(in_dim, out_dim, 3, rngs=rngs)
        self.time_proj = nnx.Linear(time_dim, out_dim * (2 if self.scale_shift else 1), kernel_init=xavier, rngs=rngs)
        self.norm2 = group_norm(out_dim, groups, rngs=rngs)
        self.dropout = nnx.Dropout(dropout)
        self.conv2 = conv(out_dim, out_dim, 3, init=zeros, rngs=rngs)
        self.shortcut = conv(in_dim, out_dim, 1, rngs=rngs) if in_dim != out_dim else None

    def __call__(self, x: Image, time: Float[Array, "b d"], rngs: nnx.Rngs | None = None) -> Resized:
        """x (B, H, W, in_dim), time (B, time_dim) -> (B, H, W, out_dim), resampled; rngs: dropout's."""
        h = nnx.silu(self.norm1(x))
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = self.conv1(h)
        time = self.time_proj(nnx.silu(time))[:, None, None, :]
        if self.scale_shift:
            scale, shift = jnp.split(time, 2, axis=-1)
            h = self.norm2(h) * (1 + scale) + shift
        else:
            h = self.norm2(h + time)
        h = self.conv2(self.dropout(nnx.silu(h), rngs=rngs))
        return h + (x if self.shortcut is None else self.shortcut(x))


class Attention(nnx.Module):
    """Self-attention over the pixels of a normalised image, added to the image.

    norm, qkv (to three times num_heads head widths) and proj (back) are the layers it is made of, maps of channels all.
    """

    def __init__(self, norm: nnx.Module, qkv: nnx.Module, proj: nnx.Module, *, num_heads: int):
        self.num_heads = num_heads
        self.norm, self.qkv, self.proj = norm, qkv, proj

    def __call__(self, x: Image) -> Image:
        """(B, H, W, C) in and out."""
        height = x.shape[1]
        q, k, v = rearrange(
            self.qkv(self.norm(x)), "b h w (three heads d) -> three b heads (h w) d", three=3, heads=self.num_heads
        )
        out = attend(q, k, v)
        return x + self.proj(rearrange(out, "b heads (h w) d -> b h w (heads d)", h=height))


class Downsample(nnx.Module):
    """Halve the image: 3x3 convolution of stride 2, padded at the bottom and right only, as TensorFlow's SAME does."""

    def __init__(self, dim: int, *, rngs: nnx.Rngs):
        self.conv = conv(dim, dim, 3, stride=2, padding=(0, 1), rngs=rngs)

    def __call__(self, x: Image) -> Float[Array, "b h//2 w//2 c"]:
        """(B, H, W, C) -> (B, H / 2, W / 2, C)."""
        return self.conv(x)


class Upsample(nnx.Module):
    """Double the image: nearest neighbour, then a 3x3 convolution."""

    def __init__(self, dim: int, *, rngs: nnx.Rngs):
        self.conv = conv(dim, dim, 3, rngs=rngs)

    def __call__(self, x: Image) -> Float[Array, "b 2*h 2*w c"]:
        """(B, H, W, C) -> (B, 2 H, 2 W, C)."""
        return self.conv(double_nearest(x))
