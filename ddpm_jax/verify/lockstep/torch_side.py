"""The PyTorch side of a training: its step as it is, watched by hooks on parameters and optimiser."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from ddpm_jax import display
from ddpm_jax.errors import UserError, kind_of
from ddpm_jax.verify.lockstep.history import Arrays, History, Step

MOMENTS = {
    "exp_avg": "first",
    "exp_avg_sq": "second",
    "square_avg": "second",
    "momentum_buffer": "momentum",
    "sum": "sum",
}
"""What PyTorch calls what an optimiser remembers -> its name in a history."""


class TorchTraining:
    """A training in PyTorch, of its parts: loss, module, optimiser.

    loss: (module, *batch) -> loss. optimizer: one of torch.optim, made of the module's parameters. clip: the largest norm of all
    gradients together, by clip_grad_norm_. scheduler: whose step() follows the optimiser's. ema:
    torch.optim.swa_utils.AveragedModel of the module, whose update_parameters follows the step. After a comparison module,
    optimizer and ema are as they were; the scheduler is not.
    """

    def __init__(
        self,
        loss: Callable[..., Any],
        module: Any,
        optimizer: Any,
        *,
        clip: float | None = None,
        scheduler: Any = None,
        ema: Any = None,
    ):
        if not callable(loss):
            raise UserError(f"loss must be a function (module, *batch) -> loss; got {kind_of(loss)}.")

        def step(*batch: Any) -> Any:
            import torch

            optimizer.zero_grad()
            value = loss(module, *batch)
            value.backward()
            if clip is not None:
                torch.nn.utils.clip_grad_norm_(module.parameters(), clip)
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
            if ema is not None:
                ema.update_parameters(module)
            return value

        self._fill(step, module, optimizer, ema)

    @classmethod
    def of_step(cls, step: Callable[..., Any], module: Any, optimizer: Any, *, ema: Any = None) -> "TorchTraining":
        """A training by the body of its own loop, (*batch) -> loss, which clears gradients, goes back, and steps.

        module, optimizer: those that it trains and steps. ema: the averaged module, if there is one. What else the step counts by
        itself, such as a scheduler, goes on counting after a comparison.
        """
        made = cls.__new__(cls)
        made._fill(step, module, optimizer, ema)
        return made

    def _fill(self, step: Callable[..., Any], module: Any, optimizer: Any, ema: Any) -> None:
        import torch

        if not callable(step):
            raise UserError(f"step must be a function (*batch) -> loss; got {kind_of(step)}.")
        if not isinstance(module, torch.nn.Module):
            raise UserError(f"module must be a torch.nn.Module; got {kind_of(module)}.")
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise UserError(f"optimizer must be one of torch.optim; got {kind_of(optimizer)}.")
        mine = {id(parameter) for parameter in module.parameters()}
        if not any(id(p) in mine for group in optimizer.param_groups for p in group["params"]):
            raise UserError("optimizer must be made of the module's parameters; it holds none of them.")
        self.step, self.module, self.optimizer, self.ema = step, module, optimizer, ema

    def __repr__(self) -> str:
        return display.line(self, type(self.module).__name__, type(self.optimizer).__name__)


@contextmanager
def restored(training: TorchTraining, dtype: str | None) -> Iterator[None]:
    """Module, optimiser and average of a precision; as they were afterwards."""
    import torch

    modules = [module for module in (training.module, training.ema) if isinstance(module, torch.nn.Module)]
    tensors = {id(t): t for module in modules for t in (*module.parameters(), *module.buffers())}
    before = {
        key: (tensor.data, None if tensor.grad is None else tensor.grad.clone()) for key, tensor in tensors.items()
    }
    optimizer = training.optimizer.state_dict()
    optimizer = {
        **optimizer,
        "state": {k: {n: _copied(v) for n, v in s.items()} for k, s in optimizer["state"].items()},
    }
    groups = [dict(group) for group in optimizer["param_groups"]]
    training_mode = training.module.training
    try:
        for tensor in tensors.values():
            wanted = getattr(torch, dtype) if dtype and tensor.is_floating_point() else tensor.dtype
            tensor.grad = None
            tensor.data = tensor.data.to(wanted, copy=True)
        training.module.train()
        yield
    finally:
        for key, tensor in tensors.items():
            tensor.grad = None  # of another dtype
            tensor.data, tensor.grad = before[key]
        training.optimizer.load_state_dict({"state": optimizer["state"], "param_groups": groups})
        training.module.train(training_mode)


def _copied(value: Any) -> Any:
    return value.clone() if hasattr(value, "clone") else value


def run(training: TorchTraining, batches: list[tuple[Any, ...]], dtype: str | None, own: Arrays) -> History:
    """The history of a training, within `restored`; own: parameters as PyTorch drew them."""
    import torch

    names = {id(parameter): name for name, parameter in training.module.named_parameters()}
    _same_precision(training.optimizer, names, training.module)
    history = History("PyTorch", own, _read(training, names, [], 0.0), settings=_settings(training.optimizer, names))
    for batch in batches:
        tensors = tuple(_tensor(torch, leaf, dtype) for leaf in batch)
        with _watched(training, names) as seen:
            loss = training.step(*tensors)
        if loss is None:
            raise UserError("PyTorch's step must return the loss; it returned None.")
        step = _read(training, names, [_array(t) for t in tensors if hasattr(t, "detach")], _number(loss))
        step.parts = seen["parts"]
        for part in step.parts:
            for name, gradient in part.items():
                step.gradients[name] = step.gradients[name] + gradient if name in step.gradients else gradient
        step.fed, step.rates = seen["fed"], seen["rates"]
        history.steps.append(step)
    return history


@contextmanager
def _watched(training: TorchTraining, names: dict[int, str]) -> Iterator[dict[str, Any]]:
    """What hooks see of a step: gradients of each backward pass, and what the optimiser is given."""
    seen: dict[str, Any] = {"parts": [], "fed": {}, "rates": {}}

    def came(name: str) -> Callable[[Any], None]:
        def note(gradient: Any) -> None:
            if not seen["parts"] or name in seen["parts"][-1]:
                seen["parts"].append({})
            seen["parts"][-1][name] = _array(gradient)

        return note

    def before_step(optimizer: Any, args: Any, kwargs: Any) -> None:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and id(parameter) in names:
                    coupled = 0.0 if _decoupled(optimizer, group) else group.get("weight_decay", 0.0)
                    seen["fed"][names[id(parameter)]] = _array(parameter.grad + coupled * parameter)
                    seen["rates"][names[id(parameter)]] = float(group["lr"])

    parameters = [p for p in training.module.parameters() if p.requires_grad]
    handles = [parameter.register_hook(came(names[id(parameter)])) for parameter in parameters]
    handles.append(training.optimizer.register_step_pre_hook(before_step))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _decoupled(optimizer: Any, group: dict[str, Any]) -> bool:
    """Whether weight decay is apart from the gradients."""
    return type(optimizer).__name__ == "AdamW" or bool(group.get("decoupled_weight_decay"))


def _same_precision(optimizer: Any, names: dict[int, str], module: Any) -> None:
    """What the optimiser already remembers, in the precision of its parameters."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if hasattr(value, "is_floating_point") and value.is_floating_point() and value.ndim:
                state[name] = value.to(parameter.dtype)


