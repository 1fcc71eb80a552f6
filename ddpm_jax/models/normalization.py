"""Normalisation of images over groups of channels, over the batch, and over whole maps."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from ddpm_jax import cpu_forms
from ddpm_jax.models.convolution import Image


@cpu_forms.on_cpu(cpu_forms.normalize)
def normalize(x: Image, scale: Float[Array, "c"], bias: Float[Array, "c"], groups: int | None, epsilon: float) -> Image:
    """(x - mean) / sqrt(var + epsilon) * scale + bias, in the dtype of x, with statistics in float32 at least.

    groups: of channels, whose statistics are those of one image (Wu & He 2018); None: each channel has those of the whole batch
    (Ioffe & Szegedy 2015).
    """
    mean, var = (seen[:, None, None, :] for seen in statistics(x, groups))
    return ((_exact(x) - mean) * lax.rsqrt(var + epsilon) * scale + bias).astype(x.dtype)


@cpu_forms.on_cpu(cpu_forms.statistics)
def statistics(x: Image, groups: int | None) -> tuple[Float[Array, "n c"], Float[Array, "n c"]]:
    """Mean and (biased) variance as `normalize` takes them, (B, C) of groups or (1, C) of the batch."""
    exact = _exact(x)
    if groups is None:
        return exact.mean((0, 1, 2))[None], exact.var((0, 1, 2))[None]
    batch, height, width, channels = x.shape
    parts = exact.reshape(batch, height * width, groups, channels // groups)
    mean, var = (jnp.repeat(seen, channels // groups, axis=-1) for seen in (parts.mean((1, 3)), parts.var((1, 3))))
    return mean, var


@cpu_forms.on_cpu(cpu_forms.normalize_vectors)
def normalize_vectors(x: Float[Array, "... d"], epsilon: float) -> Float[Array, "... d"]:
    """(x - mean) / sqrt(var + epsilon) of each vector along the last axis (Ba et al. 2016), with statistics in float32 at least."""
    exact = _exact(x)
    apart = exact - exact.mean(-1, keepdims=True)
    return (apart * lax.rsqrt(jnp.square(apart).mean(-1, keepdims=True) + epsilon)).astype(x.dtype)


class VectorNorm(nnx.Module):
    """LayerNorm of each vector, without a scale or a bias."""

    def __init__(self, *, epsilon: float):
        self.epsilon = epsilon

    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        """(..., D) in and out."""
        return normalize_vectors(x, self.epsilon)


def _exact(x: Array) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


class GroupNorm(nnx.GroupNorm):
    """GroupNorm; statistics in float32 at least."""

    def __init__(self, dim: int, groups: int = 1, *, epsilon: float = 1e-5, rngs: nnx.Rngs):
        super().__init__(dim, groups, epsilon=epsilon, rngs=rngs)

    def __call__(self, x: Image, *, mask: None = None) -> Image:  # type: ignore[override]
        """(B, H, W, C) in and out."""
        assert self.scale is not None and self.bias is not None
        return normalize(x, self.scale[...], self.bias[...], self.num_groups, self.epsilon)


class BatchNorm(nnx.BatchNorm):
    """BatchNorm whose running variance is that of the population (n - 1), while it normalises by that of the batch (n)."""

    def __init__(self, dim: int, *, epsilon: float = 1e-5, rngs: nnx.Rngs):
        super().__init__(dim, momentum=0.9, epsilon=epsilon, rngs=rngs)

    def __call__(self, x: Image) -> Image:  # type: ignore[override]
        """(B, H, W, C) in and out; outside evaluation the running statistics move a tenth of the way to the batch's."""
        assert self.scale is not None and self.bias is not None
        scale, bias = self.scale[...], self.bias[...]
        if self.use_running_average:
            factor = lax.rsqrt(self.var[...] + self.epsilon) * scale
            return (_exact(x) * factor + (bias - self.mean[...] * factor)).astype(x.dtype)
        mean, var = (seen[0] for seen in statistics(lax.stop_gradient(x), None))
        count = x.size // x.shape[-1]
        for running, seen in ((self.mean, mean), (self.var, var * count / (count - 1))):
            running[...] = (self.momentum * running[...] + (1 - self.momentum) * seen).astype(running.dtype)
        return normalize(x, scale, bias, None, self.epsilon)


class MapNorm(nnx.Module):
    """Normalisation over a whole (H, W, C) map, with a scale and a bias for every element."""

    def __init__(self, height: int, width: int, channels: int, *, rngs: nnx.Rngs):
        shape = (height, width, channels)
        self.scale = nnx.Param(jnp.ones(shape))
        self.bias = nnx.Param(jnp.zeros(shape))

    def __call__(self, x: Image) -> Image:
        """(B, H, W, C) in and out."""
        # what every element has of its own is not the norm's
        ones, zeros = jnp.ones(x.shape[-1], x.dtype), jnp.zeros(x.shape[-1], x.dtype)
        normalized = normalize(x, ones, zeros, 1, 1e-5)
        return normalized * self.scale[...] + self.bias[...]


class RMSNorm(nnx.Module):
    """Divide the channels of each pixel by their root mean square, and scale them (Zhang & Sennrich 2019)."""

    def __init__(self, dim: int):
        self.scale = nnx.Param(jnp.ones(dim, jnp.float32))

    def __call__(self, x: Image) -> Image:
        """(B, H, W, C) in and out; the mean in float32 at least."""
        # the original bounds the norm from below by 1e-12; bounded squares have a gradient at 0 as well
        squares = jnp.maximum(jnp.square(_exact(x)).sum(-1, keepdims=True), 1e-24)
        return (_exact(x) * jax.lax.rsqrt(squares)).astype(x.dtype) * (self.scale[...] * x.shape[-1] ** 0.5)
