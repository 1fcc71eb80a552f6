"""What the arrays of each type of layer are in PyTorch: one rule for every stock layer of NNX, linen and equinox."""

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ddpm_jax import display
from ddpm_jax.models import layers, normalization
from ddpm_jax.weights.structure import Layer

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]

AXES = Mapping[str, tuple[str, tuple[int, ...]]]
"""JAX name -> (PyTorch name, order of the JAX axes in PyTorch): all that most layers need."""


@dataclass(frozen=True)
class Rule:
    """How one JAX array is made of tensors of PyTorch.

    keys: one tensor's name, or several that become one array. make: NumPy-like function of the tensors, linear: `w.T`,
    `w.reshape(heads, -1, dim).transpose(2, 0, 1)`, `w[:dim]`, `w[::-1]`, `jnp.concatenate([q, k, v])`, a sum. The way back, and
    that of gradients, is derived from it. shapes: of the tensors; None: whatever PyTorch has.
    """

    keys: str | tuple[str, ...]
    make: Callable[..., Any] = lambda w: w
    shapes: tuple[Shape, ...] | None = None
    axes: tuple[int, ...] | None = None
    """Where the rule only moves axes: their order in PyTorch."""

    __repr__ = display.of_fields


def adjoint(make: Callable[..., Any], shapes: tuple[Shape, ...], array: Any) -> list[np.ndarray]:
    """What a linear function's transpose makes of an array: a gradient by the array as one by its tensors."""
    array = np.asarray(array)
    places = [_places(make, shapes, which) for which in range(len(shapes))]
    if any(found is None for found in places):  # it scales, say
        with jax.enable_x64(True):
            tensors = [jax.ShapeDtypeStruct(shape, array.dtype) for shape in shapes]
            return [np.array(part) for part in jax.linear_transpose(make, *tensors)(jnp.asarray(array))]
    parts = []
    for shape, place in zip(shapes, places, strict=True):
        part = np.zeros(math.prod(shape), array.dtype)
        taken = place > 0  # type: ignore[operator]
        np.add.at(part, place[taken] - 1, array[taken])  # type: ignore[index]
        parts.append(part.reshape(shape))
    return parts


def _places(make: Callable[..., Any], shapes: tuple[Shape, ...], which: int) -> np.ndarray | None:
    """Which number of one tensor is added to each number of the array, from 1, 0: none; None: not as it is."""

    def made(tensor: np.ndarray) -> np.ndarray:
        return np.asarray(make(*(tensor if i == which else np.zeros(s) for i, s in enumerate(shapes))), np.float64)

    with jax.enable_x64(True):
        ones = made(np.ones(shapes[which]))
        places = made(np.arange(1.0, math.prod(shapes[which]) + 1).reshape(shapes[which]))
    whole = np.isin(ones, (0.0, 1.0)).all() and ((ones == 1) == (places > 0)).all() and (places == places.round()).all()
    return places.astype(np.int64) if whole else None


# Plain transpositions

_NORM: AXES = {
    "scale": ("weight", (0,)),
    "bias": ("bias", (0,)),
    "mean": ("running_mean", (0,)),
    "var": ("running_var", (0,)),
}
_CONV2D: AXES = {"kernel": ("weight", (3, 2, 0, 1)), "bias": ("bias", (0,))}
RULES: dict[type[Any], Any] = {
    nnx.Linear: {"kernel": ("weight", (1, 0)), "bias": ("bias", (0,))},
    layers.Conv: _CONV2D,
    # built with transpose_kernel=True, whose kernel is (H, W, out, in) and is not flipped
    layers.ConvTranspose: _CONV2D,
    nnx.Embed: {"embedding": ("weight", (0, 1))},
    nnx.GroupNorm: _NORM,
    nnx.LayerNorm: _NORM,
    nnx.BatchNorm: _NORM,
    nnx.RMSNorm: _NORM,
    nnx.InstanceNorm: _NORM,
    normalization.GroupNorm: _NORM,
    normalization.MapNorm: {"scale": ("weight", (2, 0, 1)), "bias": ("bias", (2, 0, 1))},
    normalization.RMSNorm: _NORM,
    normalization.BatchNorm: _NORM,
}
"""Layer type -> `AXES`, or a function (layer, shapes of PyTorch's tensors there) -> {JAX name: Rule}. A network's own layers may
say
theirs as an attribute TORCH_NAMES."""


