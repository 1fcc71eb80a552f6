"""How data becomes what the network sees, and back."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ddpm_jax.errors import NotFiniteError, UserError


@dataclass(frozen=True)
class Scaling:
    """x_0 = (data - mean) / std, and data = x_0 * std + mean."""

    mean: float
    """Mean of the data, in its own units."""
    std: float
    """Units of the data in one unit of x_0, positive."""

    def apply(self, values: np.ndarray) -> np.ndarray:
        """Data -> float32 x_0 of the same shape."""
        return (np.asarray(values, np.float32) - np.float32(self.mean)) / np.float32(self.std)

    def undo(self, x_0: Any) -> np.ndarray:
        """x_0 -> float32 data of the same shape."""
        return np.asarray(x_0, np.float32) * np.float32(self.std) + np.float32(self.mean)

    def to_images(self, x_0: Any) -> np.ndarray:
        """x_0 (..., H, W, C) -> uint8 pixels: the nearest of 0..255.

        Raises:
            NotFiniteError: there is NaN or infinity among them.
        """
        with np.errstate(over="ignore"):  # what is too large for float32 in units of pixels is white all the same
            return np.clip(np.rint(self.undo(_finite(x_0))), 0, 255).astype(np.uint8)


def stretched(x_0: Any) -> np.ndarray:
    """Images (..., H, W, C) of any values -> uint8: of each, the least value is black and the greatest white; one of a single value
    is black.

    What a plot of a single grey image shows, and all there is to show where a network does not see how bright an image is.

    Raises:
        NotFiniteError: there is NaN or infinity among them.
    """
    values = _finite(x_0).astype(np.float64)
    axes = (-3, -2, -1)
    least = values.min(axes, keepdims=True)
    span = values.max(axes, keepdims=True) - least
    return np.rint((values - least) * (255 / np.where(span > 0, span, 1))).astype(np.uint8)


def _finite(x_0: Any) -> np.ndarray:
    """Float32 values that a pixel can show; a cast would make black of NaN."""
    values = np.asarray(x_0, np.float32)
    if not (sound := np.isfinite(values)).all():
        bad = np.argwhere(~sound)[0]
        raise NotFiniteError(
            f"images must be finite to become pixels; {values.size - np.count_nonzero(sound)} of {values.size} values are NaN or "
            f"infinity, the first at {tuple(bad.tolist())}."
        )
    return values


IMAGE_SCALINGS = {"signed": Scaling(127.5, 127.5), "unit": Scaling(0.0, 255.0)}
"""Pixels 0..255 to [-1, 1], or to [0, 1]."""


ROUNDING = 1e-3
"""How far beyond [-1, 1] a value may lie and still count as rounded."""


def as_x_0(name: str, values: Any) -> np.ndarray:
    """Images or points as a network sees them: uint8 pixels scaled to [-1, 1], as the pipeline does; floats as they are.

    values: images (B, H, W, C) or (H, W, C), or points (B, 2) or (2,), which have no range.

    Raises:
        UserError: another type, or images of floats beyond [-1, 1]; says which range was found.
    """
    found = np.asarray(values)
    if found.dtype == np.uint8:
        return IMAGE_SCALINGS["signed"].apply(found)
    if found.dtype.kind not in "fV":  # V: bfloat16
        raise UserError(f"{name} must be uint8 pixels 0..255 or floats in [-1, 1]; got {found.dtype}.")
    if found.ndim > 2 and found.size:
        least, most = float(found.min()), float(found.max())
        if not (least >= -1 - ROUNDING and most <= 1 + ROUNDING):
            raise UserError(
                f"{name} must be uint8 pixels 0..255, or floats in [-1, 1] as the network sees them; got floats in "
                f"[{least:.4g}, {most:.4g}]."
            )
    return found
