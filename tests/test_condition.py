"""Images as condition: exact denoisers that are shown one, specs, what samples are shown, and a whole run."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ddpm_jax import data, denoisers, presets, processes, samplers, schedules, training
from ddpm_jax.cli import main
from ddpm_jax.condition import HALVES, as_condition, hidden
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation import evaluate_run
from ddpm_jax.models import UNetConfig
from ddpm_jax.samplers import DDIM
from ddpm_jax.training import Drawing, Run
from ddpm_jax.training.conditions import of_batches, of_source

SMALL = UNetConfig(
    image_size=8, channels=1, dim=8, dim_mults=(1,), num_blocks=1, attention_resolutions=(), norm_groups=4
)
UPSCALE = presets.preset("digits-upscale")
TINY = replace(
    UPSCALE,
    model=SMALL,
    train=replace(
        UPSCALE.train, steps=4, warmup_steps=1, batch_size=8, sample_every=2, log_every=2, checkpoint_every=4
    ),
    sample=replace(UPSCALE.sample, steps=2, num=10),
)


# Against closed forms ----------------------------------------------------------------------------------------------

PAIRS = {
    "chain": processes.GaussianDiffusion(schedules.cosine(200), prediction="x0"),
    "flow": processes.FlowMatching(200),
}
SLOPE, LEFT = 0.8, 0.3
"""x is 0.8 c, and a normal deviation of 0.3 that c does not tell."""


def exact(process):
    """E[x | x_t, c] of x = SLOPE c + LEFT z, from x_t and the c that stands behind it along the channels."""

    def network(seen, time):
        x_t, c = seen[..., :1], seen[..., 1:]
        t = time if process.name == "diffusion" else time / (process.num_steps - 1)
        level = process.level(t, x_t)
        gain = level.alpha * LEFT**2 / (level.alpha**2 * LEFT**2 + level.sigma**2)
        x_0 = SLOPE * c + gain * (x_t - level.alpha * SLOPE * c)
        eps = (x_t - level.alpha * x_0) / level.sigma
        return process.target(x_0, eps, t)

    return denoisers.of(process, network)


@pytest.mark.parametrize("name", PAIRS)
def test_samples_of_the_exact_denoiser_follow_what_it_is_shown(name):
    """10,000 pairs for each c: mean 0.8 c and deviation 0.3, which no denoiser that ignores c has."""
    process = PAIRS[name]
    values = jnp.asarray([-1.0, 0.0, 1.5])
    c = jnp.broadcast_to(values[:, None, None, None], (3, 100, 100, 1))
    sampler = DDIM(eta=1.0) if name == "chain" else samplers.as_sampler("heun")
    x = np.asarray(samplers.sample(exact(process).beside(c), sampler, 0, c.shape, 200))
    for drawn, value in zip(x.reshape(3, -1), values, strict=True):
        assert abs(drawn.mean() - SLOPE * value) < 0.015
        assert abs(drawn.std() / LEFT - 1) < 0.04


# What is shown -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", ["downsample:2", "downsample:4", "gray", *(f"mask:{part}" for part in HALVES)])
def test_specs(spec):
    condition = as_condition(spec)
    assert repr(condition) == spec and condition == as_condition(spec)
    constant = np.full((2, 8, 8, 3), 0.25, np.float32)
    shown = np.asarray(condition.shown(constant))
    pictured = condition.pictured(shown)
    assert pictured.shape[-1] in (1, 3) and shown.shape == (2, 8, 8, condition.channels(3))
    if spec.startswith("mask"):
        where = hidden(spec[5:], 8, 8)
        assert (shown[..., 3] == where).all() and (pictured[:, where] == 0).all()
        np.testing.assert_array_equal(pictured[:, ~where], constant[:, ~where])
        # nothing of what is hidden comes through
        other = np.where(where[..., None], 7.0, constant).astype(np.float32)
        np.testing.assert_array_equal(condition.shown(other), shown)
    else:  # a constant image is its own means and its own luma
        np.testing.assert_allclose(pictured, 0.25, rtol=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.text(alphabet="downsample:graymk0123456789-x ", max_size=14))
def test_any_spec_is_taken_or_refused(text):
    try:
        condition = as_condition(text)
    except UserError as error:
        assert "got" in str(error)
    else:
        assert as_condition(repr(condition)) == condition


def run_of(config, tmp_path):
    return Run(tmp_path, presets.shown_its_condition(config), (), data.scaling_of(data.open_source("digits")))


def test_conditions_go_through_the_classes(tmp_path):
    run, source = run_of(TINY, tmp_path), data.open_source("digits")
    labels = np.resize(np.array([3, 7, 0]), 50)
    found = of_source(run, source, labels, 50, seed=1)
    np.testing.assert_array_equal(found.labels, labels)
    assert len(set(found.numbers)) == 50  # an image twice only once a class is used up
    # sample n is shown the same, whatever the number of samples and the batch it comes in
    np.testing.assert_array_equal(of_source(run, source, labels[:7], 7, seed=1).numbers, found.numbers[:7])
    np.testing.assert_allclose(found.of(np.arange(50))[20:30], found.of(np.arange(20, 30)), atol=1e-6)
    x_0 = run.scaling.apply(source.images[found.numbers[:4]])
    np.testing.assert_array_equal(found.of(np.arange(4)), run.shown(x_0))
    np.testing.assert_array_equal(found.of(np.array([51])), found.of(np.array([1])))
    other = of_source(run, source, None, 50, seed=2)
    assert not (other.numbers == found.numbers).all()
    with pytest.raises(UserError, match=r"digits .*has no image of class 4 to make a condition of"):
        of_source(run, data.open_source("digits", classes=("3",)), np.array([4]), 1, seed=0)


def test_conditions_of_batches(tmp_path):
    run = run_of(TINY, tmp_path)
    images = np.arange(6 * 64, dtype=np.uint8).reshape(6, 8, 8, 1)
    found = of_batches(run, iter([(images[:3],), (run.scaling.apply(images[3:]),)]), 5)
    np.testing.assert_allclose(found.of(np.arange(5)), run.shown(run.scaling.apply(images[:5])), atol=1e-6)
    with pytest.raises(UserError, match="hold images"):
        of_batches(run, iter([]), 5)


# Whole runs --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return training.train(TINY, tmp_path_factory.mktemp("conditioned") / "run").run


def test_a_run_finds_its_channels(run):
    assert run.config.model.condition_channels == 1 and run.shape == (8, 8, 1)
    assert training.open_run(run.folder).config == run.config
    assert training.train(TINY, run.folder, resume=True).step == 4  # which says no condition_channels


def test_samples_depend_on_what_is_shown(run, tmp_path):
    drawing = Drawing(run, TINY.sample, batch_size=4)
    drawn = drawing.draw(None, 10)
    assert drawn.shown.shape == (10, 8, 8, 1)
    found = drawing.shown_for(None, 10)
    np.testing.assert_array_equal(drawn.shown, found.pictures(np.arange(10)))
    same = replace(drawing, batch_size=7).draw(None, 10)
    assert np.abs(same.values.astype(int) - drawn.values).max() <= 1
    other = replace(drawing, conditions=replace(found, numbers=found.numbers[::-1])).draw(None, 10)
    assert (other.values != drawn.values).any()


def test_samples_of_files(run, tmp_path, capsys):
    for k in range(2):
        Image.fromarray(np.full((2, 2), 60 + 100 * k, np.uint8)).save(tmp_path / f"{k}.png")
    command = ["sample", str(run.folder), "--num", "3", "--out", str(tmp_path / "out"), "--condition"]
    assert main([*command, str(tmp_path / "0.png"), str(tmp_path / "1.png")]) == 0
    (tmp_path / "bad.png").write_text("no image")
    assert main([*command, str(tmp_path / "bad.png")]) == 2
    assert "bad.png is not a readable image" in capsys.readouterr().err


def test_edits_pictures_and_measures(run, tmp_path, capsys):
    assert main(["edit", str(run.folder), "vary", "--num", "2", "--steps", "2", "--out", str(tmp_path / "edit")]) == 0
    assert main(["plot", str(run.folder), "noising", "--out", str(tmp_path / "plot")]) == 0
    assert main(["edit", str(run.folder), "interpolate", "--out", str(tmp_path / "edit")]) == 2
    assert "interpolate needs a run without data.condition" in capsys.readouterr().err


@pytest.mark.slow
def test_evaluation(run):
    """Samples of a run without classes are held to those of the images that they were made for."""
    evaluation, _ = evaluate_run(Drawing(run, replace(TINY.sample, num=20)), num_real=400)
    assert {metric.name for metric in evaluation.metrics} >= {"class_agreement", "nearest_training_image"}
    assert evaluation.facts["condition"] == "downsample:4"


def test_batches_of_ones_own(tmp_path):
    def loader(start_step):
        for step in range(start_step, 20):
            yield np.random.default_rng(step).integers(0, 256, (8, 8, 8, 1), np.uint8)

    config = replace(TINY, train=replace(TINY.train, steps=2))
    outcome = training.train(config, tmp_path / "run", source=data.Batches(loader))
    assert outcome.step == 2 and (tmp_path / "run" / "samples.png").exists()
    with pytest.raises(UserError, match=r"data\.condition needs batches that can be read again"):
        training.train(config, tmp_path / "other", source=data.Batches(list(loader(0))))
    shown = data.Batches(lambda start: ({"x_0": x, "condition": x} for x in loader(start)))
    with pytest.raises(UserError, match="must hold no 'condition', which a run makes"):
        training.train(config, tmp_path / "third", source=shown)
