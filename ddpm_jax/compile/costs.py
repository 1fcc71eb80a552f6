"""What a compiled program costs each time it is run: operations, traffic with memory and between devices, loops multiplied in."""

import functools
import math
import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

from ddpm_jax import display
from ddpm_jax.compile.hlo import HBM, Computation, Instruction, Module, Shape, window

COLLECTIVES = (
    "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast", "ragged-all-to-all",
)  # fmt: skip
"""What moves numbers between devices."""

_ELEMENTWISE = {
    "abs", "add", "and", "ceil", "clamp", "clz", "compare", "complex", "convert", "divide", "floor", "imag", "is-finite", "maximum",
    "minimum", "multiply", "negate", "not", "or", "popcnt", "real", "reduce-precision", "remainder", "round-nearest-afz",
    "round-nearest-even", "select", "shift-left", "shift-right-arithmetic", "shift-right-logical", "sign", "stochastic-convert",
    "subtract", "xor",
}  # fmt: skip
"""One operation for each number."""
_FREE = {
    "add-dependency", "after-all", "async-done", "async-update", "bitcast", "constant", "copy-done", "domain", "get-dimension-size",
    "get-tuple-element", "iota", "opt-barrier", "optimization-barrier", "parameter", "partition-id", "recv", "recv-done",
    "replica-id", "send", "send-done", "tuple",
}  # fmt: skip
"""Nothing is read or written for them, or what they name was counted where it began."""
_SCATTER = "all-reduce-scatter"
"""How the computation of a TPU's reduce-scatter begins."""
_SLICES = {"dynamic-slice", "gather", "slice"}
"""What reads no more of its first operand than it makes."""
_IMAGE, _KERNEL = "convBackwardInput", "convBackwardFilter"
"""How cuDNN's convolutions are called that give a gradient; of the others the result is what comes out."""


@dataclass
class Costs:
    """What one run of a program costs on one of its devices."""

    flops: float = 0.0
    """Floating-point operations as XLA counts them: two for each product that is summed up, one for other arithmetic."""
    matrix_flops: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Those of products of matrices and convolutions, by the dtype that is multiplied."""
    bytes: float = 0.0
    """Read from and written to the device's large memory, padding included."""
    padding: float = 0.0
    """How many of these hold no number, but fill up tiles."""
    collectives: dict[tuple[str, str], float] = field(default_factory=lambda: defaultdict(float))
    """How often numbers of a dtype are moved between devices, by (kind, dtype)."""
    collective_bytes: dict[tuple[str, str], float] = field(default_factory=lambda: defaultdict(float))
    """Bytes that come of it on each device."""
    convolutions: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By (dtype, layout): a layout is that of image, kernel and result, their dimensions from the outermost to the innermost."""
    custom_calls: Counter[str] = field(default_factory=Counter)
    """Programs that are not XLA's own, by their target: cuDNN's, cuBLAS', kernels in Pallas."""
    loops: list[int | None] = field(default_factory=list)
    """How often the body of each loop runs within one turn of what is around it; None: it cannot be read off, and counts once."""

    __repr__ = display.of_fields

    def add(self, other: "Costs", times: float = 1.0) -> None:
        """Another program's, run so many times."""
        self.flops += times * other.flops
        self.bytes += times * other.bytes
        self.padding += times * other.padding
        for name in ("matrix_flops", "collectives", "collective_bytes"):
            for key, value in getattr(other, name).items():
                getattr(self, name)[key] += times * value
        self.convolutions.update(other.convolutions)
        self.custom_calls.update(other.custom_calls)
        self.loops.extend(other.loops)


def costs(module: Module) -> Costs:
    """What a program costs. Convolutions, custom calls and loops are counted as they are written, all else as often as it is run.

    Of a conditional's branches the costliest counts.
    """
    return _Counting(module).of(module.entry)


