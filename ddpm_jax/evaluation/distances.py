"""Distances between sets of images: Fréchet and kernel distance of their features, and to the nearest training image."""

import numpy as np

from ddpm_jax.errors import UserError


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """The Fréchet distance of Gaussians fitted to the features a (N, F) and b (M, F): 0 for equal ones, no upper bound.

    |mu_a - mu_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)), the squared 2-Wasserstein distance (Heusel et al. 2017, eq. 6), in float64,
    C with N - 1 below. The estimate is too large for few samples: some thousands each are usual, more than F advisable.

    Raises:
        UserError: a and b are not finite features of the same width, at least 2 rows each.
    """
    a, b = check_rows(a=a, b=b)
    return frechet_of_moments(a.mean(axis=0), np.cov(a, rowvar=False), b.mean(axis=0), np.cov(b, rowvar=False))


def frechet_of_moments(mean_a: np.ndarray, cov_a: np.ndarray, mean_b: np.ndarray, cov_b: np.ndarray) -> float:
    """The Fréchet distance of two Gaussians, from their means (F,) and covariances (F, F); computed in float64.

    The trace of (C_a C_b)^(1/2) is the sum of the square roots of that product's eigenvalues, so no root of a matrix that is not
    symmetric is needed: the product has the eigenvalues of the symmetric S C_b S with S = C_a^(1/2), which are real and, but for
    rounding, not negative. Singular covariances need no special case.
    """
    mean_a, mean_b = np.asarray(mean_a, np.float64), np.asarray(mean_b, np.float64)
    cov_a, cov_b = (np.atleast_2d(np.asarray(cov, np.float64)) for cov in (cov_a, cov_b))
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    products = np.linalg.eigvalsh(root @ cov_b @ root)
    trace = np.trace(cov_a) + np.trace(cov_b) - 2 * np.sqrt(np.maximum(products, 0)).sum()
    return float(np.square(mean_a - mean_b).sum() + max(trace, 0.0))


def kernel_distance(
    a: np.ndarray, b: np.ndarray, *, subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """The kernel distance (KID) of the features a (N, F) and b (M, F): mean and standard deviation over random subsets.

    The unbiased estimate of the squared maximum mean discrepancy with k(x, y) = (x . y / F + 1)^3 (Binkowski et al. 2018, sec. 4):
    about 0 (and also below) for features of one distribution. subset_size: rows drawn of each without replacement, at most the
    smaller of N and M: a larger one is lowered to that. The deviation is between single subsets; it is 0 where one subset holds
    all rows of both.

    Raises:
        UserError: a and b are not finite features of the same width, at least 2 rows each; subsets below 1, subset_size below 2.
    """
    a, b = check_rows(a=a, b=b)
    if subsets < 1:
        raise UserError(f"subsets must be at least 1; got {subsets}.")
    if subset_size < 2:
        raise UserError(f"subset_size must be at least 2; got {subset_size}.")
    size = min(subset_size, len(a), len(b))
    rng = np.random.default_rng(seed)
    found = [
        _polynomial_mmd(a[rng.choice(len(a), size, replace=False)], b[rng.choice(len(b), size, replace=False)])
        for _ in range(1 if size == len(a) == len(b) else subsets)
    ]
    return float(np.mean(found)), float(np.std(found))


def nearest_distances(samples: np.ndarray, training: np.ndarray, *, batch: int = 500) -> np.ndarray:
    """How far each sample is from the training image nearest to it: the first that `nearest` tells."""
    return nearest(samples, training, batch=batch)[0]


def nearest(samples: np.ndarray, training: np.ndarray, *, batch: int = 500) -> tuple[np.ndarray, np.ndarray]:
    """How far each sample is from the training image nearest to it, float32 (N,), 0 for a copy; and which that is, int (N,).

    samples: uint8 (N, H, W, C). training: uint8 (M, H, W, C). The distance is Euclidean over all pixels in [0, 1], so from 0 to
    sqrt(H W C). batch: images of each compared at a time, a matter of memory alone.

    Raises:
        UserError: the images are not uint8, not of one shape, or there are none; batch below 1.
    """
    for name, images in (("samples", samples), ("training", training)):
        if images.dtype != np.uint8 or images.ndim != 4 or images.size == 0:
            raise UserError(
                f"{name} must be uint8 of shape (N, H, W, C), N at least 1; got {images.dtype} of shape {images.shape}."
            )
    if samples.shape[1:] != training.shape[1:]:
        raise UserError(
            f"samples and training must be of one size; got {samples.shape[1:]} and {training.shape[1:]} (H, W, C)."
        )
    if batch < 1:
        raise UserError(f"batch must be at least 1; got {batch}.")
    least, which = np.full(len(samples), np.inf), np.zeros(len(samples), int)
    for start in range(0, len(training), batch):
        ours = _pixels(training[start : start + batch])
        for first in range(0, len(samples), batch):
            theirs = _pixels(samples[first : first + batch])
            # |x - y|^2 = |x|^2 + |y|^2 - 2 x . y: whole numbers, hence exact in float64, and a copy's distance is 0
            squares = _squares(theirs)[:, None] + _squares(ours) - 2 * (theirs @ ours.T)
            found, chunk = squares.argmin(axis=1), slice(first, first + batch)
            closer = squares.min(axis=1) < least[chunk]
            least[chunk] = np.where(closer, squares.min(axis=1), least[chunk])
            which[chunk] = np.where(closer, start + found, which[chunk])
    return (np.sqrt(least) / 255).astype(np.float32), which


def check_rows(**arrays: np.ndarray) -> list[np.ndarray]:
    """The named arrays as float64, each finite, (N, D) with N at least 2, and all of one D.

    Raises:
        UserError: they are not; names the array.
    """
    found = []
    arrays = {name: np.asarray(array) for name, array in arrays.items()}
    for name, array in arrays.items():
        if array.ndim != 2 or len(array) < 2 or array.shape[1] == 0:
            raise UserError(f"{name} must have the shape (N, D), N at least 2 and D at least 1; got {array.shape}.")
        rows = array.astype(np.float64)
        if not np.isfinite(rows).all():
            raise UserError(f"{name} must be finite; row {int(np.argmin(np.isfinite(rows).all(axis=1)))} is not.")
        found.append(rows)
    if len({rows.shape[1] for rows in found}) > 1:
        shapes = " and ".join(str(array.shape) for array in arrays.values())
        raise UserError(f"{' and '.join(arrays)} must have the same second dimension; got shapes {shapes}.")
    return found


def blocks(rows: np.ndarray, size: int) -> list[np.ndarray]:
    """The rows in turn, `size` at a time."""
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _polynomial_mmd(a: np.ndarray, b: np.ndarray) -> float:
    within_a, within_b, between = (_cubic(a, a), _cubic(b, b), _cubic(a, b))
    n = len(a)
    pairs = n * (n - 1)
    return float(
        (within_a.sum() - np.trace(within_a)) / pairs
        + (within_b.sum() - np.trace(within_b)) / pairs
        - 2 * between.mean()
    )


def _cubic(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    products = a @ b.T / a.shape[1] + 1
    return products * products * products  # a tenth of the time of ** 3


def _pixels(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1).astype(np.float64)


def _squares(rows: np.ndarray) -> np.ndarray:
    return np.square(rows).sum(axis=1)
