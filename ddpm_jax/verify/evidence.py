"""What is known of a fault, and experiments on it: which two variants of a computation are the two sides'."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from ddpm_jax.verify.recording import Call
from ddpm_jax.verify.tolerances import relative_error

LARGEST = 300_000
"""Numbers of an array for which experiments are made."""

SAMPLE = 96
"""Numbers at which variants are tried before they are compared in full."""


@dataclass(frozen=True)
class Evidence:
    """What is known of a fault."""

    ours: np.ndarray
    theirs: np.ndarray
    """In JAX's order of axes, of the same shape or not."""
    sources: Mapping[str, np.ndarray]
    """What both were made of, the nearest first, in JAX's order of axes: the layer's inputs, or outputs of layers before."""
    calls: tuple[Call, Call] | None = None
    """JAX's and PyTorch's call, where it is a layer that differs."""
    exact: bool = True
    """Whether it was computed in float64."""

    @property
    def close(self) -> float:
        """Relative error within which an experiment is right."""
        return 1e-6 if self.exact else 2e-3

    @property
    def comparable(self) -> bool:
        """Whether the arrays are of one shape, finite, and small enough for experiments."""
        alike = self.ours.shape == self.theirs.shape and self.ours.dtype.kind == "f" and self.ours.ndim > 0
        return (
            alike
            and self.ours.size <= LARGEST
            and bool(np.isfinite(self.ours).all() and np.isfinite(self.theirs).all())
        )


def difference_of(evidence: Evidence) -> np.ndarray:
    """JAX's array less PyTorch's."""
    return evidence.ours.astype(np.float64) - evidence.theirs.astype(np.float64)


def shaped(evidence: Evidence, most: int = 6) -> Iterator[tuple[str, np.ndarray]]:
    """Sources of the shape of what differs, and sums of two, such as a residual."""
    shape = evidence.ours.shape
    alike = [
        (name, np.broadcast_to(x, shape))
        for name, x in evidence.sources.items()
        # one array for all examples is broadcast
        if x.dtype.kind == "f" and (x.shape == shape or (x.ndim > 1 and x.shape == shape[len(shape) - x.ndim :]))
    ]
    found = [(name, x.astype(np.float64)) for name, x in alike[:most]]
    sums = [(f"{a} + {b}", x + y) for (a, x), (b, y) in combinations(found[:3], 2)]
    yield from [*found, *sums][:most]


def pair_of(found: Mapping[str, np.ndarray], difference: np.ndarray, close: float) -> tuple[str, str] | None:
    """Names of the variants (JAX's, PyTorch's) whose difference is that of the two sides.

    What else both add, such as a residual or a bias, drops out of it.
    """
    if len(found) < 2:
        return None
    names = list(found)
    at = np.random.default_rng(0).choice(difference.size, min(SAMPLE, difference.size), replace=False)
    samples = np.stack([np.broadcast_to(found[name], difference.shape).ravel()[at] for name in names])
    wanted = difference.ravel()[at]
    size = max(float(np.abs(difference).max()), 1e-300)
    best: tuple[float, tuple[str, str]] | None = None
    for i, name in enumerate(names):
        errors = np.abs(samples[i] - samples - wanted).max(1) / size
        for j in np.flatnonzero(errors <= 10 * close):
            error = relative_error(found[name] - found[names[j]], difference)
            if i != j and error <= close and (best is None or error < best[0]):
                best = error, (name, names[j])
    return None if best is None else best[1]


def which(array: np.ndarray, found: Mapping[Any, np.ndarray], close: float) -> Any:
    """The name of the variant that an array is; None for none."""
    errors = {name: relative_error(array, x) for name, x in found.items() if x.shape == array.shape}
    name = min(errors, key=errors.__getitem__, default=None)
    return name if name is not None and errors[name] <= close else None


def told(words: str, pair: Sequence[str]) -> str:
    """What both variants are called, without what they have in common."""
    ours, theirs = (re.split(r", ", name) for name in pair)
    if len(ours) == len(theirs):
        kept = [(a, b) for a, b in zip(ours, theirs, strict=True) if a != b]
        ours, theirs = [a for a, _ in kept], [b for _, b in kept]
    else:
        common = [part for part in ours if part in theirs]
        ours = [part for part in ours if part not in common] or ["as usual"]
        theirs = [part for part in theirs if part not in common] or ["as usual"]
    return words.format(ours=", ".join(ours), theirs=", ".join(theirs))
