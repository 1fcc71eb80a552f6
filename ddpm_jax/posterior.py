"""Posterior sampling: a denoiser told of a linear measurement y = A x_0 + noise, so that any sampler draws from p(x_0 | y).

By Bayes, the score of x_t given y is that of x_t plus grad log p(y | x_t). All methods take p(y | x_t) for a Gaussian around
A x_0 hat, and differ in the covariance of x_0 that they give to it. With V = sigma_t^2 / alpha_t d x_0 hat / d x_t, which is the
covariance of x_0 given x_t where the denoiser is right (Tweedie), each is

    x_0 hat + V A^T u,    u = (covariance of y)^-1 (y - A x_0 hat)

and eps hat with it. V is symmetric, and V v is taken by the network's own gradient.
"""

import abc
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ddpm_jax import display
from ddpm_jax.checks import leaf, whole
from ddpm_jax.denoisers import Denoiser, Wrapper, as_denoiser
from ddpm_jax.errors import UserError
from ddpm_jax.named import Named
from ddpm_jax.operators import Operator
from ddpm_jax.processes import Estimate, Level

__all__ = ["DPS", "MMPS", "Conditioned", "Method", "PiGDM", "conditioned", "conjugate_gradients"]

Apply = Callable[[jax.Array], jax.Array]
"""A linear function of a batch, example by example."""


class Method(Named, abc.ABC, family="method"):
    """How sure x_0 hat is taken to be: a frozen dataclass whose fields are its options; numbers are leaves."""

    __repr__ = display.of_fields

    @abc.abstractmethod
    def weights(
        self,
        residual: Float[Array, "b *measured"],
        noise: Any,
        level: Level,
        covariance: Apply,
        through: Callable[[Apply], Apply],
    ) -> Float[Array, "b *measured"]:
        """u, by which x_0 hat is led up V A^T u.

        residual: y - A x_0 hat. noise: standard deviation of the measurement's. level: of x_t. covariance: v -> V v. through:
        takes a covariance C of x_0 to that of A x_0, u -> A C A^T u.
        """


@jax.tree_util.register_dataclass
@dataclass(frozen=True, repr=False)
class MMPS(Method, name="mmps"):
    """The covariance of x_0 is V itself (moment matching, Rozet et al. 2024): exact where x_0 given x_t is Gaussian.

    Each iteration takes one gradient of the network.

    Raises:
        UserError: iterations below 1.
    """

    iterations: int = field(default=5, metadata={"static": True})
    """Of conjugate gradients, at each evaluation."""

    def __post_init__(self) -> None:
        _check_iterations(self.iterations)

    def weights(
        self,
        residual: Float[Array, "b *measured"],
        noise: Any,
        level: Level,
        covariance: Apply,
        through: Callable[[Apply], Apply],
    ) -> Float[Array, "b *measured"]:
        """(A V A^T + noise^2)^-1 residual."""
        of_y = through(covariance)
        return conjugate_gradients(lambda u: of_y(u) + noise**2 * u, residual, self.iterations)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, repr=False)
class PiGDM(Method, name="pigdm"):
    """Pseudoinverse guidance, PiGDM: the covariance of x_0 is r^2 I (Song et al. 2023, eq. 7-8).

    r^2 = sigma^2 s^2 / (alpha^2 s^2 + sigma^2), the covariance where the data is N(mu, s^2 I), for which this is exact; the
    paper has s = 1. Iterations take the operator alone.

    Raises:
        UserError: iterations below 1, or sigma_data that is not positive.
    """

    sigma_data: Any = 1.0
    """Standard deviation s of the data."""
    iterations: int = field(default=20, metadata={"static": True})
    """Of conjugate gradients, at each evaluation."""

    def __post_init__(self) -> None:
        leaf("sigma_data", self.sigma_data, lambda s: 0 < s < float("inf"), "be positive and finite")
        _check_iterations(self.iterations)

    def weights(
        self,
        residual: Float[Array, "b *measured"],
        noise: Any,
        level: Level,
        covariance: Apply,
        through: Callable[[Apply], Apply],
    ) -> Float[Array, "b *measured"]:
        """(r^2 A A^T + noise^2)^-1 residual."""
        of_x_0 = (level.sigma * self.sigma_data) ** 2 / ((level.alpha * self.sigma_data) ** 2 + level.sigma**2)
        of_y = through(lambda v: of_x_0 * v)
        return conjugate_gradients(lambda u: of_y(u) + noise**2 * u, residual, self.iterations)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, repr=False)
