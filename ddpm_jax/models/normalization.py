"""Normalisation of images in a form that is fast on CPU as well: sums by channel first, then one product and one sum per pixel.

XLA's CPU compiler is slow at a reduction over leading axes, and autodiff makes many passes over the image. Here a channel's sum
is a matrix product with ones on CPU, whatever is pooled is pooled in arrays of (B, C), and the gradient is written down.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from ddpm_jax.models.convolution import Image


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def normalize(x: Image, scale: Float[Array, "c"], bias: Float[Array, "c"], groups: int | None, epsilon: float) -> Image:
    """(x - mean) / sqrt(var + epsilon) * scale + bias, in the dtype of x, with statistics in float32 at least.

    groups: of channels, whose statistics are those of one image (Wu & He 2018); None: each channel has those of the whole batch
    (Ioffe & Szegedy 2015).
    """
    return _forward(x, scale, bias, groups, epsilon)[0]


def statistics(x: Image, groups: int | None) -> tuple[Float[Array, "n c"], Float[Array, "n c"]]:
    """Mean and (biased) variance as `normalize` takes them, (B, C) of groups or (1, C) of the batch; not differentiated."""
    exact = _exact(lax.stop_gradient(x))
    mean = _pooled(_channel_sums(exact), exact, groups)
    return mean, _pooled(_channel_sums(jnp.square(exact - _wide(mean))), exact, groups)


def _forward(x: Array, scale: Array, bias: Array, groups: int | None, epsilon: float) -> tuple[Array, Any]:
    mean, var = statistics(x, groups)
    inverse = lax.rsqrt(var + epsilon)
    factor = inverse * scale
    y = _exact(x) * _wide(factor) + _wide(bias - mean * factor)
    return y.astype(x.dtype), (x, scale, mean, inverse)


def _backward(groups: int | None, epsilon: float, kept: Any, g: Array) -> tuple[Array, Array, Array]:
    x, scale, mean, inverse = kept
    exact, g = _exact(x), lax.platform_dependent(_exact(g), cpu=lax.optimization_barrier, default=lambda g: g)
    sums = _channel_sums(g)
    products = _channel_sums(g * (exact - _wide(mean))) * inverse  # of g with the normalised image
    # what moves the mean and the deviation is taken away: dx = inverse (scale g - <scale g> - x_hat <scale g x_hat>)
    by_x = -jnp.square(inverse) * _pooled(scale * products, exact, groups)
    constant = -inverse * _pooled(scale * sums, exact, groups) - mean * by_x
    x_gradient = g * _wide(scale * inverse) + exact * _wide(by_x) + _wide(constant)
    return x_gradient.astype(x.dtype), products.sum(0).astype(scale.dtype), sums.sum(0).astype(scale.dtype)


normalize.defvjp(_forward, _backward)


class GroupNorm(nnx.GroupNorm):
    """GroupNorm by `normalize`; statistics in float32 at least."""

    def __call__(self, x: Image, *, mask: None = None) -> Image:  # type: ignore[override]
        """(B, H, W, C) in and out."""
        assert self.scale is not None and self.bias is not None
        return normalize(x, self.scale[...], self.bias[...], self.num_groups, self.epsilon)


def _exact(x: Array) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _wide(by_channel: Array) -> Array:
    """(N, C) -> (N, 1, 1, C)."""
    return by_channel[:, None, None, :]


def _pooled(sums: Array, image: Array, groups: int | None) -> Array:
    """Sums over the pixels of each image, (B, C), -> the mean over what is normalised together, (B, C) or (1, C)."""
    pixels = image.shape[1] * image.shape[2]
    if groups is None:
        return sums.mean(0, keepdims=True) / pixels
    width = sums.shape[1] // groups
    means = sums.reshape(-1, groups, width).mean(-1) / pixels
    return jnp.repeat(means, width, axis=-1)


def _channel_sums(x: Image) -> Float[Array, "b c"]:
    """Over the pixels of each image."""

    def product(x: Array) -> Array:
        pixels = x.reshape(x.shape[0], -1, x.shape[-1])
        ones = jnp.ones((x.shape[0], pixels.shape[1]), x.dtype)
        return jnp.einsum("bp,bpc->bc", ones, pixels)

    return lax.platform_dependent(x, cpu=product, default=lambda x: x.sum((1, 2)))
