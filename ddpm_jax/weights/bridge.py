"""The bridge between a network and its PyTorch twin: one rule for each type of layer, exact both ways.

The twins give every layer the same attribute path, so no table of names is needed: a rule says what a layer's arrays are
called on either side and how their axes are ordered.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx

from ddpm_jax.errors import UserError
from ddpm_jax.models import layers, normalization

Tree = dict[Any, Any]
"""Nested dict of arrays as in `models.Variables`: {"params": ..., "batch_stats": ...}, or one of the two alone."""

COLLECTIONS: dict[str, type[nnx.Variable]] = {"params": nnx.Param, "batch_stats": nnx.BatchStat}


class Entry(NamedTuple):
    """One array of a network: where it stands in either framework, and its axes there."""

    path: tuple[Any, ...]
    """Path in the nested dict, the collection first."""
    key: str
    """Name in the twin's state dict."""
    axes: tuple[int, ...]
    """Order in which the JAX array's axes stand in the PyTorch tensor."""
    shape: tuple[int, ...]
    """Shape of the PyTorch tensor."""

    def to_torch(self, array: Any) -> np.ndarray:
        """The JAX array with its axes in PyTorch's order."""
        return np.array(np.asarray(array).transpose(self.axes), order="C")

    def from_torch(self, tensor: Any) -> np.ndarray:
        """The PyTorch tensor (or NumPy array) with its axes in JAX's order."""
        return np.ascontiguousarray(as_array(tensor).transpose(np.argsort(self.axes)))


def as_array(tensor: Any) -> np.ndarray:
    """A NumPy array of a PyTorch tensor, or of whatever NumPy takes."""
    return np.asarray(tensor.detach().cpu().numpy() if hasattr(tensor, "detach") else tensor)


_VECTOR = (0,)
_NORM: dict[str, tuple[str, tuple[int, ...]]] = {"scale": ("weight", _VECTOR), "bias": ("bias", _VECTOR)}
_CONV: dict[str, tuple[str, tuple[int, ...]]] = {"kernel": ("weight", (3, 2, 0, 1)), "bias": ("bias", _VECTOR)}
RULES: dict[type[nnx.Module], dict[str, tuple[str, tuple[int, ...]]]] = {
    nnx.Linear: {"kernel": ("weight", (1, 0)), "bias": ("bias", _VECTOR)},
    nnx.Conv: _CONV,
    layers.Conv: _CONV,
    # built with transpose_kernel=True, whose kernel is (H, W, out, in) and is not flipped
    nnx.ConvTranspose: _CONV,
    layers.ConvTranspose: _CONV,
    nnx.Embed: {"embedding": ("weight", (0, 1))},
    nnx.GroupNorm: _NORM,
    normalization.GroupNorm: _NORM,
    nnx.LayerNorm: _NORM,
    normalization.MapNorm: {"scale": ("weight", (2, 0, 1)), "bias": ("bias", (2, 0, 1))},
    normalization.RMSNorm: {"scale": ("weight", _VECTOR)},
    normalization.BatchNorm: {**_NORM, "mean": ("running_mean", _VECTOR), "var": ("running_var", _VECTOR)},
}
"""layer type -> {JAX name: (PyTorch name, order of the JAX axes in PyTorch)}; a network's own layers say theirs in TORCH_NAMES."""

IGNORED = ("num_batches_tracked",)
"""Last parts of PyTorch names that count calls and carry no weight."""


def layout(model: nnx.Module, names: Mapping[str, str] | None = None) -> list[Entry]:
    """Every parameter and running statistic of a network, in both frameworks' terms.

    names: {module path here: module path in PyTorch} where they differ; a module's submodules follow it.

    Raises:
        UserError: a layer that holds parameters has a type without a rule.
    """
    entries = []
    for path, module in nnx.iter_modules(model):
        rule = RULES.get(type(module)) or getattr(module, "TORCH_NAMES", {})
        for name, value in vars(module).items():
            collection = next((c for c, kind in COLLECTIONS.items() if isinstance(value, kind)), None)
            if collection is None or value.get_value() is None:
                continue
            if name not in rule:
                where = ".".join(map(str, path)) or "the network itself"
                raise UserError(
                    f"there is no rule to map {name!r} of the {type(module).__name__} at {where}; add one to weights.bridge.RULES."
                )
            torch_name, axes = rule[name]
            shape = tuple(value.shape[axis] for axis in axes)
            key = f"{renamed('.'.join(map(str, path)), names or {})}.{torch_name}".lstrip(".")
            entries.append(Entry((collection, *path, name), key, axes, shape))
    return entries


