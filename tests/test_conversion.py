"""`ddpm convert`: the same numbers in every form, and nothing loaded that does not fit or would run code."""

import os
import zlib
from pathlib import Path

import jax
import numpy as np
import pytest
from run_checks import state_in

from ddpm_jax import models, samplers, schedules
from ddpm_jax.cli import main
from ddpm_jax.conversion import convert
from ddpm_jax.errors import UserError
from ddpm_jax.training.run import open_run
from ddpm_jax.weights import from_original, read_tensors, write_tensors
from ddpm_jax.weights.originals import NETWORKS

torch = pytest.importorskip("torch")

SUFFIXES = [".safetensors", ".npz", ".pt", ".pth"]


def original(name):
    """A checkpoint under its author's names: every tensor drawn by its name, norms near 1, variances positive."""
    tensors = {}
    # the rows read options off the shapes, so those of the author's defaults need a tensor to be read off
    for _ in range(3):
        for row in NETWORKS[name](tensors):
            rng = np.random.default_rng(zlib.crc32(row.theirs.encode()))
            draw = (rng.normal(size=row.shape) / max(np.prod(row.shape[1:]), 1) ** 0.5).astype(np.float32)
            if row.theirs.endswith("num_batches_tracked"):
                draw = np.zeros(row.shape, np.int64)
            tensors[row.theirs] = np.abs(draw) + 1 if row.theirs.endswith("running_var") else draw
    return tensors


def identical(ours, wanted):
    assert list(sorted(ours)) == sorted(wanted)
    for key, value in wanted.items():
        np.testing.assert_array_equal(ours[key], np.asarray(value), key, strict=True)


@pytest.fixture(scope="module")
def exported(finished_run, tmp_path_factory):
    """{which: path} of the finished run's weights."""
    folder = tmp_path_factory.mktemp("weights")
    paths = {which: folder / f"{which}.safetensors" for which in ("ema", "params", "state")}
    for which, path in paths.items():
        assert convert(finished_run, path, which=which) == [path]
    return paths


def test_what_of_a_run_is_written(finished_run, exported):
    ema, params, state = (read_tensors(exported[which]) for which in ("ema", "params", "state"))
    assert ema.keys() == params.keys()
    assert all(key.split(".")[0] in ("model", "ema", "exp_avg", "exp_avg_sq") for key in state if key != "step")
    for key in ema:
        np.testing.assert_array_equal(ema[key], state[f"ema.{key}"])
        np.testing.assert_array_equal(params[key], state[f"model.{key}"])
        assert {f"exp_avg.{key}", f"exp_avg_sq.{key}"} <= set(state)
    assert int(state["step"]) == 12
    assert any((ema[key] != params[key]).any() for key in ema)
    kernel = state_in(finished_run).ema_params["conv_in"]["kernel"]
    np.testing.assert_array_equal(ema["conv_in.weight"], np.asarray(kernel).transpose(3, 2, 0, 1))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_form_holds_the_same(exported, tmp_path, suffix):
    """Also from one file to the other, which needs no network to be named."""
    target = tmp_path / f"weights{suffix}"
    convert(exported["state"], target)
    identical(read_tensors(target), read_tensors(exported["state"]))
    again = tmp_path / "again.npz"
    convert(target, again)
    identical(read_tensors(again), read_tensors(exported["state"]))


@pytest.mark.parametrize("which", ["ema", "state"])
def test_a_run_made_of_weights_draws_the_same_samples(finished_run, exported, tmp_path, which):
    model = open_run(finished_run).config.model
    target = tmp_path / "run"
    assert convert(exported[which], target, model) == [target]
    before, after = state_in(finished_run), state_in(target)
    leaves = {"ema": lambda state: state.ema_params, "state": lambda state: state}[which]
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), leaves(before), leaves(after)))
    assert int(after.step) == (12 if which == "state" else 0)
    # the process is the run's own, so only the weights can make a difference
    run, made = open_run(finished_run), open_run(target)
    key = jax.random.key(0)
    drawn = []
    for one in (run, made):
        denoise = run.denoiser(run.labels(3), variables=one.load_variables()[0])
        drawn.append(samplers.sample(denoise, "ddim", key, (3, *run.shape), 3))
    np.testing.assert_array_equal(*drawn)


