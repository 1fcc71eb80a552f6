"""Methods of two evaluations a step: Heun's (Karras et al. 2022), and the midpoint method on straight paths."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ddpm_jax.checks import number
from ddpm_jax.denoisers import Denoiser
from ddpm_jax.errors import UserError
from ddpm_jax.processes import Estimate, GaussianDiffusion, Level, Process
from ddpm_jax.samplers.base import Sampler, Stepped, levels
from ddpm_jax.samplers.coordinates import coordinates, karras, linear
from ddpm_jax.samplers.grids import raised


def heun_step(
    x_t: Float[Array, "b *shape"], hat_t: Estimate, hat_s: Estimate, t: Level, s: Level, straight: Any = karras
) -> Float[Array, "b *shape"]:
    """x_t -> x_s with the mean of the slopes at both ends, second order (Karras et al. 2022, algorithm 1).

    hat_s: what the network makes of where Euler's step leads, which is this one with hat_t in its place. straight: `karras`, or
    `linear`.
    """
    scale_t, time_t, slope_t = straight(hat_t, t)
    scale_s, time_s, slope_s = straight(hat_s, s)
    return scale_s * (x_t / scale_t + (time_s - time_t) * (slope_t + slope_s) / 2)


def midpoint_step(
    x_t: Float[Array, "b *shape"], hat: Estimate, t: Level, s: Level, straight: Any = linear
) -> Float[Array, "b *shape"]:
    """x_t -> x_s with the slope that is found in the middle, second order; straight: as of `heun_step`."""
    scale_t, time_t, slope = straight(hat, t)
    scale_s, time_s, _ = straight(hat, s)
    return scale_s * (x_t / scale_t + (time_s - time_t) * slope)


def churned(
    x_s: Float[Array, "b *shape"], s: Level, up: Level, noise: Float[Array, "b *shape"]
) -> Float[Array, "b *shape"]:
    """x_s with as much noise added as lies between two levels, in sigma / alpha (Karras et al. 2022, algorithm 2)."""
    variance = (up.sigma / up.alpha) ** 2 - (s.sigma / s.alpha) ** 2
    # the root of a rounding error would be noise
    added = jnp.where(up.sigma > s.sigma, jnp.sqrt(jnp.maximum(variance, 0)), 0)
    return up.alpha * (x_s / s.alpha + added * noise)


def evaluated_twice(
    denoise: Denoiser,
    x_t: Float[Array, "b *shape"],
    times: tuple[Any, Any],
    onward: Callable[[Estimate], Float[Array, "b *shape"]],
    again: Any = True,
) -> tuple[Estimate, Estimate]:
    """What the denoiser makes of x_t at the first time, and of onward(that) at the second; the first once more where not `again`.

    A loop of two rounds, so that the network is in the program once: written twice, CIFAR-10's takes 23 s to compile instead of 10.
    """
    nothing = jnp.zeros_like(x_t)

    def evaluate(carry: Any, xs: Any) -> tuple[Any, Estimate]:
        x, hat, guess = carry
        time, wanted = xs

        def ask() -> Estimate:
            found = denoise.given(guess)(x, time)
            return Estimate(found.x_0.astype(x_t.dtype), found.eps.astype(x_t.dtype))

        hat = jax.lax.cond(wanted, ask, lambda: hat)
        return (onward(hat).astype(x_t.dtype), hat, None if guess is None else hat.x_0), hat

    rounds = jnp.stack(times), jnp.stack([jnp.array(True), jnp.asarray(again)])
    _, found = jax.lax.scan(evaluate, (x_t, Estimate(nothing, nothing), denoise.guess), rounds)
    first, second = (jax.tree.map(lambda a, k=k: a[k], found) for k in range(2))
    return first, second


@dataclass(frozen=True)
class Heun(Sampler, name="heun"):
    """Heun's method, `heun_step`, in sigma/alpha, or in t on a straight path; the step to the clean end is Euler's. With EDM it is
    algorithm 2 of Karras et al. (2022).

    Raises:
        UserError: a churn that is negative or infinite, or bounds of it that are no two numbers in order.
    """

    churn: float = 0.0
    """Noise that is added anew over the whole walk (S_churn of Karras et al.), on a chain or with EDM."""
    churn_noise: float = 1.0
    """How strong that noise is (S_noise)."""
    churn_min: float = 0.0
    """The least sigma / alpha at which it is added (S_tmin)."""
    churn_max: float | None = None
    """The greatest sigma / alpha at which it is added (S_tmax); None: any."""
    spacing = "karras"

    def __post_init__(self) -> None:
        number("churn_noise", self.churn_noise)
        if not 0 <= number("churn", self.churn) < float("inf"):
            raise UserError(f"churn must not be negative, nor infinite; got {self.churn:g}.")
        least, most = self._churned
        if not 0 <= least <= most:
            raise UserError(
                f"churn_min and churn_max must be two numbers in order, from 0; got {least:g} and {most:g}."
            )

    @property
    def _churned(self) -> tuple[float, float]:
        most = float("inf") if self.churn_max is None else number("churn_max", self.churn_max)
        return number("churn_min", self.churn_min), most

    def misfit(self, process: Process) -> str:
        """Its coordinates are infinite where there is no data."""
        if isinstance(process, GaussianDiffusion) and process.schedule.alphas_cumprod[-1] == 0:
            return "sampler = heun works in sigma / alpha, which is infinite in x_T at a zero terminal SNR."
        return ""

    def grid(self, process: Process, num_steps: int | None = None, spacing: Any = None) -> np.ndarray:
        """Rows (t, s), or with churn (t, s, up), where `up` is the time to which noise is added before the next step."""
        grid = super().grid(process, num_steps, spacing)
        return raised(process, grid, self.churn, self._churned) if self.churn else grid

    def step(self, denoise: Denoiser, x_t: Float[Array, "b *shape"], times: Any, noise: Any, memory: Any) -> Stepped:
        """x_t -> x_s, and with churn up again; a frame shows x_s."""
        process = denoise.process
        straight = coordinates(process)
        t, s, *up = levels(process, times, x_t)
        # no network is trained at the clean end: with its first estimate for the second, the step there is Euler's
        again = times[1] != process.times(1)[-1]
        hat_t, hat_s = evaluated_twice(
            denoise, x_t, (times[0], times[1]), lambda hat: heun_step(x_t, hat, hat, t, s, straight), again
        )
        x_s = heun_step(x_t, hat_t, hat_s, t, s, straight)
        if not up:
            return Stepped(x_s, hat_s)
        return Stepped(churned(x_s, s, up[0], self.churn_noise * noise), hat_s, (), x_s)


@dataclass(frozen=True)
class Midpoint(Sampler, name="midpoint"):
    """The midpoint method, `midpoint_step`: Euler to the middle, then the whole way with the slope found there."""

    def misfit(self, process: Process) -> str:
        """It needs times between timesteps."""
        fits = process.continuous
        return (
            "" if fits else "sampler = midpoint needs times between timesteps, which process.kind = diffusion has not."
        )

    def step(self, denoise: Denoiser, x_t: Float[Array, "b *shape"], times: Any, noise: Any, memory: Any) -> Stepped:
        """x_t -> x_s."""
        t, s = times
        here, middle, there = levels(denoise.process, (t, (t + s) / 2, s), x_t)
        straight = coordinates(denoise.process)
        _, hat = evaluated_twice(
            denoise, x_t, (t, (t + s) / 2), lambda hat: midpoint_step(x_t, hat, here, middle, straight)
        )
        return Stepped(midpoint_step(x_t, hat, here, there, straight), hat)
