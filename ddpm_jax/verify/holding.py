"""Two recordings held to each other, in NumPy alone: rows, coverage, and the faults, wherever the recordings come from."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ddpm_jax.errors import UserError
from ddpm_jax.paths import listed, loosely
from ddpm_jax.verify.faults import around, diagnose, differ
from ddpm_jax.verify.heat import Picture, picture_of
from ddpm_jax.verify.layouts import comparable
from ddpm_jax.verify.matching import Matched, match, paired
from ddpm_jax.verify.measure import LOW, Measure, precision_of
from ddpm_jax.verify.options import Options
from ddpm_jax.verify.recording import Arrays, Call, Recording
from ddpm_jax.verify.report import Coverage, Report, Row

WHOLE = "the whole"
"""What computes in float32 where no layer alone does."""

AFTER = "after float32"
"""How the note begins of what is held to float32's tolerance for the sake of something before it."""

DIGITS = ("bfloat16", "float16", "float32", "float64")
"""Floating-point dtypes, the coarsest first."""


ROUNDED = 1e-6
"""What is allowed between float64 runs of models that were made in float32: tables that they keep are rounded to it."""


def hold(
    ours: Recording,
    theirs: Recording,
    *,
    exact_ours: Recording | None = None,
    exact_theirs: Recording | None = None,
    names: Mapping[str, str] | None = None,
    layouts: Mapping[str, Any] | None = None,
    tolerances: Mapping[str, float] | None = None,
    ignore: Sequence[str] = (),
) -> Report:
    """The report of what two sides computed.

    ours, theirs: JAX's and PyTorch's recordings, or those of two machines. exact_ours, exact_theirs: the same in float64, which
    say which side is further off, and find what is smaller than float32's rounding. names, layouts, tolerances, ignore: as
    `Options` has them.

    Raises:
        UserError: an entry of names that fits nothing, or outputs of another structure (both drawn).
    """
    given = Options(names=names or {}, layouts=layouts or {}, tolerances=tolerances or {}, ignore=ignore)
    report, matched, measure = rows_held(ours, theirs, exact_theirs, given)
    if not report.ok:
        report.faults = diagnose(ours, theirs, matched, measure)
    if exact_ours is not None and exact_theirs is not None:
        report.hidden, between = hidden(report, exact_ours, exact_theirs, given)
        sharp = replace(measure, dtype="float64", tolerances={})
        if not report.ok:
            report.faults = diagnose(exact_ours, exact_theirs, between, sharp) or report.faults
    return report


def rows_held(
    ours: Recording, theirs: Recording, exact: Recording | None, options: Options, *, strict: bool = False
) -> tuple[Report, Matched, Measure]:
    """The report without its faults, the calls side by side, and how they were measured.

    exact: PyTorch's in float64. strict: as `Measure` has it.
    """
    measure = replace(measure_of(ours, theirs, options), strict=strict)
    matched = match(ours, theirs, options.names, options.ignore)
    oracle = exact.by_name() if exact else {}
    known = dict(theirs.environment) | dict(ours.environment)
    report = Report("", {name: value for name, value in known.items() if name != "precision"})
    layers, coarse = _layers(ours, theirs, matched, oracle, measure)
    rows = _outputs(ours, theirs, exact, measure)
    if coarse is None and measure.dtype == "float64":
        outside = {side.environment.get("precision") for side in (ours, theirs)}
        single = "float32" in {*outside, *map(precision_of, theirs.outputs.values())}
        coarse = WHOLE if single and all(row.ok for row in layers) else None
    rows += _statistics(ours, theirs, exact, measure, options.ignore)
    rows += _gradients(ours, theirs, exact, measure, options.ignore)
    rows = [_after(row, coarse, measure) for row in rows]
    if coarse and any(row.note.startswith(AFTER) for row in rows + layers):
        report.warnings.append(
            f"`{coarse}` computes in float32: it, and what comes of it, is held to float32's tolerance."
        )
    report.rows = layers + rows
    report.coverage = coverage_of(ours, theirs, matched)
    report.picture = _picture(report, matched, measure)
    return report, matched, measure


