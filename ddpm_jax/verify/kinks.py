"""How near a network's ReLUs come to zero, where their gradient jumps: within rounding of it two sound networks may differ."""

from collections.abc import Mapping, Sequence
from typing import Any

SAFE = 2e-6
"""A margin that float32's rounding does not reach in the networks here."""


def relu_margin(module: Any, inputs: Sequence[Any], named: Mapping[str, Any] | None = None, *, training: bool) -> float:
    """Smallest size of any number that a ReLU of the torch module is given, relative to the largest in the same call.

    module: of float64, so that the margin is that of exact arithmetic; its mode and running statistics come back as they were.
    inputs, named: what it is called with, tensors or None. Infinite for a module without ReLUs.
    """
    import torch
    from torch.overrides import TorchFunctionMode

    functional = torch.nn.functional
    kinked = {functional.relu, torch.relu, torch.Tensor.relu, functional.leaky_relu}
    margins = [float("inf")]

    class Watch(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func in kinked:
                size = args[0].detach().abs()
                margins.append(float(size.min() / size.max()))
            return func(*args, **kwargs or {})

    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    was_training = module.training
    try:
        with torch.no_grad(), Watch():
            module.train(training)(*inputs, **named or {})
    finally:
        module.train(was_training)
        for name, buffer in module.named_buffers():
            buffer.copy_(before[name])
    return min(margins)