# Functions of a layer


def conv(layer: Layer, theirs: Shapes) -> dict[str, Rule]:
    """A convolution of 1, 2 or 3 dimensions: (*k, in, out) is (out, in, *k)."""
    return _kernel(layer, lambda rank: (rank - 1, rank - 2, *range(rank - 2)))


def conv_transpose(layer: Layer, theirs: Shapes) -> dict[str, Rule]:
    """A transposed convolution: PyTorch's kernel (in, out, *k) is turned about, unless flax was told transpose_kernel."""
    if getattr(layer.module, "transpose_kernel", False):
        return conv(layer, theirs)
    shape = layer.arrays["kernel"][1]
    rank = len(shape)
    turned = (slice(None, None, -1),) * (rank - 2)
    tensor = (*shape[-2:], *shape[:-2])
    rules = _kernel(layer, lambda rank: (rank - 2, rank - 1, *range(rank - 2)))
    rules["kernel"] = Rule("weight", lambda w: w.transpose(*range(2, rank), 0, 1)[turned], (tensor,))
    return rules


def _kernel(layer: Layer, axes: Callable[[int], tuple[int, ...]]) -> dict[str, Rule]:
    rules = {}
    for name, (_, shape) in layer.arrays.items():
        if name == "kernel":
            order = axes(len(shape))
            rules[name] = transposition("weight", order, shape)
        elif name == "bias":
            rules[name] = transposition("bias", (0,), shape)
    return rules


def transposition(key: str, axes: tuple[int, ...], shape: Shape) -> Rule:
    """The rule of an array whose axes stand in another order in PyTorch; shape: in JAX."""
    back = tuple(int(axis) for axis in np.argsort(axes))
    return Rule(key, lambda w: w.transpose(back), (tuple(shape[axis] for axis in axes),), tuple(axes))


def linear_general(layer: Layer, theirs: Shapes) -> dict[str, Rule]:
    """A projection from or to several axes, such as heads: a matrix in PyTorch."""
    rules = {}
    shape = layer.arrays["kernel"][1]
    inputs = _inputs(layer, theirs)
    matrix = (math.prod(shape[inputs:]), math.prod(shape[:inputs]))
    rules["kernel"] = Rule("weight", lambda w: w.T.reshape(shape), (matrix,))
    if "bias" in layer.arrays:
        out = layer.arrays["bias"][1]
        rules["bias"] = Rule("bias", lambda b: b.reshape(out), ((math.prod(out),),))
    return rules


def _inputs(layer: Layer, theirs: Shapes) -> int:
    """How many of a kernel's axes are those of the input."""
    shape = layer.arrays["kernel"][1]
    if "bias" in layer.arrays:
        return len(shape) - len(layer.arrays["bias"][1])
    given = getattr(layer.module, "in_features", None)
    if given is not None:
        return len(given) if isinstance(given, tuple | list) else 1
    axis = getattr(layer.module, "axis", None)
    if axis is not None:
        return len(axis) if isinstance(axis, tuple | list) else 1
    matrix = theirs.get("weight", ())
    fits = [k for k in range(1, len(shape)) if (math.prod(shape[k:]), math.prod(shape[:k])) == tuple(matrix)]
    return fits[0] if fits else 1


