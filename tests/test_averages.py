"""Averages by power functions: profiles against their integrals, and averages made afterwards against those that were kept."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.tree_util import tree_leaves

from ddpm_jax import models, presets, processes, schedules, training
from ddpm_jax.conversion import average
from ddpm_jax.errors import UserError
from ddpm_jax.training import averages, open_run, train


def profile(length, steps):
    """p(tau) on a fine grid of [0, steps]."""
    gamma = averages.exponent(length)
    tau = (np.arange(200_000) + 0.5) / 200_000 * steps
    return tau, (gamma + 1) * (tau / steps) ** gamma / steps


@pytest.mark.parametrize("length", [0.28, 0.1, 0.05, 0.01])
def test_a_length_is_the_deviation_of_its_profile(length):
    tau, p = profile(length, 1.0)
    mean = np.average(tau, weights=p)
    assert np.sqrt(np.average((tau - mean) ** 2, weights=p)) == pytest.approx(length, rel=1e-4)


def test_exponents_of_the_paper():
    """Table 5 and section 3.2: sigma_rel = 0.05 and 0.10 are gamma = 16.97 and 6.94."""
    assert averages.exponent(0.05) == pytest.approx(16.97, abs=0.005)
    assert averages.exponent(0.10) == pytest.approx(6.94, abs=0.005)


def test_overlaps_are_integrals():
    for (s, one), (t, two) in [((1.0, 0.05), (1.0, 0.2)), ((0.4, 0.1), (1.0, 0.05)), ((1.0, 0.1), (0.7, 0.28))]:
        tau = (np.arange(200_000) + 0.5) / 200_000
        a, b = averages.exponent(one), averages.exponent(two)
        p = np.where(tau < s, (a + 1) * (tau / s) ** a / s, 0) * np.where(tau < t, (b + 1) * (tau / t) ** b / t, 0)
        assert averages.overlap((s, one), (t, two)) == pytest.approx(p.mean(), rel=1e-4)


def test_what_was_kept_is_found_exactly():
    kept = [(step, length) for step in (100, 200, 300, 400) for length in (0.05, 0.1)]
    shares, apart = averages.shares(kept, 300, 0.1)
    np.testing.assert_allclose(shares, np.eye(8)[5], atol=1e-6)
    assert apart < 1e-6


def drawn_walk(steps, lengths, every, seed=0):
    """Parameters on a random walk, averages of these lengths by the update's own rule, and copies of them on the way."""
    rng, at, copies = np.random.default_rng(seed), np.zeros(50), {}
    kept = [np.full(50, 7.0) for _ in lengths]  # what is there at first must not matter
    with jax.enable_x64(True):
        for step in range(steps):
            at = at + rng.standard_normal(50)
            for index, decay in enumerate(averages.decays(step, lengths)):
                kept[index] = float(decay) * kept[index] + (1 - float(decay)) * at
            if (step + 1) % every == 0:
                copies[step + 1] = list(kept)
    return copies


def test_the_first_update_leaves_nothing_of_the_beginning():
    assert averages.decays(0, (0.1,)) == [0.0]


