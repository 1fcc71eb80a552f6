"""DDIM, downwards and upwards, and Euler's method in tau = sigma/alpha, or in the time of a straight path."""

from dataclasses import dataclass
from itertools import pairwise
from math import sqrt
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddpm_torch_ref.denoisers import Denoiser
from ddpm_torch_ref.processes import Estimate, Level, LinearPath, Process
from ddpm_torch_ref.samplers.base import Sampler, Stepped, Walked, levels
from ddpm_torch_ref.samplers.grids import Row


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
        check_share("eta", self.eta)

    def step(self, denoise: Denoiser, x_t: Tensor, times: Row, noise: Tensor, memory: Any) -> Stepped:
        """`ddim_step`."""
        t, s = levels(denoise.process, times)
        # x_0 hat and eps hat of a mean velocity, put together at s, are the step that it was learned for.
        hat = (denoise if self.eta else denoise.until(times[1]))(x_t, times[0])
        return Stepped(ddim_step(x_t, hat, t, s, noise, self.eta), hat)


def check_share(name: str, value: float) -> None:
    """Raise ValueError unless a share of fresh noise lies in [0, 1]."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must lie in [0, 1]; got {value}.")


@torch.no_grad()
def ddim_inversion(denoise: Denoiser, x_0: Tensor, times: NDArray[np.generic]) -> Walked:
    """DDIM's deterministic step run upwards, to the noise x_T that it makes x_0 of, which is the x_0 of the walk returned.

    Each step takes the network at the time that it leaves, so that inversion and sampling undo each other in the limit of small
    steps only. A network that knows no clean end, a chain's or EDM's, is asked there for eps at its cleanest time.

    Args:
        denoise: what is believed of each state.
        x_0: (B, C, H, W) or (B, D) data.
        times: ascending, the clean end first.

    Returns:
        x_T, and all states from x_0 to it.

    Song et al. 2021, "Denoising Diffusion Implicit Models", section 4.3.
    """
    process = denoise.process
    x_t, states = x_0, [x_0]
    for t, s in pairwise(times.tolist()):
        (alpha_t, sigma_t), (alpha_s, sigma_s) = levels(process, (t, s))
        asked = max(t, process.cleanest)
        eps = denoise(x_t, asked).eps
        x_t = alpha_s * (x_t - sigma_t * eps) / alpha_t + sigma_s * eps
        states.append(x_t)
    return Walked(x_t, torch.stack(states))


def straight_euler_step(x_t: Tensor, hat: Estimate, t: Level, s: Level) -> Tensor:
    """x_t -> x_s along dx/dt = eps - x_0 of a straight path (Liu et al. 2023, "Flow Straight and Fast")."""
    return x_t + (s.sigma - t.sigma) * (hat.eps - hat.x_0)


def euler_step(x_t: Tensor, hat: Estimate, t: Level, s: Level, noise: Tensor | None = None, eta: float = 0.0) -> Tensor:
    """x_t -> x_s along dy/dtau = eps for y = x/alpha, down to tau_down, below tau_s, and noise of tau_up from there.

    tau_down^2 + tau_up^2 = tau_s^2; without eta tau_up is 0, and this is Euler's method (Karras et al. 2022, table 1). Alpha must
    not be 0.

    Crowson, k-diffusion, sample_euler_ancestral; with eta = 1 this is Ho et al. 2020, algorithm 2, with the posterior variance.
    """
    tau_up = eta * sqrt(tau(s) ** 2 * (tau(t) ** 2 - tau(s) ** 2) / tau(t) ** 2)
    tau_down = sqrt(tau(s) ** 2 - tau_up**2)
    y = x_t / t.alpha + (tau_down - tau(t)) * hat.eps
    return s.alpha * (y if noise is None else y + tau_up * noise)


def tau(level: Level) -> float:
    """sigma/alpha."""
    return level.sigma / level.alpha


def check_signal(process: Process, first: float) -> None:
    """A walk in tau needs data in its first state.

    Raises:
        ValueError: alpha is 0 there.
    """
    if process.level(first).alpha == 0:
        raise ValueError(f"times must have alpha above 0 for a solver in sigma/alpha; got {first}, where it is 0.")


@dataclass(frozen=True)
class Euler(Sampler):
    """Euler's method, with a share of fresh noise in every step where it is asked for.

    Args:
        eta: that share, in [0, 1]; 0 on a straight path.

    Raises:
        ValueError: eta outside [0, 1].

    Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative Models", table 1; on a straight path
    Liu et al. 2023, "Flow Straight and Fast", and Heitz et al. 2023, "Iterative alpha-(de)Blending", algorithm 4.
    """

    eta: float = 0.0

    spacing: ClassVar[str] = "karras"
    """The grid of Karras et al.."""

    def __post_init__(self) -> None:
        check_share("eta", self.eta)

    def misfit(self, process: Process) -> str:
        """Fresh noise is measured in tau, which is infinite at the start of a straight path."""
        if self.eta and isinstance(process, LinearPath):
            return f"eta must be 0 on a straight path, at whose start tau is infinite; got {self.eta}."
        return ""

    def step(self, denoise: Denoiser, x_t: Tensor, times: Row, noise: Tensor, memory: Any) -> Stepped:
        """`euler_step`, or without fresh noise on a straight path `straight_euler_step`.

        Raises:
            ValueError: alpha is 0 at t, where there is a tau.
        """
        t, s = levels(denoise.process, times)
        straight = isinstance(denoise.process, LinearPath) and not self.eta
        if not straight:
            check_signal(denoise.process, times[0])
        hat = (denoise.until(times[1]) if straight else denoise)(x_t, times[0])
        if straight:
            return Stepped(straight_euler_step(x_t, hat, t, s), hat)
        return Stepped(euler_step(x_t, hat, t, s, noise, self.eta), hat)