def einsum(layer: Layer, theirs: Shapes) -> dict[str, Rule]:
    """A weight of an einsum: what is summed over are the columns of PyTorch's matrix; one of the same shape stays as it is."""
    shape = layer.arrays["kernel"][1]
    rules = {}
    key = "kernel" if "kernel" in theirs else "weight"
    if tuple(theirs.get(key, ())) == shape or key == "kernel":
        rules["kernel"] = Rule(key, shapes=(shape,))
    else:
        operands, _, output = layer.module.einsum_str.replace(" ", "").partition("->")
        letters = operands.split(",")[1]
        out = [axis for axis, letter in enumerate(letters) if letter in output]
        order = out + [axis for axis, letter in enumerate(letters) if letter not in output]
        lengths, back = [shape[axis] for axis in order], np.argsort(order)
        matrix = (math.prod(lengths[: len(out)]), math.prod(lengths[len(out) :]))
        rules["kernel"] = Rule(key, lambda w: w.reshape(lengths).transpose(*back), (matrix,))
    if "bias" in layer.arrays:
        bias = layer.arrays["bias"][1]
        rules["bias"] = Rule("bias", lambda b: b.reshape(bias), (tuple(theirs.get("bias", (math.prod(bias),))),))
    return rules


def slope(layer: Layer, theirs: Shapes) -> dict[str, Rule]:
    """PReLU's: a number, or one a channel, which PyTorch always keeps in a vector."""
    (shape,) = (shape for name, (_, shape) in layer.arrays.items() if name == "negative_slope")
    return {"negative_slope": Rule("weight", lambda w: w.reshape(shape), ((math.prod(shape),),))}


RULES |= {
    nnx.Conv: conv,
    nnx.ConvTranspose: conv_transpose,
    nnx.LinearGeneral: linear_general,
    nnx.Einsum: einsum,
    nnx.PReLU: slope,
}


# equinox keeps PyTorch's names and shapes, with few exceptions


def same(layer: Layer, theirs: Shapes) -> dict[str, Rule]:
    """Arrays of the same names; where shapes differ by axes of length 1 alone, these are dropped or added."""
    rules = {}
    for name, (_, shape) in layer.arrays.items():
        given = tuple(theirs.get(name, shape))
        shapes = (given if math.prod(given) == math.prod(shape) and _squeezed(given) == _squeezed(shape) else shape,)
        rules[name] = Rule(name, lambda w, shape=shape: w.reshape(shape), shapes)
    return rules


def _squeezed(shape: Shape) -> Shape:
    return tuple(length for length in shape if length != 1)


def equinox_conv(layer: Layer, theirs: Shapes) -> dict[str, Rule]:
    """The bias is (out, 1, ...) in equinox."""
    shapes = {name: shape for name, (_, shape) in layer.arrays.items()}
    rules = {"weight": Rule("weight", shapes=(shapes["weight"],))}
    if "bias" in shapes:
        rules["bias"] = Rule("bias", lambda b: b.reshape(shapes["bias"]), ((shapes["bias"][0],),))
    return rules


