"""What is known of a compiled program: figures, the bounds that follow of them, a table, JSON."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ddpm_jax import display
from ddpm_jax.compile.chips import CHIPS, Chip
from ddpm_jax.compile.costs import Costs
from ddpm_jax.errors import UserError

GB = 1e9
PREALLOCATED = 0.75
"""The share of a GPU's memory that JAX takes unless told otherwise, by XLA_PYTHON_CLIENT_MEM_FRACTION."""
USABLE = 0.95
"""The share that it can be told to take: drivers and libraries need the rest."""


@dataclass(frozen=True)
class Memory:
    """Bytes on each device; 0 where the compiler says nothing."""

    arguments: float = 0.0
    """State and batch, or parameters and keys."""
    results: float = 0.0
    """What is returned beside arguments that are reused."""
    temporary: float = 0.0
    """Activations, and whatever else is gone at the end."""
    peak: float = 0.0
    """All of them."""
    capacity: float = 0.0
    """What there is."""

    __repr__ = display.of_fields


@dataclass(frozen=True)
class Moved:
    """Collectives of one kind, in one run of the program."""

    kind: str
    """all-reduce, all-gather, …"""
    dtype: str
    """Type of the numbers that are moved."""
    count: float
    """How many arrays."""
    bytes: float
    """What comes of it on each device."""

    __repr__ = display.of_fields


@dataclass(frozen=True)
class Counted:
    """Something of which there are several, as the program is written."""

    name: str
    """What it is."""
    count: int
    """How many there are."""

    __repr__ = display.of_fields


@dataclass(frozen=True, kw_only=True)
class Estimated:
    """A program of a preset, compiled for devices that need not be there. Figures are those of one device, but for images/s."""

    preset: str
    what: str
    """train, sample or fid."""
    topology: str
    """As v5e:2x4."""
    devices: int
    mode: str
    """data or fsdp."""
    dtype: str
    """What the network computes in."""
    examples: int
    """Over all devices, in one run of the program."""
    steps: int
    """How many the walk takes, in sampling; 1 otherwise."""
    effort: str
    """quick or full."""
    versions: dict[str, str]
    """Of jax and the compiler."""
    fits: bool
    """Whether there is enough memory."""
    memory: Memory
    """What it takes of that."""
    compile_s: float
    """What compilation took."""
    from_cache: bool = False
    """Whether that was an earlier time."""
    flops: float | None = None
    """Operations, as XLA counts them."""
    matrix_flops: dict[str, float] = field(default_factory=dict)
    """Of these, in products and convolutions, by dtype."""
    bytes: float | None = None
    """Traffic with the device's memory."""
    padding: float = 0.0
    """The share of it that fills up tiles."""
    arithmetic_ms: float | None = None
    """What products and convolutions take at the published peak."""
    memory_ms: float | None = None
    """What the traffic takes at the published bandwidth."""
    collectives: tuple[Moved, ...] = ()
    """What is moved between devices."""
    convolutions: tuple[Counted, ...] = ()
    """By dtype and layout."""
    custom_calls: tuple[Counted, ...] = ()
    """Programs that are not XLA's own."""
    loops: tuple[int, ...] = ()
    """How often the body of each runs; 0: unknown, counted once."""

    def __repr__(self) -> str:
        fits = "fits" if self.fits else "does not fit"
        return display.line(self, repr(self.preset), self.what, self.topology, f"batch {self.examples}", fits)

    @property
    def bound_ms(self) -> float | None:
        """No run of the program can take less: the longer of arithmetic and traffic, were each to hide the other."""
        if self.arithmetic_ms is None or self.memory_ms is None:
            return None
        return max(self.arithmetic_ms, self.memory_ms)

    @property
    def images_per_s(self) -> float | None:
        """At most, over all devices."""
        return None if not self.bound_ms else 1000 * self.examples / self.bound_ms

    @property
    def mfu(self) -> float | None:
        """Model FLOPs utilisation at most: the share of the peak that products and convolutions can reach. With rematerialisation
        what is computed again counts as well."""
        return None if not self.bound_ms or self.arithmetic_ms is None else self.arithmetic_ms / self.bound_ms

    def to_json(self) -> str:
        """Everything, with the bounds."""
        bounds = {name: getattr(self, name) for name in ("bound_ms", "images_per_s", "mfu")}
        return json.dumps(dataclasses.asdict(self) | {"bounds": bounds}, indent=2) + "\n"

    def table(self) -> str:
        """A screen of text."""
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        share = f"{self.examples} {'samples' if self.what == 'sample' else 'examples'}"
        if self.steps > 1:
            share += f" x {self.steps} steps"
        lines = [
            f"{self.preset}, {self.what}: {share} over {self.devices} device{'s' * (self.devices > 1)} of {self.topology}, "
            f"{self.mode}, {self.dtype}; {self.effort} effort, {versions}",
            f"{'memory':<14}{self._memory()}",
        ]
        if self.flops is not None and self.bytes is not None:
            chip = CHIPS[self.topology.partition(":")[0]]
            kinds = ", ".join(f"{dtype} {amount(flops)}" for dtype, flops in self.matrix_flops.items()) or "none"
            lines += [
                f"{'operations':<14}{amount(self.flops)}FLOP, in products and convolutions: {kinds}",
                f"{'traffic':<14}{self.bytes / GB:,.3g} GB with memory, {self.padding:.0%} of it padding",
                f"{'bounds':<14}arithmetic {milliseconds(self.arithmetic_ms)} ({chip.flops / 1e12:g} TFLOP/s in bfloat16), "
                f"memory {milliseconds(self.memory_ms)} ({chip.bandwidth / GB:g} GB/s); {chip.source}",
                f"{'at most':<14}{self._at_most()}",
            ]
            moved = [
                f"{each.kind} {each.dtype} {each.bytes / 1e6:,.4g} MB in {each.count:,.0f}" for each in self.collectives
            ]
            lines.append(f"{'collectives':<14}{'; '.join(moved) or 'none'}")
            for heading, counted in (("convolutions", self.convolutions), ("custom calls", self.custom_calls)):
                lines.append(f"{heading:<14}{', '.join(f'{each.count} {each.name}' for each in counted) or 'none'}")
            if self.loops:
                turns = ", ".join(str(turn) if turn else "unknown, counted once" for turn in self.loops)
                lines.append(f"{'loops':<14}{turns} turns")
        kept = "earlier, kept" if self.from_cache else "now"
        return "\n".join([*lines, f"{'compiled':<14}{self.compile_s:,.0f} s, {kept}"])

    def _memory(self) -> str:
        found, capacity = self.memory, f"{self.memory.capacity / GB:.1f} GB"
        if not self.fits:
            if not found.peak:
                return f"DOES NOT FIT: the compiler found no way to stay within {capacity}"
            over = f"{(found.peak - found.capacity) / GB:.1f} GB too much"
            return f"DOES NOT FIT: {found.peak / GB:.1f} GB are needed, of {capacity}: {over}; {remedies(self)}"
        parts = f"{found.arguments / GB:.2f} of arguments, {found.temporary / GB:.2f} temporary"
        told = f"{found.peak / GB:.2f} GB of {capacity} fit: {parts}"
        on_gpu = CHIPS[self.topology.partition(":")[0]].platform == "cuda"
        if on_gpu and found.peak > PREALLOCATED * found.capacity:
            told += f"; set XLA_PYTHON_CLIENT_MEM_FRACTION={USABLE}, of which JAX takes {PREALLOCATED} unless told"
        return told

    def _at_most(self) -> str:
        if self.images_per_s is None or self.mfu is None:
            return "nothing is computed"
        if self.what == "sample":
            each = (self.bound_ms or 0) / self.steps
            return f"{rate(self.images_per_s)} samples/s, {each:.3g} ms a step; MFU {self.mfu:.0%}"
        return f"{rate(self.images_per_s)} examples/s; MFU {self.mfu:.0%}"


