"""The arrays of a JAX network by path, whatever it is made of: NNX, linen, equinox, or a tree of arrays."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jax
from flax import nnx

from ddpm_jax.errors import UserError, kind_of

Path = tuple[Any, ...]
"""Names, indices and attributes that lead to an array."""

COLLECTIONS: dict[str, type[nnx.Variable[Any]]] = {"params": nnx.Param, "batch_stats": nnx.BatchStat}
"""Kinds of arrays that the two frameworks share: those which are trained, and running statistics."""


@dataclass(frozen=True)
class Layer:
    """A module, or a branch of a tree, that holds arrays itself."""

    path: Path
    """Where it stands, without the collection."""
    module: Any
    """The module, or its type's name; None in a tree of arrays that says nothing of types."""
    arrays: Mapping[str, tuple[Path, tuple[int, ...]]]
    """Local name -> the array's whole path, the collection first where there are collections, and its shape."""

    @property
    def name(self) -> str:
        """The path with dots; linen's and haiku's slashes are dots too."""
        return dotted(self.path)


def dotted(path: Path) -> str:
    """A path as PyTorch would write it: haiku's "mlp/~/linear_0" is "mlp.linear_0"."""
    parts = [part for step in path for part in str(step).split("/")]
    return ".".join(part for part in parts if part != "~")


def layers_of(side: Any, modules: Mapping[str, Any] | None = None) -> list[Layer]:
    """The layers of a network in its own order.

    side: an NNX or equinox module, linen's variables ({"params": ..., "batch_stats": ...}), or any tree of arrays. modules: of a
    tree, {dotted path: linen module}, as `linen_modules` finds them.

    Raises:
        UserError: it holds no arrays.
    """
    found = _of_nnx(side) if isinstance(side, nnx.Module) else _of_tree(side, modules or {})
    if not found:
        raise UserError(f"the JAX side must hold arrays; {kind_of(side)} holds none.")
    return found


def _of_nnx(model: nnx.Module) -> list[Layer]:
    seen: set[int] = set()
    layers = []
    for path, module in nnx.iter_modules(model):
        arrays: dict[str, tuple[Path, tuple[int, ...]]] = {}
        for name, value in vars(module).items():
            collection = next((c for c, kind in COLLECTIONS.items() if isinstance(value, kind)), None)
            if collection is None or value.get_value() is None or id(value) in seen:
                continue
            seen.add(id(value))  # a variable that two modules share is one
            arrays[name] = ((collection, *path, name), tuple(value.shape))
        if arrays:
            layers.append(Layer(tuple(path), module, arrays))
    return layers


def _of_tree(tree: Any, modules: Mapping[str, Any]) -> list[Layer]:
    collections = isinstance(tree, Mapping) and "params" in tree and set(tree) <= set(COLLECTIONS)
    layers: dict[Path, dict[str, tuple[Path, tuple[int, ...]]]] = {}
    for keys, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
            continue
        path = tuple(_step(key) for key in keys)
        inner = path[1:] if collections else path
        layers.setdefault(inner[:-1], {})[str(inner[-1]) if inner else ""] = (path, tuple(leaf.shape))
    return [Layer(path, _module_at(tree, path, modules), arrays) for path, arrays in layers.items()]


def _module_at(tree: Any, path: Path, modules: Mapping[str, Any]) -> Any:
    """The module that a branch belongs to: an attribute's owner in equinox, what `modules` says in linen."""
    if dotted(path) in modules:
        return modules[dotted(path)]
    for step in path:
        if isinstance(tree, Mapping):
            tree = tree.get(step)
        elif isinstance(tree, list | tuple) and isinstance(step, int):
            tree = tree[step]
        else:
            tree = getattr(tree, str(step), None)
    return None if isinstance(tree, Mapping | list | tuple) else tree


def _step(key: Any) -> Any:
    """A key of jax.tree_util as the name, index or attribute that it stands for."""
    for attribute in ("key", "idx", "name"):
        if hasattr(key, attribute):
            return getattr(key, attribute)
    return str(key)


def linen_modules(module: Any, variables: Any, *inputs: Any, **kwargs: Any) -> dict[str, Any]:
    """{dotted path: module} of a linen network's submodules, found by tracing a call; nothing is computed."""

    def apply(variables: Any, inputs: Any) -> Any:
        return module.apply(variables, *inputs, **kwargs, mutable=["batch_stats"])

    with noted_modules() as found:
        jax.eval_shape(apply, variables, inputs)
    return found


@contextmanager
def noted_modules() -> Iterator[dict[str, Any]]:
    """While entered, linen modules that are called are entered as {dotted path: module}."""
    from flax import linen

    found: dict[str, Any] = {}

    def note(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        found.setdefault(dotted(context.module.path), context.module)
        return call(*args, **kwargs)

    with linen.intercept_methods(note):
        yield found


def leaves_by_path(tree: Any) -> dict[Path, Any]:
    """The arrays of a tree by path."""
    return {tuple(map(_step, keys)): leaf for keys, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def with_leaves(tree: Any, arrays: Mapping[Path, Any]) -> Any:
    """A tree with the arrays at some paths replaced; dtypes are those of the new ones."""
    return jax.tree_util.tree_map_with_path(lambda keys, leaf: arrays.get(tuple(map(_step, keys)), leaf), tree)
