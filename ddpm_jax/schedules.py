"""Noise schedules: float64 tables on the host, one immutable `Schedule`; those with a name are their own configs."""

import abc
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from ddpm_jax import display
from ddpm_jax.checks import number, whole
from ddpm_jax.errors import UserError
from ddpm_jax.named import DERIVED, Named

Table = np.ndarray
"""A float64 array indexed by the timestep t."""


@dataclass(frozen=True, eq=False)
class Schedule:
    """How much noise a discrete chain carries at every timestep: x_t = sqrt(A_t) x_0 + sqrt(1 - A_t) eps.

    Every table is float64 and indexed by t. `first` is the smallest t at which a network is trained: 0 for tables of T
    entries, 1 for tables of T + 1 entries whose entry 0 stands for (almost) clean data. Schedules with equal tables are equal.

    Raises:
        UserError: the tables are no rows of numbers of one length, there is no valid t, the beta of one lies outside (0, 1] or its
            A outside [0, 1].
    """

    betas: Table
    """Variance of the noise added at t, in (0, 1]."""
    alphas_cumprod: Table
    """A_t, the product of 1 - beta up to t: alpha_t^2 of x_t = alpha_t x_0 + sigma_t eps."""
    first: int = 0
    name: str = ""
    """What it is called where it is shown; empty: nothing."""

    def __post_init__(self) -> None:
        for name in ("betas", "alphas_cumprod"):
            object.__setattr__(self, name, _row(name, getattr(self, name)))
        if len(self.betas) != len(self.alphas_cumprod):
            raise UserError(
                f"betas and alphas_cumprod must have one length; got {len(self.betas)} and {len(self.alphas_cumprod)}."
            )
        if self.first not in (0, 1):
            raise UserError(f"first must be 0 or 1, the smallest t; got {self.first!r}.")
        if len(self.betas) <= self.first:
            raise UserError(f"num_steps must be at least 1; got {len(self.betas) - self.first}.")
        trained = self.betas[self.first :]
        wrong = np.flatnonzero(~((trained > 0) & (trained <= 1)))
        if wrong.size:
            t = int(wrong[0]) + self.first
            raise UserError(f"betas must lie in (0, 1]; betas[{t}] = {self.betas[t]:g}. Change beta_start or beta_end.")
        wrong = np.flatnonzero(~((self.alphas_cumprod >= 0) & (self.alphas_cumprod <= 1)))
        if wrong.size:
            raise UserError(
                f"alphas_cumprod must lie in [0, 1]; alphas_cumprod[{wrong[0]}] = {self.alphas_cumprod[wrong[0]]:g}."
            )
        for table in (self.betas, self.alphas_cumprod):
            table.setflags(write=False)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Schedule)
            and self.first == other.first
            and np.array_equal(self.alphas_cumprod, other.alphas_cumprod)
            and np.array_equal(self.betas, other.betas)
        )

    def __hash__(self) -> int:
        return hash((self.first, self.alphas_cumprod.tobytes()))

    def __repr__(self) -> str:
        first, last = self.timesteps[[0, -1]]
        return display.line(
            "Schedule",
            self.title,
            f"t={first}..{last}",
            f"betas {self.betas[first]:.4g}..{self.betas[last]:.4g}",
            f"A_T={self.alphas_cumprod[last]:.3g}",
        )

    def _repr_html_(self) -> str:
        from ddpm_jax import figures  # matplotlib takes a moment

        curves = {"alphas_cumprod": self.alphas_cumprod[self.timesteps]}
        return display.paragraph(repr(self)) + display.picture(
            figures.curves_png(self.timesteps, curves, xlabel="t"),
            f"alphas_cumprod by t of {self.title}",
        )

    @property
    def title(self) -> str:
        """What it is called where it is shown."""
        return self.name or "of its own"

    @property
    def num_steps(self) -> int:
        """T, the number of timesteps a network is trained at."""
        return len(self.betas) - self.first

    @cached_property
    def timesteps(self) -> np.ndarray:
        """The T valid timesteps, ascending, int32: 0..T-1 or 1..T."""
        return np.arange(self.first, self.first + self.num_steps, dtype=np.int32)

    @cached_property
    def alphas(self) -> Table:
        """1 - beta_t."""
        return 1.0 - self.betas

    @cached_property
    def alphas_cumprod_prev(self) -> Table:
        """A_{t-1}; 1 before the first entry."""
        return np.append(1.0, self.alphas_cumprod[:-1])

    @cached_property
    def sqrt_alphas_cumprod(self) -> Table:
        """alpha_t of x_t = alpha_t x_0 + sigma_t eps."""
        return np.sqrt(self.alphas_cumprod)

    @cached_property
    def sqrt_one_minus_alphas_cumprod(self) -> Table:
        """sigma_t of x_t = alpha_t x_0 + sigma_t eps."""
        return np.sqrt(1.0 - self.alphas_cumprod)

    @cached_property
    def sqrt_recip_alphas(self) -> Table:
        """1 / sqrt(1 - beta_t)."""
        return np.sqrt(_ratio(1.0, self.alphas, at_zero=np.inf))

    @cached_property
    def sqrt_recip_alphas_cumprod(self) -> Table:
        """1 / sqrt(A_t): the weight of x_t in x_0."""
        return np.sqrt(_ratio(1.0, self.alphas_cumprod, at_zero=np.inf))

    @cached_property
    def sqrt_recipm1_alphas_cumprod(self) -> Table:
        """sqrt(1 / A_t - 1): the weight of -eps in x_0."""
        return np.sqrt(_ratio(1.0 - self.alphas_cumprod, self.alphas_cumprod, at_zero=np.inf))

    @cached_property
    def posterior_variance(self) -> Table:
        """Variance of q(x_{t-1} | x_t, x_0): beta_t (1 - A_{t-1}) / (1 - A_t) (DDPM, eq. 7)."""
        return _ratio(self.betas * (1.0 - self.alphas_cumprod_prev), 1.0 - self.alphas_cumprod, at_zero=0.0)

    @cached_property
    def posterior_log_variance_clipped(self) -> Table:
        """Logarithm of the posterior variance; the zero at the start is replaced by its successor (or by beta)."""
        variance = self.posterior_variance.copy()
        zero = variance == 0
        following = np.append(variance[1:], 0.0)
        variance[zero] = np.where(following > 0, following, self.betas)[zero]
        with np.errstate(divide="ignore"):
            return np.log(variance)

    @cached_property
    def posterior_mean_coef1(self) -> Table:
        """Weight of x_0 in the mean of q(x_{t-1} | x_t, x_0): sqrt(A_{t-1}) beta_t / (1 - A_t)."""
        return _ratio(np.sqrt(self.alphas_cumprod_prev) * self.betas, 1.0 - self.alphas_cumprod, at_zero=1.0)

    @cached_property
    def posterior_mean_coef2(self) -> Table:
        """Weight of x_t in the mean of q(x_{t-1} | x_t, x_0): sqrt(a_t) (1 - A_{t-1}) / (1 - A_t)."""
        weight = np.sqrt(self.alphas) * (1.0 - self.alphas_cumprod_prev)
        return _ratio(weight, 1.0 - self.alphas_cumprod, at_zero=0.0)

    @cached_property
    def snr(self) -> Table:
        """Signal-to-noise ratio A_t / (1 - A_t); infinite where there is no noise."""
        return _ratio(self.alphas_cumprod, 1.0 - self.alphas_cumprod, at_zero=np.inf)


