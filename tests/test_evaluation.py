"""ddpm_jax.evaluation: what the classifier makes of real digits, and which runs are refused."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from data_builders import write_image

from ddpm_jax import data, presets
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation import class_agreement, evaluate_run
from ddpm_jax.presets import SampleConfig
from ddpm_jax.training import open_run
from ddpm_jax.training.run import Run


@pytest.fixture(scope="module")
def digits():
    """(images, labels) of the real digits, in random order."""
    source = data.open_source("digits")
    order = np.random.default_rng(0).permutation(len(source))
    return source.images[order], source.labels[order]


def test_real_digits_are_recognised(digits):
    """Digits that the classifier has not seen: nearly all; the classes' shares average to the whole."""
    images, labels = digits
    found = class_agreement(images[:500], labels[:500], images[500:], labels[500:])
    assert found.samples > 0.96 and found.real > 0.96
    counts = np.bincount(labels[:500])
    assert found.by_class.keys() == set(range(10))
    assert sum(found.by_class[k] * counts[k] for k in range(10)) / 500 == pytest.approx(found.samples)


def test_shuffled_labels_agree_by_chance(digits):
    """One in ten; three standard deviations of the mean of 1000 throws are 0.03."""
    images, labels = digits
    shuffled = np.random.default_rng(1).permutation(labels[:1000])
    found = class_agreement(images[:1000], shuffled, images[1000:], labels[1000:])
    assert abs(found.samples - 0.1) < 0.04 and found.real > 0.9


def test_each_class_is_judged_by_itself(digits):
    """Samples whose 3s are all 8s: nothing else suffers."""
    images, labels = digits
    asked = np.where(labels[:500] == 8, 3, labels[:500])
    eights = np.mean(labels[:500][asked == 3] == 8)
    found = class_agreement(images[:500], asked, images[500:], labels[500:])
    assert 8 not in found.by_class and found.by_class[3] == pytest.approx(1 - eights, abs=0.08)
    assert min(share for label, share in found.by_class.items() if label != 3) > 0.8


def test_the_report_of_a_run(finished_run, tmp_path):
    """evaluation.json says what was measured; a network of 12 steps draws nothing that reads as a digit."""
    folder = tmp_path / "run"
    shutil.copytree(finished_run, folder)
    config = SampleConfig(sampler="ddim", steps=4, num=20)
    agreement, path = evaluate_run(open_run(folder), config, seed=3, batch_size=10)
    assert path == folder / "evaluation.json"
    report = json.loads(path.read_text())
    assert report["class_agreement"] == agreement.samples
    assert report["class_agreement_by_class"] == {str(k): v for k, v in agreement.by_class.items()}
    expected = {"step": 12, "samples": 20, "sampler": "ddim", "sampler_steps": 4, "seed": 3, "weights": "ema"}
    assert {name: report[name] for name in expected} == expected and report["data"] == "digits"
    assert agreement.samples < 0.5 and agreement.real > 0.9


def test_too_few_samples(finished_run):
    with pytest.raises(UserError, match="at least 10, one sample for each class; got 9"):
        evaluate_run(open_run(finished_run), SampleConfig(num=9))


def test_a_run_without_classes(tmp_path):
    with pytest.raises(UserError, match="without classes"):
        evaluate_run(Run(tmp_path, presets.PRESETS["images"], ()), SampleConfig(num=9))


def test_a_run_without_checkpoint(finished_run, killed_run):
    with pytest.raises(UserError, match="holds no checkpoint"):
        evaluate_run(open_run(killed_run(0)), SampleConfig(num=10))


def test_a_class_with_too_few_images(tmp_path):
    for name, count in (("cat", 8), ("dog", 4)):
        for i in range(count):
            write_image(tmp_path / "pets" / name / f"{i}.png", np.zeros((8, 8), np.uint8))
    config = presets.PRESETS["images"]
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, source=str(tmp_path / "pets")))
    with pytest.raises(UserError, match=r"at least 5 images of each class.*one with 4"):
        evaluate_run(Run(tmp_path, config, ("cat", "dog")), SampleConfig(num=10))


def test_data_that_is_gone(finished_run, tmp_path):
    run = open_run(finished_run)
    source = dataclasses.replace(run.config.data, source=f"folder:{tmp_path / 'moved'}")
    run = dataclasses.replace(run, config=dataclasses.replace(run.config, data=source))
    with pytest.raises(UserError, match="moved: no such folder"):
        evaluate_run(run, SampleConfig(num=10))
