"""A picture of where two arrays differ: the plane of the largest difference, on both sides, and the difference."""

import itertools
from dataclasses import dataclass

import numpy as np

from ddpm_jax import display

SIDE = 32
"""Squares along a side, at most: larger planes are shown by the largest number of each block."""


@dataclass(frozen=True)
class Picture:
    """One plane of a layer's output on both sides."""

    name: str
    """The layer."""
    plane: str
    """Which plane: "[0, :, :, 3]"."""
    ours: np.ndarray
    theirs: np.ndarray

    __repr__ = display.of_fields


def picture_of(name: str, ours: np.ndarray, theirs: np.ndarray) -> Picture | None:
    """The plane with the largest difference of two arrays in the same order of axes; None where there is none to be shown.

    Of an image (B, H, W, C) it is one channel, of tokens (B, N, C) one example.
    """
    if ours.shape != theirs.shape or ours.size < 2 or ours.dtype.kind != "f":
        return None
    apart = np.nan_to_num(np.abs(ours - theirs), nan=np.inf)
    worst = np.unravel_index(int(np.argmax(apart)), ours.shape)
    rank = ours.ndim
    shown = {1: (0,), 2: (0, 1)}.get(rank, (rank - 3, rank - 2) if rank >= 4 else (1, 2))
    index = tuple(slice(None) if axis in shown else worst[axis] for axis in range(rank))
    words = ", ".join(":" if axis in shown else str(worst[axis]) for axis in range(rank))
    a, b = (np.atleast_2d(x[index]).astype(np.float64) for x in (ours, theirs))
    return Picture(name, f"[{words}]", a, b)


def to_svg(picture: Picture) -> str:
    """Three heat maps side by side: PyTorch's, JAX's on the same scale, and their difference on its own."""
    a, b, apart = (_small(x) for x in (picture.theirs, picture.ours, np.abs(picture.ours - picture.theirs)))
    size = float(np.nanmax(np.abs(np.where(np.isfinite(a), a, 0)), initial=1e-300))
    most = float(np.max(apart[np.isfinite(apart)], initial=0.0)) or 1.0
    rows, columns = a.shape
    square = max(4, 160 // max(rows, columns))
    wide, high = square * columns, square * rows
    gap = 190 - min(wide, 160)
    width, height = 3 * (wide + gap), high + 22
    parts = [f"<svg class='heat' viewBox='0 0 {width} {height}' width='{width}'>"]
    maps = (
        (f"PyTorch, ±{size:.3g}", a, lambda x: _diverging(x / size)),
        ("JAX, same scale", b, lambda x: _diverging(x / size)),
        (f"|JAX - PyTorch|, up to {most:.3g}", apart, lambda x: _rising(x / most)),
    )
    for index, (title, plane, colour) in enumerate(maps):
        left = index * (wide + gap)
        parts.append(f"<text x='{left}' y='12'>{title}</text>")
        for row in range(rows):
            for column in range(columns):
                at = f"x='{left + square * column}' y='{20 + square * row}'"
                parts.append(f"<rect {at} width='{square}' height='{square}' fill='{colour(plane[row, column])}'/>")
    return "".join([*parts, "</svg>"])


def _small(x: np.ndarray) -> np.ndarray:
    """At most SIDE numbers along either axis, each that of the largest size in its block."""
    for axis in range(2):
        edges = np.linspace(0, x.shape[axis], min(SIDE, x.shape[axis]) + 1).astype(int)
        blocks = [np.take(x, np.arange(low, high), axis) for low, high in itertools.pairwise(edges)]
        largest = [np.take_along_axis(b, np.abs(b).argmax(axis, keepdims=True), axis) for b in blocks]
        x = np.concatenate(largest, axis)
    return x


def _diverging(x: float) -> str:
    """Blue below zero, white at zero, red above; black for what is not finite."""
    if not np.isfinite(x):
        return "#000"
    fade = int(255 * (1 - min(abs(x), 1.0)))
    return f"#ff{fade:02x}{fade:02x}" if x > 0 else f"#{fade:02x}{fade:02x}ff"


def _rising(x: float) -> str:
    """White at zero, dark at one."""
    if not np.isfinite(x):
        return "#000"
    x = min(max(x, 0.0), 1.0)
    return f"#{int(255 - 110 * x):02x}{int(255 * (1 - x)):02x}{int(255 * (1 - x)):02x}"
