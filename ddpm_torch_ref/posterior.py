"""Denoisers told of a measurement y = A x_0 + noise: E[x_0 | x_t, y] in place of E[x_0 | x_t], by three approximations.

score(x_t | y) = score(x_t) + grad log p(y | x_t), and p(y | x_t) is taken for N(A x_0 hat, A C A^T + noise^2 I), its covariance not
depending on x_t:

    grad log p(y | x_t) = J^T A^T (A C A^T + noise^2 I)^-1 (y - A x_0 hat),    J = d x_0 hat / d x_t.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ddpm_torch_ref.denoisers import Denoiser, Wrapper, times_of
from ddpm_torch_ref.operators import Operator
from ddpm_torch_ref.processes import Estimate, Level

__all__ = ["DPS", "MMPS", "Conditioned", "Method", "PiGDM", "conditioned", "conjugate_gradients"]

Apply = Callable[[Tensor], Tensor]
"""A linear map of each example."""


class Method(ABC):
    """What stands for the covariance C of x_0 given x_t."""

    @abstractmethod
    def weights(
        self, residual: Tensor, noise: float, level: Level, covariance: Apply, through: Callable[[Apply], Apply]
    ) -> Tensor:
        """u in grad log p(y | x_t) = J^T A^T u.

        Args:
            residual: y - A x_0 hat.
            noise: standard deviation.
            level: alpha_t and sigma_t.
            covariance: v -> sigma_t^2 / alpha_t J^T v.
            through: C -> (u -> A C A^T u).
        """


@dataclass(frozen=True)
class MMPS(Method):
    """C = sigma_t^2 / alpha_t J^T, the covariance by Tweedie's formula.

    Rozet et al. 2024, "Learning Diffusion Priors from Observations by Expectation Maximization", moment matching.
    """

    iterations: int = 5
    """Of conjugate gradients."""

    def __post_init__(self) -> None:
        _check_iterations(self.iterations)

    def weights(
        self, residual: Tensor, noise: float, level: Level, covariance: Apply, through: Callable[[Apply], Apply]
    ) -> Tensor:
        """By conjugate gradients."""
        signal = through(covariance)
        return conjugate_gradients(lambda u: signal(u).add(u, alpha=noise**2), residual, self.iterations)


@dataclass(frozen=True)
class PiGDM(Method):
    """C = r^2 I, with 1 / r^2 = 1 / s^2 + (alpha / sigma)^2, which is right of data N(mu, s^2 I).

    Song et al. 2023, "Pseudoinverse-Guided Diffusion Models for Inverse Problems", eq. 7-8, where s = 1.
    """

    sigma_data: float = 1.0
    """s."""
    iterations: int = 20
    """Of conjugate gradients."""

    def __post_init__(self) -> None:
        if not 0 < self.sigma_data < float("inf"):
            raise ValueError(f"sigma_data must be positive and finite; got {self.sigma_data}.")
        _check_iterations(self.iterations)

    def weights(
        self, residual: Tensor, noise: float, level: Level, covariance: Apply, through: Callable[[Apply], Apply]
    ) -> Tensor:
        """By conjugate gradients."""
        alpha, sigma = level
        variance = 1 / (self.sigma_data**-2 + (alpha / sigma) ** 2)
        signal = through(lambda v: variance * v)
        return conjugate_gradients(lambda u: signal(u) + noise**2 * u, residual, self.iterations)


@dataclass(frozen=True)
class DPS(Method):
    """C = 0, and scale / |residual| for 1 / (2 noise^2).

    Chung et al. 2023, "Diffusion Posterior Sampling for General Noisy Inverse Problems", eq. 16.
    """

    scale: float = 10.0
    """Of the gradient."""

    def __post_init__(self) -> None:
        if not 0 <= self.scale < float("inf"):
            raise ValueError(f"scale must be 0 or more, and finite; got {self.scale}.")

    def weights(
        self, residual: Tensor, noise: float, level: Level, covariance: Apply, through: Callable[[Apply], Apply]
    ) -> Tensor:
        """2 scale residual / |residual|."""
        return 2 * self.scale * torch.nn.functional.normalize(residual.flatten(1), dim=1, eps=1e-300).view_as(residual)


@dataclass(frozen=True)
class Conditioned(Wrapper):
    """See `conditioned`."""

    operator: Operator
    """A."""
    y: Tensor
    """(B, ...), or (1, ...) for all."""
    noise: float
    """Standard deviation."""
    method: Method
    """What stands for the covariance."""

    def __repr__(self) -> str:
        return f"conditioned({self.inner}, {self.operator}, {tuple(self.y.shape)}, {self.noise:g}, {self.method})"

    def __call__(self, x_t: Tensor, t: float | Tensor) -> Estimate:
        """eps - sigma grad log p(y | x_t), and x_0 + sigma^2 / alpha of it."""
        alpha, sigma = self.process.level(times_of(self.process, x_t, t), x_t)
        with torch.enable_grad():
            x = x_t.detach().requires_grad_(True)
            hat = self.inner(x, t)
        x_0 = hat.x_0.detach()
        expected = self.operator.measured(tuple(x_0.shape))
        if tuple(self.y.shape) not in (expected, (1, *expected[1:])):
            raise ValueError(f"y must have the shape {expected}; got {tuple(self.y.shape)}.")

        def pulled(v: Tensor) -> Tensor:
            return torch.autograd.grad(hat.x_0, x, v, retain_graph=True)[0]

        def transposed(u: Tensor) -> Tensor:
            return self.operator.transposed(u, tuple(x_0.shape))

        def through(covariance: Apply) -> Apply:
            return lambda u: self.operator(covariance(transposed(u)))

        finite = torch.as_tensor(alpha).clamp(min=torch.finfo(x_0.dtype).tiny)

        def covariance(v: Tensor) -> Tensor:
            return sigma**2 / finite * pulled(v)

        known = torch.as_tensor(alpha) > 0
        u = self.method.weights(self.y - self.operator(x_0), self.noise, Level(alpha, sigma), covariance, through)
        score = torch.where(known, pulled(transposed(u)), torch.zeros_like(x_0))
        shift = torch.where(known, sigma**2 / finite * score, score)
        logit = None if hat.variance_logit is None else hat.variance_logit.detach()
        return Estimate(x_0 + shift, hat.eps.detach() - sigma * score, logit)


def conditioned(
    denoise: Denoiser, operator: Operator, y: Tensor, *, noise: float = 0.0, method: Method | None = None
) -> Denoiser:
    """E[x_0 | x_t, y] for y = A x_0 + noise eps.

    Args:
        denoise: of any process; where alpha_t = 0 it is left as it is.
        operator: A.
        y: (B, ...) as the operator gives it, or (1, ...) for all.
        noise: its standard deviation, 0 or more.
        method: None for MMPS().

    Raises:
        ValueError: noise below 0; when called, y of another shape.
    """
    if not 0 <= noise < float("inf"):
        raise ValueError(f"noise must be 0 or more, and finite; got {noise}.")
    return Conditioned(denoise, operator, y, noise, MMPS() if method is None else method)


def conjugate_gradients(apply: Apply, b: Tensor, iterations: int) -> Tensor:
    """x, (B, ...), with apply(x) = b: each example by itself, from 0, after so many iterations.

    Hestenes & Stiefel 1952. An example stops where its curvature is not positive.
    """
    axes = tuple(range(1, b.ndim))
    x, r = torch.zeros_like(b), b.clone()
    p, rr = r.clone(), (r * r).sum(axes, keepdim=True)
    stopped = torch.zeros_like(rr, dtype=torch.bool)
    for _ in range(iterations):
        Ap = apply(p)
        pAp = (p * Ap).sum(axes, keepdim=True)
        stopped = stopped | (pAp <= 0)
        step = torch.where(stopped, torch.zeros_like(rr), rr / pAp)
        x, r = x + step * p, r - step * Ap
        before, rr = rr, (r * r).sum(axes, keepdim=True)
        beta = torch.where(before > 0, rr / before, torch.zeros_like(rr))
        p = r + beta * p
    return x


def _check_iterations(iterations: int) -> None:
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1; got {iterations}.")
