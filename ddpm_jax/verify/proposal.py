"""Which names of a JAX network stand for which of a PyTorch module: found by name, structure, order and shape."""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ddpm_jax import display
from ddpm_jax.errors import UserError, kind_of
from ddpm_jax.weights.bridge import IGNORED
from ddpm_jax.weights.rules import Shapes, fused, local_rules
from ddpm_jax.weights.structure import Layer, dotted, layers_of


@dataclass(frozen=True)
class Proposal:
    """Names found by `propose`: what to pass as names=, what of it was guessed, and what fits nothing."""

    names: dict[str, str]
    """{JAX path: PyTorch path} of all that are called differently; what is below follows."""
    guessed: tuple[str, ...] = ()
    """JAX paths that would have fitted several of PyTorch's: their names and order decided."""
    jax_alone: tuple[str, ...] = ()
    """Arrays of the JAX side that fit nothing."""
    torch_alone: tuple[str, ...] = ()
    """Tensors of the PyTorch side that fit nothing."""
    pairs: dict[str, str] = field(default_factory=dict, repr=False)
    """Every layer that was matched."""

    __repr__ = display.of_fields

    def text(self) -> str:
        """Python to paste, with a comment where a name was guessed, and what is left."""
        lines = ["names = {"]
        for ours, theirs in self.names.items():
            guessed = [path for path in self.guessed if path == ours or path.startswith(f"{ours}.") or not ours]
            lines.append(f"    {ours!r}: {theirs!r},{'  # guessed' if guessed else ''}")
        lines.append("}")
        unsaid = [
            path for path in self.guessed if not any(path == p or path.startswith(f"{p}.") or not p for p in self.names)
        ]
        said = {
            "guessed, though called the same": unsaid,
            "JAX alone": self.jax_alone,
            "PyTorch alone": self.torch_alone,
        }
        return "\n".join([*lines, *(f"# {what}: {', '.join(some)}" for what, some in said.items() if some)])


def propose(jax_side: Any, torch_side: Any, *, modules: Mapping[str, Any] | None = None) -> Proposal:
    """Find which layer of one network is which of the other's; `print(propose(a, b).text())` is a dict to paste.

    jax_side: as `weights.layout` takes it. torch_side: a torch.nn.Module, or its state dict. modules: of linen, by
    `linen_modules`. Two layers can be one where a rule makes every array of one of the tensors of the other; among several, the
    same name decides, then numbers in the names, likeness of the names, and order; those are called guessed.

    Raises:
        UserError: either side is of another kind or holds no arrays.
    """
    shapes = _shapes_of(torch_side)
    layers = layers_of(jax_side, modules)
    if not any(layer.path for layer in layers) or not isinstance(jax_side, Mapping):
        ordered = layers
    else:  # a tree may have been sorted by name, 10 before 2
        ordered = sorted(layers, key=lambda layer: _natural(layer.name))
    ours = _pieces(ordered, shapes)
    theirs = _theirs(shapes)
    fits = np.array([[_fit(piece, prefix, local) for prefix, local in theirs.items()] for piece in ours.values()], bool)
    pairs, guessed = _matched(list(ours), list(theirs), fits.reshape(len(ours), len(theirs)))
    arrays = {name: shape for path in ours if path not in pairs for name, shape in ours[path].arrays.items()}
    used = {key for path in pairs for key in _keys(ours[path], pairs[path], theirs[pairs[path]])}
    left = {key: shape for key, shape in shapes.items() if key not in used}
    single, single_guessed = _single_arrays(arrays, left)
    names = _shortest(pairs) | {a: b for a, b in single.items() if a != b}
    return Proposal(
        names,
        (*guessed, *single_guessed),
        tuple(name for name in arrays if name not in single),
        tuple(key for key in left if key not in single.values()),
        pairs | single,
    )


