"""Where the fault lies: layers that differ though they were fed alike, and code between layers that feeds one otherwise."""

from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ddpm_jax import display
from ddpm_jax.paths import loosely
from ddpm_jax.verify.causes import cause_of, cause_of_statistics
from ddpm_jax.verify.evidence import Evidence
from ddpm_jax.verify.layouts import comparable, repeated
from ddpm_jax.verify.matching import Matched, paired
from ddpm_jax.verify.measure import LOW, Measure, precision_of
from ddpm_jax.verify.places import place_of
from ddpm_jax.verify.recording import Arrays, Call, Recording
from ddpm_jax.verify.report import Row
from ddpm_jax.verify.tolerances import relative_error

EXPLAINED = 8
"""Faults whose place and cause are looked for, at most."""

SAME = 1e-6
"""Relative error within which two differences are one."""

NEAR = 8
"""Calls before a fault whose outputs are tried as its source."""


@dataclass(frozen=True)
class Fault:
    """One place where the two sides compute different things of the same numbers."""

    kind: str
    """layer: it differs though fed alike. between, tap, output: what feeds it, or what it is, differs, though all before agrees.
    within: a block's own code after its last layer. statistics, gradient: those alone differ."""
    name: str
    """The layer, "output" for what the whole returns, or the parameter."""
    after: str
    """The last layer before it, for what lies between; empty where there is none."""
    error: float
    """max |jax - torch| / max |torch| there."""
    place: str = ""
    """Where in the array, or what takes one side's to the other's: "channel 3 of 8 alone", "JAX's is -1 times PyTorch's"."""
    cause: str = ""
    """The probable cause, from the table of known differences; empty where none fits."""

    __repr__ = display.of_fields

    def sentence(self) -> str:
        """One line for a reader."""
        after = f", after `{self.after}`," if self.after else ""
        said = {
            "layer": f"`{self.name}` differs though it is fed alike",
            "between": f"what feeds `{self.name}`{after} differs; `{self.name}` itself is not to blame",
            "tap": f"what is computed for `{self.name}`{after} differs",
            "output": f"what is returned{after} differs",
            "within": f"the code of `{self.name}`{after} differs",
            "statistics": f"the running statistics `{self.name}` differ though the layer's output agrees",
            "gradient": f"the gradient of `{self.name}` is the first to differ on the way back; all outputs agree",
        }[self.kind]
        told = "; ".join(part for part in (self.place, f"probable cause: {self.cause}" if self.cause else "") if part)
        return f"{said} (error {self.error:.1e})" + (f": {told}" if told else "")


@dataclass
class _Event:
    """Arrays to be held to each other at one moment: what feeds a call, or what it returned."""

    kind: str
    index: int
    ours: Call
    theirs: Call
    after: str

    @property
    def arrays(self) -> tuple[Arrays, Arrays]:
        """Ours, theirs."""
        if self.kind == "feed":
            return self.ours.inputs, self.theirs.inputs
        return self.ours.outputs, self.theirs.outputs


def diagnose(
    ours: Recording,
    theirs: Recording,
    matched: Matched,
    measure: Measure,
    fed: AbstractSet[str] | None = None,
) -> list[Fault]:
    """All faults that can be told from echoes, in the order of execution.

    fed: names of JAX's calls that were given their partner's inputs, whose outputs were replaced by the partner's as well; what
    feeds a call is then what would have. None: a free run, in which only what precedes the first fault is above suspicion.
    """
    pairs = matched.pairs
    found: list[Fault] = []
    apart: list[np.ndarray] = []
    clean = True
    for event in _events(pairs):
        is_fed = fed is not None and event.ours.name in fed
        clean = clean or is_fed
        difference = _difference(event, ours, theirs, measure)
        if difference is None or _is_echo(difference, apart):
            continue
        fault: Fault | None = None
        name, within = event.ours.name, [f for f in found if f.name.startswith(f"{event.ours.path}.")]
        if event.kind == "feed" or event.ours.kind == "tap" or not event.ours.inputs:
            kind = "between" if event.kind == "feed" else "tap"
            if clean:
                fault = Fault(kind, name, event.after, difference[0])
        else:
            inner = _last_within(pairs, event.index)
            alike = is_fed or _fed_alike(event, ours, theirs, measure)
            if alike and not (within and not is_fed):
                fault = Fault("within" if inner else "layer", name, inner, difference[0])
        clean = clean and is_fed  # what was not fed goes on with its own result
        if difference[1].shape == difference[2].shape:
            apart.append(difference[1] - difference[2])
        if fault is not None:
            evidence = _evidence(event, fault, difference, pairs, theirs, measure)
            found.append(_explained(fault, evidence, len(found)))
    found += _of_outputs(ours, theirs, pairs, measure, echoes=apart if clean else None)
    if not found:
        found += _of_statistics(ours, theirs, measure) or _of_gradients(ours, theirs, measure)
    return found


