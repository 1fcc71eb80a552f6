"""The update and the grid of system 1, which is not the published DDIM."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ddpm_jax.denoisers import Denoiser
from ddpm_jax.errors import UserError
from ddpm_jax.processes import Estimate, GaussianDiffusion, Level, Process
from ddpm_jax.samplers.base import Sampler, Stepped, levels
from ddpm_jax.samplers.ddim import check_share
from ddpm_jax.samplers.grids import chain, rows


def strided_step(
    x_t: Float[Array, "b *shape"],
    hat: Estimate,
    t: Level,
    s: Level,
    noise: Float[Array, "b *shape"],
    eta: float = 0.1,
) -> Float[Array, "b *shape"]:
    """x_t -> x_s as system 1 does: the mean of `ancestral_step`, the posterior *variance* in beta's place, noise times eta.

    On the grid of `strided_times`, whose last time lies above the one before, beta clips to 0 there and x_t is returned as it is.
    Shapes: x_t, noise (B, ...).
    """
    beta = jnp.clip((1 - (t.alpha / s.alpha) ** 2) * (s.sigma / t.sigma) ** 2, 0, 0.999)
    mean = (x_t - beta / t.sigma * hat.eps) / jnp.sqrt(1 - beta)
    return mean + eta * jnp.sqrt(beta) * noise


def strided_times(process: Process, num_steps: int | None = None) -> np.ndarray:
    """System 1's times: tau = first + (0, k, 2k, ... < T) with k = T // num_steps, walked from tau[num_steps - 1] down to tau[0].

    The original then looks up tau[-1] for the time after the last, which wraps around to tau's largest entry; so do these.
    Raises UserError unless 1 <= num_steps <= T, or where the process has no discrete chain.
    """
    schedule = chain(process, "strided")
    num_steps = process.sampling_steps(num_steps)
    tau = schedule.first + np.arange(0, schedule.num_steps, schedule.num_steps // num_steps)
    return np.append(tau[:num_steps][::-1], tau[-1]).astype(np.int32)


@dataclass(frozen=True)
class Strided(Sampler, name="strided"):
    """System 1's, `strided_step` on the grid of `strided_times`.

    Raises:
        UserError: eta outside [0, 1].
    """

    eta: float = 0.1
    """Share of fresh noise."""

    def __post_init__(self) -> None:
        check_share("eta", self.eta)

    def misfit(self, process: Process) -> str:
        """It walks timesteps."""
        fits = isinstance(process, GaussianDiffusion)
        return (
            ""
            if fits
            else f"sampler = strided walks a chain of timesteps, which process.kind = {process.name} has not."
        )

    def grid(self, process: Process, num_steps: int | None = None, spacing: Any = None) -> np.ndarray:
        """Its own times, which it has no choice of."""
        super().grid(process, num_steps)
        if spacing is not None:
            raise UserError(f"sampler = strided has times of its own: spacing must be None; got {spacing!r}.")
        return rows(strided_times(process, num_steps))

    def step(self, denoise: Denoiser, x_t: Float[Array, "b *shape"], times: Any, noise: Any, memory: Any) -> Stepped:
        """x_t -> x_s, which a frame shows as it was before the noise."""
        t, s = levels(denoise.process, times, x_t)
        hat = denoise(x_t, times[0])
        before_noise = strided_step(x_t, hat, t, s, jnp.zeros_like(x_t), self.eta)
        return Stepped(strided_step(x_t, hat, t, s, noise, self.eta), hat, memory, before_noise)
