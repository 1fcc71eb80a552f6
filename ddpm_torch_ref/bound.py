"""The variational bound on the log-likelihood of 8-bit data, one timestep at a time, in bits per dimension."""

from math import log, log1p

import torch
from torch import Tensor

HALF_BIN = 1 / 255
"""Half the distance of two of the 256 values of 8-bit data, spread over [-1, 1]."""
LEAST_PROBABILITY = 1e-12
"""Probabilities are taken for no smaller than this."""


def normal_kl(mean: Tensor, log_variance: Tensor, other_mean: Tensor, other_log_variance: Tensor) -> Tensor:
    """(B,) KL(N(mean, variance) || N(other mean, other variance)) in bits per dimension; diagonal, shapes broadcast."""
    ratio = log_variance - other_log_variance
    nats = 0.5 * (ratio.exp() - 1 - ratio + (mean - other_mean) ** 2 * (-other_log_variance).exp())
    return _bits(nats.expand_as(mean))


def prior(x_0: Tensor, alphas_cumprod: float) -> Tensor:
    """(B,) KL(q(x_T | x_0) || N(0, 1)) in bits per dimension: what the last x_t still betrays of x_0.

    Args:
        x_0: (B, C, H, W) data.
        alphas_cumprod: A_T, the last one of the schedule.

    Ho et al. 2020, "Denoising Diffusion Probabilistic Models", L_T of eq. 5.
    """
    # log1p, as 1 - A_T may round to 1.
    return _bits(0.5 * (alphas_cumprod * x_0**2 - alphas_cumprod - log1p(-alphas_cumprod)))


def decoder(x_0: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """(B,) -log p(x_0) in bits per dimension, of 8-bit data in [-1, 1] under a Gaussian cut into bins of width 2/255.

    The bins of -1 and 1 are open outwards.

    Ho et al. 2020, "Denoising Diffusion Probabilistic Models", eq. 13.
    """
    precision = (-0.5 * log_variance).exp()
    upper = (x_0 - mean + HALF_BIN) * precision
    lower = (x_0 - mean - HALF_BIN) * precision
    inside = torch.special.ndtr(upper) - torch.special.ndtr(lower)
    # 0.999 lies between the outermost value and its neighbour, as rounding may move the outermost off 1.
    probability = torch.where(x_0 < -0.999, torch.special.ndtr(upper), inside)
    probability = torch.where(x_0 > 0.999, torch.special.ndtr(-lower), probability)
    return _bits(-probability.clamp(min=LEAST_PROBABILITY).log())


def _bits(nats: Tensor) -> Tensor:
    """(B,) the mean over all but the batch, in bits."""
    return nats.flatten(1).mean(1) / log(2)
