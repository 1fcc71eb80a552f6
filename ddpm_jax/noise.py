"""Noise by sample: what sample n of a key is given is the same, bit for bit, whatever is drawn beside it."""

import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ddpm_jax.errors import UserError


def sample_keys(key: Any, num: int, first: int = 0) -> jax.Array:
    """The keys of the samples first, first + 1, ... of a key or a seed, (num,): that key folded with the number of each.

    Raises:
        UserError: neither a key nor a seed.
    """
    return jax.vmap(jax.random.fold_in, (None, 0))(as_key(key), np.arange(first, first + num, dtype=np.uint32))


def as_keys(key: Any, num: int) -> Any:
    """A key for each of num samples: those of a seed or a key, or (num,) keys that are the samples' own already.

    Raises:
        UserError: no seed, key or num keys.
    """
    if isinstance(key, jax.ShapeDtypeStruct):  # to be lowered, not run
        return key if key.shape else jax.eval_shape(lambda key: sample_keys(key, num), key)
    found = as_key(key)
    if not found.shape:
        return sample_keys(found, num)
    if found.shape != (num,):
        raise UserError(
            f"key must be a seed, a key, or a key for each of {num} samples; got keys of shape {found.shape}."
        )
    return found


def as_key(key: Any) -> jax.Array:
    """A key of jax.random, of either kind; a whole number is a seed.

    Raises:
        UserError: neither a key nor a seed.
    """
    if isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        return key
    if isinstance(key, jax.Array | np.ndarray) and key.dtype == np.uint32 and key.ndim:  # as of jax.random.PRNGKey
        return jax.random.wrap_key_data(jnp.asarray(key))
    try:
        return jax.random.key(operator.index(key))
    except (TypeError, OverflowError) as error:
        raise UserError(f"key must be a key of jax.random, or a seed; got {key!r}.") from error


def normal(keys: jax.Array, shape: tuple[int, ...]) -> Float[Array, "b *shape"]:
    """Standard normal noise of each key, whose shape is `shape`."""
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)


def of_walk(
    keys: jax.Array, shape: tuple[int, ...]
) -> tuple[Float[Array, "b *shape"], Callable[[jax.Array], Float[Array, "b *shape"]]]:
    """The noise that these samples' walk starts with, and that of each of its steps by the step's index; shape: of one sample."""
    start, steps = jnp.unstack(jax.vmap(jax.random.split)(keys), axis=1)
    return normal(start, shape), lambda index: normal(
        jax.vmap(lambda key: jax.random.fold_in(key, index))(steps), shape
    )
