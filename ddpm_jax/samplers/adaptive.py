"""Sampling of paths in continuous time by an adaptive ODE solver (diffrax): as many evaluations as a tolerance asks for."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ddpm_jax.denoisers import Denoiser
from ddpm_jax.errors import UserError
from ddpm_jax.processes import Process
from ddpm_jax.samplers.base import Sampler, Stepped, Walked, finite
from ddpm_jax.samplers.coordinates import coordinates

MAX_STEPS = 4096
LEAST_STEP = 1e-7
"""A step that would have to be shorter ends in an error: where the velocity is not finite, every step is too long."""
LAST_STEP = 1e-3
"""Where samples are finished by Euler's step at the latest."""
_SAMPLE = "sample"
"""The axis of the samples, each a system of its own, while they are solved together."""


def solve(
    denoise: Denoiser,
    x_T: Float[Array, "b *shape"],
    tolerance: float = 1e-4,
    *,
    start: Any = None,
    num_frames: int = 0,
) -> Walked:
    """Integrate dx/dt, eps - x_0 on a straight path and eps with EDM, from `start` to 0 by Tsit5 (Tsitouras 2011); traceable.

    start: None for the process's noisiest time. tolerance: relative and absolute error per step. Each sample is a system of its
    own, with its own steps, so that none depends on what is solved beside it; the denoiser sees all of them at once, as long as any
    is on its way. A denoiser need not know what it
    believes at t = 0, as one that clips does not: the last step, as long as the tolerance, is Euler's. Keeps num_frames states at
    even times, and counts the accepted and refused steps, of six evaluations each. A sample that could not be solved is not finite.
    """
    import diffrax

    end = max(min(tolerance, LAST_STEP), denoise.process.cleanest)
    start = denoise.process.times(1)[0] if start is None else start
    straight = coordinates(denoise.process)
    controller = _in_powers_of_two(diffrax.PIDController)(
        rtol=tolerance, atol=tolerance, dtmin=LEAST_STEP, force_dtmin=False
    )

    def velocity(t: Any, x: jax.Array, _: Any) -> jax.Array:
        # the denoiser, its labels among it, is of the whole batch
        every_t, every_x = jax.lax.all_gather((jnp.asarray(t, x.dtype), x), _SAMPLE)
        _, _, slope = straight(denoise(every_x, every_t), denoise.process.level(every_t, every_x))
        return slope[jax.lax.axis_index(_SAMPLE)]

    def one(x: jax.Array) -> tuple[jax.Array, jax.Array, dict[str, Any]]:
        saveat = diffrax.SaveAt(
            t1=True
        )  # times of one's own are checked by a callback, which no exported program can have
        if num_frames:
            share = jnp.asarray(np.linspace(1.0, 0.0, num_frames), x_T.dtype)
            saveat = diffrax.SaveAt(ts=share * start + (1 - share) * end)
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(velocity),
            diffrax.Tsit5(),
            t0=start,
            t1=end,
            dt0=None,
            y0=x,
            saveat=saveat,
            stepsize_controller=controller,
            max_steps=MAX_STEPS,
            throw=False,
        )
        assert solution.ys is not None
        return solution.ys, solution.result == diffrax.RESULTS.successful, solution.stats

    states, solved, stats = jax.vmap(one, axis_name=_SAMPLE)(x_T)
    x_0 = denoise(states[:, -1], end).x_0
    x_0 = jnp.where(solved.reshape(-1, *(1,) * (x_0.ndim - 1)), x_0, jnp.nan)
    broke = jnp.where(solved & finite(x_0), -1, stats["num_accepted_steps"] + 1)
    frames = jnp.moveaxis(states.at[:, -1].set(x_0), 1, 0)[: num_frames or 0]
    return Walked(x_0, frames, stats["num_steps"], broke)


def _in_powers_of_two(kind: Any) -> Any:
    """A controller of that kind whose steps are the largest power of two that it allows.

    Where lengths follow the error's every digit, a sample depends on rounding, and so on its batch, by as much as the solver errs.
    """

    def shortened(start: jax.Array, end: jax.Array) -> jax.Array:
        _, exponent = jnp.frexp(end - start)
        return start + jnp.ldexp(jnp.ones_like(end), exponent - 1)

    class InPowersOfTwo(kind):
        def init(self, terms: Any, t0: Any, *rest: Any) -> Any:
            end, state = super().init(terms, t0, *rest)
            return shortened(t0, end), state

        def adapt_step_size(self, *step: Any) -> Any:
            keep, start, end, *rest = super().adapt_step_size(*step)
            return keep, start, shortened(start, end), *rest

    return InPowersOfTwo


@dataclass(frozen=True)
class Adaptive(Sampler, name="adaptive"):
    """An ODE solver that chooses its steps: `solve`. Of a grid it takes the beginning alone; a self-conditioned network sees zeros.

    Raises:
        UserError: a tolerance that is not positive.
    """

    tolerance: float = 1e-4
    """Error allowed in a step."""

    def __post_init__(self) -> None:
        if not self.tolerance > 0:
            raise UserError(f"tolerance must be positive; got {self.tolerance:g}.")

    def misfit(self, process: Process) -> str:
        """It needs times between times."""
        fits = process.continuous
        return "" if fits else "sampler = adaptive needs continuous time, which process.kind = diffusion has not."

    def grid(self, process: Process, num_steps: int | None = None, spacing: Any = None) -> np.ndarray:
        """Any grid that ends at the clean end: the solver begins where it does.

        Raises:
            UserError: as `Sampler.grid`, or diffrax is missing.
        """
        found = super().grid(process, num_steps, spacing)
        if importlib.util.find_spec("diffrax") is None:
            raise UserError('sampler = adaptive needs diffrax: pip install "ddpm-jax[ode]"')
        return found

    def step(self, denoise: Denoiser, x_t: Float[Array, "b *shape"], times: Any, noise: Any, memory: Any) -> Stepped:
        """It chooses its own steps, in `walk`."""
        raise NotImplementedError

    def walk(
        self,
        denoise: Denoiser,
        x_T: Float[Array, "b *shape"],
        noise: Callable[[jax.Array], jax.Array],
        grid: Any,
        num_frames: int = 0,
    ) -> Walked:
        """The whole way from the first time of the grid."""
        return solve(denoise, x_T, self.tolerance, start=jnp.asarray(grid[0, 0], x_T.dtype), num_frames=num_frames)

    def failure(self, bad: str, first: int, grid: np.ndarray, remedies: list[str]) -> str:
        """What to say of samples that were not solved."""
        return (
            f"{bad} samples could not be solved to the tolerance {self.tolerance:g}, the first from step {first} on: they hold NaN "
            f"or infinity, or need more than {MAX_STEPS} steps. Try a larger tolerance, or sampler = heun."
        )
