"""How far two frameworks may lie apart: one table by quantity, dtype and device, and the one measure of error."""

from typing import Any

import numpy as np

from ddpm_jax.errors import UserError

TOLERANCES: dict[tuple[str, str, str], float] = {
    # quantity       dtype      device     largest relative error
    ("schedule",   "float64", "cpu"): 1e-10,
    ("schedule",   "float32", "cpu"): 2e-5,
    ("process",    "float64", "cpu"): 1e-10,
    ("process",    "float32", "cpu"): 2e-5,
    ("layer",      "float64", "cpu"): 1e-10,
    ("layer",      "float32", "cpu"): 5e-5,  # inner layers may cancel more than the output does
    ("output",     "float64", "cpu"): 1e-10,
    ("output",     "float32", "cpu"): 2e-5,
    ("statistics", "float64", "cpu"): 1e-10,
    ("statistics", "float32", "cpu"): 2e-5,
    ("loss",       "float64", "cpu"): 1e-10,
    ("loss",       "float32", "cpu"): 2e-5,
    ("gradient",   "float64", "cpu"): 1e-10,
    ("gradient",   "float32", "cpu"): 1e-4,
    ("step",       "float64", "cpu"): 1e-10,
    ("step",       "float32", "cpu"): 2e-5,
    ("trajectory", "float64", "cpu"): 1e-10,
    ("trajectory", "float32", "cpu"): 1e-4,
    # Adam divides by the root of its second moment: where a gradient is all rounding, so is the update
    ("training",   "float64", "cpu"): 1e-8,
    ("training",   "float32", "cpu"): 1e-3,
    # GPUs add in another order, and convolutions may take algorithms that round more
    ("layer",      "float32", "gpu"): 2e-4,
    ("output",     "float32", "gpu"): 1e-4,
    ("gradient",   "float32", "gpu"): 5e-4,
    ("trajectory", "float32", "gpu"): 5e-4,
}  # fmt: skip
"""(quantity, dtype, device) -> largest allowed `relative_error`; a device without a row of its own takes the CPU's."""


def tolerance(quantity: str, dtype: str, device: str = "cpu") -> float:
    """The table's entry; device: cpu, gpu or tpu.

    Raises:
        UserError: no such quantity or dtype.
    """
    found = TOLERANCES.get((quantity, dtype, device), TOLERANCES.get((quantity, dtype, "cpu")))
    if found is None:
        known = sorted({key[0] for key in TOLERANCES})
        raise UserError(f"there is no tolerance for {quantity!r} in {dtype!r}; quantities: {', '.join(known)}.")
    return found


def relative_error(ours: Any, reference: Any, floor: float = 0.0) -> float:
    """max|ours - reference| / max(max|reference|, floor) over arrays of one shape.

    0 where both are all zero; infinite where only the reference is, where either is not finite, or of another shape.
    """
    ours, reference = np.asarray(ours), np.asarray(reference)
    if ours.shape != reference.shape:
        return float("inf")
    if not (np.isfinite(ours).all() and np.isfinite(reference).all()):
        return float("inf")
    apart = float(np.max(np.abs(ours - reference), initial=0.0))
    size = max(float(np.max(np.abs(reference), initial=0.0)), floor)
    return apart / size if size else (0.0 if apart == 0 else float("inf"))
