"""How far ddpm_jax and its PyTorch twin may lie apart: one table, one measure, one check."""

from typing import Any

import numpy as np

TOLERANCES: dict[tuple[str, str], float] = {
    # quantity       dtype        largest relative error
    ("schedule", "float64"): 1e-10,
    ("schedule", "float32"): 2e-5,
    ("process", "float64"): 1e-10,
    ("process", "float32"): 2e-5,
    ("output", "float64"): 1e-10,
    ("output", "float32"): 2e-5,
    ("gradient", "float64"): 1e-10,
    ("gradient", "float32"): 1e-4,
    ("step", "float64"): 1e-10,
    ("step", "float32"): 2e-5,
    ("trajectory", "float64"): 1e-10,
    ("trajectory", "float32"): 1e-4,
    # Adam divides by the root of its second moment: where a gradient is all rounding, so is the update
    ("training", "float64"): 1e-10,
    ("training", "float32"): 1e-3,
}
"""(quantity, dtype) -> largest allowed `relative_error`."""

WORST: dict[tuple[str, str], tuple[float, str]] = {}
"""(quantity, dtype) -> the worst error that `assert_close` has met so far, and where."""


def relative_error(ours: Any, reference: Any) -> float:
    """max|ours - reference| / max|reference|; 0 where both are all zero, infinite where only the reference is."""
    ours, reference = to_numpy(ours), to_numpy(reference)
    apart = float(np.max(np.abs(ours - reference), initial=0.0))
    size = float(np.max(np.abs(reference), initial=0.0))
    return apart / size if size else (0.0 if apart == 0 else float("inf"))


def assert_close(quantity: str, ours: Any, reference: Any, name: str = "") -> None:
    """Fail unless both are finite, of one shape and dtype, and within the table's tolerance for that dtype.

    name says which of many arrays of that quantity this is.
    """
    ours, reference = to_numpy(ours), to_numpy(reference)
    what = f"{quantity} {name}".strip()
    assert ours.shape == reference.shape, f"{what}: shape {ours.shape}, must be {reference.shape}"
    assert ours.dtype == reference.dtype, f"{what}: dtype {ours.dtype}, must be {reference.dtype}"
    for side, array in (("ours", ours), ("the reference", reference)):
        assert np.isfinite(array).all(), f"{what}: {side} is not finite"
    dtype = str(ours.dtype)
    error, tolerance = relative_error(ours, reference), TOLERANCES[quantity, dtype]
    WORST[quantity, dtype] = max(WORST.get((quantity, dtype), (0.0, "")), (error, name))
    assert error <= tolerance, f"{what}: relative error {error:.3g} exceeds {tolerance:g} ({dtype})"


def to_numpy(array: Any) -> np.ndarray:
    """A NumPy array of a torch tensor, a JAX array, or anything NumPy takes, dtype kept."""
    return np.asarray(array.detach().numpy() if hasattr(array, "detach") else array)
