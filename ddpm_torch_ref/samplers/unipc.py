"""UniPC: a predictor, corrected by what the network makes of its arrival."""

from dataclasses import dataclass
from math import expm1, inf
from typing import Any, NamedTuple

from torch import Tensor

from ddpm_torch_ref.denoisers import Denoiser
from ddpm_torch_ref.processes import Level
from ddpm_torch_ref.samplers.base import Sampler, Stepped, levels
from ddpm_torch_ref.samplers.dpm_solver import log_ratio
from ddpm_torch_ref.samplers.grids import Row


class Departure(NamedTuple):
    """Where the step before began."""

    x: Tensor
    """The corrected state there."""
    level: Level
    """Its level."""
    m: Tensor
    """The estimate of x_0 there."""
    before: tuple[Tensor, float] | None
    """The estimate of x_0 before that, and its lambda."""


def predict(x_t: Tensor, m0: Tensor, t: Level, s: Level, before: tuple[Tensor, float] | None) -> Tensor:
    """x_t -> x_s by UniP-2, B(h) = e^-h - 1; of first order without an estimate before, and to sigma = 0.

    Zhao et al. 2023, "UniPC: A Unified Predictor-Corrector Framework for Fast Sampling of Diffusion Models", algorithm 2, in its
    form for data prediction.
    """
    h = log_ratio(s) - log_ratio(t)
    x_s = s.sigma / t.sigma * x_t - s.alpha * expm1(-h) * m0
    if before is None or s.sigma == 0:
        return x_s
    return x_s - s.alpha * expm1(-h) * 0.5 * _slope(m0, t, s, before)[0]


def correct(start: Departure, s: Level, m_s: Tensor) -> Tensor:
    """The state at s by UniC-2, from where the step to it began and the estimate m_s of x_0 at its predicted end.

    Zhao et al. 2023, algorithm 1, in its form for data prediction.
    """
    t, m0 = start.level, start.m
    h = log_ratio(s) - log_ratio(t)
    B = expm1(-h)
    first_order = s.sigma / t.sigma * start.x - s.alpha * B * m0
    if start.before is None:
        return first_order - s.alpha * B * 0.5 * (m_s - m0)
    D1, r = _slope(m0, t, s, start.before)
    # rho1 + rho2 = b1 and r rho1 + rho2 = b2, by hand, as r may be infinite: then rho1 = 0.
    phi2 = expm1(-h) / -h - 1
    phi3 = phi2 / -h - 0.5
    b1, b2 = phi2 / B, 2 * phi3 / B
    rho1 = (b1 - b2) / (1 - r)
    rho2 = b1 - rho1
    return first_order - s.alpha * B * (rho1 * D1 + rho2 * (m_s - m0))


def _slope(m0: Tensor, t: Level, s: Level, before: tuple[Tensor, float]) -> tuple[Tensor, float]:
    """The slope of x_0 hat, and where the estimate before lies: in units of h from t, at r < 0, s lying at 1."""
    m1, lambda_1 = before
    lambda_t = log_ratio(t)
    r = -inf if lambda_1 == -inf else -(lambda_t - lambda_1) / (log_ratio(s) - lambda_t)
    return (m1 - m0) / r, r


@dataclass(frozen=True)
class UniPC(Sampler):
    """UniPC-2 of the data, B_2(h) = e^-h - 1.

    The corrector needs no evaluation of its own: the next step's serves, made at the predicted state. The clean end stays
    uncorrected. Its states are as predicted, before their correction.

    Zhao et al. 2023, "UniPC: A Unified Predictor-Corrector Framework for Fast Sampling of Diffusion Models".
    """

    def init(self, x_T: Tensor) -> Any:
        """No step before."""
        return None

    def step(self, denoise: Denoiser, x_t: Tensor, times: Row, noise: Tensor, memory: Any) -> Stepped:
        """`correct` x_t, and `predict` x_s from there."""
        t, s = levels(denoise.process, times)
        hat = denoise(x_t, times[0])
        corrected, before = x_t, None
        if memory is not None:
            corrected, before = correct(memory, t, hat.x_0), (memory.m, log_ratio(memory.level))
        x_s = predict(corrected, hat.x_0, t, s, before)
        return Stepped(x_s, hat, Departure(corrected, t, hat.x_0, before))
