"""Runs that travel: packed, pretrained with the package, or of the Hub by name; they are runs like any other."""

import json
import shutil

import jax
import numpy as np
import pytest
from run_checks import refusal, state_in

from ddpm_jax import cli, run_names, training, weights
from ddpm_jax.conversion import convert
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation import evaluate_run
from ddpm_jax.presets import SampleConfig
from ddpm_jax.run_names import CONFIG, WEIGHTS, place_of


@pytest.fixture(scope="module")
def packed_run(finished_run, tmp_path_factory):
    """The finished run, packed; not to be changed."""
    folder = tmp_path_factory.mktemp("packed") / "digits"
    assert cli.main(["convert", str(finished_run), str(folder), "--to", "packed"]) == 0
    return folder


@pytest.fixture
def packed(packed_run, tmp_path):
    shutil.copytree(packed_run, tmp_path / "packed")
    return tmp_path / "packed"


def test_its_weights_are_the_runs_average_in_16_bits(finished_run, packed_run):
    names = {path.name for path in packed_run.iterdir()}
    assert names == {CONFIG, WEIGHTS, "metrics.jsonl", "samples.png", "loss.png"}
    whole, step = training.open_run(finished_run).load_variables()
    brief, same_step = training.open_run(packed_run).load_variables()
    assert step == same_step == 12

    def check(a, b):
        assert a.dtype == b.dtype == np.float32
        np.testing.assert_allclose(b, a, rtol=2**-10, atol=1e-7)

    jax.tree.map(check, whole, brief)
    with np.load(packed_run / WEIGHTS) as archive:
        kinds = {archive[name].dtype for name in archive.files if name != "step"}
    assert kinds == {np.dtype(np.float16)}


def test_what_16_bits_do_not_hold_stays_as_it_is(tmp_path):
    arrays = {"large": np.float32([1e6, 1.0]), "small": np.float32([1.0]), "count": np.int64([70_000])}
    training.packed.write(tmp_path, arrays, 3)
    found, step = training.packed.read(tmp_path)
    assert step == 3 and found.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)


def test_it_is_a_run(packed, tmp_path):
    """Sampled, measured, trained on, written out."""
    assert cli.main(["sample", str(packed), "--num", "4", "--steps", "2"]) == 0
    assert np.load(packed / "samples" / "samples.npz")["images"].shape == (4, 8, 8, 1)
    short = ["--train.steps", "2", "--train.batch-size", "4", "--sample.num", "1", "--sample.steps", "1"]
    assert cli.main(["finetune", str(packed), "--out", str(tmp_path / "tuned"), *short]) == 0
    assert int(state_in(tmp_path / "tuned").step) == 2
    assert cli.main(["convert", str(packed), str(tmp_path / "w.npz")]) == 0
    ours, _ = training.packed.read(packed)
    for name, array in weights.read_tensors(tmp_path / "w.npz").items():
        np.testing.assert_array_equal(array, ours[name])


def test_what_it_does_not_hold_is_said(packed, tmp_path, capsys):
    said = refusal(capsys, "train", "digits", "--out", packed, "--resume")
    assert "is packed: it has no state of training" in said and f"ddpm finetune {packed}" in said
    assert "averaged weights alone" in refusal(
        capsys, "finetune", packed, "--out", tmp_path / "tuned", "--weights", "params"
    )
    assert "averaged weights alone" in refusal(capsys, "convert", packed, tmp_path / "w.npz", "--weights", "params")
    with pytest.raises(UserError, match="holds the weights of step 12 alone; step 8 was asked for"):
        training.open_run(packed).load_variables(step=8)


def test_a_damaged_file_is_refused(packed):
    content = (packed / WEIGHTS).read_bytes()
    (packed / WEIGHTS).write_bytes(content[:-100])
    with pytest.raises(UserError, match=rf"{WEIGHTS}: cannot be read"):
        training.open_run(packed).load_variables()
    np.savez(packed / WEIGHTS, a=np.zeros(3))
    with pytest.raises(UserError, match="does not say which step"):
        training.open_run(packed).load_variables()
    np.savez(packed / WEIGHTS, a=np.zeros(3), step=np.int64(1))
    with pytest.raises(UserError, match="does not fit the run's config"):
        training.open_run(packed).load_variables()


