"""Points in the plane: the spiral and the grid of discs of system 4."""

from collections.abc import Callable

import numpy as np

from ddpm_jax.errors import UserError, meant

Points = np.ndarray
"""float64 (N, 2)."""


def spiral(u: np.ndarray, v: np.ndarray) -> Points:
    """A spiral of one and a half turns and some width: radius 0.65 u + 0.25 + 0.15 v, angle 3 pi u; u, v (N,) uniform in [0, 1)."""
    radius, angle = 0.65 * u + 0.25 + 0.15 * v, 3 * np.pi * u
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)


def disc_grid(u: np.ndarray, v: np.ndarray, q: np.ndarray, r: np.ndarray) -> Points:
    """Sixteen discs of radius 0.1, their centres a 4 x 4 grid over [-1, 1]^2.

    u, v: (N,) uniform in [0, 1): place in the disc. q, r: (N,) integers 0..3: column and row of its centre.
    """
    radius, angle = 0.1 * np.sqrt(v), 2 * np.pi * u
    centre = (np.stack([q, r], axis=-1) - 1.5) / 1.5
    return centre + np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)


def _random_spiral(rng: np.random.Generator, n: int) -> Points:
    return spiral(rng.random(n), rng.random(n))


def _random_disc_grid(rng: np.random.Generator, n: int) -> Points:
    return disc_grid(rng.random(n), rng.random(n), rng.integers(0, 4, n), rng.integers(0, 4, n))


SHAPES: dict[str, Callable[[np.random.Generator, int], Points]] = {
    "spiral": _random_spiral,
    "disc-grid": _random_disc_grid,
}


def points(shape: str, n: int, seed: int = 0) -> Points:
    """n random points of a shape, float64 (n, 2).

    Raises:
        UserError: an unknown shape, or n below 1.
    """
    if shape not in SHAPES:
        raise UserError(f"shape must be one of {', '.join(SHAPES)}; got {shape!r}.{meant(shape, SHAPES)}")
    if n < 1:
        raise UserError(f"n must be at least 1; got {n}.")
    return SHAPES[shape](np.random.default_rng(seed), n)


def statistics(x: Points) -> tuple[float, float]:
    """Mean and (unbiased) standard deviation over all coordinates: what system 4 standardises with."""
    return float(x.mean()), float(x.std(ddof=1))
