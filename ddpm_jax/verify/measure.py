"""One array held to another: the tolerance that applies, the layout that fits, and the row that says how far they are apart."""

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ddpm_jax.verify.layouts import Layout, decide, exchanged, of_order, repeated
from ddpm_jax.verify.report import Row
from ddpm_jax.verify.tolerances import relative_error, tolerance

EXACT_DTYPES = "biu"
"""Kinds of dtype whose numbers have to be the same."""

LOW = {"bfloat16": 2e-2, "float16": 3e-3}
"""What is allowed where both sides compute in so few digits."""


@dataclass(frozen=True)
class Measure:
    """How arrays of one comparison are held to each other."""

    dtype: str
    device: str = "cpu"
    tolerances: Mapping[str, float] = field(default_factory=dict)
    """Name of a layer or quantity, with wildcards -> largest relative error, before the table's."""
    layouts: Mapping[str, Any] = field(default_factory=dict)
    """Name of a layer, with wildcards -> order of PyTorch's axes in JAX, or None."""
    strict: bool = False
    """Whether float32 excuses those layers alone that compute in it, and not what comes of them."""

    def allowed(self, quantity: str, name: str, dtype: str | None = None) -> float:
        """The largest relative error of a quantity of that name."""
        for pattern, given in self.tolerances.items():
            if fnmatch.fnmatchcase(name.partition("#")[0], pattern) or pattern == quantity:
                return given
        dtype = dtype or self.dtype
        return LOW[dtype] if dtype in LOW else tolerance(quantity, dtype, self.device)

    def row(
        self,
        quantity: str,
        name: str,
        ours: Any,
        theirs: Any,
        *,
        stage: str | None = None,
        oracle: Any = None,
        floor: float = 0.0,
        free: bool = False,
    ) -> Row:
        """The row of two arrays.

        floor: least size of the reference that errors are relative to. free: theirs, and the oracle, may have another order of
        axes, which is found.
        """
        ours, theirs = np.asarray(ours), np.asarray(theirs)
        exact = None if oracle is None else np.asarray(oracle)
        if quantity == "layer":
            exact = None if exact is None else repeated(exact, ours)[0]
            theirs, ours = repeated(theirs, ours)
        whole = ours.dtype.kind in EXACT_DTYPES and theirs.dtype.kind in EXACT_DTYPES
        allowed = 0.0 if whole else self.allowed(quantity, name)
        stage, note, their_shape = stage or quantity, "", theirs.shape
        layout: Layout | None = None
        if free and theirs.shape and ours.shape:
            layout, undecided = self.layout(name, theirs, ours, allowed)
            if layout is not None and layout.moves:
                theirs = layout.to_jax(theirs)
                exact = None if exact is None else layout.to_jax(exact)
            note = "layout undecided: several fit, and in none do both agree" if undecided else ""
        if theirs.shape != ours.shape:
            note = f"shapes differ: JAX {ours.shape}, PyTorch {theirs.shape if not free else their_shape}"
            return Row(stage, name, ours.shape, float("inf"), allowed, note=note, their_shape=their_shape)
        if whole:
            ours, theirs = ours.astype(np.int64), theirs.astype(np.int64)
        error = relative_error(ours, theirs, floor)
        if error > allowed and free and (order := exchanged(theirs, ours, allowed)) is not None:
            note = f"they agree with PyTorch's axes in the order {order}"
        return Row(
            stage,
            name,
            ours.shape,
            error,
            allowed,
            jax_error=None if exact is None else relative_error(ours, exact, floor),
            torch_error=None if exact is None else relative_error(theirs, exact, floor),
            note=note,
            their_shape=their_shape,
            layout=layout.words() if layout is not None else "",
        )

    def layout(self, name: str, theirs: np.ndarray, ours: np.ndarray, allowed: float) -> tuple[Layout | None, bool]:
        """The layout that is given for a name, or that fits; and whether that is undecided."""
        for pattern, order in self.layouts.items():
            if fnmatch.fnmatchcase(name.partition("#")[0], pattern):
                return of_order(order, theirs.shape), False
        return decide(theirs, ours, allowed)


def precision_of(array: np.ndarray) -> str:
    """The fewest digits that hold an array exactly: bfloat16, float16, float32 or float64; float64 for what tells nothing."""
    if array.dtype.kind != "f" or array.size < 8 or not np.isfinite(array).all():
        return "float64"
    values = array.astype(np.float64)
    if np.array_equal(values, np.rint(values)):
        return "float64"
    bits = values.astype(np.float32).view(np.uint32)
    as_float32 = values.astype(np.float32).astype(np.float64)
    if not np.array_equal(as_float32, values):
        return "float64"
    if not (bits & 0xFFFF).any():
        return "bfloat16"
    with np.errstate(over="ignore"):
        as_float16 = values.astype(np.float16).astype(np.float64)
    return "float16" if np.array_equal(as_float16, values) else "float32"
