"""Two traces held to each other: what one machine, precision or version computed, to another's."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ddpm_jax.errors import UserError
from ddpm_jax.paths import renamed
from ddpm_jax.verify import traces
from ddpm_jax.verify.holding import DIGITS, hold
from ddpm_jax.verify.measure import precision_of
from ddpm_jax.verify.recording import Call, Recording
from ddpm_jax.verify.report import Report

SHOWN = 8
"""Layers that an error lists of either side."""
ALIKE = 0.02
"""How far inputs may lie apart, relative to their size, to be the same but for their precision."""


def compare_traces(
    ours: str | os.PathLike[str],
    theirs: str | os.PathLike[str],
    *,
    names: Mapping[str, str] | None = None,
    layouts: Mapping[str, Any] | None = None,
    tolerances: Mapping[str, float] | None = None,
    ignore: Sequence[str] = (),
) -> Report:
    """The report of two traces, of whichever frameworks; neither needs to be installed.

    ours, theirs: files that `record` wrote; the first is compared to the second, as closely as the coarser of the two
    allows. names, layouts, tolerances, ignore: as `compare`
    takes them.

    Raises:
        UserError: a trace is missing, cut short, damaged, of another version, of another model, or made with other inputs.
    """
    first, second = recording_of(ours), recording_of(theirs)
    _check_inputs(first, second, ours, theirs)
    _check_model(first, second, names or {})
    coarser = min(map(_digits, (first, second)), key=DIGITS.index)
    for recording in (first, second):
        recording.environment["dtype"] = coarser
    report = hold(first, second, names=names, layouts=layouts, tolerances=tolerances, ignore=ignore)
    report.title = f"{os.fspath(ours)} against {os.fspath(theirs)}"
    return report


def recording_of(path: str | os.PathLike[str]) -> Recording:
    """What a trace holds.

    Raises:
        UserError: it is missing, cut short, damaged, or of another version.
    """
    about, calls = traces.read(path)
    whole = calls.pop()
    found = [
        Call(call["name"], call["kind"], call["inputs"], call["outputs"], call["settings"], call["parameters"])
        for call in calls
    ]
    return Recording(
        about["side"],
        found,
        whole["inputs"],
        whole["outputs"],
        environment={**about["environment"], "model": about["model"]},
        layers=about["layers"],
    )


def _digits(recording: Recording) -> str:
    """The precision of a run: that of the finest of its outputs."""
    found = [precision_of(array) for array in recording.outputs.values()]
    return max(found, key=DIGITS.index, default="float64")


def _check_inputs(first: Recording, second: Recording, ours: Any, theirs: Any) -> None:
    """Raises a UserError where the two were not given the same numbers, in whatever order of axes."""
    lists = [list(recording.inputs.values()) for recording in (first, second)]
    shapes = [" ".join(str(array.shape) for array in arrays) for arrays in lists]
    if [array.size for array in lists[0]] != [array.size for array in lists[1]]:
        raise UserError(f"the traces were made with other inputs: {ours} with {shapes[0]}, {theirs} with {shapes[1]}.")
    for place, a, b in zip(first.inputs, *lists, strict=True):
        x, y = (np.sort(np.asarray(array, np.float64), axis=None) for array in (a, b))
        if np.abs(x - y).max(initial=0.0) > ALIKE * max(np.abs(y).max(initial=0.0), 1e-30):
            raise UserError(f"the traces were made with other inputs: their input {place!r} holds other numbers.")


def _check_model(first: Recording, second: Recording, names: Mapping[str, str]) -> None:
    """Raises a UserError where no layer of the one is a layer of the other."""
    ours = {renamed(call.path, names)[0] for call in first.calls} | {call.path for call in first.calls}
    theirs = {call.path for call in second.calls}
    if ours and theirs and not ours & theirs:
        lists = [", ".join(sorted(paths)[:SHOWN]) for paths in ({call.path for call in first.calls}, theirs)]
        raise UserError(
            f"the traces are of other models ({first.environment['model']}, {second.environment['model']}): no layer of the one is "
            f"a layer of the other. Layers: {lists[0]}; {lists[1]}. Give names= if they are called differently."
        )
