"""Samplers: steps x_t -> x_s in terms of A_t (alphas_cumprod), the one loop that runs them, and grids of times."""

from collections.abc import Callable, Sequence
from functools import partial
from math import inf, log, sqrt

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddpm_torch_ref.processes import GaussianDiffusion, Predict
from ddpm_torch_ref.schedules import Schedule

Step = Callable[..., Tensor]
"""(schedule, x_t, eps, t, s, noise) -> x_s."""


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


def ancestral_step(
    schedule: Schedule,
    x_t: Tensor,
    eps: Tensor,
    t: int,
    s: int,
    noise: Tensor,
    variance: str = "beta",
    *,
    variance_logit: Tensor | None = None,
) -> Tensor:
    """x_t -> x_s, s < t, by p(x_s | x_t).

    Args:
        schedule: the tables of A_t.
        x_t: (B, C, H, W) images at time t.
        eps: (B, C, H, W) estimate of their noise.
        t: a valid time.
        s: an earlier one, or schedule.first - 1, the clean end.
        noise: (B, C, H, W) standard normal; zeros for the mean alone.
        variance: of the step: "beta"; "posterior", beta~ = beta (1 - A_s)/(1 - A_t); or "learned", whose logarithm is
            f log beta + (1 - f) log beta~, f = (variance_logit + 1)/2. To a clean end, A_s = 1, a learned one adds no noise.
        variance_logit: (B, C, H, W), about [-1, 1], for "learned" only: that of process.estimate.

    Raises:
        ValueError: an unknown variance, or "learned" without variance_logit.

    Ho et al. 2020, algorithm 2; with beta = 1 - A_t / A_s for a chain that leaves steps out (Nichol &
    Dhariwal 2021, section 4), whose eq. 15 is the learned variance.
    """
    abar_t, abar_s = _abar(schedule, t), _abar(schedule, s)
    beta = 1 - abar_t / abar_s
    posterior = beta * (1 - abar_s) / (1 - abar_t)
    mean = (x_t - beta / sqrt(1 - abar_t) * eps) * sqrt(abar_s / abar_t)
    if variance == "beta":
        return mean + sqrt(beta) * noise
    if variance == "posterior":
        return mean + sqrt(posterior) * noise
    if variance != "learned":
        raise ValueError(f"variance must be one of beta, posterior, learned; got {variance!r}.")
    if variance_logit is None:
        raise ValueError("variance must be beta or posterior where there is no variance_logit; got 'learned'.")
    if posterior == 0:
        return mean
    fraction = (variance_logit + 1) / 2
    log_variance = fraction * log(beta) + (1 - fraction) * log(posterior)
    return mean + (0.5 * log_variance).exp() * noise


def strided_step(
    schedule: Schedule, x_t: Tensor, eps: Tensor, t: int, s: int, noise: Tensor, eta: float = 0.1
) -> Tensor:
    """x_t -> x_s as in system 1: the ancestral mean, with the posterior variance in place of beta; not the published DDIM.

    Args:
        schedule: the tables of A_t.
        x_t: (B, C, H, W) images at time t.
        eps: (B, C, H, W) estimate of their noise.
        t: a valid time.
        s: the next one of the grid. A later one leaves x_t as it is: the last of `strided_times` is such.
        noise: (B, C, H, W) standard normal; zeros for the mean alone.
        eta: share of fresh noise, at least 0.

    Raises:
        ValueError: eta < 0.
    """
    if not eta >= 0:
        raise ValueError(f"eta must be at least 0; got {eta}.")
    abar_t, abar_s = _abar(schedule, t), _abar(schedule, s)
    beta = (1 - abar_t / abar_s) * (1 - abar_s) / (1 - abar_t)
    beta = min(max(beta, 0.0), 0.999)
    mean = (x_t - beta / sqrt(1 - abar_t) * eps) / sqrt(1 - beta)
    return mean + eta * sqrt(beta) * noise


def times(schedule: Schedule, num_steps: int) -> NDArray[np.int64]:
    """(num_steps + 1,) times, evenly spread and descending from the last t to the clean end, first - 1.

    Raises:
        ValueError: num_steps outside 1..T.
    """
    _check_num_steps(schedule, num_steps)
    last = schedule.first + schedule.num_steps - 1
    return np.round(np.linspace(last, schedule.first - 1, num_steps + 1)).astype(np.int64)


def quadratic_times(schedule: Schedule, num_steps: int) -> NDArray[np.int64]:
    """(num_steps + 1,) times, descending, whose distance from the first valid t grows with the square; then the clean end.

    t = first + (T - 1) (i/n)^2, rounded, for i = n..1: from the last t, dense near the data. Where two would fall together,
    they move apart by the least that keeps the grid strictly descending.

    Raises:
        ValueError: num_steps outside 1..T.

    Song et al. 2021, "Denoising Diffusion Implicit Models", appendix D.2.
    """
    _check_num_steps(schedule, num_steps)
    fractions = np.arange(num_steps, 0, -1) / num_steps
    return _descending(schedule, np.round(schedule.first + (schedule.num_steps - 1) * fractions**2).astype(np.int64))


def karras_times(schedule: Schedule, num_steps: int, rho: float = 7.0) -> NDArray[np.int64]:
    """(num_steps + 1,) times, descending, evenly spread in tau^(1/rho), tau = sqrt((1 - A)/A); then the clean end.

    From the last valid t to the first, each the valid t that is nearest in log tau. Where two would fall together, they move
    apart by the least that keeps the grid strictly descending.

    Args:
        schedule: one whose A_T is above 0.
        num_steps: n, in 1..T.
        rho: above 0; the larger, the denser near the data.

    Raises:
        ValueError: num_steps outside 1..T, rho <= 0, or A_T = 0.

    Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative Models", eq. 5.
    """
    _check_num_steps(schedule, num_steps)
    if not rho > 0:
        raise ValueError(f"rho must be above 0; got {rho}.")
    log_taus = -_log_ratios(schedule)
    ends = np.exp(log_taus[[-1, 0]]) ** (1 / rho)
    return _nearest(schedule, log_taus, rho * np.log(np.linspace(ends[0], ends[1], num_steps)))


