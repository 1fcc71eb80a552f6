"""DDIM, and its chain read as Euler's method."""

from dataclasses import dataclass
from math import sqrt
from typing import Any

from torch import Tensor

from ddpm_torch_ref.denoisers import Denoiser
from ddpm_torch_ref.processes import Estimate, Level
from ddpm_torch_ref.samplers.sampler import Row, Sampler, Stepped, fresh, levels


def ddim_step(x_t: Tensor, hat: Estimate, t: Level, s: Level, noise: Tensor, eta: float = 0.0) -> Tensor:
    """x_t -> x_s. DDIM; eta = 0 is deterministic, eta = 1 is ancestral sampling.

    Args:
        x_t: (B, C, H, W) images at t.
        hat: the estimate there.
        t: the level that is left.
        s: the level that is gone to.
        noise: (B, C, H, W) standard normal.
        eta: share of fresh noise, in [0, 1].

    Song et al. 2021, "Denoising Diffusion Implicit Models", eq. 12 and 16.
    """
    left_of_signal = (t.alpha * s.sigma / (s.alpha * t.sigma)) ** 2
    sigma = eta * s.sigma * sqrt(max(1 - left_of_signal, 0.0))
    return s.alpha * hat.x_0 + sqrt(s.sigma**2 - sigma**2) * hat.eps + sigma * noise


@dataclass(frozen=True)
class DDIM(Sampler):
    """Denoising diffusion implicit models (Song et al. 2021).

    Args:
        eta: share of fresh noise, in [0, 1].

    Raises:
        ValueError: eta outside [0, 1].
    """

    eta: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta must lie in [0, 1]; got {self.eta}.")

    def step(self, denoise: Denoiser, x_t: Tensor, times: Row, noise: Tensor, memory: Any) -> Stepped:
        """`ddim_step`."""
        t, s = levels(denoise.process, times)
        hat = denoise(x_t, times[0])
        return Stepped(ddim_step(x_t, hat, t, s, fresh(denoise.process, times[1], noise), self.eta), hat)
