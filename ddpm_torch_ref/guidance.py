"""Guidance: predictors made of others, which lead any sampler or solver towards a class."""

from collections.abc import Callable
from math import inf

import torch
from torch import Tensor

from ddpm_torch_ref.processes import GaussianDiffusion, Predict

PredictWithLabels = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(x_t, t, labels) -> what the network was trained to output, of the shape of x_t."""
LogProb = Callable[[Tensor, Tensor], Tensor]
"""(x_t, t) -> (B,) log-probabilities of the class wanted of each example."""


def classifier_free(
    predict: PredictWithLabels,
    labels: Tensor,
    *,
    null_label: int,
    scale: float,
    interval: tuple[float, float] = (0, inf),
    rescale: float = 0.0,
    channels: int | None = None,
) -> Predict:
    """u + scale (c - u), c being the network's output with labels, u that without them.

    Args:
        predict: the network, (x_t, t, labels) -> output; two evaluations a step.
        labels: (B,) wanted classes.
        null_label: the label that stands for none.
        scale: 0 ignores the labels, 1 is the conditional network, more exaggerates.
        interval: lowest and highest t, both included, at which to guide, as the network is told it; elsewhere the output is c.
            Kynkäänniemi et al. 2024, "Applying Guidance in a Limited Interval Improves Sample and Distribution Quality".
        rescale: phi in [0, 1]: the share of the output that is scaled to c's standard deviation, that of each example over all but
            the batch. Lin et al. 2024, "Common Diffusion Noise Schedules and Sample Steps are Flawed", eq. 15-16; about 0.7 there.
        channels: with learned variance, C: only the first C channels (axis 1) are guided, the rest are c's. None: all.

    Returns:
        predict(x_t, t), its output of the network's kind.

    Raises:
        ValueError: rescale outside [0, 1], or an interval whose ends are in the wrong order.

    Ho & Salimans 2022, "Classifier-Free Diffusion Guidance", eq. 6, whose w is scale - 1.
    """
    if not 0 <= rescale <= 1:
        raise ValueError(f"rescale must lie in [0, 1]; got {rescale}.")
    lowest, highest = interval
    if not lowest <= highest:
        raise ValueError(f"interval must be (lowest, highest); got {interval}.")

    def guided(x_t: Tensor, t: Tensor) -> Tensor:
        conditional = predict(x_t, t, labels)
        unconditional = predict(x_t, t, torch.full_like(labels, null_label))
        count = conditional.shape[1] if channels is None else channels
        c, rest = conditional[:, :count], conditional[:, count:]
        u = unconditional[:, :count]
        out = u + scale * (c - u)
        if rescale > 0:
            out = rescale * out * _gain(_std(c), out) + (1 - rescale) * out
        inside = ((t >= lowest) & (t <= highest)).reshape(-1, *[1] * (x_t.ndim - 1))
        return torch.cat([torch.where(inside, out, c), rest], dim=1)

    return guided


def classifier_guided(
    process: GaussianDiffusion, predict: Predict, log_prob: LogProb, *, scale: float = 1.0
) -> Predict:
    """eps - scale sigma_t grad log p(y | x_t): the network's eps, led up the slope of a classifier of noised images.

    Args:
        process: turns the network's output into eps, and the guided eps back into an output.
        predict: the network, (x_t, t) -> output.
        log_prob: (x_t, t) -> (B,) log-probability of each example's wanted class; differentiable in x_t, and of each example by
            itself.
        scale: of the gradient; 0 leaves the network's output.

    Returns:
        predict(x_t, t), its output of the network's kind; a learned variance stays as it is.

    Raises:
        ValueError: A_t is 0 at the last t, where no classifier can know anything and x_0 has no finite shift.

    Dhariwal & Nichol 2021, "Diffusion Models Beat GANs on Image Synthesis", algorithm 2.
    """
    if process.schedule.alphas_cumprod[-1] == 0:
        raise ValueError(
            "process must have the last alphas_cumprod of its schedule above 0 for a classifier's guidance; got 0."
        )

    def guided(x_t: Tensor, t: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x_t.detach().requires_grad_(True)
            (gradient,) = torch.autograd.grad(log_prob(x, t).sum(), x)
        estimate = process.estimate(x_t, predict(x_t, t), t)
        levels = [process.level(int(time)) for time in t]
        alpha, sigma = (
            torch.tensor(level, dtype=x_t.dtype, device=x_t.device).reshape(-1, *[1] * (x_t.ndim - 1))
            for level in zip(*levels, strict=True)
        )
        eps = estimate.eps - scale * sigma * gradient
        x_0 = (x_t - sigma * eps) / alpha
        output = process.target(x_0, eps, t)
        return output if estimate.variance_logit is None else torch.cat([output, estimate.variance_logit], dim=1)

    return guided


def _std(x: Tensor) -> Tensor:
    """(B, 1, ...) standard deviation of each example."""
    return x.std(dim=tuple(range(1, x.ndim)), correction=0, keepdim=True)


def _gain(wanted: Tensor, x: Tensor) -> Tensor:
    """(B, 1, ...) what each example of x must be multiplied with to have the wanted deviation; 1 where all its values are one."""
    axes, std = tuple(range(1, x.ndim)), _std(x)
    # the deviation alone does not tell: it is that of a rounded mean
    flat = (x.amax(dim=axes, keepdim=True) == x.amin(dim=axes, keepdim=True)) | (std == 0)
    return torch.where(flat, torch.ones_like(std), wanted / std)
