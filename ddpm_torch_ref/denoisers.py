"""Denoisers: a network with its process as (x_t, t) -> Estimate, and all that wraps one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf

import torch
from torch import Tensor

from ddpm_torch_ref.processes import Estimate, GaussianDiffusion, MeanFlow, Process

__all__ = [
    "Denoiser",
    "Wrapper",
    "classifier_guided",
    "clipped",
    "guided",
    "of",
    "reparameterized",
    "self_conditioned",
    "thresholded",
]

LogProb = Callable[[Tensor, Tensor], Tensor]
"""(x_t, t) -> (B,) log-probabilities of the class wanted of each example."""


class Denoiser(ABC):
    """What is believed of x_t: called as (x_t, t), t one time or (B,) of them, it gives an Estimate of (x_0, eps)."""

    process: Process
    """What x_t came about by, and what the output stands for."""

    @abstractmethod
    def __call__(self, x_t: Tensor, t: float | Tensor) -> Estimate:
        """The estimate at x_t, (B, C, H, W) or (B, D)."""

    def output(self, x_t: Tensor, t: float | Tensor) -> Tensor:
        """What a network would say that believes the same: of its prediction, and its variance where one is learned."""
        hat = self(x_t, t)
        said = self.process.target(hat.x_0, hat.eps, times_of(self.process, x_t, t))
        return said if hat.variance_logit is None else torch.cat([said, hat.variance_logit], dim=1)

    @property
    def labels(self) -> Tensor | None:
        """(B,) classes that it is told of; None: of none."""
        return None

    @property
    def null_label(self) -> int | None:
        """The class that stands for none; None: it was not trained without."""
        return None

    @property
    def self_conditioned(self) -> bool:
        """Whether it is shown an earlier estimate of x_0."""
        return False

    @property
    def guess(self) -> Tensor | None:
        """The earlier estimate of x_0 that it was given."""
        return None

    @abstractmethod
    def with_labels(self, labels: Tensor | None) -> Denoiser:
        """The same for other labels, (B,), or for none."""

    @abstractmethod
    def given(self, guess: Tensor | None) -> Denoiser:
        """The same, shown an earlier estimate of x_0, (B, C, H, W), where it takes one."""

    @abstractmethod
    def until(self, s: float) -> Denoiser:
        """The same of the way from t to s, of a process of intervals; of any other the same."""

    @abstractmethod
    def beside(self, shown: Tensor) -> Denoiser:
        """The same, whose network is shown this behind x_t along the channels."""


@dataclass(frozen=True)
class Predicted(Denoiser):
    """See `of`."""

    process: Process
    """Turns the output into (x_0, eps)."""
    function: Callable[..., Tensor]
    """(x_t, t) or, with labels, (x_t, t, labels) -> output; t (B,) as process.network_time tells it."""
    classes: Tensor | None = None
    """(B,), or None."""
    none: int | None = None
    """The class that stands for none."""
    shown: Tensor | None = None
    """What the function is shown behind x_t along the channels."""
    end: float | None = None
    """Where the way from t leads; None: nowhere."""

    def __repr__(self) -> str:
        name = getattr(self.function, "__name__", type(self.function).__name__)
        labels = "" if self.labels is None else f", {len(self.labels)} labels"
        return f"network({name}, {self.process}{labels})"

    def output(self, x_t: Tensor, t: float | Tensor) -> Tensor:
        """What the function says."""
        times = times_of(self.process, x_t, t)
        seen, told = self.process.network_input(x_t, times), self.process.network_time(times)
        if isinstance(self.process, MeanFlow) and self.end is not None:
            told = self.process.network_time(times, times_of(self.process, x_t, self.end))
        if self.shown is not None:
            seen = torch.cat([seen, self.shown], dim=1)
        return self.function(seen, told) if self.classes is None else self.function(seen, told, self.classes)

    def __call__(self, x_t: Tensor, t: float | Tensor) -> Estimate:
        """The pair that the output stands for."""
        return self.process.estimate(x_t, self.output(x_t, t), times_of(self.process, x_t, t))

    @property
    def labels(self) -> Tensor | None:
        """The classes."""
        return self.classes

    @property
    def null_label(self) -> int | None:
        """As it was made."""
        return self.none

    def with_labels(self, labels: Tensor | None) -> Denoiser:
        """The same function, told other classes."""
        return replace(self, classes=labels)

    def given(self, guess: Tensor | None) -> Denoiser:
        """The same: it is shown no guess."""
        return self

    def until(self, s: float) -> Denoiser:
        """The same function, told of the way to s where its process is of intervals."""
        return replace(self, end=s) if self.process.of_intervals else self

    def beside(self, shown: Tensor) -> Denoiser:
        """The same function, shown this behind all it is shown so far."""
        return replace(self, shown=shown if self.shown is None else torch.cat([self.shown, shown], dim=1))


def of(
    process: Process,
    function: Callable[..., Tensor],
    *,
    labels: Tensor | None = None,
    null_label: int | None = None,
) -> Denoiser:
    """The denoiser of a network, or of any other function (x_t, t) -> output, or (x_t, t, labels) -> output with labels.

    Args:
        process: turns the output into (x_0, eps).
        function: called with x_t as process.network_input shows it, and (B,) times as process.network_time tells them.
        labels: (B,) classes.
        null_label: the class that stands for none.
    """
    return Predicted(process, function, labels, null_label)


@dataclass(frozen=True)
class Wrapper(Denoiser):
    """A denoiser made of another."""

    inner: Denoiser
    """What it wraps."""

    @property
    def process(self) -> Process:  # type: ignore[override]
        """That of the inner one."""
        return self.inner.process

    @property
    def labels(self) -> Tensor | None:
        """Those of the inner one."""
        return self.inner.labels

    @property
    def null_label(self) -> int | None:
        """That of the inner one."""
        return self.inner.null_label

    @property
    def self_conditioned(self) -> bool:
        """As the inner one."""
        return self.inner.self_conditioned

    @property
    def guess(self) -> Tensor | None:
        """What the inner one was given."""
        return self.inner.guess

    def with_labels(self, labels: Tensor | None) -> Denoiser:
        """The same around the inner one with other labels."""
        return replace(self, inner=self.inner.with_labels(labels))

    def given(self, guess: Tensor | None) -> Denoiser:
        """The same around the inner one given the guess."""
        return replace(self, inner=self.inner.given(guess))

    def until(self, s: float) -> Denoiser:
        """The same around the inner one of the way to s."""
        return replace(self, inner=self.inner.until(s))

    def beside(self, shown: Tensor) -> Denoiser:
        """The same around the inner one shown this."""
        return replace(self, inner=self.inner.beside(shown))


@dataclass(frozen=True)
class Guided(Wrapper):
    """See `guided`."""

    scale: float = 1.0
    """How far to go from u through c."""
    interval: tuple[float, float] = (0, inf)
    """Between which t."""
    rescale: float = 0.0
    """Share of the output that is scaled to c's deviation."""
    other: Denoiser | None = None
    """What says u; None: the inner one without labels."""

    def __repr__(self) -> str:
        return f"guided({self.inner}, {self.scale:g}{'' if self.other is None else ', other'})"

    def output(self, x_t: Tensor, t: float | Tensor) -> Tensor:
        """u + scale (c - u), in the space of what the network predicts."""
        other = self.other
        if other is None:
            assert self.labels is not None and self.null_label is not None  # `guided` refuses what has none
            other = self.inner.with_labels(torch.full_like(self.labels, self.null_label))
        conditional, unconditional = self.inner.output(x_t, t), other.output(x_t, t)
        count = x_t.shape[1]
        c, rest = conditional[:, :count], conditional[:, count:]
        u = unconditional[:, :count]
        out = u + self.scale * (c - u)
        if self.rescale > 0:
            out = self.rescale * out * _gain(_std(c), out) + (1 - self.rescale) * out
        times = times_of(self.process, x_t, t)
        lowest, highest = self.interval
        inside = ((times >= lowest) & (times <= highest)).reshape(-1, *[1] * (x_t.ndim - 1))
        return torch.cat([torch.where(inside, out, c), rest], dim=1)

    def __call__(self, x_t: Tensor, t: float | Tensor) -> Estimate:
        """The pair that the guided output stands for."""
        return self.process.estimate(x_t, self.output(x_t, t), times_of(self.process, x_t, t))

    def with_labels(self, labels: Tensor | None) -> Denoiser:
        """The same for other labels; another denoiser that has none is still told none."""
        other = self.other if self.other is None or self.other.labels is None else self.other.with_labels(labels)
        return replace(self, inner=self.inner.with_labels(labels), other=other)

    def given(self, guess: Tensor | None) -> Denoiser:
        """Both sides are given it."""
        other = None if self.other is None else self.other.given(guess)
        return replace(self, inner=self.inner.given(guess), other=other)

    def until(self, s: float) -> Denoiser:
        """Both sides of the way to s."""
        other = None if self.other is None else self.other.until(s)
        return replace(self, inner=self.inner.until(s), other=other)

    def beside(self, shown: Tensor) -> Denoiser:
        """Both sides are shown it."""
        other = None if self.other is None else self.other.beside(shown)
        return replace(self, inner=self.inner.beside(shown), other=other)


