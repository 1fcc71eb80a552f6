"""Precision and recall of samples: which lie on the manifold of real features, and which of these on that of the samples."""

from typing import NamedTuple

import numpy as np

from ddpm_jax.errors import UserError
from ddpm_jax.evaluation.distances import blocks, check_rows

_BLOCK = 1000


class PrecisionRecall(NamedTuple):
    """Shares in 0..1."""

    precision: float
    """Share of the samples that lie on the real manifold: fidelity."""
    recall: float
    """Share of the real ones that lie on the samples' manifold: variety."""


def precision_recall(samples: np.ndarray, real: np.ndarray, *, neighbours: int = 3) -> PrecisionRecall:
    """Improved precision and recall (Kynkäänniemi et al. 2019, eqs. 1 and 2) of the features samples (N, F) and real (M, F).

    The manifold of a set is the union of balls around its points, each as large as the distance to the k-th nearest other point
    of the set, k = neighbours. Distances are Euclidean, in float64. Both figures depend on N and M, so that figures compare where
    the counts are equal.

    Raises:
        UserError: the features are not finite or not of one width, or there are no more than `neighbours` of either.
    """
    samples, real = check_rows(samples=samples, real=real)
    most = min(len(samples), len(real)) - 1
    if not 1 <= neighbours <= most:
        raise UserError(f"neighbours must lie in 1..{most}, one less than the smaller set; got {neighbours}.")
    return PrecisionRecall(_share(samples, real, neighbours), _share(real, samples, neighbours))


def _share(points: np.ndarray, centres: np.ndarray, neighbours: int) -> float:
    """The share of the points that lie in one ball or more."""
    # the nearest centre of a centre is itself, hence the index
    radii = np.concatenate(
        [np.partition(_squares(block, centres), neighbours, axis=1)[:, neighbours] for block in blocks(centres, _BLOCK)]
    )
    return float(
        np.mean(np.concatenate([(_squares(block, centres) <= radii).any(axis=1) for block in blocks(points, _BLOCK)]))
    )


def _squares(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Squared distances (len(a), len(b)), none negative."""
    return np.maximum(np.square(a).sum(axis=1)[:, None] + np.square(b).sum(axis=1) - 2 * (a @ b.T), 0)