def _ratio(above: Table | float, below: Table, at_zero: float) -> Table:
    """above / below, with `at_zero` where below is 0 (the limit there)."""
    return np.divide(above, below, out=np.full_like(below, at_zero), where=below != 0)


@dataclass(frozen=True, eq=False, repr=False)
class NamedSchedule(Named, Schedule, family="schedule"):
    """A schedule that is made of options, which the command line has as flags and a run's config keeps.

    A subclass defines `curve`, of which betas and alphas_cumprod are made, and may say another `first` than 0:
    `class Linear(NamedSchedule, name="linear")`, decorated as this class is.

    Raises:
        UserError: num_steps below 1; an option out of range; or as `Schedule`.
    """

    betas: Table = field(init=False, metadata=DERIVED)
    alphas_cumprod: Table = field(init=False, metadata=DERIVED)
    first: int = field(init=False, default=0, metadata=DERIVED)
    name: str = field(init=False, default="", metadata=DERIVED)  # type: ignore[misc]
    num_steps: int = 1000
    """T, the number of timesteps."""
    zero_terminal_snr: bool = field(default=False, kw_only=True)
    """Rescale the schedule so that x_T holds no data at all; needs prediction v or x0."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "num_steps", whole("num_steps", self.num_steps))
        if self.num_steps < 1:
            raise UserError(f"num_steps must be at least 1; got {self.num_steps}.")
        betas, alphas_cumprod = self.curve()
        if self.zero_terminal_snr:
            betas, alphas_cumprod = _without_signal_at_the_end(betas, alphas_cumprod, self.first)
        object.__setattr__(self, "betas", betas)
        object.__setattr__(self, "alphas_cumprod", alphas_cumprod)
        super().__post_init__()

    @abc.abstractmethod
    def curve(self) -> tuple[Table, Table]:
        """The tables of betas and of A, for num_steps timesteps.

        Raises:
            UserError: an option out of range.
        """

    @property
    def title(self) -> str:
        """What it is called where it is shown."""
        return f"zero_terminal_snr({self.name})" if self.zero_terminal_snr else self.name


@dataclass(frozen=True, eq=False, repr=False)
class Linear(NamedSchedule, name="linear"):
    """betas evenly spaced over [beta_start, beta_end], t = 0..T-1 (Ho et al. 2020, section 4).

    Raises:
        UserError: num_steps below 1, or a beta outside (0, 1].
    """

    beta_start: float = 1e-4
    """First beta."""
    beta_end: float = 0.02
    """Last beta."""

    def curve(self) -> tuple[Table, Table]:
        """Its tables."""
        _check_ends(self.beta_start, self.beta_end)
        return _of(np.linspace(self.beta_start, self.beta_end, self.num_steps))


@dataclass(frozen=True, eq=False, repr=False)
class Cosine(NamedSchedule, name="cosine"):
    """A_t along cos^2, each beta clipped at max_beta, t = 0..T-1 (Nichol & Dhariwal 2021, eq. 17).

    Raises:
        UserError: num_steps below 1, s not positive, or max_beta outside (0, 1].
    """

    s: float = 0.008
    """Offset that keeps the first betas from being too small."""
    max_beta: float = 0.999
    """Largest beta."""

    def curve(self) -> tuple[Table, Table]:
        """Its tables."""
        curve = _squared_cosine(self.num_steps, self.s)
        return _of(np.minimum(1.0 - curve[1:] / curve[:-1], _share("max_beta", self.max_beta)))


@dataclass(frozen=True, eq=False, repr=False)
class Quadratic(Linear, name="quadratic"):
    """betas whose square roots are evenly spaced, t = 0..T-1.

    Raises:
        UserError: num_steps below 1, or a beta outside (0, 1].
    """

    def curve(self) -> tuple[Table, Table]:
        """Its tables."""
        _check_ends(self.beta_start, self.beta_end)
        if self.beta_start <= 0:
            raise UserError(
                f"beta_start and beta_end must lie in (0, 1]; got {self.beta_start:g} and {self.beta_end:g}."
            )
        return _of(np.linspace(self.beta_start**0.5, self.beta_end**0.5, self.num_steps) ** 2)


@dataclass(frozen=True, eq=False, repr=False)
class Sigmoid(Linear, name="sigmoid"):
    """betas along the logistic curve over [-6, 6], scaled into [beta_start, beta_end], t = 0..T-1.

    Raises:
        UserError: num_steps below 1, or a beta outside (0, 1].
    """

    def curve(self) -> tuple[Table, Table]:
        """Its tables."""
        _check_ends(self.beta_start, self.beta_end)
        logistic = 1.0 / (1.0 + np.exp(-np.linspace(-6.0, 6.0, self.num_steps)))
        return _of(logistic * (self.beta_end - self.beta_start) + self.beta_start)


@dataclass(frozen=True, eq=False, repr=False)
class SigmoidCumprod(NamedSchedule, name="sigmoid_cumprod"):
    """A_t along the logistic curve from start to end, from 1 to 0, each beta clipped at max_beta, t = 0..T-1.

    That of Jabri et al. 2023 with a temperature of 1, the default of denoising-diffusion-pytorch; `sigmoid` is another.

    Raises:
        UserError: num_steps below 1, start not below end, or max_beta outside (0, 1].
    """

    start: float = -3.0
    """Where on the logistic curve it begins."""
    end: float = 3.0
    """Where on the logistic curve it ends."""
    max_beta: float = 0.999
    """Largest beta."""

    def curve(self) -> tuple[Table, Table]:
        """Its tables."""
        if not number("start", self.start) < number("end", self.end):
            raise UserError(f"start must lie below end; got {self.start:g} and {self.end:g}.")
        time = np.arange(self.num_steps + 1) / self.num_steps
        logistic = 1.0 / (1.0 + np.exp(-(self.start + (self.end - self.start) * time)))
        curve = logistic[-1] - logistic
        return _of(np.minimum(1.0 - curve[1:] / curve[:-1], _share("max_beta", self.max_beta)))


@dataclass(frozen=True, eq=False, repr=False)
class LinearInclusive(Linear, name="linear_inclusive"):
    """betas evenly spaced with both ends included, t = 1..T: T + 1 entries, and A_0 = 1 - beta_start rather than 1.

    Its `first` is 1. The sampler's last step therefore ends at A_0, a little short of clean data; checkpoints of system 5 were
    trained so.

    Raises:
        UserError: num_steps below 1, or a beta outside (0, 1].
    """

    first: int = field(init=False, default=1, metadata=DERIVED)

    def curve(self) -> tuple[Table, Table]:
        """Its tables."""
        _check_ends(self.beta_start, self.beta_end)
        betas = np.linspace(self.beta_start, self.beta_end, self.num_steps + 1)
        with np.errstate(divide="ignore", invalid="ignore"):  # of a beta of 1, and of one that `Schedule` refuses
            return betas, np.exp(np.cumsum(np.log1p(-betas)))


@dataclass(frozen=True, eq=False, repr=False)
class CosineUnclipped(NamedSchedule, name="cosine_unclipped"):
    """A_t along cos^2 with no beta clipped, t = 1..T: T + 1 entries, A_0 = 1 and A_T = 0 to rounding (system 1). Its
    `first` is 1.

    Raises:
        UserError: num_steps below 1, or s not positive.
    """

    s: float = 0.008
    """Offset that keeps the first betas from being too small."""
    first: int = field(init=False, default=1, metadata=DERIVED)

    def curve(self) -> tuple[Table, Table]:
        """Its tables."""
        curve = _squared_cosine(self.num_steps, self.s)
        alphas_cumprod = curve / curve[0]
        return 1.0 - alphas_cumprod / np.append(1.0, alphas_cumprod[:-1]), alphas_cumprod


linear, cosine, quadratic, sigmoid = Linear, Cosine, Quadratic, Sigmoid
sigmoid_cumprod, linear_inclusive, cosine_unclipped = SigmoidCumprod, LinearInclusive, CosineUnclipped

SCHEDULES: dict[str, type[NamedSchedule]] = NamedSchedule.members
"""Every schedule by name."""


def create(name: str, num_steps: int, **options: Any) -> Schedule:
    """The named schedule over T = num_steps timesteps: `create("linear", 1000, beta_end=0.01)`.

    Raises:
        UserError: the name or an option is unknown (lists what exists), or a value is out of range.
    """
    return NamedSchedule.made(name, {"num_steps": num_steps, **options})


def from_betas(betas: Table) -> Schedule:
    """The schedule over t = 0..T-1 with the given betas, shape (T,), each in (0, 1]."""
    return Schedule(*_of(_row("betas", betas)), name="from_betas")


def zero_terminal_snr(schedule: Schedule) -> Schedule:
    """The schedule with sqrt(A) shifted and stretched so that A_T = 0, and A at the first timestep stays (Lin et al. 2024, alg. 1).

    x_T is then pure noise, as it is when sampling starts; a network that predicts eps learns nothing there.

    Raises:
        UserError: fewer than two timesteps.
    """
    if not isinstance(schedule, Schedule):
        raise UserError(
            f"schedule must be a Schedule, as schedules.linear(1000) makes one; got {display.short(schedule)}."
        )
    if isinstance(schedule, NamedSchedule):
        return replace(schedule, zero_terminal_snr=True)
    tables = _without_signal_at_the_end(schedule.betas, schedule.alphas_cumprod, schedule.first)
    return Schedule(*tables, schedule.first, f"zero_terminal_snr({schedule.name})")


def _without_signal_at_the_end(betas: Table, alphas_cumprod: Table, first: int) -> tuple[Table, Table]:
    if len(betas) - first < 2:
        raise UserError(f"a zero terminal SNR needs at least 2 timesteps; got num_steps = {len(betas) - first}.")
    root = np.sqrt(alphas_cumprod)
    kept = root[first]
    rescaled = ((root - root[-1]) * kept / (kept - root[-1])) ** 2
    rescaled[:first] = alphas_cumprod[:first]
    steeper = 1.0 - rescaled / np.append(1.0, rescaled[:-1])
    steeper[:first] = betas[:first]
    return steeper, rescaled


def _of(betas: Table) -> tuple[Table, Table]:
    """betas with the products of 1 - beta; 0 from a beta on that lies above 1, which `Schedule` refuses."""
    return betas, np.cumprod(np.clip(1.0 - betas, 0.0, 1.0))


def _squared_cosine(num_steps: int, s: float) -> Table:
    if not number("s", s) > 0:
        raise UserError(f"s must be positive; got {s:g}.")
    time = np.arange(num_steps + 1) / num_steps
    return np.cos((time + s) / (1.0 + s) * np.pi / 2) ** 2


def _check_ends(beta_start: float, beta_end: float) -> None:
    if number("beta_start", beta_start) > number("beta_end", beta_end):
        raise UserError(f"beta_start must be at most beta_end; got {beta_start:g} and {beta_end:g}.")


def _share(name: str, value: Any) -> float:
    if not 0 < number(name, value) <= 1:
        raise UserError(f"{name} must lie in (0, 1]; got {value:g}.")
    return float(value)


def _row(name: str, values: Any) -> Table:
    """A copy of a table, float64 (T,)."""
    try:
        found = np.array(values, np.float64)
    except (TypeError, ValueError) as error:
        raise UserError(f"{name} must be numbers, one for each timestep; got {display.short(values)}.") from error
    if found.ndim != 1:
        raise UserError(f"{name} must be one number for each timestep, of shape (T,); got the shape {found.shape}.")
    return found
