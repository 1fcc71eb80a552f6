"""What is learned: how data becomes noise, and what a network's output says of the data and the noise in x_t."""

import abc
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Num

from ddpm_jax import bound, cpu_forms, display
from ddpm_jax.checks import number, whole
from ddpm_jax.errors import UserError, meant
from ddpm_jax.named import BESIDE, DERIVED, Named
from ddpm_jax.schedules import Linear, Schedule, Table

Prediction = Literal["eps", "x0", "v"]
"""What the network of a diffusion outputs."""
Loss = Literal["mse", "l1", "huber"]
"""Mean square, mean absolute or Huber (delta 1) error of the output."""
DiffusionLoss = Literal["mse", "l1", "huber", "vlb", "hybrid"]
"""`Loss`, or the variational bound, alone or beside the mean square."""
Weighting = Literal["none", "p2", "snr", "truncated_snr", "min_snr"]
"""What the error counts for, by the signal-to-noise ratio."""
FixedVariance = Literal["beta", "posterior"]
"""The reverse step's variance: the upper or the lower bound (DDPM, section 3.2)."""
Variance = Literal["beta", "posterior", "learned"]
"""`FixedVariance`, or between the two as the network says."""
TimeDraw = Literal["uniform", "low_discrepancy"]
"""How times of a chain are drawn in training."""
FlowTimeDraw = Literal["uniform", "low_discrepancy", "logit_normal"]
"""How times of a straight path are drawn in training."""
Predict = Callable[[Float[Array, "b *shape"], Num[Array, "b"]], Float[Array, "b *out"]]
"""A network seen from outside: (x_t, t) -> what it was trained to output; x_t as `Process.network_input` gives it, t as
`network_time` does."""

HYBRID_SHARE = 1e-3
"""What the bound counts for beside the mean square error (improved DDPM, eq. 16)."""


class Level(NamedTuple):
    """The place of a time on the path x_t = alpha x_0 + sigma eps; both broadcast against x_t."""

    alpha: Float[Array, "..."]
    sigma: Float[Array, "..."]

    def __repr__(self) -> str:
        return display.of_fields(self)


class Estimate(NamedTuple):
    """What x_t is believed to be made of: the clean data and the noise, each of the shape of x_t."""

    x_0: Float[Array, "b *shape"]
    """The clean data."""
    eps: Float[Array, "b *shape"]
    """The noise, N(0, 1) where the belief is right."""
    variance_logit: Float[Array, "b *shape"] | None = None
    """For a network that learns the variance: where it lies between its bounds, -1 the lower and 1 the upper."""

    def __repr__(self) -> str:
        return display.of_fields(self)


@dataclass(frozen=True)
class Process(Named, abc.ABC, family="kind"):
    """A path from data to noise, x_t = alpha_t x_0 + sigma_t eps, and what a network learns of it.

    A subclass with a name, `class FlowMatching(LinearPath, name="flow")`, is a frozen dataclass whose fields are its options.
    continuous: whether its times are real numbers, and not timesteps. of_intervals: whether its network speaks of the way from t
    to an earlier time, of which it is told too, and not of t alone.
    """

    continuous: ClassVar[bool] = False
    of_intervals: ClassVar[bool] = False

    @property
    @abc.abstractmethod
    def cleanest(self) -> Any:
        """The time nearest to the data at which a network is trained."""

    @abc.abstractmethod
    def level(self, t: Num[Array, "n"] | np.ndarray, like: Float[Array, "..."]) -> Level:
        """The levels of the times t, shape (n,), in the dtype of `like` and shaped (n, 1, ...) to broadcast against it."""

    @abc.abstractmethod
    def time_at(self, ratio: Float[Array, "b"]) -> Num[Array, "b"]:
        """The times at which sigma / alpha has these values; on a chain, of those that a network is trained at, the nearest."""

    def prior(self, noise: Float[Array, "b *shape"], t: Any) -> Float[Array, "b *shape"]:
        """What a walk that begins at the time t starts from, made of standard normal noise."""
        return noise

    def network_time(self, t: Num[Array, "b"]) -> Num[Array, "b"]:
        """The times as the network is told them."""
        return t

    def network_input(self, x_t: Float[Array, "b *shape"], t: Num[Array, "b"]) -> Float[Array, "b *shape"]:
        """x_t as the network is shown it."""
        return x_t

    def add_noise(
        self, x_0: Float[Array, "b *shape"], noise: Float[Array, "b *shape"], t: Num[Array, "b"]
    ) -> Float[Array, "b *shape"]:
        """x_t = alpha_t x_0 + sigma_t eps (DDPM, eq. 4).

        Raises:
            UserError: x_0 and noise that are no floats of one shape, or times that are not those of each example, or out of range.
        """
        check_floats(x_0=x_0, noise=noise)
        if np.shape(noise) != np.shape(x_0):
            raise UserError(f"noise must have the shape of x_0, {np.shape(x_0)}; got {np.shape(noise)}.")
        t = as_times(t)
        if np.shape(t) not in ((), np.shape(x_0)[:1]):
            raise UserError(
                f"t must be a time, or one for each example {np.shape(x_0)[:1]}; got the shape {np.shape(t)}."
            )
        alpha, sigma = self.level(t, x_0)
        return alpha * x_0 + sigma * noise

    @abc.abstractmethod
    def target(
        self, x_0: Float[Array, "b *shape"], noise: Float[Array, "b *shape"], t: Num[Array, "b"]
    ) -> Float[Array, "b *shape"]:
        """What the network should output for x_t = add_noise(x_0, noise, t)."""

    @abc.abstractmethod
    def estimate(self, x_t: Float[Array, "b *shape"], output: Float[Array, "b *out"], t: Num[Array, "b"]) -> Estimate:
        """The pair (x_0, eps) that a network's output stands for: x_t = alpha_t x_0 + sigma_t eps holds exactly for it."""

    def eps_given_x_0(
        self, x_t: Float[Array, "b *shape"], x_0: Float[Array, "b *shape"], t: Num[Array, "b"]
    ) -> Float[Array, "b *shape"]:
        """The noise that takes x_0 to x_t: (x_t - alpha_t x_0) / sigma_t."""
        alpha, sigma = self.level(t, x_t)
        return (x_t - alpha * x_0) / sigma

    @abc.abstractmethod
    def draw_times(self, key: jax.Array, n: int) -> Num[Array, "n"]:
        """n times to train at."""

    @abc.abstractmethod
    def loss_per_example(
        self,
        predict: Predict,
        x_0: Float[Array, "b *shape"],
        noise: Float[Array, "b *shape"],
        t: Num[Array, "b"],
    ) -> Float[Array, "b"]:
        """The error of predict(x_t, t) against its target, averaged over each example."""

    @abc.abstractmethod
    def times(self, num_steps: int | None = None) -> np.ndarray:
        """The descending grid a sampler walks: num_steps + 1 evenly spaced times, from the noisiest to the clean end."""

    @abc.abstractmethod
    def sampling_steps(self, num_steps: int | None) -> int:
        """A number of sampling steps, the process's own for None. Raises UserError where it is out of range."""


