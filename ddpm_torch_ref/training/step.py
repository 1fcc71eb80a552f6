"""The one step of training: an update of the state, its batch looked at first; `make_step` makes it."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ddpm_torch_ref.processes import Process
from ddpm_torch_ref.training.averages import lengths_of
from ddpm_torch_ref.training.state import TrainState
from ddpm_torch_ref.training.update import Metrics, Update


def make_step(
    process: Process,
    *,
    ema: Any = 0.9999,
    accumulate: int = 1,
    label_dropout: float = 0.0,
    skip_nonfinite: bool = False,
    grad_clip: float | None = None,
    bounded: bool = True,
) -> "Step":
    """The step of training: step(state, batch, generator) -> (state, metrics), the state changed in place.

    Args:
        process: gives times and loss.
        ema: decay of the moving average, in [0, 1); or lengths of power-function averages, the state being made with the same.
        accumulate: parts that a batch is gone through in, at least 1.
        label_dropout: share of the labels replaced by the network's last class, in [0, 1).
        skip_nonfinite: where loss or gradients are not finite, leave the state as it was, but for its step.
        grad_clip: largest norm of the gradients, above 0; None leaves them.
        bounded: images beyond [-1, 1] are refused, as 0..255 in floats would be; False: any are taken.

    Raises:
        ValueError: no process, or a number out of range.
    """
    if not isinstance(process, Process):
        raise ValueError(f"process must be one of ddpm_torch_ref.processes; got {type(process).__name__}.")
    lengths_of(ema)
    if not 0 <= label_dropout < 1:
        raise ValueError(f"label_dropout must lie in [0, 1); got {label_dropout}.")
    if accumulate < 1:
        raise ValueError(f"accumulate must be at least 1; got {accumulate}.")
    if grad_clip is not None and not grad_clip > 0:
        raise ValueError(f"grad_clip must be above 0, or None; got {grad_clip}.")
    return Step(Update(process, ema, accumulate, label_dropout, skip_nonfinite, grad_clip), bounded)


@dataclass(frozen=True, eq=False)
class Step:
    """What `make_step` makes. Called as step(state, batch, generator) -> (state, {"loss": …, "grad_norm": …})."""

    update: Update
    """Its equations."""
    bounded: bool = False
    """See `make_step`."""
    _seen: set[Any] = field(default_factory=set, init=False, repr=False)
    """Forms of batches that were found to fit."""

    def __call__(self, state: TrainState, batch: Any, generator: torch.Generator) -> tuple[TrainState, Metrics]:
        """One update of the state, in place.

        Args:
            state: as `create_state` makes it.
            batch: {"x_0": (B, ...), "label": (B,)}, or with `image` for x_0; (x_0, labels); or x_0 alone. x_0: uint8 images,
                scaled to [-1, 1], or what the network is to see. A network with condition_channels C' wants "condition" too,
                (B, C', H, W) of the same kinds.
            generator: of everything drawn; it goes on from step to step.

        Returns:
            The state, and loss and grad_norm, the mean loss of the batch and the norm of its gradients before clipping, as scalar
            tensors: to read them waits for the device.

        Raises:
            ValueError: no state; a batch of another form, without labels for a network with classes or a condition for one that
                takes it, or beyond the range of the data (looked at when its shape is first seen).
        """
        batch = as_batch(batch)
        self._check(state, batch)
        return self.update(state, batch, generator)

    def _check(self, state: TrainState, batch: dict[str, Tensor]) -> None:
        if not isinstance(state, TrainState):
            raise ValueError(f"state must be a TrainState, as create_state makes; got {type(state).__name__}.")
        form = tuple((name, value.shape, value.dtype) for name, value in batch.items())
        if form in self._seen:
            return
        x_0, labels, classes = batch["x_0"], batch.get("label"), getattr(state.model, "num_classes", None)
        if x_0.ndim < 2 or not len(x_0):
            raise ValueError(f"x_0 must be a batch of examples, (B, ...); got the shape {tuple(x_0.shape)}.")
        if len(x_0) % self.update.accumulate:
            raise ValueError(f"accumulate must divide the batch, {len(x_0)} examples; got {self.update.accumulate}.")
        if labels is None and classes:
            raise ValueError(f"a batch needs labels, as the network has {classes} classes; got x_0 alone.")
        if labels is not None and (labels.shape != x_0.shape[:1] or labels.is_floating_point()):
            raise ValueError(f"labels must be {len(x_0)} whole numbers; got {labels.dtype} of {tuple(labels.shape)}.")
        if self.update.label_dropout and (labels is None or not classes):
            raise ValueError("label_dropout must be 0 without labels, or for a network that says no num_classes.")
        _check_condition(state.model, batch)
        if self.bounded and x_0.ndim == 4 and x_0.is_floating_point() and x_0.abs().max() > 1 + 1e-3:
            raise ValueError(
                f"images must lie in [-1, 1]; got {x_0.min():g} to {x_0.max():g}. Scale them, or say bounded=False."
            )
        self._seen.add(form)


def _check_condition(model: Any, batch: dict[str, Tensor]) -> None:
    channels, condition = getattr(model, "condition_channels", None), batch.get("condition")
    if condition is None:
        if channels:
            raise ValueError(
                f"a batch needs a condition, as the network has condition_channels = {channels}; got none."
            )
        return
    if channels == 0:
        raise ValueError("a batch must hold no condition for a network with condition_channels = 0; got one.")
    size, _, *rest = batch["x_0"].shape
    wanted = (size, condition.shape[1] if channels is None else channels, *rest)
    if condition.shape != wanted or not (condition.is_floating_point() or condition.dtype == torch.uint8):
        raise ValueError(
            f"condition must be uint8 pixels or floats of shape {wanted}; got {condition.dtype} of {tuple(condition.shape)}."
        )


def as_batch(batch: Any) -> dict[str, Tensor]:
    """A batch in one of its forms as {"x_0": …, "label": …, "condition": …}, the latter two where there are any.

    Raises:
        ValueError: another form.
    """
    if isinstance(batch, dict):
        found = {"x_0" if name == "image" else name: value for name, value in batch.items()}
    else:
        found = dict(zip(("x_0", "label"), batch if isinstance(batch, tuple | list) else (batch,), strict=False))
    found = {name: value for name, value in found.items() if value is not None}
    tensors = all(isinstance(value, Tensor) for value in found.values())
    if "x_0" not in found or found.keys() - {"x_0", "label", "condition"} or not tensors:
        shown = sorted(batch) if isinstance(batch, dict) else type(batch).__name__
        raise ValueError(
            f"a batch must be {{'x_0': tensor, 'label': tensor}}, (x_0, labels) or x_0 alone, as tensors, in a dict with "
            f"'condition' for a network that wants one; got {shown}."
        )
    return found
