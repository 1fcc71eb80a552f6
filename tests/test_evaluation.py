"""ddpm_jax.evaluation of runs: what is measured of which run, beside what real data would get, and what is refused."""

import dataclasses
import json

import numpy as np
import pytest
from data_builders import write_image

from ddpm_jax import cli, data
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation import evaluate_run, report, sliced_wasserstein
from ddpm_jax.presets import SampleConfig
from ddpm_jax.training import Drawing, open_run
from ddpm_jax.training.samples import Samples

FEW = SampleConfig(sampler="ddim", steps=4, num=20)


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory):
    """Classifiers are kept for this module alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DDPM_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def draws(monkeypatch):
    """draws(values): whatever is asked for, the evaluation gets these values."""

    def become(values):
        drawn = Samples(values, None, np.zeros((0, 0)), np.zeros(0), 0.0, None)
        monkeypatch.setattr(Drawing, "draw", lambda *_, **__: drawn)

    return become


def test_real_digits_in_the_samples_place(run, draws):
    """They are recognised, lie as near as real ones do, and a copy of a training image has the distance 0."""
    source = data.open_source("digits")
    order = np.concatenate([np.flatnonzero(source.labels == label)[:5] for label in np.tile(range(10), 1)])
    order = order.reshape(10, 5).T.ravel()  # a round through the classes, then another
    draws(source.images[order])
    evaluation, path = evaluate_run(Drawing(run, dataclasses.replace(FEW, num=50)))
    found = {metric.name: metric for metric in evaluation.metrics}
    assert found["class_agreement"].samples > 0.95 and found["class_agreement"].real > 0.95
    assert (
        found["nearest_training_image"].samples < 0.5 < found["nearest_training_image"].real
    )  # most are training images
    assert 0.3 < found["frechet_distance"].samples / found["frechet_distance"].real < 3
    saved = json.loads(path.read_text())
    assert saved["metrics"]["class_agreement"]["samples"] == found["class_agreement"].samples
    assert saved["class_agreement_by_class"].keys() == set("0123456789")
    expected = {"step": 12, "samples": 50, "sampler": "ddim, 4 steps", "seed": 0, "weights": "ema", "data": "digits"}
    assert {name: saved[name] for name in expected} == expected


def test_the_samples_of_a_run_that_learnt_nothing(run, capsys):
    """By the command: nothing reads as a digit, and every distance is larger than that of real data."""
    options = ["--sampler", "ddim", "--steps", "4", "--num", "40", "--seed", "3", "--batch-size", "20"]
    assert cli.main(["evaluate", str(run.folder), *options]) == 0
    shown = capsys.readouterr().out
    metrics = json.loads((run.folder / "evaluation.json").read_text())["metrics"]
    assert metrics.keys() == {"class_agreement", "frechet_distance", "kernel_distance", "nearest_training_image"}
    assert metrics["class_agreement"]["samples"] < 0.5 < metrics["class_agreement"]["real"]
    for name in metrics.keys() - {"class_agreement"}:
        assert metrics[name]["samples"] > 1.2 * metrics[name]["real"]
    assert (
        "1257 to train the classifier; of the run's own: 270 in the samples' place, 270 to hold both against" in shown
    )


@pytest.mark.slow
def test_held_out_data_of_ones_own(run, draws, tmp_path):
    source = data.open_source("digits")
    np.savez(tmp_path / "test.npz", images=source.images[:300, ..., 0], labels=source.labels[:300])
    draws(source.images[:20])
    evaluation, _ = evaluate_run(Drawing(run, FEW), held_out=str(tmp_path / "test.npz"))
    assert evaluation.facts["real images"].endswith("test.npz: 150 in the samples' place, 150 to hold both against")
    np.savez(tmp_path / "bare.npz", images=source.images[:300, ..., 0])
    with pytest.raises(UserError, match=r"has the classes \(none\); the run's data has 0, 1"):
        evaluate_run(Drawing(run, FEW), held_out=str(tmp_path / "bare.npz"))


def test_a_run_of_one_class_without_labels(run, draws):
    """All of its samples are asked to be of that class, and they are held against images of that class alone."""
    config = dataclasses.replace(run.config, data=dataclasses.replace(run.config.data, classes=("3",), labels=False))
    run = dataclasses.replace(run, config=config, class_names=())
    source = data.open_source("digits", classes=("3",))
    draws(np.stack([source[index]["image"] for index in range(20)]))
    evaluation, _ = evaluate_run(Drawing(run, FEW))
    assert evaluation.by_class.keys() == {"3"} and evaluation.by_class["3"] > 0.9


def test_images_without_classes(run, draws, tmp_path):
    """There is no classifier, but a distance to the training images."""
    images = np.random.default_rng(0).integers(0, 255, (40, 8, 8), np.uint8)
    np.savez(tmp_path / "bare.npz", images=images)
    config = dataclasses.replace(
        run.config, data=dataclasses.replace(run.config.data, source=str(tmp_path / "bare.npz"))
    )
    run = dataclasses.replace(run, config=config, class_names=())
    draws(images[..., None])
    evaluation, _ = evaluate_run(Drawing(run, FEW))
    assert [metric.name for metric in evaluation.metrics] == ["nearest_training_image"]
    assert evaluation.metrics[0].samples == 0 < evaluation.metrics[0].real  # they are the training images


def test_points(draws, tmp_path, tiny):
    options = ["--data.source", "spiral:200", "--model.dim", "8", "--train.epochs", "1", "--sample.num", "20", "--out"]
    assert cli.main(["train", "spiral", *options, str(tmp_path / "run")]) == 0
    run = open_run(tmp_path / "run")
    config = dataclasses.replace(run.config.sample, num=2_000)
    draws(data.PointSource("spiral", 2_000, 99).points)
    real, _ = evaluate_run(Drawing(run, config))
    draws(data.PointSource("disc-grid", 2_000, 99).points)
    wrong, _ = evaluate_run(Drawing(run, config))
    for of_real, of_wrong in zip(real.metrics, wrong.metrics, strict=True):
        assert of_real.real == of_wrong.real and abs(of_real.samples) < 5 * abs(of_real.real) + 1e-3
        assert of_wrong.samples > 10 * abs(of_real.real)
    other = data.PointSource("spiral", 2_000, report.HELD_OUT_SEED).points
    disc = data.PointSource("disc-grid", 2_000, 99).points
    assert wrong.metrics[0].samples == pytest.approx(sliced_wasserstein(disc, other))


def test_too_few_samples(finished_run):
    with pytest.raises(UserError, match="at least 10, one sample for each class; got 9"):
        evaluate_run(Drawing(open_run(finished_run), SampleConfig(num=9)))


def test_a_run_without_checkpoint(finished_run, killed_run):
    with pytest.raises(UserError, match="holds no checkpoint"):
        evaluate_run(Drawing(open_run(killed_run(0)), SampleConfig(num=10)))


def test_a_class_with_too_few_images(run, tmp_path):
    for name, count in (("cat", 8), ("dog", 4)):
        for i in range(count):
            write_image(tmp_path / "pets" / name / f"{i}.png", np.zeros((8, 8), np.uint8))
    config = dataclasses.replace(run.config, data=dataclasses.replace(run.config.data, source=str(tmp_path / "pets")))
    with pytest.raises(UserError, match=r"at least 5 images of each class.* 4 are of class dog"):
        evaluate_run(Drawing(dataclasses.replace(run, config=config), FEW))


def test_data_that_is_gone(finished_run, tmp_path):
    run = open_run(finished_run)
    source = dataclasses.replace(run.config.data, source=f"folder:{tmp_path / 'moved'}")
    run = dataclasses.replace(run, config=dataclasses.replace(run.config, data=source))
    with pytest.raises(UserError, match="moved: no such folder"):
        evaluate_run(Drawing(run, SampleConfig(num=10)))
