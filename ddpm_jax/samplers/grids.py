"""Grids of times: where a sampler evaluates the network, from the noisiest time down to the clean end."""

from collections.abc import Callable
from typing import Any

import numpy as np

from ddpm_jax.errors import UserError, meant
from ddpm_jax.processes import EDM, Continuous, GaussianDiffusion, Process
from ddpm_jax.schedules import Schedule


def even(process: Process, num_steps: int | None = None) -> np.ndarray:
    """The process's own times: (num_steps + 1,), the clean end last, evenly spaced on a chain and on a straight path, and in
    sigma^(1/rho) for EDM; None: the whole chain."""
    return process.times(num_steps)


def leading(process: Process, num_steps: int | None = None) -> np.ndarray:
    """Every (T // num_steps)-th timestep from the first on, so that the noisiest is left out; then the clean end.

    What the library diffusers takes unless told otherwise.
    """
    schedule = chain(process, "leading")
    n = process.sampling_steps(num_steps)
    return np.append(schedule.first + np.arange(n)[::-1] * (schedule.num_steps // n), schedule.first - 1).astype(
        np.int32
    )


def linspace(process: Process, num_steps: int | None = None) -> np.ndarray:
    """Evenly spaced timesteps from the last to the first, both among them; then the clean end. One step: the first alone.

    The spacing of that name of the library diffusers.
    """
    schedule = chain(process, "linspace")
    share = np.linspace(0, schedule.num_steps - 1, process.sampling_steps(num_steps))
    return np.append(schedule.first + np.round(share[::-1]), schedule.first - 1).astype(np.int32)


def trailing(process: Process, num_steps: int | None = None) -> np.ndarray:
    """Evenly spaced times as `even`, but that halfway between two timesteps may fall to the other one.

    The spacing of that name of the library diffusers, to the last digit: rounding decides on which side of a half a time lies.
    """
    schedule = chain(process, "trailing")
    n, T = process.sampling_steps(num_steps), schedule.num_steps
    # of some n rounding gives one time more, 0
    left = np.round(np.arange(T, 0, -T / n))[:n]
    return np.append(schedule.first - 1 + left, schedule.first - 1).astype(np.int32)


def quadratic(process: Process, num_steps: int | None = None) -> np.ndarray:
    """Times whose square roots are evenly spaced: most of them close to the data (Song et al. 2021, appendix D.2)."""
    n = process.sampling_steps(num_steps)
    share = (np.arange(n, 0, -1) / n) ** 2
    if isinstance(process, Continuous):
        return np.append(process.times(1)[0] * share, 0.0)
    schedule = chain(process, "quadratic")
    return _descending(schedule, np.round(schedule.first + (schedule.num_steps - 1) * share))


def karras(process: Process, num_steps: int | None = None, rho: float = 7.0) -> np.ndarray:
    """Times whose (sigma / alpha)^(1 / rho) are evenly spaced, rounded to timesteps (Karras et al. 2022, eq. 5); EDM's own."""
    if isinstance(process, EDM):
        return process.times(num_steps)
    return _by_log_ratio(process, num_steps, lambda log: np.exp(log / rho), lambda root: rho * np.log(root), "karras")


def log_snr(process: Process, num_steps: int | None = None) -> np.ndarray:
    """Times whose log(alpha / sigma) are evenly spaced, rounded to timesteps (Lu et al. 2022a, section 3)."""
    if isinstance(process, EDM):
        return np.append(np.geomspace(process.sigma_max, process.sigma_min, process.sampling_steps(num_steps)), 0.0)
    return _by_log_ratio(process, num_steps, lambda log: log, lambda log: log, "log_snr")


GRIDS: dict[str, Callable[[Process, int | None], np.ndarray]] = {
    "even": even,
    "leading": leading,
    "linspace": linspace,
    "trailing": trailing,
    "quadratic": quadratic,
    "karras": karras,
    "log_snr": log_snr,
}
"""Every spacing by name: (process, num_steps) -> descending times, (num_steps + 1,), the clean end last."""


def times(process: Process, num_steps: int | None = None, spacing: Any = "even") -> np.ndarray:
    """Descending times, (num_steps + 1,), the clean end last.

    num_steps: None for the whole chain. spacing: one of GRIDS, or the times themselves.

    Raises:
        UserError: num_steps outside 1..T, an unknown spacing, or times that the process does not have.
    """
    if isinstance(spacing, str):
        if spacing not in GRIDS:
            raise UserError(
                f"spacing must be one of {', '.join(GRIDS)}, or an array of times; "
                f"got {spacing!r}.{meant(spacing, GRIDS)}"
            )
        return GRIDS[spacing](process, num_steps)
    if num_steps is not None:
        raise UserError(f"spacing gives the times themselves, so that steps must be None; got {num_steps}.")
    found, (first, last) = np.asarray(spacing), process.times(1)
    if (
        found.dtype.kind not in "iuf"
        or found.ndim != 1
        or len(found) < 2
        or not (np.diff(found) < 0).all()
        or found[0] > first
        or found[-1] < last
    ):
        raise UserError(f"times must be 2 or more and descend within {first:g}..{last:g}; got {spacing!r}.")
    if isinstance(process, GaussianDiffusion) and not np.issubdtype(found.dtype, np.integer):
        raise UserError(f"times of a chain must be whole numbers; got {found.dtype}.")
    return found


def rows(times: np.ndarray) -> np.ndarray:
    """The grid of a method that goes from each time to the next: a row (t, s) for each step."""
    return np.stack([times[:-1], times[1:]], axis=1)


def raised(process: Process, grid: np.ndarray, churn: float, within: tuple[float, float]) -> np.ndarray:
    """Rows (t, s, up): once at s, noise is added up to the time `up`, where the next row begins (Karras et al. 2022, algorithm 2).

    It lies higher by the factor 1 + min(churn / N, sqrt(2) - 1) in sigma / alpha, where that lies within the two bounds, rounded to
    a timestep on a chain; the last row stays. The first row of a chain begins at its last timestep, that of EDM is raised too.

    Raises:
        UserError: a straight path, whose sigma / alpha is infinite at its beginning.
    """
    gain = 1 + min(churn / len(grid), np.sqrt(2.0) - 1.0)
    starts, (least, most) = grid[:, 0], within
    if isinstance(process, EDM):
        up = np.where((least <= starts) & (starts <= most), gain * starts, starts)
    elif isinstance(process, GaussianDiffusion):
        schedule = process.schedule
        log_ratio = _log_ratios(schedule)
        here = log_ratio[starts - schedule.first]
        higher = _nearest(log_ratio, here + np.log(gain)) + schedule.first
        inside = (least <= np.exp(here)) & (np.exp(here) <= most)
        up = np.where(inside, np.maximum(higher, starts), starts)
        up[0] = starts[0]
    else:
        raise UserError(
            f"churn goes up in sigma / alpha, and a straight path begins at infinity: it must be 0; got {churn:g}."
        )
    return np.stack([up, grid[:, 1], np.append(up[1:], grid[-1, 1])], axis=1).astype(grid.dtype)


def _by_log_ratio(
    process: Process,
    num_steps: int | None,
    forth: Callable[[np.ndarray], np.ndarray],
    back: Callable[[np.ndarray], np.ndarray],
    name: str,
) -> np.ndarray:
    schedule = chain(process, name)
    n = process.sampling_steps(num_steps)
    log_ratio = _log_ratios(schedule)
    if not np.isfinite(log_ratio[-1]):
        raise UserError(f"spacing = {name} needs data in x_T, and the schedule ends at pure noise; use even.")
    wanted = back(np.linspace(forth(log_ratio[-1]), forth(log_ratio[0]), n))
    return _descending(schedule, _nearest(log_ratio, wanted) + schedule.first)


def _log_ratios(schedule: Schedule) -> np.ndarray:
    """log(sigma / alpha) of each timestep, ascending."""
    of = schedule.alphas_cumprod[schedule.timesteps]
    with np.errstate(divide="ignore"):
        return 0.5 * (np.log1p(-of) - np.log(of))


def _nearest(table: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Index of the entry of an ascending table closest to each number."""
    return np.abs(table[None, :] - np.asarray(wanted)[:, None]).argmin(axis=1)


def _descending(schedule: Schedule, times: np.ndarray) -> np.ndarray:
    """The times with equal ones moved apart, so that every step goes down, and the clean end after them."""
    first, n = schedule.first, len(times)
    times = times.astype(np.int64)
    for i in range(1, n):
        times[i] = min(times[i], times[i - 1] - 1)
    return np.append(np.maximum(times, first + np.arange(n)[::-1]), first - 1).astype(np.int32)


def chain(process: Process, spacing: str) -> Schedule:
    """The schedule of a process that has one; UserError otherwise."""
    if not isinstance(process, GaussianDiffusion):
        raise UserError(
            f"spacing = {spacing} is made of timesteps, and process.kind = {process.name} has none; use even."
        )
    return process.schedule
