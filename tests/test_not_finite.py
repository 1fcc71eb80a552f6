"""Samples that hold NaN or infinity: what was found is said, nothing is written in their place, no float becomes a black pixel."""

import functools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from run_checks import assert_same_bits, refusal, state_in

from ddpm_jax import cli, data, denoisers, editing, figures, processes, samplers, schedules
from ddpm_jax.data import Scaling
from ddpm_jax.errors import NotFiniteError
from ddpm_jax.training import Drawing, Run, TrainState, metrics

CHAIN = processes.GaussianDiffusion(schedules.linear(20))
SHAPE = (4, 4, 4, 1)


class Broken(nnx.Module):
    """Half of x_t; of class 1 the given value, from the time `since` on downwards, which are network times."""

    def __init__(self, value=float("nan"), since=1000.0):
        self.value, self.since = value, since

    def __call__(self, x_t, t, labels=None, *, rngs=None):
        bad = ((labels == 1) & (t <= self.since))[:, None, None, None]
        return jnp.where(bad & (jnp.arange(4) == 2)[:, None], self.value, x_t / 2)


# Samplers


def network(model, labels, process=CHAIN, **options):
    return denoisers.of_network(model, process, labels=labels, null_label=2, **options)


def walk(name, denoise):
    return samplers.sample(denoise, name, 0, (len(denoise.labels), *SHAPE[1:]), 10)


@pytest.mark.parametrize("name", [name for name in samplers.SAMPLERS if name not in ("midpoint", "adaptive")])
def test_the_step_is_named(name):
    """From t = 9 on the network's output is NaN for two of four samples; one value of them is enough."""
    grid = samplers.as_sampler(name).grid(CHAIN, 10)
    seen = grid[:, 1] <= 9 if name == "heun" else grid[:, 0] <= 9  # which looks at the end of its step as well
    step = int(np.argmax(seen)) + 1
    with pytest.raises(NotFiniteError) as found:
        walk(name, network(Broken(since=9), [0, 1, 2, 1]))
    shown = f"2 of 4 samples hold NaN or infinity, the first since step {step} of 10 (t = {grid[step - 1, 0]})"
    assert shown in str(found.value)


def test_the_first_of_several_is_named():
    """Where the samples break at different steps; from the starting noise of step 0 on."""
    with pytest.raises(NotFiniteError, match="step 1 of 10"):
        walk("ddim", network(Broken(), [0, 1]))
    x_T = jnp.ones((3, 2)).at[1, 0].set(jnp.inf)

    def predict(x_t, t):
        return x_t.at[2].set(jnp.where(t[2] < 10, jnp.nan, 0.0))

    grid = samplers.DDIM().grid(CHAIN, 10)
    found = samplers.walk(denoisers.of(CHAIN, predict), "ddim", x_T, lambda i: x_T, grid)
    step = int(np.argmax(grid[:, 0] < 10)) + 1
    assert found.broke.tolist() == [-1, 0, step]


@pytest.mark.parametrize(
    ("wrapped", "options", "advice"),
    [
        (lambda d: d, {}, "Try clip = 1, where data lies in [-1, 1], or more steps or another sampler."),
        (denoisers.clipped, {}, "Try more steps or another sampler."),
        (lambda d: denoisers.clipped(denoisers.guided(d, 2.0)), {}, "Try a lower guidance, or more steps"),
        (denoisers.clipped, {"dtype": "bfloat16"}, "Try float32, or more steps"),
    ],
)
def test_what_to_try(wrapped, options, advice):
    with pytest.raises(NotFiniteError, match=re.escape(advice)):
        walk("ddim", wrapped(network(Broken(since=9), [0, 1], **options)))


def test_infinity_is_found_and_clipping_hides_none():
    for value in (float("inf"), -float("inf")):
        with pytest.raises(NotFiniteError, match="1 of 2"):
            walk("ddim", network(Broken(value), [0, 1]))
    # a bound on x_0 makes something finite of an infinite one, as it says
    assert np.isfinite(walk("ddim", denoisers.clipped(network(Broken(float("inf")), [0, 1])))).all()
    with pytest.raises(NotFiniteError):
        walk("ddim", denoisers.thresholded(network(Broken(), [0, 1]), 0.9))


def test_samples_that_only_fill_up_are_not_looked_at():
    samples = samplers.draw(network(Broken(), [0, 0, 1]), "ddim", 0, (3, *SHAPE[1:]), 10, kept=2).x_0
    assert np.isfinite(samples[:2]).all() and np.isnan(samples[2]).any()