@dataclass(frozen=True)
class GaussianDiffusion(Process, name="diffusion"):
    """Data mixed with Gaussian noise along a discrete schedule (Ho et al. 2020); its times are integers.

    prediction: what the network is trained to output: the noise `eps`, the data `x0`, or the velocity `v` = alpha eps - sigma x_0
    (Salimans & Ho 2022).
    loss: mean square, mean absolute, or Huber (delta 1) error of that output; `vlb`: T times the term of the variational bound, in
    bits per dimension; `hybrid`: mse plus a thousandth of vlb, which there trains the variance alone (Nichol & Dhariwal 2021, eq.
    16). weighting of mse, l1 and huber, by the signal-to-noise ratio: `p2` is (p2_k + SNR)^-p2_gamma times the error of the
    output (Choi et al. 2022, eq. 8); `snr`, `truncated_snr` = max(SNR, 1) (Salimans & Ho 2022) and `min_snr` = min(SNR,
    min_snr_gamma) (Hang et al. 2023) are weights of the error of x_0, which is that of eps / SNR, and that of v / (SNR + 1).
    learned_variance: the network's output has twice the channels; the second half places the variance of the reverse step between
    its bounds (improved DDPM, eq. 15); None: as the loss says, which is `hybrid` for one that is learned.
    time_draw: times to train at are independent and uniform, or evenly spread with one common offset (Kingma et al. 2021, app.
    I.1).

    Raises:
        UserError: an unknown word, numbers out of range, or options that exclude each other.
    """

    schedule: Schedule = field(default=Linear(), metadata=BESIDE)
    """Noise schedule."""
    prediction: Prediction = "eps"
    """What the network outputs: the noise, the clean image, or the velocity between them."""
    loss: DiffusionLoss = "mse"
    """Error of that output; vlb: the variational bound; hybrid: mse and the bound, where model.learn_variance is set."""
    weighting: Weighting = "none"
    """Weight of the error by the signal-to-noise ratio."""
    p2_gamma: float = 1.0
    """Exponent of weighting p2, (p2_k + SNR)^-p2_gamma."""
    p2_k: float = 1.0
    """See p2_gamma."""
    min_snr_gamma: float = 5.0
    """Bound of weighting min_snr, min(SNR, min_snr_gamma)."""
    learned_variance: bool | None = field(default=None, metadata=DERIVED)
    """Whether the network says the variance too; in a run model.learn_variance decides."""
    time_draw: TimeDraw = "uniform"
    """How timesteps to train at are drawn: each alone, or evenly spread with one common offset."""

    def __post_init__(self) -> None:
        if self.learned_variance is None:
            object.__setattr__(self, "learned_variance", self.loss == "hybrid")
        if not isinstance(self.schedule, Schedule):
            raise UserError(
                f"schedule must be a Schedule, as schedules.linear(1000) makes one; got {display.short(self.schedule)}."
            )
        _check_words(
            prediction=(self.prediction, Prediction),
            loss=(self.loss, DiffusionLoss),
            weighting=(self.weighting, Weighting),
            time_draw=(self.time_draw, TimeDraw),
        )
        if not number("p2_gamma", self.p2_gamma) >= 0:
            raise UserError(f"p2_gamma must not be negative; got {self.p2_gamma}.")
        for name in ("p2_k", "min_snr_gamma"):
            if not number(name, getattr(self, name)) > 0:
                raise UserError(f"{name} must be positive; got {getattr(self, name)}.")
        if self.loss == "hybrid" and not self.learned_variance:
            raise UserError("loss = hybrid trains a learned variance: it needs model.learn_variance = True.")
        if self.learned_variance and self.loss not in ("vlb", "hybrid"):
            raise UserError(f"a learned variance is trained by loss = hybrid or vlb alone; got {self.loss}.")
        if self.loss == "vlb" and self.weighting != "none":
            raise UserError(
                f"the bound has weights of its own: loss = vlb needs weighting = none; got {self.weighting}."
            )
        if self.loss in ("vlb", "hybrid") and self.schedule.first and self.schedule.alphas_cumprod[0] != 1:
            raise UserError(
                f"loss = {self.loss} bounds the likelihood of clean data: the schedule must end at it, alphas_cumprod[0] = 1; "
                f"got {self.schedule.alphas_cumprod[0]:g}."
            )
        if self.prediction == "eps" and not self.schedule.alphas_cumprod[self.schedule.timesteps].all():
            raise UserError(
                "prediction = eps says nothing where x_t holds no data, as at a zero terminal SNR: use v or x0."
            )

    def __repr__(self) -> str:
        schedule, prediction = self.schedule, self.prediction
        changed = display.changed(
            self, "schedule", "prediction", *([] if self.learned_variance else ["learned_variance"])
        )
        return display.line(self, schedule.title, f"T={schedule.num_steps}", prediction, **changed)

    @property
    def cleanest(self) -> Any:
        """The first timestep."""
        return self.schedule.first

    def time_at(self, ratio: Float[Array, "b"]) -> Int[Array, "b"]:
        """The timesteps whose log(sigma / alpha) is nearest."""
        with np.errstate(divide="ignore"):
            log_ratios = -0.5 * np.log(self.schedule.snr[self.schedule.timesteps])
        between = (log_ratios[1:] + log_ratios[:-1]) / 2
        index = jnp.searchsorted(jnp.asarray(between, ratio.dtype), jnp.log(ratio))
        return self.schedule.first + index.astype(jnp.int32)

    def level(self, t: Int[Array, "n"] | np.ndarray, like: Float[Array, "..."]) -> Level:
        """The levels of the times t, cast once.

        t = schedule.first - 1 is the clean end of a chain that starts at 0: alpha 1, sigma 0.

        Raises:
            UserError: timesteps that are no whole numbers, or lie outside the chain.
        """
        if not jnp.issubdtype(t.dtype, jnp.integer):
            raise UserError(f"t must be a timestep, a whole number; got {display.short(t)}.")
        _check_range(t, self.schedule.first - 1, int(self.schedule.timesteps[-1]))
        clean = 1 - self.schedule.first
        tables = (
            np.append(np.ones(clean), self.schedule.sqrt_alphas_cumprod),
            np.append(np.zeros(clean), self.schedule.sqrt_one_minus_alphas_cumprod),
        )
        return Level(*(_at(table, jnp.asarray(t) + clean, like) for table in tables))

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

    def estimate(self, x_t: Float[Array, "b *shape"], output: Float[Array, "b *out"], t: Int[Array, "b"]) -> Estimate:
        """The pair (x_0, eps) that a network's output stands for, and its word on the variance where it learns one."""
        alpha, sigma = self.level(t, x_t)
        output, logit = self.mean_and_logit(output)
        if self.prediction == "eps":
            return Estimate((x_t - sigma * output) / alpha, output, logit)
        if self.prediction == "x0":
            return Estimate(output, (x_t - alpha * output) / sigma, logit)
        return Estimate(alpha * x_t - sigma * output, sigma * x_t + alpha * output, logit)

    def mean_and_logit(
        self, output: Float[Array, "b *out"]
    ) -> tuple[Float[Array, "b *shape"], Float[Array, "b *shape"] | None]:
        """What of the output concerns the mean, and what the variance (None: it is not learned)."""
        if not self.learned_variance:
            return output, None
        mean, logit = jnp.split(output, 2, axis=-1)
        return mean, logit

    def posterior(
        self,
        x_0: Float[Array, "b *shape"],
        x_t: Float[Array, "b *shape"],
        t: Int[Array, "b"],
        variance: FixedVariance = "posterior",
    ) -> tuple[Float[Array, "b *shape"], Float[Array, "..."]]:
        """Mean of q(x_{t-1} | x_t, x_0) and the variance given to the reverse step (DDPM, eq. 6-7 and section 3.2).

        variance: `posterior` is that of q itself (best for data that is one point), `beta` is beta_t (best for Gaussian data).
        """
        schedule = self.schedule
        chosen = schedule.posterior_variance if variance == "posterior" else schedule.betas
        tables = (schedule.posterior_mean_coef1, schedule.posterior_mean_coef2, chosen)
        coef1, coef2, var = (_at(table, t, x_t) for table in tables)
        return coef1 * x_0 + coef2 * x_t, var

    def log_variance(self, hat: Estimate, t: Int[Array, "b"], variance: Variance) -> Float[Array, "..."]:
        """Logarithm of the reverse step's variance in the bound, finite at the first timestep too (improved DDPM, section 3.1)."""
        schedule = self.schedule
        lower = _at(schedule.posterior_log_variance_clipped, t, hat.x_0)
        if variance == "posterior":
            return lower
        betas = schedule.betas.copy()
        if variance == "beta":
            if schedule.num_steps > 1:
                betas[schedule.first] = schedule.posterior_variance[schedule.first + 1]
            return _at(np.log(betas), t, hat.x_0)
        if hat.variance_logit is None:
            raise UserError("variance = learned needs a network that learns it: learned_variance = True.")
        with np.errstate(divide="ignore"):
            upper = _at(np.log(betas), t, hat.x_0)
        fraction = (hat.variance_logit + 1) / 2
        return fraction * upper + (1 - fraction) * lower

    def bound_term(
        self,
        hat: Estimate,
        x_0: Float[Array, "b *shape"],
        x_t: Float[Array, "b *shape"],
        t: Int[Array, "b"],
        variance: Variance = "posterior",
    ) -> Float[Array, "b"]:
        """The term of the variational bound that belongs to t, in bits per dimension (DDPM, eq. 5).

        KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)); at the first timestep -log p(x_0 | x_t) of 8-bit data in [-1, 1]. The terms
        of all t and the prior's add up to the bound. hat: what the network makes of x_t = add_noise(x_0, noise, t).
        """
        mean, _ = self.posterior(x_0, x_t, t)
        mean_hat, _ = self.posterior(hat.x_0, x_t, t)
        log_variance = _at(self.schedule.posterior_log_variance_clipped, t, x_t)
        log_variance_hat = self.log_variance(hat, t, variance)
        kl = bound.normal_kl(mean, log_variance, mean_hat, log_variance_hat)
        return jnp.where(t == self.schedule.first, bound.decoder(x_0, mean_hat, log_variance_hat), kl)

    def loss_weights(self) -> Table:
        """What the error of the output counts for at each t, by `weighting`."""
        snr = self.schedule.snr
        if self.weighting == "none":
            return np.ones_like(snr)
        if self.weighting == "p2":
            return (self.p2_k + snr) ** -self.p2_gamma
        of_x_0 = {
            "snr": snr,
            "truncated_snr": np.maximum(snr, 1.0),
            "min_snr": np.minimum(snr, self.min_snr_gamma),
        }[self.weighting]
        per_output = {"x0": np.ones_like(snr), "eps": snr, "v": snr + 1.0}[self.prediction]
        # entries without noise belong to no timestep
        return np.divide(of_x_0, per_output, out=np.ones_like(snr), where=np.isfinite(of_x_0 + per_output))

    def draw_times(self, key: jax.Array, n: int) -> Int[Array, "n"]:
        """n timesteps out of schedule.timesteps."""
        first, num_steps = self.schedule.first, self.schedule.num_steps
        if self.time_draw == "uniform":
            return jax.random.randint(key, (n,), first, first + num_steps)
        return first + jnp.int32(_spread(key, n) * num_steps).clip(0, num_steps - 1)

    def loss_per_example(
        self,
        predict: Predict,
        x_0: Float[Array, "b *shape"],
        noise: Float[Array, "b *shape"],
        t: Int[Array, "b"],
    ) -> Float[Array, "b"]:
        """The error of predict(x_t, t) against its target, averaged over each example; mse of eps is L_simple (DDPM, eq. 14)."""
        x_t = self.add_noise(x_0, noise, t)
        output = predict(x_t, self.network_time(t))
        variance: Variance = "learned" if self.learned_variance else "posterior"
        if self.loss == "vlb":
            return self.schedule.num_steps * self.bound_term(self.estimate(x_t, output, t), x_0, x_t, t, variance)
        mean, logit = self.mean_and_logit(output)
        loss = _error(mean - self.target(x_0, noise, t), "mse" if self.loss == "hybrid" else self.loss)
        if self.weighting != "none":
            loss = loss * jnp.asarray(self.loss_weights(), loss.dtype)[t]
        if logit is None:
            return loss
        # the mean is left to the mean square error: the bound's gradients are too noisy for it
        hat = self.estimate(x_t, jnp.concatenate([jax.lax.stop_gradient(mean), logit], axis=-1), t)
        return loss + HYBRID_SHARE * self.schedule.num_steps * self.bound_term(hat, x_0, x_t, t, variance)

    def times(self, num_steps: int | None = None) -> np.ndarray:
        """The descending grid a sampler walks: num_steps + 1 evenly spaced int32 times, from the last timestep to the clean end.

        num_steps None is the whole chain. Raises UserError unless 1 <= num_steps <= T.
        """
        last = int(self.schedule.timesteps[-1])
        num_steps = self.sampling_steps(num_steps)
        return np.round(np.linspace(last, self.schedule.first - 1, num_steps + 1)).astype(np.int32)

    def sampling_steps(self, num_steps: int | None) -> int:
        """A number of sampling steps; None: T. Raises UserError unless it lies in 1..T."""
        longest = self.schedule.num_steps
        if num_steps is None:
            return longest
        num_steps = whole("steps", num_steps)
        if not 1 <= num_steps <= longest:
            raise UserError(f"steps must lie in 1..{longest} (the schedule's length); got {num_steps}.")
        return num_steps


