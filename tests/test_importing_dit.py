"""`ddpm import` and `ddpm convert` of facebookresearch/DiT's files: a script's checkpoint, the way back, what is refused."""

import argparse
from dataclasses import replace

import numpy as np
import pytest
from test_importing import imported, random_tensors, refused, same, sha256

from ddpm_jax import models, schedules, weights
from ddpm_jax.cli import main
from ddpm_jax.conversion.dit import from_file
from ddpm_jax.conversion.runs import to_run
from ddpm_jax.errors import UserError
from ddpm_jax.presets import SampleConfig
from ddpm_jax.processes import GaussianDiffusion
from ddpm_jax.samplers import Ancestral
from ddpm_jax.training.run import open_run

MODEL = models.DiTConfig(8, 1, 4, dim=8, depth=2, num_heads=2, learn_variance=True)
HEADS = ["--dit.num-heads", "2"]


@pytest.fixture
def checkpoint(tmp_path):
    """A file as its train.py writes it: the network, its average, the optimiser, and the script's options."""
    torch = pytest.importorskip("torch")
    path = tmp_path / "0050000.pt"
    parts = {
        name: {key: torch.from_numpy(a) for key, a in weights.to_dit(MODEL, random_tensors(MODEL, seed)).items()}
        for name, seed in (("model", 1), ("ema", 2))
    }
    torch.save(parts | {"opt": {"state": {}}, "args": argparse.Namespace(model="DiT-S/2", epochs=1400)}, path)
    return path


def test_a_scripts_checkpoint_becomes_a_run(checkpoint, tmp_path, capsys):
    run = imported(checkpoint, tmp_path, *HEADS)
    assert run.config.model == MODEL
    same(run, random_tensors(MODEL, 2))
    assert run.config.process == GaussianDiffusion(schedules.linear(1000), loss="hybrid")
    assert run.config.sample == SampleConfig(Ancestral("learned"), 250, spacing="linspace")
    assert run.class_names == ("0", "1", "2") and run.null_label == 3  # the last row is none's
    assert run.origin["library"] == "DiT" and run.origin["weights"] == "ema"
    assert run.origin["sha256"] == {checkpoint.name: sha256(checkpoint)}
    assert "network: dit of DiT" in capsys.readouterr().out
    assert main(["sample", str(run.folder), "--num", "3", "--steps", "2", "--guidance", "2"]) == 0
    assert np.load(run.folder / "samples" / "samples.npz")["images"].shape == (3, 8, 8, 1)


def test_the_weights_being_trained(checkpoint, tmp_path):
    run = imported(checkpoint, tmp_path, *HEADS, "--weights", "params", "--dit.label-dropout", "0")
    same(run, random_tensors(MODEL, 1))
    assert run.class_names == ("0", "1", "2", "3") and run.null_label is None


def test_out_and_in_again(checkpoint, tmp_path, capsys):
    run = imported(checkpoint, tmp_path, *HEADS)
    out = tmp_path / "out.safetensors"
    assert main(["convert", str(run.folder), str(out), "--to", "dit"]) == 0
    found, expected = weights.read_tensors(out), weights.to_dit(MODEL, random_tensors(MODEL, 2))
    assert found.keys() == expected.keys() and all((found[key] == expected[key]).all() for key in expected)
    options = "--network dit --model.image-size 8 --model.channels 1 --model.num-classes 4 --model.dim 8"
    options += " --model.depth 2 --model.num-heads 2 --model.learn-variance"
    assert main(["convert", str(out), str(tmp_path / "again"), *options.split()]) == 0
    same(open_run(tmp_path / "again"), random_tensors(MODEL, 2))
    arguments = ["convert", str(run.folder), str(tmp_path / "state.npz"), "--to", "dit", "--weights", "state"]
    assert "--to dit takes the weights of a dit" in refused(arguments, capsys)


def test_eps_alone_is_trained_by_its_error(tmp_path):
    model = replace(MODEL, learn_variance=False)
    found, _, process, sample = from_file(tmp_path / "a.pt", weights.to_dit(model, random_tensors(model)), num_heads=2)
    assert found == model and process == GaussianDiffusion(schedules.linear(1000))
    assert sample.sampler == Ancestral("beta")


@pytest.mark.parametrize(
    ("model", "options", "shown"),
    [
        (MODEL, [], "pass num_heads; they are known for widths of 384, 768, 1024, 1152, and this one's is 8"),
        (MODEL, [*HEADS, "--image-size", "16"], "image_size must be 8, as the positions in a.npz say; got 16"),
        (MODEL, [*HEADS, "--dit.label-dropout", "1"], "label_dropout must lie in [0, 1); got 1"),
        (replace(MODEL, channels=4), HEADS, "takes 4 channels: it works on the latents of an autoencoder"),
        (replace(MODEL, num_classes=1), HEADS, "label_dropout must be 0 for a network of 1 classes"),
    ],
)
def test_what_is_refused(model, options, shown, tmp_path, capsys):
    path = weights.write_tensors(tmp_path / "a.npz", weights.to_dit(model, random_tensors(model)))
    assert shown in refused(["import", str(path), "--out", str(tmp_path / "run"), *options], capsys)
    assert not (tmp_path / "run").exists()


def test_a_run_of_another_network_has_no_such_form(tmp_path, capsys):
    model = models.MLPConfig(dim=8)
    run = to_run(tmp_path / "run", model, random_tensors(model))
    arguments = ["convert", str(run), str(tmp_path / "out.npz"), "--to", "dit"]
    assert "it would be a mlp" in refused(arguments, capsys)
    with pytest.raises(UserError, match="label_dropout must be 0"):
        to_run(tmp_path / "other", model, random_tensors(model), label_dropout=0.1)
