"""The noise that each sample begins with, and that of its steps: its own, in whatever batch it is drawn."""

import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ddpm_jax.errors import UserError


def sample_keys(key: Any, num: int, first: int = 0) -> jax.Array:
    """The keys of the samples first, first + 1, ... of a key, (num,): sample n of a seed has the same noise in any batch."""
    return jax.vmap(jax.random.fold_in, (None, 0))(_as_key(key), np.arange(first, first + num, dtype=np.uint32))


def as_keys(key: Any, num: int) -> jax.Array:
    """A key for each of num samples: a seed or a key gives `sample_keys`, and (num,) keys are those of the samples themselves.

    Where they lie decides where the batch lies.

    Raises:
        UserError: no seed, key or num keys.
    """
    if isinstance(key, jax.ShapeDtypeStruct):  # lowered for devices that are not here
        return key if key.shape else jax.eval_shape(lambda key: sample_keys(key, num), key)
    found = _as_key(key)
    if not found.shape:
        return sample_keys(found, num)
    if found.shape != (num,):
        raise UserError(f"key must be a seed, a key, or a key for each of the {num} samples; got keys {found.shape}.")
    return found


def _as_key(key: Any) -> jax.Array:
    if isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        return key
    if isinstance(key, jax.Array | np.ndarray) and key.dtype == np.uint32 and key.ndim:
        return jax.random.wrap_key_data(jnp.asarray(key))
    try:
        return jax.random.key(operator.index(key))
    except TypeError as error:
        raise UserError(f"key must be a key of jax.random, or a seed; got {key!r}.") from error


def noises(
    keys: jax.Array, shape: tuple[int, ...]
) -> tuple[Float[Array, "b *shape"], Callable[[jax.Array], Float[Array, "b *shape"]]]:
    """The noise that a walk of these samples starts with, and that of its i-th step as a function of i; shape: of one sample."""
    start, steps = jnp.unstack(jax.vmap(jax.random.split)(keys), axis=1)

    def of_step(index: jax.Array) -> jax.Array:
        return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, index), shape))(steps)

    return jax.vmap(lambda key: jax.random.normal(key, shape))(start), of_step