def _shapes_of(torch_side: Any) -> dict[str, tuple[int, ...]]:
    state = torch_side.state_dict() if hasattr(torch_side, "state_dict") else torch_side
    if not isinstance(state, Mapping):
        raise UserError(f"torch_side must be a torch.nn.Module or a state dict; got {kind_of(torch_side)}.")
    return {
        key: tuple(tensor.shape)
        for key, tensor in state.items()
        if key.rpartition(".")[2] not in IGNORED and not re.search("int|bool", str(tensor.dtype))
    }


@dataclass(frozen=True)
class _Piece:
    """What is matched as one: a layer, or attention or a recurrent cell with all below it."""

    layer: Layer | None
    """None: several layers, which PyTorch keeps as one."""
    arrays: dict[str, tuple[int, ...]]
    """Whole names and shapes."""
    below: dict[str, tuple[int, ...]]
    """Names from the piece's place on."""


def _pieces(layers: list[Layer], shapes: Shapes) -> dict[str, _Piece]:
    """By path; layers below a place that fits one of PyTorch's fused ones are one piece."""
    whole = [
        local
        for local in _theirs(shapes).values()
        if any(re.match("in_proj|q_proj_weight|weight_ih", key) for key in local)
    ]
    arrays = {dotted((*layer.path, name)): shape for layer in layers for name, (_, shape) in layer.arrays.items()}
    parents = dict.fromkeys(dotted(layer.path[:length]) for layer in layers for length in range(len(layer.path) + 1))
    found: dict[str, _Piece] = {}
    taken: set[str] = set()
    for parent in sorted(parents, key=len, reverse=True):
        start = f"{parent}." if parent else ""
        below = {
            name[len(start) :]: shape for name, shape in arrays.items() if name.startswith(start) and name not in taken
        }
        fitting = [local for local in whole if _fuses(below, local)]
        if fitting:
            found[parent] = _Piece(None, {start + name: shape for name, shape in below.items()}, below)
            taken |= set(found[parent].arrays)
    pieces: dict[str, _Piece] = {}
    for layer in layers:
        own = {dotted((*layer.path, name)): shape for name, (_, shape) in layer.arrays.items()}
        above = next((path for path, piece in found.items() if set(own) <= set(piece.arrays)), None)
        if above is not None:
            pieces.setdefault(above, found[above])
        else:
            pieces[layer.name] = _Piece(layer, own, {name: shape for name, (_, shape) in layer.arrays.items()})
    return pieces


def _fuses(below: Shapes, local: Shapes) -> bool:
    """Whether all the arrays below a place are made of the tensors of one fused layer."""
    rules = dict(fused(below, local))
    return bool(below) and set(rules) == set(below) and _fitting(rules, below, local)


def _fitting(rules: dict[str, Any], below: Shapes, local: Shapes) -> bool:
    """Whether rules make arrays of these shapes of these tensors."""
    from ddpm_jax.weights.bridge import entry

    for name, rule in rules.items():
        made = entry((), rule, below[name], local)
        if any(local.get(key) != shape for key, shape in zip(made.keys, made.shapes, strict=True)):
            return False
        if (
            rule.axes is None
            and made.from_torch(*(np.zeros(shape, np.float32) for shape in made.shapes)).shape != below[name]
        ):
            return False
    return True


def _theirs(shapes: Shapes) -> dict[str, dict[str, tuple[int, ...]]]:
    """PyTorch's layers by path, with their tensors; MultiheadAttention's out_proj belongs to it."""
    found: dict[str, dict[str, tuple[int, ...]]] = {}
    for key, shape in shapes.items():
        path, _, name = key.rpartition(".")
        outer, _, last = path.rpartition(".")
        start = f"{outer}." if outer else ""
        if last == "out_proj" and (f"{start}in_proj_weight" in shapes or f"{start}q_proj_weight" in shapes):
            path, name = outer, f"out_proj.{name}"
        found.setdefault(path, {})[name] = shape
    return found


