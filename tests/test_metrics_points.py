"""ddpm_jax.evaluation.points held to closed forms and to scikit-learn's kernel."""

import numpy as np
import pytest
from sklearn.metrics.pairwise import euclidean_distances, rbf_kernel

from ddpm_jax.errors import UserError
from ddpm_jax.evaluation.points import mmd, sliced_wasserstein


@pytest.fixture
def points():
    """(a, b): two clouds in the plane, 150 and 200 points."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((150, 2)), rng.standard_normal((200, 2)) * (1.5, 0.5) + (0.7, 0)


def test_wasserstein_on_a_line():
    """One dimension has one direction: the root mean square difference of what is sorted, however it comes."""
    a, b = np.array([[3.0], [1.0], [2.0]]), np.array([[0.0], [5.0], [2.0]])
    expected = np.sqrt((1 + 0 + 4) / 3)
    assert sliced_wasserstein(a, b) == pytest.approx(expected, rel=1e-12)
    assert sliced_wasserstein(a[::-1], b, num_projections=3, seed=8) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("dim", [2, 5])
def test_wasserstein_of_a_shift(points, dim):
    """A shift by v moves each projection by u . v, whose mean square over directions u is |v|^2 / D."""
    a = np.random.default_rng(1).standard_normal((100, dim))
    v = np.arange(1.0, dim + 1)
    found = sliced_wasserstein(a, a + v, num_projections=20_000)
    assert found == pytest.approx(np.linalg.norm(v) / np.sqrt(dim), rel=0.02)


def test_wasserstein_of_a_scaling():
    """3 a against a: each projection is scaled, so the distance is 2 rms(a) / sqrt(D)."""
    a = np.random.default_rng(2).standard_normal((500, 3))
    found = sliced_wasserstein(a, 3 * a, num_projections=20_000)
    assert found == pytest.approx(2 * np.sqrt(np.square(a).sum(axis=1).mean() / 3), rel=0.02)


def test_wasserstein_of_the_same_points(points):
    a, _ = points
    assert sliced_wasserstein(a, a[::-1]) == 0
    assert sliced_wasserstein(a, a + 1, num_projections=65) == sliced_wasserstein(a + 1, a, num_projections=65)


@pytest.mark.parametrize("bandwidth", [0.3, 2.0])
def test_mmd_is_that_of_scikit_learns_kernel(points, bandwidth):
    a, b = points
    gamma = 0.5 / bandwidth**2
    within_a, within_b, between = rbf_kernel(a, a, gamma), rbf_kernel(b, b, gamma), rbf_kernel(a, b, gamma)
    n, m = len(a), len(b)
    expected = (within_a.sum() - n) / (n * (n - 1)) + (within_b.sum() - m) / (m * (m - 1)) - 2 * between.mean()
    assert mmd(a, b, bandwidth=bandwidth) == pytest.approx(expected, rel=1e-9)
    assert mmd(a + 1e6, b + 1e6, bandwidth=bandwidth) == pytest.approx(expected, rel=1e-6)


def test_mmd_takes_the_median_distance(points):
    a, b = points
    median = np.median(euclidean_distances(b)[np.triu_indices(len(b), 1)])
    assert mmd(a, b) == pytest.approx(mmd(a, b, bandwidth=median), rel=1e-9)


def test_mmd_of_gaussians():
    """N(0, 1) and N(d, 1) with an RBF kernel of width s: 2 s / sqrt(s^2 + 2) (1 - exp(-d^2 / (2 (s^2 + 2)))) in one dimension."""
    rng = np.random.default_rng(3)
    a, b = rng.standard_normal((2600, 1)), rng.standard_normal((2500, 1)) + 1.5
    s, d = 0.8, 1.5
    expected = 2 * s / np.sqrt(s**2 + 2) * (1 - np.exp(-(d**2) / (2 * (s**2 + 2))))
    assert mmd(a, b, bandwidth=s) == pytest.approx(expected, rel=0.08)


def test_mmd_of_one_distribution_is_not_biased():
    """The mean of 200 estimates is 0 within four of its standard errors, and some of them are negative."""
    rng = np.random.default_rng(4)
    found = np.array([mmd(*rng.standard_normal((2, 50, 2)), bandwidth=1.0) for _ in range(200)])
    assert abs(found.mean()) < 4 * found.std() / np.sqrt(200)
    assert found.min() < 0 < found.max()


def test_mmd_of_far_points(points):
    """Far apart, nothing is between: what is left is the share of pairs within."""
    assert mmd(np.zeros((10, 2)), np.full((7, 2), 100.0), bandwidth=1.0) == pytest.approx(2.0, rel=1e-12)


@pytest.mark.parametrize("metric", [sliced_wasserstein, mmd])
@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (np.zeros((1, 2)), np.zeros((3, 2)), r"a must have the shape \(N, D\), N at least 2.*\(1, 2\)"),
        (np.zeros((3, 2)), np.zeros(3), r"b must have the shape.*\(3,\)"),
        (np.zeros((3, 0)), np.zeros((3, 0)), "D at least 1"),
        (np.zeros((3, 2)), np.zeros((3, 1)), r"a and b must have the same second dimension.*\(3, 2\) and \(3, 1\)"),
        (np.array([[0.0, 0], [0, np.nan], [0, 0]]), np.zeros((3, 2)), "a must be finite; row 1 is not"),
        (np.zeros((3, 2)), np.array([[0, 0], [0, 0], [np.inf, 0]]), "b must be finite; row 2 is not"),
    ],
)
def test_points_that_are_refused(metric, a, b, message):
    with pytest.raises(UserError, match=message):
        metric(a, b)


def test_options_that_are_refused(points):
    a, b = points
    with pytest.raises(UserError, match="equally many points; got 150 and 200"):
        sliced_wasserstein(a, b)
    with pytest.raises(UserError, match="num_projections must be at least 1; got 0"):
        sliced_wasserstein(a, a, num_projections=0)
    for bandwidth in (0.0, -1.0, float("nan")):
        with pytest.raises(UserError, match="bandwidth must be positive; got"):
            mmd(a, b, bandwidth=bandwidth)
    with pytest.raises(UserError, match="bandwidth must be given"):
        mmd(a, np.zeros((5, 2)))