def guided(
    denoise: Denoiser,
    scale: float,
    *,
    interval: tuple[float, float] = (0.0, inf),
    rescale: float = 0.0,
    other: Denoiser | None = None,
) -> Denoiser:
    """Classifier-free guidance: u + scale (c - u), c being what the denoiser says with labels, u what it says without.

    Args:
        denoise: with labels, and a null_label that was trained for none; two evaluations a step.
        scale: 0 ignores the labels, 1 is the conditional network, more exaggerates.
        interval: lowest and highest t, both included, at which to guide, a time of the process; elsewhere the output is c.
            Kynkäänniemi et al. 2024, "Applying Guidance in a Limited Interval Improves Sample and Distribution Quality".
        rescale: phi in [0, 1]: the share of the output that is scaled to c's standard deviation, that of each example over all but
            the batch; an output without spread stays as it is. Lin et al. 2024, "Common Diffusion Noise Schedules and Sample Steps
            are Flawed", eq. 15-16; about 0.7 there.
        other: the denoiser whose output is u; None: the same one with the null_label for every label.

    A learned variance is c's.

    Raises:
        ValueError: neither other nor labels and a null_label; rescale outside [0, 1]; an interval with its ends in the wrong order.

    Ho & Salimans 2022, "Classifier-Free Diffusion Guidance", eq. 6, whose w is scale - 1.
    """
    if other is None and (denoise.labels is None or denoise.null_label is None):
        raise ValueError("guidance needs labels and a null_label to put in their place, or another denoiser; got None.")
    if not 0 <= rescale <= 1:
        raise ValueError(f"rescale must lie in [0, 1]; got {rescale}.")
    lowest, highest = interval
    if not lowest <= highest:
        raise ValueError(f"interval must be (lowest, highest); got {interval}.")
    return Guided(denoise, scale, interval, rescale, other)


