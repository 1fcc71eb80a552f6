"""Grids of times: where a sampler asks the network, from the noisiest time down to the clean end."""

from collections.abc import Callable
from itertools import pairwise
from math import inf, log
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddpm_torch_ref.processes import EDM, Continuous, GaussianDiffusion, Process
from ddpm_torch_ref.schedules import Schedule

Row = tuple[float, ...]
"""The times of one step: (t, s), from t to s < t."""


def even(process: Process, num_steps: int | None = None) -> NDArray[np.generic]:
    """(num_steps + 1,) times, descending, spread as the process spreads them: evenly, or in sigma^(1/rho); None: the whole chain.

    Raises:
        ValueError: num_steps out of range.
    """
    return process.times(num_steps)


def leading(process: Process, num_steps: int | None = None) -> NDArray[np.generic]:
    """(num_steps + 1,) times: every k-th valid t from the first on, k = T // num_steps, descending; then the clean end.

    Raises:
        ValueError: num_steps out of range, or a process without timesteps.
    """
    schedule, num_steps = chain(process, "leading"), process.sampling_steps(num_steps)
    taken = schedule.timesteps[:: schedule.num_steps // num_steps][:num_steps]
    return np.append(taken[::-1], schedule.first - 1)


def linspace(process: Process, num_steps: int | None = None) -> NDArray[np.generic]:
    """(num_steps + 1,) times: valid t spread evenly from the last down to the first, rounded; then the clean end.

    With one step that is the first valid t.

    Raises:
        ValueError: num_steps out of range, or a process without timesteps.
    """
    schedule, num_steps = chain(process, "linspace"), process.sampling_steps(num_steps)
    indices = np.linspace(0, schedule.num_steps - 1, num_steps).round().astype(np.int64)
    return np.append(schedule.timesteps[indices][::-1], schedule.first - 1)


def trailing(process: Process, num_steps: int | None = None) -> NDArray[np.generic]:
    """(num_steps + 1,) times, T / num_steps apart, counted down from the last valid t and rounded; then the clean end.

    Counted in floating point, as diffusers does, which decides on the times that lie halfway between two.

    Raises:
        ValueError: num_steps out of range, or a process without timesteps.
    """
    schedule, num_steps = chain(process, "trailing"), process.sampling_steps(num_steps)
    counts = np.arange(schedule.num_steps, 0, -schedule.num_steps / num_steps)[:num_steps]
    return np.append(schedule.timesteps[counts.round().astype(np.int64) - 1], schedule.first - 1)


def quadratic(process: Process, num_steps: int | None = None) -> NDArray[np.generic]:
    """(num_steps + 1,) times, descending, whose distance from the first valid t grows with the square; then the clean end.

    t = first + (T - 1) (i/n)^2, rounded, for i = n..1: from the last t, dense near the data. Where two would fall together,
    they move apart by the least that keeps the grid strictly descending. In continuous time t = t_max (i/n)^2.

    Raises:
        ValueError: num_steps out of range.

    Song et al. 2021, "Denoising Diffusion Implicit Models", appendix D.2.
    """
    num_steps = process.sampling_steps(num_steps)
    fractions = np.arange(num_steps, 0, -1) / num_steps
    if isinstance(process, Continuous):
        return np.append(process.times(1)[0] * fractions**2, 0.0)
    schedule = chain(process, "quadratic")
    return _descending(schedule, np.round(schedule.first + (schedule.num_steps - 1) * fractions**2).astype(np.int64))


def karras(process: Process, num_steps: int | None = None, rho: float = 7.0) -> NDArray[np.generic]:
    """(num_steps + 1,) times, descending, evenly spread in tau^(1/rho), tau = sqrt((1 - A)/A); then the clean end.

    From the last valid t to the first, each the valid t that is nearest in log tau. Where two would fall together, they move
    apart by the least that keeps the grid strictly descending.

    Args:
        process: one whose A_T is above 0; of EDM, its own times.
        num_steps: n, in 1..T.
        rho: above 0; the larger, the denser near the data.

    Raises:
        ValueError: num_steps out of range, rho <= 0, A_T = 0, or a process without timesteps.

    Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative Models", eq. 5.
    """
    if isinstance(process, EDM):
        return process.times(num_steps)
    schedule, num_steps = chain(process, "karras"), process.sampling_steps(num_steps)
    if not rho > 0:
        raise ValueError(f"rho must be above 0; got {rho}.")
    log_taus = -_log_ratios(schedule)
    ends = np.exp(log_taus[[-1, 0]]) ** (1 / rho)
    return _nearest(schedule, log_taus, rho * np.log(np.linspace(ends[0], ends[1], num_steps)))


def log_snr(process: Process, num_steps: int | None = None) -> NDArray[np.generic]:
    """(num_steps + 1,) times, descending, evenly spread in lambda = log sqrt(A/(1 - A)); then the clean end.

    From the last valid t to the first, each the valid t that is nearest in lambda. Where two would fall together, they move
    apart by the least that keeps the grid strictly descending.

    Raises:
        ValueError: num_steps out of range, A_T = 0, or a process without timesteps.

    Lu et al. 2022, "DPM-Solver: A Fast ODE Solver for Diffusion Probabilistic Model Sampling in Around 10 Steps", section 3.3.
    """
    if isinstance(process, EDM):
        logs = np.linspace(log(process.sigma_max), log(process.sigma_min), process.sampling_steps(num_steps))
        return np.append(np.exp(logs), 0.0)
    schedule, num_steps = chain(process, "log_snr"), process.sampling_steps(num_steps)
    lambdas = _log_ratios(schedule)
    return _nearest(schedule, lambdas, np.linspace(lambdas[-1], lambdas[0], num_steps))


GRIDS: dict[str, Callable[..., NDArray[np.generic]]] = {
    "even": even,
    "leading": leading,
    "linspace": linspace,
    "trailing": trailing,
    "quadratic": quadratic,
    "karras": karras,
    "log_snr": log_snr,
}
"""Every grid by name."""


def times(process: Process, num_steps: int | None = None, spacing: Any = "even") -> NDArray[np.generic]:
    """(num_steps + 1,) descending times, the clean end last.

    Args:
        process: whose times.
        num_steps: None: the whole chain.
        spacing: one of GRIDS, or the times themselves.

    Raises:
        ValueError: num_steps out of range, an unknown spacing, or times that the process does not have.
    """
    if isinstance(spacing, str):
        if spacing not in GRIDS:
            raise ValueError(f"spacing must be one of {', '.join(GRIDS)}, or times; got {spacing!r}.")
        return GRIDS[spacing](process, num_steps)
    if num_steps is not None:
        raise ValueError(f"num_steps must be None where spacing is the times themselves; got {num_steps}.")
    grid, (noisiest, clean) = np.asarray(spacing), process.times(1)
    if grid.ndim != 1 or len(grid) < 2 or (np.diff(grid) >= 0).any():
        raise ValueError(f"times must be at least two and strictly descending; got {spacing}.")
    if grid[0] > noisiest or grid[-1] < clean:
        raise ValueError(f"times must lie in {clean}..{noisiest}; got {spacing}.")
    if isinstance(process, GaussianDiffusion) and grid.dtype.kind != "i":
        raise ValueError(f"times must be whole numbers on a chain; got {grid.dtype}.")
    return grid


def rows(times: NDArray[np.generic]) -> list[Row]:
    """The rows (t, s) from each time to the next."""
    return list(pairwise(times.tolist()))


def chain(process: Process, spacing: str) -> Schedule:
    """The schedule of a process that has one.

    Raises:
        ValueError: it has none.
    """
    if not isinstance(process, GaussianDiffusion):
        raise ValueError(
            f"spacing must be one that needs no timesteps, as even or quadratic, in continuous time; got {spacing}."
        )
    return process.schedule


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
