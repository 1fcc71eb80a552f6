"""DPM-Solver++ (Lu et al. 2022b): one evaluation a step, and what was believed in the steps before."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ddpm_jax import display
from ddpm_jax.denoisers import Denoiser
from ddpm_jax.errors import UserError
from ddpm_jax.processes import Estimate, Level
from ddpm_jax.samplers.base import Sampler, Stepped, levels


class Past(NamedTuple):
    """The walk so far, as far as a method looks back."""

    x_0: tuple[Float[Array, "b *shape"], ...]
    """Earlier estimates of x_0, the latest first; zeros before there are so many."""
    log_snr: tuple[Float[Array, "..."], ...]
    """lambda where they were made."""
    taken: Int[Array, ""]
    """How many steps were taken."""

    def __repr__(self) -> str:
        return display.of_fields(self)

    @classmethod
    def empty(cls, x_T: Float[Array, "b *shape"], depth: int) -> "Past":
        """The beginning of a walk, for a method that looks back at `depth` estimates."""
        nowhere = jnp.zeros((1,) * x_T.ndim, x_T.dtype)
        return cls((jnp.zeros_like(x_T),) * depth, (nowhere,) * depth, jnp.zeros((), jnp.int32))

    def after(self, hat: Estimate, t: Level) -> "Past":
        """The walk one step further."""
        before = self.x_0[0]
        x_0 = (hat.x_0.astype(before.dtype), *self.x_0[:-1])
        return Past(x_0, (log_snr(t).astype(before.dtype), *self.log_snr[:-1]), self.taken + 1)


def log_snr(level: Level) -> Float[Array, "..."]:
    """lambda = log(alpha / sigma): minus infinity where there is no data, infinity where there is no noise."""
    return jnp.log(level.alpha) - jnp.log(level.sigma)


def shrunk(t: Level, s: Level) -> Float[Array, "..."]:
    """e^-h with h = lambda_s - lambda_t; 0 to the clean end and from pure noise."""
    return s.sigma / t.sigma * (t.alpha / s.alpha)


def extrapolated(hat: Estimate, t: Level, s: Level, past: Past) -> Float[Array, "b *shape"]:
    """x_0 halfway to s by the line through its last two estimates; the last one where there is one only, and to the clean end."""
    lambda_t = log_snr(t)
    half = (log_snr(s) - lambda_t) / (lambda_t - past.log_snr[0]) / 2
    usable = (past.taken > 0) & (s.sigma > 0)
    return hat.x_0 + jnp.where(usable, half, 0) * (hat.x_0 - past.x_0[0])


def dpmpp_2m_step(
    x_t: Float[Array, "b *shape"], hat: Estimate, t: Level, s: Level, past: Past
) -> Float[Array, "b *shape"]:
    """x_t -> x_s by DPM-Solver++(2M), second order (Lu et al. 2022b, algorithm 2)."""
    return s.sigma / t.sigma * x_t + s.alpha * (1 - shrunk(t, s)) * extrapolated(hat, t, s, past)


def dpmpp_2m_sde_step(
    x_t: Float[Array, "b *shape"], hat: Estimate, t: Level, s: Level, noise: Float[Array, "b *shape"], past: Past
) -> Float[Array, "b *shape"]:
    """x_t -> x_s by SDE-DPM-Solver++(2M): fresh noise at every step (Lu et al. 2022b, section 5)."""
    shrink = shrunk(t, s)
    fresh = 1 - shrink**2
    kept = s.sigma / t.sigma * shrink * x_t
    return kept + s.alpha * fresh * extrapolated(hat, t, s, past) + s.sigma * jnp.sqrt(fresh) * noise


def dpmpp_3m_step(
    x_t: Float[Array, "b *shape"], hat: Estimate, t: Level, s: Level, past: Past
) -> Float[Array, "b *shape"]:
    """x_t -> x_s by DPM-Solver++(3M), third order once three estimates are there (Lu et al. 2022b).

    The second derivative of x_0 is twice its divided difference. The reference code and diffusers leave that 2 out, and are of
    second order for it.
    """
    one, two = past.x_0
    lambda_t, (lambda_1, lambda_2) = log_snr(t), past.log_snr
    h = log_snr(s) - lambda_t
    r_1, r_2 = (lambda_t - lambda_1) / h, (lambda_1 - lambda_2) / h
    has_1 = past.taken > 0
    has_2 = past.taken > 1
    slope_1 = jnp.where(has_1, (hat.x_0 - one) / r_1, 0)
    bend = jnp.where(has_2, slope_1 - (one - two) / r_2, 0)
    slope = slope_1 + jnp.where(has_2, r_1 / (r_1 + r_2), 0) * bend
    curve = jnp.where(has_2, 2 * bend / (r_1 + r_2), 0)
    phi_1 = jnp.expm1(-h)
    phi_2 = phi_1 / h + 1
    phi_3 = phi_2 / h - 0.5
    first = s.sigma / t.sigma * x_t + s.alpha * (1 - shrunk(t, s)) * hat.x_0
    # without two estimates the second order is that of `dpmpp_2m_step`
    second = jnp.where(has_2, phi_2, -phi_1 / 2) * slope
    higher = s.alpha * (second - jnp.where(has_2, phi_3, 0) * curve)
    return first + jnp.where((s.sigma > 0) & has_1, higher, 0)


@dataclass(frozen=True)
class DPMSolver(Sampler, name="dpmpp"):
    """DPM-Solver++ in its multistep form.

    Raises:
        UserError: another order than 2 or 3, or an SDE of order 3.
    """

    order: int = 2
    """How fast the error falls with the steps' size: 2 or 3."""
    sde: bool = False
    """Fresh noise at every step, of order 2."""

    def __post_init__(self) -> None:
        if self.order not in (2, 3):
            raise UserError(f"order must be 2 or 3; got {self.order!r}.")
        if self.sde and self.order != 2:
            raise UserError(f"sde = True is of order 2; got order = {self.order}.")

    def init(self, x_T: Float[Array, "b *shape"]) -> Past:
        """No estimates yet."""
        return Past.empty(x_T, self.order - 1)

    def step(self, denoise: Denoiser, x_t: Float[Array, "b *shape"], times: Any, noise: Any, memory: Any) -> Stepped:
        """x_t -> x_s."""
        t, s = levels(denoise.process, times, x_t)
        hat = denoise(x_t, times[0])
        if self.sde:
            x_s = dpmpp_2m_sde_step(x_t, hat, t, s, noise, memory)
        else:
            x_s = (dpmpp_2m_step if self.order == 2 else dpmpp_3m_step)(x_t, hat, t, s, memory)
        return Stepped(x_s, hat, memory.after(hat, t))
