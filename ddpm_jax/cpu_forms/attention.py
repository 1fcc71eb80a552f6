"""Softmax attention in blocks of heads, for many weights.

They are computed for a few heads at a time, are divided by their sum after the product rather than before, and are computed again
for the gradient.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from ddpm_jax.cpu_forms.switch import in_use

_MANY = 2**16
"""Weights in a head from which on they take more time to write and read than to compute."""
_BLOCK = 2**20
"""Weights computed at a time, at most, but for those of one head: what stays in the caches."""


def attention(
    q: Float[Array, "b heads q d"], k: Float[Array, "b heads k d"], v: Float[Array, "b heads k d"]
) -> Float[Array, "b heads q d"] | None:
    """softmax(q k^T / sqrt(d)) v; None for few weights."""
    return _in_blocks(q, k, v) if in_use("attention") and q.shape[2] * k.shape[2] >= _MANY else None


def _in_blocks(q: Array, k: Array, v: Array) -> Array:
    batch, heads, queries, _ = q.shape

    @jax.checkpoint
    def head(qkv: tuple[Array, Array, Array]) -> Array:
        q, k, v = qkv
        logits = (q / math.sqrt(q.shape[-1])) @ k.T
        weights = jnp.exp(logits - lax.stop_gradient(logits.max(axis=-1, keepdims=True)))
        return weights @ v / weights.sum(axis=-1, keepdims=True)

    flat = tuple(a.reshape(batch * heads, *a.shape[2:]) for a in (q, k, v))
    together = max(1, _BLOCK // (queries * k.shape[2]))
    while batch * heads % together:  # a remainder would be a second program
        together -= 1
    return lax.map(head, flat, batch_size=together).reshape(q.shape[:3] + v.shape[3:])
