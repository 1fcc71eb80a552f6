"""Distances between two clouds of points: sliced Wasserstein, and maximum mean discrepancy."""

import numpy as np
from scipy.spatial.distance import cdist, pdist

from ddpm_jax.errors import UserError
from ddpm_jax.evaluation.distances import blocks, check_rows

_BLOCK = 512
_MEDIAN_OF = 2000


def sliced_wasserstein(a: np.ndarray, b: np.ndarray, *, num_projections: int = 512, seed: int = 0) -> float:
    """The sliced 2-Wasserstein distance between a and b, (N, D) points each, in the units of the points; at least 0.

    On a line, the optimal plan pairs the points in order, so that W_2^2 is the mean squared difference of the sorted ones; this
    is the root of its mean over random directions (Bonneel et al. 2015). Points shifted by v are |v| / sqrt(D) apart, nearly.

    Raises:
        UserError: a and b are not finite points (N, D) of the same dimension and count, or num_projections is below 1.
    """
    a, b = check_rows(a=a, b=b)
    if len(a) != len(b):
        raise UserError(f"a and b must hold equally many points; got {len(a)} and {len(b)}.")
    if num_projections < 1:
        raise UserError(f"num_projections must be at least 1; got {num_projections}.")
    directions = np.random.default_rng(seed).standard_normal((a.shape[1], num_projections))
    directions /= np.linalg.norm(directions, axis=0)
    total = 0.0
    for block in np.split(directions, range(64, num_projections, 64), axis=1):
        total += float(np.square(np.sort(a @ block, axis=0) - np.sort(b @ block, axis=0)).mean(axis=0).sum())
    return float(np.sqrt(total / num_projections))


def mmd(a: np.ndarray, b: np.ndarray, *, bandwidth: float | None = None) -> float:
    """The squared maximum mean discrepancy of a (N, D) and b (M, D): about 0 for samples of one distribution, at most 2.

    Kernel k(x, y) = exp(-|x - y|^2 / (2 bandwidth^2)); the unbiased estimate of MMD^2 (Gretton et al. 2012, eq. 3), which falls
    below 0 about as often as not where the distributions are equal. bandwidth: in the units of the points; None takes the median
    distance between 2,000 of the points of b, evenly spaced in it.

    Raises:
        UserError: a and b are not finite points of the same dimension, at least 2 each, or the bandwidth is not positive (as
            where more than half of the points of b are the same).
    """
    a, b = check_rows(a=a, b=b)
    if bandwidth is None:
        bandwidth = _median_distance(b)
        if bandwidth == 0:
            raise UserError("bandwidth must be given: the median distance between the points of b is 0.")
    if not (np.isfinite(bandwidth) and bandwidth > 0):
        raise UserError(f"bandwidth must be positive; got {bandwidth:g}.")
    n, m = len(a), len(b)
    a, b = (points / (np.sqrt(2) * bandwidth) for points in (a, b))
    within_a, within_b = _pair_sum(a) / (n * (n - 1)), _pair_sum(b) / (m * (m - 1))
    between = sum(_kernel(x, y).sum() for x in blocks(a, _BLOCK) for y in blocks(b, _BLOCK)) / (n * m)
    return float(within_a + within_b - 2 * between)


def _median_distance(points: np.ndarray) -> float:
    chosen = points[np.linspace(0, len(points) - 1, min(len(points), _MEDIAN_OF)).astype(int)]
    return float(np.median(pdist(chosen)))


def _pair_sum(points: np.ndarray) -> float:
    """The kernel over all ordered pairs of different points: twice what lies above the diagonal."""
    total, parts = 0.0, blocks(points, _BLOCK)
    for index, block in enumerate(parts):
        total += np.triu(_kernel(block, block), 1).sum()
        total += sum(_kernel(block, later).sum() for later in parts[index + 1 :])
    return 2 * total


def _kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    exponents = -cdist(a, b, "sqeuclidean")
    return np.exp(exponents, out=exponents)
