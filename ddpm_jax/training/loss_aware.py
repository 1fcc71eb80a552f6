"""Loss-aware timesteps: those whose loss is large are trained more often (Nichol & Dhariwal 2021, section 3.3)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

LENGTH = 10
"""Losses remembered of each timestep."""
UNIFORM_SHARE = 1e-3
"""Share of the draws that are uniform, so that no timestep is forgotten."""


class LossHistory(NamedTuple):
    """The last losses of every timestep, by its index from 0."""

    losses: Float[Array, "T k"]
    """Oldest first; zeros where there are none yet."""
    counts: Int[Array, "T"]
    """How many of them there are."""


def empty(num_steps: int, length: int = LENGTH) -> LossHistory:
    """A history of T = num_steps timesteps that remembers nothing yet."""
    return LossHistory(jnp.zeros((num_steps, length), jnp.float32), jnp.zeros((num_steps,), jnp.int32))


def probabilities(history: LossHistory, uniform_share: float = UNIFORM_SHARE) -> Float[Array, "T"]:
    """How likely each timestep is drawn: as the root mean square of its losses; uniformly until all have a full history."""
    num_steps, length = history.losses.shape
    size = jnp.sqrt((history.losses**2).mean(axis=1))
    aware = (1 - uniform_share) * size / jnp.maximum(size.sum(), jnp.finfo(size.dtype).tiny) + uniform_share / num_steps
    return jnp.where((history.counts == length).all(), aware, 1 / num_steps)


def draw(history: LossHistory, key: jax.Array, n: int) -> tuple[Int[Array, "n"], Float[Array, "n"]]:
    """n indices of timesteps, and for each the weight 1 / (T p) that leaves the expected loss as it is under uniform draws."""
    p = probabilities(history)
    index = jax.random.choice(key, len(p), (n,), p=p)
    return index, 1 / (len(p) * p[index])


def record(history: LossHistory, index: Int[Array, "n"], losses: Float[Array, "n"]) -> LossHistory:
    """The history after the losses of a batch, unweighted, each in turn; the oldest of a full row is dropped."""
    length = history.losses.shape[1]

    def remember(i: Int[Array, ""], history: LossHistory) -> LossHistory:
        row, count = history.losses[index[i]], history.counts[index[i]]
        full = count == length
        row = jnp.where(full, jnp.roll(row, -1), row).at[jnp.minimum(count, length - 1)].set(losses[i])
        counts = history.counts.at[index[i]].set(jnp.minimum(count + 1, length))
        return LossHistory(history.losses.at[index[i]].set(row), counts)

    losses = losses.astype(history.losses.dtype)
    return jax.lax.fori_loop(0, len(index), remember, history)