def test_a_length_that_was_not_kept():
    """Made of copies of two lengths, near the one that was kept directly; nearer with more copies."""
    lengths, other = (0.05, 0.1), 0.075
    errors = []
    for every in (100, 25):
        copies = drawn_walk(400, (*lengths, other), every)
        kept = [(step, length) for step in copies for length in lengths]
        shares, apart = averages.shares(kept, 400, other)
        made = sum(
            share * copies[step][lengths.index(length)] for share, (step, length) in zip(shares, kept, strict=True)
        )
        errors.append(np.abs(made - copies[400][2]).max() / np.abs(copies[400][2]).max())
        assert apart < 0.05
    assert errors[1] < errors[0] < 0.02 and errors[1] < 2e-3, errors


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Forty steps with two averages, and all checkpoints kept."""
    config = presets.preset("spiral")
    how = dataclasses.replace(
        config.train, steps=40, epochs=None, reset_optimizer=False, steps_per_call=10, ema_lengths=(0.1, 0.05),
        checkpoint_every=10, keep_every=10, keep_checkpoints=1, log_every=10,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("averages") / "run"
    train(dataclasses.replace(config, train=how), folder)
    return open_run(folder)


def states(run):
    with training.run.Checkpoints(run.checkpoint_folder) as checkpoints:
        return {step: checkpoints.restore(run.abstract_state(), step) for step in checkpoints.steps}


def test_average_of_a_run(run, tmp_path):
    """Of a length that was kept it is that very average, to 1e-6, at every step; of another it is between."""
    kept = states(run)
    assert sorted(kept) == [10, 20, 30, 40]
    for step, length, which in ((40, 0.1, 0), (40, 0.05, 1), (20, 0.05, 1)):
        out = tmp_path / f"{step}-{length}"
        assert average(run, length, out, step=step) < 1e-6
        made = open_run(out)
        state = kept[step]
        wanted = [state.ema_params, *state.averages][which]
        for one, two in zip(tree_leaves(made.load_variables()[0]["params"]), tree_leaves(wanted), strict=True):
            np.testing.assert_allclose(one, two, rtol=0, atol=1e-6 * np.abs(two).max())
        assert (made.origin["length"], made.origin["step"], made.scaling) == (length, step, run.scaling)
    assert 0 < average(run, 0.15, tmp_path / "long") < 0.1


def test_samples_are_drawn_with_the_first(run):
    found, step = run.load_variables()
    assert step == 40
    for one, two in zip(tree_leaves(found["params"]), tree_leaves(states(run)[40].ema_params), strict=True):
        np.testing.assert_array_equal(one, two)


def test_what_cannot_be_averaged(run, tmp_path):
    with pytest.raises(UserError, match=r"length must lie in \(0, 0.28\], .*got 0.5"):
        average(run, 0.5, tmp_path / "x")
    with pytest.raises(UserError, match="no checkpoint of a step from 1 to 5"):
        average(run, 0.1, tmp_path / "x", step=5)
    with pytest.raises(UserError, match="exists"):
        average(run, 0.1, run.folder)
    plain = dataclasses.replace(
        run, config=dataclasses.replace(run.config, train=dataclasses.replace(run.config.train, ema_lengths=()))
    )
    with pytest.raises(UserError, match=r"by a decay.*--train.ema-lengths 0.05 0.1"):
        average(plain, 0.1, tmp_path / "x")


@pytest.mark.parametrize(
    ("ema", "words"),
    [((), "one or more lengths"), ((0.5,), r"length must lie in \(0, 0.28\]"), (1.0, r"ema must lie in \[0, 1\)")],
)
def test_what_is_no_average(ema, words):
    chain = processes.GaussianDiffusion(schedules.linear(10))
    with pytest.raises(UserError, match=words):
        training.make_step(chain, optax.sgd(1e-3), ema=ema)


def test_a_state_of_other_averages_is_refused():
    chain = processes.GaussianDiffusion(schedules.linear(10))
    optimizer = optax.sgd(1e-3)
    state = training.create_state(models.create("mlp", rngs=0, dim=4), optimizer, ema=(0.05, 0.1))
    with pytest.raises(UserError, match="the state keeps 2 averages and this step 1"):
        training.make_step(chain, optimizer)(state, jnp.zeros((4, 2)), 0)


# Autoguidance


def test_led_away_from_a_weaker_network(run, tmp_path):
    """u + w (c - u), u being the run's own earlier checkpoint, or another run."""
    sample = dataclasses.replace(run.config.sample, guidance=3.0, weaker=f"{run.folder}@10", num=4)
    drawing = training.Drawing(run, sample)
    x_t, t = jnp.asarray(np.random.default_rng(0).standard_normal((4, 2)), jnp.float32), jnp.array([5, 100, 500, 900])
    strong, weak = (run.denoiser(variables=run.load_variables(step=step)[0]).output(x_t, t) for step in (40, 10))
    np.testing.assert_allclose(drawing.denoiser(None).output(x_t, t), weak + 3 * (strong - weak), rtol=2e-5, atol=2e-5)
    limited = dataclasses.replace(sample, guidance_from=0.2, guidance_to=0.6)
    out = training.Drawing(run, limited).denoiser(None).output(x_t, t)
    np.testing.assert_allclose(out[:2], strong[:2], rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(out[2], (weak + 3 * (strong - weak))[2], rtol=2e-5, atol=2e-5)
    assert drawing.draw(None, 4).values.shape == (4, 2)


def test_what_cannot_lead(run, tmp_path):
    def drawn(**options):
        sample = dataclasses.replace(run.config.sample, **options)
        return training.Drawing(run, sample).denoiser(None)

    with pytest.raises(UserError, match=r"needs a sample.guidance other than 1"):
        drawn(weaker=str(run.folder))
    with pytest.raises(UserError, match=r"Or give sample.weaker"):
        drawn(guidance=2.0)
    with pytest.raises(UserError, match=r"no checkpoint of step 15; it has 10, 20, 30, 40"):
        drawn(guidance=2.0, weaker=f"{run.folder}@15")
    with pytest.raises(UserError, match=r"must be FOLDER or FOLDER@STEP"):
        drawn(guidance=2.0, weaker=f"{run.folder}@x")
    with pytest.raises(UserError, match=r"nowhere"):
        drawn(guidance=2.0, weaker=str(tmp_path / "nowhere"))
