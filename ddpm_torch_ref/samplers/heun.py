"""Methods that look at the network twice in a step: Heun's, and the midpoint rule."""

from dataclasses import dataclass
from math import inf, log, sqrt
from typing import Any, ClassVar

from torch import Tensor

from ddpm_torch_ref.denoisers import Denoiser
from ddpm_torch_ref.processes import FlowMatching, GaussianDiffusion, Process
from ddpm_torch_ref.samplers.euler import check_signal, euler_step, straight_euler_step, tau
from ddpm_torch_ref.samplers.sampler import Row, Sampler, Stepped, levels


@dataclass(frozen=True)
class Heun(Sampler):
    """Heun's method: the mean of the slopes at both ends of a step; the step to the clean end is Euler's.

    With churn, each step first goes back up to tau hat = tau (1 + gamma) by fresh noise, gamma = min(churn/n, sqrt(2) - 1) where
    churn_min <= tau <= churn_max. The network being trained on a chain, tau hat is rounded, in log tau, to that of a valid time no
    earlier than t: churn that is smaller than half a step of the chain does nothing. The rows of its grid are (t, t hat, s).

    Args:
        churn: at least 0; on a straight path 0.
        churn_min: in units of tau.
        churn_max: in units of tau.
        churn_noise: standard deviation of the noise, 1 or a little more.

    Raises:
        ValueError: churn < 0, or infinite.

    Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative Models", algorithm 2.
    """

    churn: float = 0.0
    churn_min: float = 0.0
    churn_max: float = inf
    churn_noise: float = 1.0

    spacing: ClassVar[str] = "karras"
    """The grid of Karras et al.."""

    def __post_init__(self) -> None:
        if not 0 <= self.churn < inf:
            raise ValueError(f"churn must be at least 0, and finite; got {self.churn}.")

    def grid(self, process: Process, num_steps: int | None = None, spacing: str | None = None) -> list[Row]:
        """Rows (t, s), or with churn (t, t hat, s).

        Raises:
            ValueError: churn on a straight path; on a chain, alpha is 0 at the first time; and as `Sampler.grid`.
        """
        return self.churned(process, super().grid(process, num_steps, spacing))

    def churned(self, process: Process, rows: list[Row]) -> list[Row]:
        """Rows (t, s) with the time to go back up to in their middle, where there is churn.

        Raises:
            ValueError: churn on a straight path; on a chain, alpha is 0 at the first time.
        """
        if isinstance(process, FlowMatching):
            if self.churn > 0:
                raise ValueError(f"churn must be 0 on a straight path, where tau may be infinite; got {self.churn}.")
            return rows
        check_signal(process, rows[0][0])
        if self.churn == 0:
            return rows
        gamma = min(self.churn / len(rows), sqrt(2) - 1)
        raised: list[Row] = []
        for t, s in rows:
            tau_t = tau(process.level(t))
            inside = self.churn_min <= tau_t <= self.churn_max
            raised.append((t, _nearest_later(process, t, tau_t * (1 + gamma)) if inside else t, s))
        return raised

    def step(self, denoise: Denoiser, x_t: Tensor, times: Row, noise: Tensor, memory: Any) -> Stepped:
        """Up by noise, to s by Euler's method, and again with the mean of both slopes."""
        process = denoise.process
        t_hat, s = times[-2:]
        here, there = levels(process, (t_hat, s))
        if t_hat > times[0]:
            start = process.level(times[0])
            raised = self.churn_noise * sqrt(tau(here) ** 2 - tau(start) ** 2) * noise
            x_t = here.alpha * (x_t / start.alpha + raised)

        straight = isinstance(process, FlowMatching)
        hat = denoise(x_t, t_hat)
        x_s = (straight_euler_step if straight else euler_step)(x_t, hat, here, there)
        if s == process.clean_end:
            return Stepped(x_s, hat)
        hat_s = denoise.given(hat.x_0)(x_s, s)
        if straight:
            velocity = (hat.eps - hat.x_0 + hat_s.eps - hat_s.x_0) / 2
            return Stepped(x_t + (s - t_hat) * velocity, hat_s)
        y = x_t / here.alpha + (tau(there) - tau(here)) * (hat.eps + hat_s.eps) / 2
        return Stepped(there.alpha * y, hat_s)


@dataclass(frozen=True)
class Midpoint(Sampler):
    """The midpoint rule on a straight path: the velocity is taken half-way between t and s.

    Runge 1895; of second order.
    """

    def grid(self, process: Process, num_steps: int | None = None, spacing: str | None = None) -> list[Row]:
        """As every sampler's.

        Raises:
            ValueError: a process that has no time between two of its times; and as `Sampler.grid`.
        """
        if not isinstance(process, FlowMatching):
            raise ValueError(
                f"process must be FlowMatching or AlphaBlending, whose times are real; got {type(process).__name__}."
            )
        return super().grid(process, num_steps, spacing)

    def step(self, denoise: Denoiser, x_t: Tensor, times: Row, noise: Tensor, memory: Any) -> Stepped:
        """Half-way by Euler's method, and the whole way with the velocity found there."""
        t, s = times
        hat = denoise(x_t, t)
        x_middle = x_t + (s - t) / 2 * (hat.eps - hat.x_0)
        hat = denoise.given(hat.x_0)(x_middle, (t + s) / 2)
        return Stepped(x_t + (s - t) * (hat.eps - hat.x_0), hat)


def _nearest_later(process: GaussianDiffusion, t: float, tau_hat: float) -> int:
    """The valid time, not below t, whose log tau is nearest to that of tau hat; the smaller of two as near."""
    candidates = [int(later) for later in process.schedule.timesteps if later >= t and process.level(later).alpha > 0]
    return min(candidates, key=lambda later: abs(log(tau(process.level(later))) - log(tau_hat)))
