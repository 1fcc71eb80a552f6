"""ddpm_jax.evaluation.distances held to closed forms, SciPy and scikit-learn."""

import numpy as np
import pytest
from scipy.linalg import sqrtm
from sklearn.metrics.pairwise import polynomial_kernel
from sklearn.neighbors import NearestNeighbors

from ddpm_jax.errors import UserError
from ddpm_jax.evaluation.distances import frechet_distance, frechet_of_moments, kernel_distance, nearest_distances


def features(seed, count, dim):
    """Correlated, and all non-negative as a network's are."""
    rng = np.random.default_rng(seed)
    return np.maximum(rng.standard_normal((count, dim)) @ rng.standard_normal((dim, dim)) + rng.random(dim), 0)


def with_moments(mean, cov, count=400):
    """Rows whose sample mean and covariance are exactly these."""
    x = np.random.default_rng(0).standard_normal((count, len(mean)))
    x -= x.mean(axis=0)
    x = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T
    return x @ np.linalg.cholesky(cov).T + mean


@pytest.mark.parametrize("dim", [1, 2, 20])
def test_frechet_is_that_of_scipys_square_root(dim):
    a, b = features(1, 300, dim), features(2, 250, dim)
    cov_a, cov_b = np.atleast_2d(np.cov(a.T)), np.atleast_2d(np.cov(b.T))
    root = np.atleast_2d(sqrtm(cov_a @ cov_b)).real
    expected = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(cov_a + cov_b - 2 * root)
    assert frechet_distance(a.astype(np.float32).astype(float), b) == pytest.approx(expected, rel=1e-5)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-9)


def test_frechet_of_gaussians():
    """Covariances that commute: |m|^2 plus the squared differences of the standard deviations along the common axes."""
    turn = np.linalg.qr(np.random.default_rng(3).standard_normal((3, 3)))[0]
    deviations = np.array([1.0, 2.0, 0.5]), np.array([3.0, 1.0, 0.5])
    a, b = (
        with_moments(mean, turn @ np.diag(d**2) @ turn.T)
        for mean, d in zip(([0.0, 0, 0], [1.0, -2, 2]), deviations, strict=True)
    )
    assert frechet_distance(a, b) == pytest.approx(9 + 4 + 1 + 0, rel=1e-9)


def test_frechet_of_moments():
    """Without samples: covariances that do not commute, by SciPy's root; in one dimension, means and deviations apart."""
    rng = np.random.default_rng(5)
    mean_a, mean_b = rng.normal(size=(2, 30))
    cov_a, cov_b = (m @ m.T for m in rng.normal(size=(2, 30, 40)))
    expected = np.sum((mean_a - mean_b) ** 2) + np.trace(cov_a + cov_b - 2 * sqrtm(cov_a @ cov_b).real)
    assert frechet_of_moments(mean_a, cov_a, mean_b, cov_b) == pytest.approx(expected, rel=1e-9)
    assert frechet_of_moments(mean_a, cov_a, mean_a, cov_a) == pytest.approx(0, abs=1e-9 * np.trace(cov_a))
    one, two = (np.array([1.0]), np.array([[4.0]])), (np.array([3.0]), np.array([[25.0]]))
    assert frechet_of_moments(*one, *two) == pytest.approx(4 + 9)


def test_frechet_where_the_covariance_is_singular():
    """Fewer rows than columns and columns that are always 0: finite; a shift adds its square alone, equal sets are 0 apart."""
    a = np.pad(features(4, 10, 20), ((0, 0), (0, 3)))
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-5 * np.square(a).sum(axis=1).mean())
    assert frechet_distance(a, a + 2) == pytest.approx(4 * 23, rel=1e-5)


def test_kernel_distance_is_that_of_scikit_learns_kernel():
    """One subset that holds everything, each pair of different rows named once."""
    a, b = features(5, 60, 8), features(6, 60, 8)
    kernels = [polynomial_kernel(x, y, degree=3, gamma=1 / 8, coef0=1) for x, y in ((a, a), (b, b), (a, b))]
    off = ~np.eye(60, dtype=bool)
    expected = kernels[0][off].mean() + kernels[1][off].mean() - 2 * kernels[2].mean()
    mean, deviation = kernel_distance(a, b)
    assert mean == pytest.approx(expected, rel=1e-9) and deviation == 0


