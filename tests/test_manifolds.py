"""ddpm_jax.evaluation.manifolds: precision and recall on cases with a known answer, and by scikit-learn's neighbours."""

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from ddpm_jax.errors import UserError
from ddpm_jax.evaluation import manifolds
from ddpm_jax.evaluation.manifolds import precision_recall


def line(*values):
    return np.array(values, np.float32)[:, None]


def test_on_a_line():
    """Of the points 0, 1, 3, 7 the nearest others are 1, 1, 2 and 4 away: their balls cover [-1, 5] and [3, 11]."""
    real = line(0, 1, 3, 7)
    samples = line(-1.01, -1, 10.99, 11.01)
    found = precision_recall(samples, real, neighbours=1)
    assert found.precision == 0.5
    # balls around the samples: [-1.02, -1], [-1.01, -0.99], and two of 0.02 about 11
    assert found.recall == 0
    # the second nearest others are 3, 2, 3 and 6 away: [-3, 13]
    assert precision_recall(samples, real, neighbours=2).precision == 1


def test_the_edge_of_a_ball_belongs_to_it():
    assert precision_recall(line(5, 5.5, 6), line(0, 1, 3), neighbours=1).precision == pytest.approx(1 / 3)


def test_a_set_and_itself():
    rows = np.random.default_rng(0).normal(size=(50, 8))
    assert precision_recall(rows, rows) == (1, 1)
    assert precision_recall(rows, rows + 1000) == (0, 0)


def test_few_modes():
    """Samples of one of two modes: nearly all are real, and nearly half of the real ones are theirs. One point: no variety."""
    rng = np.random.default_rng(0)
    real = np.concatenate([rng.normal(size=(100, 2)), rng.normal(size=(100, 2)) + 100])
    half = precision_recall(rng.normal(size=(2000, 2)), real)
    assert half.precision > 0.9 and 0.4 < half.recall <= 0.5
    collapsed = precision_recall(np.tile(real[:1], (100, 1)), real)
    assert collapsed.precision == 1 and collapsed.recall == 1 / 200


@pytest.mark.parametrize("block", [7, 1000])
def test_by_scikit_learns_neighbours(monkeypatch, block):
    monkeypatch.setattr(manifolds, "_BLOCK", block)
    rng = np.random.default_rng(1)
    samples, real = rng.normal(size=(60, 5)).astype(np.float32), 1.3 * rng.normal(size=(80, 5)).astype(np.float32)

    def share(points, centres):
        apart, _ = NearestNeighbors(n_neighbors=4).fit(centres).kneighbors(centres)
        return np.mean([(np.linalg.norm(centres - point, axis=1) <= apart[:, 3]).any() for point in points])

    found = precision_recall(samples, real)
    assert found == (pytest.approx(share(samples, real)), pytest.approx(share(real, samples)))
    assert 0 < found.recall < found.precision < 1


def test_what_is_refused():
    rows = np.zeros((5, 2))
    with pytest.raises(UserError, match=r"neighbours must lie in 1\.\.4.*got 5"):
        precision_recall(rows, np.zeros((9, 2)), neighbours=5)
    with pytest.raises(UserError, match=r"neighbours must lie in.*got 0"):
        precision_recall(rows, rows, neighbours=0)
    with pytest.raises(UserError, match="real must be finite"):
        precision_recall(rows, rows * np.nan)
