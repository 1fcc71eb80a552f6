"""The variational bound on the log-likelihood of 8-bit data, term by term, in bits per dimension.

-log p(x_0) <= prior + sum over t of the term of t. Nats are divided by ln 2, and averaged over an example's dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log, log1p
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ddpm_torch_ref.schedules import Schedule

if TYPE_CHECKING:  # a process may have this bound for its loss, so that each file needs the other
    from ddpm_torch_ref.processes import Estimate, GaussianDiffusion, Predict

HALF_BIN = 1 / 255
"""Half the distance of two of the 256 values of 8-bit data, spread over [-1, 1]."""
LEAST_PROBABILITY = 1e-12
"""Probabilities are taken for no smaller than this."""


def check_clean_end(schedule: Schedule) -> None:
    """The bound is of x_0 itself, so the chain has to end there.

    Raises:
        ValueError: A at the clean end is not exactly 1.
    """
    if schedule.first > 0 and schedule.alphas_cumprod[0] != 1:
        raise ValueError(
            f"alphas_cumprod[0] must be 1 for the bound, which is of clean data; got {schedule.alphas_cumprod[0]}."
        )


def prior(process: GaussianDiffusion, x_0: Tensor) -> Tensor:
    """(B,) KL(q(x_T | x_0) || N(0, 1)) in bits per dimension: what the last x_t still betrays of x_0.

    Raises:
        ValueError: the chain's clean end is not clean.

    Ho et al. 2020, "Denoising Diffusion Probabilistic Models", L_T of eq. 5.
    """
    check_clean_end(process.schedule)
    abar = float(process.schedule.alphas_cumprod[-1])
    # log1p, as 1 - A_T may round to 1.
    return _bits(0.5 * (abar * x_0**2 - abar - log1p(-abar)))


def term(
    process: GaussianDiffusion,
    estimate: Estimate,
    x_0: Tensor,
    x_t: Tensor,
    t: Tensor,
    variance: str = "posterior",
    clip: float | None = None,
) -> Tensor:
    """(B,) the bound's term of t, in bits per dimension.

    KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)); for the first valid t, -log p(x_0 | x_t) of 8-bit data, p's Gaussian being
    integrated over bins of width 2/255, those of -1 and 1 open outwards (Ho et al. 2020, L_{t-1} of eq. 5, and eq. 13).

    Args:
        process: a chain with a clean end.
        estimate: that of process.estimate at (x_t, t).
        x_0: (B, C, H, W) data in [-1, 1].
        x_t: (B, C, H, W) a draw of q(x_t | x_0).
        t: (B,) times.
        variance: of the reverse step: "beta", "posterior" or "learned", as in process.log_variance.
        clip: clip the estimate of x_0 to [-clip, clip]; None leaves it.

    Raises:
        ValueError: the chain's clean end is not clean, an unknown variance, or "learned" from an estimate without one.
    """
    check_clean_end(process.schedule)
    x_0_hat = estimate.x_0 if clip is None else estimate.x_0.clamp(-clip, clip)
    mean, _ = process.posterior(x_0_hat, x_t, t)
    log_variance = process.log_variance(x_t, t, variance, estimate.variance_logit)
    true_mean, _ = process.posterior(x_0, x_t, t)
    true_log_variance = process.log_variance(x_t, t, "posterior")

    divergence = _bits(_normal_kl(true_mean, true_log_variance, mean, log_variance))
    surprise = _bits(-_discretized_log_likelihood(x_0, mean, log_variance))
    return torch.where(t == process.schedule.first, surprise, divergence)


@torch.no_grad()
def bits_per_dim(
    process: GaussianDiffusion,
    predict: Predict,
    x_0: Tensor,
    noises: Sequence[Tensor] | Tensor,
    variance: str = "posterior",
    clip: float | None = None,
) -> dict[str, Tensor]:
    """The whole bound for a batch, by one evaluation of the network at each t.

    Args:
        process: a chain with a clean end.
        predict: the network, (x_t, t) -> output.
        x_0: (B, C, H, W) data in [-1, 1].
        noises: T tensors of x_0's shape; noises[i] is added at t = timesteps[i].
        variance: see `term`.
        clip: see `term`.

    Returns:
        "prior" (B,), "terms" (T, B), row i for t = timesteps[i], and "total" (B,), their sum, all in bits per dimension.

    Raises:
        ValueError: see `term`.
    """
    terms = []
    for i, t in enumerate(process.schedule.timesteps):
        t_batch = torch.full((len(x_0),), int(t), dtype=torch.int64, device=x_0.device)
        x_t = process.add_noise(x_0, noises[i], t_batch)
        estimate = process.estimate(x_t, predict(x_t, t_batch), t_batch)
        terms.append(term(process, estimate, x_0, x_t, t_batch, variance, clip))
    first, rest = prior(process, x_0), torch.stack(terms)
    return {"prior": first, "terms": rest, "total": first + rest.sum(0)}


def _normal_kl(mean_1: Tensor, log_variance_1: Tensor, mean_2: Tensor, log_variance_2: Tensor) -> Tensor:
    """KL(N(mean_1, variance_1) || N(mean_2, variance_2)) in nats, elementwise."""
    ratio = log_variance_1 - log_variance_2
    return 0.5 * (ratio.exp() - 1 - ratio + (mean_1 - mean_2) ** 2 * (-log_variance_2).exp())


def _discretized_log_likelihood(x: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Log of the probability that a Gaussian gives the bin of x, in nats, elementwise (Ho et al. 2020, eq. 13)."""
    precision = (-0.5 * log_variance).exp()
    upper = (x - mean + HALF_BIN) * precision
    lower = (x - mean - HALF_BIN) * precision
    inside = torch.special.ndtr(upper) - torch.special.ndtr(lower)
    # 0.999 lies between the outermost value and its neighbour, as rounding may move the outermost off 1.
    probability = torch.where(x < -0.999, torch.special.ndtr(upper), inside)
    probability = torch.where(x > 0.999, torch.special.ndtr(-lower), probability)
    return probability.clamp(min=LEAST_PROBABILITY).log()


def _bits(nats: Tensor) -> Tensor:
    """Nats of each dimension -> (B,) bits per dimension."""
    return nats.flatten(1).mean(1) / log(2)
