"""What a benchmark found: a table, JSON, and a chart of the ratios."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ddpm_jax import display
from ddpm_jax.files import together, write_atomically, write_text

_COLUMNS = (
    *("", "", "", "examples/s", "ms a call", "half of the calls"),
    *("compile s", "cached s", "MiB", "GFLOP", "of peak", "jax is"),
)
_WIDTHS = ("<26", "<9", "<15", ">11", ">11", ">20", ">11", ">10", ">8", ">10", ">9", ">9")


@dataclass(frozen=True)
class Row:
    """One contender at one piece of work."""

    workload: str
    """The network or the preset."""
    what: str
    """forward, train or sample."""
    contender: str
    """jax, torch, torch.compile or diffusers."""
    examples: int
    """Images (or points) that come of one call."""
    call_ms: float
    """Milliseconds of a call, the median."""
    quartiles_ms: tuple[float, float]
    """Half of the calls took between these."""
    calls: int
    """How many were timed."""
    compile_s: float
    """What the first call took more than the median."""
    from_cache_s: float | None = None
    """The same where the program was kept from before."""
    memory_mib: float | None = None
    """Most memory in use at once beyond inputs and parameters."""
    gflop_per_example: float | None = None
    """Floating-point operations, counted by XLA for the plain form of the network."""
    share_of_peak: float | None = None
    """Operations a second, as a share of what the machine reaches in a product of large matrices."""
    ratio: float | None = None
    """How many times as fast as this contender JAX is: median over the rounds."""
    ratio_quartiles: tuple[float, float] | None = None
    """Half of the rounds lie between these."""

    def __repr__(self) -> str:
        compared = {} if self.ratio is None else {"ratio": self.ratio}
        return display.line(self, self.workload, self.what, self.contender, examples_per_s=self.per_s, **compared)

    @property
    def per_s(self) -> float:
        """Examples a second."""
        return 1000 * self.examples / self.call_ms


@dataclass
class Report:
    """Rows in the order in which they were measured, and the environment."""

    environment: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    """In the order in which they were measured, JAX first of each piece of work."""
    notes: list[str] = field(default_factory=list)
    """What could not be measured, and why."""

    def __repr__(self) -> str:
        """How much was measured, and where; `table` tells all."""
        device = self.environment.get("device", "nothing measured yet")
        return display.line(self, str(device), f"{len(self.rows)} rows", f"{len(self.notes)} notes")

    def table(self) -> str:
        """Fixed-width text."""
        rows = ["".join(map(format, cells, _WIDTHS)) for cells in (_COLUMNS, *self._cells())]
        return "\n".join([self._told, "", *rows, *self.notes])

    def _repr_html_(self) -> str:
        """The table, for a notebook."""
        return "".join([display.table([_COLUMNS, *self._cells()]), *map(display.paragraph, [self._told, *self.notes])])

    @property
    def _told(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in self.environment.items())

    def _cells(self) -> list[tuple[str, ...]]:
        """The columns of every row, in words and digits; a workload is named once."""
        found: list[tuple[str, ...]] = []
        before = ""
        for row in self.rows:
            low, high = row.quartiles_ms
            name, before = ("" if row.workload == before else row.workload), row.workload
            found.append(
                (
                    name,
                    row.what,
                    row.contender,
                    f"{row.per_s:.1f}",
                    f"{row.call_ms:.2f}",
                    f"{low:.2f} .. {high:.2f}",
                    f"{row.compile_s:.1f}",
                    _or_blank(row.from_cache_s, ".1f"),
                    _or_blank(row.memory_mib, ".0f"),
                    _or_blank(row.gflop_per_example, ".3g"),
                    _or_blank(row.share_of_peak, ".0%"),
                    _or_blank(row.ratio, ".2f", "x"),
                )
            )
        return found

    def to_json(self) -> str:
        """Everything."""
        rows = [dataclasses.asdict(row) | {"examples_per_s": row.per_s} for row in self.rows]
        return json.dumps({"environment": self.environment, "rows": rows, "notes": self.notes}, indent=2) + "\n"


def write(report: Report, folder: Path) -> list[Path]:
    """Write benchmark.json and, where JAX was compared with anything, benchmark.png; returns their paths."""
    with together():
        paths = [write_text(folder / "benchmark.json", report.to_json())]
        if any(row.ratio is not None for row in report.rows):
            paths.append(write_atomically(folder / "benchmark.png", lambda path: _chart(report, path)))
    return paths


def _or_blank(value: float | None, form: str, unit: str = "") -> str:
    return "" if value is None else f"{value:{form}}{unit}"


def _chart(report: Report, path: Path) -> None:
    """Bars of the ratios, a group for each workload and piece of work, a colour for each contender."""
    from matplotlib.figure import Figure

    compared = [row for row in report.rows if row.ratio is not None]
    groups = list(dict.fromkeys((row.workload, row.what) for row in compared))
    contenders = list(dict.fromkeys(row.contender for row in compared))
    height = 0.8 / len(contenders)
    figure = Figure(figsize=(8, 1.2 + 0.34 * len(groups) * max(1, 0.7 * len(contenders))), layout="constrained")
    axes = figure.subplots()
    for index, contender in enumerate(contenders):
        for place, group in enumerate(groups):
            row = next((r for r in compared if (r.workload, r.what) == group and r.contender == contender), None)
            if row is None or row.ratio is None or row.ratio_quartiles is None:
                continue
            low, high = row.ratio_quartiles
            axes.barh(
                place + (index - (len(contenders) - 1) / 2) * height,
                row.ratio,
                height,
                xerr=[[max(row.ratio - low, 0)], [max(high - row.ratio, 0)]],
                color=f"C{index}",
                label=f"against {contender}" if place == 0 else None,
            )
    axes.axvline(1, color="black", linewidth=1)
    axes.set_yticks(range(len(groups)), [f"{name}  {what}" for name, what in groups])
    axes.invert_yaxis()
    axes.set_xlabel("times as fast as PyTorch (bars: median of the rounds; lines: half of the rounds)")
    where = (str(report.environment[name]) for name in ("device", "machine", "precision") if name in report.environment)
    axes.set_title(", ".join(("ddpm benchmark", *where)))
    axes.legend()
    figure.savefig(path, dpi=120)
