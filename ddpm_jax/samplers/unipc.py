"""UniPC (Zhao et al. 2023): each state is corrected by what the network makes of it."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from ddpm_jax.denoisers import Denoiser
from ddpm_jax.processes import Estimate, Level
from ddpm_jax.samplers.base import Sampler, Stepped, levels
from ddpm_jax.samplers.dpm_solver import Past, extrapolated, log_snr, shrunk


def unipc_step(
    x_t: Float[Array, "b *shape"], hat: Estimate, t: Level, s: Level, past: Past
) -> Float[Array, "b *shape"]:
    """x_t -> x_s by UniPC of order 2 with B(h) = e^h - 1 (Zhao et al. 2023): x_t is corrected by what the network makes of it,
    and the next state predicted from there. One evaluation a step.
    """
    corrected = x_t + jnp.where(past.taken > 0, _correction(hat, t, past), 0)
    return s.sigma / t.sigma * corrected + s.alpha * (1 - shrunk(t, s)) * extrapolated(hat, t, s, past)


def _correction(hat: Estimate, t: Level, past: Past) -> Float[Array, "b *shape"]:
    """UniC: what to add to the state at t, predicted from the step before, once the network has seen it.

    Predictor and corrector start from the same x, so their difference needs the estimates alone.
    """
    (one, two), (lambda_1, lambda_2) = past.x_0, past.log_snr
    h = log_snr(t) - lambda_1
    r = (lambda_2 - lambda_1) / h
    back = (two - one) / r
    ahead = hat.x_0 - one
    # the two conditions of order on (rho_back, rho_ahead): sum = b_1, r rho_back + rho_ahead = b_2
    b_zero = jnp.expm1(-h)
    first = b_zero / -h - 1
    b_1 = first / b_zero
    b_2 = 2 * (first / -h - 0.5) / b_zero
    rho_back = (b_2 - b_1) / (r - 1)
    residue = jnp.where(past.taken > 1, rho_back * back + (b_1 - rho_back) * ahead - back / 2, ahead / 2)
    return -t.alpha * b_zero * residue


@dataclass(frozen=True)
class UniPC(Sampler, name="unipc"):
    """UniPC, `unipc_step`."""

    def init(self, x_T: Float[Array, "b *shape"]) -> Past:
        """No estimates yet."""
        return Past.empty(x_T, 2)

    def step(self, denoise: Denoiser, x_t: Float[Array, "b *shape"], times: Any, noise: Any, memory: Any) -> Stepped:
        """x_t -> x_s."""
        t, s = levels(denoise.process, times, x_t)
        hat = denoise(x_t, times[0])
        return Stepped(unipc_step(x_t, hat, t, s, memory), hat, memory.after(hat, t))