class Continuous(Process):
    """A path whose times are real numbers; num_steps and loss are options of each."""

    continuous = True
    num_steps: int
    """Steps of a sampler that is given no number."""
    loss: Loss
    """Error of the network's output."""

    def __repr__(self) -> str:
        return display.line(self, **display.changed(self))

    def loss_per_example(
        self,
        predict: Predict,
        x_0: Float[Array, "b *shape"],
        noise: Float[Array, "b *shape"],
        t: Float[Array, "b"],
    ) -> Float[Array, "b"]:
        """The error of predict(x_t, t) against its target, averaged over each example."""
        output = predict(self.network_input(self.add_noise(x_0, noise, t), t), self.network_time(t))
        return _error(output - self.target(x_0, noise, t), self.loss)

    def sampling_steps(self, num_steps: int | None) -> int:
        """A number of sampling steps; None: the process's own. Raises UserError unless it is at least 1."""
        if num_steps is None:
            return self.num_steps
        num_steps = whole("steps", num_steps)
        if num_steps < 1:
            raise UserError(f"steps must be at least 1; got {num_steps}.")
        return num_steps


@dataclass(frozen=True, repr=False)
class LinearPath(Continuous):
    """x_t = (1 - t) x_0 + t eps for t in [0, 1]: alpha = 1 - t, sigma = t.

    num_steps: networks are told t (num_steps - 1), which is what their embeddings are made for; also the steps of a sampler that is
    given no number. loss: error of the output. time_draw: times to train at are uniform, evenly spread with one common offset, or
    logit-normal, 1 / (1 + e^-z) of a standard normal z, which favours the middle (Esser et al. 2024, section 3.1).

    Raises:
        UserError: an unknown word, or num_steps below 2.
    """

    num_steps: int = 1000
    """The network is told t (num_steps - 1); also the steps of a sampler that is given no number."""
    loss: Loss = "mse"
    """Error of the network's output."""
    time_draw: FlowTimeDraw = "uniform"
    """How times to train at are drawn: each alone, evenly spread with one common offset, or more often in the middle."""

    def __post_init__(self) -> None:
        _check_words(loss=(self.loss, Loss), time_draw=(self.time_draw, FlowTimeDraw))
        if whole("num_steps", self.num_steps) < 2:
            raise UserError(f"num_steps must be at least 2; got {self.num_steps}.")

    @property
    def cleanest(self) -> Any:
        """The data."""
        return 0.0

    def time_at(self, ratio: Float[Array, "b"]) -> Float[Array, "b"]:
        """ratio / (1 + ratio), at infinity 1."""
        return 1 / (1 + 1 / ratio)

    def level(self, t: Float[Array, "n"] | np.ndarray, like: Float[Array, "..."]) -> Level:
        """alpha = 1 - t and sigma = t.

        Raises:
            UserError: times outside [0, 1].
        """
        _check_range(t, 0, 1)
        sigma = _wide(jnp.asarray(t, like.dtype), like)
        return Level(1 - sigma, sigma)

    def network_time(self, t: Float[Array, "b"]) -> Float[Array, "b"]:
        """t (num_steps - 1)."""
        return t * (self.num_steps - 1)

    def draw_times(self, key: jax.Array, n: int) -> Float[Array, "n"]:
        """n times in [0, 1)."""
        if self.time_draw == "logit_normal":
            return jax.nn.sigmoid(jax.random.normal(key, (n,)))
        return _spread(key, n) if self.time_draw == "low_discrepancy" else jax.random.uniform(key, (n,))

    def times(self, num_steps: int | None = None) -> np.ndarray:
        """num_steps + 1 evenly spaced float64 times from 1 to 0; None: the process's own number. UserError unless at least 1."""
        return np.linspace(1.0, 0.0, self.sampling_steps(num_steps) + 1)


