"""Points in the plane: closed forms, bounds, and what standardising undoes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddpm_jax.data import toy
from ddpm_jax.errors import UserError

unit = st.floats(0, 1, exclude_max=True)


def test_the_spiral_by_hand():
    u, v = np.array([0, 0, 1 / 3, 2 / 3]), np.array([0, 1, 0, 0.5])
    radius = 0.65 * u + 0.25 + 0.15 * v
    wanted = [[0.25, 0], [0.4, 0], [-radius[2], 0], [radius[3], 0]]  # angles 0, 0, pi, 2 pi
    np.testing.assert_allclose(toy.spiral(u, v), wanted, atol=1e-15)


def test_the_discs_by_hand():
    u, v = np.array([0, 0.25, 0.5, 0]), np.array([0, 1, 1, 0.25])
    q, r = np.array([0, 3, 1, 2]), np.array([3, 0, 1, 2])
    wanted = [[-1, 1], [1, -1 + 0.1], [-1 / 3 - 0.1, -1 / 3], [1 / 3 + 0.05, 1 / 3]]
    np.testing.assert_allclose(toy.disc_grid(u, v, q, r), wanted, atol=1e-15)


@given(u=unit, v=unit)
def test_the_spirals_radius(u, v):
    (point,) = toy.spiral(np.array([u]), np.array([v]))
    np.testing.assert_allclose(np.hypot(*point), 0.65 * u + 0.25 + 0.15 * v, rtol=1e-12)


@given(u=unit, v=unit, q=st.integers(0, 3), r=st.integers(0, 3))
def test_points_lie_in_their_disc(u, v, q, r):
    (point,) = toy.disc_grid(*(np.array([value]) for value in (u, v, q, r)))
    centre = (np.array([q, r]) - 1.5) / 1.5
    np.testing.assert_allclose(np.hypot(*(point - centre)), 0.1 * np.sqrt(v), rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("shape", toy.SHAPES)
def test_points(shape):
    points = toy.points(shape, 4000, seed=3)
    assert points.shape == (4000, 2) and points.dtype == np.float64
    np.testing.assert_array_equal(points, toy.points(shape, 4000, seed=3))
    assert (points != toy.points(shape, 4000, seed=4)).any()
    assert np.abs(points).max() <= 1.1
    assert len(np.unique(points, axis=0)) == 4000


def test_every_disc_gets_its_share_spread_evenly_over_its_area():
    points = toy.points("disc-grid", 16_000)
    cells = np.round(points * 1.5 + 1.5).astype(int)
    assert np.bincount(4 * cells[:, 0] + cells[:, 1], minlength=16).min() > 800  # of 1,000 expected
    distance = np.hypot(*(points - (cells - 1.5) / 1.5).T)
    np.testing.assert_allclose((distance < 0.05).mean(), 1 / 4, atol=0.02)


@given(scale=st.floats(0.1, 10), shift=st.floats(-5, 5), n=st.integers(2, 50))
def test_statistics(scale, shift, n):
    points = toy.points("spiral", n) * scale + shift
    mean, std = toy.statistics(points)
    standard = (points - mean) / std
    np.testing.assert_allclose(standard.mean(), 0, atol=1e-9)
    np.testing.assert_allclose(standard.var(ddof=1), 1, rtol=1e-9)  # one number for both coordinates, unbiased
    assert isinstance(mean, float) and isinstance(std, float)


def test_errors():
    with pytest.raises(UserError, match="shape must be one of spiral, disc-grid; got 'disc_grid'"):
        toy.points("disc_grid", 5)
    with pytest.raises(UserError, match="n must be at least 1; got 0"):
        toy.points("spiral", 0)
