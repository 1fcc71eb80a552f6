"""The layers that networks share: convolutions, time embedding, residual block, attention, resampling. Images are NHWC.

Initialisation is PyTorch's unless another is given: most networks were first written there.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange, repeat
from flax import nnx
from jaxtyping import Array, Float, Num

from ddpm_jax import cpu_forms
from ddpm_jax.models.attention import attend, heads
from ddpm_jax.models.convolution import Image, Resized, convolve, transposed
from ddpm_jax.models.remat import Block

Vector = Float[Array, "b d"]
"""What tells a block of the time or the class."""

_uniform = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # U(-b, b) with b = 1 / sqrt(fan_in)


def _inits(init: nnx.Initializer | None, fan_in: int) -> dict[str, Any]:
    """How a kernel and its bias begin: the bias is zero where the kernel's is given, else both are PyTorch's."""
    if init is not None:
        return {"kernel_init": init}
    bound = 1 / math.sqrt(fan_in)

    def bias(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32, **_: object) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return {"kernel_init": _uniform, "bias_init": bias}


def linear(in_dim: int, out_dim: int, *, init: nnx.Initializer | None = None, rngs: nnx.Rngs) -> nnx.Linear:
    """A linear layer with bias."""
    return nnx.Linear(in_dim, out_dim, **_inits(init, in_dim), rngs=rngs)


def linear_of_tokens(in_dim: int, out_dim: int, *, init: nnx.Initializer, rngs: nnx.Rngs) -> nnx.Linear:
    """A linear layer with bias, of sequences of vectors (B, N, in_dim)."""
    return nnx.Linear(in_dim, out_dim, **_inits(init, in_dim), dot_general=_along_the_last, rngs=rngs)


def _along_the_last(x: Array, kernel: Array, *_: Any, **__: Any) -> Array:
    """What `nnx.Linear` takes as `dot_general`: it has one use for that."""
    return _of_vectors(x, kernel)


@cpu_forms.on_cpu(cpu_forms.vectors)
def _of_vectors(x: Float[Array, "... c"], kernel: Float[Array, "c n"]) -> Float[Array, "... n"]:
    return x @ kernel


class Conv(nnx.Conv):
    """A square convolution; padding: pixels on every side, or before and after, size // 2 unless given."""

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        size: int,
        *,
        stride: int = 1,
        padding: int | tuple[int, int] | None = None,
        groups: int = 1,
        bias: bool = True,
        init: nnx.Initializer | None = None,
        rngs: nnx.Rngs,
    ):
        pad = size // 2 if padding is None else padding
        sides = (pad, pad) if isinstance(pad, int) else pad
        super().__init__(
            in_dim,
            out_dim,
            (size, size),
            strides=stride,
            padding=(sides, sides),
            feature_group_count=groups,
            use_bias=bias,
            conv_general_dilated=convolve,
            **_inits(init, in_dim // groups * size**2),
            rngs=rngs,
        )


class ConvTranspose(nnx.ConvTranspose):
    """A square transposed convolution: (in - 1) stride - 2 padding + size + output_padding pixels out."""

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        size: int,
        *,
        stride: int,
        padding: int = 0,
        output_padding: int = 0,
        bias: bool = True,
        rngs: nnx.Rngs,
    ):
        before = size - 1 - padding
        sides = (before, before + output_padding)
        super().__init__(
            in_dim,
            out_dim,
            (size, size),
            strides=(stride, stride),
            padding=(sides, sides),
            use_bias=bias,
            transpose_kernel=True,
            # PyTorch takes the second axis of its (in, out, H, W) kernel for the fan-in
            **_inits(None, out_dim * size**2),
            rngs=rngs,
        )

    def __call__(self, x: Image) -> Resized:
        """(B, H, W, in) -> (B, H', W', out)."""
        bias = None if self.bias is None else self.bias[...]
        x, kernel, bias = self.promote_dtype((x, self.kernel[...], bias), dtype=self.dtype)
        y = transposed(x, kernel, self.strides, self.padding)
        return y if bias is None else y + bias