@dataclass(frozen=True)
class ClassifierGuided(Wrapper):
    """See `classifier_guided`."""

    log_prob: LogProb
    """The classifier."""
    scale: float = 1.0
    """Scale of its gradient."""

    def __repr__(self) -> str:
        return f"classifier_guided({self.inner}, {self.scale:g})"

    def __call__(self, x_t: Tensor, t: float | Tensor) -> Estimate:
        """eps led up the slope, and the x_0 that belongs to it."""
        times = times_of(self.process, x_t, t)
        with torch.enable_grad():
            x = x_t.detach().requires_grad_(True)
            (gradient,) = torch.autograd.grad(self.log_prob(x, times).sum(), x)
        hat = self.inner(x_t, t)
        alpha, sigma = self.process.level(times, x_t)
        eps = hat.eps - self.scale * sigma * gradient
        return Estimate((x_t - sigma * eps) / alpha, eps, hat.variance_logit)


def classifier_guided(denoise: Denoiser, log_prob: LogProb, scale: float = 1.0) -> Denoiser:
    """eps - scale sigma_t grad log p(y | x_t): eps led up the slope of a classifier of noised images.

    Args:
        denoise: of a Gaussian diffusion.
        log_prob: (x_t, t) -> (B,) log-probability of each example's wanted class; differentiable in x_t, and of each example by
            itself.
        scale: of the gradient; 0 leaves the estimate.

    Raises:
        ValueError: A_t is 0 at the last t, where no classifier can know anything and x_0 has no finite shift.

    Dhariwal & Nichol 2021, "Diffusion Models Beat GANs on Image Synthesis", algorithm 2.
    """
    process = denoise.process
    if isinstance(process, GaussianDiffusion) and process.schedule.alphas_cumprod[-1] == 0:
        raise ValueError(
            "process must have the last alphas_cumprod of its schedule above 0 for a classifier's guidance; got 0."
        )
    return ClassifierGuided(denoise, log_prob, scale)


