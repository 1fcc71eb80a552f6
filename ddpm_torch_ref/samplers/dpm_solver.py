"""DPM-Solver++: x_0 hat carried along by its last values, in lambda = log(alpha/sigma)."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, expm1, inf, log, sqrt
from typing import Any

from torch import Tensor

from ddpm_torch_ref.denoisers import Denoiser
from ddpm_torch_ref.processes import Estimate, Level
from ddpm_torch_ref.samplers.base import Sampler, Stepped, levels
from ddpm_torch_ref.samplers.grids import Row

Past = Sequence[tuple[Tensor, float]]
"""Earlier estimates of x_0 and the lambda of each, the latest first."""


def dpmpp_2m_step(x_t: Tensor, hat: Estimate, t: Level, s: Level, past: Past) -> Tensor:
    """x_t -> x_s by DPM-Solver++(2M): x_0 hat is carried along the line through its last two values.

    The first step and one to sigma = 0 are of first order, which is DDIM.

    Args:
        x_t: (B, C, H, W) images at t.
        hat: the estimate there.
        t: the level that is left.
        s: the level that is gone to.
        past: the estimate before.

    Lu et al. 2022, "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models", algorithm 2.
    """
    h = log_ratio(s) - log_ratio(t)
    return s.sigma / t.sigma * x_t - s.alpha * expm1(-h) * extrapolated(hat.x_0, t, s, past)


def dpmpp_2m_sde_step(x_t: Tensor, hat: Estimate, t: Level, s: Level, noise: Tensor, past: Past) -> Tensor:
    """x_t -> x_s by SDE-DPM-Solver++(2M): the reverse stochastic equation, with x_0 hat extrapolated as in `dpmpp_2m_step`.

    Args:
        x_t: (B, C, H, W) images at t.
        hat: the estimate there.
        t: the level that is left.
        s: the level that is gone to.
        noise: (B, C, H, W) standard normal.
        past: the estimate before.

    Lu et al. 2022, "DPM-Solver++", the section on solvers of the diffusion SDE.
    """
    h = log_ratio(s) - log_ratio(t)
    D = extrapolated(hat.x_0, t, s, past)
    return s.sigma / t.sigma * exp(-h) * x_t - s.alpha * expm1(-2 * h) * D + s.sigma * sqrt(-expm1(-2 * h)) * noise


def dpmpp_3m_step(x_t: Tensor, hat: Estimate, t: Level, s: Level, past: Past) -> Tensor:
    """x_t -> x_s by DPM-Solver++(3M): x_0 hat is carried along by its last three values.

    The first step is of first order, the second that of `dpmpp_2m_step`, and one to sigma = 0 of first order. D2 is h^2 times the
    second derivative, twice a divided difference; without that 2, as in the authors' code and in the libraries, the order is 2,
    not 3.

    Args:
        x_t: (B, C, H, W) images at t.
        hat: the estimate there.
        t: the level that is left.
        s: the level that is gone to.
        past: the two estimates before.

    Lu et al. 2022, "DPM-Solver++", section 4: the multistep update of order 3.
    """
    if len(past) < 2 or s.sigma == 0:
        return dpmpp_2m_step(x_t, hat, t, s, past)
    m0, ((m1, lambda_1), (m2, lambda_2)) = hat.x_0, past[:2]
    lambda_t = log_ratio(t)
    h = log_ratio(s) - lambda_t
    phi1 = expm1(-h)
    phi2 = phi1 / h + 1
    phi3 = phi2 / h - 0.5
    r0, r1 = (lambda_t - lambda_1) / h, (lambda_1 - lambda_2) / h
    # An infinite r, after a first time with alpha = 0, makes the terms it divides vanish.
    D1_0, D1_1 = (m0 - m1) / r0, (m1 - m2) / r1
    D1 = D1_0 + r0 / (r0 + r1) * (D1_0 - D1_1)
    D2 = 2 * (D1_0 - D1_1) / (r0 + r1)
    return s.sigma / t.sigma * x_t - s.alpha * phi1 * m0 + s.alpha * phi2 * D1 - s.alpha * phi3 * D2


def log_ratio(level: Level) -> float:
    """lambda = log(alpha/sigma), -inf where there is only noise, inf where there is none."""
    if level.alpha == 0:
        return -inf
    return log(level.alpha / level.sigma) if level.sigma > 0 else inf


def extrapolated(m0: Tensor, t: Level, s: Level, past: Past) -> Tensor:
    """x_0 hat half a step ahead, on the line through its last two values; m0 itself where there is no other, or sigma_s = 0."""
    if not past or s.sigma == 0:
        return m0
    m1, lambda_1 = past[0]
    lambda_t = log_ratio(t)
    r = (lambda_t - lambda_1) / (log_ratio(s) - lambda_t)
    return (1 + 1 / (2 * r)) * m0 - 1 / (2 * r) * m1


@dataclass(frozen=True)
class DPMSolver(Sampler):
    """DPM-Solver++ with memory: 2M, 3M, and 2M of the stochastic equation.

    Args:
        order: 2 or 3.
        sde: with fresh noise in every step; of order 2.

    Raises:
        ValueError: another order, or sde with order 3.

    Lu et al. 2022, "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models".
    """

    order: int = 2
    sde: bool = False

    def __post_init__(self) -> None:
        if self.order not in (2, 3):
            raise ValueError(f"order must be 2 or 3; got {self.order}.")
        if self.sde and self.order != 2:
            raise ValueError(f"order must be 2 with sde; got {self.order}.")

    def step(self, denoise: Denoiser, x_t: Tensor, times: Row, noise: Tensor, memory: Any) -> Stepped:
        """`dpmpp_2m_step`, `dpmpp_2m_sde_step` or `dpmpp_3m_step`; the memory is their past."""
        t, s = levels(denoise.process, times)
        hat = denoise(x_t, times[0])
        if self.sde:
            x_s = dpmpp_2m_sde_step(x_t, hat, t, s, noise, memory)
        elif self.order == 3:
            x_s = dpmpp_3m_step(x_t, hat, t, s, memory)
        else:
            x_s = dpmpp_2m_step(x_t, hat, t, s, memory)
        return Stepped(x_s, hat, ((hat.x_0, log_ratio(t)), *memory)[: self.order - 1])
