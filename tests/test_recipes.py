"""Runs of points, epochs, classes, fine-tuning and pictures: what the presets of the five systems are made of."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from run_checks import assert_same_bits, refusal, state_in

from ddpm_jax import cli, presets
from ddpm_jax.conversion import convert
from ddpm_jax.errors import UserError
from ddpm_jax.pictures import KINDS, plot
from ddpm_jax.training import finetune, open_run, train
from ddpm_jax.training.metrics import read_metrics

SMALL = """
    --data.source spiral:100 --model.dim 8 --model.num-steps 20 --process.num-steps 20 --train.batch-size 20
    --train.epochs 4 --train.log-every 5 --train.checkpoint-every 10 --sample.num 30
"""
POINTS = SMALL.split()


@pytest.fixture(scope="module")
def points_run(tmp_path_factory):
    """20 steps on 100 points of a spiral, five steps a call; not to be changed."""
    folder = tmp_path_factory.mktemp("runs") / "points"
    assert cli.main(["train", "spiral", *POINTS, "--out", str(folder)]) == 0
    return folder


def losses_of(folder):
    return {line["step"]: line["loss"] for line in read_metrics(folder)}


# Points ---------------------------------------------------------------------------------------------------------


def test_a_run_of_points(points_run):
    run = open_run(points_run)
    source = run.open_source()
    assert run.config.train.epoch_steps == 5 and run.config.train.total_steps == 20
    assert (run.scaling.mean, run.scaling.std) == (source.points.mean(), source.points.std(ddof=1))
    with np.load(points_run / "samples.npz") as found:
        assert found["points"].shape == (30, 2) and found["points"].dtype == np.float32
    assert list(losses_of(points_run)) == [5, 10, 15, 20]
    for name in ("samples.png", "denoising.gif", "loss.png"):
        assert (points_run / name).is_file()


@pytest.mark.usefixtures("without_samples")
def test_steps_in_a_call_leave_the_run_as_it_is(points_run, tmp_path):
    config = open_run(points_run).config
    one = replace(config, train=replace(config.train, steps_per_call=1))
    train(one, tmp_path / "one")
    assert losses_of(tmp_path / "one") == pytest.approx(losses_of(points_run), rel=1e-5)


@pytest.mark.usefixtures("without_samples")
def test_points_are_resumed_bit_for_bit(points_run, tmp_path):
    """From a checkpoint amid the run, in calls of as many steps."""
    config = open_run(points_run).config
    half = replace(config, train=replace(config.train, epochs=2))
    train(half, tmp_path / "run")
    assert cli.main(["train", "spiral", "--out", str(tmp_path / "run"), "--resume", "--train.epochs", "4"]) == 0
    assert open_run(tmp_path / "run").config == config
    assert losses_of(tmp_path / "run") == losses_of(points_run)
    assert_same_bits(state_in(tmp_path / "run"), state_in(points_run))


@pytest.mark.usefixtures("without_samples")
def test_a_run_in_epochs_may_go_on_in_steps(points_run, tmp_path):
    shutil.copytree(points_run, tmp_path / "run")
    assert cli.main(["train", "spiral", "--out", str(tmp_path / "run"), "--resume", "--train.steps", "25"]) == 0
    config = open_run(tmp_path / "run").config.train
    assert (config.steps, config.epochs) == (25, None) and list(losses_of(tmp_path / "run"))[-1] == 25


def test_points_and_images_do_not_mix(tmp_path, capsys):
    for preset, source, says in (("spiral", "digits", "holds images"), ("digits", "spiral", "network mlp")):
        assert says in refusal(capsys, "train", preset, "--data.source", source, "--out", tmp_path / "run")
        assert not (tmp_path / "run").exists()


# Epochs, scaling, classes ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("without_samples")
def test_epochs_and_steps_replace_each_other(tmp_path, capsys):
    options = [part for part in POINTS if part not in ("--train.epochs", "4")]
    assert cli.main(["train", "spiral", *options, "--train.steps", "5", "--out", str(tmp_path / "a")]) == 0
    assert open_run(tmp_path / "a").config.train.total_steps == 5
    both = ["--train.steps", "5", "--train.epochs", "4"]
    shown = refusal(capsys, "train", "spiral", *options, *both, "--out", tmp_path / "b")
    assert "one of train.steps and train.epochs is needed" in shown


@pytest.mark.usefixtures("without_samples")
def test_the_unit_interval_comes_back_as_pixels(tiny, tmp_path, capsys):
    command = ["train", "digits", *tiny, "--data.scale", "unit", "--train.steps", "2", "--out", str(tmp_path / "run")]
    assert "sample.clip must be None; got 1" in refusal(capsys, *command)
    assert cli.main([*command, "--sample.clip", "None"]) == 0
    run = open_run(tmp_path / "run")
    assert (run.scaling.mean, run.scaling.std) == (0, 255)
    np.testing.assert_array_equal(run.to_data(np.array([-0.1, 0, 0.5, 1, 2])), [0, 0, 128, 255, 255])


def test_stretched_samples(finished_run, points_run, tmp_path, capsys):
    """The same images, each with a black and a white of its own. Points have no brightness."""
    drawn = {}
    for option in ("--stretch", "--no-stretch"):
        out = tmp_path / option
        command = ["sample", str(finished_run), "--num", "20", "--steps", "5", option, "--out", str(out)]
        assert cli.main(command) == 0
        with np.load(out / "samples.npz") as found:
            drawn[option] = found["images"].reshape(20, -1).astype(float)
    stretched, plain = drawn["--stretch"], drawn["--no-stretch"]
    assert set(zip(stretched.min(1), stretched.max(1), strict=True)) == {(0, 255)}
    assert set(zip(plain.min(1), plain.max(1), strict=True)) != {(0, 255)}
    assert min(np.corrcoef(a, b)[0, 1] for a, b in zip(stretched, plain, strict=True)) > 0.999
    shown = refusal(capsys, "sample", points_run, "--stretch", "--out", tmp_path / "points")
    assert "sample.stretch is for images" in shown
    shown = refusal(capsys, "train", "spiral", "--sample.stretch", "--out", tmp_path / "never")
    assert "sample.stretch is for images" in shown and not (tmp_path / "never").exists()


def test_a_run_on_two_classes(tiny, tmp_path):
    """They keep their numbers, and are what is drawn unless other ones are asked for."""
    options = ["--data.classes", "3", "7", "--train.steps", "2", "--out", str(tmp_path / "run")]
    assert cli.main(["train", "digits", *tiny, *options]) == 0
    run = open_run(tmp_path / "run")
    assert run.config.model.num_classes == 10
    assert list(run.labels(4)) == [3, 7, 3, 7] and list(run.labels(2, ("5",))) == [5, 5]
    assert set(np.load(tmp_path / "run" / "samples.npz")["labels"]) == {3, 7}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--data.classes", "ship"], "class 'ship' is none of digits's 10 classes: 0, 1, 2"),
        (["--data.classes", "3", "--train.batch-size", "500"], "batch_size must lie in 1..183"),
        (["--train.epoch-steps", "0"], "train.epoch_steps must be at least 1, or None; got 0"),
        (
            ["--train.lr-decay", "cosine_by_epoch", "--train.warmup-steps", "3"],
            "warmup_steps must be 0 with a cosine by",
        ),
    ],
)
def test_mistakes_leave_no_folder(options, says, tiny, tmp_path, capsys):
    assert says in refusal(capsys, "train", "digits", *tiny, *options, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


# Fine-tuning ----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("without_samples")
def test_finetuning_starts_from_the_average(finished_run, tmp_path):
    """A step of no length leaves the origin's averaged weights as they were; the origin is named, and kept."""
    origin = open_run(finished_run)
    tuned = tmp_path / "tuned"
    options = ["--data.classes", "3", "--train.steps", "1", "--train.lr", "1e-30", "--train.checkpoint-every", "1"]
    assert cli.main(["finetune", str(finished_run), *options, "--out", str(tuned)]) == 0
    before, step = origin.load_variables(ema=True)
    after, done = open_run(tuned).load_variables(ema=False)
    assert (step, done) == (12, 1)
    np.testing.assert_array_equal(
        *(np.concatenate([np.ravel(a) for a in _leaves(tree["params"])]) for tree in (before, after))
    )
    assert json.loads((tuned / "config.json").read_text())["origin"] == {
        "run": str(finished_run.absolute()), "step": 12, "weights": "ema",
    }  # fmt: skip
    assert open_run(tuned).config.data.classes == ("3",)