@dataclass(frozen=True, repr=False)
class FlowMatching(LinearPath, name="flow"):
    """The network learns the velocity dx/dt = eps - x_0 of the straight path (Lipman et al. 2023; Liu et al. 2023)."""

    def target(
        self, x_0: Float[Array, "b *shape"], noise: Float[Array, "b *shape"], t: Float[Array, "b"]
    ) -> Float[Array, "b *shape"]:
        """eps - x_0."""
        return noise - x_0

    def estimate(
        self, x_t: Float[Array, "b *shape"], output: Float[Array, "b *shape"], t: Float[Array, "b"]
    ) -> Estimate:
        """The pair (x_0, eps) whose difference is the velocity."""
        alpha, sigma = self.level(t, x_t)
        return Estimate(x_t - sigma * output, x_t + alpha * output)


@dataclass(frozen=True, repr=False)
class AlphaBlending(FlowMatching, name="blending"):
    """Iterative alpha-(de)blending: flow matching the other way round (Heitz et al. 2023).

    The network learns x_0 - eps, and is told the share 1 - t of the data.
    """

    def network_time(self, t: Float[Array, "b"]) -> Float[Array, "b"]:
        """(1 - t) (num_steps - 1)."""
        return super().network_time(1 - t)

    def target(
        self, x_0: Float[Array, "b *shape"], noise: Float[Array, "b *shape"], t: Float[Array, "b"]
    ) -> Float[Array, "b *shape"]:
        """x_0 - eps."""
        return -super().target(x_0, noise, t)

    def estimate(
        self, x_t: Float[Array, "b *shape"], output: Float[Array, "b *shape"], t: Float[Array, "b"]
    ) -> Estimate:
        """The pair (x_0, eps) whose difference is the output."""
        return super().estimate(x_t, -output, t)