def test_the_parameters_alone_become_both(finished_run, exported, tmp_path):
    convert(exported["params"], tmp_path / "run", open_run(finished_run).config.model)
    before, after = state_in(finished_run), state_in(tmp_path / "run")
    for tree in (after.params, after.ema_params):
        assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), before.params, tree))


# Checkpoints of the originals


@pytest.mark.parametrize("suffix", [".pt", ".npz", ".safetensors"])
def test_an_originals_checkpoint(tmp_path, suffix):
    source, config = tmp_path / f"theirs{suffix}", models.configure("tiny_unet", {})
    theirs = original("tiny_unet")
    write_tensors(source, theirs | {"time_embed.weight": np.zeros((1000, 100), np.float32)})
    ours = tmp_path / "ours.safetensors"
    convert(source, ours, config)
    identical(read_tensors(ours), from_original("tiny_unet", theirs))
    convert(ours, tmp_path / "from_ours", config)  # the twin's names are taken as well
    convert(source, tmp_path / "from_theirs", config)
    run = open_run(tmp_path / "from_theirs")
    assert run.config.model == config
    assert run.config.process.schedule == schedules.linear(1000)
    assert run.config.sample.sampler == samplers.Ancestral() and run.config.sample.clip is None
    one, other = state_in(tmp_path / "from_ours"), state_in(tmp_path / "from_theirs")
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), one, other))
    kernel = np.asarray(one.ema_params["conv_out"]["kernel"])
    np.testing.assert_array_equal(kernel.transpose(3, 2, 0, 1), theirs["conv_out.weight"])


def test_running_statistics_and_classes_come_along(tmp_path):
    theirs = original("strided_unet_conditional")
    write_tensors(tmp_path / "theirs.npz", theirs)
    assert (
        main(["convert", str(tmp_path / "theirs.npz"), str(tmp_path / "run"), "--network", "strided_unet_conditional"])
        == 0
    )
    run = open_run(tmp_path / "run")
    assert run.class_names == tuple("0123456789")
    assert run.process.schedule.first == 1 and run.process.schedule.num_steps == 400
    state = state_in(tmp_path / "run")
    np.testing.assert_array_equal(state.batch_stats["down"][0]["norm"]["var"], theirs["dconv_down1.1.running_var"])
    convert(tmp_path / "run", tmp_path / "ours.npz")
    ours = read_tensors(tmp_path / "ours.npz")
    np.testing.assert_array_equal(ours["down.0.norm.running_var"], theirs["dconv_down1.1.running_var"])


# What is refused


@pytest.fixture
def tiny(tmp_path):
    """(path of an original's checkpoint of tiny_unet, its tensors, the config)."""
    tensors = original("tiny_unet")
    return write_tensors(tmp_path / "theirs.npz", tensors), tensors, models.configure("tiny_unet", {})


def test_what_does_not_fit_is_listed(tiny, tmp_path):
    _, tensors, config = tiny
    del tensors["conv_out.bias"]
    bent = {**tensors, "conv_out.weight": np.zeros((2, 2), np.float32), "surplus": np.zeros(3, np.float32)}
    source = write_tensors(tmp_path / "bent.npz", bent)
    with pytest.raises(UserError) as error:
        convert(source, tmp_path / "run", config)
    for line in ("missing: conv_out.bias (1,)", "not of this network: surplus", "misshapen: conv_out.weight is (2, 2)"):
        assert f"\n  {line}" in str(error.value)
    assert not (tmp_path / "run").exists()
    ours = from_original("tiny_unet", original("tiny_unet"))
    del ours["conv_out.bias"]
    with pytest.raises(UserError, match=r"does not fit the network.*:\n  missing: conv_out.bias \(1,\)"):
        convert(write_tensors(tmp_path / "short.npz", ours), tmp_path / "run", config)