def _leaves(tree):
    return [
        leaf
        for key in sorted(tree, key=str)
        for leaf in (_leaves(tree[key]) if isinstance(tree[key], dict) else [tree[key]])
    ]


@pytest.mark.slow
def test_a_finetuned_run_is_resumed_without_its_origin(points_run, tmp_path):
    origin = open_run(points_run)
    config = replace(origin.config, data=replace(origin.config.data, source="disc-grid:100"))
    tuned = finetune(origin, config, tmp_path / "tuned")
    assert tuned.run.scaling == origin.scaling  # that of the spiral: what the weights know
    half = replace(config, train=replace(config.train, epochs=2))
    finetune(origin, half, tmp_path / "again")
    shutil.copytree(tmp_path / "again", tmp_path / "command")
    train(config, tmp_path / "again", resume=True)
    assert_same_bits(state_in(tmp_path / "again"), state_in(tmp_path / "tuned"))
    assert open_run(tmp_path / "again").origin == open_run(tmp_path / "tuned").origin
    # by the command, whose defaults are those of the run that is resumed
    options = ["--out", str(tmp_path / "command"), "--resume", "--train.epochs", "4"]
    assert cli.main(["finetune", str(points_run), *options]) == 0
    assert_same_bits(state_in(tmp_path / "command"), state_in(tmp_path / "tuned"))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--model.dim", "8"], r"model.dim: 4 in the run, 8 now"),
        (["--process.num-steps", "10", "--sample.steps", "4"], r"process.num_steps: 20 in the run, 10 now"),
        (["--data.classes", "ship"], "class 'ship' is none of"),
    ],
)
def test_what_finetuning_refuses(options, says, finished_run, tmp_path, capsys):
    assert says in refusal(capsys, "finetune", finished_run, *options, "--out", tmp_path / "tuned")
    assert not (tmp_path / "tuned").exists()


