"""Columns of a table of images: which one holds them, which one their labels, and labels of any type as numbers and names."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ddpm_jax.errors import UserError, meant

MOST_CLASSES = 1_000_000


def numbered(
    values: np.ndarray, names: Sequence[str] | None, where: str, told: Callable[[int], str] = "image {}".format
) -> tuple[np.ndarray, tuple[str, ...]]:
    """A column of labels as numbers from 0, int32 (N,), and the names of the classes.

    Integers are those numbers, named by `names` or else "0", "1", ..., true and false 1 and 0; text is a class's name, the classes
    in the order of the sorted names.

    Args:
        values: (N,), N >= 1.
        names: of the classes; None: nothing names them.
        where: the column is, in messages.
        told: a position -> the element there, in messages.

    Raises:
        UserError: another type, or an integer that is none of the classes.
    """
    if values.dtype.kind == "U":
        found, labels = np.unique(values, return_inverse=True)
        return labels.astype(np.int32), tuple(map(str, found))
    if values.dtype.kind == "b":
        return values.astype(np.int32), ("false", "true")
    if values.dtype.kind not in "iu":
        raise UserError(f"{where} must be integers, true or false, or text; got {values.dtype}.")
    limit = MOST_CLASSES if names is None else len(names)
    outside = np.flatnonzero((values < 0) | (values >= limit))
    if outside.size:
        first = int(outside[0])
        raise UserError(
            f"{where} must lie in 0..{limit - 1}{'' if names is None else ', one for each of its class names'}; "
            f"label {values[first]} of {told(first)} does not."
        )
    return values.astype(np.int32), tuple(map(str, range(int(values.max()) + 1) if names is None else names))


def chosen(label: str, columns: Mapping[str, Any], where: str) -> str:
    """The column of labels that was asked for.

    columns: those that may hold labels, by name, each with its type.

    Raises:
        UserError: it is none of them (lists them).
    """
    if label in columns:
        return label
    raise UserError(
        f"{where}: data.label = {label!r} is no column of labels there; it has {listed(columns) or 'none'}.{meant(label, columns)}"
    )


def listed(columns: Mapping[str, Any]) -> str:
    """Columns in a message: "label (ClassLabel), width (int64)"."""
    return ", ".join(f"{name} ({kind})" for name, kind in columns.items())