def equinox_conv_transpose(layer: Layer, theirs: Shapes) -> dict[str, Rule]:
    """(out, in / groups, *k), turned about; PyTorch's is (in, out / groups, *k)."""
    rules = equinox_conv(layer, theirs)
    out, inner, *size = layer.arrays["weight"][1]
    groups = layer.module.groups
    turned = (slice(None), slice(None), *(slice(None, None, -1),) * len(size))

    def make(w: Any) -> Any:
        grouped = w.reshape(groups, inner, out // groups, *size).swapaxes(1, 2)
        return grouped.reshape(out, inner, *size)[turned]

    rules["weight"] = Rule("weight", make, ((inner * groups, out // groups, *size),))
    return rules


# linen has the names and shapes of NNX; equinox's types have names of their own

NAMED: dict[str, dict[str, Any]] = {
    "flax.linen": {
        **dict.fromkeys(("Conv", "ConvLocal"), conv),
        "ConvTranspose": conv_transpose,
        "DenseGeneral": linear_general,
        "Einsum": einsum,
        "PReLU": slope,
        "Embed": RULES[nnx.Embed],
        **dict.fromkeys(("Dense", "DenseParams"), RULES[nnx.Linear]),
        **dict.fromkeys(("LayerNorm", "GroupNorm", "BatchNorm", "RMSNorm", "InstanceNorm"), _NORM),
    },
    "equinox": {
        **dict.fromkeys(("Conv", "Conv1d", "Conv2d", "Conv3d"), equinox_conv),
        **dict.fromkeys(
            ("ConvTranspose", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d"), equinox_conv_transpose
        ),
        "PReLU": slope,
    },
}
"""Package -> name of a layer's type -> its rule, so that no package is imported for its sake."""


def rule_of(layer: Layer) -> Any:
    """The rule of a layer's type or of the nearest of its parents; None: there is none, or nothing is known of its type."""
    for kind in type(layer.module).__mro__:
        if kind in RULES:
            return RULES[kind]
        package = next((name for name in NAMED if kind.__module__.startswith(f"{name}.")), None)
        if package and kind.__name__ in NAMED[package]:
            return NAMED[package][kind.__name__]
    return getattr(layer.module, "TORCH_NAMES", None)


def rules_by_name(layer: Layer, theirs: Shapes) -> dict[str, Rule]:
    """The rules of a layer of which only the names of its arrays are known: those of flax or haiku, or PyTorch's own."""
    shapes = {name: shape for name, (_, shape) in layer.arrays.items()}
    if "w" in shapes:  # haiku's
        renamed = Layer(layer.path, None, {{"w": "kernel", "b": "bias"}.get(n, n): a for n, a in layer.arrays.items()})
        named = {"kernel": "w", "bias": "b"}
        return {named.get(name, name): rule for name, rule in rules_by_name(renamed, theirs).items()}
    if "kernel" in shapes:
        weight = tuple(theirs.get("weight", ()))
        rank = len(shapes["kernel"])
        if rank == 2:
            return _of_axes(RULES[nnx.Linear], shapes)
        if len(weight) == 2:
            return linear_general(layer, theirs)
        plain = conv(layer, theirs)
        return plain if not weight or plain["kernel"].shapes == (weight,) else conv_transpose(layer, theirs)
    if {"scale", "mean"} & set(shapes):
        return _of_axes({**_NORM, "offset": ("bias", (0,))}, shapes)
    if set(shapes) <= {"embedding", "embeddings"}:
        return {name: Rule("weight", shapes=(shape,)) for name, shape in shapes.items()}
    if set(shapes) == {"negative_slope"}:
        return slope(layer, theirs)
    return {name: rule for name, rule in same(layer, theirs).items() if name in theirs}


def _of_axes(rule: AXES, shapes: Shapes) -> dict[str, Rule]:
    found = {}
    for name, shape in shapes.items():
        if name in rule and len(shape) == len(rule[name][1]):
            key, axes = rule[name]
            found[name] = transposition(key, axes, shape)
    return found


def local_rules(layer: Layer, theirs: Shapes) -> dict[str, Rule]:
    """{JAX name: rule} of a layer's arrays, as far as there are rules; names in PyTorch are relative to the layer's place there."""
    rule = rule_of(layer)
    if rule is None:
        return rules_by_name(layer, theirs) if theirs else {}
    if callable(rule):
        return dict(rule(layer, theirs))
    shapes = {name: shape for name, (_, shape) in layer.arrays.items() if name in rule}
    return {name: transposition(rule[name][0], rule[name][1], shape) for name, shape in shapes.items()}


# Layers that PyTorch keeps as one and JAX as several

PIECES = ("in_proj_weight", "q_proj_weight", "weight_ih", "weight_ih_l0")
"""Tensors that such a layer has in PyTorch."""


def fused(names: Shapes, theirs: Shapes) -> Iterator[tuple[str, Rule]]:
    """(JAX name, rule) of the arrays below a layer that is attention or a recurrent cell in one piece in PyTorch.

    names: relative names of the JAX arrays below it, with shapes; theirs: of PyTorch's tensors.
    """
    if "in_proj_weight" in theirs or "q_proj_weight" in theirs:
        yield from _attention(names, theirs)
    suffix = next((end for end in ("", "_l0") if f"weight_ih{end}" in theirs), None)
    if suffix is not None:
        yield from _recurrent(names, theirs, suffix)


def _rows(array: Any, rows: slice, shape: Shape, turned: bool = False) -> Any:
    """Rows of what PyTorch keeps as one, in the shape that JAX has them in."""
    return (array[rows].T if turned else array[rows]).reshape(shape)


def _attention(names: Shapes, theirs: Shapes) -> Iterator[tuple[str, Rule]]:
    dim = theirs["out_proj.weight"][0]
    for index, ours in enumerate(("query", "key", "value")):
        rows = slice(index * dim, (index + 1) * dim)
        for path, shape in names.items():
            head, _, leaf = path.rpartition(".")
            if head not in (ours, f"{ours}_proj"):
                continue
            if leaf == "bias":
                of_bias = functools.partial(_rows, rows=rows, shape=shape)
                yield path, Rule("in_proj_bias", of_bias, (tuple(theirs.get("in_proj_bias", (3 * dim,))),))
                continue
            key, part = (
                ("in_proj_weight", rows) if "in_proj_weight" in theirs else (f"{ours[0]}_proj_weight", slice(None))
            )
            make = functools.partial(_rows, rows=part, shape=shape, turned=leaf == "kernel")
            yield path, Rule(key, make, (tuple(theirs[key]),))
    for path, shape in names.items():
        head, _, leaf = path.rpartition(".")
        if head in ("out", "output_proj"):
            key = f"out_proj.{'bias' if leaf == 'bias' else 'weight'}"
            if leaf == "kernel":
                yield path, Rule(key, lambda w, shape=shape: w.T.reshape(shape), (tuple(theirs[key]),))
            else:
                yield path, Rule(key, lambda w: w, (shape,))


GATES = {4: ("i", "f", "g", "o"), 3: ("r", "z", "n")}
"""Order of the gates in PyTorch's stacked weights: of an LSTM, and of a GRU."""


def _recurrent(names: Shapes, theirs: Shapes, end: str) -> Iterator[tuple[str, Rule]]:
    rows, width = theirs[f"weight_hh{end}"]
    gates = rows // width
    shapes = {key: tuple(theirs[key]) for key in theirs}
    weights, biases = (f"weight_ih{end}", f"weight_hh{end}"), (f"bias_ih{end}", f"bias_hh{end}")

    def rule(key: str, make: Callable[..., Any]) -> Rule:
        return Rule(key, make, (shapes[key],))

    for path in names:
        layer, _, leaf = path.rpartition(".")
        whole = {"dense_i": 0, "dense_h": 1, "i": 0 if gates == 1 else None, "h": 1 if gates == 1 else None}.get(layer)
        letter = layer.rstrip("_")[1:]
        if leaf == "kernel" and whole is not None:
            yield path, rule(weights[whole], lambda w: w.T)
        elif leaf == "kernel" and layer[:1] in ("i", "h") and letter in GATES.get(gates, ()):
            at = GATES[gates].index(letter)
            part = slice(at * width, (at + 1) * width)
            yield path, rule(weights[layer[0] == "h"], lambda w, part=part: w[part].T)
        elif path in ("weight_ih", "weight_hh"):
            yield path, rule(path + end, lambda w: w)
        elif leaf in ("bias", "bias_n") and biases[0] in theirs:
            yield path, _recurrent_bias(path, gates, width, biases, shapes)


def _recurrent_bias(path: str, gates: int, width: int, biases: tuple[str, str], shapes: Shapes) -> Rule:
    """PyTorch adds two biases where JAX has one, but for a GRU's new gate, whose second stands within the product with r."""
    layer, _, leaf = path.rpartition(".")
    both = tuple(shapes[key] for key in biases)
    new = slice(2 * width, None)
    if leaf == "bias_n" or layer == "hn":
        return Rule(biases[1], lambda b: b[new], both[1:])
    if gates == 3 and layer == "in":
        return Rule(biases[0], lambda b: b[new], both[:1])
    if gates == 3 and layer in ("", "dense_i"):
        add = lambda a, b: jnp.concatenate([a[: 2 * width] + b[: 2 * width], a[new]])  # noqa: E731
        return Rule(biases, add, both)
    letter = layer.rstrip("_")[1:]
    if letter in GATES.get(gates, ()):
        at = GATES[gates].index(letter)
        part = slice(at * width, (at + 1) * width)
        return Rule(biases, lambda a, b: a[part] + b[part], both)
    return Rule(biases, lambda a, b: a + b, both)
