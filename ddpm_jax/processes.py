"""What is learned: how data becomes noise, and what a network's output says of the data and the noise in x_t."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ddpm_jax.errors import UserError
from ddpm_jax.schedules import Schedule

Prediction = Literal["eps", "x0", "v"]
Loss = Literal["mse", "l1", "huber"]
Variance = Literal["beta", "posterior"]
Predict = Callable[[Float[Array, "b *shape"], Int[Array, "b"]], Float[Array, "b *shape"]]
"""A network seen from outside: (x_t, t) -> what it was trained to predict."""


class Level(NamedTuple):
    """The place of a time on the path x_t = alpha x_0 + sigma eps; both broadcast against x_t."""

    alpha: Float[Array, "..."]
    sigma: Float[Array, "..."]


class Estimate(NamedTuple):
    """What x_t is believed to be made of: the clean data and the noise, each of the shape of x_t."""

    x_0: Float[Array, "b *shape"]
    eps: Float[Array, "b *shape"]


@dataclass(frozen=True)
class GaussianDiffusion:
    """Data mixed with Gaussian noise along a discrete schedule (Ho et al. 2020).

    prediction: what the network is trained to output: the noise `eps`, the data `x0`, or the velocity `v` = alpha eps - sigma x_0
    (Salimans & Ho 2022). loss: mean square, mean absolute, or Huber (delta 1) error of that output, times the P2 weight
    (p2_k + snr)^-p2_gamma (Choi et al. 2022, eq. 8), which is 1 for the default p2_gamma of 0.

    Raises:
        UserError: an unknown prediction or loss.
    """

    schedule: Schedule
    prediction: Prediction = "eps"
    loss: Loss = "mse"
    p2_gamma: float = 0.0
    p2_k: float = 1.0

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("prediction", self.prediction, get_args(Prediction)),
            ("loss", self.loss, get_args(Loss)),
        ):
            if value not in allowed:
                raise UserError(f"{name} must be one of {', '.join(allowed)}; got {value!r}.")

    def level(self, t: Int[Array, "b"] | np.ndarray, like: Float[Array, "..."]) -> Level:
        """The levels of the times t, shape (n,), cast once to the dtype of `like` and shaped (n, 1, ...) to broadcast against it.

        t = schedule.first - 1 is the clean end of a chain that starts at 0: alpha 1, sigma 0.
        """
        clean = 1 - self.schedule.first
        tables = (
            np.append(np.ones(clean), self.schedule.sqrt_alphas_cumprod),
            np.append(np.zeros(clean), self.schedule.sqrt_one_minus_alphas_cumprod),
        )
        shape = (-1,) + (1,) * (like.ndim - 1)
        return Level(*(jnp.asarray(table, like.dtype)[jnp.asarray(t) + clean].reshape(shape) for table in tables))

    def add_noise(
        self, x_0: Float[Array, "b *shape"], noise: Float[Array, "b *shape"], t: Int[Array, "b"]
    ) -> Float[Array, "b *shape"]:
        """x_t = alpha_t x_0 + sigma_t eps for t in schedule.timesteps (DDPM, eq. 4)."""
        alpha, sigma = self.level(t, x_0)
        return alpha * x_0 + sigma * noise

    def target(
        self, x_0: Float[Array, "b *shape"], noise: Float[Array, "b *shape"], t: Int[Array, "b"]
    ) -> Float[Array, "b *shape"]:
        """What the network should output for x_t = add_noise(x_0, noise, t)."""
        if self.prediction == "eps":
            return noise
        if self.prediction == "x0":
            return x_0
        alpha, sigma = self.level(t, x_0)
        return alpha * noise - sigma * x_0

    def estimate(self, x_t: Float[Array, "b *shape"], output: Float[Array, "b *shape"], t: Int[Array, "b"]) -> Estimate:
        """The pair (x_0, eps) that a network's output stands for: x_t = alpha_t x_0 + sigma_t eps holds exactly for it."""
        alpha, sigma = self.level(t, x_t)
        if self.prediction == "eps":
            return Estimate((x_t - sigma * output) / alpha, output)
        if self.prediction == "x0":
            return Estimate(output, (x_t - alpha * output) / sigma)
        return Estimate(alpha * x_t - sigma * output, sigma * x_t + alpha * output)

    def eps_given_x_0(
        self, x_t: Float[Array, "b *shape"], x_0: Float[Array, "b *shape"], t: Int[Array, "b"]
    ) -> Float[Array, "b *shape"]:
        """The noise that takes x_0 to x_t: (x_t - alpha_t x_0) / sigma_t."""
        alpha, sigma = self.level(t, x_t)
        return (x_t - alpha * x_0) / sigma

    def posterior(
        self,
        x_0: Float[Array, "b *shape"],
        x_t: Float[Array, "b *shape"],
        t: Int[Array, "b"],
        variance: Variance = "posterior",
    ) -> tuple[Float[Array, "b *shape"], Float[Array, "..."]]:
        """Mean of q(x_{t-1} | x_t, x_0) and the variance given to the reverse step (DDPM, eq. 6-7 and section 3.2).

        variance: `posterior` is that of q itself (best for data that is one point), `beta` is beta_t (best for Gaussian data).
        """
        schedule = self.schedule
        chosen = schedule.posterior_variance if variance == "posterior" else schedule.betas
        shape = (-1,) + (1,) * (x_t.ndim - 1)
        coef1, coef2, var = (
            jnp.asarray(table, x_t.dtype)[t].reshape(shape)
            for table in (schedule.posterior_mean_coef1, schedule.posterior_mean_coef2, chosen)
        )
        return coef1 * x_0 + coef2 * x_t, var

    def draw_times(self, key: jax.Array, n: int) -> Int[Array, "n"]:
        """n timesteps, uniform over schedule.timesteps."""
        first = self.schedule.first
        return jax.random.randint(key, (n,), first, first + self.schedule.num_steps)

    def loss_per_example(
        self,
        predict: Predict,
        x_0: Float[Array, "b *shape"],
        noise: Float[Array, "b *shape"],
        t: Int[Array, "b"],
    ) -> Float[Array, "b"]:
        """The error of predict(x_t, t) against its target, averaged over each example; mse of eps is L_simple (DDPM, eq. 14)."""
        error = predict(self.add_noise(x_0, noise, t), t) - self.target(x_0, noise, t)
        if self.loss == "mse":
            loss = error**2
        elif self.loss == "l1":
            loss = jnp.abs(error)
        else:
            size = jnp.abs(error)
            loss = jnp.where(size < 1.0, 0.5 * error**2, size - 0.5)
        loss = loss.mean(axis=tuple(range(1, loss.ndim)))
        if self.p2_gamma == 0:
            return loss
        return loss * jnp.asarray((self.p2_k + self.schedule.snr) ** -self.p2_gamma, loss.dtype)[t]

    def times(self, num_steps: int | None = None) -> np.ndarray:
        """The descending grid a sampler walks: num_steps + 1 evenly spaced int32 times, from the last timestep to the clean end.

        num_steps None is the whole chain. Raises UserError unless 1 <= num_steps <= T.
        """
        last = int(self.schedule.timesteps[-1])
        longest = self.schedule.num_steps
        if num_steps is None:
            num_steps = longest
        if not 1 <= num_steps <= longest:
            raise UserError(f"steps must lie in 1..{longest} (the schedule's length); got {num_steps}.")
        return np.round(np.linspace(last, self.schedule.first - 1, num_steps + 1)).astype(np.int32)
