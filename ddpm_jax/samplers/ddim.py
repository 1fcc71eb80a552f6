"""DDIM (Song et al. 2021), upwards too, and Euler's method, which is the same step on another grid."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ddpm_jax.checks import number
from ddpm_jax.denoisers import Denoiser
from ddpm_jax.errors import UserError
from ddpm_jax.processes import Estimate, Level
from ddpm_jax.samplers.base import Sampler, Stepped, Walked, finite, levels
from ddpm_jax.samplers.grids import rows


def ddim_step(
    x_t: Float[Array, "b *shape"],
    hat: Estimate,
    t: Level,
    s: Level,
    noise: Float[Array, "b *shape"],
    eta: float = 0.0,
) -> Float[Array, "b *shape"]:
    """x_t -> x_s along the DDIM family (Song et al. 2021, eq. 12 and 16); eta 0 is deterministic, eta 1 ancestral sampling.

    With eta 0 it is Euler's step, in sigma/alpha (Karras et al. 2022) as well as in the time of a linear path, and works upwards
    too; with eta 1 it is the "Euler ancestral" step. Shapes: x_t, noise (B, ...). Requires eta in [0, 1].
    """
    if eta == 0:
        return s.alpha * hat.x_0 + s.sigma * hat.eps
    kept = t.alpha / s.alpha * s.sigma / t.sigma  # of eps by the reverse chain; tiny in long steps from noise
    std = eta * s.sigma * jnp.sqrt(1 - kept**2)
    # sqrt(sigma_s^2 - std^2), which would round a tiny part to none
    rest = s.sigma * jnp.sqrt(1 - eta**2 + (eta * kept) ** 2)
    return s.alpha * hat.x_0 + rest * hat.eps + std * noise


@dataclass(frozen=True)
class DDIM(Sampler, name="ddim"):
    """DDIM, `ddim_step`.

    Raises:
        UserError: eta outside [0, 1].
    """

    eta: float = 0.0
    """Share of fresh noise: 0 deterministic, 1 as the reverse chain."""

    def __post_init__(self) -> None:
        check_share("eta", self.eta)

    def step(self, denoise: Denoiser, x_t: Float[Array, "b *shape"], times: Any, noise: Any, memory: Any) -> Stepped:
        """x_t -> x_s."""
        t, s = levels(denoise.process, times, x_t)
        # a network of intervals says what leads to s, which is this very step
        hat = (denoise if self.eta else denoise.until(times[1]))(x_t, times[0])
        return Stepped(ddim_step(x_t, hat, t, s, noise, self.eta), hat, memory)


@dataclass(frozen=True)
class Euler(DDIM, name="euler"):
    """DDIM on the grid of Karras et al. (2022): Euler's method in sigma/alpha; with eta = 1 it is their "Euler ancestral"."""

    spacing = "karras"


def check_share(name: str, value: float) -> None:
    """Raises UserError unless a share of fresh noise lies in [0, 1]."""
    if not 0 <= number(name, value) <= 1:
        raise UserError(f"{name} must lie in [0, 1]; got {value:g}.")


def ddim_inversion(denoise: Denoiser, x_0: Float[Array, "b *shape"], times: np.ndarray) -> Walked:
    """The noise x_T that deterministic DDIM takes to x_0, by its steps upwards (Song et al. 2021, section 5.4); traceable.

    It is the x_0 of the walk that is returned. times: ascending, the clean end first. The denoiser is asked at the time that is
    left. No network is trained at the clean end of a chain, or of EDM: there the noise is what it sees at the cleanest time.
    """
    process = denoise.process
    clean, first = times[:2]
    eps = denoise(x_0, process.cleanest).eps
    here, there = levels(process, np.asarray([clean, first]), x_0)
    # a chain may end a little short of clean data
    hat = Estimate((x_0 - here.sigma * eps) / here.alpha, eps)
    x_t = ddim_step(x_0, hat, here, there, eps).astype(x_0.dtype)
    walked = DDIM().walk(denoise, x_t, lambda _: jnp.zeros_like(x_0), rows(times[1:]))
    since = jnp.where(walked.broke < 0, -1, walked.broke + 1)
    return walked._replace(num_steps=walked.num_steps + 1, broke=jnp.where(finite(x_0), since, 0))