def figures_of(counted: Costs, chip: Chip, memory: Memory, **about: Any) -> Estimated:
    """All that follows of what a program costs on a chip."""
    products = dict(_descending(counted.matrix_flops))
    moved = [
        Moved(kind, dtype, counted.collectives[kind, dtype], size)
        for (kind, dtype), size in _descending(counted.collective_bytes)
    ]
    convolutions = [
        Counted(f"{dtype} {layout}", count) for (dtype, layout), count in counted.convolutions.most_common()
    ]
    return Estimated(
        **about,
        memory=memory,
        fits=memory.peak <= memory.capacity * (USABLE if chip.platform == "cuda" else 1),
        flops=counted.flops,
        matrix_flops=products,
        bytes=counted.bytes,
        padding=counted.padding / counted.bytes if counted.bytes else 0.0,
        arithmetic_ms=1000 * sum(flops / chip.peak(dtype) for dtype, flops in products.items()),
        memory_ms=1000 * counted.bytes / chip.bandwidth,
        collectives=tuple(moved),
        convolutions=tuple(convolutions),
        custom_calls=tuple(Counted(name, count) for name, count in counted.custom_calls.most_common()),
        loops=tuple(turns or 0 for turns in counted.loops),
    )


def _descending(amounts: Mapping[Any, float]) -> list[tuple[Any, float]]:
    return sorted(amounts.items(), key=lambda item: -item[1])


def remedies(found: Estimated) -> str:
    """What to try where a program does not fit."""
    if found.what == "sample":
        return "fewer samples at a time (--sample.num), or more devices"
    tries = ["--train.accumulate", "--train.remat"]
    tries += ["--train.dtype bfloat16"] * (found.dtype == "float32") + ["--parallel fsdp"] * (found.mode == "data")
    return f"try {', '.join(tries)}, a smaller batch (--largest-batch finds it), or more devices"


def from_json(text: str) -> Estimated:
    """What `to_json` wrote.

    Raises:
        UserError: it is something else.
    """
    several = {"collectives": Moved, "convolutions": Counted, "custom_calls": Counted}
    try:
        tree = json.loads(text)
        del tree["bounds"]
        lists = {name: tuple(kind(**each) for each in tree[name]) for name, kind in several.items()}
        return Estimated(**tree | lists | {"memory": Memory(**tree["memory"]), "loops": tuple(tree["loops"])})
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"these are no figures of a compiled program: {error}.") from error


def amount(number: float) -> str:
    """1,234,000,000 as 1.23 G, with a space behind it where there is no unit."""
    for unit, size in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.3g} "


def rate(number: float) -> str:
    """With three digits, or to the nearest whole number where that has more."""
    return f"{number:,.0f}" if number >= 1000 else f"{number:.3g}"


def milliseconds(value: float | None) -> str:
    """With three digits."""
    return "none" if value is None else f"{value:,.3g} ms"
