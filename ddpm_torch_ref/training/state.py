"""The state of training: the network, its moving average, and the optimiser that is bound to its parameters."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ddpm_torch_ref import denoisers
from ddpm_torch_ref.denoisers import Denoiser
from ddpm_torch_ref.processes import Process
from ddpm_torch_ref.training.averages import lengths_of
from ddpm_torch_ref.training.loss_aware import LossHistory


@dataclass
class TrainState:
    """Everything that an update changes, in place."""

    step: int
    """Number of steps done."""
    model: nn.Module
    """What is trained; its buffers are BatchNorm's statistics."""
    ema_model: nn.Module
    """The same with the moving average of the parameters: what samples are drawn with."""
    optimizer: torch.optim.Optimizer
    """Over the parameters of `model`."""
    averages: list[nn.Module] | None = None
    """The same with averages of further lengths, where several are kept."""
    loss_history: LossHistory | None = None
    """The latest losses of every timestep; None where times are not drawn by them."""

    def denoiser(
        self, process: Process, labels: Tensor | None = None, *, ema: bool = True, null_label: int | None = None
    ) -> Denoiser:
        """What the network believes, with parameters of its own: later steps do not change it.

        Args:
            process: turns its output into (x_0, eps).
            labels: (B,) classes.
            ema: with the averaged parameters, or those being trained.
            null_label: the class that stood for none where labels were dropped: then it can be guided.
        """
        network = copy.deepcopy(self.ema_model if ema else self.model).eval()
        denoise = denoisers.of(process, network, labels=labels, null_label=null_label)
        return denoisers.self_conditioned(denoise) if getattr(network, "self_conditioning", False) else denoise


def create_state(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    ema: Any = 0.9999,
    loss_history: LossHistory | None = None,
) -> TrainState:
    """The state before the first update: the average starts as a copy of the network.

    Args:
        model: trained in place.
        optimizer: any of torch.optim, made with the model's parameters.
        ema: what `make_step` is given: with several lengths as many averages are kept.
        loss_history: `loss_aware.empty(T)` to draw times by their losses.

    Raises:
        ValueError: no network, no optimiser, or one of parameters that are not the model's.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"model must be an nn.Module; got {type(model).__name__}.")
    how = "an optimiser of the model's parameters, as torch.optim.Adam(model.parameters(), lr=2e-4)"
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ValueError(f"optimizer must be {how}; got {type(optimizer).__name__}.")
    own = {id(parameter) for parameter in model.parameters()}
    if any(id(parameter) not in own for group in optimizer.param_groups for parameter in group["params"]):
        raise ValueError(f"optimizer must be {how}; got one of other parameters.")
    ema_model, *others = (
        copy.deepcopy(model).requires_grad_(False).eval() for _ in range(max(1, len(lengths_of(ema))))
    )
    return TrainState(0, model, ema_model, optimizer, others or None, loss_history)
