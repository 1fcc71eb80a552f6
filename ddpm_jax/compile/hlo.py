"""The text of a compiled program as data: computations, instructions, and where their arrays lie in memory."""

import functools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ddpm_jax import display

BITS = {"pred": 8, "bf16": 16, "token": 0, "opaque": 0}
"""Bits of what is not named by them, as f32, s8, u4 and f8e4m3fn are."""
HBM = 0
"""The space of memory that an array lies in unless its layout says S(n)."""


@dataclass(frozen=True)
class Shape:
    """An array's dtype, dimensions, and layout."""

    dtype: str
    """As HLO calls it: f32, bf16, pred."""
    dims: tuple[int, ...] = ()
    order: tuple[int, ...] = ()
    """Dimensions from the one whose neighbours lie side by side to the outermost; empty: the last one first."""
    tile: tuple[int, ...] = ()
    """Sizes that the innermost dimensions are rounded up to, the innermost last; empty: there is no padding."""
    space: int = HBM
    """Which memory it lies in: 0 the device's large one, 1 a TPU's vector memory, 5 the host's."""

    __repr__ = display.of_fields

    @property
    def size(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.dims)

    @property
    def bytes(self) -> float:
        """What its numbers take."""
        return self.size * bits(self.dtype) / 8

    @property
    def padded_bytes(self) -> float:
        """What it takes in memory, rounded up to whole tiles."""
        dims = [self.dims[i] for i in self.order or reversed(range(len(self.dims)))]
        dims += [1] * (len(self.tile) - len(dims))
        rounded = [-(-n // of) * of for n, of in zip(dims, reversed(self.tile), strict=False)]
        return math.prod(rounded + dims[len(self.tile) :]) * bits(self.dtype) / 8

    @property
    def outermost_first(self) -> tuple[int, ...]:
        """Its dimensions by number, as they lie in memory."""
        return tuple(reversed(self.order)) if self.order else tuple(range(len(self.dims)))


@dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    """Unique within its computation."""
    opcode: str
    """As add, convolution, while."""
    shapes: tuple[Shape, ...]
    """What it makes: one array, or those of a tuple, however deep, in order."""
    operands: tuple[str, ...]
    """Names of the instructions that it takes."""
    arguments: str
    """The same as text; of a constant its value, of a parameter its number."""
    rest: str
    """What follows: window=…, calls=…, metadata=…"""
    is_root: bool = False
    """Whether it is what its computation returns."""

    __repr__ = display.of_fields

    def attribute(self, name: str) -> str | None:
        """The text of name=…, without the braces or quotation marks around it; None: it has none."""
        found = re.search(rf"(?:^|[\s,]){name}=(?:\{{([^}}]*)\}}|\"((?:[^\"\\]|\\.)*)\"|([^\s,]+))", self.rest)
        return None if found is None else next(part for part in found.groups() if part is not None)

    def numbers(self, name: str) -> tuple[int, ...]:
        """The numbers of name={1,2}; none where there is no such attribute."""
        return tuple(map(int, re.findall(r"-?\d+", self.attribute(name) or "")))

    def called(self, *names: str) -> list[str]:
        """The computations that name=%computation, or name={%a, %b}, speaks of."""
        texts = [self.attribute(name) or "" for name in names]
        return [part.strip().lstrip("%") for text in texts for part in text.split(",") if part.strip()]


@dataclass(frozen=True)
class Computation:
    """Instructions in the order in which they were written."""

    name: str
    """Unique within its program."""
    instructions: dict[str, Instruction]
    """By name."""

    def __repr__(self) -> str:
        return display.line(self, repr(self.name), f"{len(self.instructions)} instructions")

    @property
    def root(self) -> Instruction:
        """What it returns."""
        return next(found for found in self.instructions.values() if found.is_root)

    @property
    def parameters(self) -> dict[int, Instruction]:
        """Its arguments by their number."""
        return {int(each.arguments): each for each in self.instructions.values() if each.opcode == "parameter"}

    def operands(self, instruction: Instruction) -> list[tuple[Shape, ...]]:
        """The arrays of each operand of one of its instructions."""
        return [self.instructions[name].shapes for name in instruction.operands if name in self.instructions]

    def users(self, name: str) -> Iterator[Instruction]:
        """Those of its instructions that take one."""
        return (self.instructions[user] for user in self._users.get(name, ()))

    @functools.cached_property
    def _users(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for each in self.instructions.values():
            for operand in dict.fromkeys(each.operands):
                found.setdefault(operand, []).append(each.name)
        return found


@dataclass(frozen=True)
class Module:
    """A program."""

    computations: dict[str, Computation]
    """By name."""
    entry: str
    """The one that is run; the others are called."""

    def __repr__(self) -> str:
        return display.line(self, repr(self.entry), f"{len(self.computations)} computations")


def bits(dtype: str) -> int:
    """How many one number of a dtype has; 0 for what is none."""
    if dtype in BITS:
        return BITS[dtype]
    found = re.match(r"(?:bf|f|s|u|c)(\d+)", dtype)
    return int(found[1]) if found else 0


def parse(text: str) -> Module:
    """A program from its text, as jax.stages.Compiled.as_text() gives it.

    Raises:
        ValueError: it holds no computation that is run.
    """
    computations: dict[str, Computation] = {}
    entry, name = "", ""
    instructions: dict[str, Instruction] = {}
    for line in text.splitlines():
        if not name:
            if found := re.match(r"(ENTRY\s+)?%?([\w.\-]+)\s.*\{$", line):
                name, instructions = found[2], {}
                entry = name if found[1] else entry
                computations[name] = Computation(name, instructions)
        elif line.startswith("}"):
            name = ""
        elif instruction := _instruction(line):
            instructions[instruction.name] = instruction
    if not entry:
        raise ValueError("the text of a compiled program must have an ENTRY computation.")
    return Module(computations, entry)


def shapes(text: str) -> tuple[Shape, ...]:
    """The arrays of a type: f32[2,3]{1,0}, or (f32[2], (s32[], bf16[4,4]{1,0:T(8,128)(2,1)S(1)}))."""
    return tuple(_shape(*found.groups()) for found in _ARRAY.finditer(text))


_ARRAY = re.compile(r"(?<!\w)([a-z]\w*)\[([\d,<=]*)\](?:\{([^}]*)\})?")


def _shape(dtype: str, dims: str, layout: str | None) -> Shape:
    order, _, details = (layout or "").partition(":")
    tile = re.search(r"T\(([\d,]+)\)", details)
    space = re.search(r"S\((\d+)\)", details)
    return Shape(
        dtype,
        tuple(int(n.lstrip("<=")) for n in dims.split(",") if n),
        tuple(int(n) for n in order.split(",") if n),
        tuple(int(n) for n in tile[1].split(",")) if tile else (),
        int(space[1]) if space else HBM,
    )


_LINE = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = ")
_OPCODE = re.compile(r"\s*([\w\-]+)\(")


def _instruction(line: str) -> Instruction | None:
    begun = _LINE.match(line)
    if begun is None:
        return None
    start = begun.end()
    end = _closing(line, start) if line[start] == "(" else line.index(" ", start)
    opcode = _OPCODE.match(line, end)
    if opcode is None:
        return None
    close = _closing(line, opcode.end() - 1)
    arguments = line[opcode.end() : close - 1]
    operands = () if opcode[1] in ("constant", "parameter") else tuple(re.findall(r"%([\w.\-]+)", arguments))
    if not operands and opcode[1] not in ("constant", "parameter"):  # a text without % before names
        operands = tuple(re.findall(r"([\w.\-]+)(?:,|$)", arguments))
    return Instruction(
        begun[2], opcode[1], shapes(line[start:end]), operands, arguments, line[close:], begun[1] is not None
    )


def _closing(line: str, start: int) -> int:
    """Behind the bracket that closes the one at `start`."""
    depth = 0
    for found in _BRACKET.finditer(line, start):
        depth += 1 if found[0] == "(" else -1
        if depth == 0:
            return found.end()
    return len(line)


_BRACKET = re.compile(r"[()]")


def window(instruction: Instruction) -> dict[str, list[Any]]:
    """The window of a convolution by its parts, a number (of pad, a pair) for each spatial dimension: size, stride, pad,
    lhs_dilate, rhs_dilate."""
    parts = dict(part.split("=") for part in (instruction.attribute("window") or "").split() if "=" in part)
    size = [int(n) for n in parts.get("size", "").split("x") if n]
    found: dict[str, list[Any]] = {"size": size}
    for name in ("stride", "lhs_dilate", "rhs_dilate"):
        found[name] = [int(n) for n in parts[name].split("x")] if name in parts else [1] * len(size)
    pads = [tuple(map(int, pair.split("_"))) for pair in parts["pad"].split("x")] if "pad" in parts else None
    found["pad"] = pads or [(0, 0)] * len(size)
    return found
