"""The sampler of system 1."""

from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddpm_torch_ref.denoisers import Denoiser
from ddpm_torch_ref.processes import Estimate, GaussianDiffusion, Level, Process
from ddpm_torch_ref.samplers.base import Sampler, Stepped, levels
from ddpm_torch_ref.samplers.ddim import check_share
from ddpm_torch_ref.samplers.grids import Row, chain, rows


def strided_step(x_t: Tensor, hat: Estimate, t: Level, s: Level, noise: Tensor, eta: float = 0.1) -> Tensor:
    """x_t -> x_s as in system 1: the ancestral mean, with the posterior variance in place of beta; not the published DDIM.

    Args:
        x_t: (B, C, H, W) images at t.
        hat: the estimate there.
        t: the level that is left.
        s: the next one of the grid. A later one leaves x_t as it is: the last of `strided_times` is such.
        noise: (B, C, H, W) standard normal; zeros for the mean alone.
        eta: share of fresh noise, in [0, 1].
    """
    beta = (1 - (t.alpha / s.alpha) ** 2) * (s.sigma / t.sigma) ** 2
    beta = min(max(beta, 0.0), 0.999)
    mean = (x_t - beta / t.sigma * hat.eps) / sqrt(1 - beta)
    return mean + eta * sqrt(beta) * noise


def strided_times(process: Process, num_steps: int | None = None) -> NDArray[np.int64]:
    """(num_steps + 1,) times of system 1: num_steps descending ones, T // num_steps apart, down to the first valid t.

    Then the original's index -1 wraps to the end of its list first, first + k, first + 2k, … (all below first + T): the grid
    ends with that late time, to which `strided_step` does not move.

    Raises:
        ValueError: num_steps out of range, or a process without timesteps.
    """
    schedule, num_steps = chain(process, "strided"), process.sampling_steps(num_steps)
    tau = schedule.timesteps[:: schedule.num_steps // num_steps]
    return np.append(tau[:num_steps][::-1], tau[-1])


@dataclass(frozen=True)
class Strided(Sampler):
    """The sampler of system 1, on its own grid; its frames are the states before their noise.

    Args:
        eta: share of fresh noise, in [0, 1].

    Raises:
        ValueError: eta outside [0, 1].
    """

    eta: float = 0.1

    def __post_init__(self) -> None:
        check_share("eta", self.eta)

    def misfit(self, process: Process) -> str:
        """It walks timesteps."""
        fits = isinstance(process, GaussianDiffusion)
        return (
            "" if fits else f"process must be a GaussianDiffusion, which has timesteps; got {type(process).__name__}."
        )

    def grid(self, process: Process, num_steps: int | None = None, spacing: Any = None) -> list[Row]:
        """Its own times.

        Raises:
            ValueError: a spacing; and as `Sampler.grid`.
        """
        super().grid(process, num_steps)
        if spacing is not None:
            raise ValueError(f"spacing must be None, as Strided has times of its own; got {spacing!r}.")
        return rows(strided_times(process, num_steps))

    def step(self, denoise: Denoiser, x_t: Tensor, times: Row, noise: Tensor, memory: Any) -> Stepped:
        """`strided_step`."""
        t, s = levels(denoise.process, times)
        hat = denoise(x_t, times[0])
        mean = strided_step(x_t, hat, t, s, torch.zeros_like(x_t), self.eta)
        return Stepped(strided_step(x_t, hat, t, s, noise, self.eta), hat, shown=mean)
