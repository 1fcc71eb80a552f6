"""Reports as files: JSON, Markdown, and one HTML page that stands alone."""

import html
import json
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from ddpm_jax.files import together, write_text
from ddpm_jax.verify.heat import to_svg
from ddpm_jax.verify.report import KINK, Report, Row, short


def write(reports: Sequence[Report], folder: Path) -> list[Path]:
    """Write report.json, report.html and report.md into a folder; returns their paths."""
    texts = {"report.json": to_json(reports), "report.html": to_html(reports), "report.md": to_markdown(reports)}

    def one(name: str) -> Path:
        return write_text(folder / name, texts[name])

    with together():
        return [one(name) for name in texts]


def to_markdown(reports: Sequence[Report]) -> str:
    """A page with the largest error of every stage of every report, one table for each environment."""
    parts = [
        "# Parity measured",
        "For each network and each stage of its computation, this is the largest difference between JAX and PyTorch that "
        "`ddpm verify` found, max |jax - torch| / max |torch|. It is **bold** where it is above its tolerance.",
    ]
    environments: dict[str, list[Report]] = {}
    for report in reports:
        shown = {name: value for name, value in report.environment.items() if name not in ("*", KINK)}
        environments.setdefault(", ".join(f"{name} {value}" for name, value in shown.items()), []).append(report)
    for environment, group in environments.items():
        stages = list(dict.fromkeys(stage for report in group for stage in report.worst()))
        rows = [["network", *(stage.replace("*", "\\*") for stage in stages)], ["---"] * (len(stages) + 1)]
        for report in group:
            worst = report.worst()
            rows.append([report.title.partition(",")[0], *(_cell(worst.get(stage)) for stage in stages)])
        parts += [f"Environment: {environment}.", "\n".join("| " + " | ".join(row) + " |" for row in rows)]
        told = [f"- {report.title}: {line}" for report in group for line in _told(report)]
        parts += ["\n".join(told)] if told else []
    if any("*" in report.environment for report in reports):
        parts.append("\\* in training mode, where it differs.")
    return "\n\n".join(parts) + "\n"


def _told(report: Report) -> list[str]:
    """What a table of errors does not say: why, and what was not compared."""
    lines = [f"{fault.sentence()}." for fault in report.faults]
    lines += [f"{row.stage}, `{row.name}`: {row.note}." for row in report.worst().values() if row.note and not row.ok]
    if report.coverage is not None and report.coverage.left_out:
        lines.append(f"{report.coverage.words()}.")
    return lines


def _cell(row: Row | None) -> str:
    if row is None:
        return ""
    return f"{row.error:.1e}" if row.ok else f"**{row.error:.1e}**"


def to_json(reports: Iterable[Report]) -> str:
    """JSON text of reports."""
    return json.dumps([report.to_dict() for report in reports], indent=1) + "\n"


def to_html(reports: Iterable[Report]) -> str:
    """One page that stands alone: the faults, the first layer that diverges, both sides' layers beside each other."""
    return _PAGE.replace("{style}", _STYLE).replace("{body}", "\n".join(_section(report) for report in reports))


def to_fragment(report: Report) -> str:
    """The same of one report, to be shown within another page: a notebook's."""
    return f"{_STYLE}<div class='parity'>{_section(report)}</div>"


def _section(report: Report) -> str:
    environment = ", ".join(
        f"{html.escape(name)} {html.escape(str(value))}" for name, value in report.environment.items()
    )
    verdict = html.escape(report.verdict().partition("\n")[0])
    parts = [
        f"<h2>{html.escape(report.title)}</h2>",
        f"<p class='{'ok' if report.ok else 'bad'}'>{verdict}</p>",
        *(f"<p class='fault'>{_code(fault.sentence())}</p>" for fault in report.faults),
        *(f"<p class='note'>{html.escape(warning)}</p>" for warning in report.warnings),
        f"<p class='env'>{environment}</p>",
    ]
    if report.picture is not None:
        parts.append(f"<p>{html.escape(report.picture.name)}, {report.picture.plane} in JAX's order of axes:</p>")
        parts.append(to_svg(report.picture))
    parts += _table(report.rows)
    if report.coverage is not None:
        coverage = report.coverage
        parts.append(f"<p>{html.escape(coverage.words(most=0).partition(' (')[0])}</p>")
        for side, names in (
            ("PyTorch alone", coverage.alone_in_torch),
            ("JAX alone", coverage.alone_in_jax),
            ("not seen to be called in JAX", coverage.hidden),
        ):
            parts += [f"<p class='env'>{side}: {html.escape(', '.join(names))}</p>"] if names else []
    return "\n".join(parts)


