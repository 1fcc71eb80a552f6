"""The Gaussian diffusion: what is added to the data, and what a network is asked to predict."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ddpm_torch_ref.schedules import Schedule, Table

Predict = Callable[[Tensor, Tensor], Tensor]

PREDICTIONS = ("eps", "x0", "v")
VARIANCES = ("beta", "posterior")
LOSSES: dict[str, Callable[..., Tensor]] = {"mse": F.mse_loss, "l1": F.l1_loss, "huber": F.smooth_l1_loss}


class Estimate(NamedTuple):
    """A network's idea of the two parts of x_t, each of x_t's shape."""

    x_0: Tensor
    eps: Tensor


@dataclass(frozen=True, eq=False)
class GaussianDiffusion:
    """x_t = sqrt(A_t) x_0 + sqrt(1 - A_t) eps, with a network that predicts eps, x_0 or v.

    Images are (B, C, H, W), t is (B,) int64, each one of schedule.timesteps.

    Args:
        schedule: the tables of A_t and its kin.
        prediction: "eps" (Ho et al. 2020), "x0", or "v" = sqrt(A_t) eps - sqrt(1 - A_t) x_0 (Salimans &
            Ho 2022, "Progressive Distillation for Fast Sampling of Diffusion Models").
        loss: "mse", "l1", or "huber" (smooth L1, quadratic below a difference of 1).
        p2_gamma: g of the loss's weight (p2_k + A_t/(1 - A_t))^-g, at least 0; 0 weighs all t alike (Choi et al. 2022,
            "Perception Prioritized Training of Diffusion Models", eq. 8).
        p2_k: see p2_gamma; above 0.

    Raises:
        ValueError: an unknown prediction or loss, or a number out of range.
    """

    schedule: Schedule
    prediction: str = "eps"
    loss: str = "mse"
    p2_gamma: float = 0.0
    p2_k: float = 1.0

    def __post_init__(self) -> None:
        _choose("prediction", self.prediction, PREDICTIONS)
        _choose("loss", self.loss, tuple(LOSSES))
        if not self.p2_gamma >= 0:
            raise ValueError(f"p2_gamma must be at least 0; got {self.p2_gamma}.")
        if not self.p2_k > 0:
            raise ValueError(f"p2_k must be above 0; got {self.p2_k}.")

    def add_noise(self, x_0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t, a draw of q(x_t | x_0) (DDPM eq. 4)."""
        return self._alpha(t, x_0) * x_0 + self._sigma(t, x_0) * noise

    def target(self, x_0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the network should have said."""
        if self.prediction == "eps":
            return noise
        if self.prediction == "x0":
            return x_0
        return self._alpha(t, x_0) * noise - self._sigma(t, x_0) * x_0

    def estimate(self, x_t: Tensor, output: Tensor, t: Tensor) -> Estimate:
        """The pair (x_0, eps) that a network's output at x_t stands for."""
        if self.prediction == "eps":
            x_0 = (
                _at(self.schedule.sqrt_recip_alphas_cumprod, t, x_t) * x_t
                - _at(self.schedule.sqrt_recipm1_alphas_cumprod, t, x_t) * output
            )
            return Estimate(x_0, output)
        if self.prediction == "x0":
            return Estimate(output, self.implied_noise(x_t, output, t))
        alpha, sigma = self._alpha(t, x_t), self._sigma(t, x_t)
        return Estimate(alpha * x_t - sigma * output, sigma * x_t + alpha * output)

    def implied_noise(self, x_t: Tensor, x_0: Tensor, t: Tensor) -> Tensor:
        """The eps that leads from x_0 to x_t: (x_t - sqrt(A_t) x_0) / sqrt(1 - A_t)."""
        return (x_t - self._alpha(t, x_t) * x_0) / self._sigma(t, x_t)

    def posterior(self, x_0: Tensor, x_t: Tensor, t: Tensor, variance: str = "posterior") -> tuple[Tensor, Tensor]:
        """Mean, of x_t's shape, and variance, (B, 1, 1, 1), of q(x_{t-1} | x_t, x_0) (DDPM eq. 6-7).

        Args:
            x_0: (B, C, H, W) clean images, known or estimated.
            x_t: (B, C, H, W) noised images.
            t: (B,) times.
            variance: "posterior" (eq. 7), or "beta", the larger one of the reverse step (section 3.2).

        Raises:
            ValueError: an unknown variance.
        """
        _choose("variance", variance, VARIANCES)
        schedule = self.schedule
        mean = _at(schedule.posterior_mean_coef1, t, x_t) * x_0 + _at(schedule.posterior_mean_coef2, t, x_t) * x_t
        table = schedule.betas if variance == "beta" else schedule.posterior_variance
        return mean, _at(table, t, x_t)

    def loss_per_example(self, predict: Predict, x_0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """(B,) loss of predict(x_t, t) against the target, a mean over all but the batch, weighted (DDPM eq. 14)."""
        output = predict(self.add_noise(x_0, noise, t), t)
        loss = LOSSES[self.loss](output, self.target(x_0, noise, t), reduction="none")
        weight = _at((self.p2_k + self.schedule.snr) ** -self.p2_gamma, t, x_0)
        return (weight * loss).flatten(1).mean(1)

    def _alpha(self, t: Tensor, like: Tensor) -> Tensor:
        return _at(self.schedule.sqrt_alphas_cumprod, t, like)

    def _sigma(self, t: Tensor, like: Tensor) -> Tensor:
        return _at(self.schedule.sqrt_one_minus_alphas_cumprod, t, like)


def _at(table: Table, t: Tensor, like: Tensor) -> Tensor:
    """table[t] in the dtype and on the device of `like`, (B, 1, ...) so that it broadcasts against it."""
    values = torch.tensor(table, dtype=like.dtype, device=like.device)[t]
    return values.reshape(-1, *[1] * (like.ndim - 1))


def _choose(argument: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{argument} must be one of {', '.join(allowed)}; got {value!r}.")
