"""The bridge between a JAX network and a PyTorch module: where each array stands in either, exact both ways.

Twins that give every layer the same attribute path need no table of names: the rule of a layer's type says what its arrays are
called on either side and how their axes are ordered. Other names, other forms and what one side alone has are said by the caller.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ddpm_jax import display
from ddpm_jax.errors import UserError, kind_of, meant
from ddpm_jax.paths import loosely, prefixes, renamed
from ddpm_jax.weights.rules import PIECES, RULES, Rule, Shapes, adjoint, fused, local_rules
from ddpm_jax.weights.structure import COLLECTIONS, Layer, Path, dotted, layers_of, with_leaves

__all__ = ["COLLECTIONS", "IGNORED", "RULES", "Entry", "Rule", "Tree", "from_torch", "layout", "load_torch", "to_torch"]

T = TypeVar("T")

Tree = dict[Any, Any]
"""Nested dict of arrays as in `models.Variables`: {"params": ..., "batch_stats": ...}, or one of the two alone."""

IGNORED = ("num_batches_tracked",)
"""Last parts of PyTorch names that count calls and carry no weight."""


@dataclass(frozen=True)
class Entry:
    """One array of a JAX network, and the tensors of PyTorch that it is made of: nearly always one, with its axes moved."""

    path: Path
    """Where it stands; of an NNX module, the collection first."""
    keys: tuple[str, ...]
    """Names of the tensors."""
    shapes: tuple[tuple[int, ...], ...]
    """Their shapes."""
    rule: Rule
    """How they become the array."""

    __repr__ = display.of_fields

    @property
    def key(self) -> str:
        """The first tensor's name."""
        return self.keys[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """The first tensor's shape."""
        return self.shapes[0]

    def to_torch(self, array: Any) -> np.ndarray:
        """The JAX array as the first of its tensors; zeros where that has what the array has not."""
        return self.spread(array)[0]

    def spread(self, array: Any) -> list[np.ndarray]:
        """A gradient by the JAX array as one by each of its tensors; a weight, where each number has one place in either."""
        array = np.asarray(array)
        if self.rule.axes is not None:
            return [np.array(array.transpose(self.rule.axes), order="C")]
        return adjoint(self.rule.make, self.shapes, array)

    def from_torch(self, *tensors: Any) -> np.ndarray:
        """The JAX array of the PyTorch tensors (or NumPy arrays)."""
        if self.rule.axes is not None:
            return np.array(self.rule.make(as_array(tensors[0])), order="C")
        with jax.enable_x64(True):  # rules may be written with jax.numpy
            return np.array(self.rule.make(*map(as_array, tensors)), order="C")


def as_array(tensor: Any) -> np.ndarray:
    """A NumPy array of a PyTorch tensor, or of whatever NumPy takes."""
    return np.asarray(tensor.detach().cpu().numpy() if hasattr(tensor, "detach") else tensor)


def layout(
    side: Any,
    names: Mapping[str, str] | None = None,
    *,
    theirs: Mapping[str, Any] | None = None,
    rules: Mapping[str, Rule] | None = None,
    ignore: Iterable[str] = (),
    modules: Mapping[str, Any] | None = None,
) -> list[Entry]:
    r"""Every parameter and running statistic of a JAX network, in both frameworks' terms.

    side: an NNX or equinox module, linen's variables, or any tree of arrays. names: {path here: path in PyTorch} of modules, or of
    arrays, that are called differently; what is below follows. A name may be a regular expression, "blocks_(\\d+)": r"layers.\\1".
    theirs: PyTorch's tensors, or anything with their shapes, by name: needed for equinox, trees, attention and recurrent cells in
    one piece, and for parameters of modules without a rule, which then go by their own name. rules: {regular expression of an
    array's path here: `Rule`}, before those of the layers' types; \\1 in its keys is what the expression's first group found.
    ignore: expressions of arrays that stay as they are, on either side. modules: linen's submodules, by `linen_modules`; without
    them types are guessed.

    Raises:
        UserError: an array has no rule, or a name, a rule or something to ignore fits nothing.
    """
    asked = Asked(names, rules, ignore, theirs)
    found: list[Entry] = []
    for full, layer, made in candidates(side, asked, modules):
        if asked.ignored(full):
            continue
        if made is None:
            raise without_rule(full, layer)
        found.append(made)
    asked.check_used()
    return found


def candidates(
    side: Any, asked: "Asked", modules: Mapping[str, Any] | None = None
) -> Iterator[tuple[str, Layer, Entry | None]]:
    """Every array of a JAX network: its path, its layer, and its entry; None: there is no rule for it."""
    shapes = asked.shapes
    layers = layers_of(side, modules)
    asked.paths = [dotted((*layer.path, name)) for layer in layers for name in layer.arrays]
    whole = _whole_layers(layers, asked)
    for layer in layers:
        prefix = asked.renamed(layer.name)
        local = {name: placed(rule, prefix) for name, rule in local_rules(layer, below(prefix, shapes)).items()}
        for name, (path, shape) in layer.arrays.items():
            full = dotted((*layer.path, name))
            rule = asked.rule(full) or whole.get(full) or asked.renamed_rule(full, local.get(name)) or local.get(name)
            yield full, layer, None if rule is None else entry(path, rule, shape, shapes)


def without_rule(full: str, layer: Layer) -> UserError:
    """The error that an array has no rule; in a tree of arrays, the rule is that of the tensors of its name."""
    if layer.module is None:
        return UserError(f"{full} fits no tensor of PyTorch's by its name; give names, rules or ignore.")
    return UserError(
        f"there is no rule to map {full.rpartition('.')[2]!r} of the {type(layer.module).__name__} at "
        f"{layer.name or 'the network itself'}; add one to weights.bridge.RULES, or give names, rules or ignore."
    )


class Asked:
    """What the caller says of names, and which of it was of use."""

    def __init__(
        self,
        names: Mapping[str, str] | None = None,
        rules: Mapping[str, Rule] | None = None,
        ignore: Iterable[str] = (),
        theirs: Mapping[str, Any] | None = None,
    ):
        self.names, self.rules, self.ignore = dict(names or {}), dict(rules or {}), tuple(ignore)
        self.shapes: Shapes = {key: tuple(tensor.shape) for key, tensor in (theirs or {}).items()}
        self.paths: list[str] = []
        self.used: set[str] = set()
        self.known = dict.fromkeys(prefix for key in self.shapes for prefix in prefixes(key))
        self.spellings: dict[str, set[str]] = {}
        for path in self.known:
            self.spellings.setdefault(loosely(path), set()).add(path)

    def ignored(self, full: str) -> bool:
        """Whether an array stays as it is."""
        found = [pattern for pattern in self.ignore if re.fullmatch(pattern, full)]
        self.used.update(found)
        return bool(found)

    def rule(self, full: str) -> Rule | None:
        """The caller's rule for an array."""
        for pattern, rule in self.rules.items():
            if match := re.fullmatch(pattern, full):
                self.used.add(pattern)
                keys = (rule.keys,) if isinstance(rule.keys, str) else rule.keys
                return replace(rule, keys=tuple(match.expand(key) for key in keys))
        return None

    def renamed(self, path: str) -> str:
        """A path in PyTorch; where none is called so and one is but for its spelling, that one: "layers_0" is "layers.0"."""
        name, pattern = renamed(path, self.names)
        self.used.update([] if pattern is None else [pattern])
        alike = self.spellings.get(loosely(name), set()) if name not in self.known else set()
        return next(iter(alike)) if len(alike) == 1 else name

    def renamed_rule(self, full: str, local: Rule | None) -> Rule | None:
        """The rule of an array whose own name is given, rather than its module's."""
        name, pattern = renamed(full, self.names)
        if pattern is None or renamed(full.rpartition(".")[0], self.names)[1] == pattern:
            return None
        self.used.add(pattern)
        return replace(local or Rule(name), keys=name)

    def check_used(self, arguments: Iterable[str] = ("names", "rules", "ignore")) -> None:
        """See that what the caller says fits something.

        Raises:
            UserError: a name, a rule or something to ignore does not.
        """
        for pattern in self.ignore:
            if any(re.fullmatch(pattern, key) for key in self.shapes):
                self.used.add(pattern)
        said: dict[str, Any] = {"names": self.names, "rules": self.rules, "ignore": self.ignore}
        for argument in arguments:
            for pattern in said[argument]:
                if pattern not in self.used:
                    modules = {name.rpartition(".")[0] for name in self.paths}
                    raise UserError(
                        f"{argument}: {pattern!r} fits no path of the JAX side.{meant(pattern, {*self.paths, *modules})}"
                    )


def placed(rule: Rule, prefix: str) -> Rule:
    """A rule whose keys, relative to a layer's place in PyTorch, are whole names."""
    keys = (rule.keys,) if isinstance(rule.keys, str) else rule.keys
    return replace(rule, keys=tuple(f"{prefix}.{key}".strip(".") for key in keys))


def entry(path: Path, rule: Rule, shape: tuple[int, ...], theirs: Shapes) -> Entry:
    """The entry of an array of this shape; a tensor that PyTorch has not got is expected in the array's own shape."""
    keys = (rule.keys,) if isinstance(rule.keys, str) else rule.keys
    shapes = rule.shapes or tuple(theirs.get(key, shape) for key in keys)
    return Entry(path, keys, shapes, rule)


def below(prefix: str, shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """The tensors below a path, by their names from there."""
    start = f"{prefix}." if prefix else ""
    return {key[len(start) :]: shape for key, shape in shapes.items() if key.startswith(start)}


def _whole_layers(layers: list[Layer], asked: Asked) -> dict[str, Rule]:
    """{path of an array: rule} of what PyTorch keeps in one piece, attention and recurrent cells."""
    arrays = {dotted((*layer.path, name)): shape for layer in layers for name, (_, shape) in layer.arrays.items()}
    found: dict[str, Rule] = {}
    parents = {layer.path[:length] for layer in layers for length in range(len(layer.path) + 1)}
    for path in parents:
        ours = dotted(path)
        used = set(asked.used)
        prefix = asked.renamed(ours)
        theirs = below(prefix, asked.shapes)
        rules = list(fused(below(ours, arrays), theirs)) if any(key in theirs for key in PIECES) else []
        found |= {f"{ours}.{name}".lstrip("."): placed(rule, prefix) for name, rule in rules}
        if not rules:
            asked.used = used  # nothing came of it
    return found


def check_finite(tensors: Mapping[str, Any]) -> None:
    """Raises a UserError that names the tensors which hold NaN or infinity."""
    bad = [key for key, tensor in tensors.items() if not np.isfinite(as_array(tensor)).all()]
    if bad:
        raise UserError(f"weights must be finite; these hold NaN or infinity: {', '.join(bad)}.")


def arrays_from(entries: list[Entry], tensors: Mapping[str, Any]) -> dict[Path, np.ndarray]:
    """{path: array} of a JAX network, of tensors by name; neither is checked."""
    return {entry.path: entry.from_torch(*(tensors[key] for key in entry.keys)) for entry in entries}


def gradients_by_tensor(entries: list[Entry], arrays: Mapping[Path, Any]) -> dict[str, np.ndarray]:
    """Gradients by JAX arrays as gradients by PyTorch's tensors: parts of one, and those of tied arrays, are added."""
    found: dict[str, np.ndarray] = {}
    for entry in entries:
        if entry.path in arrays:
            for key, part in zip(entry.keys, entry.spread(arrays[entry.path]), strict=True):
                found[key] = found[key] + part if key in found else part
    return found


def tensors_from(entries: list[Entry], arrays: Mapping[Path, Any]) -> dict[str, np.ndarray]:
    """The tensors that JAX arrays stand for: of tied arrays the mean; a sum is shared out evenly among what is added."""
    if all(entry.rule.axes is not None for entry in entries) and len({entry.key for entry in entries}) == len(entries):
        return {entry.key: entry.to_torch(arrays[entry.path]) for entry in entries}
    ones = {path: np.ones_like(np.asarray(array)) for path, array in arrays.items()}
    rows = {e.path: e.from_torch(*(np.ones(shape) for shape in e.shapes)) for e in entries if e.path in arrays}
    shared = {path: np.asarray(arrays[path]) / rows[path].astype(np.asarray(arrays[path]).dtype) for path in rows}
    total, counts = gradients_by_tensor(entries, shared), gradients_by_tensor(entries, ones)
    return {key: total[key] / np.maximum(counts[key], 1) for key in total}


def from_torch(entries: list[Entry], state_dict: Mapping[str, Any]) -> Tree:
    """The nested dict of arrays that the tensors (or NumPy arrays) of a twin's state dict stand for, dtypes kept.

    Raises:
        UserError: tensors are missing, left over, or misshapen; they are listed.
    """
    given = weights_of(state_dict)
    check_entries("the state dict does not fit the network", entries, given)
    return {collection: {} for collection in COLLECTIONS} | nested(
        {path: jnp.asarray(array) for path, array in arrays_from(entries, given).items()}
    )


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


def load_torch(
    side: T,
    state_dict: Mapping[str, Any],
    names: Mapping[str, str] | None = None,
    *,
    rules: Mapping[str, Rule] | None = None,
    ignore: Iterable[str] = (),
    modules: Mapping[str, Any] | None = None,
) -> T:
    """Fill a network with the state dict of its PyTorch twin, strictly; returns it.

    side: an NNX module, which is filled in place; equinox's modules, linen's variables and other trees come back filled. names,
    rules, ignore, modules: as `layout` takes them. float64 tensors need jax_enable_x64 to stay so.

    Raises:
        UserError: tensors are missing, left over, or misshapen; they are listed.
    """
    if isinstance(side, type) or (not hasattr(side, "__dict__") and not isinstance(side, Mapping | list | tuple)):
        raise UserError(f"model must be an nnx.Module, an equinox module or a tree of arrays; got {kind_of(side)}.")
    if not isinstance(state_dict, Mapping):
        raise UserError(
            f"state_dict must map names to tensors, as module.state_dict() does; got a {type(state_dict).__name__}."
        )
    ignore = tuple(ignore)
    given = {k: t for k, t in weights_of(state_dict).items() if not any(re.fullmatch(pattern, k) for pattern in ignore)}
    entries = layout(side, names, theirs=weights_of(state_dict), rules=rules, ignore=ignore, modules=modules)
    check_entries("the state dict does not fit the network", entries, given)
    arrays = {path: jnp.asarray(array) for path, array in arrays_from(entries, given).items()}
    if not isinstance(side, nnx.Module):
        return with_leaves(side, arrays)
    for collection in COLLECTIONS:
        nnx.update(side, nnx.State(nested({path[1:]: a for path, a in arrays.items() if path[0] == collection})))
    return side


def check_entries(what: str, entries: list[Entry], given: Mapping[str, Any]) -> None:
    """`check_fit` of the tensors that entries are made of."""
    check_fit(
        what, {key: shape for entry in entries for key, shape in zip(entry.keys, entry.shapes, strict=True)}, given
    )


def nested(arrays: Mapping[Path, Any]) -> Tree:
    """A nested dict of arrays by path."""
    tree: Tree = {}
    for (*parents, name), array in arrays.items():
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = array
    return tree


def to_numpy(model: nnx.Module, tree: Tree | None = None) -> dict[str, np.ndarray]:
    """The state dict of the PyTorch twin, as NumPy arrays.

    tree: arrays to write instead of the network's own, of the same structure; a collection that it lacks is left out, so that
    {"params": moments} gives a moment of Adam by parameter.
    """
    if tree is None:
        tree = {name: nnx.to_pure_dict(nnx.state(model, kind)) for name, kind in COLLECTIONS.items()}
    entries = [entry for entry in layout(model) if entry.path[0] in tree]
    return tensors_from(entries, {entry.path: at(tree, entry.path) for entry in entries})


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
