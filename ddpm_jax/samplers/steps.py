"""Pure steps x_t -> x_s: one function each, in the levels (alpha, sigma) of t and s."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ddpm_jax.processes import Estimate, Level

Step = Callable[..., jax.Array]
"""step(x_t, hat, t, s, noise) -> x_s: hat is the Estimate of (x_0, eps) at x_t; t and s are the Levels gone from and to.

A step that `looks_back` takes a further argument past: Past.
"""


class Seen(NamedTuple):
    """An earlier state of the walk: what the network was shown, at which level, and what it made of it."""

    x_t: Float[Array, "b *shape"]
    hat: Estimate
    level: Level


class Past(NamedTuple):
    """The walk so far, as far as a step looks back."""

    seen: tuple[Seen, ...]
    """The latest state first. Before there are so many, the oldest hold zeros."""
    taken: Int[Array, ""]
    """How many steps were taken."""


S = TypeVar("S", bound=Step)


def looks_back(depth: int) -> Callable[[S], S]:
    """Mark a step that is to be told the last `depth` states of the walk: it takes past: Past after the noise."""

    def mark(step: S) -> S:
        step.depth = depth  # type: ignore[attr-defined]
        return step

    return mark


def depth_of(step: Any) -> int:
    """How many earlier states a step, or a functools.partial of one, looks back at."""
    return getattr(getattr(step, "func", step), "depth", 0)


# One evaluation, no memory


def ddim_step(
    x_t: Float[Array, "b *shape"],
    hat: Estimate,
    t: Level,
    s: Level,
    noise: Float[Array, "b *shape"],
    *,
    eta: float = 0.0,
) -> Float[Array, "b *shape"]:
    """x_t -> x_s along the DDIM family (Song et al. 2021, eq. 12 and 16); eta 0 is deterministic, eta 1 ancestral sampling.

    With eta 0 it is Euler's step, in sigma/alpha (Karras et al. 2022) as well as in the time of a linear path, and works upwards
    too; with eta 1 it is the "Euler ancestral" step. Shapes: x_t, noise (B, ...). Requires eta in [0, 1].
    """
    if eta == 0:
        return s.alpha * hat.x_0 + s.sigma * hat.eps
    std = eta * s.sigma * jnp.sqrt(1 - (t.alpha / s.alpha * s.sigma / t.sigma) ** 2)
    return s.alpha * hat.x_0 + jnp.sqrt(jnp.maximum(s.sigma**2 - std**2, 0)) * hat.eps + std * noise


def ancestral_step(
    x_t: Float[Array, "b *shape"],
    hat: Estimate,
    t: Level,
    s: Level,
    noise: Float[Array, "b *shape"],
    *,
    variance: str = "beta",
) -> Float[Array, "b *shape"]:
    """x_t -> x_s by the reverse chain (Ho et al. 2020, eq. 6-7 and algorithm 2), also between times that are not neighbours.

    variance: `beta` = 1 - (alpha_t / alpha_s)^2, `posterior` = beta sigma_s^2 / sigma_t^2, or `learned`, between the two in its
    logarithm (Nichol & Dhariwal 2021, eq. 15). Shapes: x_t, noise (B, ...).
    """
    kept = (s.sigma / t.sigma) ** 2
    # beta / sigma_t^2; near the data, in float32, beta itself would have lost most of its digits
    fresh = 1 - (t.alpha / s.alpha) ** 2 * kept
    mean = s.alpha * fresh * hat.x_0 + t.alpha / s.alpha * kept * x_t
    if variance == "learned":
        assert hat.variance_logit is not None  # `samplers.create` refuses what has none
        upper_share = (hat.variance_logit + 1) / 2
        # sigma_t^share sigma_s^(1 - share), which at the clean end would be 0^0 where the network says 1
        deviation = jnp.where(s.sigma > 0, t.sigma**upper_share * s.sigma ** (1 - upper_share), 0)
    else:
        deviation = t.sigma if variance == "beta" else s.sigma
    return mean + jnp.sqrt(fresh) * deviation * noise


def strided_step(
    x_t: Float[Array, "b *shape"],
    hat: Estimate,
    t: Level,
    s: Level,
    noise: Float[Array, "b *shape"],
    *,
    eta: float = 0.1,
) -> Float[Array, "b *shape"]:
    """x_t -> x_s as system 1 does: the mean of `ancestral_step`, the posterior *variance* in beta's place, noise times eta.

    Not the published DDIM. On the grid of `strided_times`, whose last time lies above the one before, beta clips to 0 there and
    x_t is returned as it is. Shapes: x_t, noise (B, ...).
    """
    beta = jnp.clip((1 - (t.alpha / s.alpha) ** 2) * (s.sigma / t.sigma) ** 2, 0, 0.999)
    mean = (x_t - beta / t.sigma * hat.eps) / jnp.sqrt(1 - beta)
    return mean + eta * jnp.sqrt(beta) * noise


# One evaluation, and what was seen before


def log_snr(level: Level) -> Float[Array, "..."]:
    """lambda = log(alpha / sigma): minus infinity where there is no data, infinity where there is no noise."""
    return jnp.log(level.alpha) - jnp.log(level.sigma)


def _shrink(t: Level, s: Level) -> Float[Array, "..."]:
    """e^-h with h = lambda_s - lambda_t; 0 to the clean end and from pure noise."""
    return s.sigma / t.sigma * (t.alpha / s.alpha)


def _extrapolated(hat: Estimate, t: Level, s: Level, past: Past) -> Float[Array, "b *shape"]:
    """x_0 halfway to s by the line through its last two estimates; the last one where there is one only, and to the clean end."""
    before, lambda_t = past.seen[0], log_snr(t)
    half = (log_snr(s) - lambda_t) / (lambda_t - log_snr(before.level)) / 2
    usable = (past.taken > 0) & (s.sigma > 0)
    return hat.x_0 + jnp.where(usable, half, 0) * (hat.x_0 - before.hat.x_0)


@looks_back(1)
def dpmpp_2m_step(
    x_t: Float[Array, "b *shape"], hat: Estimate, t: Level, s: Level, noise: Float[Array, "b *shape"], past: Past
) -> Float[Array, "b *shape"]:
    """x_t -> x_s by DPM-Solver++(2M), second order (Lu et al. 2022b, algorithm 2)."""
    return s.sigma / t.sigma * x_t + s.alpha * (1 - _shrink(t, s)) * _extrapolated(hat, t, s, past)


@looks_back(1)
def dpmpp_2m_sde_step(
    x_t: Float[Array, "b *shape"], hat: Estimate, t: Level, s: Level, noise: Float[Array, "b *shape"], past: Past
) -> Float[Array, "b *shape"]:
    """x_t -> x_s by SDE-DPM-Solver++(2M): fresh noise at every step (Lu et al. 2022b, section 5)."""
    shrink = _shrink(t, s)
    fresh = 1 - shrink**2
    kept = s.sigma / t.sigma * shrink * x_t
    return kept + s.alpha * fresh * _extrapolated(hat, t, s, past) + s.sigma * jnp.sqrt(fresh) * noise


@looks_back(2)
def dpmpp_3m_step(
    x_t: Float[Array, "b *shape"], hat: Estimate, t: Level, s: Level, noise: Float[Array, "b *shape"], past: Past
) -> Float[Array, "b *shape"]:
    """x_t -> x_s by DPM-Solver++(3M), third order once three estimates are there (Lu et al. 2022b).

    The second derivative of x_0 is twice its divided difference. The reference code and diffusers leave that 2 out, and are of
    second order for it.
    """
    one, two = past.seen
    lambda_t, lambda_1, lambda_2 = map(log_snr, (t, one.level, two.level))
    h = log_snr(s) - lambda_t
    r_1, r_2 = (lambda_t - lambda_1) / h, (lambda_1 - lambda_2) / h
    has_1 = past.taken > 0
    has_2 = past.taken > 1
    slope_1 = jnp.where(has_1, (hat.x_0 - one.hat.x_0) / r_1, 0)
    bend = jnp.where(has_2, slope_1 - (one.hat.x_0 - two.hat.x_0) / r_2, 0)
    slope = slope_1 + jnp.where(has_2, r_1 / (r_1 + r_2), 0) * bend
    curve = jnp.where(has_2, 2 * bend / (r_1 + r_2), 0)
    phi_1 = jnp.expm1(-h)
    phi_2 = phi_1 / h + 1
    phi_3 = phi_2 / h - 0.5
    first = s.sigma / t.sigma * x_t + s.alpha * (1 - _shrink(t, s)) * hat.x_0
    # without two estimates the second order is that of `dpmpp_2m_step`
    second = jnp.where(has_2, phi_2, -phi_1 / 2) * slope
    higher = s.alpha * (second - jnp.where(has_2, phi_3, 0) * curve)
    return first + jnp.where((s.sigma > 0) & has_1, higher, 0)


@looks_back(2)
def unipc_step(
    x_t: Float[Array, "b *shape"], hat: Estimate, t: Level, s: Level, noise: Float[Array, "b *shape"], past: Past
) -> Float[Array, "b *shape"]:
    """x_t -> x_s by UniPC of order 2 with B(h) = e^h - 1 (Zhao et al. 2023): x_t is corrected by what the network makes of it,
    and the next state predicted from there. One evaluation a step.
    """
    one, two = past.seen
    corrected = x_t + jnp.where(past.taken > 0, _correction(hat, t, one, two, past.taken), 0)
    return s.sigma / t.sigma * corrected + s.alpha * (1 - _shrink(t, s)) * _extrapolated(hat, t, s, past)


def _correction(hat: Estimate, t: Level, one: Seen, two: Seen, index: Int[Array, ""]) -> Float[Array, "b *shape"]:
    """UniC: what to add to the state at t, predicted from `one`, once the network has seen it.

    Predictor and corrector start from the same x, so their difference needs the estimates alone.
    """
    lambda_1 = log_snr(one.level)
    h = log_snr(t) - lambda_1
    r = (log_snr(two.level) - lambda_1) / h
    back = (two.hat.x_0 - one.hat.x_0) / r
    ahead = hat.x_0 - one.hat.x_0
    # the two conditions of order on (rho_back, rho_ahead): sum = b_1, r rho_back + rho_ahead = b_2
    b_zero = jnp.expm1(-h)
    first = b_zero / -h - 1
    b_1 = first / b_zero
    b_2 = 2 * (first / -h - 0.5) / b_zero
    rho_back = (b_2 - b_1) / (r - 1)
    residue = jnp.where(index > 1, rho_back * back + (b_1 - rho_back) * ahead - back / 2, ahead / 2)
    return -t.alpha * b_zero * residue


# Two evaluations: the grid holds the second one's time too


Straight = Callable[[Estimate, Level], tuple[Any, Any, Any]]
"""(scale, time, slope) in which the path is nearly straight: x = scale y, dy/dtime = slope."""


def karras(hat: Estimate, level: Level) -> tuple[Any, Any, Any]:
    """y = x / alpha over sigma / alpha has the slope eps (Karras et al. 2022, section 4)."""
    return level.alpha, level.sigma / level.alpha, hat.eps


def linear(hat: Estimate, level: Level) -> tuple[Any, Any, Any]:
    """x over t = sigma has the slope eps - x_0, the velocity of a linear path."""
    return 1, level.sigma, hat.eps - hat.x_0


STRAIGHT: dict[str, Straight] = {"karras": karras, "linear": linear}


@looks_back(1)
def heun_step(
    x_t: Float[Array, "b *shape"],
    hat: Estimate,
    t: Level,
    s: Level,
    noise: Float[Array, "b *shape"],
    past: Past,
    *,
    coordinates: str = "karras",
    churn_noise: float = 1.0,
) -> Float[Array, "b *shape"]:
    """Heun's method, second order, two evaluations a step (Karras et al. 2022, algorithms 1 and 2).

    The grid is that of `two_stage`: every second step, from a time to the next, is Euler's; the one after it, at that next time,
    goes back and takes the mean of both slopes. Where its s lies above its t, it then adds noise up to s, times churn_noise.
    """
    straight = STRAIGHT[coordinates]
    start = past.seen[0]
    begun = past.taken % 2 == 1
    scale_t, time_t, slope = straight(hat, t)
    scale_s, time_s, _ = straight(hat, s)
    euler = scale_s * (x_t / scale_t + (time_s - time_t) * slope)
    scale_0, time_0, slope_0 = straight(start.hat, start.level)
    y = start.x_t / scale_0 + (time_t - time_0) * (slope_0 + slope) / 2
    # the root of a rounding error would be noise
    raised = jnp.where(s.sigma > t.sigma, jnp.sqrt(jnp.maximum(time_s**2 - time_t**2, 0)), 0) * churn_noise
    return jnp.where(begun, scale_s * (y + raised * noise), euler)


@looks_back(1)
def midpoint_step(
    x_t: Float[Array, "b *shape"],
    hat: Estimate,
    t: Level,
    s: Level,
    noise: Float[Array, "b *shape"],
    past: Past,
) -> Float[Array, "b *shape"]:
    """The midpoint method on a linear path, second order, two evaluations a step: Euler to the middle, then the whole way with the
    slope found there.

    The grid is that of `with_middles`.
    """
    start = past.seen[0]
    begun = past.taken % 2 == 1
    _, _, slope = linear(hat, t)
    return jnp.where(begun, start.x_t + (s.sigma - start.level.sigma) * slope, x_t + (s.sigma - t.sigma) * slope)
