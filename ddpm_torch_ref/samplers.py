"""Samplers: steps x_t -> x_s in terms of A_t (alphas_cumprod), and the one loop that runs them."""

from collections.abc import Callable, Sequence
from math import sqrt

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddpm_torch_ref.processes import GaussianDiffusion, Predict
from ddpm_torch_ref.schedules import Schedule

Step = Callable[[Schedule, Tensor, Tensor, int, int, Tensor], Tensor]


def ancestral_step(
    schedule: Schedule, x_t: Tensor, eps: Tensor, t: int, s: int, noise: Tensor, variance: str = "beta"
) -> Tensor:
    """x_t -> x_s, s < t, by p(x_s | x_t).

    Args:
        schedule: the tables of A_t.
        x_t: (B, C, H, W) images at time t.
        eps: (B, C, H, W) estimate of their noise.
        t: a valid time.
        s: an earlier one, or schedule.first - 1, the clean end.
        noise: (B, C, H, W) standard normal; zeros for the mean alone.
        variance: of the step: "beta", or "posterior" = beta (1 - A_s)/(1 - A_t).

    Raises:
        ValueError: an unknown variance.

    Ho et al. 2020, algorithm 2; with beta = 1 - A_t / A_s for a chain that leaves steps out (Nichol &
    Dhariwal 2021, section 4).
    """
    abar_t, abar_s = _abar(schedule, t), _abar(schedule, s)
    beta = 1 - abar_t / abar_s
    if variance == "beta":
        step_variance = beta
    elif variance == "posterior":
        step_variance = beta * (1 - abar_s) / (1 - abar_t)
    else:
        raise ValueError(f"variance must be one of beta, posterior; got {variance!r}.")
    mean = (x_t - beta / sqrt(1 - abar_t) * eps) / sqrt(1 - beta)
    return mean + sqrt(step_variance) * noise


def ddim_step(schedule: Schedule, x_t: Tensor, eps: Tensor, t: int, s: int, noise: Tensor, eta: float = 0.0) -> Tensor:
    """x_t -> x_s, s < t. DDIM; eta = 0 is deterministic, eta = 1 is ancestral sampling.

    Args:
        schedule: the tables of A_t.
        x_t: (B, C, H, W) images at time t.
        eps: (B, C, H, W) estimate of their noise.
        t: a valid time.
        s: an earlier one, or schedule.first - 1, the clean end.
        noise: (B, C, H, W) standard normal.
        eta: share of fresh noise, in [0, 1].

    Raises:
        ValueError: eta outside [0, 1].

    Song et al. 2021, "Denoising Diffusion Implicit Models", eq. 12 and 16.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must lie in [0, 1]; got {eta}.")
    abar_t, abar_s = _abar(schedule, t), _abar(schedule, s)
    sigma = eta * sqrt((1 - abar_s) / (1 - abar_t)) * sqrt(1 - abar_t / abar_s)
    x_0 = (x_t - sqrt(1 - abar_t) * eps) / sqrt(abar_t)
    return sqrt(abar_s) * x_0 + sqrt(1 - abar_s - sigma**2) * eps + sigma * noise


def times(schedule: Schedule, num_steps: int) -> NDArray[np.int64]:
    """(num_steps + 1,) times, evenly spread and descending from the last t to the clean end, first - 1.

    Raises:
        ValueError: num_steps outside 1..T.
    """
    if not 1 <= num_steps <= schedule.num_steps:
        raise ValueError(f"num_steps must lie in 1..{schedule.num_steps}, the schedule's T; got {num_steps}.")
    last = schedule.first + schedule.num_steps - 1
    return np.round(np.linspace(last, schedule.first - 1, num_steps + 1)).astype(np.int64)


@torch.no_grad()
def sample(
    process: GaussianDiffusion,
    predict: Predict,
    x_T: Tensor,
    times: Sequence[int] | NDArray[np.int64],
    step: Step,
    noises: Sequence[Tensor] | Tensor,
    clip: float | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """Run a step down a grid of times, from pure noise to images.

    Args:
        process: turns the network's output into the pair (x_0, eps).
        predict: the network, (x_t, t) -> output, t of shape (B,).
        x_T: (B, C, H, W) standard normal.
        times: n + 1 descending times, the last of them the clean end.
        step: ancestral_step, ddim_step, or either with its options bound.
        noises: noises[i], of x_T's shape, is the noise of step i; the last step takes none.
        clip: clip x_0 to [-clip, clip] at every step and recompute eps from it; None leaves both.

    Returns:
        The images, and the list of all n + 1 states from x_T to them.
    """
    x_t = x_T
    states = [x_t]
    num_steps = len(times) - 1
    for i in range(num_steps):
        t, s = int(times[i]), int(times[i + 1])
        t_batch = torch.full((len(x_t),), t, dtype=torch.int64, device=x_t.device)
        x_0, eps = process.estimate(x_t, predict(x_t, t_batch), t_batch)
        if clip is not None:
            eps = process.implied_noise(x_t, x_0.clamp(-clip, clip), t_batch)
        noise = noises[i] if i < num_steps - 1 else torch.zeros_like(x_t)
        x_t = step(process.schedule, x_t, eps, t, s, noise)
        states.append(x_t)
    return x_t, states


def _abar(schedule: Schedule, t: int) -> float:
    """A_t; 1 at the clean end, one before the first valid t."""
    return 1.0 if t == schedule.first - 1 else float(schedule.alphas_cumprod[t])
