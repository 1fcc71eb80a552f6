"""ddpm_jax.evaluation.fid: which images are held against which, in features of six numbers that need no weights."""

import dataclasses
import functools
import json
import re

import numpy as np
import pytest

from ddpm_jax import cli, data
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation import evaluate_fid, fid, frechet_distance, inception, kernel_distance, precision_recall
from ddpm_jax.evaluation.report import order_of
from ddpm_jax.presets import SampleConfig, preset
from ddpm_jax.training import Drawing, Run, open_run
from ddpm_jax.training.samples import Batch

FEW = SampleConfig(sampler="ddim", steps=4, num=40)
MATRIX = np.random.default_rng(0).normal(size=(64, 6)).astype(np.float32)
pytestmark = pytest.mark.filterwarnings("ignore:FID of 40 samples")


class Projection:
    """What stands in the network's place."""

    told = "six projections"

    def __call__(self, images):
        return images.reshape(len(images), -1).astype(np.float32) @ MATRIX / 255


@pytest.fixture(autouse=True)
def projected(monkeypatch):
    monkeypatch.setattr(inception, "NUM_FEATURES", 6)
    monkeypatch.setattr(inception, "load_extractor", lambda path: Projection())


@pytest.fixture
def draws(monkeypatch):
    """draws(images): whatever is asked for, the evaluation gets these, in batches of 7."""

    def become(images):
        cuts = np.split(images, range(7, len(images), 7))
        drawn = [Batch(cut, np.zeros((0, 0)), 4, 0.0) for cut in cuts]
        monkeypatch.setattr(Drawing, "batches", lambda *_, **__: iter(drawn))
        monkeypatch.setattr(Run, "load_variables", lambda *_, **__: ({}, 12))

    return become


@functools.cache
def digits():
    """The real ones in the order of seed 0, and some that are no digits."""
    source = data.open_source("digits")
    noise = np.random.default_rng(1).integers(0, 256, (40, 8, 8, 1)).astype(np.uint8)
    return source.images[order_of(source, 0)], noise


def by_name(evaluation):
    return {metric.name: metric for metric in evaluation.metrics}


@pytest.mark.parametrize("batch_size", [11, 5000])
def test_against_the_runs_own_data(run, draws, batch_size):
    """FID against all images; beside it 40 of them against the others; whatever the batches."""
    real, noise = digits()
    draws(noise)
    evaluation, path = evaluate_fid(Drawing(run, FEW, batch_size=batch_size))
    of, found = Projection(), by_name(evaluation)
    assert found["fid"].samples == pytest.approx(frechet_distance(of(noise), of(real)), rel=1e-5)
    assert found["fid"].real == pytest.approx(frechet_distance(of(real[:40]), of(real[40:])), rel=1e-5)
    assert found["kid"].samples == pytest.approx(kernel_distance(of(noise), of(real[40:]))[0], rel=1e-5)
    expected = precision_recall(of(real[:40]), of(real[40:]))
    assert (found["precision"].real, found["recall"].real) == expected
    assert found["precision"].samples < found["precision"].real and found["recall"].samples < found["recall"].real
    saved = json.loads(path.read_text())
    assert path == run.folder / "fid.json" and saved["metrics"]["fid"]["samples"] == found["fid"].samples
    facts = {"step": 12, "weights": "ema", "samples": 40, "sampler": "ddim, 4 steps", "seed": 0, "seed of training": 0}
    assert {name: saved[name] for name in facts} == facts
    assert saved["held against"] == "1797 images of digits, seen in training"
    assert saved["real data"] == "40 of these images against the other 1757"
    assert "six projections" in saved["network"] and "299x299" in saved["resize"]


def test_real_images_in_the_samples_place(run, draws):
    """Others of the same distribution get what the column of real data says, nearly."""
    real, _ = digits()
    draws(real[200:1000])
    found = by_name(evaluate_fid(Drawing(run, dataclasses.replace(FEW, num=800)))[0])
    assert found["fid"].samples < 2 * found["fid"].real < 1
    assert min(found["precision"].samples, found["recall"].samples) > 0.9


def test_what_is_kept_is_bounded(run, draws, monkeypatch):
    """KID, precision and recall see the first features alone, FID sees all."""
    real, noise = digits()
    draws(noise)
    whole = by_name(evaluate_fid(Drawing(run, FEW))[0])
    monkeypatch.setattr(fid, "gather", functools.partial(fid.gather, keep=30))
    draws(noise)
    evaluation, _ = evaluate_fid(Drawing(run, FEW))
    of, found = Projection(), by_name(evaluation)
    assert found["fid"] == whole["fid"]
    assert found["kid"].samples == pytest.approx(kernel_distance(of(noise[:30]), of(real[40:70]))[0], rel=1e-5)
    assert evaluation.facts["KID, precision, recall"] == "of 30 samples and 30 real; k = 3"


def test_data_that_is_too_small_for_the_column_of_real_data(run, draws):
    real, noise = digits()
    draws(noise)
    evaluation, path = evaluate_fid(Drawing(run, FEW), num_real=79)
    assert all(metric.real is None for metric in evaluation.metrics) and "real data" not in evaluation.facts
    of = Projection()
    assert by_name(evaluation)["fid"].samples == pytest.approx(frechet_distance(of(noise), of(real[:79])), rel=1e-5)
    assert json.loads(path.read_text())["metrics"]["fid"]["real"] is None
    assert evaluation.table().splitlines()[-1].endswith(" -")
    with pytest.raises(UserError, match="at least 4 real images; got 3 of digits"):
        evaluate_fid(Drawing(run, FEW), num_real=3)


