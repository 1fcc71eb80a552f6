"""Euler's method, with and without fresh noise, in tau = sigma/alpha, or in the time of a straight path."""

from dataclasses import dataclass
from math import sqrt
from typing import Any, ClassVar

from torch import Tensor

from ddpm_torch_ref.denoisers import Denoiser
from ddpm_torch_ref.processes import Estimate, FlowMatching, Level, Process
from ddpm_torch_ref.samplers.sampler import Row, Sampler, Stepped, fresh, levels


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
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta must lie in [0, 1]; got {self.eta}.")

    def grid(self, process: Process, num_steps: int | None = None, spacing: str | None = None) -> list[Row]:
        """As every sampler's.

        Raises:
            ValueError: fresh noise on a straight path, at whose start tau is infinite; and as `Sampler.grid`.
        """
        if self.eta and isinstance(process, FlowMatching):
            raise ValueError(f"eta must be 0 on a straight path, at whose start tau is infinite; got {self.eta}.")
        return super().grid(process, num_steps, spacing)

    def step(self, denoise: Denoiser, x_t: Tensor, times: Row, noise: Tensor, memory: Any) -> Stepped:
        """`euler_step`, or without fresh noise on a straight path `straight_euler_step`.

        Raises:
            ValueError: alpha is 0 at t, where there is a tau.
        """
        t, s = levels(denoise.process, times)
        straight = isinstance(denoise.process, FlowMatching) and not self.eta
        if not straight:
            check_signal(denoise.process, times[0])
        hat = denoise(x_t, times[0])
        if straight:
            return Stepped(straight_euler_step(x_t, hat, t, s), hat)
        return Stepped(euler_step(x_t, hat, t, s, fresh(denoise.process, times[1], noise), self.eta), hat)