def hidden(
    report: Report, exact_ours: Recording, exact_theirs: Recording, options: Options
) -> tuple[Row | None, Matched]:
    """The first quantity that agrees in the report and differs between both sides' float64 runs; and their calls side by side."""
    sharp = replace(measure_of(exact_ours, exact_theirs, options), dtype="float64", tolerances={"*": ROUNDED})
    between = match(exact_ours, exact_theirs, options.names, options.ignore)
    found, coarse = _layers(exact_ours, exact_theirs, between, {}, sharp)
    found += [_after(row, coarse, sharp) for row in _outputs(exact_ours, exact_theirs, None, sharp)]
    return next((row for row in found if not row.ok), None) if report.ok else None, between


def agreeing(ours: Recording, theirs: Recording, options: Options) -> tuple[int, bool]:
    """How many layers agree before the first that does not, and whether everything does."""
    measure = measure_of(ours, theirs, options)
    rows, coarse = _layers(ours, theirs, match(ours, theirs, options.names, options.ignore), {}, measure)
    rows += [_after(row, coarse, measure) for row in _outputs(ours, theirs, None, measure)]
    first = next((index for index, row in enumerate(rows) if not row.ok), len(rows))
    return first, first == len(rows)


def measure_of(ours: Recording, theirs: Recording, options: Options) -> Measure:
    """How two recordings are held to each other: by their dtype, the device, and what the options say."""
    dtype = str(theirs.environment.get("dtype", ours.environment.get("dtype", "float64")))
    # two machines of one framework have one order of axes
    layouts = {"*": None} if ours.side == theirs.side and not options.layouts else options.layouts
    device = re.search(r"\b(gpu|tpu)\b", str(ours.environment.get("device", "")))
    return Measure(dtype, device[1] if device else "cpu", options.tolerances, layouts)


def coverage_of(ours: Recording, theirs: Recording, matched: Matched) -> Coverage:
    """What was compared, and what was not: called on one side only, or held by a side and never seen to be called."""
    seen = {call.path for call in ours.calls}
    seen |= {parent for path in seen for parent in _parents(path)}
    seen_in_torch = {loosely(call.path) for call in theirs.calls}
    hidden = [path for path in ours.layers if path not in seen and loosely(path) in seen_in_torch]
    return Coverage(len(matched.pairs), tuple(matched.alone_in_jax), tuple(matched.alone_in_torch), tuple(hidden))


def _picture(report: Report, matched: Matched, measure: Measure) -> Picture | None:
    """Of the first layer that diverges, if one does."""
    first = next((row for row in report.rows if row.stage == "layer" and not row.ok), None)
    for ours, theirs in matched.pairs:
        if first is not None and first.name.partition("[")[0] == ours.name:
            for mine, their in paired(list(ours.outputs), list(theirs.outputs)):
                difference = differ(ours.name, ours.outputs[mine], theirs.outputs[their], measure)
                if difference is not None:
                    return picture_of(ours.name, difference[1], difference[2])
    return None


def _parents(path: str) -> list[str]:
    parts = path.split(".")
    return [".".join(parts[:i]) for i in range(1, len(parts))]


def _layers(
    our_recording: Recording, their_recording: Recording, matched: Matched, oracle: Mapping[str, Call], measure: Measure
) -> tuple[list[Row], str | None]:
    """Rows of all layers, and the first that computes in float32 where all else is in float64."""
    rows: list[Row] = []
    coarse: str | None = None
    for ours, theirs in matched.pairs:
        exact = oracle[theirs.name].outputs if theirs.name in oracle else {}
        pairs = paired(list(ours.outputs), list(theirs.outputs))
        for mine, their in pairs:
            name = ours.name if len(pairs) == 1 else f"{ours.name}[{mine}]"
            row = measure.row(
                "layer", name, ours.outputs[mine], theirs.outputs[their], oracle=exact.get(their), free=True
            )
            row = replace(row, partner=theirs.name)
            if not row.ok:
                lows = {"JAX": lowest(ours, measure.dtype), "PyTorch": lowest(theirs, measure.dtype)}
                if not coarse and _fed_apart(ours, theirs, measure):
                    for call, recording in ((ours, our_recording), (theirs, their_recording)):
                        if "float32" in around(call, recording):
                            lows[recording.side] = "float32"
                row, coarse = _in_its_digits(row, lows, measure, coarse)
            rows.append(row)
    return rows, coarse


