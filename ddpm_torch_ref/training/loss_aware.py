"""Loss-aware times: p_t in proportion to the root mean square of the last losses at t.

Nichol & Dhariwal 2021, "Improved Denoising Diffusion Probabilistic Models", section 3.3, eq. 18.
"""

from typing import NamedTuple

import torch
from torch import Tensor

LENGTH = 10
"""Losses remembered of each t."""
UNIFORM_SHARE = 0.001
"""Share of the uniform distribution in p."""


class LossHistory(NamedTuple):
    """The last losses of each t, counted by its index from 0 as in schedule.timesteps."""

    losses: Tensor
    """(T, k) float64, the oldest first; what is not there yet is 0."""
    counts: Tensor
    """(T,) int64, how many there are."""


def empty(num_steps: int, length: int = LENGTH) -> LossHistory:
    """A history of T = num_steps times that remembers the last `length` losses of each, and none yet.

    Raises:
        ValueError: a number below 1.
    """
    for name, number in (("num_steps", num_steps), ("length", length)):
        if number < 1:
            raise ValueError(f"{name} must be at least 1; got {number}.")
    return LossHistory(torch.zeros(num_steps, length, dtype=torch.float64), torch.zeros(num_steps, dtype=torch.int64))


def probabilities(history: LossHistory, uniform_share: float = UNIFORM_SHARE) -> Tensor:
    """(T,) float64 p_t, whose sum is 1: uniform until every t has a full history.

    Raises:
        ValueError: uniform_share outside [0, 1].
    """
    if not 0 <= uniform_share <= 1:
        raise ValueError(f"uniform_share must lie in [0, 1]; got {uniform_share}.")
    num_steps, length = history.losses.shape
    uniform = torch.full((num_steps,), 1 / num_steps, dtype=torch.float64)
    if (history.counts < length).any():
        return uniform
    roots = history.losses.square().mean(1).sqrt()
    return (1 - uniform_share) * roots / roots.sum() + uniform_share * uniform if roots.any() else uniform


def draw(history: LossHistory, generator: torch.Generator, n: int) -> tuple[Tensor, Tensor]:
    """(n,) indices of times drawn by p, and (n,) float64 weights 1/(T p_t) that leave the expected loss as by uniform draws."""
    p = probabilities(history)
    index = torch.multinomial(p.to(generator.device), n, replacement=True, generator=generator).cpu()
    return index, 1 / (len(p) * p[index])


def record(history: LossHistory, index: Tensor, losses: Tensor) -> LossHistory:
    """The history after the unweighted loss of each example, (n,), at its time's index, (n,), in turn; the oldest go."""
    rows, counts = history.losses.clone(), history.counts.clone()
    length = rows.shape[1]
    for i, loss in zip(index.tolist(), losses.tolist(), strict=True):
        if counts[i] == length:
            rows[i] = rows[i].roll(-1)
        else:
            counts[i] += 1
        rows[i, counts[i] - 1] = loss
    return LossHistory(rows, counts)
