"""The layers that networks share: time embedding, residual block, attention, resampling. Images are NHWC."""

import math
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from einops import rearrange, repeat
from flax import nnx
from jaxtyping import Array, Float, Num

from ddpm_jax.models.attention import attend, heads
from ddpm_jax.models.convolution import Image, Resized, convolve
from ddpm_jax.models.normalization import GroupNorm

xavier = nnx.initializers.variance_scaling(1.0, "fan_avg", "uniform")
zeros = nnx.initializers.zeros_init()


def timestep_embedding(
    t: Num[Array, "b"], dim: int, dtype: jnp.dtype, *, freq_shift: int = 1, cos_first: bool = False
) -> Float[Array, "b {dim}"]:
    """Sines, then cosines, of t at dim / 2 frequencies from 1 down to 1/10000 (Ho et al. 2020).

    t: (B,) timesteps. dim: even, at least 4. freq_shift: 1, or 0 for frequencies that stop one short of 1/10000; cos_first: the
    cosines come first (both in improved DDPM). Computed in float32 at least, whatever the dtype, since t reaches thousands.
    """
    exact = jnp.promote_types(dtype, jnp.float32)
    half = dim // 2
    frequencies = jnp.exp(-math.log(10_000) / (half - freq_shift) * jnp.arange(half, dtype=exact))
    angles = t.astype(exact)[:, None] * frequencies
    halves = [jnp.sin(angles), jnp.cos(angles)]
    return jnp.concatenate(halves[::-1] if cos_first else halves, axis=-1).astype(dtype)


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


def group_norm(dim: int, groups: int, *, epsilon: float = 1e-6, rngs: nnx.Rngs) -> GroupNorm:
    """GroupNorm; statistics in float32 at least."""
    return GroupNorm(dim, groups, epsilon=epsilon, rngs=rngs)


class TimeMLP(nnx.Module):
    """Timesteps -> embedding: sinusoids (see `timestep_embedding` for their options), linear, SiLU, linear."""

    def __init__(self, dim: int, out_dim: int, *, freq_shift: int = 1, cos_first: bool = False, rngs: nnx.Rngs):
        self.dim, self.freq_shift, self.cos_first = dim, freq_shift, cos_first
        self.linear1 = nnx.Linear(dim, out_dim, kernel_init=xavier, rngs=rngs)
        self.linear2 = nnx.Linear(out_dim, out_dim, kernel_init=xavier, rngs=rngs)

    def __call__(self, t: Num[Array, "b"], dtype: jnp.dtype) -> Float[Array, "b d"]:
        """t (B,) -> (B, out_dim) in the given dtype."""
        sinusoids = timestep_embedding(t, self.dim, dtype, freq_shift=self.freq_shift, cos_first=self.cos_first)
        return self.linear2(nnx.silu(self.linear1(sinusoids)))


def halve_mean(x: Image) -> Float[Array, "b h//2 w//2 c"]:
    """2x2 average pooling."""
    return nnx.avg_pool(x, (2, 2), strides=(2, 2))


def double_nearest(x: Image) -> Float[Array, "b 2*h 2*w c"]:
    """Every pixel becomes 2x2 pixels."""
    return repeat(x, "b h w c -> b (h 2) (w 2) c")


def exact_gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """GELU by the normal distribution itself, not by its tanh approximation."""
    return nnx.gelu(x, approximate=False)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": nnx.silu,
    "gelu": exact_gelu,
    "mish": jax.nn.mish,
    "relu": nnx.relu,
}
"""What a residual block may apply, by name."""


def scaled(x: Image, scale: float) -> Image:
    """x / scale; x itself where that is 1."""
    return x if scale == 1 else x / scale


