"""Methods that look at the network twice in a step: Heun's, and the midpoint rule."""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf, log, sqrt
from typing import Any, ClassVar

from torch import Tensor

from ddpm_torch_ref.denoisers import Denoiser
from ddpm_torch_ref.processes import EDM, Estimate, GaussianDiffusion, Level, LinearPath, Process
from ddpm_torch_ref.samplers.base import Sampler, Stepped, levels
from ddpm_torch_ref.samplers.ddim import euler_step, straight_euler_step, tau
from ddpm_torch_ref.samplers.grids import Row

Slope = tuple[float, float, Tensor]
"""(scale, time, slope): x = scale y, dy/dtime = slope."""


def karras(hat: Estimate, level: Level) -> Slope:
    """y = x/alpha over tau, with the slope eps (Karras et al. 2022, table 1, of the variance-preserving chain)."""
    return level.alpha, tau(level), hat.eps


def linear(hat: Estimate, level: Level) -> Slope:
    """A straight path over its own time, with its velocity."""
    return 1.0, level.sigma, hat.eps - hat.x_0


def heun_step(
    x_t: Tensor,
    hat_t: Estimate,
    hat_s: Estimate,
    t: Level,
    s: Level,
    straight: Callable[[Estimate, Level], Slope] = karras,
) -> Tensor:
    """x_t -> x_s with the mean of the slopes at both ends.

    Args:
        x_t: (B, C, H, W) images at t.
        hat_t: the estimate there.
        hat_s: the estimate where Euler's step leads.
        t: the level that is left.
        s: the level that is gone to.
        straight: in which coordinates the way is nearly straight: `karras`, or `linear`.

    Karras et al. 2022, algorithm 1.
    """
    scale_t, time_t, slope_t = straight(hat_t, t)
    scale_s, time_s, slope_s = straight(hat_s, s)
    return scale_s * (x_t / scale_t + (time_s - time_t) * (slope_t + slope_s) / 2)


def midpoint_step(
    x_t: Tensor, hat: Estimate, t: Level, s: Level, straight: Callable[[Estimate, Level], Slope] = linear
) -> Tensor:
    """x_t -> x_s with the slope that was found in the middle, in the coordinates that are given."""
    return (straight_euler_step if straight is linear else euler_step)(x_t, hat, t, s)


@dataclass(frozen=True)
class Heun(Sampler):
    """Heun's method: the mean of the slopes at both ends of a step; the step to the clean end is Euler's.

    With churn, each step but the last goes back up from s to tau hat = tau (1 + gamma) by fresh noise, gamma = min(churn/n,
    sqrt(2) - 1), from where the next one starts. The network being trained on a chain, tau hat is rounded, in log tau, to that of
    a valid time no earlier than s: churn that is smaller than half a step of the chain does nothing. The rows of its grid are
    then (t, s, s hat); its states are those before the noise. EDM's times are not rounded, and its walk starts at tau hat too: what
    the paper adds before its first step belongs to x_T here.

    Args:
        churn: at least 0; on a straight path 0.
        churn_noise: standard deviation of the noise, 1 or a little more.
        churn_min: the smallest tau that is raised, at least 0.
        churn_max: the largest; None: no bound.

    Raises:
        ValueError: churn < 0, or infinite; churn_min < 0, or above churn_max.

    Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative Models", algorithm 2.
    """

    churn: float = 0.0
    churn_noise: float = 1.0
    churn_min: float = 0.0
    churn_max: float | None = None

    spacing: ClassVar[str] = "karras"
    """The grid of Karras et al.."""

    def __post_init__(self) -> None:
        if not 0 <= self.churn < inf:
            raise ValueError(f"churn must be at least 0, and finite; got {self.churn}.")
        if not 0 <= self.churn_min <= self._churn_max:
            raise ValueError(f"churn_min must lie between 0 and churn_max; got {self.churn_min} and {self.churn_max}.")

    @property
    def _churn_max(self) -> float:
        return inf if self.churn_max is None else self.churn_max

    def misfit(self, process: Process) -> str:
        """Tau has to be finite, and churn needs timesteps."""
        if isinstance(process, LinearPath) and self.churn > 0:
            return f"churn must be 0 on a straight path, where tau may be infinite; got {self.churn}."
        if isinstance(process, GaussianDiffusion) and process.schedule.alphas_cumprod[-1] == 0:
            return "process must have alpha above 0 at its last time for Heun, which walks in sigma/alpha; got 0."
        return ""

    def grid(self, process: Process, num_steps: int | None = None, spacing: Any = None) -> list[Row]:
        """Rows (t, s), or with churn (t, s, s hat)."""
        rows = super().grid(process, num_steps, spacing)
        if self.churn == 0:
            return rows
        gamma = min(self.churn / len(rows), sqrt(2) - 1)

        def up(t: float) -> float:
            here = tau(process.level(t))
            if not self.churn_min <= here <= self._churn_max:
                return t
            return t + gamma * t if isinstance(process, EDM) else _nearest_later(process, t, (1 + gamma) * here)

        start, churned = up(rows[0][0]) if isinstance(process, EDM) else rows[0][0], []
        for _, s in rows[:-1]:
            churned.append((start, s, up(s)))
            start = churned[-1][2]
        clean = rows[-1][1]
        return [*churned, (start, clean, clean)]

    def step(self, denoise: Denoiser, x_t: Tensor, times: Row, noise: Tensor, memory: Any) -> Stepped:
        """To s by Euler's method, again with the mean of both slopes, and back up by noise."""
        process = denoise.process
        t, s, *up = levels(process, times)
        straight = isinstance(process, LinearPath)
        hat = denoise(x_t, times[0])
        x_s = (straight_euler_step if straight else euler_step)(x_t, hat, t, s)
        if times[1] != process.times(1)[-1]:  # no network knows the clean end: the step there is Euler's
            hat_t, hat = hat, denoise.given(hat.x_0)(x_s, times[1])
            x_s = heun_step(x_t, hat_t, hat, t, s, linear if straight else karras)
        if not up:
            return Stepped(x_s, hat)
        added = self.churn_noise * sqrt(tau(up[0]) ** 2 - tau(s) ** 2) * noise
        return Stepped(up[0].alpha * (x_s / s.alpha + added), hat, shown=x_s)


@dataclass(frozen=True)
class Midpoint(Sampler):
    """The midpoint rule, in continuous time: the slope is taken half-way between t and s.

    Runge 1895; of second order.
    """

    def misfit(self, process: Process) -> str:
        """It needs a time between two of a grid."""
        if process.continuous:
            return ""
        return f"process must be one in continuous time; got {type(process).__name__}."

    def step(self, denoise: Denoiser, x_t: Tensor, times: Row, noise: Tensor, memory: Any) -> Stepped:
        """Half-way by Euler's method, and the whole way with the slope found there."""
        straight = linear if isinstance(denoise.process, LinearPath) else karras
        t, s = times
        here, middle, there = levels(denoise.process, (t, (t + s) / 2, s))
        hat = denoise(x_t, t)
        hat = denoise.given(hat.x_0)(midpoint_step(x_t, hat, here, middle, straight), (t + s) / 2)
        return Stepped(midpoint_step(x_t, hat, here, there, straight), hat)


def _nearest_later(process: Any, t: float, tau_hat: float) -> int:
    """The valid time, not below t, whose log tau is nearest to that of tau hat; the smaller of two as near."""
    candidates = [int(later) for later in process.schedule.timesteps if later >= t and process.level(later).alpha > 0]
    return min(candidates, key=lambda later: abs(log(tau(process.level(later))) - log(tau_hat)))
