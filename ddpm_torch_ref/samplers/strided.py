"""The sampler of system 1."""

from dataclasses import dataclass
from math import sqrt
from typing import Any, ClassVar

import torch
from torch import Tensor

from ddpm_torch_ref.denoisers import Denoiser
from ddpm_torch_ref.processes import Estimate, Level
from ddpm_torch_ref.samplers.sampler import Row, Sampler, Stepped, levels


def strided_step(x_t: Tensor, hat: Estimate, t: Level, s: Level, noise: Tensor, eta: float = 0.1) -> Tensor:
    """x_t -> x_s as in system 1: the ancestral mean, with the posterior variance in place of beta; not the published DDIM.

    Args:
        x_t: (B, C, H, W) images at t.
        hat: the estimate there.
        t: the level that is left.
        s: the next one of the grid. A later one leaves x_t as it is: the last of the grid `strided` is such.
        noise: (B, C, H, W) standard normal; zeros for the mean alone.
        eta: share of fresh noise, at least 0.
    """
    beta = (1 - (t.alpha / s.alpha) ** 2) * (s.sigma / t.sigma) ** 2
    beta = min(max(beta, 0.0), 0.999)
    mean = (x_t - beta / t.sigma * hat.eps) / sqrt(1 - beta)
    return mean + eta * sqrt(beta) * noise


@dataclass(frozen=True)
class Strided(Sampler):
    """The sampler of system 1, on its own grid; its frames are the states before their noise.

    Args:
        eta: share of fresh noise, at least 0.

    Raises:
        ValueError: eta < 0.
    """

    eta: float = 0.1

    spacing: ClassVar[str] = "strided"
    """The grid of system 1."""

    def __post_init__(self) -> None:
        if not self.eta >= 0:
            raise ValueError(f"eta must be at least 0; got {self.eta}.")

    def step(self, denoise: Denoiser, x_t: Tensor, times: Row, noise: Tensor, memory: Any) -> Stepped:
        """`strided_step`."""
        t, s = levels(denoise.process, times)
        hat = denoise(x_t, times[0])
        mean = strided_step(x_t, hat, t, s, torch.zeros_like(x_t), self.eta)
        return Stepped(strided_step(x_t, hat, t, s, noise, self.eta), hat, shown=mean)