@dataclass(frozen=True)
class Clipped(Wrapper):
    """See `clipped`."""

    bound: float = 1.0
    """The largest |x_0|."""

    def __repr__(self) -> str:
        return f"clipped({self.inner}, {self.bound:g})"

    def __call__(self, x_t: Tensor, t: float | Tensor) -> Estimate:
        """x_0 within the bound, and the eps that belongs to it."""
        hat = self.inner(x_t, t)
        x_0 = hat.x_0.clamp(-self.bound, self.bound)
        return Estimate(x_0, self.process.eps_given_x_0(x_t, x_0, times_of(self.process, x_t, t)), hat.variance_logit)


def clipped(denoise: Denoiser, bound: float = 1.0) -> Denoiser:
    """x_0 clipped to [-bound, bound], and eps made to agree with it.

    Raises:
        ValueError: bound <= 0.
    """
    if not bound > 0:
        raise ValueError(f"bound must be above 0; got {bound}.")
    return Clipped(denoise, bound)


@dataclass(frozen=True)
class Thresholded(Wrapper):
    """See `thresholded`."""

    quantile: float = 0.995
    """Quantile of each example's |x_0|."""
    bound: float = 1.0
    """The largest |x_0| in the end."""

    def __repr__(self) -> str:
        return f"thresholded({self.inner}, {self.quantile:g}, {self.bound:g})"

    def __call__(self, x_t: Tensor, t: float | Tensor) -> Estimate:
        """x_0 within each example's own bound, scaled back to the common one."""
        hat = self.inner(x_t, t)
        sizes = hat.x_0.abs().flatten(1)
        wide = torch.quantile(sizes, self.quantile, dim=1).clamp(min=self.bound).reshape(-1, *[1] * (x_t.ndim - 1))
        x_0 = torch.maximum(torch.minimum(hat.x_0, wide), -wide) * self.bound / wide
        return Estimate(x_0, self.process.eps_given_x_0(x_t, x_0, times_of(self.process, x_t, t)), hat.variance_logit)


def thresholded(denoise: Denoiser, quantile: float, bound: float = 1.0) -> Denoiser:
    """Dynamic thresholding: x_0 clipped to each example's own quantile of |x_0|, where that exceeds the bound, and divided by it.

    Raises:
        ValueError: quantile outside (0, 1], or bound <= 0.

    Saharia et al. 2022, "Photorealistic Text-to-Image Diffusion Models with Deep Language Understanding", section 2.3.
    """
    if not 0 < quantile <= 1:
        raise ValueError(f"quantile must lie in (0, 1]; got {quantile}.")
    if not bound > 0:
        raise ValueError(f"bound must be above 0; got {bound}.")
    return Thresholded(denoise, quantile, bound)