def test_the_adaptive_solver_gives_up_at_once():
    """Where the velocity is not finite no step is short enough: it is not tried thousands of times, and no other sample is lost."""
    flow = processes.FlowMatching()
    denoise = network(Broken(since=500.0), [0, 1, 2, 0], flow)
    with pytest.raises(NotFiniteError, match=r"1 of 4 samples could not be solved .* the first from step \d+ on"):
        samplers.sample(denoise, "adaptive", 0, SHAPE)
    found = samplers.draw(denoise.with_labels([0, 0, 2, 1]), "adaptive", 0, SHAPE, kept=3)
    assert np.isfinite(found.x_0[:3]).all() and found.num_steps[:3].max() < 30

    def predict(x_t, t):
        return jnp.where((jnp.arange(2) == 1)[:, None], jnp.nan, -x_t)

    walk = samplers.solve(denoisers.of(flow, predict), jnp.ones((2, 3)))
    assert walk.broke.tolist() == [-1, 1] and walk.num_steps[1] < 30 and np.isfinite(walk.x_0[0]).all()


def test_edits_and_inversion():
    x_0, hidden = np.zeros(SHAPE, np.float32), np.ones(SHAPE[1:3], bool)
    denoise = network(Broken(since=9), [0, 1, 0, 1])
    since = r"2 of 4 samples hold NaN or infinity, the first since step \d+ of \d+ \(t = -?\d+\)"
    for call in (
        functools.partial(editing.inpaint, denoise, 0, x_0, hidden, num_steps=5, resample=1),
        functools.partial(editing.vary, denoise, 0, x_0, strength=0.8, num_steps=5),
        functools.partial(editing.invert, denoise, x_0, num_steps=5),
    ):
        with pytest.raises(NotFiniteError, match=since):
            call()
    with pytest.raises(NotFiniteError, match=r"2 of 2 samples .* since step 1 of 5"):
        editing.interpolate(denoise.with_labels(1), x_0[0], x_0[0] + 1, 3, num_steps=5)
    with pytest.raises(NotFiniteError, match="what the walk starts from"):
        editing.invert(denoisers.of(CHAIN, lambda x_t, t: x_t), np.full((2, 2), np.nan), num_steps=5)


def test_the_way_between_two_zeros_is_finite():
    """A network that says zero takes a grey image to zero noise, which has no direction."""
    zero, one = jnp.zeros((2, 2)), jnp.ones((2, 2))
    for a, b in ((zero, zero), (zero, one), (one, zero)):
        np.testing.assert_allclose(editing.slerp(a, b, jnp.array([0.0, 0.5, 1.0])), [a, (a + b) / 2, b])


# Guidance


@pytest.mark.parametrize("value", [0.0, 0.1, -3.7])
def test_an_output_of_one_value_is_rescaled_to_itself(value):
    """It has no deviation to bring back; one example of two."""

    def predict(x_t, t, labels):
        return x_t.at[:2].set(value)  # which are the first example twice

    x_t = jax.random.normal(jax.random.key(0), (2, 7, 5, 3))
    denoise = denoisers.of(CHAIN, predict, labels=0, null_label=9)
    out = denoisers.guided(denoise, 3.0, rescale=0.7).output(x_t, 0)
    np.testing.assert_allclose(out, x_t.at[0].set(value), rtol=1e-6)


def test_guidance_of_an_untrained_output_gives_samples():
    class Zero(nnx.Module):
        def __call__(self, x_t, t, labels=None, *, rngs=None):
            return jnp.zeros_like(x_t)

    assert np.isfinite(walk("ancestral", denoisers.guided(network(Zero(), [0, 1]), 2.0, rescale=0.7))).all()


# Bytes


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_no_float_that_is_not_finite_becomes_a_byte(value):
    images = np.zeros((2, 3, 4, 1), np.float32)
    images[1, 2, 0] = value
    for make in (data.to_images, Scaling(0.0, 255.0).to_images, data.stretched):
        with pytest.raises(
            NotFiniteError, match=re.escape("1 of 24 values are NaN or infinity, the first at (1, 2, 0, 0)")
        ):
            make(images)
        make(images[:1])


def test_what_is_merely_large_is_white():
    """Though its pixels are too large for float32."""
    images = np.array([-3e38, 0.0, 3e38], np.float32).reshape(1, 1, 3, 1)
    for make, middle in ((data.to_images, 128), (data.stretched, 128)):
        assert make(images).ravel().tolist() == [0, middle, 255]


@pytest.mark.parametrize(
    "images", [np.zeros((1, 4, 4, 1)), np.zeros((4, 4, 1), np.uint8), np.zeros((1, 4, 4, 2), np.uint8)]
)
def test_a_grid_takes_bytes_alone(images):
    with pytest.raises(ValueError, match=re.escape(f"must be uint8 (N, H, W, 1 or 3); got {images.dtype}")):
        figures.grid(images)


# Commands


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def broken(run, monkeypatch):
    """The run's folder; whoever loads its network gets one whose output is NaN."""
    load = Run.load_variables

    def damaged(self, **options):
        variables, step = load(self, **options)
        return jax.tree.map(lambda a: a * jnp.nan, variables), step

    monkeypatch.setattr(Run, "load_variables", damaged)
    return run.folder