def _settings(optimizer: Any, names: dict[int, str]) -> dict[str, Any]:
    group = optimizer.param_groups[0]
    kept = {
        name: value
        for name, value in group.items()
        if name != "params" and isinstance(value, bool | int | float | tuple)
    }
    decay = {
        names[id(p)]: float(g.get("weight_decay", 0.0))
        for g in optimizer.param_groups
        for p in g["params"]
        if id(p) in names
    }
    coupled = not _decoupled(optimizer, group)
    return {**kept, "optimizer": type(optimizer).__name__, "decay": decay, "coupled": coupled}


def _read(training: TorchTraining, names: dict[int, str], inputs: list[np.ndarray], loss: float) -> Step:
    params = {name: _array(parameter) for name, parameter in training.module.named_parameters()}
    step = Step(inputs, loss, {}, params)
    for parameter, state in training.optimizer.state.items():
        for theirs, name in MOMENTS.items():
            if hasattr(state.get(theirs), "detach") and id(parameter) in names:
                step.moments.setdefault(name, {})[names[id(parameter)]] = _array(state[theirs])
    step.statistics = {
        name: _array(buffer)
        for name, buffer in training.module.named_buffers()
        if name.endswith(("running_mean", "running_var")) and buffer is not None
    }
    if training.ema is not None:
        inner = training.ema.module if hasattr(training.ema, "n_averaged") else training.ema
        step.average = {name: _array(parameter) for name, parameter in inner.named_parameters()}
    return step


def _tensor(torch: Any, leaf: Any, dtype: str | None) -> Any:
    array = np.asarray(leaf.detach().cpu() if hasattr(leaf, "detach") else leaf)
    if array.dtype.kind == "f" and dtype:
        array = array.astype(dtype)
    return torch.from_numpy(np.array(array.astype(np.int64) if array.dtype.kind == "i" else array))


def _array(tensor: Any) -> np.ndarray:
    tensor = tensor.detach().cpu()
    return np.array((tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor).numpy())


def _number(loss: Any) -> float:
    if isinstance(loss, tuple | list):
        loss = loss[0]
    return float(loss.detach() if hasattr(loss, "detach") else loss)
