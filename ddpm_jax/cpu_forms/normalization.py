"""Normalisation of images by sums of channels: first those, then one product and one sum per pixel; and of vectors.

XLA's CPU compiler is slow at a reduction over leading axes, and autodiff makes many passes over the image. Here a channel's sum
is a matrix product with ones, whatever is pooled is pooled in arrays of (B, C), and the gradient is written down.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from ddpm_jax.cpu_forms.switch import in_use

Image = Float[Array, "b h w c"]


def normalize(
    x: Image, scale: Float[Array, "c"], bias: Float[Array, "c"], groups: int | None, epsilon: float
) -> Image | None:
    """(x - mean) / sqrt(var + epsilon) * scale + bias, in the dtype of x, with statistics in float32 at least."""
    return _normalize(x, scale, bias, groups, epsilon) if in_use("normalization") else None


def normalize_vectors(x: Float[Array, "... d"], epsilon: float) -> Float[Array, "... d"] | None:
    """(x - mean) / sqrt(var + epsilon) of each vector along the last axis; None where statistics need more than its dtype."""
    return _vectors(x, epsilon) if in_use("normalization") and x.dtype == _exact(x).dtype else None


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _vectors(x: Array, epsilon: float) -> Array:
    return _vectors_forward(x, epsilon)[0]


def _vectors_forward(x: Array, epsilon: float) -> tuple[Array, Any]:
    apart = x - x @ _share(x)
    inverse = lax.rsqrt((apart * apart) @ _share(x) + epsilon)
    y = apart * inverse
    return y, (y, inverse)


def _vectors_backward(epsilon: float, kept: Any, g: Array) -> tuple[Array]:
    y, inverse = kept
    return (inverse * (g - g @ _share(g) - y * ((g * y) @ _share(g))),)


_vectors.defvjp(_vectors_forward, _vectors_backward)


def _share(x: Array) -> Array:
    """(d, 1), by which a product is the mean of each vector."""
    return jnp.full((x.shape[-1], 1), 1 / x.shape[-1], x.dtype)


def statistics(x: Image, groups: int | None) -> tuple[Float[Array, "n c"], Float[Array, "n c"]] | None:
    """Mean and (biased) variance."""
    return _statistics(x, groups) if in_use("normalization") else None


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _normalize(x: Array, scale: Array, bias: Array, groups: int | None, epsilon: float) -> Array:
    return _forward(x, scale, bias, groups, epsilon)[0]


def _statistics(x: Array, groups: int | None) -> tuple[Array, Array]:
    exact = _exact(x)
    mean = _pooled(_channel_sums(exact), exact, groups)
    return mean, _pooled(_channel_sums(jnp.square(exact - _wide(mean))), exact, groups)


def _forward(x: Array, scale: Array, bias: Array, groups: int | None, epsilon: float) -> tuple[Array, Any]:
    mean, var = _statistics(x, groups)
    inverse = lax.rsqrt(var + epsilon)
    factor = inverse * scale
    y = _exact(x) * _wide(factor) + _wide(bias - mean * factor)
    return y.astype(x.dtype), (x, scale, mean, inverse)


def _backward(groups: int | None, epsilon: float, kept: Any, g: Array) -> tuple[Array, Array, Array]:
    x, scale, mean, inverse = kept
    exact, g = _exact(x), lax.optimization_barrier(_exact(g))
    sums = _channel_sums(g)
    products = _channel_sums(g * (exact - _wide(mean))) * inverse  # of g with the normalised image
    # what moves the mean and the deviation is taken away: dx = inverse (scale g - <scale g> - x_hat <scale g x_hat>)
    by_x = -jnp.square(inverse) * _pooled(scale * products, exact, groups)
    constant = -inverse * _pooled(scale * sums, exact, groups) - mean * by_x
    x_gradient = g * _wide(scale * inverse) + exact * _wide(by_x) + _wide(constant)
    return x_gradient.astype(x.dtype), products.sum(0).astype(scale.dtype), sums.sum(0).astype(scale.dtype)


_normalize.defvjp(_forward, _backward)


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


def _channel_sums(x: Array) -> Array:
    """(B, H, W, C) -> (B, C), over the pixels of each image."""
    pixels = x.reshape(x.shape[0], -1, x.shape[-1])
    return jnp.einsum("bp,bpc->bc", jnp.ones((x.shape[0], pixels.shape[1]), x.dtype), pixels)