def test_kernel_distance_over_subsets():
    """The mean over subsets is near the value of the whole; subsets of one distribution average to 0, and scatter."""
    a, b = features(5, 600, 8), features(6, 600, 8)
    whole, _ = kernel_distance(a, b)
    mean, deviation = kernel_distance(a, b, subset_size=100, subsets=100)
    assert deviation > 0 and abs(mean - whole) < 4 * deviation / 10
    same, scatter = kernel_distance(a[:300], a[300:], subset_size=50, subsets=200, seed=1)
    assert abs(same) < 4 * scatter / np.sqrt(200) + abs(kernel_distance(a[:300], a[300:])[0])
    assert kernel_distance(a, b, subset_size=100, seed=1) != kernel_distance(a, b, subset_size=100, seed=2)


def test_a_subset_is_no_larger_than_the_smaller_set():
    """20 rows against 60: all 20 are in each subset, and 20 of the 60."""
    a, b = features(5, 60, 8), features(6, 20, 8)
    assert kernel_distance(a, b, subset_size=1000) == kernel_distance(a, b, subset_size=20)
    assert kernel_distance(a, b)[1] > 0


@pytest.mark.parametrize("batch", [7, 500])
def test_nearest_is_that_of_scikit_learn(batch):
    rng = np.random.default_rng(7)
    training = rng.integers(0, 256, (50, 6, 5, 3), np.uint8)
    samples = np.concatenate([rng.integers(0, 256, (20, 6, 5, 3), np.uint8), training[[31]]])
    rows = [x.reshape(len(x), -1) / 255 for x in (samples, training)]
    expected = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(rows[1]).kneighbors(rows[0])[0][:, 0]
    found = nearest_distances(samples, training, batch=batch)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[:20], expected[:20], rtol=1e-6)
    assert found[20] == 0


def test_nearest_of_one_pixel():
    """Pixels are counted in [0, 1]: black to white is 1, and sqrt(4) over four of them."""
    white, black = np.full((1, 2, 2, 1), 255, np.uint8), np.zeros((2, 2, 2, 1), np.uint8)
    black[0, 0, 0] = 51
    assert nearest_distances(black, black[1:]).tolist() == pytest.approx([0.2, 0])
    assert nearest_distances(white, black[1:]).tolist() == [2]


@pytest.mark.parametrize("metric", [frechet_distance, kernel_distance])
def test_features_that_are_refused(metric):
    good = features(1, 5, 3)
    with pytest.raises(UserError, match=r"a must have the shape \(N, D\), N at least 2.*got \(1, 3\)"):
        metric(good[:1], good)
    with pytest.raises(UserError, match=r"b must have the shape.*got \(5, 3, 1\)"):
        metric(good, good[:, :, None])
    with pytest.raises(UserError, match=r"same second dimension; got shapes \(5, 3\) and \(5, 2\)"):
        metric(good, good[:, :2])
    with pytest.raises(UserError, match="b must be finite; row 0 is not"):
        metric(good, np.where(np.arange(3) == 1, np.nan, good))


def test_options_that_are_refused():
    good = features(1, 5, 3)
    with pytest.raises(UserError, match="subsets must be at least 1; got 0"):
        kernel_distance(good, good, subsets=0)
    with pytest.raises(UserError, match="subset_size must be at least 2; got 1"):
        kernel_distance(good, good, subset_size=1)


def test_images_that_are_refused():
    good = np.zeros((3, 4, 4, 1), np.uint8)
    with pytest.raises(UserError, match=r"samples must be uint8 of shape.*got float32 of shape \(3, 4, 4, 1\)"):
        nearest_distances(good.astype(np.float32), good)
    with pytest.raises(UserError, match=r"training must be uint8.*N at least 1; got uint8 of shape \(0, 4, 4, 1\)"):
        nearest_distances(good, good[:0])
    with pytest.raises(UserError, match=r"one size; got \(4, 4, 1\) and \(2, 4, 1\)"):
        nearest_distances(good, good[:, :2])
    with pytest.raises(UserError, match="batch must be at least 1; got 0"):
        nearest_distances(good, good, batch=0)
