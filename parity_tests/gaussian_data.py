"""Data N(MEAN, STD^2), of which every prediction is known in closed form, and the map from x_T to x_0 that deterministic solvers
approximate; and what the tests of the PyTorch twin alone measure with.
"""

from itertools import pairwise
from math import log2, sqrt

import numpy as np
import torch

from ddpm_torch_ref import denoisers, samplers, schedules
from ddpm_torch_ref.processes import AlphaBlending, FlowMatching, GaussianDiffusion

MEAN, STD = -0.7, 0.4
SHAPE = (2, 1, 4, 4)
PREDICTIONS = ["eps", "x0", "v"]
PATHS = [FlowMatching(), AlphaBlending()]


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def max_relative(got, wanted):
    return float(np.max(np.abs(np.asarray(got) - np.asarray(wanted))) / np.max(np.abs(np.asarray(wanted))))


def predictor(process, mean=MEAN, std=STD):
    """The best output there is for data N(mean, std^2)."""

    def predict(x_t, network_time):
        if isinstance(process, GaussianDiffusion):
            t, levels = network_time, [process.level(int(t)) for t in network_time]
        else:
            t = network_time / (process.num_steps - 1)
            t = 1 - t if isinstance(process, AlphaBlending) else t
            levels = [(1 - float(t), float(t)) for t in t]
        alpha, sigma = torch.tensor(levels, dtype=x_t.dtype).T.reshape(2, -1, *[1] * (x_t.ndim - 1))
        shift = (x_t - alpha * mean) / (alpha**2 * std**2 + sigma**2)
        return process.target(mean + alpha * std**2 * shift, sigma * shift, t)

    return predict


def walk(sampler, process, predict, x_T, times, noises=None, *, clip=None):
    """The sampler along a descending grid of times: the samples, and all states from x_T to them; without noises, on zeros."""
    denoise = denoisers.of(process, predict)
    denoise = denoise if clip is None else denoisers.clipped(denoise, clip)
    rows = sampler.grid(process, spacing=np.asarray(times))
    drawn = (lambda i: torch.zeros_like(x_T)) if noises is None else noises.__getitem__
    return samplers.walk(denoise, sampler, x_T, drawn, rows, len(rows) + 1)


def exact(process, x_t, t, s):
    """Where the probability flow carries x_t: as many standard deviations from the mean as before."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = process.level(t), process.level(s)
    spread = sqrt((alpha_s**2 * STD**2 + sigma_s**2) / (alpha_t**2 * STD**2 + sigma_t**2))
    return alpha_s * MEAN + spread * (x_t - alpha_t * MEAN)


def even_in_lambda(num_steps=1024, reach=4.0):
    """A schedule whose lambda falls evenly from reach to -reach, so that grids of every n = 2^k need no rounding."""
    abars = 1 / (1 + np.exp(-2 * np.linspace(reach, -reach, num_steps + 1)))
    return schedules.Schedule(1 - abars / np.concatenate([[1], abars[:-1]]), abars)


def orders(errors):
    return [log2(coarse / fine) for coarse, fine in pairwise(errors)]
