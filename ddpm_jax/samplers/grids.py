"""Grids of times: where a sampler evaluates the network, from the noisiest time down to the clean end."""

from collections.abc import Callable

import numpy as np

from ddpm_jax.errors import UserError
from ddpm_jax.processes import GaussianDiffusion, LinearPath, Process
from ddpm_jax.schedules import Schedule


def even(process: Process, num_steps: int | None = None) -> np.ndarray:
    """Evenly spaced times: (num_steps + 1,), the clean end last; None: the whole chain."""
    return process.times(num_steps)


def leading(process: Process, num_steps: int | None = None) -> np.ndarray:
    """Every (T // num_steps)-th timestep from the first on, so that the noisiest is left out; then the clean end.

    What the library diffusers takes unless told otherwise.
    """
    schedule = _chain(process, "leading")
    n = process.checked(num_steps)
    return np.append(schedule.first + np.arange(n)[::-1] * (schedule.num_steps // n), schedule.first - 1).astype(
        np.int32
    )


def quadratic(process: Process, num_steps: int | None = None) -> np.ndarray:
    """Times whose square roots are evenly spaced: most of them close to the data (Song et al. 2021, appendix D.2)."""
    n = process.checked(num_steps)
    share = (np.arange(n, 0, -1) / n) ** 2
    if isinstance(process, LinearPath):
        return np.append(share, 0.0)
    schedule = _chain(process, "quadratic")
    return _descending(schedule, np.round(schedule.first + (schedule.num_steps - 1) * share))


def karras(process: Process, num_steps: int | None = None, rho: float = 7.0) -> np.ndarray:
    """Times whose (sigma / alpha)^(1 / rho) are evenly spaced, rounded to timesteps (Karras et al. 2022, eq. 5)."""
    return _by_log_ratio(process, num_steps, lambda log: np.exp(log / rho), lambda root: rho * np.log(root), "karras")


def log_snr(process: Process, num_steps: int | None = None) -> np.ndarray:
    """Times whose log(alpha / sigma) are evenly spaced, rounded to timesteps (Lu et al. 2022a, section 3)."""
    return _by_log_ratio(process, num_steps, lambda log: log, lambda log: log, "log_snr")


def strided(process: Process, num_steps: int | None = None) -> np.ndarray:
    """System 1's grid: tau = first + (0, k, 2k, ... < T) with k = T // num_steps, walked from tau[num_steps - 1] down to tau[0].

    The original then looks up tau[-1] for the time after the last, which wraps around to tau's largest entry; so does this grid.
    Raises UserError unless 1 <= num_steps <= T, or where the process has no discrete chain.
    """
    schedule = _chain(process, "strided")
    num_steps = process.checked(num_steps)
    tau = schedule.first + np.arange(0, schedule.num_steps, schedule.num_steps // num_steps)
    return np.append(tau[:num_steps][::-1], tau[-1]).astype(np.int32)


GRIDS: dict[str, Callable[[Process, int | None], np.ndarray]] = {
    "even": even,
    "leading": leading,
    "quadratic": quadratic,
    "karras": karras,
    "log_snr": log_snr,
    "strided": strided,
}


def two_stage(process: Process, grid: np.ndarray, churn: float = 0.0) -> np.ndarray:
    """The grid t_0, t_1, t_1, t_2, t_2, ... of a method that evaluates the network at both ends of each step but the last.

    With churn, the second of each pair lies higher by the factor 1 + min(churn / N, sqrt(2) - 1) in sigma / alpha, rounded to a
    timestep (Karras et al. 2022, algorithm 2): noise is added up to it before the next step.

    Raises:
        UserError: churn on a process without timesteps.
    """
    inner = grid[1:-1]
    again = inner
    if churn:
        if not isinstance(process, GaussianDiffusion):
            raise UserError(
                f"churn goes back up to a timestep, and flow matching has none: it must be 0; got {churn:g}."
            )
        schedule = process.schedule
        log_ratio = _log_ratios(schedule)
        gain = np.log1p(min(churn / (len(grid) - 1), np.sqrt(2.0) - 1.0))
        wanted = log_ratio[inner - schedule.first] + gain
        again = np.maximum(_nearest(log_ratio, wanted) + schedule.first, inner)
    pairs = np.stack([inner, again], axis=1).reshape(-1)
    return np.concatenate([grid[:1], pairs, grid[-1:]]).astype(grid.dtype)


def with_middles(process: Process, grid: np.ndarray) -> np.ndarray:
    """The grid t_0, m_0, t_1, m_1, ... with the middle m of each step between its ends; the midpoint method evaluates at both."""
    if not isinstance(process, LinearPath):
        raise UserError(
            "the midpoint method needs times between timesteps: sampler = midpoint fits flow matching alone."
        )
    middles = (grid[:-1] + grid[1:]) / 2
    return np.append(np.stack([grid[:-1], middles], axis=1).reshape(-1), grid[-1])


def _by_log_ratio(
    process: Process,
    num_steps: int | None,
    forth: Callable[[np.ndarray], np.ndarray],
    back: Callable[[np.ndarray], np.ndarray],
    name: str,
) -> np.ndarray:
    schedule = _chain(process, name)
    n = process.checked(num_steps)
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


def _chain(process: Process, spacing: str) -> Schedule:
    if not isinstance(process, GaussianDiffusion):
        raise UserError(f"spacing = {spacing} is made of timesteps, and flow matching has none; use even.")
    return process.schedule
