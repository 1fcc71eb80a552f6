"""Layers with PyTorch's defaults, for the networks that were first written there: initialisation, epsilons, statistics."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from ddpm_jax.models.convolution import Image, Resized, convolve, transposed
from ddpm_jax.models.normalization import GroupNorm

_uniform = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # U(-b, b) with b = 1 / sqrt(fan_in)


def _bias(fan_in: int) -> nnx.Initializer:
    bound = 1 / math.sqrt(fan_in)

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32, **_: object) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def linear(in_dim: int, out_dim: int, *, rngs: nnx.Rngs) -> nnx.Linear:
    """A linear layer with bias."""
    return nnx.Linear(in_dim, out_dim, kernel_init=_uniform, bias_init=_bias(in_dim), rngs=rngs)


def conv(
    in_dim: int,
    out_dim: int,
    size: int,
    *,
    stride: int = 1,
    padding: int | None = None,
    groups: int = 1,
    bias: bool = True,
    rngs: nnx.Rngs,
) -> nnx.Conv:
    """A square convolution; padding: pixels on every side, size // 2 unless given."""
    pad = size // 2 if padding is None else padding
    return nnx.Conv(
        in_dim,
        out_dim,
        (size, size),
        strides=stride,
        padding=((pad, pad), (pad, pad)),
        feature_group_count=groups,
        use_bias=bias,
        kernel_init=_uniform,
        bias_init=_bias(in_dim // groups * size**2),
        conv_general_dilated=convolve,
        rngs=rngs,
    )


def conv_transpose(
    in_dim: int,
    out_dim: int,
    size: int,
    *,
    stride: int,
    padding: int = 0,
    output_padding: int = 0,
    bias: bool = True,
    rngs: nnx.Rngs,
) -> "ConvTranspose":
    """A square transposed convolution: (in - 1) stride - 2 padding + size + output_padding pixels out."""
    before = size - 1 - padding
    sides = (before, before + output_padding)
    return ConvTranspose(
        in_dim,
        out_dim,
        (size, size),
        strides=(stride, stride),
        padding=(sides, sides),
        use_bias=bias,
        transpose_kernel=True,
        kernel_init=_uniform,
        # PyTorch takes the second axis of its (in, out, H, W) kernel for the fan-in
        bias_init=_bias(out_dim * size**2),
        rngs=rngs,
    )


def group_norm(dim: int, groups: int = 1, *, rngs: nnx.Rngs) -> GroupNorm:
    """GroupNorm with epsilon 1e-5."""
    return GroupNorm(dim, groups, rngs=rngs)


def gelu(x: jax.Array) -> jax.Array:
    """x Phi(x) with the normal distribution's Phi by erf, as PyTorch computes it; jax.nn.gelu's erfc takes a CPU twice as long."""
    return 0.5 * x * (1 + jax.lax.erf(x * math.sqrt(0.5)))


class ConvTranspose(nnx.ConvTranspose):
    """A transposed convolution by `convolution.transposed`."""

    def __call__(self, x: Image) -> Resized:
        """(B, H, W, in) -> (B, H', W', out)."""
        bias = None if self.bias is None else self.bias[...]
        x, kernel, bias = self.promote_dtype((x, self.kernel[...], bias), dtype=self.dtype)
        y = transposed(x, kernel, self.strides, self.padding)
        return y if bias is None else y + bias