def log_snr_times(schedule: Schedule, num_steps: int) -> NDArray[np.int64]:
    """(num_steps + 1,) times, descending, evenly spread in lambda = log sqrt(A/(1 - A)); then the clean end.

    From the last valid t to the first, each the valid t that is nearest in lambda. Where two would fall together, they move
    apart by the least that keeps the grid strictly descending.

    Raises:
        ValueError: num_steps outside 1..T, or A_T = 0.

    Lu et al. 2022, "DPM-Solver: A Fast ODE Solver for Diffusion Probabilistic Model Sampling in Around 10 Steps", section 3.3.
    """
    _check_num_steps(schedule, num_steps)
    lambdas = _log_ratios(schedule)
    return _nearest(schedule, lambdas, np.linspace(lambdas[-1], lambdas[0], num_steps))


def strided_times(schedule: Schedule, num_steps: int) -> NDArray[np.int64]:
    """(num_steps + 1,) times of system 1: num_steps descending ones, T // num_steps apart, down to the first valid t.

    Then the original's index -1 wraps to the end of its list first, first + k, first + 2k, … (all below first + T): the grid
    ends with that late time, to which `strided_step` does not move.

    Raises:
        ValueError: num_steps outside 1..T.
    """
    _check_num_steps(schedule, num_steps)
    tau = schedule.timesteps[:: schedule.num_steps // num_steps]
    return np.append(tau[:num_steps][::-1], tau[-1])


@torch.no_grad()
def sample(
    process: GaussianDiffusion,
    predict: Predict,
    x_T: Tensor,
    times: Sequence[int] | NDArray[np.int64],
    step: Step,
    noises: Sequence[Tensor] | Tensor,
    clip: float | None = None,
    *,
    means: bool = False,
    learned_variance: bool = False,
) -> tuple[Tensor, list[Tensor]]:
    """Run a step down a grid of times, from pure noise to images.

    Args:
        process: turns the network's output into the pair (x_0, eps).
        predict: the network, (x_t, t) -> output, t of shape (B,).
        x_T: (B, C, H, W) standard normal.
        times: n + 1 times, as `times` or `strided_times` gives them.
        step: ancestral_step, ddim_step, strided_step, or one of them with its options bound.
        noises: noises[i], of x_T's shape, is the noise of step i; the last step takes none.
        clip: clip x_0 to [-clip, clip] at every step and recompute eps from it; None leaves both.
        means: list the mean of each step in place of its state: these are the frames of system 1.
        learned_variance: hand the step the estimate's variance_logit, as ancestral_step with variance "learned" wants it.

    Returns:
        The images, and the list of all n + 1 states from x_T to them.
    """
    x_t = x_T
    states = [x_t]
    num_steps = len(times) - 1
    for i in range(num_steps):
        t, s = int(times[i]), int(times[i + 1])
        t_batch = torch.full((len(x_t),), t, dtype=torch.int64, device=x_t.device)
        x_0, eps, variance_logit = process.estimate(x_t, predict(x_t, t_batch), t_batch)
        if clip is not None:
            eps = process.eps_given_x_0(x_t, x_0.clamp(-clip, clip), t_batch)
        zeros = torch.zeros_like(x_t)
        move = partial(step, variance_logit=variance_logit) if learned_variance else step
        x_s = move(process.schedule, x_t, eps, t, s, noises[i] if i < num_steps - 1 else zeros)
        states.append(move(process.schedule, x_t, eps, t, s, zeros) if means else x_s)
        x_t = x_s
    return x_t, states


def _abar(schedule: Schedule, t: int) -> float:
    """A_t; 1 before a table that starts at t = 0."""
    return 1.0 if t < 0 else float(schedule.alphas_cumprod[t])


def _check_num_steps(schedule: Schedule, num_steps: int) -> None:
    if not 1 <= num_steps <= schedule.num_steps:
        raise ValueError(f"num_steps must lie in 1..{schedule.num_steps}, the schedule's T; got {num_steps}.")


def _log_ratios(schedule: Schedule) -> NDArray[np.float64]:
    """(T,) lambda = log(alpha/sigma) of the valid t, ascending in t; the grids that are spread in it need it finite."""
    abars = schedule.alphas_cumprod[schedule.first :]
    if abars[-1] == 0:
        raise ValueError("schedule must have its last alphas_cumprod above 0, for a grid spread in alpha/sigma; got 0.")
    return 0.5 * np.log(abars / (1 - abars))


def _nearest(schedule: Schedule, table: NDArray[np.float64], wanted: NDArray[np.float64]) -> NDArray[np.int64]:
    """The grid of those valid t whose entries of the table are nearest to the wanted ones, the smaller t of two as near."""
    nearest = [int(np.argmin(np.abs(table - value))) for value in wanted]
    return _descending(schedule, schedule.first + np.array(nearest, dtype=np.int64))


def _descending(schedule: Schedule, times: NDArray[np.int64]) -> NDArray[np.int64]:
    """The times made strictly descending, and the clean end after them."""
    below = inf
    for i in range(len(times)):
        times[i] = below = min(times[i], below - 1)
    for i in range(len(times)):
        # Going down may have used up the room that the last ones need.
        times[i] = max(times[i], schedule.first + len(times) - 1 - i)
    return np.append(times, schedule.first - 1)
