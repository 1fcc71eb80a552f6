"""Sampling of straight paths by an adaptive ODE solver (diffrax): as many evaluations as a tolerance asks for."""

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
from ddpm_jax.processes import LinearPath, Process
from ddpm_jax.samplers.base import Sampler, Stepped, Walked

MAX_STEPS = 4096


def solve(
    denoise: Denoiser,
    x_T: Float[Array, "b *shape"],
    tolerance: float = 1e-4,
    *,
    start: Any = 1.0,
    stop: Any = 0.0,
    num_frames: int = 0,
) -> Walked:
    """Integrate dx/dt = eps - x_0 by Tsit5 (Tsitouras 2011), relative and absolute error per step below tolerance; traceable.

    The batch is one system: its root mean square error decides on the steps. Keeps num_frames states at even times, and counts the
    accepted and refused steps, of six evaluations each.
    """
    import diffrax

    def velocity(t: Any, x: jax.Array, _: Any) -> jax.Array:
        hat = denoise(x, t)
        return hat.eps - hat.x_0

    share = jnp.asarray(np.linspace(1.0, 0.0, max(num_frames, 2)), x_T.dtype)
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(velocity),
        diffrax.Tsit5(),
        t0=start,
        t1=stop,
        dt0=None,
        y0=x_T,
        saveat=diffrax.SaveAt(ts=stop + (start - stop) * share),
        stepsize_controller=diffrax.PIDController(rtol=tolerance, atol=tolerance),
        max_steps=MAX_STEPS,
    )
    assert solution.ys is not None
    return Walked(solution.ys[-1], solution.ys[: num_frames or 0], solution.stats["num_steps"])


@dataclass(frozen=True)
class Adaptive(Sampler, name="adaptive"):
    """An ODE solver that chooses its steps: `solve`. Of a grid it takes the ends alone; a self-conditioned network sees zeros.

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
        fits = isinstance(process, LinearPath)
        return "" if fits else "sampler = adaptive needs continuous time: it fits process.kind = flow or blending alone."

    def grid(self, process: Process, num_steps: int | None = None, spacing: Any = None) -> np.ndarray:
        """Any grid: its ends are where the solver begins and ends.

        Raises:
            UserError: as `Sampler.grid`, or diffrax is missing.
        """
        found = super().grid(process, num_steps, spacing)
        if importlib.util.find_spec("diffrax") is None:
            raise UserError('sampler = adaptive needs diffrax: pip install "ddpm-jax[ode]"')
        return found

    def step(self, denoise: Denoiser, x_t: Float[Array, "b *shape"], times: Any, noise: Any, memory: Any) -> Stepped:
        """x_t -> x_s in as many steps of the solver as it takes."""
        x_s = solve(denoise, x_t, self.tolerance, start=times[0], stop=times[1]).x_0
        return Stepped(x_s, denoise(x_s, times[1]), memory)

    def walk(
        self,
        denoise: Denoiser,
        x_T: Float[Array, "b *shape"],
        noise: Callable[[jax.Array], jax.Array],
        grid: Any,
        num_frames: int = 0,
    ) -> Walked:
        """The whole way at once, whatever lies between the ends of the grid."""
        start, stop = (jnp.asarray(time, x_T.dtype) for time in (grid[0, 0], grid[-1, -1]))
        return solve(denoise, x_T, self.tolerance, start=start, stop=stop, num_frames=num_frames)
