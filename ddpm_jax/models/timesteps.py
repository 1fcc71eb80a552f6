"""Fixed timestep tables of the systems that look their time up, float64 on the host, and what adds a row of them to an image."""

import functools
from typing import Literal

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Num

from ddpm_jax.errors import UserError
from ddpm_jax.models.layers import Vector, linear


@functools.cache
def convnext_table(num_steps: int, dim: int) -> np.ndarray:
    """Rows t = 0..T of system 1: sin (even columns) and cos (odd) of (t + 1) / 10000^(k / dim) with k = 2, 2, 4, 4, ..., dim."""
    k = 2 * (np.arange(dim) // 2 + 1)
    angles = np.arange(1, num_steps + 2)[:, None] * 1e-4 ** (k / dim)
    return np.where(np.arange(dim) % 2 == 0, np.sin(angles), np.cos(angles))


@functools.cache
def timestep_table(num_steps: int, dim: int, form: Literal["original", "sinusoidal"]) -> np.ndarray:
    """Rows t = 0..T-1 of system 2.

    `sinusoidal` is the textbook's: sin in even columns, cos in odd, of t / 10000^(2 (column // 2) / dim). `original` is what
    the published weights were trained with: with R[i, j] = i / 10000^(2j / dim), even rows r hold sin(R[r]), and odd rows
    cos(sin(R[(1 - r) mod T])).
    """
    rows, columns = np.arange(num_steps), np.arange(dim)
    if form == "sinusoidal":
        angles = rows[:, None] / 10000 ** (2 * (columns // 2) / dim)
        return np.where(columns % 2 == 0, np.sin(angles), np.cos(angles))
    sines = np.sin(rows[:, None] / 10000 ** (2 * columns / dim))
    return np.where(rows[:, None] % 2 == 0, sines, np.cos(sines[(1 - rows) % num_steps]))


def check_table(num_steps: int, form: str) -> None:
    """Raise UserError where a table of this form has no row for each t."""
    if form == "original" and num_steps % 2:
        raise UserError(f"num_steps must be even with the original timestep table; got {num_steps}.")


def look_up(table: np.ndarray, t: Num[Array, "b"], dtype: jnp.dtype) -> Float[Array, "b d"]:
    """The rows of t, cast once to the dtype; for a t between two rows, the point on the line that joins them."""
    rows = jnp.asarray(table, dtype)
    if jnp.issubdtype(t.dtype, jnp.integer):
        return rows[t]
    below = jnp.floor(t).astype(jnp.int32).clip(0, len(table) - 2)
    share = (t - below).astype(dtype)[:, None]
    return (1 - share) * rows[below] + share * rows[below + 1]


class TimeProj(nnx.Module):
    """Table row -> a number for each channel: linear, SiLU, linear."""

    def __init__(self, time_dim: int, dim: int, *, rngs: nnx.Rngs):
        self.linear1 = linear(time_dim, dim, rngs=rngs)
        self.linear2 = linear(dim, dim, rngs=rngs)

    def __call__(self, time: Vector) -> Float[Array, "b 1 1 c"]:
        """(B, d) -> (B, 1, 1, C)."""
        return self.linear2(nnx.silu(self.linear1(time)))[:, None, None, :]