def _events(pairs: Sequence[tuple[Call, Call]]) -> Iterator[_Event]:
    """What feeds each call, before whatever lies within it, and what it returned, after."""
    keyed = []
    for index, (ours, theirs) in enumerate(pairs):
        first = _first_within(pairs, index)
        before = next((pairs[i][0].name for i in range(first - 1, -1, -1)), "")
        if ours.inputs and theirs.inputs:
            keyed.append(((first, 0, -index), _Event("feed", index, ours, theirs, before)))
        keyed.append(((index, 1, 0), _Event("out", index, ours, theirs, before)))
    for _, event in sorted(keyed, key=lambda pair: pair[0]):
        yield event


def _first_within(pairs: Sequence[tuple[Call, Call]], index: int) -> int:
    """The index of the first call within a call: those just before it whose paths begin with its own."""
    first, prefix = index, f"{pairs[index][0].path}."
    while first > 0 and pairs[first - 1][0].path.startswith(prefix):
        first -= 1
    return first


def _last_within(pairs: Sequence[tuple[Call, Call]], index: int) -> str:
    return pairs[index - 1][0].name if _first_within(pairs, index) < index else ""


Difference = tuple[float, np.ndarray, np.ndarray]
"""The error, JAX's array, and PyTorch's in the same order of axes."""


def _difference(event: _Event, ours: Recording, theirs: Recording, measure: Measure) -> Difference | None:
    """The first pair of arrays of an event that disagree beyond what their digits allow; None where all agree."""
    ours_arrays, their_arrays = event.arrays
    for mine, their in paired(list(ours_arrays), list(their_arrays)):
        a, b = ours_arrays[mine], their_arrays[their]
        if event.kind == "feed" and not comparable(b, a):
            continue
        found = differ(event.ours.name, a, b, measure)
        if found is None:
            continue
        single = measure.dtype == "float64" and found[0] <= measure.allowed("layer", event.ours.name, "float32")
        if single and "float32" in _digits(event, ours, theirs, b, a):
            continue
        low = precision_of(a)
        if event.kind == "out" and low == precision_of(b) and found[0] <= LOW.get(low, 0.0):
            continue
        return found
    return None


def _is_echo(difference: Difference, before: list[np.ndarray]) -> bool:
    """Whether two arrays differ by what others did before: the same array feeds several layers, or goes on in a residual."""
    _, ours, theirs = difference
    if ours.shape != theirs.shape or ours.dtype.kind != "f":
        return False
    return any(one.shape == ours.shape and relative_error(ours - theirs, one) <= SAME for one in before)


def differ(name: str, ours: np.ndarray, theirs: np.ndarray, measure: Measure) -> Difference | None:
    """The error and both arrays in one order of axes, where they disagree; None where they agree, or cannot be compared."""
    row = measure.row("layer", name, ours, theirs, free=True)
    if row.ok:
        return None
    theirs, ours = repeated(theirs, ours)
    layout, _ = measure.layout(name, theirs, ours, row.tolerance) if theirs.shape and ours.shape else (None, False)
    aligned = theirs if layout is None else layout.to_jax(theirs)
    return row.error, ours, aligned


def _digits(event: _Event, ours: Recording, theirs: Recording, *arrays: np.ndarray) -> set[str]:
    """The dtypes in which what an event is about was computed, as far as it shows."""
    found = {precision_of(array) for array in arrays} | {str(array.dtype) for array in arrays}
    if event.kind == "out":
        given = {str(array.dtype) for call in (event.ours, event.theirs) for array in call.inputs.values()}
        return found | given | {event.theirs.precision, event.ours.precision}
    return found | around(event.ours, ours) | around(event.theirs, theirs)


def around(call: Call, recording: Recording) -> set[str]:
    """The dtypes in which the code around a layer computes."""
    parents = [one.precision for one in recording.calls if call.path.startswith(f"{one.path}.")]
    return {*parents, str(recording.environment.get("precision", ""))}


def _fed_alike(event: _Event, ours: Recording, theirs: Recording, measure: Measure) -> bool:
    feed = replace_kind(event)
    return bool(event.ours.inputs) and bool(event.theirs.inputs) and _difference(feed, ours, theirs, measure) is None


def replace_kind(event: _Event) -> _Event:
    """The event of what feeds the same call."""
    return replace(event, kind="feed")