class ResBlock(nnx.Module):
    """Two convolutions, each after GroupNorm and an activation, with time between them, added to the input.

    `resample` is applied to both branches before the first convolution (ADM's up- and downsampling block). The sum is divided by
    `scale`.
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
        epsilon: float = 1e-6,
        activation: str = "silu",
        scale: float = 1.0,
        resample: Callable[[Image], Resized] | None = None,
        rngs: nnx.Rngs,
    ):
        self.scale_shift = conditioning == "scale_shift"
        self.activation = activation
        self.scale = scale
        self.resample = resample
        self.norm1 = group_norm(in_dim, groups, epsilon=epsilon, rngs=rngs)
        self.conv1 = conv(in_dim, out_dim, 3, rngs=rngs)
        self.time_proj = nnx.Linear(time_dim, out_dim * (2 if self.scale_shift else 1), kernel_init=xavier, rngs=rngs)
        self.norm2 = group_norm(out_dim, groups, epsilon=epsilon, rngs=rngs)
        self.dropout = nnx.Dropout(dropout)
        self.conv2 = conv(out_dim, out_dim, 3, init=zeros, rngs=rngs)
        self.shortcut = conv(in_dim, out_dim, 1, rngs=rngs) if in_dim != out_dim else None

    def __call__(self, x: Image, time: Float[Array, "b d"], rngs: nnx.Rngs | None = None) -> Resized:
        """x (B, H, W, in_dim), time (B, time_dim) -> (B, H, W, out_dim), resampled; rngs: dropout's."""
        activate = ACTIVATIONS[self.activation]
        h = activate(self.norm1(x))
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = self.conv1(h)
        time = self.time_proj(activate(time))[:, None, None, :]
        if self.scale_shift:
            scale, shift = jnp.split(time, 2, axis=-1)
            h = self.norm2(h) * (1 + scale) + shift
        else:
            h = self.norm2(h + time)
        h = self.conv2(self.dropout(activate(h), rngs=rngs))
        return scaled(h + (x if self.shortcut is None else self.shortcut(x)), self.scale)


class Attention(nnx.Module):
    """Self-attention over the pixels of a normalised image, added to the image.

    norm (None: none), qkv (to three times num_heads head widths) and proj (back) are the layers it is made of, maps of channels
    all. The sum is divided by `scale`.
    """

    def __init__(
        self, norm: nnx.Module | None, qkv: nnx.Module, proj: nnx.Module, *, num_heads: int, scale: float = 1.0
    ):
        self.num_heads, self.scale = num_heads, scale
        self.norm, self.qkv, self.proj = norm, qkv, proj

    def __call__(self, x: Image) -> Image:
        """(B, H, W, C) in and out."""
        height = x.shape[1]
        normalised = x if self.norm is None else self.norm(x)
        out = attend(*heads(self.qkv(normalised), self.num_heads, "(h w) d"))
        return scaled(x + self.proj(rearrange(out, "b heads (h w) d -> b h w (heads d)", h=height)), self.scale)


class Resize(nnx.Module):
    """Halve or double the image without parameters, by `halve_mean` or `double_nearest`; time and rngs are not used."""

    def __init__(self, resize: Callable[[Image], Resized]):
        self.resize = resize

    def __call__(self, x: Image, time: Float[Array, "b d"], rngs: nnx.Rngs | None = None) -> Resized:
        """(B, H, W, C) -> (B, H', W', C)."""
        return self.resize(x)


class Downsample(nnx.Module):
    """Halve the image: 3x3 convolution of stride 2, padded at the bottom and right only, as TensorFlow's SAME does.

    pad_all_sides: padded all around, as improved DDPM does. A ResBlock may stand in: time and rngs are not used.
    """

    def __init__(self, dim: int, *, pad_all_sides: bool = False, rngs: nnx.Rngs):
        self.conv = conv(dim, dim, 3, stride=2, padding=(1, 1) if pad_all_sides else (0, 1), rngs=rngs)

    def __call__(
        self, x: Image, time: Float[Array, "b d"], rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b h//2 w//2 c"]:
        """(B, H, W, C) -> (B, H / 2, W / 2, C)."""
        return self.conv(x)


class Upsample(nnx.Module):
    """Double the image: nearest neighbour, then a 3x3 convolution; time and rngs are not used (a ResBlock may stand in)."""

    def __init__(self, dim: int, *, rngs: nnx.Rngs):
        self.conv = conv(dim, dim, 3, rngs=rngs)

    def __call__(
        self, x: Image, time: Float[Array, "b d"], rngs: nnx.Rngs | None = None
    ) -> Float[Array, "b 2*h 2*w c"]:
        """(B, H, W, C) -> (B, 2 H, 2 W, C)."""
        return self.conv(double_nearest(x))