def test_held_out_data(run, draws, tmp_path):
    real, noise = digits()
    np.savez(tmp_path / "other.npz", images=noise)
    draws(real[:40])
    evaluation, _ = evaluate_fid(Drawing(run, FEW), held_out=str(tmp_path / "other.npz"))
    of = Projection()
    assert by_name(evaluation)["fid"].samples == pytest.approx(frechet_distance(of(real[:40]), of(noise)), rel=1e-5)
    assert evaluation.facts["held against"].endswith("other.npz, held out")


def test_statistics_written_and_read(run, draws, tmp_path):
    """The same FID as against the data they were made of; without images there are no features for the rest."""
    real, noise = digits()
    draws(noise)
    before = by_name(evaluate_fid(Drawing(run, FEW), save_reference=tmp_path / "digits.npz")[0])
    draws(noise)
    evaluation, _ = evaluate_fid(Drawing(run, FEW), reference=tmp_path / "digits.npz")
    (found,) = evaluation.metrics
    of = Projection()
    assert found.name == "fid" and found.samples == pytest.approx(before["fid"].samples, rel=1e-12)
    assert found.real == pytest.approx(frechet_distance(of(real[:40]), of(real)), rel=1e-5)
    told = evaluation.facts["held against"]
    assert "1797 images of digits" in told and "six projections" in told and "299x299" in told
    assert evaluation.facts["real data"] == "40 images of digits, seen in training"
    gone = dataclasses.replace(run.config, data=dataclasses.replace(run.config.data, source=""))
    draws(noise)
    evaluation, _ = evaluate_fid(Drawing(dataclasses.replace(run, config=gone), FEW), reference=tmp_path / "digits.npz")
    assert evaluation.metrics == (dataclasses.replace(found, real=None),)


def test_a_file_of_images(run, draws, tmp_path):
    """Its own moments where it has them, those of its images where not; its images for the rest either way."""
    real, noise = digits()
    of = Projection()
    mean, cov = of(real).mean(axis=0), np.cov(of(real), rowvar=False)
    np.savez(tmp_path / "images.npz", real[:300])
    np.savez(tmp_path / "both.npz", real[:300], mu=mean, sigma=cov)
    for name, rows in (("images", of(real[:300])), ("both", of(real))):
        draws(noise)
        evaluation, _ = evaluate_fid(Drawing(run, FEW), reference=tmp_path / f"{name}.npz")
        found = by_name(evaluation)
        assert found["fid"].samples == pytest.approx(frechet_distance(of(noise), rows), rel=1e-5)
        assert found["kid"].samples == pytest.approx(kernel_distance(of(noise), of(real[:300]))[0], rel=1e-5)
        assert found["precision"].real == 1  # the first forty are in the file


def test_few_samples_are_warned_about(run, draws, monkeypatch):
    monkeypatch.setattr(inception, "NUM_FEATURES", 2048)
    _, noise = digits()
    draws(noise)
    with pytest.warns(UserWarning, match=r"FID of 40 samples is too large.* 10,000 or more.* 2,048 features"):
        evaluate_fid(Drawing(run, FEW))


def test_by_the_command(run, capsys, tmp_path):
    """Samples that the run draws itself; the table has the facts and both columns."""
    options = ["--fid", "--sampler", "ddim", "--steps", "4", "--num", "40", "--batch-size", "20", "--seed", "3"]
    assert cli.main(["evaluate", str(run.folder), *options, "--fid-save", str(tmp_path / "digits.npz")]) == 0
    shown = capsys.readouterr().out
    for part in ("held against: 1797 images of digits", "resize: bilinear", "seed: 3", "weights: ema", "fid.json"):
        assert part in shown
    metrics = json.loads((run.folder / "fid.json").read_text())["metrics"]
    assert list(metrics) == ["fid", "kid", "precision", "recall"]
    assert metrics["fid"]["samples"] > 3 * metrics["fid"]["real"] > 0
    assert metrics["kid"]["samples"] > abs(metrics["kid"]["real"])
    assert (tmp_path / "digits.npz").is_file()


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ("--fid-weights FILE", "belong to --fid, which is not given"),
        ("--fid --likelihood", "give one of them"),
        ("--fid --num 3", "num must be at least 4, and is better 10,000; got 3"),
        ("--fid --fid-save a.npz --fid-reference b.npz", "fid_save .* give one of them"),
        ("--fid --fid-save stats.pkl", r"fid_save must be an \.npz file; got stats\.pkl"),
        ("--fid --fid-save FILE/stats.npz", "FILE cannot be written to: .*FILE is a file, not a folder"),
        ("--fid --fid-reference nowhere.npz", r"nowhere\.npz does not exist"),
        ("--fid --held-out npz:nowhere.npz", r"nowhere\.npz: no such file"),
    ],
)
def test_mistakes_before_sampling(finished_run, tmp_path, capsys, monkeypatch, options, shown):
    monkeypatch.setattr(Drawing, "batches", None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FILE").write_text("")
    assert cli.main(["evaluate", str(finished_run), *options.split()]) == 2
    assert re.search(shown, capsys.readouterr().err)


def test_points(finished_run):
    run = dataclasses.replace(open_run(finished_run), config=preset("spiral"))
    with pytest.raises(UserError, match=r"FID is of images; .* is a run of points"):
        evaluate_fid(Drawing(run, FEW))