class DPS(Method, name="dps"):
    """Diffusion posterior sampling: x_0 hat is taken to be certain, and scale over the residual's size stands for 1 / (2 noise^2),
    so that `noise` is not looked at (Chung et al. 2023, eq. 16 and algorithm 1, their step size being scale / |y - A x_0 hat|).

    grad log p(y | x_t) = -scale / |y - A x_0 hat| grad |y - A x_0 hat|^2. The paper adds it to each step of the chain; here it is
    part of the score, for any sampler and number of steps.

    Raises:
        UserError: a scale below 0.
    """

    scale: Any = 10.0
    """Strength, 0 or more."""

    def __post_init__(self) -> None:
        leaf("scale", self.scale, lambda scale: 0 <= scale < float("inf"), "be 0 or more, and finite")

    def weights(
        self,
        residual: Float[Array, "b *measured"],
        noise: Any,
        level: Level,
        covariance: Apply,
        through: Callable[[Apply], Apply],
    ) -> Float[Array, "b *measured"]:
        """2 scale residual / |residual|."""
        size = jnp.sqrt(_dot(residual, residual))
        return 2 * self.scale * residual / jnp.where(size > 0, size, 1)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Conditioned(Wrapper):
    """See `conditioned`."""

    inner: Denoiser
    """What is told of the measurement."""
    operator: Operator
    """A."""
    y: Any
    """(B, ...), or (1, ...), one for all."""
    noise: Any
    """Standard deviation of the measurement's."""
    method: Method
    """What stands for the covariance of x_0."""

    def __repr__(self) -> str:
        return self._told("conditioned", operator=self.operator, y=self.y, noise=self.noise, method=self.method)

    def __call__(self, x_t: Float[Array, "b *shape"], t: Any) -> Estimate:
        """x_0 hat + V A^T u, and eps - alpha / sigma V A^T u."""
        t = self._times(t, x_t)
        alpha, sigma = self.process.level(t, x_t)
        seen = alpha > 0
        gain = sigma**2 / jnp.where(seen, alpha, 1)

        def of_x_0(x_t: jax.Array) -> tuple[jax.Array, Estimate]:
            hat = self.inner(x_t, t)
            return hat.x_0, hat

        x_0, pullback, hat = jax.vjp(of_x_0, x_t, has_aux=True)
        self._check(x_0.shape)

        def through(covariance: Apply) -> Apply:
            return lambda u: self.operator(covariance(self.operator.transposed(u, x_0.shape)))

        residual = self.y.astype(x_0.dtype) - self.operator(x_0)
        level = Level(alpha, sigma)
        u = self.method.weights(residual, self.noise, level, lambda v: gain * pullback(v)[0], through)
        # where x_t holds nothing of x_0, no gradient in it says anything of y
        score = jnp.where(seen, pullback(self.operator.transposed(u, x_0.shape))[0], 0)
        return Estimate(x_0 + gain * score, hat.eps - sigma * score, hat.variance_logit)

    def _check(self, shape: tuple[int, ...]) -> None:
        expected = self.operator.measured(shape)
        if self.y.shape not in (expected, (1, *expected[1:])):
            raise UserError(f"y must have the shape {expected} of the operator's {shape}; got {self.y.shape}.")

    def _paired(self, labels: Int[Array, "n"]) -> Denoiser:
        raise UserError("a measurement must be told to what is guided already: conditioned(guided(…), …).")


def conditioned(
    denoise: Denoiser, operator: Operator, y: Any, *, noise: float = 0.0, method: Method | None = None
) -> Denoiser:
    """Told of y = A x_0 + noise eps: a sampler then draws from p(x_0 | y), as far as the method goes.

    operator: A. y: (B, ...) as A gives it, or (1, ...), one for all. noise: standard deviation of the measurement's, 0 or more.
    method: None for MMPS(). Bounds belong around it, clipped(conditioned(…)): within, what is clipped has no gradient. At a time at
    which x_t holds no data, as flow matching's first, it is the denoiser as it is.

    Raises:
        UserError: no denoiser, operator, array or method, or noise below 0; when called, a y of another shape.
    """
    if not isinstance(operator, Operator):
        raise UserError(
            f"operator must be one of ddpm_jax.operators, or operators.of(function, shape); got {display.short(operator)}."
        )
    if method is not None and not isinstance(method, Method):
        raise UserError(
            f"method must be one of {', '.join(Method.members)}, as posterior.MMPS(); got {display.short(method)}."
        )
    if not jnp.issubdtype(getattr(y, "dtype", None) or object, jnp.floating):
        raise UserError(f"y must be an array of floats, (B, ...); got {display.short(y)}.")
    leaf("noise", noise, lambda noise: 0 <= noise < float("inf"), "be 0 or more, and finite")
    return Conditioned(as_denoiser(denoise), operator, jnp.asarray(y), noise, MMPS() if method is None else method)


def conjugate_gradients(apply: Apply, b: Float[Array, "b *shape"], iterations: int) -> Float[Array, "b *shape"]:
    """x with apply(x) = b after so many iterations from 0 (Hestenes & Stiefel 1952), for symmetric positive definite `apply`.

    Each example is a system of its own, so that none depends on what it is solved beside; `jax.scipy.sparse.linalg.cg` takes the
    batch for one. An example along whose direction `apply` is not positive stays where it has come to.
    """

    def iterate(_: Any, state: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        x, left, along = state
        applied = apply(along)
        size, curvature = _dot(left, left), _dot(along, applied)
        goes_on = curvature > 0
        length = jnp.where(goes_on, size / jnp.where(goes_on, curvature, 1), 0)
        x, left = x + length * along, left - length * applied
        ratio = _dot(left, left) / jnp.where(size > 0, size, 1)
        return x, left, jnp.where(goes_on, left + ratio * along, 0)

    return jax.lax.fori_loop(0, iterations, iterate, (jnp.zeros_like(b), b, b))[0]


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    """(B, 1, ...): the inner product of each example."""
    return (a * b).sum(tuple(range(1, a.ndim)), keepdims=True)


def _check_iterations(iterations: Any) -> None:
    if whole("iterations", iterations) < 1:
        raise UserError(f"iterations must be at least 1; got {iterations}.")