@dataclass(frozen=True, repr=False)
class EDM(Continuous, name="edm"):
    """Noise is added to the data as it is, x_t = x_0 + t eps, its deviation sigma being the time (Karras et al. 2022).

    The network is shown x_t at unit variance, c_in x_t, and told c_noise = ln(sigma) / 4. What it outputs is F in
    x_0 = c_skip x_t + c_out F, with c_skip = sigma_data^2 / (sigma^2 + sigma_data^2), c_out = sigma sigma_data c_in and
    c_in = 1 / sqrt(sigma^2 + sigma_data^2) (table 1). The paper's weight of the error of x_0, 1 / c_out^2, makes that of F count
    alike at every sigma.

    sigma_data: deviation of the data. P_mean, P_std: mean and deviation of ln(sigma) in training. sigma_max, sigma_min: where
    sampling starts, and its last time before the data. rho: its times are evenly spaced in sigma^(1/rho) (eq. 5). num_steps: the
    steps of a sampler that is given no number. loss: error of F.

    Raises:
        UserError: an unknown word, or numbers out of range.
    """

    sigma_data: float = 0.5
    """Standard deviation of the data."""
    P_mean: float = -1.2
    """Mean of ln(sigma) in training."""
    P_std: float = 1.2
    """Standard deviation of ln(sigma) in training."""
    sigma_min: float = 0.002
    """Sampling's last sigma before the data."""
    sigma_max: float = 80.0
    """The sigma at which sampling starts."""
    rho: float = 7.0
    """Sampling's times are evenly spaced in sigma^(1/rho)."""
    num_steps: int = 18
    """Steps of a sampler that is given no number."""
    loss: Loss = "mse"
    """Error of the network's output."""

    def __post_init__(self) -> None:
        _check_words(loss=(self.loss, Loss))
        for name in ("sigma_data", "P_std", "sigma_min", "rho"):
            if not 0 < number(name, getattr(self, name)) < float("inf"):
                raise UserError(f"{name} must be positive and finite; got {getattr(self, name):g}.")
        if not np.isfinite(number("P_mean", self.P_mean)):
            raise UserError(f"P_mean must be finite; got {self.P_mean:g}.")
        if not self.sigma_min < number("sigma_max", self.sigma_max) < float("inf"):
            raise UserError(
                f"sigma_max must be finite and above sigma_min = {self.sigma_min:g}; got {self.sigma_max:g}."
            )
        if whole("num_steps", self.num_steps) < 1:
            raise UserError(f"num_steps must be at least 1; got {self.num_steps}.")

    @property
    def cleanest(self) -> Any:
        """sigma_min."""
        return self.sigma_min

    def time_at(self, ratio: Float[Array, "b"]) -> Float[Array, "b"]:
        """The ratio itself."""
        return ratio

    def prior(self, noise: Float[Array, "b *shape"], t: Any) -> Float[Array, "b *shape"]:
        """t noise: the data is not seen in so much of it."""
        return noise * jnp.asarray(t, noise.dtype)

    def level(self, t: Float[Array, "n"] | np.ndarray, like: Float[Array, "..."]) -> Level:
        """alpha = 1 and sigma = t.

        Raises:
            UserError: times below 0.
        """
        _check_range(t, 0, float("inf"))
        sigma = _wide(jnp.asarray(t, like.dtype), like)
        return Level(jnp.ones_like(sigma), sigma)

    def network_time(self, t: Float[Array, "b"]) -> Float[Array, "b"]:
        """c_noise = ln(sigma) / 4."""
        return jnp.log(t) / 4

    def network_input(self, x_t: Float[Array, "b *shape"], t: Float[Array, "b"]) -> Float[Array, "b *shape"]:
        """c_in x_t = x_t / sqrt(sigma^2 + sigma_data^2)."""
        return x_t / self._deviation(self.level(t, x_t).sigma)

    def target(
        self, x_0: Float[Array, "b *shape"], noise: Float[Array, "b *shape"], t: Float[Array, "b"]
    ) -> Float[Array, "b *shape"]:
        """F = (x_0 - c_skip x_t) / c_out, which is c_in (sigma x_0 / sigma_data - sigma_data eps)."""
        sigma = self.level(t, x_0).sigma
        return (sigma / self.sigma_data * x_0 - self.sigma_data * noise) / self._deviation(sigma)

    def estimate(
        self, x_t: Float[Array, "b *shape"], output: Float[Array, "b *shape"], t: Float[Array, "b"]
    ) -> Estimate:
        """x_0 = c_skip x_t + c_out F, and eps = (x_t - x_0) / sigma without the division."""
        sigma = self.level(t, x_t).sigma
        deviation = self._deviation(sigma)
        x_0 = (self.sigma_data / deviation) ** 2 * x_t + sigma * self.sigma_data / deviation * output
        eps = sigma / deviation**2 * x_t - self.sigma_data / deviation * output
        return Estimate(x_0, eps)

    def draw_times(self, key: jax.Array, n: int) -> Float[Array, "n"]:
        """n values of sigma, whose logarithm is normal."""
        return jnp.exp(self.P_mean + self.P_std * jax.random.normal(key, (n,)))

    def times(self, num_steps: int | None = None) -> np.ndarray:
        """num_steps values of sigma, from sigma_max to sigma_min evenly spaced in sigma^(1/rho), and 0 (eq. 5); float64.

        None: the process's own number. UserError unless at least 1.
        """
        first, last = self.sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho)
        sigmas = np.linspace(first, last, self.sampling_steps(num_steps)) ** self.rho
        sigmas[0] = self.sigma_max  # which rounding may miss, and others are held to
        return np.append(sigmas, 0.0)

    def _deviation(self, sigma: Float[Array, "..."]) -> Float[Array, "..."]:
        """That of x_t, 1 / c_in."""
        return jnp.sqrt(sigma**2 + self.sigma_data**2)