def test_the_network_that_fits_is_named(tiny, tmp_path, capsys):
    source, _, _ = tiny
    assert main(["convert", str(source), str(tmp_path / "run"), "--network", "conv_net"]) == 2
    assert capsys.readouterr().err.endswith("It fits tiny_unet.\n")


class Trap:
    """Unpickling this runs a command."""

    def __init__(self, proof):
        self.proof = proof

    def __reduce__(self):
        return os.system, (f"touch {self.proof}",)


@pytest.mark.parametrize("what", ["command", "module", "state dict with a command"])
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path, what):
    proof, path = tmp_path / "ran", tmp_path / "weights.pt"
    trap = {
        "command": lambda: Trap(proof),
        "module": lambda: torch.nn.Linear(2, 2),
        "state dict with a command": lambda: {"conv_out.bias": torch.zeros(1), "more": Trap(proof)},
    }
    torch.save(trap[what](), path)
    with pytest.raises(UserError, match=r"is refused: it holds more than plain tensors.*Save model\.state_dict"):
        convert(path, tmp_path / "run", models.configure("tiny_unet", {}))
    assert not proof.exists() and not (tmp_path / "run").exists()
    torch.load(path, weights_only=False)
    assert proof.exists() == (what != "module")  # it would have been


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_none_are_named(tiny, tmp_path, value):
    _, tensors, config = tiny
    tensors["conv_out.bias"][0] = value
    source = write_tensors(tmp_path / "bad.safetensors", tensors)
    with pytest.raises(UserError, match=r"these hold NaN or infinity: conv_out\.bias\."):
        convert(source, tmp_path / "run", config)


def test_mistakes(tiny, finished_run, tmp_path):
    source, _, config = tiny
    (tmp_path / "there").mkdir()
    (tmp_path / "text.npz").write_text("no archive")
    (tmp_path / "text.txt").write_text("no weights")
    mistakes = {
        r"there exists; choose another name": (source, tmp_path / "there", config),
        r"weights must be one of \.safetensors, .*, or a run folder": (source, tmp_path / "weights.h5", config),
        r"a run folder needs to know the network: pass --network, one of annotated_unet": (source, tmp_path / "run"),
        r"does not exist, or is no file": (tmp_path / "nowhere.npz", tmp_path / "run", config),
        r"text\.npz: cannot be read as a NumPy archive": (tmp_path / "text.npz", tmp_path / "run", config),
        r"text\.txt: weights must be one of": (tmp_path / "text.txt", tmp_path / "run", config),
        r"is a run folder already; convert it to one of": (finished_run, tmp_path / "run"),
        r"holds no config\.json": (tmp_path / "there", tmp_path / "weights.npz"),
    }
    for message, arguments in mistakes.items():
        with pytest.raises(UserError, match=message):
            convert(*(Path(a) if isinstance(a, str) else a for a in arguments))
    assert not (tmp_path / "run").exists()


def test_the_command(tiny, finished_run, tmp_path, capsys):
    source, _, _ = tiny
    target = tmp_path / "out.pt"
    assert main(["convert", str(finished_run), str(target), "--weights", "params"]) == 0
    assert capsys.readouterr().out == f"{target}\n"
    assert main(["convert", str(source), str(tmp_path / "run")]) == 2
    assert "pass --network" in capsys.readouterr().err
    assert main(["convert", str(source)]) == 2
    assert "needs an OUT" in capsys.readouterr().err
    assert main(["convert", str(source), str(tmp_path / "run"), "--network", "tiny"]) == 2
    assert "the network must be one of" in capsys.readouterr().err
    wider = ["--network", "tiny_unet", "--model.dim", "12"]
    assert main(["convert", str(source), str(tmp_path / "run"), *wider]) == 2
    assert "misshapen" in capsys.readouterr().err
    assert main(["convert", str(source), str(tmp_path / "run"), "--network", "tiny_unet"]) == 0
    assert (tmp_path / "run" / "config.json").is_file()
