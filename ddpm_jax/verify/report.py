"""What a comparison found: rows of errors, and the table, JSON and HTML page made of them."""

import dataclasses
import html
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ddpm_jax import display
from ddpm_jax.files import together, write_atomically

LONELY = "layers in one framework only"
"""The entry of an environment that names what could not be compared."""

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

    __repr__ = display.of_fields

    @property
    def ok(self) -> bool:
        """Whether the error is within the tolerance."""
        return self.error <= self.tolerance


@dataclass
class Report:
    """Rows in the order in which they are computed, and the environment they were computed in."""

    title: str
    """What was compared."""
    environment: dict[str, Any]
    """Precision, devices, versions; and what could not be compared."""
    rows: list[Row] = field(default_factory=list)
    """In the order in which they are computed."""

    def __repr__(self) -> str:
        """The verdict in a word; `table` tells all."""
        first = self.first_divergence
        found = "agreement" if first is None else f"DIVERGENCE, first at {first.stage}: {display.short(first.name)}"
        return display.line("Report", display.short(self.title), f"{len(self.rows)} quantities", found)

    @property
    def ok(self) -> bool:
        """Whether every row is within its tolerance."""
        return all(row.ok for row in self.rows)

    @property
    def first_divergence(self) -> Row | None:
        """The first row that breaks its tolerance: what comes after it may only have inherited its error."""
        return next((row for row in self.rows if not row.ok), None)

    def worst(self) -> dict[str, Row]:
        """For every stage, in order, the row that comes closest to its tolerance or breaks it furthest."""
        found: dict[str, Row] = {}
        for row in self.rows:
            if (
                row.stage not in found
                or row.error / row.tolerance > found[row.stage].error / found[row.stage].tolerance
            ):
                found[row.stage] = row
        return found

    def verdict(self) -> str:
        """One or two sentences: agreement, or the first divergence and which side the oracle blames."""
        first = self.first_divergence
        if first is None:
            return f"agreement: all {len(self.rows)} quantities are within their tolerances."
        text = f"DIVERGENCE, first at {first.stage}: {first.name} {first.shape}, error {first.error:.2e}"
        text += f" (allowed {first.tolerance:.0e})"
        if first.note:
            text += f"; {first.note}"
        if first.jax_error is not None and first.torch_error is not None:
            off = "JAX" if first.jax_error > first.torch_error else "PyTorch"
            text += f"; against float64, JAX is off by {first.jax_error:.1e}, PyTorch by {first.torch_error:.1e}: look at {off}"
        text += f". {sum(not row.ok for row in self.rows)} of {len(self.rows)} quantities diverge."
        return text + (f" {KINK}: {self.environment[KINK]}." if KINK in self.environment else "")

    def table(self, *, every_row: bool = False) -> str:
        """Fixed-width text: the worst row of each stage, or every row, then the verdict."""
        counts = {stage: sum(row.stage == stage for row in self.rows) for stage in self.worst()}
        lines = [self.title, f"{'stage':<13}{'':>5}  {'error':>9}  {'allowed':>8}   {'jax':>8}  {'torch':>8}   worst"]
        for row in self.rows if every_row else self.worst().values():
            count = "" if every_row else str(counts[row.stage])
            lines.append(
                f"{row.stage:<13}{count:>5}  {row.error:>9.2e}  {row.tolerance:>8.0e} {' ' if row.ok else '!'} "
                f"{_short(row.jax_error):>8}  {_short(row.torch_error):>8}   {row.name} {row.shape} {row.note}".rstrip()
            )
        return "\n".join([*lines, self.verdict()])

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON; infinite errors become the string "inf"."""
        return {
            "title": self.title,
            "ok": self.ok,
            "verdict": self.verdict(),
            "environment": self.environment,
            "rows": [{**_finite(dataclasses.asdict(row)), "ok": row.ok} for row in self.rows],
        }


def write(reports: Sequence[Report], folder: Path) -> list[Path]:
    """Write report.json, report.html and report.md into a folder; returns their paths."""
    texts = {"report.json": to_json(reports), "report.html": to_html(reports), "report.md": to_markdown(reports)}

    def one(name: str) -> Path:
        return write_atomically(folder / name, lambda path: path.write_text(texts[name]))

    with together():
        return [one(name) for name in texts]


def to_markdown(reports: Sequence[Report]) -> str:
    """A page with the largest error of every stage of every report, one table for each environment."""
    parts = [
        "# Parity measured",
        "Largest error of each stage, max |jax - torch| / max |torch|; **bold** where a tolerance is broken. By `ddpm verify`.",
    ]
    environments: dict[str, list[Report]] = {}
    for report in reports:
        shown = {name: value for name, value in report.environment.items() if name not in ("*", LONELY, KINK)}
        environments.setdefault(", ".join(f"{name} {value}" for name, value in shown.items()), []).append(report)
    for environment, group in environments.items():
        stages = list(dict.fromkeys(stage for report in group for stage in report.worst()))
        rows = [["network", *(stage.replace("*", "\\*") for stage in stages)], ["---"] * (len(stages) + 1)]
        for report in group:
            worst = report.worst()
            rows.append([report.title.partition(",")[0], *(_cell(worst.get(stage)) for stage in stages)])
        parts += [f"Environment: {environment}.", "\n".join("| " + " | ".join(row) + " |" for row in rows)]
    if any("*" in report.environment for report in reports):
        parts.append("\\* in training mode, where it differs.")
    return "\n\n".join(parts) + "\n"


def _cell(row: Row | None) -> str:
    if row is None:
        return ""
    return f"{row.error:.1e}" if row.ok else f"**{row.error:.1e}**"


def to_json(reports: Iterable[Report]) -> str:
    """JSON text of reports."""
    return json.dumps([report.to_dict() for report in reports], indent=1) + "\n"


def to_html(reports: Iterable[Report]) -> str:
    """One self-contained page: every row as a bar on a logarithmic scale beside its tolerance."""
    return _PAGE.replace("{body}", "\n".join(_section(report) for report in reports))


def _section(report: Report) -> str:
    environment = ", ".join(
        f"{html.escape(name)} {html.escape(str(value))}" for name, value in report.environment.items()
    )
    parts = [
        f"<h2>{html.escape(report.title)}</h2>",
        f"<p class='{'ok' if report.ok else 'bad'}'>{html.escape(report.verdict())}</p><p class='env'>{environment}</p>",
        "<table><tr><th>stage</th><th>quantity</th><th>shape</th><th>error</th><th>allowed</th>"
        "<th>jax vs float64</th><th>torch vs float64</th><th>1e-18 … 1</th></tr>",
    ]
    parts += [_html_row(row) for row in report.rows]
    return "\n".join([*parts, "</table>"])


def _html_row(row: Row) -> str:
    bar, mark = _position(row.error), _position(row.tolerance)
    chart = (
        f"<svg width='240' height='12'><rect width='{bar:.0f}' height='12' class='{'ok' if row.ok else 'bad'}'/>"
        f"<line x1='{mark:.0f}' x2='{mark:.0f}' y1='0' y2='12'/></svg>"
    )
    cells = [
        row.stage,
        f"{row.name} {row.note}".strip(),
        "x".join(map(str, row.shape)) or "scalar",
        f"{row.error:.2e}",
        f"{row.tolerance:.0e}",
        _short(row.jax_error),
        _short(row.torch_error),
    ]
    text = "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
    return f"<tr{'' if row.ok else ' class=bad'}>{text}<td>{chart}</td></tr>"


def _position(error: float) -> float:
    """Pixels from the left of a bar of 240: 1e-18 at the left end, 1 at the right."""
    return 240 * min(max((math.log10(max(error, 1e-18)) + 18) / 18, 0.0), 1.0) if math.isfinite(error) else 240.0


def _short(error: float | None) -> str:
    return "" if error is None else f"{error:.1e}"


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    return {
        name: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in row.items()
    }


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Parity report</title><style>
body { font: 14px system-ui, sans-serif; margin: 2em; color: #222 }
table { border-collapse: collapse } th { text-align: left } td, th { padding: 1px 10px 1px 0; white-space: nowrap }
td:nth-child(n+4):nth-child(-n+7) { font-family: monospace; text-align: right }
p.ok { color: #17692c } p.bad, tr.bad td { color: #a11616; font-weight: 600 } .env { color: #666 }
svg { background: #f0f0f0 } rect.ok { fill: #5b8fb9 } rect.bad { fill: #c0392b } line { stroke: #222 }
</style></head><body><h1>Parity report</h1>
<p>error = max |jax - torch| / max |torch|. The bar is the error on a logarithmic scale, the black line what is allowed.</p>
{body}
</body></html>
"""
