"""How far ddpm_jax and its PyTorch twin may lie apart: the package's one table and measure, and the tests' one check."""

from typing import Any

import numpy as np

from ddpm_jax.verify.tolerances import TOLERANCES, relative_error, tolerance

__all__ = ["TOLERANCES", "WORST", "assert_close", "relative_error", "to_numpy", "tolerance"]

WORST: dict[tuple[str, str], tuple[float, str]] = {}
"""(quantity, dtype) -> the worst error that `assert_close` has met so far, and where."""


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
    error, allowed = relative_error(ours, reference), tolerance(quantity, dtype)
    WORST[quantity, dtype] = max(WORST.get((quantity, dtype), (0.0, "")), (error, name))
    assert error <= allowed, f"{what}: relative error {error:.3g} exceeds {allowed:g} ({dtype})"


def to_numpy(array: Any) -> np.ndarray:
    """A NumPy array of a torch tensor, a JAX array, or anything NumPy takes, dtype kept."""
    return np.asarray(array.detach().numpy() if hasattr(array, "detach") else array)
