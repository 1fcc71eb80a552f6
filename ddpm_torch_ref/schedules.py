"""Noise schedules: float64 tables on the host, one immutable Schedule.

b_t is beta_t, a_t = 1 - b_t, and A_t, the cumulative product of a, is often written alpha-bar.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, wraps
from typing import Any

import numpy as np
from numpy.typing import NDArray

Table = NDArray[np.float64]
"""Indexed by the time t."""


def _table(compute: Callable[[Any], Table]) -> cached_property[Table]:
    """Compute a table once, on first use, and make it read-only."""

    @wraps(compute)
    def once(schedule: "Schedule") -> Table:
        # A table that starts at t = 1 may have A_0 = 1: its quotients at entry 0 are not finite, and never used.
        with np.errstate(divide="ignore", invalid="ignore"):
            table = compute(schedule)
        table.flags.writeable = False
        return table

    return cached_property(once)


@dataclass(frozen=True, eq=False)
class Schedule:
    """The tables of one discrete diffusion, float64, each indexed by t.

    The chain's clean end is t = first - 1: A = 1 before a table from t = 0, entry 0 of one from t = 1.

    Args:
        betas: (T + first,) variances of the forward steps. Where a schedule is made of its A_t, the last one may be 1, or round to
            it.
        alphas_cumprod: (T + first,) A_t; those at valid t lie in (0, 1), and may end in 0 (see zero_terminal_snr).
        first: first valid t, 0 or 1.
        name: how it is called when it is printed.

    Raises:
        ValueError: no valid t, tables of different lengths, or an A_t out of range.

    Ho et al. 2020, "Denoising Diffusion Probabilistic Models", section 2.
    """

    betas: Table
    alphas_cumprod: Table
    first: int = 0
    name: str = ""

    def __repr__(self) -> str:
        last = len(self.betas) - 1
        ends = f"beta {self.betas[self.first]:.3g} to {self.betas[last]:.3g}"
        return f"Schedule({self.name}, t {self.first} to {last}, {ends})"

    def __post_init__(self) -> None:
        betas, products = (np.array(table, dtype=np.float64) for table in (self.betas, self.alphas_cumprod))
        if betas.ndim != 1 or len(betas) <= self.first:
            raise ValueError(f"betas must be one row of more than {self.first} numbers; its shape is {betas.shape}.")
        if products.shape != betas.shape:
            raise ValueError(f"alphas_cumprod must have betas' shape, {betas.shape}; got {products.shape}.")
        for t in range(self.first, len(products)):
            if not 0 <= products[t] < 1 or (products[t] == 0 and products[t:].any()):
                raise ValueError(f"alphas_cumprod must lie in (0, 1); alphas_cumprod[{t}] = {products[t]}.")
        for name, table in (("betas", betas), ("alphas_cumprod", products)):
            table.flags.writeable = False
            object.__setattr__(self, name, table)

    @property
    def num_steps(self) -> int:
        """T, the number of valid t."""
        return len(self.betas) - self.first

    @property
    def timesteps(self) -> NDArray[np.int64]:
        """(T,) the valid t, ascending."""
        return np.arange(self.first, len(self.betas), dtype=np.int64)

    @_table
    def alphas(self) -> Table:
        """a_t = 1 - b_t, as A_t / A_{t-1}: b_t may round to 1."""
        return self.alphas_cumprod / self.alphas_cumprod_prev

    @_table
    def alphas_cumprod_prev(self) -> Table:
        """A_{t-1}, which is 1 at t = 0."""
        before = np.roll(self.alphas_cumprod, 1)
        before[0] = 1
        return before

    @_table
    def sqrt_alphas_cumprod(self) -> Table:
        """sqrt(A_t), the weight of x_0 in x_t (DDPM eq. 4)."""
        return np.sqrt(self.alphas_cumprod)

    @_table
    def sqrt_one_minus_alphas_cumprod(self) -> Table:
        """sqrt(1 - A_t), the weight of eps in x_t (DDPM eq. 4)."""
        return np.sqrt(1 - self.alphas_cumprod)

    @_table
    def sqrt_recip_alphas(self) -> Table:
        """1 / sqrt(a_t)."""
        return 1 / np.sqrt(self.alphas)

    @_table
    def sqrt_recip_alphas_cumprod(self) -> Table:
        """sqrt(1 / A_t), the weight of x_t in x_0."""
        return np.sqrt(1 / self.alphas_cumprod)

    @_table
    def sqrt_recipm1_alphas_cumprod(self) -> Table:
        """sqrt(1 / A_t - 1), minus the weight of eps in x_0."""
        return np.sqrt(1 / self.alphas_cumprod - 1)

    @_table
    def posterior_variance(self) -> Table:
        """b_t (1 - A_{t-1}) / (1 - A_t), variance of q(x_{t-1} | x_t, x_0) (DDPM eq. 7)."""
        return self.betas * (1 - self.alphas_cumprod_prev) / (1 - self.alphas_cumprod)

    @_table
    def posterior_log_variance_clipped(self) -> Table:
        """Log of the posterior variance; where the first valid t has none, that of the second (Ho et al.)."""
        variance = self.posterior_variance.copy()
        if variance[self.first] == 0:
            variance[self.first] = variance[self.first + 1] if self.num_steps > 1 else self.betas[self.first]
        return np.log(variance)

    @_table
    def posterior_mean_coef1(self) -> Table:
        """b_t sqrt(A_{t-1}) / (1 - A_t), the weight of x_0 in the posterior mean (DDPM eq. 7)."""
        return self.betas * np.sqrt(self.alphas_cumprod_prev) / (1 - self.alphas_cumprod)

    @_table
    def posterior_mean_coef2(self) -> Table:
        """sqrt(a_t) (1 - A_{t-1}) / (1 - A_t), the weight of x_t in the posterior mean (DDPM eq. 7)."""
        return np.sqrt(self.alphas) * (1 - self.alphas_cumprod_prev) / (1 - self.alphas_cumprod)

    @_table
    def snr(self) -> Table:
        """A_t / (1 - A_t), the ratio of signal to noise in variance."""
        return self.alphas_cumprod / (1 - self.alphas_cumprod)


def from_betas(betas: Table) -> Schedule:
    """The schedule of (T,) betas in (0, 1), t = 0..T-1.

    Raises:
        ValueError: a beta out of range.
    """
    return _from_betas(betas, "from_betas")


def _from_betas(betas: Table, name: str) -> Schedule:
    betas = np.asarray(betas, dtype=np.float64)
    for t in np.flatnonzero(~((betas > 0) & (betas < 1))):
        raise ValueError(f"betas must lie in (0, 1); betas[{t}] = {betas[t]}.")
    return Schedule(betas, np.cumprod(1 - betas, dtype=np.float64), name=name)


def linear(num_steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> Schedule:
    """b_t evenly spaced from beta_start to beta_end, t = 0..T-1.

    Raises:
        ValueError: num_steps < 1, or an end outside (0, 1).

    Ho et al. 2020, section 4.
    """
    _check(num_steps, beta_start=beta_start, beta_end=beta_end)
    return _from_betas(np.linspace(beta_start, beta_end, num_steps), "linear")


def linear_inclusive(num_steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> Schedule:
    """b_t = beta_start + (beta_end - beta_start) t/T, t = 1..T, and A_t a product that begins with a_0 (system 5).

    So the clean end of the chain, A_0 = 1 - beta_start, is not quite clean.

    Raises:
        ValueError: num_steps < 1, or an end outside (0, 1).
    """
    _check(num_steps, beta_start=beta_start, beta_end=beta_end)
    betas = (beta_end - beta_start) * np.arange(num_steps + 1) / num_steps + beta_start
    return Schedule(betas, np.exp(np.cumsum(np.log(1 - betas))), first=1, name="linear_inclusive")


def cosine(num_steps: int = 1000, s: float = 0.008, max_beta: float = 0.999) -> Schedule:
    """b_t = min(1 - f((t+1)/T) / f(t/T), max_beta), f(u) = cos^2((u + s)/(1 + s) pi/2), t = 0..T-1.

    Raises:
        ValueError: num_steps < 1, s < 0, or max_beta outside (0, 1).

    Nichol & Dhariwal 2021, "Improved Denoising Diffusion Probabilistic Models", eq. 17.
    """
    _check(num_steps, max_beta=max_beta)
    f = _squared_cosine(num_steps, s)
    return _from_betas(np.minimum(1 - f[1:] / f[:-1], max_beta), "cosine")


def cosine_unclipped(num_steps: int = 1000, s: float = 0.008) -> Schedule:
    """A_t = f(t/T) / f(0), f(u) = cos^2((u + s)/(1 + s) pi/2), t = 1..T; A_0 = 1 (system 1).

    Raises:
        ValueError: num_steps < 1, or s < 0.

    Nichol & Dhariwal 2021, "Improved Denoising Diffusion Probabilistic Models", eq. 17, without their limit on b_t.
    """
    _check(num_steps)
    f = _squared_cosine(num_steps, s)
    products = f / f[0]
    betas = np.concatenate([[0], 1 - products[1:] / products[:-1]])
    return Schedule(betas, products, first=1, name="cosine_unclipped")


def quadratic(num_steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> Schedule:
    """sqrt(b_t) evenly spaced between the roots of beta_start and beta_end, t = 0..T-1.

    Raises:
        ValueError: num_steps < 1, or an end outside (0, 1).
    """
    _check(num_steps, beta_start=beta_start, beta_end=beta_end)
    return _from_betas(np.linspace(beta_start**0.5, beta_end**0.5, num_steps) ** 2, "quadratic")


def sigmoid(num_steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> Schedule:
    """b_t = beta_start + (beta_end - beta_start) / (1 + exp(-u)), u evenly spaced over [-6, 6], t = 0..T-1.

    Raises:
        ValueError: num_steps < 1, or an end outside (0, 1).
    """
    _check(num_steps, beta_start=beta_start, beta_end=beta_end)
    logistic = 1 / (1 + np.exp(-np.linspace(-6, 6, num_steps)))
    return _from_betas(logistic * (beta_end - beta_start) + beta_start, "sigmoid")


def sigmoid_cumprod(num_steps: int = 1000, start: float = -3.0, end: float = 3.0, max_beta: float = 0.999) -> Schedule:
    """b_t = min(1 - f((t+1)/T) / f(t/T), max_beta), f(u) = s(end) - s(start + (end - start) u), s logistic, t = 0..T-1.

    Raises:
        ValueError: num_steps < 1, start >= end, or max_beta outside (0, 1).

    Jabri et al. 2023, "Scalable Adaptive Computation for Iterative Generation", with their temperature at 1.
    """
    _check(num_steps, max_beta=max_beta)
    if not start < end:
        raise ValueError(f"start must be below end; got {start} and {end}.")
    positions = np.linspace(start, end, num_steps + 1)
    f = 1 / (1 + np.exp(-end)) - 1 / (1 + np.exp(-positions))
    return _from_betas(np.minimum(1 - f[1:] / f[:-1], max_beta), "sigmoid_cumprod")


def zero_terminal_snr(schedule: Schedule) -> Schedule:
    """The schedule with sqrt(A_t) shifted and scaled so that A_T is exactly 0 and the first valid A_t stays as it is.

    The last x_t is then nothing but noise, and no network can tell its x_0 from eps: predict "v" or "x0".

    Args:
        schedule: of at least two steps; entry 0 of a table that starts at t = 1 stays as it is.

    Raises:
        ValueError: T < 2.

    Lin et al. 2024, "Common Diffusion Noise Schedules and Sample Steps are Flawed", algorithm 1.
    """
    if schedule.num_steps < 2:
        raise ValueError(
            f"schedule must have at least 2 steps, to keep its first and zero its last; got {schedule.num_steps}."
        )
    first = schedule.first
    roots = schedule.sqrt_alphas_cumprod[first:]
    shifted = (roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])
    products = np.concatenate([schedule.alphas_cumprod[:first], shifted**2])
    before = np.concatenate([[1], products[:-1]])
    betas = np.concatenate([schedule.betas[:first], (1 - products / before)[first:]])
    return Schedule(betas, products, first, name=f"zero_terminal_snr({schedule.name})")


def _squared_cosine(num_steps: int, s: float) -> Table:
    """f(t/T), t = 0..T, of Nichol & Dhariwal 2021, eq. 17."""
    if not s >= 0:
        raise ValueError(f"s must be at least 0; got {s}.")
    return np.cos((np.arange(num_steps + 1) / num_steps + s) / (1 + s) * np.pi / 2) ** 2


def _check(num_steps: int, **betas: float) -> None:
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1; got {num_steps}.")
    for name, beta in betas.items():
        if not 0 < beta < 1:
            raise ValueError(f"{name} must lie in (0, 1); got {beta}.")
