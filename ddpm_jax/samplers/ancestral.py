"""Ancestral sampling: the reverse chain of Ho et al. (2020)."""

from dataclasses import dataclass
from typing import Any, get_args

import jax.numpy as jnp
from jaxtyping import Array, Float

from ddpm_jax.denoisers import Denoiser
from ddpm_jax.errors import UserError
from ddpm_jax.processes import Estimate, GaussianDiffusion, Level, Process, Variance
from ddpm_jax.samplers.base import Sampler, Stepped, levels


def ancestral_step(
    x_t: Float[Array, "b *shape"],
    hat: Estimate,
    t: Level,
    s: Level,
    noise: Float[Array, "b *shape"],
    variance: Variance = "beta",
) -> Float[Array, "b *shape"]:
    """x_t -> x_s by the reverse chain (Ho et al. 2020, eq. 6-7 and algorithm 2), also between times that are not neighbours.

    variance: `beta` = 1 - (alpha_t / alpha_s)^2, `posterior` = beta sigma_s^2 / sigma_t^2, or `learned`, between the two in its
    logarithm (Nichol & Dhariwal 2021, eq. 15). Shapes: x_t, noise (B, ...).
    """
    kept = (s.sigma / t.sigma) ** 2
    # beta / sigma_t^2; near the data, in float32, beta itself would have lost most of its digits
    fresh = 1 - (t.alpha / s.alpha) ** 2 * kept
    mean = s.alpha * fresh * hat.x_0 + t.alpha / s.alpha * kept * x_t
    if variance == "learned":
        assert hat.variance_logit is not None  # `Ancestral.grid` refuses what has none
        upper_share = (hat.variance_logit + 1) / 2
        # sigma_t^share sigma_s^(1 - share), which at the clean end would be 0^0 where the network says 1
        deviation = jnp.where(s.sigma > 0, t.sigma**upper_share * s.sigma ** (1 - upper_share), 0)
    else:
        deviation = t.sigma if variance == "beta" else s.sigma
    return mean + jnp.sqrt(fresh) * deviation * noise


@dataclass(frozen=True)
class Ancestral(Sampler, name="ancestral"):
    """The reverse chain, `ancestral_step`.

    Raises:
        UserError: an unknown variance.
    """

    variance: Variance = "beta"
    """The upper or the lower bound (DDPM, section 3.2), or what the network learned."""

    def __post_init__(self) -> None:
        if self.variance not in get_args(Variance):
            raise UserError(f"variance must be one of {', '.join(get_args(Variance))}; got {self.variance!r}.")

    def misfit(self, process: Process) -> str:
        """A variance that is learned needs a network that learns it."""
        if self.variance != "learned":
            return ""
        if not isinstance(process, GaussianDiffusion):
            return "variance = learned belongs to a diffusion that learns it; flow matching does not."
        return (
            ""
            if process.learned_variance
            else "variance = learned needs a network that learns it: model.learn_variance must be True."
        )

    def step(self, denoise: Denoiser, x_t: Float[Array, "b *shape"], times: Any, noise: Any, memory: Any) -> Stepped:
        """x_t -> x_s."""
        t, s = levels(denoise.process, times, x_t)
        hat = denoise(x_t, times[0])
        return Stepped(ancestral_step(x_t, hat, t, s, noise, self.variance), hat, memory)
