"""The products of softmax attention, also for images so large that their weights do not fit in memory."""

import functools
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
from einops import rearrange
from jax import lax
from jaxtyping import Array, Float

from ddpm_jax import cpu_forms

_HUGE = 2**26
"""Weights in a head above which they are never held together: those of an image of 224x224 would take 10 GB."""
_PART = 2**22
"""Weights of each head computed at a time then, at most."""


def heads(qkv: Float[Array, "b h w c"], num: int, axes: str) -> tuple[Array, ...]:
    """Queries, keys and values of a map that holds them one after the other, each (B, num, *axes); axes: "(h w) d" or "d (h w)".

    The gradient of a split is one concatenation; that of taking them out of one rearranged array, a sum of three padded ones.
    """
    return tuple(rearrange(part, f"b h w (n d) -> b n {axes}", n=num) for part in jnp.split(qkv, 3, axis=-1))


def attend(
    q: Float[Array, "b heads q d"], k: Float[Array, "b heads k d"], v: Float[Array, "b heads k d"]
) -> Float[Array, "b heads q d"]:
    """softmax(q k^T / sqrt(d)) v (Vaswani et al. 2017, eq. 1), in the dtype of q.

    Very many weights are computed for a part of the queries at a time. In 16 bits, a program for NVIDIA GPUs has cuDNN's fused
    attention, where cuDNN is known to take the head: it is asked where there is a GPU; elsewhere jax, if it has the CUDA plugin, by
    the rules for GPUs of every age. Within `cpu_forms.forwards` it has not: cuDNN's has no forward derivative.
    """
    whole = _at_once if q.shape[2] * k.shape[2] <= _HUGE else _by_queries
    if cpu_forms.fused() and _cudnn_takes(q.shape[2], k.shape[2], q.shape[3], q.dtype):
        return lax.platform_dependent(q, k, v, cuda=_fused, default=whole)
    return whole(q, k, v)


def _plain(q: Array, k: Array, v: Array) -> Array:
    # not jax.nn.dot_product_attention: its softmax is in float32 even for float64
    weights = jax.nn.softmax(jnp.einsum("bnqd,bnkd->bnqk", q, k) / math.sqrt(q.shape[-1]))
    return jnp.einsum("bnqk,bnkd->bnqd", weights, v)


_at_once = cpu_forms.on_cpu(cpu_forms.attention)(_plain)


@functools.cache
def _cudnn_takes(queries: int, keys: int, width: int, dtype: Any) -> bool:
    """Whether cuDNN has a program for such a head, and for its gradient."""
    if dtype not in (jnp.bfloat16, jnp.float16):
        return False
    q, k = (jax.ShapeDtypeStruct((1, 1, n, width), dtype) for n in (queries, keys))
    try:
        gradient = jax.jit(jax.grad(lambda *qkv: _fused(*qkv).sum(), argnums=(0, 1, 2))).trace(q, k, k)
        if jax.default_backend() == "gpu":
            gradient.lower().compile()
    except (NotImplementedError, RuntimeError, ValueError):
        return False
    return True


def _fused(q: Array, k: Array, v: Array, implementation: Literal["cudnn", "xla"] = "cudnn") -> Array:
    q, k, v = (jnp.swapaxes(a, 1, 2) for a in (q, k, v))
    return jnp.swapaxes(jax.nn.dot_product_attention(q, k, v, implementation=implementation), 1, 2)


def _by_queries(q: Array, k: Array, v: Array) -> Array:
    batch, heads, queries, width = q.shape
    rows = max(1, _PART // k.shape[2])
    while queries % rows:
        rows -= 1
    part = jax.checkpoint(lambda q: _plain(q, k, v), prevent_cse=False)  # a loop's body is apart from the rest as it is
    parts = jnp.moveaxis(q.reshape(batch, heads, queries // rows, rows, width), 2, 0)
    return jnp.moveaxis(jax.lax.map(part, parts), 0, 2).reshape(batch, heads, queries, v.shape[3])