@dataclass(frozen=True, repr=False)
class MeanFlow(FlowMatching, name="meanflow"):
    """The network learns the mean velocity u over the way from t to s, so that one step of any length is exact (Geng et al. 2025).

    x_s = x_t - (t - s) u(x_t, s, t); the velocity itself is u where s = t. The network is told t and t - s, and learns
    u = v - (t - s) du/dt, v = eps - x_0, with the derivative along the path, (v, 0, 1) in (x, s, t) (eq. 6-9). t and s are the
    larger and the smaller of two logit-normal draws, and the same for all but a share of the examples.

    num_steps: of a sampler that is given no number. apart: share of the examples whose s lies below t. time_mean, time_std: mean
    and deviation of a time's logit. power: of the errors' adaptive weight (|u - target|^2 + 1e-3)^-power, 0 for none; the loss that
    is shown is the error itself. time_draw: not used, the draw being its own.

    Raises:
        UserError: an unknown word, or numbers out of range.
    """

    of_intervals = True
    num_steps: int = 1
    """Steps of a sampler that is given no number."""
    time_draw: Literal["logit_normal"] = field(default="logit_normal", metadata=DERIVED)
    """Its own."""
    apart: float = 0.25
    """Share of the examples that learn the way to an earlier time, in (0, 1]; the others learn the velocity."""
    time_mean: float = -0.4
    """Mean of a time's logit in training."""
    time_std: float = 1.0
    """Standard deviation of a time's logit in training."""
    power: float = 1.0
    """Of the errors' adaptive weight, (error + 1e-3)^-power; 0: none."""

    def __post_init__(self) -> None:
        _check_words(loss=(self.loss, Loss))
        if whole("num_steps", self.num_steps) < 1:
            raise UserError(f"num_steps must be at least 1; got {self.num_steps}.")
        if not 0 < number("apart", self.apart) <= 1:
            raise UserError(f"apart must lie in (0, 1]; got {self.apart:g}.")
        number("time_mean", self.time_mean)
        for name, least in (("time_std", "positive"), ("power", "0 or more")):
            value = number(name, getattr(self, name))
            if value < 0 or (value == 0 and name == "time_std"):
                raise UserError(f"{name} must be {least}; got {value:g}.")

    def network_time(self, t: Float[Array, "b"], s: Float[Array, "b"] | None = None) -> Float[Array, "b 2"]:
        """(B, 2): t, and how far it is to s; s: None for t itself."""
        return jnp.stack([t, jnp.zeros_like(t) if s is None else t - s], axis=-1)

    def draw_times(self, key: jax.Array, n: int) -> Float[Array, "n 2"]:
        """n pairs (t, s), s <= t."""
        drawn, share = jax.random.split(key)
        times = jax.nn.sigmoid(self.time_mean + self.time_std * jax.random.normal(drawn, (n, 2)))
        t, s = times.max(-1), times.min(-1)
        return jnp.stack([t, jnp.where(jax.random.bernoulli(share, self.apart, (n,)), s, t)], axis=-1)

    def loss_per_example(
        self,
        predict: Predict,
        x_0: Float[Array, "b *shape"],
        noise: Float[Array, "b *shape"],
        t: Float[Array, "b 2"],
    ) -> Float[Array, "b"]:
        """The error of predict(x_t, (t, t - s)), averaged over each example, its gradient weighted; t: (B, 2), times t and s."""
        t, s = t[:, 0], t[:, 1]
        x_t, v = self.add_noise(x_0, noise, t), self.target(x_0, noise, t)

        def u(x_t: jax.Array, t: jax.Array) -> jax.Array:
            return predict(x_t, self.network_time(t, s))

        with cpu_forms.forwards():
            output, along = jax.jvp(u, (x_t, t), (v, jnp.ones_like(t)))
        error = output - jax.lax.stop_gradient(v - _wide(t - s, v) * along)
        size = jax.lax.stop_gradient(error**2).sum(tuple(range(1, error.ndim)))
        loss = _error(error, self.loss)
        weighted = (size + 1e-3) ** -self.power * loss
        # what is shown is the error; what is learned from, its weighted one
        return jax.lax.stop_gradient(loss - weighted) + weighted


