"""Batches on their way to the device: the same bits by either way, and errors in their turn."""

import itertools

import numpy as np
import pytest

from ddpm_jax import data
from ddpm_jax.data import resident
from ddpm_jax.data.resident import Resident, fits
from ddpm_jax.errors import UserError
from ddpm_jax.training import feeding


@pytest.mark.parametrize(
    ("spec", "shape", "flip", "reading"),
    [
        ("digits", (8, 8, 1), False, {}),
        ("digits", (12, 12, 3), True, {"start_step": 3}),
        ("digits", (8, 8, 1), True, {"stacked": 4}),
        ("spiral:100", (2,), False, {"start_step": 2, "stacked": 3}),
    ],
)
def test_looked_up_is_read(spec, shape, flip, reading):
    source = data.open_source(spec)
    assert fits(source, shape)
    there = Resident(source, shape, data.scaling_of(source))
    options = {"shape": shape, "batch_size": 6, "seed": 5, "flip": flip}
    read, named = (
        data.batches(source, **options, reading=data.Reading(**reading, indices=indices, num_threads=0))
        for indices in (False, True)
    )
    for ours, theirs in itertools.islice(zip(map(there.take, named), read, strict=True), 40):
        for name in ("x_0", "label"):
            assert ours[name].dtype == theirs[name].dtype
            assert np.array_equal(ours[name], theirs[name]), name


def test_what_fits(monkeypatch, tmp_path):
    digits = data.open_source("digits")
    monkeypatch.setattr(resident, "LARGEST", 1797 * 64 - 1)
    assert not fits(digits, (8, 8, 1))
    monkeypatch.setattr(resident, "LARGEST", 1797 * 64)
    assert fits(digits, (8, 8, 1))
    assert not fits(data.open_source("digits", classes=["3"]), (8, 8, 1))  # read by its own index


def test_an_error_waits_for_its_turn():
    def batches():
        yield from range(4)
        raise UserError("the fifth cannot be read")

    placed = []
    ahead = feeding._ahead(batches(), lambda batch: placed.append(batch) or batch)
    assert next(ahead) == 0
    assert placed == [0, 1, 2]
    assert list(itertools.islice(ahead, 3)) == [1, 2, 3]
    with pytest.raises(UserError, match="fifth"):
        next(ahead)
