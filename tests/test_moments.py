"""ddpm_jax.evaluation.moments: sums held to NumPy's moments; files of the common tools, read and written."""

import numpy as np
import pytest

from ddpm_jax.errors import UserError
from ddpm_jax.evaluation.moments import Moments, Sums, read_reference, write_reference


def features(count=50, dim=6):
    return np.random.default_rng(0).gamma(2, size=(count, dim)).astype(np.float32)


@pytest.mark.parametrize("cuts", [[], [1], [0, 7, 7, 49]])
def test_sums_of_parts_are_numpys_moments_of_the_whole(cuts):
    rows = features()
    first, *others = (Sums.of(part) for part in np.split(rows, cuts))
    mean, cov = sum(others, start=first).moments()
    exact = rows.astype(np.float64)
    np.testing.assert_allclose(mean, exact.mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(cov, np.cov(exact, rowvar=False), rtol=1e-10, atol=1e-13)


def test_one_image_has_no_covariance():
    with pytest.raises(UserError, match="at least 2 images; got 1"):
        Sums.of(features(1)).moments()


def test_what_is_written_is_read(tmp_path):
    moments = Sums.of(features()).moments()
    path = write_reference(tmp_path / "stats.npz", moments, "50 images of mine")
    found = read_reference(path, 6)
    np.testing.assert_array_equal(found.moments.mean, moments.mean)
    np.testing.assert_array_equal(found.moments.cov, moments.cov)
    assert found.images is None and found.told == "50 images of mine"


def test_files_of_other_tools(tmp_path):
    """Moments alone; images alone; both, beside the moments of spatial features."""
    mu, sigma = np.arange(3.0), np.eye(3, dtype=np.float32)
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3)).astype(np.uint8)
    np.savez(tmp_path / "moments.npz", mu=mu, sigma=sigma)
    np.savez(tmp_path / "images.npz", images)
    np.savez(tmp_path / "both.npz", images, mu=mu, sigma=sigma, mu_s=np.zeros(7), sigma_s=np.zeros((7, 7)))
    moments, alone, both = (read_reference(tmp_path / f"{name}.npz", 3) for name in ("moments", "images", "both"))
    assert moments.images is None and alone.moments is None and "does not tell" in moments.told
    for found in (moments, both):
        assert isinstance(found.moments, Moments) and found.moments.cov.dtype == np.float64
        np.testing.assert_array_equal(found.moments.mean, mu)
    for found in (alone, both):
        np.testing.assert_array_equal(found.images, images)


@pytest.mark.parametrize(
    ("arrays", "shown"),
    [
        ({"mu": np.zeros(3)}, "must hold mu and sigma, or images as arr_0; it holds mu"),
        ({"mu": np.zeros(3), "sigma": np.zeros((3, 2))}, r"shapes \(3,\) and \(3, 3\); got \(3,\) and \(3, 2\)"),
        ({"mu": np.zeros(4), "sigma": np.zeros((4, 4))}, r"shapes \(3,\) and \(3, 3\); got \(4,\) and \(4, 4\)"),
        ({"mu": np.full(3, np.nan), "sigma": np.zeros((3, 3))}, "finite.*mu"),
        ({"arr_0": np.zeros((5, 4, 4, 3))}, "arr_0 must be uint8 images.*got float64"),
        ({"arr_0": np.zeros((3, 4, 4, 3), np.uint8)}, r"N at least 4; got uint8 of shape \(3, 4, 4, 3\)"),
        ({"arr_0": np.zeros((5, 4, 4, 2), np.uint8)}, r"got uint8 of shape \(5, 4, 4, 2\)"),
    ],
)
def test_files_that_are_refused(tmp_path, arrays, shown):
    np.savez(tmp_path / "stats.npz", **arrays)
    with pytest.raises(UserError, match=shown):
        read_reference(tmp_path / "stats.npz", 3)


def test_what_is_no_such_file(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        read_reference(tmp_path / "nowhere.npz", 3)
    (tmp_path / "stats.npz").write_text("a file")
    with pytest.raises(UserError, match="cannot be read as a NumPy archive"):
        read_reference(tmp_path / "stats.npz", 3)
    with pytest.raises(UserError, match=r"must be an \.npz file of statistics or images; got .*stats\.pkl"):
        read_reference(tmp_path / "stats.pkl", 3)