def _error(difference: Float[Array, "b *shape"], loss: str) -> Float[Array, "b"]:
    """Mean square, mean absolute or Huber (delta 1) size of the difference, over all axes but the first."""
    if loss == "mse":
        error = difference**2
    elif loss == "l1":
        error = jnp.abs(difference)
    else:
        size = jnp.abs(difference)
        error = jnp.where(size < 1.0, 0.5 * difference**2, size - 0.5)
    return error.mean(axis=tuple(range(1, error.ndim)))


def _spread(key: jax.Array, n: int) -> Float[Array, "n"]:
    """n numbers in [0, 1), evenly spaced around the circle from a uniform start."""
    return (jax.random.uniform(key) + jnp.arange(n) / n) % 1.0


def _at(table: Table, t: Int[Array, "b"], like: Float[Array, "..."]) -> Float[Array, "..."]:
    """table[t] in the dtype of `like`, shaped to broadcast against it."""
    return _wide(jnp.asarray(table, like.dtype)[t], like)


def _wide(values: Float[Array, "b"], like: Float[Array, "..."]) -> Float[Array, "..."]:
    """(B,) -> (B, 1, ...), which broadcasts against `like`."""
    return values.reshape((-1,) + (1,) * (like.ndim - 1))


def as_times(t: Any) -> Any:
    """Times as an array; UserError where they are no numbers."""
    found = t if hasattr(t, "dtype") else np.asarray(t)
    if not jnp.issubdtype(found.dtype, jnp.number):
        raise UserError(f"t must be a time, or one for each example; got {display.short(t)}.")
    return found


def check_floats(**arrays: Any) -> None:
    """Refuses arrays that are not of floats: bytes and whole numbers would be computed with as such."""
    for name, array in arrays.items():
        dtype = getattr(array, "dtype", None)
        if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
            raise UserError(f"{name} must be an array of floats, as the network sees them; got {display.short(array)}.")


def _check_range(t: Any, first: Any, last: Any) -> None:
    """Refuses times that no path has: a table, asked for them, would give its last entry. What is traced is trusted."""
    if isinstance(t, jax.core.Tracer):
        return
    found = np.asarray(t)
    if found.size and not (first <= found.min() and found.max() <= last):
        raise UserError(f"t must lie in {first}..{last}; got {found.min():g}..{found.max():g}.")


def _check_words(**words: tuple[str, object]) -> None:
    for name, (word, allowed) in words.items():
        if word not in get_args(allowed):
            raise UserError(
                f"{name} must be one of {', '.join(get_args(allowed))}; got {word!r}.{meant(word, get_args(allowed))}"
            )