def _after(row: Row, coarse: str | None, measure: Measure) -> Row:
    """A row that is off for no other reason than that a layer before it computes in float32, held to float32's tolerance."""
    quantity = row.stage if row.stage in ("output", "statistics", "gradient") else "layer"
    allowed = measure.allowed(quantity, row.name, "float32")
    excused = coarse and (not measure.strict or coarse in (row.name, WHOLE))
    if row.ok or not excused or row.error > allowed:
        return row
    return replace(row, tolerance=allowed, note=f"{AFTER} in {coarse}")


def _fed_apart(ours: Call, theirs: Call, measure: Measure) -> bool:
    """Whether a layer is not fed alike."""
    pairs = paired(list(ours.inputs), list(theirs.inputs))
    found = [(ours.inputs[mine], theirs.inputs[their]) for mine, their in pairs]
    return any(comparable(b, a) and differ(ours.name, a, b, measure) is not None for a, b in found)


def _in_its_digits(row: Row, lows: Mapping[str, str], measure: Measure, coarse: str | None) -> tuple[Row, str | None]:
    """A row that is off, held to what its layer's own dtype allows, or that of a layer before it; and the first such layer.

    lows: what either side computes in, or what feeds it is computed in.
    """
    single = [side for side, low in lows.items() if low == "float32"]
    if measure.dtype == "float64" and single and not coarse:
        found = _after(row, row.name, measure)
        if found.ok:
            return replace(found, note=f"{' and '.join(single)} computes in float32 here"), row.name
    if lows["JAX"] in LOW and lows["JAX"] == lows["PyTorch"]:
        return replace(
            row, tolerance=measure.allowed("layer", row.name, lows["JAX"]), note=f"both in {lows['JAX']}"
        ), coarse
    return _after(row, coarse, measure), coarse


def lowest(call: Call, dtype: str) -> str:
    """The dtype of the fewest digits that a call shows: in what it was seen to compute, in its outputs, or in what it was given."""
    found = [call.precision or dtype, dtype]
    found += [precision_of(array) for array in call.outputs.values()]
    found += [str(array.dtype) for array in (*call.inputs.values(), *call.outputs.values()) if array.dtype.kind == "f"]
    return min((one for one in found if one in DIGITS), key=DIGITS.index)


def _outputs(ours: Recording, theirs: Recording, exact: Recording | None, measure: Measure) -> list[Row]:
    pairs = paired(list(ours.outputs), list(theirs.outputs))
    if not pairs:
        drawn = [f"  {r.side}: {_drawn(r.outputs)}" for r in (ours, theirs)]
        raise UserError(
            "the two sides return different structures; adapt_output= makes one of the other:\n" + "\n".join(drawn)
        )
    rows = []
    for mine, their in pairs:
        name = "output" if len(pairs) == 1 else f"output {mine}"
        oracle = None if exact is None else exact.outputs.get(their)
        rows.append(measure.row("output", name, ours.outputs[mine], theirs.outputs[their], oracle=oracle, free=True))
    return rows


def _drawn(outputs: Arrays) -> str:
    return (
        ", ".join(f"{place or 'one array'} {array.dtype}{array.shape}" for place, array in outputs.items())
        or "no array"
    )


def _statistics(
    ours: Recording, theirs: Recording, exact: Recording | None, measure: Measure, ignore: Sequence[str]
) -> list[Row]:
    def spelt(arrays: Arrays) -> dict[str, str]:
        return {loosely(name): name for name in arrays}

    mine = spelt(ours.statistics)
    return [
        measure.row(
            "statistics",
            name,
            ours.statistics[mine[key]],
            theirs.statistics[name],
            oracle=exact.statistics.get(name) if exact else None,
        )
        for key, name in spelt(theirs.statistics).items()
        if key in mine and not listed(name, ignore)
    ]


def _gradients(
    ours: Recording, theirs: Recording, exact: Recording | None, measure: Measure, ignore: Sequence[str]
) -> list[Row]:
    rows = []
    largest = max((float(np.abs(grad).max(initial=0.0)) for grad in theirs.gradients.values()), default=0.0)
    for name, grad in theirs.gradients.items():
        if name not in ours.gradients or listed(name, ignore):
            continue
        oracle = exact.gradients.get(name) if exact else None
        # a gradient that is zero in exact arithmetic (a bias before a norm) holds nothing but rounding
        given: dict[str, Any] = {"oracle": oracle, "floor": largest / 100, "free": name.startswith("input ")}
        rows.append(measure.row("gradient", name, ours.gradients[name], grad, **given))
    return rows
