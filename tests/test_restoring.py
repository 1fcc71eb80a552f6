"""`ddpm restore`: the run's own images degraded, and files of measurements, come back as images that fit what was measured."""

import jax.numpy as jnp
import numpy as np
import pytest
from data_builders import write_image

from ddpm_jax import cli, operators, samplers
from ddpm_jax.errors import UserError
from ddpm_jax.restores import operator_of
from ddpm_jax.training.run import open_run

FEW = "--sampler ddim --steps 10 --clip None"


def away(images, operator, measured):
    """Root mean square of A x - y, x in [-1, 1]."""
    return float(jnp.sqrt(jnp.mean((operator(jnp.asarray(images, jnp.float32) / 127.5 - 1) - measured) ** 2)))


def test_the_runs_own_images(finished_run, tmp_path):
    """Of a network that has hardly learned, what is drawn from the same noise fits the measurement better than what is not told."""
    line = f"restore {finished_run} --operator downsample:2 --num 3 --noise 0.05 {FEW} --out {tmp_path}"
    assert cli.main(line.split()) == 0
    found, operator = np.load(tmp_path / "restore.npz"), operators.Downsample(2)
    assert found["images"].shape == found["whole"].shape == (3, 8, 8, 1) and found["measured"].shape == (3, 4, 4, 1)
    assert (tmp_path / "restore.png").exists()
    assert 0.01 < away(found["whole"], operator, found["measured"]) < 0.1  # the noise
    run = open_run(finished_run)
    untold = samplers.sample(run.denoiser(found["labels"]), "ddim", 0, (3, 8, 8, 1), 10)
    fits = [away(images, operator, found["measured"]) for images in (found["images"], run.to_data(untold))]
    assert fits[0] < 0.8 * fits[1], fits


def test_files_of_measurements(finished_run, tmp_path):
    """A mask's file may hold anything where nothing is seen; of a whole image --degrade makes the same measurement."""
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)
    measured = []
    for name, left, degrade in (("a", 0, ""), ("b", 255, ""), ("c", 90, "--degrade")):
        pixels[:, :4] = left
        write_image(tmp_path / f"{name}.png", pixels)
        told = f"{degrade} --operator mask:left --noise 0 --labels 3 {FEW}"
        line = f"restore {finished_run} {tmp_path / name}.png {told} --out {tmp_path / name}"
        assert cli.main(line.split()) == 0
        measured.append(np.load(tmp_path / name / "restore.npz"))
    for found in measured:
        np.testing.assert_array_equal(found["measured"], measured[0]["measured"])
        np.testing.assert_array_equal(found["images"], measured[0]["images"])
        assert found["labels"].tolist() == [3] and (found["measured"][:, :, :4] == 0).all()
    assert "whole" in measured[2] and "whole" not in measured[0]


def test_operators_in_words(finished_run):
    run = open_run(finished_run)
    assert operator_of("blur:1.5", run) == operators.Blur(1.5) and operator_of("blur", run) == operators.Blur()
    assert operator_of("downsample:4", run) == operators.Downsample(4)
    assert operator_of("gray:0.5", run) == operators.Gray((0.5,))
    hidden = operator_of("mask:top", run).hidden
    assert hidden.shape == (1, 8, 8, 1) and hidden[:, :4].all() and not hidden[:, 4:].any()
    with pytest.raises(UserError, match="operator gray:WEIGHTS needs numbers, with commas between; got 'red'"):
        operator_of("gray:red", run)


def test_classes_that_are_not_told(finished_run, tmp_path, capsys):
    write_image(tmp_path / "small.png", np.zeros((4, 4), np.uint8))
    assert (
        cli.main(f"restore {finished_run} {tmp_path / 'small.png'} --operator downsample:2 --out {tmp_path}".split())
        == 2
    )
    assert "labels must say the images' classes" in capsys.readouterr().err