@dataclass(frozen=True, eq=False)
class _Counting:
    module: Module

    @functools.cached_property
    def _told_before(self) -> set[int]:
        """What is one collective in parts: TPUs start it in one fusion, go on with it in others, and all of them name it."""
        seen, again = set[tuple[str | None, ...]](), set[int]()
        for computation in self.module.computations.values():
            for each in computation.instructions.values():
                if chain := re.search(r'chain_id="(\d+)"', each.rest):
                    part = each.opcode, each.attribute("channel_id"), chain[1]
                    if part in seen:
                        again.add(id(each))
                    seen.add(part)
        return again

    @functools.cache  # noqa: B019  # it lives as long as one program is counted
    def of(self, name: str, within_fusion: bool = False) -> Costs:
        total = Costs()
        computation = self.module.computations[name]
        for instruction in computation.instructions.values():
            self._add(total, computation, instruction, within_fusion)
        return total

    def _add(self, total: Costs, computation: Computation, each: Instruction, within_fusion: bool) -> None:
        opcode = each.opcode
        total.flops += float(self._flops(computation, each))
        _add_products(total, computation, each)
        if id(each) not in self._told_before:
            _add_collective(total, each)
        if opcode == "custom-call":
            total.custom_calls[each.attribute("custom_call_target") or "?"] += 1
        if opcode == "while":
            turns = trip_count(self.module, computation, each)
            total.loops.append(turns)
            for name in each.called("body", "condition"):
                total.add(self.of(name), float(turns or 1))
        elif opcode == "fusion":
            for name in each.called("calls"):
                total.add(self._scattered(each, name) if name.startswith(_SCATTER) else self.of(name, True))
        elif opcode == "conditional":
            names = each.called("branch_computations", "true_computation", "false_computation")
            total.add(max(map(self.of, names), key=lambda found: (found.flops, found.bytes)))
        elif opcode in ("call", "async-start"):
            for name in each.called("to_apply", "calls", "called_computation"):
                total.add(self.of(name, within_fusion))
        if not within_fusion and opcode not in ("while", "conditional", "call", "async-start"):
            for shape, read in self._traffic(computation, each):
                if shape.space == HBM:
                    total.bytes += read * shape.padded_bytes
                    total.padding += read * (shape.padded_bytes - shape.bytes)

    def _scattered(self, fusion: Instruction, name: str) -> Costs:
        """A sum over devices of which each keeps its share, as TPUs have it: one fusion, and an all-reduce by its text."""
        found = Costs()
        found.add(self.of(name, True))
        found.collectives.clear()
        found.collective_bytes.clear()
        for shape in fusion.shapes:
            found.collectives["reduce-scatter", shape.dtype] += 1
            found.collective_bytes["reduce-scatter", shape.dtype] += shape.bytes
        return found

    def _flops(self, computation: Computation, each: Instruction) -> float | int:
        """But for those of computations that are called, and of products and convolutions."""
        size = each.shapes[0].size if each.shapes else 0
        if each.opcode in _ELEMENTWISE:
            return size
        operands = computation.operands(each)
        if each.opcode == "sort":
            return size * max(0, size - 1).bit_length()
        if each.opcode in ("map", "reduce", "reduce-window", "select-and-scatter", "scatter") and operands:
            (name, *_) = each.called("to_apply", "scatter", "select") or [""]
            body = self.of(name, True).flops if name in self.module.computations else 0
            if each.opcode == "map":
                return size * body
            if each.opcode == "reduce":
                return max(0, operands[0][0].size - size) * body
            if each.opcode == "scatter":
                return operands[-1][0].size * body
            taken = math.prod(window(each)["size"]) if each.opcode == "reduce-window" else 2
            return size * (taken - 1) * body
        return 0

    def _traffic(self, computation: Computation, each: Instruction) -> list[tuple[Shape, float]]:
        """(array, how often as many bytes are read or written) of an instruction that is not within a fusion."""
        opcode = each.opcode
        if opcode in _FREE or opcode.endswith("-done"):
            return []
        operands = computation.operands(each)
        if opcode in _SLICES:
            return [(each.shapes[0], 2.0)]
        if opcode == "dynamic-update-slice" and len(operands) > 1:
            return [(operands[1][0], 2.0)]
        if opcode == "scatter":
            return [(operands[-1][0], 3.0)]
        if opcode.endswith("-start"):  # its result names what it takes as well
            made = each.shapes[:1] if opcode == "copy-start" else _results(each)
            return [(shape, 1.0) for shapes in (*operands, made) for shape in shapes if shape.dims]
        if opcode == "fusion" and (called := each.called("calls")):
            return _of_fusion(self.module.computations[called[0]], operands, each.shapes)
        return [(shape, 1.0) for shapes in (*operands, each.shapes) for shape in shapes]