def renamed(path: str, names: Mapping[str, str]) -> str:
    """A module path with its longest prefix in `names` replaced."""
    for prefix in sorted(names, key=len, reverse=True):
        if path == prefix or path.startswith(f"{prefix}."):
            return (names[prefix] + path[len(prefix) :]).lstrip(".")
    return path


def from_torch(entries: list[Entry], state_dict: Mapping[str, Any]) -> Tree:
    """The nested dict of arrays that the tensors (or NumPy arrays) of a twin's state dict stand for, dtypes kept.

    Raises:
        UserError: tensors are missing, left over, or misshapen; they are listed.
    """
    given = weights_of(state_dict)
    check_fit("the state dict does not fit the network", {entry.key: entry.shape for entry in entries}, given)
    tree: Tree = {collection: {} for collection in COLLECTIONS}
    for entry in entries:
        *parents, name = entry.path
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = jnp.asarray(entry.from_torch(given[entry.key]))
    return tree


def weights_of(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors that carry weights."""
    return {key: tensor for key, tensor in state_dict.items() if key.rpartition(".")[2] not in IGNORED}


class Misfit(NamedTuple):
    """What is wrong with tensors by name, in lines."""

    missing: list[str]
    strange: list[str]
    misshapen: list[str]

    def lines(self, most: int = 30) -> list[str]:
        """All of them; of each kind the first `most`, and how many there are beyond."""
        lines: list[str] = []
        for kind in self:
            lines += kind[:most] + ([f"... and {len(kind) - most} more"] if len(kind) > most else [])
        return lines


def misfit(expected: Mapping[str, tuple[int, ...]], given: Mapping[str, Any]) -> Misfit:
    """What distinguishes tensors from those expected, by name and shape."""
    return Misfit(
        [f"missing: {key} {shape}" for key, shape in expected.items() if key not in given],
        [f"not of this network: {key} {tuple(given[key].shape)}" for key in given if key not in expected],
        [
            f"misshapen: {key} is {tuple(tensor.shape)}, must be {expected[key]}"
            for key, tensor in given.items()
            if key in expected and tuple(tensor.shape) != expected[key]
        ],
    )


def check_fit(what: str, expected: Mapping[str, tuple[int, ...]], given: Mapping[str, Any]) -> None:
    """See that tensors are those expected; what: how the message begins.

    Raises:
        UserError: some are missing, left over, or misshapen; they are listed.
    """
    found = misfit(expected, given)
    if any(found):
        counts = (
            f"{len(found.missing)} tensors missing, {len(found.strange)} too many, {len(found.misshapen)} misshapen"
        )
        raise UserError(f"{what} ({counts}):\n  " + "\n  ".join(found.lines()))


def load_torch(model: nnx.Module, state_dict: Mapping[str, Any]) -> None:
    """Fill a network with the state dict of its PyTorch twin, strictly. float64 tensors need jax_enable_x64 to stay so.

    Raises:
        UserError: tensors are missing, left over, or misshapen; they are listed.
    """
    if not isinstance(model, nnx.Module):
        raise UserError(f"model must be an nnx.Module; got a {type(model).__name__}.")
    if not isinstance(state_dict, Mapping):
        raise UserError(
            f"state_dict must map names to tensors, as module.state_dict() does; got a {type(state_dict).__name__}."
        )
    tree = from_torch(layout(model), state_dict)
    for collection in COLLECTIONS:
        nnx.update(model, nnx.State(tree[collection]))


def to_numpy(model: nnx.Module, tree: Tree | None = None) -> dict[str, np.ndarray]:
    """The state dict of the PyTorch twin, as NumPy arrays.

    tree: arrays to write instead of the network's own, of the same structure; a collection that it lacks is left out, so that
    {"params": moments} gives a moment of Adam by parameter.
    """
    if tree is None:
        tree = {name: nnx.to_pure_dict(nnx.state(model, kind)) for name, kind in COLLECTIONS.items()}
    return {entry.key: entry.to_torch(at(tree, entry.path)) for entry in layout(model) if entry.path[0] in tree}


def to_torch(model: nnx.Module, tree: Tree | None = None) -> dict[str, Any]:
    """`to_numpy` as CPU tensors, with the counters that PyTorch's BatchNorm expects (0). Needs torch (the extra `torch`)."""
    import torch

    tensors = {key: torch.from_numpy(array) for key, array in to_numpy(model, tree).items()}
    means = [key for key in tensors if key.endswith(".running_mean")]
    return tensors | {key.replace("running_mean", "num_batches_tracked"): torch.tensor(0) for key in means}


def at(tree: Tree, path: tuple[Any, ...]) -> Any:
    """The array at a path of a nested dict."""
    for name in path:
        tree = tree[name]
    return tree