def test_finetuning_needs_weights_and_another_folder(finished_run, tmp_path):
    run = open_run(finished_run)
    with pytest.raises(UserError, match="is the run to start from"):
        finetune(run, run.config, finished_run)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.json").write_text((finished_run / "config.json").read_text())
    with pytest.raises(UserError, match="holds no checkpoint yet"):
        finetune(open_run(tmp_path / "empty"), run.config, tmp_path / "tuned")


# Pictures -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_every_picture_of_images(kind, finished_run, tmp_path):
    (path,) = plot(open_run(finished_run), [kind], tmp_path, num=4)
    with Image.open(path) as picture:
        assert min(picture.size) > 60
        assert getattr(picture, "n_frames", 1) == {"animation": 5, "one": 5}.get(kind, 1)
        assert len(np.unique(np.asarray(picture.convert("L")))) > 4


def test_the_pictures_of_points(points_run, tmp_path):
    found = plot(open_run(points_run), folder=tmp_path)
    assert [path.name for path in found] == ["samples.png", "animation.gif", "middle.png", "schedule.png", "loss.png"]
    with pytest.raises(UserError, match="noising is of images"):
        plot(open_run(points_run), ["noising"], tmp_path)


@pytest.mark.slow
def test_a_run_made_of_weights_has_pictures(finished_run, tmp_path):
    """But for those of its data and its losses."""
    config = open_run(finished_run).config
    convert(finished_run, tmp_path / "digits.npz")
    (run,) = convert(tmp_path / "digits.npz", tmp_path / "run", config.model)
    found = [path.stem for path in plot(open_run(run), folder=tmp_path / "pictures", num=2)]
    assert found == ["samples", "animation", "one", "walk", "middle", "schedule"]


def test_plot_from_the_command_line(finished_run, tmp_path, capsys):
    assert cli.main(["plot", str(finished_run), "schedule", "loss", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.split() == [str(tmp_path / "schedule.png"), str(tmp_path / "loss.png")]
    assert "a picture must be one of samples, animation, one, walk, middle, beside" in refusal(
        capsys, "plot", finished_run, "portrait"
    )
    assert "holds no config.json" in refusal(capsys, "plot", tmp_path)


def test_noising_shows_what_the_network_sees(finished_run, tmp_path):
    """The rows are the data, the data with more and more noise, and the noise: the first is clean, the second is not."""
    (path,) = plot(open_run(finished_run), ["noising"], tmp_path)
    pixels = np.asarray(Image.open(path).convert("L"), float)
    assert pixels.shape[0] > 4 * 64 and pixels.shape[1] > 8 * 64


# The table ------------------------------------------------------------------------------------------------------


def test_the_presets_are_the_authors():
    """A few numbers of each recipe, as the systems' description gives them."""
    wanted = {
        "mnist-convnext": ("cosine_unclipped", 500, "strided", 128, 1e-3),
        "imagenet-convnext": ("cosine_unclipped", 500, "strided", 128, 1e-3),
        "mnist-tiny": ("linear", 1000, "ancestral", 4096, 1e-3),
        "cifar10-double-conv": ("linear", 1000, "ancestral", 512, 1e-3),
        "fashion-annotated": ("linear", 200, "ancestral", 16, 1e-4),
        "spiral": ("linear", 1000, "ancestral", 25, 1e-3),
        "disc-grid": ("linear", 1000, "ancestral", 25, 1e-3),
        "mnist-strided": ("linear_inclusive", 400, "ancestral", 16, 1e-4),
        "cifar10-strided": ("linear_inclusive", 400, "ancestral", 16, 1e-4),
        "mnist-strided-conditional": ("linear_inclusive", 400, "ancestral", 16, 1e-4),
        "cifar10-strided-conditional": ("linear_inclusive", 400, "ancestral", 16, 1e-4),
        "cifar10-ddpm": ("linear", 1000, "ancestral", 128, 2e-4),
    }
    for name, numbers in wanted.items():
        config = presets.preset(name)
        process, train = config.process, config.train
        schedule = process.schedule
        found = (schedule.name, schedule.num_steps, config.sample.sampler.name, train.batch_size, train.lr)
        assert found == numbers, name
    ddpm = presets.preset("cifar10-ddpm")
    assert (ddpm.model.dropout, ddpm.train.ema_decay, ddpm.train.warmup_steps, ddpm.data.flip) == (
        0.1,
        0.9999,
        5000,
        True,
    )
    assert presets.preset("cifar10-double-conv").data.scale == "unit"
    assert presets.preset("fashion-annotated").train.lr_decay == "cosine_by_epoch"
    assert presets.preset("spiral").train.reset_optimizer


def test_every_preset_says_what_it_is(capsys):
    assert cli.main(["--help"]) == 0
    shown = capsys.readouterr().out
    for name, recipe in presets.RECIPES.items():
        assert name in shown and recipe.about in shown
    assert cli.main(["train", "spiral", "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert presets.RECIPES["spiral"].expect in shown
