"""Adam as the original systems use it: a rate that follows a schedule, and moments that may be forgotten by epoch."""

from collections.abc import Callable, Iterable
from math import cos, pi
from typing import Any

import torch
from torch import nn

Rate = Callable[[int], float]
"""Number of updates done -> learning rate."""


def make_optimizer(
    parameters: Iterable[nn.Parameter], rate: Rate, *, epoch_steps: int | None = None
) -> torch.optim.Adam:
    """Adam (0.9, 0.999, 1e-8), whose rate is rate(updates done) in each update.

    The rate is set, and counted on in the groups of the optimiser, which its state_dict keeps. Gradients are clipped by the step,
    which knows their norm.

    Args:
        parameters: those of the network.
        rate: as `learning_rate` makes it.
        epoch_steps: updates after which the moments are forgotten; None: never.

    Kingma & Ba 2015, "Adam: A Method for Stochastic Optimization", algorithm 1.
    """
    optimizer = torch.optim.Adam(parameters, lr=rate(0), betas=(0.9, 0.999), eps=1e-8)

    def set_rate(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for group in optimizer.param_groups:
            done = group.setdefault("updates", 0)
            group["lr"], group["updates"] = rate(done), done + 1

    optimizer.register_step_pre_hook(set_rate)
    if epoch_steps is not None:
        forgetful(optimizer, epoch_steps)
    return optimizer


def learning_rate(
    base: float,
    warmup_steps: int,
    decay_steps: int | None = None,
    *,
    end: float = 0.0,
    epoch_steps: int = 1,
) -> Rate:
    """Number of updates done, from 0 -> rate: linearly from 0 to base, then constant, or along a cosine to end.

    Args:
        base: the highest rate, reached at warmup_steps.
        warmup_steps: length of the rise, at least 0.
        decay_steps: step at which the rate is end, counted from the start; None: it stays at base.
        end: the lowest rate of the cosine.
        epoch_steps: the rate changes every so many steps only.

    Raises:
        ValueError: warmup_steps < 0, decay_steps <= warmup_steps, or epoch_steps < 1.

    Loshchilov & Hutter 2017, "SGDR", eq. 5, without restarts.
    """
    if warmup_steps < 0:
        raise ValueError(f"warmup_steps must be at least 0; got {warmup_steps}.")
    if decay_steps is not None and decay_steps <= warmup_steps:
        raise ValueError(f"decay_steps must exceed warmup_steps = {warmup_steps}; got {decay_steps}.")
    if epoch_steps < 1:
        raise ValueError(f"epoch_steps must be at least 1; got {epoch_steps}.")

    def rate(step: int) -> float:
        step -= step % epoch_steps
        if step < warmup_steps:
            return base * step / warmup_steps
        if decay_steps is None:
            return base
        progress = min((step - warmup_steps) / (decay_steps - warmup_steps), 1.0)
        return end + (base - end) * (1 + cos(pi * progress)) / 2

    return rate


def forgetful(optimizer: torch.optim.Optimizer, every: int) -> torch.optim.Optimizer:
    """The same optimiser, which begins anew after so many updates: as one that each epoch makes for itself.

    Args:
        optimizer: one that counts its updates in the state of its parameters, as Adam does; it is changed.
        every: at least 1.

    Raises:
        ValueError: every < 1.
    """
    if every < 1:
        raise ValueError(f"every must be at least 1; got {every}.")

    def forget(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if any(state["step"] >= every for state in optimizer.state.values()):
            optimizer.state.clear()

    optimizer.register_step_pre_hook(forget)
    return optimizer