def _evidence(
    event: _Event,
    fault: Fault,
    difference: Difference,
    pairs: Sequence[tuple[Call, Call]],
    theirs: Recording,
    measure: Measure,
) -> Evidence:
    _, ours, aligned = difference
    sources: dict[str, np.ndarray] = {}
    if fault.kind == "layer":
        for mine, their in paired(list(event.ours.inputs), list(event.theirs.inputs)):
            sources[f"input {mine}"] = _aligned(
                event.ours.name, event.ours.inputs[mine], event.theirs.inputs[their], measure
            )
    else:
        end = event.index if fault.kind == "within" else _first_within(pairs, event.index)
        # of a block's own code, what it was given is a source as well
        path = f"{event.ours.path}." if fault.kind == "within" else event.ours.path
        sources = sources_before(pairs, end, path, theirs, measure)
    calls = (event.ours, event.theirs) if fault.kind == "layer" else None
    return Evidence(ours, aligned, sources, calls, exact=measure.dtype == "float64")


def sources_before(
    pairs: Sequence[tuple[Call, Call]], end: int, path: str, theirs: Recording, measure: Measure
) -> dict[str, np.ndarray]:
    """What code after pairs[end - 1] can have made its result of, the nearest first, in JAX's order of axes."""
    sources: dict[str, np.ndarray] = {}
    for ours, their in reversed(pairs[max(end - NEAR, 0) : end]):
        for mine, key in paired(list(ours.outputs), list(their.outputs)):
            sources[ours.name] = _aligned(ours.name, ours.outputs[mine], their.outputs[key], measure)
    for ours, their in reversed(pairs[max(end - NEAR, 0) : end]):
        for mine, key in paired(list(ours.inputs), list(their.inputs)):
            sources[f"input {mine} of {ours.name}"] = _aligned(ours.name, ours.inputs[mine], their.inputs[key], measure)
    for ours, their in pairs:
        if path.startswith(f"{ours.path}."):
            for mine, key in paired(list(ours.inputs), list(their.inputs)):
                sources[f"input {mine} of {ours.name}"] = _aligned(
                    ours.name, ours.inputs[mine], their.inputs[key], measure
                )
    for place, array in theirs.inputs.items():
        sources[f"input {place}"] = np.moveaxis(array, 1, -1) if array.ndim >= 4 else array
    return sources


def _aligned(name: str, ours: np.ndarray, theirs: np.ndarray, measure: Measure) -> np.ndarray:
    if not ours.shape or not theirs.shape:
        return theirs
    layout, _ = measure.layout(name, theirs, ours, measure.allowed("layer", name))
    return theirs if layout is None else layout.to_jax(theirs)


def _explained(fault: Fault, evidence: Evidence, number: int) -> Fault:
    if number >= EXPLAINED:
        return fault
    return replace(fault, place=place_of(evidence.ours, evidence.theirs), cause=cause_of(evidence))


def _of_outputs(
    ours: Recording,
    theirs: Recording,
    pairs: Sequence[tuple[Call, Call]],
    measure: Measure,
    *,
    echoes: list[np.ndarray] | None,
) -> list[Fault]:
    """The fault of what the whole returns; echoes: differences before it, None where nothing can be told."""
    if echoes is None:
        return []
    last = pairs[-1][0].name if pairs else ""
    for mine, their in paired(list(ours.outputs), list(theirs.outputs)):
        difference = differ("output", ours.outputs[mine], theirs.outputs[their], measure)
        if difference is not None and not _is_echo(difference, echoes):
            outside = {side.environment.get("precision") for side in (ours, theirs)}
            single = "float32" in {precision_of(theirs.outputs[their]), *outside}
            if single and difference[0] <= measure.allowed("output", "output", "float32"):
                continue
            sources = sources_before(pairs, len(pairs), "", theirs, measure)
            evidence = Evidence(difference[1], difference[2], sources, None, exact=measure.dtype == "float64")
            return [_explained(Fault("output", "output", last, difference[0]), evidence, 0)]
    return []


def _of_statistics(ours: Recording, theirs: Recording, measure: Measure) -> list[Fault]:
    mine = {loosely(name): array for name, array in ours.statistics.items()}
    calls = {call.path: call for call in theirs.calls}
    for name, array in theirs.statistics.items():
        key = loosely(name)
        if key not in mine:
            continue
        row: Row = measure.row("statistics", name, mine[key], array)
        if not row.ok:
            call = calls.get(name.rpartition(".")[0])
            cause = cause_of_statistics(name.rpartition(".")[2], mine[key], array, call) if call else ""
            return [Fault("statistics", name, "", row.error, place_of(mine[key], array), cause)]
    return []


def _of_gradients(ours: Recording, theirs: Recording, measure: Measure) -> list[Fault]:
    largest = max((float(np.abs(grad).max(initial=0.0)) for grad in theirs.gradients.values()), default=0.0)
    for name, grad in theirs.gradients.items():
        if name in ours.gradients:
            free: Mapping[str, Any] = {"free": name.startswith("input "), "floor": largest / 100}
            row = measure.row("gradient", name, ours.gradients[name], grad, **free)
            if not row.ok:
                return [Fault("gradient", name, "", row.error)]
    return []
