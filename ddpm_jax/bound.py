"""The variational bound on the likelihood, one timestep at a time, in bits per dimension."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

BITS = float(1 / np.log(2.0))  # a NumPy scalar would make float64 of float32
LEAST = 1e-12
"""Probabilities are taken for no smaller than this."""


def normal_kl(
    mean: Float[Array, "b *shape"],
    log_variance: Float[Array, "..."],
    other_mean: Float[Array, "b *shape"] | float,
    other_log_variance: Float[Array, "..."] | float,
) -> Float[Array, "b"]:
    """KL(N(mean, variance) || N(other mean, other variance)) in bits per dimension; diagonal, shapes broadcast."""
    kl = 0.5 * (
        other_log_variance
        - log_variance
        + jnp.exp(log_variance - other_log_variance)
        + (mean - other_mean) ** 2 * jnp.exp(-other_log_variance)
        - 1
    )
    return _per_dimension(jnp.broadcast_to(kl, mean.shape))


def prior(x_0: Float[Array, "b *shape"], alphas_cumprod: float) -> Float[Array, "b"]:
    """KL(q(x_T | x_0) || N(0, 1)), the part that no network changes; alphas_cumprod: A_T (DDPM, eq. 5, L_T)."""
    mean = jnp.asarray(np.sqrt(alphas_cumprod), x_0.dtype) * x_0
    return normal_kl(mean, jnp.asarray(np.log1p(-alphas_cumprod), x_0.dtype), 0.0, 0.0)


def decoder(
    x_0: Float[Array, "b *shape"], mean: Float[Array, "b *shape"], log_variance: Float[Array, "..."]
) -> Float[Array, "b"]:
    """-log p(x_0) of 8-bit data in [-1, 1] under a normal distribution cut into bins 2/255 wide (DDPM, eq. 13).

    The outermost bins reach to infinity. Probabilities below 1e-12 count as that.
    """
    inverse_std = jnp.exp(-0.5 * log_variance)
    upper = inverse_std * (x_0 - mean + 1 / 255)
    lower = inverse_std * (x_0 - mean - 1 / 255)
    cdf = jax.scipy.stats.norm.cdf
    # above the mean, differences of 1 - cdf keep the digits that cdf has lost
    inside = jnp.where(lower > 0, cdf(-lower) - cdf(-upper), cdf(upper) - cdf(lower))
    probability = jnp.where(x_0 < -0.999, cdf(upper), jnp.where(x_0 > 0.999, cdf(-lower), inside))
    return _per_dimension(-jnp.log(jnp.maximum(probability, LEAST)))


def _per_dimension(nats: Float[Array, "b *shape"]) -> Float[Array, "b"]:
    return nats.mean(axis=tuple(range(1, nats.ndim))) * BITS