def _fit(piece: _Piece, prefix: str, local: Shapes) -> bool:
    if piece.layer is None:
        return _fuses(piece.below, local)
    rules = local_rules(piece.layer, local)
    if set(rules) != set(piece.below):
        return False
    keys = {key for rule in rules.values() for key in ((rule.keys,) if isinstance(rule.keys, str) else rule.keys)}
    return keys == set(local) and _fitting(rules, piece.below, local)


def _keys(piece: _Piece, prefix: str, local: Shapes) -> list[str]:
    return [f"{prefix}.{name}".lstrip(".") for name in local]


def _matched(ours: list[str], theirs: list[str], fits: np.ndarray) -> tuple[dict[str, str], list[str]]:
    """{our path: their path} of the best matching, and those of ours that others would have fitted as well."""
    from scipy.optimize import linear_sum_assignment

    if not fits.size:
        return {}, []
    score = np.full(fits.shape, -1e6)
    for i, j in zip(*np.nonzero(fits), strict=True):
        score[i, j] = _likeness(ours[i], theirs[j]) - abs(i / len(ours) - j / len(theirs))
    rows, columns = linear_sum_assignment(-score)
    pairs = {ours[i]: theirs[j] for i, j in zip(rows, columns, strict=True) if fits[i, j]}
    guessed = []
    for i, path in enumerate(ours):
        if path in pairs and pairs[path] != path:
            j = theirs.index(pairs[path])
            if fits[i].sum() > 1 or fits[:, j].sum() > 1:
                guessed.append(path)
    return pairs, guessed


def _likeness(ours: str, theirs: str) -> float:
    """How alike two paths are: 100 if the same; else their places in lists, their other numbers, their words."""
    if ours == theirs:
        return 100.0
    places, numbers = ([re.findall(p, path) for path in (ours, theirs)] for p in (r"(?:^|[._])(\d+)(?=[._]|$)", r"\d+"))
    words = [" ".join(re.findall(r"[a-z]+", path.lower())) for path in (ours, theirs)]
    alike = difflib.SequenceMatcher(None, words[0], words[1]).ratio()
    return 5.0 * (places[0] == places[1]) + 1.0 * (numbers[0] == numbers[1]) + 3.0 * alike


def _single_arrays(arrays: Shapes, left: Shapes) -> tuple[dict[str, str], list[str]]:
    """Arrays that belong to no layer with a rule, by shape and name."""
    names, keys = list(arrays), list(left)
    fits = np.array([[arrays[name] == left[key] for key in keys] for name in names], bool).reshape(
        len(names), len(keys)
    )
    return _matched(names, keys, fits)


def _shortest(pairs: dict[str, str]) -> dict[str, str]:
    """The fewest names that say as much: a path stands for all below it where they follow."""
    found: dict[str, str] = {}
    for ours, theirs in pairs.items():
        if any(not p or ours == p or ours.startswith(f"{p}.") for p in found):
            continue
        parts = ours.split(".") if ours else []
        for length in range(len(parts) + 1):
            head, rest = ".".join(parts[:length]), ".".join(parts[length:])
            if rest and theirs != rest and not theirs.endswith(f".{rest}"):
                continue
            there = theirs[: len(theirs) - len(rest)].rstrip(".") if rest else theirs
            if _follow(head, there, pairs):
                found[head] = there
                break
    return {ours: theirs for ours, theirs in found.items() if ours != theirs}


def _follow(head: str, there: str, pairs: dict[str, str]) -> bool:
    """Whether all that is below a path on our side is below the other path, called the same."""
    for ours, theirs in pairs.items():
        if not head:
            if theirs != f"{there}.{ours}".strip("."):
                return False
        elif (ours == head or ours.startswith(f"{head}.")) and theirs != there + ours[len(head) :]:
            return False
    return True


def _natural(path: str) -> list[Any]:
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.findall(r"\d+|\D+", path)]