@dataclass(frozen=True)
class SelfConditioned(Wrapper):
    """See `self_conditioned`."""

    earlier: Tensor | None = None
    """What is shown, of x_t's shape; None: zeros."""

    def output(self, x_t: Tensor, t: float | Tensor) -> Tensor:
        """What the inner one says of x_t with the guess behind it along the channels."""
        earlier = torch.zeros_like(x_t) if self.earlier is None else self.earlier
        return self.inner.beside(earlier).output(x_t, t)

    def __call__(self, x_t: Tensor, t: float | Tensor) -> Estimate:
        """The pair that the output stands for."""
        return self.process.estimate(x_t, self.output(x_t, t), times_of(self.process, x_t, t))

    @property
    def self_conditioned(self) -> bool:
        """It is."""
        return True

    @property
    def guess(self) -> Tensor | None:
        """What it was given."""
        return self.earlier

    def given(self, guess: Tensor | None) -> Denoiser:
        """Shown the guess."""
        return replace(self, earlier=guess)


def self_conditioned(denoise: Denoiser) -> Denoiser:
    """For a network whose input is x_t with a guess of x_0 behind it along the channels: zeros, or what it is `given`.

    Chen et al. 2023, "Analog Bits: Generating Discrete Data using Diffusion Models with Self-Conditioning".
    """
    return SelfConditioned(denoise)


@dataclass(frozen=True)
class Reparameterized(Wrapper):
    """See `reparameterized`."""

    path: Process
    """Whose x_t it is asked of."""

    def __repr__(self) -> str:
        return f"reparameterized({self.inner}, {self.path})"

    @property
    def process(self) -> Process:  # type: ignore[override]
        """That whose x_t it is asked of."""
        return self.path

    def __call__(self, x_t: Tensor, t: float | Tensor) -> Estimate:
        """What the inner one says of the same data under the same noise."""
        times = times_of(self.path, x_t, t)
        alpha, sigma = self.path.level(times, x_t)
        own = self.inner.process.time_at((sigma / alpha).flatten())
        own_alpha, own_sigma = self.inner.process.level(own, x_t)
        hat = self.inner(x_t * (own_alpha / alpha), own)
        return Estimate(hat.x_0, hat.eps * (own_sigma * alpha) / (own_alpha * sigma))


def reparameterized(denoise: Denoiser, process: Process) -> Denoiser:
    """A denoiser of one process as that of another: asked where sigma/alpha is the same, of x_t scaled to its own alpha.

    Args:
        denoise: of any process. A chain is asked at the valid t whose sigma/alpha is nearest, and exact at those alone; its learned
            variance is not told.
        process: whose x_t it is to be asked of.

    Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative Models", section 2 and table 1, where models
    that were trained on a variance-preserving chain become denoisers of x_0 + sigma eps.
    """
    return Reparameterized(denoise, process)


def times_of(process: Process, x_t: Tensor, t: float | Tensor) -> Tensor:
    """(B,) times: t itself, or as often as x_t has examples; int64 on a chain, x_t's dtype in continuous time."""
    if isinstance(t, Tensor) and t.ndim:
        return t
    dtype = torch.int64 if isinstance(process, GaussianDiffusion) else x_t.dtype
    return torch.full((len(x_t),), float(t), dtype=torch.float64, device=x_t.device).to(dtype)


def _std(x: Tensor) -> Tensor:
    """(B, 1, ...) standard deviation of each example."""
    return x.std(dim=tuple(range(1, x.ndim)), correction=0, keepdim=True)


def _gain(wanted: Tensor, x: Tensor) -> Tensor:
    """(B, 1, ...) what each example of x must be multiplied with to have the wanted deviation; 1 where all its values are one."""
    axes, std = tuple(range(1, x.ndim)), _std(x)
    # the deviation alone does not tell: it is that of a rounded mean
    flat = (x.amax(dim=axes, keepdim=True) == x.amin(dim=axes, keepdim=True)) | (std == 0)
    return torch.where(flat, torch.ones_like(std), wanted / std)
