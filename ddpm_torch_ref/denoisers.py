"""Denoisers: a network with its process as (x_t, t) -> Estimate, and all that wraps one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import inf
from typing import Any

import torch
from torch import Tensor

from ddpm_torch_ref.processes import Estimate, GaussianDiffusion, Process

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

    def unlabelled(self) -> Denoiser:
        """The same without labels.

        Raises:
            ValueError: nothing stands for no label.
        """
        raise ValueError(f"{type(self).__name__} has no labels to leave out.")

    @property
    def self_conditioned(self) -> bool:
        """Whether it is shown an earlier estimate of x_0."""
        return False

    def given(self, guess: Tensor) -> Denoiser:
        """The same, shown an earlier estimate of x_0, (B, C, H, W), where it takes one."""
        return self


@dataclass(frozen=True)
class Network(Denoiser):
    """A network with its process.

    Args:
        process: turns its output into (x_0, eps).
        network: (x, t) or, with labels, (x, t, labels) -> output; t (B,) as process.network_time tells it.
        labels: (B,) classes, or None.
        null_label: the label that stands for none.
        self_conditioning: x is x_t with a guess of x_0 behind it along the channels, zeros where there is none (Chen et al. 2023,
            "Analog Bits").
        guess: that guess, of x_t's shape.
    """

    process: Process
    network: Callable[..., Tensor]
    labels: Tensor | None = None
    null_label: int | None = None
    self_conditioning: bool = False
    guess: Tensor | None = None

    def __repr__(self) -> str:
        name = getattr(self.network, "__name__", type(self.network).__name__)
        labels = "" if self.labels is None else f", {len(self.labels)} labels"
        return f"network({name}, {self.process}{labels})"

    def output(self, x_t: Tensor, t: float | Tensor) -> Tensor:
        """What the network says."""
        shown = x_t
        if self.self_conditioning:
            shown = torch.cat([x_t, torch.zeros_like(x_t) if self.guess is None else self.guess], dim=1)
        told = self.process.network_time(times_of(self.process, x_t, t))
        return self.network(shown, told) if self.labels is None else self.network(shown, told, self.labels)

    def __call__(self, x_t: Tensor, t: float | Tensor) -> Estimate:
        """The pair that the network's output stands for."""
        return self.process.estimate(x_t, self.output(x_t, t), times_of(self.process, x_t, t))

    def unlabelled(self) -> Denoiser:
        """With the null label for every label.

        Raises:
            ValueError: there are no labels, or no null label.
        """
        if self.labels is None or self.null_label is None:
            raise ValueError("a denoiser without labels needs labels and a null_label to put in their place; got None.")
        return replace(self, labels=torch.full_like(self.labels, self.null_label))

    @property
    def self_conditioned(self) -> bool:
        """As the network was made."""
        return self.self_conditioning

    def given(self, guess: Tensor) -> Denoiser:
        """Shown the guess."""
        return replace(self, guess=guess) if self.self_conditioning else self


def of(process: Process, network: Callable[..., Tensor], labels: Tensor | None = None, **options: Any) -> Network:
    """The denoiser of any function (x_t, t) -> output, or (x_t, t, labels) -> output with labels; options as in `Network`."""
    return Network(process, network, labels, **options)


@dataclass(frozen=True)
class Wrapper(Denoiser):
    """A denoiser made of another."""

    inner: Denoiser
    """What it wraps."""
    process: Process = field(init=False, repr=False)
    """That of the inner one."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "process", self.inner.process)

    def unlabelled(self) -> Denoiser:
        """The same around the inner one without labels."""
        return replace(self, inner=self.inner.unlabelled())

    @property
    def self_conditioned(self) -> bool:
        """As the inner one."""
        return self.inner.self_conditioned

    def given(self, guess: Tensor) -> Denoiser:
        """The same around the inner one given the guess."""
        return replace(self, inner=self.inner.given(guess))


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
        other = self.inner.unlabelled() if self.other is None else self.other
        conditional, unconditional = self.inner.output(x_t, t), other.output(x_t, t)
        count = x_t.shape[1]
        c, rest = conditional[:, :count], conditional[:, count:]
        u = unconditional[:, :count]
        out = u + self.scale * (c - u)
        if self.rescale > 0:
            out = self.rescale * out * _gain(_std(c), out) + (1 - self.rescale) * out
        told = self.process.network_time(times_of(self.process, x_t, t))
        lowest, highest = self.interval
        inside = ((told >= lowest) & (told <= highest)).reshape(-1, *[1] * (x_t.ndim - 1))
        return torch.cat([torch.where(inside, out, c), rest], dim=1)

    def __call__(self, x_t: Tensor, t: float | Tensor) -> Estimate:
        """The pair that the guided output stands for."""
        return self.process.estimate(x_t, self.output(x_t, t), times_of(self.process, x_t, t))

    def given(self, guess: Tensor) -> Denoiser:
        """Both sides are given it."""
        other = None if self.other is None else self.other.given(guess)
        return replace(self, inner=self.inner.given(guess), other=other)


def guided(
    denoise: Denoiser,
    scale: float,
    interval: tuple[float, float] = (0, inf),
    rescale: float = 0.0,
    other: Denoiser | None = None,
) -> Guided:
    """Classifier-free guidance: u + scale (c - u), c being what the denoiser says with labels, u what it says without.

    Args:
        denoise: with labels; two evaluations a step.
        scale: 0 ignores the labels, 1 is the conditional network, more exaggerates.
        interval: lowest and highest t, both included, at which to guide, as the network is told it; elsewhere the output is c.
            Kynkäänniemi et al. 2024, "Applying Guidance in a Limited Interval Improves Sample and Distribution Quality".
        rescale: phi in [0, 1]: the share of the output that is scaled to c's standard deviation, that of each example over all but
            the batch; an output without spread stays as it is. Lin et al. 2024, "Common Diffusion Noise Schedules and Sample Steps
            are Flawed", eq. 15-16; about 0.7 there.
        other: the denoiser whose output is u; None: the same one without labels.

    A learned variance is c's.

    Raises:
        ValueError: rescale outside [0, 1], or an interval whose ends are in the wrong order.

    Ho & Salimans 2022, "Classifier-Free Diffusion Guidance", eq. 6, whose w is scale - 1.
    """
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
    """Of its gradient."""

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


def classifier_guided(denoise: Denoiser, log_prob: LogProb, scale: float = 1.0) -> ClassifierGuided:
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


def clipped(denoise: Denoiser, bound: float) -> Clipped:
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
    """Of each example's |x_0|."""
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


def thresholded(denoise: Denoiser, quantile: float, bound: float = 1.0) -> Thresholded:
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


def times_of(process: Process, x_t: Tensor, t: float | Tensor) -> Tensor:
    """(B,) times: t itself, or as often as x_t has examples; int64 on a chain, x_t's dtype on a straight path."""
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