SAID = re.compile(
    r"^ddpm: \d+ of \d+ samples hold NaN or infinity, the first since step 1 of \d+ \(t = -?\d+\)\. Try .*damaged\.$"
)


@pytest.mark.parametrize(
    "arguments",
    [
        ["sample"],
        ["sample", "--batch-size", "3"],
        ["sample", "--stretch"],
        ["evaluate", "--num", "20"],
        ["edit", "vary", "--num", "2"],
        ["edit", "inpaint", "--num", "2"],
        ["edit", "interpolate", "--num", "2"],
        *(["plot", kind] for kind in ("samples", "animation", "one", "walk", "middle", "beside")),
    ],
    ids=" ".join,
)
def test_commands_say_it_and_write_nothing(broken, capsys, arguments):
    (broken / "samples").mkdir(exist_ok=True)
    for name in ("samples.npz", "samples.png", "denoising.gif"):
        (broken / "samples" / name).write_text("what was here before")
    before = files_of(broken)
    command, *options = arguments
    assert SAID.match(refusal(capsys, command, broken, *options))
    assert files_of(broken) == before


def test_the_picture_of_predicted_noise_and_the_likelihood(broken, capsys):
    before = files_of(broken)
    assert "values are NaN or infinity, the first at (0, 0, 0, 0)" in refusal(capsys, "plot", broken, "noising")
    said = refusal(capsys, "evaluate", broken, "--likelihood", "--num", "3")
    assert "the bound of 3 of 3 images is NaN or infinite: 20 of 20 terms, the first at t = 0" in said
    assert files_of(broken) == before


def test_later_batches_are_looked_at_too(run, capsys, monkeypatch):
    """What was drawn of them before is not left behind."""
    denoiser, batches = Drawing.denoiser, iter(range(3))

    def third_is_broken(self, labels, shown=None):
        nan = denoisers.of(self.run.process, lambda x_t, t, labels: x_t * jnp.nan, labels=labels)
        return denoiser(self, labels) if next(batches) < 2 else nan

    monkeypatch.setattr(Drawing, "denoiser", third_is_broken)
    before = files_of(run.folder)
    assert "2 of 2 samples" in refusal(capsys, "sample", run.folder, "--num", "6", "--batch-size", "2")
    assert files_of(run.folder) == before


def test_a_training_run_is_not_lost(tiny, tmp_path, capsys, monkeypatch):
    """An average that blows up, on the way and at the end: both are said, every step is saved, and the run is whole."""
    average = TrainState.variables
    damaged = {"ema": True}

    def variables(self, *, ema):
        return (
            jax.tree.map(lambda a: a * jnp.nan, average(self, ema=ema))
            if ema and damaged["ema"]
            else average(self, ema=ema)
        )

    monkeypatch.setattr(TrainState, "variables", variables)
    folder, other = tmp_path / "run", tmp_path / "other"
    assert cli.main(["train", "digits", *tiny, "--out", str(folder)]) == 2
    said = capsys.readouterr().err
    assert "step 8: no picture of samples. 10 of 10 samples hold NaN or infinity, the first since step 1 of 4" in said
    last = said.splitlines()[-1]
    assert last.startswith(
        "ddpm: training is finished and step 12 is saved, but no samples could be drawn. 10 of 10 samples"
    )
    assert last.endswith(f"ddpm sample {folder} draws them again.")
    drawn = ("samples.npz", "samples.png", "denoising.gif", "samples/step_0000008.png")
    assert not any((folder / name).exists() for name in drawn)
    assert (folder / "loss.png").exists() and metrics.read_metrics(folder)[-1]["step"] == 12
    damaged["ema"] = False
    assert cli.main(["train", "digits", *tiny, "--out", str(other)]) == 0
    assert_same_bits(state_in(folder), state_in(other))
    assert cli.main(["sample", str(folder)]) == 0
    assert all((other / name).exists() for name in drawn) and (folder / "samples" / "samples.png").exists()


def test_points_are_refused_too(tmp_path, capsys, monkeypatch):
    """They become no bytes, but an archive of NaN is no better."""
    options = ["--train.steps", "2", "--train.batch-size", "8", "--train.sample-every", "0", "--train.log-every", "2"]
    options += ["--sample.num", "4", "--sample.steps", "2", "--out", str(tmp_path / "run")]
    assert cli.main(["train", "spiral", *options]) == 0
    before = files_of(tmp_path / "run")
    load = Run.load_variables
    monkeypatch.setattr(
        Run, "load_variables", lambda self, **_: (jax.tree.map(lambda a: a * jnp.nan, load(self)[0]), 2)
    )
    assert "4 of 4 samples hold NaN or infinity" in refusal(capsys, "sample", tmp_path / "run")
    assert files_of(tmp_path / "run") == before
