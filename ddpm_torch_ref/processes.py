"""What is learned: what is added to the data, and what a network is asked to predict.

Every process here is x_t = alpha_t x_0 + sigma_t eps: the Gaussian diffusion with a table of levels, flow matching and
alpha-blending with alpha_t = 1 - t, sigma_t = t.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ddpm_torch_ref import bound
from ddpm_torch_ref.checks import check_choice, check_clean_end
from ddpm_torch_ref.schedules import Schedule, Table, linear

Predict = Callable[[Tensor, Tensor], Tensor]
"""(network_input(x_t, t), network_time(t)) -> what the network was trained to output."""

PREDICTIONS = ("eps", "x0", "v")
"""What a network may predict."""
VARIANCES = ("beta", "posterior")
"""The fixed variances of the reverse step."""
WEIGHTINGS = ("none", "p2", "snr", "truncated_snr", "min_snr")
"""Weights of the loss over t."""
LOSSES: dict[str, Callable[..., Tensor]] = {"mse": F.mse_loss, "l1": F.l1_loss, "huber": F.smooth_l1_loss}
"""Errors of what is predicted, by name."""
TIME_DRAWS = ("uniform", "low_discrepancy")
"""How times to train at are drawn; on a straight path also "logit_normal"."""
BOUND_LOSSES = ("hybrid", "vlb")
"""Losses made of the variational bound."""
HYBRID_SHARE = 0.001
"""Lambda of Nichol & Dhariwal 2021, eq. 16."""


def _shapes_of(named: Any) -> str:
    """A named tuple in a line, its tensors by their shapes."""
    parts = (f"{k} {tuple(v.shape)}" if isinstance(v, Tensor) else f"{k} {v}" for k, v in named._asdict().items())
    return f"{type(named).__name__}({', '.join(parts)})"


class Level(NamedTuple):
    """The place of a time on the path x_t = alpha x_0 + sigma eps: numbers in double precision, or tensors (B, 1, ...)."""

    alpha: Any
    sigma: Any

    def __repr__(self) -> str:
        return _shapes_of(self)


class Estimate(NamedTuple):
    """A network's idea of the two parts of x_t, each of x_t's shape, and of the reverse step's variance, where it has one.

    variance_logit is v in about [-1, 1], of x_t's shape, or None: (v + 1)/2 is the share of log beta in the log variance.
    """

    x_0: Tensor
    """The clean data."""
    eps: Tensor
    """The noise."""
    variance_logit: Tensor | None = None

    def __repr__(self) -> str:
        return _shapes_of(self)


class Process(ABC):
    """A path from data to noise, x_t = alpha_t x_0 + sigma_t eps, and what a network learns of it.

    Images are (B, C, H, W), points (B, D), times (B,). A process is continuous where its times are real numbers, and
    of_intervals where its network speaks of the way between two of them.
    """

    continuous: ClassVar[bool] = False
    of_intervals: ClassVar[bool] = False

    @property
    @abstractmethod
    def cleanest(self) -> float:
        """The smallest time that a network learns."""

    @abstractmethod
    def time_at(self, ratio: Tensor) -> Tensor:
        """(B,) times at which sigma/alpha is ratio, (B,) numbers above 0; of a chain the valid t that come nearest."""

    def prior(self, noise: Tensor, t: float) -> Tensor:
        """The state at t that sampling starts from, given standard normal noise."""
        return noise

    def network_input(self, x_t: Tensor, t: Tensor) -> Tensor:
        """What the network is shown of x_t: x_t itself."""
        return x_t

    @abstractmethod
    def level(self, t: float | Tensor, like: Tensor | None = None) -> Level:
        """The level of one time of a grid, in double precision; or of (B,) times, to broadcast against `like`, of x_t's shape."""

    @abstractmethod
    def times(self, num_steps: int | None = None) -> NDArray[np.generic]:
        """(num_steps + 1,) times, evenly spread and descending to the clean end; None: the process's own number of steps."""

    @abstractmethod
    def sampling_steps(self, num_steps: int | None) -> int:
        """A number of sampling steps; the process's own for None."""

    @abstractmethod
    def draw_times(self, generator: torch.Generator, n: int) -> Tensor:
        """(n,) times to train at, where the generator is."""

    def network_time(self, t: Tensor) -> Tensor:
        """What the network is told of t: t itself."""
        return t

    def add_noise(self, x_0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t, a draw of q(x_t | x_0) (DDPM eq. 4)."""
        alpha, sigma = self.level(t, x_0)
        return alpha * x_0 + sigma * noise

    @abstractmethod
    def target(self, x_0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the network should have said at add_noise(x_0, noise, t)."""

    @abstractmethod
    def estimate(self, x_t: Tensor, output: Tensor, t: Tensor) -> Estimate:
        """The pair (x_0, eps) that a network's output at x_t stands for."""

    def eps_given_x_0(self, x_t: Tensor, x_0: Tensor, t: Tensor) -> Tensor:
        """The eps that leads from x_0 to x_t: (x_t - alpha_t x_0) / sigma_t."""
        alpha, sigma = self.level(t, x_t)
        return (x_t - alpha * x_0) / sigma

    @abstractmethod
    def loss_per_example(self, predict: Predict, x_0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """(B,) loss of predict(network_input(x_t, t), network_time(t)) against the target, a mean over all but the batch."""


@dataclass(frozen=True, eq=False)
class GaussianDiffusion(Process):
    """x_t = sqrt(A_t) x_0 + sqrt(1 - A_t) eps, with a network that predicts eps, x_0 or v.

    Images are (B, C, H, W), points (B, D); t is (B,) int64, each one of schedule.timesteps.

    Args:
        schedule: the tables of A_t and its kin.
        prediction: "eps" (Ho et al. 2020), "x0", or "v" = sqrt(A_t) eps - sqrt(1 - A_t) x_0 (Salimans &
            Ho 2022, "Progressive Distillation for Fast Sampling of Diffusion Models").
        loss: "mse", "l1", "huber" (smooth L1, quadratic below a difference of 1); "vlb", the bound's term of t in bits per
            dimension, times T, with the learned variance or else the posterior one; "hybrid", the mean square plus 0.001 of
            that, whose gradient then reaches the variance alone (Nichol & Dhariwal 2021, "Improved Denoising Diffusion
            Probabilistic Models", eq. 16).
        weighting: of the loss over t, S = A_t/(1 - A_t) being the signal-to-noise ratio.
            "none": 1.
            "p2": (p2_k + S)^-p2_gamma on the error of whatever is predicted (Choi et al. 2022, "Perception Prioritized
            Training of Diffusion Models", eq. 8).
            The rest weigh the squared error of x_0: "snr" by S, "truncated_snr" by max(S, 1) (Salimans & Ho 2022, section 4),
            "min_snr" by min(S, min_snr_gamma) (Hang et al. 2023, "Efficient Diffusion Training via Min-SNR Weighting Strategy").
            Where a network predicts another quantity, its error is converted: see `loss_weights`.
        p2_gamma: at least 0; 0 weighs all t alike.
        p2_k: above 0.
        min_snr_gamma: above 0.
        learned_variance: the network's output has twice x_t's channels (axis 1), the second half being v: the reverse step's
            log variance is f log beta + (1 - f) log beta~, f = (v + 1)/2 (Nichol & Dhariwal 2021, eq. 15). None: as the loss says,
            which trains it where it is "hybrid".
        time_draw: of the times to train at: "uniform", each by itself, or "low_discrepancy", evenly spread with one offset for all.

    Raises:
        ValueError: an unknown prediction, loss, weighting or time_draw; a number out of range; prediction "eps" where A_t is 0 at a
            valid t, as eps then says nothing of x_0; loss "hybrid" without learned_variance; loss "hybrid" or "vlb" on a chain
            whose clean end has A below 1; loss "vlb" with a weighting, as the bound has its own.
    """

    schedule: Schedule = linear()  # noqa: RUF009 - it cannot be changed
    prediction: str = "eps"
    loss: str = "mse"
    weighting: str = "none"
    p2_gamma: float = 1.0
    p2_k: float = 1.0
    min_snr_gamma: float = 5.0
    learned_variance: bool | None = None
    time_draw: str = "uniform"

    def __post_init__(self) -> None:
        if self.learned_variance is None:
            object.__setattr__(self, "learned_variance", self.loss == "hybrid")
        check_choice("prediction", self.prediction, PREDICTIONS)
        check_choice("time_draw", self.time_draw, TIME_DRAWS)
        check_choice("loss", self.loss, (*LOSSES, *BOUND_LOSSES))
        check_choice("weighting", self.weighting, WEIGHTINGS)
        if not self.p2_gamma >= 0:
            raise ValueError(f"p2_gamma must be at least 0; got {self.p2_gamma}.")
        if not self.p2_k > 0:
            raise ValueError(f"p2_k must be above 0; got {self.p2_k}.")
        if not self.min_snr_gamma > 0:
            raise ValueError(f"min_snr_gamma must be above 0; got {self.min_snr_gamma}.")
        if self.prediction == "eps" and (self.schedule.alphas_cumprod[self.schedule.first :] == 0).any():
            raise ValueError("prediction must be x0 or v on a schedule whose last alphas_cumprod is 0; got 'eps'.")
        if self.loss == "hybrid" and not self.learned_variance:
            raise ValueError("loss must be other than 'hybrid' without learned_variance; got 'hybrid'.")
        if self.loss == "vlb" and self.weighting != "none":
            raise ValueError(f"weighting must be none with loss 'vlb', which weighs t itself; got {self.weighting!r}.")
        if self.loss in BOUND_LOSSES:
            check_clean_end(self.schedule.first, self.schedule.alphas_cumprod)

    def __repr__(self) -> str:
        return f"GaussianDiffusion({self.schedule.name}, T={self.schedule.num_steps}, {self.prediction}, {self.loss})"

    @property
    def cleanest(self) -> float:
        """The first valid t."""
        return self.schedule.first

    def time_at(self, ratio: Tensor) -> Tensor:
        """(B,) int64: the valid t whose lambda = log(alpha/sigma) is nearest to -log ratio."""
        with np.errstate(divide="ignore"):
            lambdas = 0.5 * np.log(self.schedule.snr[self.schedule.first :])
        away = (ratio.log().unsqueeze(1) + torch.tensor(lambdas, dtype=ratio.dtype, device=ratio.device)).abs()
        return self.schedule.first + away.argmin(dim=1)

    def level(self, t: float | Tensor, like: Tensor | None = None) -> Level:
        """The level of one time of a grid, a valid t or the clean end, which is (1, 0) before a table from t = 0.

        Args:
            t: one time; or (B,) valid ones, whose levels have the dtype of `like` and broadcast against it.
            like: of x_t's shape, for (B,) times alone.
        """
        if isinstance(t, Tensor) and like is not None:
            return Level(self._alpha(t, like), self._sigma(t, like))
        if t < 0:
            return Level(1.0, 0.0)
        schedule = self.schedule
        return Level(float(schedule.sqrt_alphas_cumprod[int(t)]), float(schedule.sqrt_one_minus_alphas_cumprod[int(t)]))

    def times(self, num_steps: int | None = None) -> NDArray[np.int64]:
        """(num_steps + 1,) times, evenly spread and descending from the last t to the clean end; None: the whole chain.

        Raises:
            ValueError: num_steps outside 1..T.
        """
        last = self.schedule.first + self.schedule.num_steps - 1
        return np.round(np.linspace(last, self.schedule.first - 1, self.sampling_steps(num_steps) + 1)).astype(np.int64)

    def sampling_steps(self, num_steps: int | None) -> int:
        """A number of sampling steps; T for None.

        Raises:
            ValueError: num_steps outside 1..T.
        """
        longest = self.schedule.num_steps
        if num_steps is None:
            return longest
        if not 1 <= num_steps <= longest:
            raise ValueError(f"num_steps must lie in 1..{longest}, the schedule's T; got {num_steps}.")
        return num_steps

    def draw_times(self, generator: torch.Generator, n: int) -> Tensor:
        """(n,) int64 valid times to train at: independent and uniform, or evenly spread, as time_draw says.

        Kingma et al. 2021, "Variational Diffusion Models", appendix I.1.
        """
        first, num_steps = self.schedule.first, self.schedule.num_steps
        if self.time_draw == "uniform":
            return torch.randint(first, first + num_steps, (n,), generator=generator, device=generator.device)
        return first + torch.floor(_spread(generator, n) * num_steps).to(torch.int64)

    def target(self, x_0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the network should have said; with learned variance, the first half of it."""
        if self.prediction == "eps":
            return noise
        if self.prediction == "x0":
            return x_0
        return self._alpha(t, x_0) * noise - self._sigma(t, x_0) * x_0

    def estimate(self, x_t: Tensor, output: Tensor, t: Tensor) -> Estimate:
        """The pair (x_0, eps) that a network's output at x_t stands for, and the variance's logit where it is learned."""
        output, variance_logit = self.mean_and_logit(output)
        if self.prediction == "eps":
            x_0 = (
                _at(self.schedule.sqrt_recip_alphas_cumprod, t, x_t) * x_t
                - _at(self.schedule.sqrt_recipm1_alphas_cumprod, t, x_t) * output
            )
            return Estimate(x_0, output, variance_logit)
        if self.prediction == "x0":
            return Estimate(output, self.eps_given_x_0(x_t, output, t), variance_logit)
        alpha, sigma = self._alpha(t, x_t), self._sigma(t, x_t)
        return Estimate(alpha * x_t - sigma * output, sigma * x_t + alpha * output, variance_logit)

    def posterior(self, x_0: Tensor, x_t: Tensor, t: Tensor, variance: str = "posterior") -> tuple[Tensor, Tensor]:
        """Mean, of x_t's shape, and variance, (B, 1, 1, 1), of q(x_{t-1} | x_t, x_0) (DDPM eq. 6-7).

        Args:
            x_0: (B, C, H, W) clean images, known or estimated.
            x_t: (B, C, H, W) noised images.
            t: (B,) times.
            variance: "posterior" (eq. 7), or "beta", the larger one of the reverse step (section 3.2).

        Raises:
            ValueError: an unknown variance.
        """
        check_choice("variance", variance, VARIANCES)
        schedule = self.schedule
        mean = _at(schedule.posterior_mean_coef1, t, x_t) * x_0 + _at(schedule.posterior_mean_coef2, t, x_t) * x_t
        table = schedule.betas if variance == "beta" else schedule.posterior_variance
        return mean, _at(table, t, x_t)

    def log_variance(self, hat: Estimate, t: Tensor, variance: str) -> Tensor:
        """Log variance of the reverse step p(x_{t-1} | x_t), (B, 1, 1, 1), or of x_t's shape where it is learned.

        Args:
            hat: the estimate at (x_t, t); its variance_logit is for "learned" only.
            t: (B,) times.
            variance: "posterior"; "beta"; or "learned", f log beta + (1 - f) log beta~, f = (variance_logit + 1)/2. The first
                valid t has no posterior variance: the successor's stands there for it, and for "beta" too.

        Raises:
            ValueError: an unknown variance, or "learned" without variance_logit.

        Ho et al. 2020, section 3.2; Nichol & Dhariwal 2021, eq. 15.
        """
        check_choice("variance", variance, (*VARIANCES, "learned"))
        smaller = self.schedule.posterior_log_variance_clipped
        with np.errstate(divide="ignore"):
            larger = np.log(self.schedule.betas)
        if variance == "posterior":
            return _at(smaller, t, hat.x_0)
        if variance == "beta":
            larger[self.schedule.first] = smaller[self.schedule.first]
            return _at(larger, t, hat.x_0)
        if hat.variance_logit is None:
            raise ValueError("variance must be beta or posterior where there is no variance_logit; got 'learned'.")
        fraction = (hat.variance_logit + 1) / 2
        return fraction * _at(larger, t, hat.x_0) + (1 - fraction) * _at(smaller, t, hat.x_0)

    def bound_term(self, hat: Estimate, x_0: Tensor, x_t: Tensor, t: Tensor, variance: str = "posterior") -> Tensor:
        """(B,) the term of the variational bound that belongs to t, in bits per dimension.

        KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)); for the first valid t, -log p(x_0 | x_t) of 8-bit data (Ho et al. 2020,
        L_{t-1} of eq. 5, and eq. 13).

        Args:
            hat: the estimate at (x_t, t).
            x_0: (B, C, H, W) data in [-1, 1].
            x_t: (B, C, H, W) a draw of q(x_t | x_0).
            t: (B,) times.
            variance: of the reverse step, as in `log_variance`.

        Raises:
            ValueError: the chain's clean end is not clean, an unknown variance, or "learned" from an estimate without one.
        """
        check_clean_end(self.schedule.first, self.schedule.alphas_cumprod)
        mean, _ = self.posterior(hat.x_0, x_t, t)
        log_variance = self.log_variance(hat, t, variance)
        true_mean, _ = self.posterior(x_0, x_t, t)
        divergence = bound.normal_kl(true_mean, self.log_variance(hat, t, "posterior"), mean, log_variance)
        return torch.where(t == self.schedule.first, bound.decoder(x_0, mean, log_variance), divergence)

    def loss_weights(self) -> Table:
        """(T + first,) the weight of the loss at each t.

        With mean squares of errors, |x_0 error|^2 = |eps error|^2 / S = |v error|^2 / (S + 1): a weight meant for x_0 is divided
        by 1, S or S + 1 according to what is predicted (Salimans & Ho 2022, section 4).
        """
        # Entry 0 of a table that starts at t = 1 may have S = inf; it is not a valid t.
        with np.errstate(divide="ignore", invalid="ignore"):
            snr = self.schedule.snr
            if self.weighting == "none":
                return np.ones_like(snr)
            if self.weighting == "p2":
                return (self.p2_k + snr) ** -self.p2_gamma
            if self.weighting == "snr":
                for_x_0 = snr
            elif self.weighting == "truncated_snr":
                for_x_0 = np.maximum(snr, 1)
            else:
                for_x_0 = np.minimum(snr, self.min_snr_gamma)
            if self.prediction == "x0":
                return for_x_0
            if self.prediction == "eps":
                return for_x_0 / snr
            return for_x_0 / (snr + 1)

    def loss_per_example(self, predict: Predict, x_0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """(B,) loss of predict(x_t, t) against the target, a mean over all but the batch, weighted (DDPM eq. 14)."""
        x_t = self.add_noise(x_0, noise, t)
        output = predict(x_t, t)
        num_steps = self.schedule.num_steps
        if self.loss == "vlb":
            variance = "learned" if self.learned_variance else "posterior"
            return num_steps * self.bound_term(self.estimate(x_t, output, t), x_0, x_t, t, variance)

        compare = LOSSES["mse" if self.loss == "hybrid" else self.loss]
        error = compare(self.mean_and_logit(output)[0], self.target(x_0, noise, t), reduction="none")
        loss = (_at(self.loss_weights(), t, x_0) * error).flatten(1).mean(1)
        if self.loss == "hybrid":
            hat = self.estimate(x_t, output, t)
            # The bound's gradient is noisy: the mean learns from the mean square alone (Nichol & Dhariwal 2021, section 3.1).
            hat = Estimate(hat.x_0.detach(), hat.eps.detach(), hat.variance_logit)
            loss = loss + HYBRID_SHARE * num_steps * self.bound_term(hat, x_0, x_t, t, "learned")
        return loss

    def mean_and_logit(self, output: Tensor) -> tuple[Tensor, Tensor | None]:
        """What of the output is the prediction, and what the variance's logit (None: it is not learned)."""
        if not self.learned_variance:
            return output, None
        prediction, variance_logit = output.chunk(2, dim=1)
        return prediction, variance_logit

    def _alpha(self, t: Tensor, like: Tensor) -> Tensor:
        return _at(self.schedule.sqrt_alphas_cumprod, t, like)

    def _sigma(self, t: Tensor, like: Tensor) -> Tensor:
        return _at(self.schedule.sqrt_one_minus_alphas_cumprod, t, like)


class Continuous(Process):
    """A process in continuous time, which tells its usual number of steps and its loss."""

    continuous = True
    num_steps: int
    """Of a sampler that is told no number."""
    loss: str
    """One of LOSSES."""

    def sampling_steps(self, num_steps: int | None) -> int:
        """A number of sampling steps; the process's own for None.

        Raises:
            ValueError: num_steps < 1.
        """
        if num_steps is None:
            return self.num_steps
        if num_steps < 1:
            raise ValueError(f"num_steps must be at least 1; got {num_steps}.")
        return num_steps

    def loss_per_example(self, predict: Predict, x_0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """(B,) loss of predict(network_input(x_t, t), network_time(t)) against the target, a mean over all but the batch."""
        output = predict(self.network_input(self.add_noise(x_0, noise, t), t), self.network_time(t))
        return LOSSES[self.loss](output, self.target(x_0, noise, t), reduction="none").flatten(1).mean(1)


@dataclass(frozen=True, eq=False)
class LinearPath(Continuous):
    """x_t = (1 - t) x_0 + t eps on a straight line; t is (B,) floating point in [0, 1], 0 at the data and 1 at the noise.

    Args:
        num_steps: a network made for the times 0..num_steps - 1 of a chain is told t (num_steps - 1); at least 2.
        loss: "mse", "l1", or "huber" (smooth L1, quadratic below a difference of 1).
        time_draw: of the times to train at: "uniform", "low_discrepancy" (evenly spread with one offset for all), or
            "logit_normal", 1/(1 + e^-z) of a standard normal z (Esser et al. 2024, "Scaling Rectified Flow Transformers", 3.1).

    Raises:
        ValueError: num_steps < 2, an unknown loss or time_draw.
    """

    num_steps: int = 1000
    loss: str = "mse"
    time_draw: str = "uniform"

    def __post_init__(self) -> None:
        if self.num_steps < 2:
            raise ValueError(f"num_steps must be at least 2; got {self.num_steps}.")
        check_choice("loss", self.loss, tuple(LOSSES))
        check_choice("time_draw", self.time_draw, (*TIME_DRAWS, "logit_normal"))

    @property
    def cleanest(self) -> float:
        """0: the velocity is learned at the data too."""
        return 0.0

    def time_at(self, ratio: Tensor) -> Tensor:
        """(B,) t = ratio/(1 + ratio)."""
        return ratio / (1 + ratio)

    def level(self, t: float | Tensor, like: Tensor | None = None) -> Level:
        """(alpha, sigma) = (1 - t, t); of (B,) times, shaped to broadcast against `like`."""
        t = _wide(t, like) if isinstance(t, Tensor) and like is not None else t
        return Level(1 - t, t)

    def times(self, num_steps: int | None = None) -> NDArray[np.float64]:
        """(num_steps + 1,) times, evenly spread from 1 down to 0; None: the process's own number.

        Raises:
            ValueError: num_steps < 1.
        """
        return np.linspace(1, 0, self.sampling_steps(num_steps) + 1)

    def draw_times(self, generator: torch.Generator, n: int) -> Tensor:
        """(n,) float64 times in [0, 1) to train at, drawn as time_draw says."""
        if self.time_draw == "low_discrepancy":
            return _spread(generator, n)
        draw = torch.randn if self.time_draw == "logit_normal" else torch.rand
        drawn = draw(n, generator=generator, device=generator.device, dtype=torch.float64)
        return drawn.sigmoid() if self.time_draw == "logit_normal" else drawn

    def network_time(self, t: Tensor) -> Tensor:
        """What the network is told of t: t (num_steps - 1)."""
        return t * (self.num_steps - 1)


class FlowMatching(LinearPath):
    """A straight path whose network predicts the velocity eps - x_0.

    Lipman et al. 2023, "Flow Matching for Generative Modeling", section 4; Liu et al. 2023, "Flow Straight and Fast", eq. 1. Both
    have their time run the other way, from noise at 0 to data at 1.
    """

    def target(self, x_0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the network should have said: the velocity dx_t/dt = eps - x_0."""
        return noise - x_0

    def estimate(self, x_t: Tensor, output: Tensor, t: Tensor) -> Estimate:
        """The pair (x_0, eps) that a velocity at x_t stands for: follow the line to both its ends."""
        alpha, sigma = self.level(t, x_t)
        return Estimate(x_t - sigma * output, x_t + alpha * output)


class AlphaBlending(FlowMatching):
    """Iterative alpha-(de)blending: x_a = (1 - a) eps + a x_0, with a network that predicts x_0 - eps.

    The straight line of flow matching, travelled the other way: here too t = 1 - a, 0 at the data and 1 at the noise. The
    network is told a (num_steps - 1).

    Heitz et al. 2023, "Iterative alpha-(de)Blending: a Minimalist Deterministic Diffusion Model", algorithms 3 and 4.
    """

    def network_time(self, t: Tensor) -> Tensor:
        """What the network is told of t: a (num_steps - 1), a = 1 - t."""
        return (1 - t) * (self.num_steps - 1)

    def target(self, x_0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the network should have said: x_0 - eps, the change of x_a with a."""
        return x_0 - noise

    def estimate(self, x_t: Tensor, output: Tensor, t: Tensor) -> Estimate:
        """The pair (x_0, eps) that the change of x_a with a stands for."""
        return super().estimate(x_t, -output, t)


@dataclass(frozen=True, eq=False)
class MeanFlow(FlowMatching):
    """A straight path whose network predicts the mean velocity u between two times s <= t: x_s = x_t - (t - s) u(x_t, s, t).

    The network is told (t, t - s). What it should say is v - (t - s) du/dt, v = eps - x_0, with the total derivative of its own
    output, v d/dx + d/dt, taken without gradient (eq. 8-9).

    Args:
        num_steps: of a sampler that is told no number.
        loss: "mse", "l1" or "huber".
        time_draw: "logit_normal"; both times are, the larger one is t.
        apart: share of the examples with s below t, in (0, 1]; for the others s = t.
        time_mean: of a time's logit.
        time_std: its standard deviation, above 0.
        power: p >= 0 of the adaptive weight 1/(|error|^2 + 0.001)^p of each example, which reaches the gradient alone.

    Raises:
        ValueError: a number out of its range, or an unknown loss.

    Geng et al. 2025, "Mean Flows for One-step Generative Modeling", algorithm 1 and section 4.2.
    """

    num_steps: int = 1
    loss: str = "mse"
    time_draw: str = "logit_normal"
    apart: float = 0.25
    time_mean: float = -0.4
    time_std: float = 1.0
    power: float = 1.0

    of_intervals = True

    def __post_init__(self) -> None:
        check_choice("loss", self.loss, tuple(LOSSES))
        if self.num_steps < 1:
            raise ValueError(f"num_steps must be at least 1; got {self.num_steps}.")
        if not 0 < self.apart <= 1:
            raise ValueError(f"apart must lie in (0, 1]; got {self.apart}.")
        if not self.time_std > 0:
            raise ValueError(f"time_std must be above 0; got {self.time_std}.")
        if not self.power >= 0:
            raise ValueError(f"power must be at least 0; got {self.power}.")

    def network_time(self, t: Tensor, s: Tensor | None = None) -> Tensor:
        """(B, 2), what the network is told: t, and t - s; s: t itself unless given."""
        return torch.stack([t, t - (t if s is None else s)], dim=1)

    def draw_times(self, generator: torch.Generator, n: int) -> Tensor:
        """(n, 2) float64 times t and s <= t to train at."""
        options: Any = {"generator": generator, "device": generator.device, "dtype": torch.float64}
        drawn = torch.sigmoid(self.time_mean + self.time_std * torch.randn(n, 2, **options))
        t, s = drawn.amax(dim=1), drawn.amin(dim=1)
        return torch.stack([t, torch.where(torch.rand(n, **options) < self.apart, s, t)], dim=1)

    def loss_per_example(self, predict: Predict, x_0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """(B,) error of predict(x_t, (t, t - s)), a mean over all but the batch, with a gradient that is weighted; t: (B, 2)."""
        t, s = t[:, 0], t[:, 1]
        x_t, v = self.add_noise(x_0, noise, t), self.target(x_0, noise, t)

        def u(x_t: Tensor, t: Tensor) -> Tensor:
            return predict(x_t, self.network_time(t, s))

        output, derivative, *_ = torch.func.jvp(u, (x_t, t), (v, torch.ones_like(t)))
        target = (v - _wide(t - s, v) * derivative).detach()
        loss = LOSSES[self.loss](output, target, reduction="none").flatten(1).mean(1)
        weight = ((output - target).detach().square().flatten(1).sum(1) + 0.001) ** -self.power
        return weight * loss + ((1 - weight) * loss).detach()


@dataclass(frozen=True, eq=False)
class EDM(Continuous):
    """x_t = x_0 + sigma eps; the time is sigma itself, (B,) floating point, 0 at the data.

    A network F sees c_in x_t and is told c_noise; the denoiser is D = c_skip x_t + c_out F. With total = sigma^2 + sigma_data^2,
    c_skip = sigma_data^2/total, c_out = sigma sigma_data/sqrt(total), c_in = 1/sqrt(total) and c_noise = log(sigma)/4.

    Args:
        sigma_data: standard deviation of the data.
        P_mean: mean of log sigma among the times to train at, which is normal.
        P_std: its standard deviation.
        sigma_min: the last sigma of a grid before 0.
        sigma_max: the first.
        rho: a grid is evenly spread in sigma^(1/rho).
        num_steps: of a sampler that is told no number.
        loss: "mse", "l1" or "huber", of F. The paper weighs the squared error of D by 1/c_out^2, and so that of F by 1.

    Raises:
        ValueError: a number out of its range, or an unknown loss.

    Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative Models", table 1 and section 5.
    """

    sigma_data: float = 0.5
    P_mean: float = -1.2
    P_std: float = 1.2
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    num_steps: int = 18
    loss: str = "mse"

    def __post_init__(self) -> None:
        check_choice("loss", self.loss, tuple(LOSSES))
        for name in ("sigma_data", "P_std", "sigma_min", "rho", "num_steps"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0; got {getattr(self, name)}.")
        if not self.sigma_max > self.sigma_min:
            raise ValueError(f"sigma_max must be above sigma_min, {self.sigma_min}; got {self.sigma_max}.")

    @property
    def cleanest(self) -> float:
        """sigma_min."""
        return self.sigma_min

    def level(self, t: float | Tensor, like: Tensor | None = None) -> Level:
        """(alpha, sigma) = (1, t); of (B,) times, sigma shaped to broadcast against `like`."""
        return Level(1.0, _wide(t, like) if isinstance(t, Tensor) and like is not None else t)

    def time_at(self, ratio: Tensor) -> Tensor:
        """(B,) sigma, alpha being 1."""
        return ratio

    def times(self, num_steps: int | None = None) -> NDArray[np.float64]:
        """(num_steps + 1,) values of sigma: from sigma_max to sigma_min, evenly spread in sigma^(1/rho), and 0 (eq. 5).

        Raises:
            ValueError: num_steps < 1.
        """
        n = self.sampling_steps(num_steps)
        first, last = self.sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho)
        between = [(first + i / (n - 1) * (last - first)) ** self.rho for i in range(1, n)]
        return np.array([self.sigma_max, *between, 0.0])

    def draw_times(self, generator: torch.Generator, n: int) -> Tensor:
        """(n,) float64 sigma to train at, whose logarithm is normal (section 5)."""
        drawn = torch.randn(n, generator=generator, device=generator.device, dtype=torch.float64)
        return (self.P_mean + self.P_std * drawn).exp()

    def prior(self, noise: Tensor, t: float) -> Tensor:
        """sigma noise, beside which the data is not seen."""
        return t * noise

    def network_time(self, t: Tensor) -> Tensor:
        """What the network is told of t: c_noise."""
        return t.log() / 4

    def network_input(self, x_t: Tensor, t: Tensor) -> Tensor:
        """What the network is shown of x_t: c_in x_t."""
        _, _, c_in = self._scales(t, x_t)
        return c_in * x_t

    def target(self, x_0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the network should have said: (x_0 - c_skip x_t)/c_out."""
        c_skip, c_out, _ = self._scales(t, x_0)
        return (x_0 - c_skip * self.add_noise(x_0, noise, t)) / c_out

    def estimate(self, x_t: Tensor, output: Tensor, t: Tensor) -> Estimate:
        """x_0 = D, and eps = (x_t - D)/sigma."""
        c_skip, c_out, _ = self._scales(t, x_t)
        x_0 = c_skip * x_t + c_out * output
        return Estimate(x_0, self.eps_given_x_0(x_t, x_0, t))

    def _scales(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """c_skip, c_out and c_in (table 1)."""
        sigma = self.level(t, like).sigma
        total = sigma**2 + self.sigma_data**2
        return self.sigma_data**2 / total, sigma * self.sigma_data / total.sqrt(), 1 / total.sqrt()


def _spread(generator: torch.Generator, n: int) -> Tensor:
    """(n,) float64 numbers of [0, 1), each uniform by itself, evenly spread together: (u + i/n) mod 1 with one uniform u.

    Kingma et al. 2021, "Variational Diffusion Models", appendix I.1.
    """
    where = generator.device
    u = torch.rand((), generator=generator, device=where, dtype=torch.float64)
    return (u + torch.arange(n, device=where, dtype=torch.float64) / n) % 1


def _at(table: Table, t: Tensor, like: Tensor) -> Tensor:
    """table[t] in the dtype and on the device of `like`, (B, 1, ...) so that it broadcasts against it."""
    return _wide(torch.tensor(table, dtype=like.dtype, device=like.device)[t], like)


def _wide(values: Tensor, like: Tensor) -> Tensor:
    """(B,) -> (B, 1, ...), which broadcasts against `like`."""
    return values.reshape(-1, *[1] * (like.ndim - 1))
