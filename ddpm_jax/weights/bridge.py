"""The bridge between a network and its PyTorch twin: one rule for each type of layer, exact both ways.

The twins give every layer the same attribute path, so no table of names is needed: a rule says what a layer's arrays are
called on either side and how their axes are ordered.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ddpm_jax.errors import UserError

Tree = dict[Any, Any]
"""Nested dict of arrays, as `models.split` gives them: parameters, their average, or Adam's moments."""


class Entry(NamedTuple):
    """One array of a network: where it stands in either framework, and its axes there."""

    path: tuple[Any, ...]
    """Path in the nested dict of parameters."""
    key: str
    """Name in the twin's state dict."""
    axes: tuple[int, ...]
    """Order in which the JAX array's axes stand in the PyTorch tensor."""
    shape: tuple[int, ...]
    """Shape of the PyTorch tensor."""


_SCALE_AND_BIAS: dict[str, tuple[str, tuple[int, ...]]] = {"scale": ("weight", (0,)), "bias": ("bias", (0,))}
RULES: dict[type[nnx.Module], dict[str, tuple[str, tuple[int, ...]]]] = {
    nnx.Linear: {"kernel": ("weight", (1, 0)), "bias": ("bias", (0,))},
    nnx.Conv: {"kernel": ("weight", (3, 2, 0, 1)), "bias": ("bias", (0,))},
    nnx.Embed: {"embedding": ("weight", (0, 1))},
    nnx.GroupNorm: _SCALE_AND_BIAS,
}
"""layer type -> {JAX name: (PyTorch name, order of the JAX axes in PyTorch)}."""


def layout(model: nnx.Module) -> list[Entry]:
    """Every parameter of a network, in both frameworks' terms.

    Raises:
        UserError: a layer that holds parameters has a type without a rule.
    """
    entries = []
    for path, module in nnx.iter_modules(model):
        rule = RULES.get(type(module))
        for name, value in vars(module).items():
            if not isinstance(value, nnx.Param) or value.get_raw_value() is None:
                continue
            if rule is None or name not in rule:
                where = ".".join(map(str, path)) or "the network itself"
                raise UserError(
                    f"no rule to map {name!r} of {type(module).__name__} at {where}; see weights.bridge.RULES."
                )
            torch_name, axes = rule[name]
            shape = tuple(value.shape[axis] for axis in axes)
            entries.append(Entry((*path, name), ".".join(map(str, (*path, torch_name))), axes, shape))
    return entries


def from_torch(entries: list[Entry], state_dict: Mapping[str, Any]) -> Tree:
    """The nested dict of arrays that the tensors (or NumPy arrays) of a twin's state dict stand for, dtypes kept.

    Raises:
        UserError: tensors are missing, left over, or misshapen; all of them are listed.
    """
    expected = {entry.key: entry.shape for entry in entries}
    problems = [f"missing: {key} {shape}" for key, shape in expected.items() if key not in state_dict]
    problems += [f"not of this network: {key}" for key in state_dict if key not in expected]
    problems += [
        f"misshapen: {key} is {tuple(tensor.shape)}, must be {expected[key]}"
        for key, tensor in state_dict.items()
        if key in expected and tuple(tensor.shape) != expected[key]
    ]
    if problems:
        raise UserError("the state dict does not fit the network:\n  " + "\n  ".join(problems))
    tree: Tree = {}
    for entry in entries:
        *parents, name = entry.path
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = jnp.asarray(_to_numpy(state_dict[entry.key]).transpose(np.argsort(entry.axes)))
    return tree


def load_torch(model: nnx.Module, state_dict: Mapping[str, Any]) -> None:
    """Fill a network with the state dict of its PyTorch twin, strictly. float64 tensors need jax_enable_x64 to stay so.

    Raises:
        UserError: tensors are missing, left over, or misshapen; all of them are listed.
    """
    nnx.update(model, jax.tree.map(nnx.Param, from_torch(layout(model), state_dict)))


def to_torch(source: nnx.Module, tree: Tree | None = None) -> dict[str, Any]:
    """The state dict of the PyTorch twin, as CPU tensors. Needs torch (the extra `torch`).

    tree: arrays to write instead of the network's own parameters, of the same structure: their average, or a moment of Adam.
    """
    import torch

    if tree is None:
        tree = nnx.to_pure_dict(nnx.state(source, nnx.Param))
    return {
        entry.key: torch.from_numpy(np.array(_at(tree, entry.path)).transpose(entry.axes).copy())
        for entry in layout(source)
    }


def _at(tree: Tree, path: tuple[Any, ...]) -> Any:
    for name in path:
        tree = tree[name]
    return tree


def _to_numpy(tensor: Any) -> np.ndarray:
    detach: Callable[[], Any] | None = getattr(tensor, "detach", None)
    return np.asarray(tensor if detach is None else detach().cpu().numpy())