def test_packing_needs_a_run_and_room(finished_run, packed, tmp_path):
    with pytest.raises(UserError, match="exists; choose another name"):
        convert(finished_run, packed, to="packed")
    with pytest.raises(UserError, match="--to packed takes averaged weights; got --weights params"):
        convert(finished_run, tmp_path / "new", which="params", to="packed")
    assert not (tmp_path / "new").exists()


# By name --------------------------------------------------------------------------------------------------------


def test_the_pretrained_digits(tmp_path, monkeypatch, capsys):
    """They come with the package, which nothing is written into: what is made of them lies here, under their name."""
    monkeypatch.chdir(tmp_path)
    run = training.open_run("pretrained:digits")
    before = sorted(path.name for path in run.folder.iterdir())
    assert sum(path.stat().st_size for path in run.folder.iterdir()) < 1_500_000
    assert cli.main(["sample", "pretrained:digits", "--num", "10", "--steps", "4"]) == 0
    assert (tmp_path / "digits" / "samples" / "samples.png").is_file()
    assert sorted(path.name for path in run.folder.iterdir()) == before
    assert "digits/samples/samples.png" in capsys.readouterr().out


@pytest.mark.slow
def test_the_pretrained_digits_are_digits(tmp_path, monkeypatch):
    """Read by a classifier of real ones, by 20 steps: nine of ten at least."""
    monkeypatch.chdir(tmp_path)
    run = training.open_run("pretrained:digits")
    found, path = evaluate_run(training.Drawing(run, SampleConfig("ddim", steps=20, num=200)))
    (agreement,) = (metric for metric in found.metrics if metric.name == "class_agreement")
    assert agreement.samples > 0.9
    assert path.resolve() == tmp_path / "digits" / "evaluation.json"


def test_a_name_that_is_not_there(capsys):
    said = refusal(capsys, "sample", "pretrained:digit")
    assert "pretrained: must be one of digits; got 'digit'. Did you mean 'digits'?" in said
    assert "hub: needs the id of a repository" in refusal(capsys, "sample", "hub:digits")


def test_a_path_is_a_path(tmp_path):
    for path in ("runs/digits", "C:/runs", tmp_path, "pretrained", "a:b"):
        assert str(place_of(path).folder) == str(path) and place_of(path).apart is None


@pytest.fixture
def hub_of(packed_run, monkeypatch, tmp_path):
    """A Hub with one repository, somebody/small: the packed run; asked[0] is what was asked of it."""
    huggingface_hub = pytest.importorskip("huggingface_hub")
    asked = []

    def download(name, revision=None, allow_patterns=None):
        asked.append((name, revision, allow_patterns))
        if name != "somebody/small":
            raise OSError("no such repository\nand more")
        folder = tmp_path / "snapshot"
        folder.mkdir(exist_ok=True)
        for file in allow_patterns:
            if (packed_run / file).is_file():
                shutil.copyfile(packed_run / file, folder / file)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return asked


def test_a_run_of_the_hub(hub_of, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["sample", "hub:somebody/small@v1", "--num", "2", "--steps", "2"]) == 0
    assert {part[:2] for part in hub_of} == {("somebody/small", "v1")}
    assert (tmp_path / "small" / "samples" / "samples.png").is_file()


def test_a_repository_that_is_not_there_or_no_run(hub_of, capsys, tmp_path, monkeypatch):
    said = refusal(capsys, "sample", "hub:nobody/nothing")
    assert "hub:nobody/nothing cannot be fetched from the Hub (OSError: no such repository)" in said
    monkeypatch.setattr(run_names, "CONFIG", "missing.json")
    assert "is no run that ddpm convert RUN FOLDER --to packed made" in refusal(capsys, "sample", "hub:somebody/small")


def test_its_config_says_what_any_runs_does(packed_run, finished_run):
    assert json.loads((packed_run / CONFIG).read_text()) == json.loads((finished_run / CONFIG).read_text())