def _of_fusion(
    inner: Computation, operands: list[tuple[Shape, ...]], made: tuple[Shape, ...]
) -> list[tuple[Shape, float]]:
    """A fusion reads of an operand no more than the slices that it takes, and writes into an array no more than it puts there."""
    found: list[tuple[Shape, float]] = []
    parameters = inner.parameters
    root = _through(inner, inner.root)
    updated = inner.instructions.get(root.operands[0]) if root.opcode == "dynamic-update-slice" else None
    updated = None if updated is None else _through(inner, updated)
    for number, shapes in enumerate(operands):
        parameter = parameters.get(number)
        users = [] if parameter is None else list(inner.users(parameter.name))
        if updated is not None and updated is parameter:
            continue
        if users and all(user.opcode in _SLICES and user.operands[0] == parameter.name for user in users):  # type: ignore[union-attr]
            found += [(_placed(user.shapes[0], shapes[0]), 1.0) for user in users]
        else:
            found += [(shape, 1.0) for shape in shapes]
    if updated is not None:
        update = inner.instructions[root.operands[1]].shapes[0]
        return [*found, (_placed(update, made[0]), 1.0)]
    return found + [(shape, 1.0) for shape in made]


def _placed(part: Shape, whole: Shape) -> Shape:
    """A part of an array, in the memory and the tiles that this lies in."""
    return Shape(part.dtype, part.dims, part.order, whole.tile, whole.space)


def _through(inner: Computation, each: Instruction) -> Instruction:
    while each.opcode in ("bitcast", "copy", "convert") and each.operands and each.operands[0] in inner.instructions:
        each = inner.instructions[each.operands[0]]
    return each


# Products --------------------------------------------------------------------------------------------------------


def _add_products(total: Costs, computation: Computation, each: Instruction) -> None:
    target = each.attribute("custom_call_target") or "" if each.opcode == "custom-call" else ""
    operands = computation.operands(each)
    if len(operands) < 2 or not (operands[0] and operands[1]):
        return
    first, second = operands[0][0], operands[1][0]
    if each.opcode == "dot":
        found = _of_product(first, each.shapes[0], each.numbers("lhs_contracting_dims"))
    elif "matmul" in target or "gemm" in target:
        config = re.search(r'"lhs_contracting_dimensions":\[([^\]]*)\]', each.rest)
        dims = [int(n) for n in re.findall(r"\d+", config[1])] if config else [len(first.dims) - 1]
        found = _of_product(first, each.shapes[0], dims)
    elif "fmha" in target:
        found = _of_attention(first, second, "Backward" in target)
    elif each.opcode == "convolution" or "__cudnn$conv" in target:
        arrays = _of_forward_pass(target, first, second, each.shapes[0])
        found = _of_convolution(each, *arrays)
        total.convolutions[first.dtype, _layout(each.attribute("dim_labels") or "", arrays)] += 1
    else:
        return
    total.flops += found
    total.matrix_flops[first.dtype] += found


def _of_product(lhs: Shape, result: Shape, contracting: Any) -> float:
    return 2.0 * result.size * math.prod(lhs.dims[i] for i in contracting)


def _of_attention(q: Shape, k: Shape, backward: bool) -> float:
    """Products of queries with keys and of weights with values; going back, those again and four more (b, n, h, d)."""
    return (5 if backward else 2) * 2.0 * q.size * k.dims[-3 if len(k.dims) == 4 else -2]


