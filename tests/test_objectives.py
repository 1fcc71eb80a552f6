"""Runs of the family's other objectives, from the command line: flows, learned variance, hidden labels, edits, the bound."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from run_checks import assert_same_bits, refusal, state_in

from ddpm_jax import cli
from ddpm_jax.data import open_source
from ddpm_jax.editing import fitting_mask, repaint_times
from ddpm_jax.errors import UserError
from ddpm_jax.pictures import fitting, plot
from ddpm_jax.training import open_run, train
from ddpm_jax.training.metrics import read_metrics


def ddpm(*arguments):
    return cli.main([str(argument) for argument in arguments])


def images_of(path):
    with np.load(path) as archive:
        return archive["images"]


@pytest.fixture(scope="module")
def rich_run(tiny, tmp_path_factory):
    """Learned variance, self-conditioning, hidden labels and loss-aware times in one run of 12 steps; not to be changed."""
    folder = tmp_path_factory.mktemp("runs") / "rich"
    options = [
        "--model.learn-variance",
        "--model.self-conditioning",
        "--process.loss",
        "hybrid",
        "--train.loss-aware-times",
        "--process.num-steps",
        "6",
        "--train.label-dropout",
        "0.3",
        "--sample.sampler",
        "ancestral",
        "--sample.variance",
        "learned",
    ]
    assert ddpm("train", "digits", *tiny, *options, "--out", folder) == 0
    return folder


def test_everything_at_once(rich_run, tmp_path):
    run = open_run(rich_run)
    assert run.config.model.num_classes == 11 and len(run.class_names) == 10
    assert run.null_label == 10 and run.config.model.self_conditioning and run.process.learned_variance
    history = state_in(rich_run).loss_history
    assert int(history.counts.sum()) > 0 and (history.counts <= 10).all()
    assert all(np.isfinite(line["loss"]) for line in read_metrics(rich_run))
    assert (
        ddpm("sample", rich_run, "--num", 10, "--guidance", 3, "--guidance-to", 0.8, "--out", tmp_path / "guided") == 0
    )
    assert ddpm("sample", rich_run, "--num", 10, "--out", tmp_path / "plain") == 0
    guided, plain = (images_of(tmp_path / name / "samples.npz") for name in ("guided", "plain"))
    assert guided.shape == (10, 8, 8, 1) and (guided != plain).any()
    assert ddpm("plot", rich_run, "noising", "--out", tmp_path / "pictures") == 0


@pytest.mark.usefixtures("without_samples")
def test_the_history_of_losses_is_resumed(rich_run, tmp_path):
    """Bit for bit, from step 8 of 12."""
    folder = tmp_path / "again"
    shutil.copytree(rich_run, folder)
    shutil.rmtree(folder / "checkpoints" / "12")
    run = open_run(folder)
    assert train(run.config, folder, resume=True).step == 12
    assert_same_bits(state_in(folder), state_in(rich_run))


def test_bits_per_dimension(rich_run, capsys):
    """The parts add up, and the figure is that of a network which has learnt nothing."""
    assert ddpm("evaluate", rich_run, "--likelihood", "--num", 12, "--batch-size", 8) == 0
    shown = capsys.readouterr().out
    found = json.loads((rich_run / "likelihood.json").read_text())
    assert "bits per dimension" in shown and "variance: learned" in shown
    assert len(found["terms"]) == 6 and found["terms"][0] == found["decoder"]
    assert found["bits_per_dim"] == pytest.approx(found["prior"] + sum(found["terms"]))
    assert found["bits_per_dim"] > 3


@pytest.mark.slow
def test_flows(tiny, tmp_path):
    """A run by flow matching draws, plots and evaluates as another; its samples come from the velocity."""
    folder = tmp_path / "flow"
    assert ddpm("train", "digits-flow", *tiny, "--process.time-draw", "logit_normal", "--out", folder) == 0
    run = open_run(folder)
    assert type(run.process).__name__ == "FlowMatching" and run.process.num_steps == 20
    assert ddpm("sample", folder, "--sampler", "adaptive", "--tolerance", 0.1, "--num", 10) == 0
    assert ddpm("plot", folder, "noising") == 0
    with pytest.raises(UserError, match="schedule is of a diffusion"):
        plot(run, ["schedule"])
    assert "schedule" not in fitting(run) and "noising" in fitting(run)


@pytest.mark.parametrize("name", ["spiral-flow", "spiral-iadb"])
def test_flows_of_points(name, tmp_path):
    options = [
        "--data.source",
        "spiral:200",
        "--model.dim",
        "8",
        "--train.batch-size",
        "20",
        "--train.epochs",
        "1",
        "--train.log-every",
        "5",
        "--train.checkpoint-every",
        "10",
        "--sample.num",
        "30",
        "--sample.steps",
        "3",
    ]
    assert ddpm("train", name, *options, "--out", tmp_path / "run") == 0
    with np.load(tmp_path / "run" / "samples.npz") as archive:
        assert archive["points"].shape == (30, 2) and np.isfinite(archive["points"]).all()


# Edits ----------------------------------------------------------------------------------------------------------


def test_inpainting_keeps_what_is_known(finished_run, tmp_path):
    options = ["--num", 3, "--mask", "left", "--steps", 4, "--resample", 2, "--jump", 2, "--out", tmp_path]
    assert ddpm("edit", finished_run, "inpaint", *options) == 0
    edited = images_of(tmp_path / "edit.npz")
    real = {image.tobytes() for image in open_source("digits").images[..., 4:, :]}
    assert edited.shape == (3, 8, 8, 1)
    assert all(np.ascontiguousarray(image[:, 4:]).tobytes() in real for image in edited)
    assert (tmp_path / "edit.png").is_file()


def test_edits_of_ones_own_files(finished_run, tmp_path):
    for i in range(3):
        Image.fromarray(np.full((20, 30, 3), 80 * i, np.uint8)).save(tmp_path / f"{i}.png")
    mask = np.zeros((8, 8), np.uint8)
    mask[2:4] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    files = ["--images", *(tmp_path / f"{i}.png" for i in range(3)), "--labels", 4, "--steps", 4]
    assert ddpm("edit", finished_run, "inpaint", *files, "--mask", tmp_path / "mask.png", "--out", tmp_path / "in") == 0
    edited = images_of(tmp_path / "in" / "edit.npz")
    for i in range(3):
        assert (np.delete(edited[i], [2, 3], axis=0) == 80 * i).all()
    assert ddpm("edit", finished_run, "vary", *files, "--strength", 0.5, "--out", tmp_path / "vary") == 0
    varied = images_of(tmp_path / "vary" / "edit.npz")
    assert varied.shape == (3, 8, 8, 1)
    assert ddpm("edit", finished_run, "vary", *files, "--spacing", "leading", "--out", tmp_path / "other") == 0
    assert (images_of(tmp_path / "other" / "edit.npz") != varied).any()
    assert ddpm("edit", finished_run, "interpolate", *files, "--num", 5, "--out", tmp_path / "between") == 0
    assert images_of(tmp_path / "between" / "edit.npz").shape == (10, 8, 8, 1)


def test_the_detours_of_repaint():
    grid = repaint_times(np.array([9, 7, 5, 3, 1, -1]), resample=2, jump=2)
    assert grid.tolist() == [9, 7, 5, 9, 7, 5, 3, 1, 5, 3, 1, -1]
    assert repaint_times(np.array([9, 4, -1]), 3, 10).tolist() == [9, 4, -1]


def test_masks():
    shape = (2, 4, 4, 3)
    assert fitting_mask(np.eye(4), shape).shape == (1, 4, 4, 1)
    assert fitting_mask(np.ones((2, 4, 4)), shape).shape == (2, 4, 4, 1)
    assert fitting_mask(np.ones((4, 4, 3)), shape).shape == (1, 4, 4, 3)
    with pytest.raises(UserError, match=r"mask must have the shape \(4, 4\)"):
        fitting_mask(np.ones((5, 4)), shape)
    with pytest.raises(UserError, match="hides nothing"):
        fitting_mask(np.zeros((4, 4)), shape)


# Mistakes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--process.loss hybrid", "learn_variance"),
        ("--model.learn-variance", "hybrid or vlb"),
        ("--process.prediction eps --process.zero-terminal-snr", "zero terminal SNR"),
        ("--process.loss vlb --process.weighting snr", "weights of its own"),
        (
            "--process.kind flow --process.prediction v",
            "--process.prediction belongs to --process.kind diffusion; got flow",
        ),
        (
            "--process.schedule cosine --process.beta-end 0.01",
            "--process.beta-end belongs to --process.schedule linear and",
        ),
        ("--train.label-dropout 1.0", "train.label_dropout must lie in [0, 1)"),
        ("--train.label-dropout 0.1 --data.no-labels", "needs a network and data with classes"),
        ("--sample.threshold 2", "sample.threshold must lie in (0, 1]"),
        ("--sample.churn 1", "belongs to --sample.sampler heun"),
        ("--sample.guidance-from 0.9 --sample.guidance-to 0.1", "two numbers of [0, 1] in order"),
    ],
)
def test_options_that_exclude_each_other(options, says, tiny, tmp_path, capsys):
    assert says in refusal(capsys, "train", "digits", *tiny, *options.split(), "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("sample RUN --guidance 2", "trained with some labels hidden: train.label_dropout must be above 0"),
        ("sample RUN --sampler midpoint", "needs times between timesteps"),
        ("sample RUN --variance learned --sampler ancestral", "model.learn_variance"),
        ("sample RUN --sampler ddim --steps 21", "steps must lie in 1..20"),
        ("sample RUN --eta 2", "eta must lie in [0, 1]"),
        ("edit RUN paint", "inpaint"),
        ("edit RUN vary --strength 0", "strength must lie in (0, 1]"),
        (
            "edit RUN inpaint --mask nowhere.png",
            "or an image file; got 'nowhere.png'",
        ),
        ("edit RUN inpaint --resample 0", "resample must be at least 1"),
        ("edit RUN interpolate --images one.png", "at least 2 images"),
        ("evaluate RUN --likelihood --num 5000", "at most 1797"),
    ],
)
def test_mistakes_with_a_run(arguments, says, finished_run, capsys):
    assert says in refusal(capsys, *(str(finished_run) if part == "RUN" else part for part in arguments.split()))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["flow", "blending"])
def test_every_kind_of_process_is_chosen(kind, tiny, tmp_path):
    options = ["--process.kind", kind, "--sample.sampler", "euler", "--sample.steps", 2]
    assert ddpm("train", "digits", *tiny, *options, "--out", tmp_path / "run") == 0
    assert open_run(tmp_path / "run").process.times(4).tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]
