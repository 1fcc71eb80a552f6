"""Noise by the number of a sample: what sample n of a key is given is the same, bit for bit, whatever is drawn beside it."""

from collections.abc import Callable

import jax
from jaxtyping import Array, Float, Int


def normal(key: jax.Array, numbers: Int[Array, "b"], shape: tuple[int, ...]) -> Float[Array, "b *shape"]:
    """Standard normal noise of each of the numbered samples, whose shape is `shape`: from the key folded with its number."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, numbers)
    return jax.vmap(lambda own: jax.random.normal(own, shape))(keys)


def of_walk(
    key: jax.Array, numbers: Int[Array, "b"], shape: tuple[int, ...]
) -> tuple[Float[Array, "b *shape"], Callable[[jax.Array], Float[Array, "b *shape"]]]:
    """The noise that the numbered samples' walk starts with, and that of each of its steps by the step's index."""
    start, steps = jax.random.split(key)
    return normal(start, numbers, shape), lambda index: normal(jax.random.fold_in(steps, index), numbers, shape)