def _of_forward_pass(target: str, first: Shape, second: Shape, made: Shape) -> tuple[Shape, Shape, Shape]:
    """Image, kernel and what comes out, of a convolution of which cuDNN may be asked for one of the gradients."""
    if _IMAGE in target:
        return made, second, first
    return (first, made, second) if _KERNEL in target else (first, second, made)


def _of_convolution(each: Instruction, image: Shape, kernel: Shape, made: Shape) -> float:
    """Products with what lies beyond the image's sides, or between its pixels, are not counted."""
    lhs, rhs, out = re.split(r"_|->", each.attribute("dim_labels") or "")
    parts = window(each)
    places = 1
    for i in range(len(parts["size"])):
        sizes = image.dims[lhs.index(str(i))], made.dims[out.index(str(i))]
        dilations = parts["lhs_dilate"][i], parts["rhs_dilate"][i]
        places *= _places(sizes, parts["size"][i], parts["stride"][i], parts["pad"][i][0], dilations)
    batches = image.dims[lhs.index("b")] // int(each.attribute("batch_group_count") or 1)
    return 2.0 * places * batches * kernel.dims[rhs.index("i")] * made.dims[out.index("f")]


@functools.cache
def _places(sizes: tuple[int, int], width: int, stride: int, before: int, dilations: tuple[int, int]) -> int:
    """How often a kernel's number meets one of the image along one dimension; sizes: of the image and of what comes out."""
    (image, made), (apart, spread) = sizes, dilations
    found = 0
    for k in range(width):
        for o in range(made):
            at = o * stride - before + k * spread
            found += 0 <= at <= (image - 1) * apart and at % apart == 0
    return found


def _layout(labels: str, arrays: tuple[Shape, ...]) -> str:
    """b01f_01io->b01f and the orders in memory as NHWC_HWIO->NHWC; of more or fewer dimensions than images have, as it is."""
    names = {"b": "N", "0": "H", "1": "W", "2": "D", "f": "C", "i": "I", "o": "O"}
    told = []
    for part, shape in zip(re.split(r"_|->", labels), arrays, strict=False):
        order = shape.outermost_first if len(shape.dims) == len(part) else range(len(part))
        told.append("".join(names.get(part[i], part[i]) for i in order))
    return "{}_{}->{}".format(*told) if len(told) == 3 else labels


# Between devices, and loops --------------------------------------------------------------------------------------


def _results(each: Instruction) -> tuple[Shape, ...]:
    """What a collective that has been started will make: of ((operands), (results), …) the latter."""
    arrays = tuple(shape for shape in each.shapes if shape.dims)
    if each.opcode in ("all-reduce-start", "copy-start"):
        return arrays if each.opcode == "all-reduce-start" else arrays[:1]
    return arrays[len(arrays) // 2 :]


def _add_collective(total: Costs, each: Instruction) -> None:
    kind = each.opcode.removesuffix("-start")
    if kind not in COLLECTIVES or each.opcode.endswith("-done"):
        return
    for shape in _results(each) if each.opcode.endswith("-start") else each.shapes:
        total.collectives[kind, shape.dtype] += 1
        total.collective_bytes[kind, shape.dtype] += shape.bytes


def trip_count(module: Module, computation: Computation, loop: Instruction) -> int | None:
    """How often a loop's body runs: as the compiler says, or by the number that its condition compares a counter from 0 with;
    None: neither is there."""
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest):
        return int(known[1])
    (name,) = loop.called("condition")
    return _bound(module, module.computations[name])


def _bound(module: Module, condition: Computation) -> int | None:
    root = condition.root
    inner, constants = condition, [root]
    if root.opcode == "fusion":
        (name,) = root.called("calls")
        inner = module.computations[name]
    compare = _through(inner, inner.root)
    if compare.opcode != "compare" or compare.attribute("direction") != "LT":
        return None
    last = inner.instructions[compare.operands[1]]
    if last.opcode == "parameter" and inner is not condition:
        constants = [condition.instructions[root.operands[int(last.arguments)]]]
        last = constants[0]
    return int(last.arguments) if last.opcode == "constant" and re.fullmatch(r"\d+", last.arguments) else None
