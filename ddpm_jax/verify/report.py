"""What a comparison found: rows of errors, what was compared, the faults; and the table and the verdict made of them."""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ddpm_jax import display

if TYPE_CHECKING:
    from ddpm_jax.verify.faults import Fault
    from ddpm_jax.verify.heat import Picture

KINK = "a ReLU's input within rounding of zero"
"""The entry of an environment that says why gradients may differ."""


@dataclass(frozen=True)
class Row:
    """One quantity compared between the two frameworks."""

    stage: str
    """Where in the pipeline: schedule, noising, layers, loss, ..."""
    name: str
    """Which quantity, layer or parameter."""
    shape: tuple[int, ...]
    """Its shape in JAX."""
    error: float
    """max |jax - torch| / max |torch|; infinite for other shapes or numbers that are not finite."""
    tolerance: float
    """The largest error allowed."""
    jax_error: float | None = None
    """JAX against the float64 oracle, where one was computed."""
    torch_error: float | None = None
    """PyTorch against the float64 oracle."""
    note: str = ""
    """What else is to be said, such as shapes that differ."""
    partner: str = ""
    """A layer's name in PyTorch."""
    their_shape: tuple[int, ...] | None = None
    """Its shape in PyTorch."""
    layout: str = ""
    """What was done to PyTorch's array before it was held to JAX's: "axes (0, 2, 3, 1)"."""

    __repr__ = display.of_fields

    @property
    def ok(self) -> bool:
        """Whether the error is within the tolerance."""
        return bool(self.error <= self.tolerance)


@dataclass(frozen=True)
class Coverage:
    """How many calls of layers were compared, and which were not."""

    compared: int
    alone_in_jax: tuple[str, ...] = ()
    """Calls on the JAX side that have no partner."""
    alone_in_torch: tuple[str, ...] = ()
    """Calls on the PyTorch side that have none."""
    hidden: tuple[str, ...] = ()
    """Layers of the JAX side that PyTorch calls, and that were not seen to be called here."""

    __repr__ = display.of_fields

    @property
    def left_out(self) -> tuple[str, ...]:
        """Everything that was not compared; a name that both sides have is told once."""
        return tuple(dict.fromkeys([*self.alone_in_torch, *self.alone_in_jax, *self.hidden]))

    def words(self, most: int = 8) -> str:
        """ "85 of 120 layers compared; not compared: 35 (names)"; most: names that are told."""
        left = self.left_out
        total = self.compared + len(left)
        if not left:
            return f"all {total} layers compared" if total else "no layers to compare"
        shown = ", ".join(left[:most]) + (", …" if len(left) > most else "")
        return f"{self.compared} of {total} layers compared; not compared: {len(left)} ({shown})"