def _table(rows: Sequence[Row]) -> list[str]:
    """Both sides beside each other; how far each is from float64, where that was computed."""
    oracle = any(row.jax_error is not None for row in rows)
    titles = ["stage", "PyTorch", "JAX", "error", "allowed", "1e-18 … 1", *_ORACLE * oracle, "note"]
    heading = "".join(f"<th>{title}</th>" for title in titles)
    return [
        f"<div class='wide'><table><tr>{heading}</tr>",
        *(_html_row(row, oracle=oracle) for row in rows),
        "</table></div>",
    ]


_ORACLE = ("jax vs float64", "torch vs float64")


def _html_row(row: Row, *, oracle: bool) -> str:
    bar, mark = _position(row.error), _position(row.tolerance)
    chart = (
        f"<svg width='240' height='12'><rect width='{bar:.0f}' height='12' class='{'ok' if row.ok else 'bad'}'/>"
        f"<line x1='{mark:.0f}' x2='{mark:.0f}' y1='0' y2='12'/></svg>"
    )
    their_shape = row.shape if row.their_shape is None else row.their_shape
    cells = [
        row.stage,
        f"{row.partner or row.name} {_shape(their_shape)}",
        f"{row.name} {_shape(row.shape)}",
        f"{row.error:.2e}",
        f"{row.tolerance:.0e}",
    ]
    text = "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + f"<td>{chart}</td>"
    if oracle:
        text += "".join(f"<td>{short(error)}</td>" for error in (row.jax_error, row.torch_error))
    note = html.escape("; ".join(part for part in (row.note, row.layout) if part))
    return f"<tr{'' if row.ok else ' class=bad'}>{text}<td class='env'>{note}</td></tr>"


def _code(sentence: str) -> str:
    """A sentence in which names stand between backticks."""
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", html.escape(sentence))


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _position(error: float) -> float:
    """Pixels from the left of a bar of 240: 1e-18 at the left end, 1 at the right."""
    return 240 * min(max((math.log10(max(error, 1e-18)) + 18) / 18, 0.0), 1.0) if math.isfinite(error) else 240.0


_STYLE = """<style>
.parity { font: 14px system-ui, sans-serif; color: #222 }
.parity table { border-collapse: collapse } .parity th { text-align: left }
.parity td, .parity th { padding: 1px 10px 1px 0; white-space: nowrap; text-align: left }
.parity td:nth-child(4), .parity td:nth-child(5), .parity td:nth-child(n+7) { font-family: monospace; text-align: right }
.parity div.wide { overflow-x: auto }
.parity p.ok { color: #17692c } .parity p.bad, .parity tr.bad td { color: #a11616; font-weight: 600 }
.parity .env, .parity tr td.env { color: #666; font: 400 12px system-ui, sans-serif }
.parity p.fault { margin: .4em 0; padding: .5em .8em; background: #fdf0ee; border-left: 4px solid #c0392b }
.parity p.note { color: #8a5a00 }
.parity svg { background: #f0f0f0 } .parity svg line { stroke: #222 }
.parity rect.ok { fill: #5b8fb9 } .parity rect.bad { fill: #c0392b }
.parity svg.heat { max-width: 100%; height: auto; background: none; margin: .5em 0 }
.parity svg.heat text { font: 12px system-ui, sans-serif }
</style>
"""
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width"><title>Parity report</title>
{style}</head><body style="margin: 2em"><div class="parity"><h1>Parity report</h1>
<p>error = max |jax - torch| / max |torch|. The bar is the error on a logarithmic scale, the black line what is allowed.</p>
{body}
</div></body></html>
"""
