"""The output of every named module of a network, in either framework, in the order in which they finish."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from flax import nnx

Captured = dict[str, Any]
"""module path -> output; the second call of a module is recorded as path#2, and so on."""


def _record(captured: Captured, name: str, output: Any) -> None:
    calls = sum(key == name or key.startswith(f"{name}#") for key in captured)
    captured[name if calls == 0 else f"{name}#{calls + 1}"] = output


@contextmanager
def recorded_nnx(model: nnx.Module) -> Iterator[Captured]:
    """While entered, calls of the model's modules are recorded, also under a trace of jax.jit."""
    names = {id(module): ".".join(map(str, path)) for path, module in nnx.iter_modules(model)}
    kinds = {type(module) for _, module in nnx.iter_modules(model)}
    captured: Captured = {}

    def wrap(kind: type, call: Callable[..., Any]) -> Callable[..., Any]:
        def recorded(self: Any, *args: Any, **kwargs: Any) -> Any:
            output = call(self, *args, **kwargs)
            # a subclass that calls its parent's __call__ is one module, not two
            if id(self) in names and type(self) is kind and isinstance(output, jax.Array):
                _record(captured, names[id(self)], output)
            return output

        return recorded

    originals = {kind: kind.__call__ for kind in kinds if hasattr(kind, "__call__")}  # noqa: B004 - the class's own, not type's
    before = {kind: kind.__dict__.get("__call__") for kind in originals}  # None: inherited
    try:
        for kind in before:
            kind.__call__ = wrap(kind, originals[kind])  # type: ignore[method-assign]
        yield captured
    finally:
        for kind, call in before.items():
            if call is None:
                del kind.__call__
            else:
                kind.__call__ = call  # type: ignore[method-assign]


@contextmanager
def recorded_torch(model: Any) -> Iterator[Captured]:
    """While entered, calls of the torch module's submodules are recorded, as NumPy arrays."""
    captured: Captured = {}
    handles = []

    def hook(name: str) -> Callable[..., None]:
        def record(module: Any, inputs: Any, output: Any) -> None:
            if hasattr(output, "detach"):
                # a copy, since an in-place activation may overwrite the output later
                _record(captured, name, output.detach().cpu().numpy().copy())

        return record

    try:
        for name, module in model.named_modules():
            handles.append(module.register_forward_hook(hook(name)))
        yield captured
    finally:
        for handle in handles:
            handle.remove()


def align(torch_array: np.ndarray, jax_shape: tuple[int, ...]) -> np.ndarray:
    """A torch output in the order of axes that its JAX counterpart has; as it is where no order fits.

    Images go from channels first to channels last; a row of tokens (B, N, C) becomes the image (B, H, W, C) it was made of.
    """
    if torch_array.ndim == 4:
        moved = np.moveaxis(torch_array, 1, -1)
        if moved.shape == jax_shape:
            return moved
    tokens = torch_array.ndim == 3 and len(jax_shape) == 4
    if tokens and torch_array.size == np.prod(jax_shape) and torch_array.shape[-1] == jax_shape[-1]:
        return torch_array.reshape(jax_shape)
    return torch_array