def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x Phi(x) with the normal distribution's Phi by erf, as PyTorch computes it; jax.nn.gelu's erfc takes a CPU twice as long."""
    return 0.5 * x * (1 + jax.lax.erf(x * math.sqrt(0.5)))


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


class TimeMLP(nnx.Module):
    """Timesteps -> embedding: sinusoids (see `timestep_embedding` for their options), linear, activation, linear."""

    def __init__(
        self,
        dim: int,
        out_dim: int,
        *,
        activation: Callable[[jax.Array], jax.Array],
        freq_shift: int = 1,
        cos_first: bool = False,
        init: nnx.Initializer | None = None,
        rngs: nnx.Rngs,
    ):
        self.dim, self.activation, self.freq_shift, self.cos_first = dim, activation, freq_shift, cos_first
        self.linear1 = linear(dim, out_dim, init=init, rngs=rngs)
        self.linear2 = linear(out_dim, out_dim, init=init, rngs=rngs)

    def __call__(self, t: Num[Array, "b"], dtype: jnp.dtype) -> Vector:
        """t (B,) -> (B, out_dim) in the given dtype."""
        sinusoids = timestep_embedding(t, self.dim, dtype, freq_shift=self.freq_shift, cos_first=self.cos_first)
        return self.linear2(self.activation(self.linear1(sinusoids)))


def halve_mean(x: Image) -> Float[Array, "b h//2 w//2 c"]:
    """2x2 average pooling."""
    return nnx.avg_pool(x, (2, 2), strides=(2, 2))


def double_nearest(x: Image) -> Float[Array, "b 2*h 2*w c"]:
    """Every pixel becomes 2x2 pixels."""
    return repeat(x, "b h w c -> b (h 2) (w 2) c")


def scaled(x: Image, scale: float) -> Image:
    """x / scale; x itself where that is 1."""
    return x if scale == 1 else x / scale


class ResNetBlock(Block):
    """3x3 convolution, norm, SiLU; twice, the first with the scale and shift of the time and dropout; added to the input."""

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        norm: Callable[[int], nnx.Module],
        time_dim: int | None,
        dropout: float = 0.0,
        bias: bool = True,
        rngs: nnx.Rngs,
    ):
        self.time_proj = None if time_dim is None else linear(time_dim, 2 * out_dim, rngs=rngs)
        self.conv1 = Conv(in_dim, out_dim, 3, bias=bias, rngs=rngs)
        self.norm1 = norm(out_dim)
        self.dropout = nnx.Dropout(dropout)
        self.conv2 = Conv(out_dim, out_dim, 3, bias=bias, rngs=rngs)
        self.norm2 = norm(out_dim)
        self.shortcut = Conv(in_dim, out_dim, 1, bias=bias, rngs=rngs) if in_dim != out_dim else None

    def __call__(self, x: Image, time: Vector | None = None, rngs: nnx.Rngs | None = None) -> Resized:
        """x (B, H, W, in_dim), time (B, d) -> (B, H, W, out_dim); rngs: dropout's."""
        h = self.norm1(self.conv1(x))
        if self.time_proj is not None and time is not None:
            scale, shift = jnp.split(self.time_proj(nnx.silu(time))[:, None, None, :], 2, axis=-1)
            h = h * (scale + 1) + shift
        h = nnx.silu(self.norm2(self.conv2(self.dropout(nnx.silu(h), rngs=rngs))))
        return h + (x if self.shortcut is None else self.shortcut(x))


class Attention(Block):
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


class Middle(nnx.Module):
    """Block, attention (None: none), block at the smallest size."""

    def __init__(self, block1: nnx.Module, attention: nnx.Module | None, block2: nnx.Module):
        self.block1, self.attention, self.block2 = block1, attention, block2

    def __call__(self, x: Image, *conditioning: Any) -> Image:
        """(B, H, W, C) in and out; conditioning: what the blocks take beside the image."""
        x = self.block1(x, *conditioning)
        return self.block2(x if self.attention is None else self.attention(x), *conditioning)