@dataclass
class Report:
    """Rows in the order in which they are computed, and the environment they were computed in."""

    title: str
    """What was compared."""
    environment: dict[str, Any]
    """Precision, devices, versions."""
    rows: list[Row] = field(default_factory=list)
    """In the order in which they are computed."""
    coverage: Coverage | None = None
    """What was compared, layer by layer; None where there are no layers."""
    faults: list["Fault"] = field(default_factory=list)
    """Where the two sides compute different things, in the order of execution; echoes of a fault are none."""
    hidden: Row | None = None
    """In float32: the first quantity that agrees, and whose float64 runs of both sides do not."""
    warnings: list[str] = field(default_factory=list)
    """What else a reader has to know: layers that compute in fewer digits, dropout that was left on."""
    picture: "Picture | None" = None
    """The first layer that diverges, on both sides."""

    def __repr__(self) -> str:
        """The verdict in a word; `table` tells all."""
        first = self.first_divergence
        found = "agreement" if first is None else f"DIVERGENCE, first at {first.stage}: {display.short(first.name)}"
        return display.line("Report", display.short(self.title), f"{len(self.rows)} quantities", found)

    def _repr_html_(self) -> str:
        """What a notebook shows: both sides' layers beside each other, the faults, and the first layer that diverges."""
        from ddpm_jax.verify.pages import to_fragment

        return to_fragment(self)

    @property
    def ok(self) -> bool:
        """Whether every row is within its tolerance, and no fault hides below it."""
        return all(row.ok for row in self.rows) and self.hidden is None and not self.faults

    @property
    def first_divergence(self) -> Row | None:
        """The first row that breaks its tolerance: what comes after it may only have inherited its error."""
        return next((row for row in self.rows if not row.ok), None)

    def worst(self) -> dict[str, Row]:
        """For every stage, in order, the row that comes closest to its tolerance or breaks it furthest."""
        found: dict[str, Row] = {}
        for row in self.rows:
            if row.stage not in found or _strain(row) > _strain(found[row.stage]):
                found[row.stage] = row
        return found

    def verdict(self) -> str:
        """A few sentences: agreement, or the first divergence, the faults behind it, and which side the oracle blames."""
        first = self.first_divergence
        compared = "" if self.coverage is None else f" {self.coverage.words()}."
        if first is None and self.hidden is not None:
            row = self.hidden
            text = f"agrees in float32; differs in float64, first at {row.stage}: {row.name} {row.shape}, error {row.error:.2e}."
            return text + self._faults() + compared
        if first is None:
            said = f"all {len(self.rows)} quantities are within their tolerances"
            if self.faults:
                return f"DIVERGENCE that does not reach the output: {said}.{self._faults()}{compared}"
            return f"agreement: {said}{';' if compared else '.'}{compared}"
        text = f"DIVERGENCE, first at {first.stage}: {first.name} {first.shape}, error {first.error:.2e}"
        text += f" (allowed {first.tolerance:.0e})"
        if first.note:
            text += f"; {first.note}"
        if first.jax_error is not None and first.torch_error is not None:
            off = "JAX" if first.jax_error > first.torch_error else "PyTorch"
            text += f"; against float64, JAX is off by {first.jax_error:.1e}, PyTorch by {first.torch_error:.1e}: look at {off}"
        text += f". {sum(not row.ok for row in self.rows)} of {len(self.rows)} quantities diverge."
        text += f" {KINK}: {self.environment[KINK]}." if KINK in self.environment else ""
        return text + self._faults() + compared

    def _faults(self, most: int = 5) -> str:
        """A line for each fault."""
        if not self.faults:
            return ""
        lines = [f"\n  FAULT {fault.sentence()}." for fault in self.faults[:most]]
        if len(self.faults) > most:
            lines.append(f"\n  and {len(self.faults) - most} more.")
        return "".join(lines) + "\n "

    def table(self, *, every_row: bool = False) -> str:
        """Fixed-width text: the worst row of each stage, or every row, then the verdict."""
        counts = {stage: sum(row.stage == stage for row in self.rows) for stage in self.worst()}
        lines = [self.title, f"{'stage':<13}{'':>5}  {'error':>9}  {'allowed':>8}   {'jax':>8}  {'torch':>8}   worst"]
        for row in self.rows if every_row else self.worst().values():
            count = "" if every_row else str(counts[row.stage])
            lines.append(
                f"{row.stage:<13}{count:>5}  {row.error:>9.2e}  {row.tolerance:>8.0e} {' ' if row.ok else '!'} "
                f"{short(row.jax_error):>8}  {short(row.torch_error):>8}   {row.name} {row.shape} {row.note}".rstrip()
            )
        return "\n".join([*lines, *(f"note: {one}" for one in self.warnings), self.verdict()])

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON; infinite errors become the string "inf"."""
        return {
            "title": self.title,
            "ok": self.ok,
            "verdict": self.verdict(),
            "environment": self.environment,
            "coverage": None if self.coverage is None else dataclasses.asdict(self.coverage),
            "faults": [{**_finite(dataclasses.asdict(fault)), "sentence": fault.sentence()} for fault in self.faults],
            "hidden": None if self.hidden is None else _finite(dataclasses.asdict(self.hidden)),
            "warnings": self.warnings,
            "rows": [{**_finite(dataclasses.asdict(row)), "ok": row.ok} for row in self.rows],
        }


def _strain(row: Row) -> float:
    """An error as a multiple of what is allowed; of what has to be exact, whether it is."""
    if row.tolerance == 0:
        return 0.0 if row.ok else math.inf
    return row.error / row.tolerance


def short(error: float | None) -> str:
    """An error in a few characters; nothing for None."""
    return "" if error is None else f"{error:.1e}"


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    return {
        name: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in row.items()
    }
