"""Sample number n of a seed is the same whatever is drawn beside it: its noise to the last bit, the sample up to rounding.

On many devices: tests/test_parallel.py.
"""

import json
import shutil
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from numbered_walks import SHAPE, WALKS, Small, drawn, noises

from ddpm_jax import cli, denoisers, editing, noise, processes, samplers, schedules
from ddpm_jax.samplers import Ancestral, DPMSolver
from ddpm_jax.training import open_run, samples

CLOSE = {"rtol": 0, "atol": 2e-4}


@pytest.mark.parametrize("shape", [(2,), (5,), (4, 4, 1), (8, 8, 3)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_noise_goes_by_the_number(dtype, shape):
    """In batches of any size, from any number on, compiled or not."""
    with jax.enable_x64(dtype == "float64"):
        key = jax.random.key(7)
        whole = np.asarray(noise.normal(noise.sample_keys(key, 64), shape))
        assert whole.dtype == dtype and len(np.unique(whole)) > 0.99 * whole.size
        draw = jax.jit(noise.normal, static_argnums=1)
        for first, count in [(0, 64), (0, 1), (63, 1), (3, 17), (10, 4), (31, 33)]:
            found = np.asarray(draw(noise.sample_keys(key, count, first), shape))
            assert found.tobytes() == whole[first : first + count].tobytes()
        alone = jax.random.normal(jax.random.fold_in(key, 5), shape)
        np.testing.assert_array_equal(whole[5], alone)


def test_it_is_normal():
    """Over samples, and over the pixels of each: mean 0, variance 1, no correlation of neighbours."""
    start, of_step = noise.of_walk(noise.sample_keys(0, 20_000), (6,))
    drawn = np.concatenate([np.asarray(start), *(np.asarray(of_step(i)) for i in range(3))], axis=1)
    assert np.abs(drawn.mean(0)).max() < 5 / np.sqrt(20_000)
    np.testing.assert_allclose(np.corrcoef(drawn.T), np.eye(24), atol=5 / np.sqrt(20_000))
    assert abs(np.corrcoef(drawn[:-1, 0], drawn[1:, 0])[0, 1]) < 5 / np.sqrt(20_000)
    np.testing.assert_allclose(drawn.var(0), 1, atol=5 * np.sqrt(2 / 20_000))


def test_a_walk_is_given_the_noise_of_its_number():
    """Within the loop too, at the start and at every step, bit for bit."""
    whole = np.asarray(noises(8))
    assert whole.shape == (7, 8, *SHAPE) and not whole[-1].any()
    assert len(np.unique(whole[:-1])) > 0.99 * whole[:-1].size
    for first, count in [(0, 3), (3, 5), (7, 1)]:
        assert np.asarray(noises(count, first)).tobytes() == whole[:, first : first + count].tobytes()


def test_there_is_a_walk_of_every_sampler():
    assert {sampler.name for _, sampler in WALKS.values()} == set(samplers.SAMPLERS)


@pytest.mark.parametrize("name", WALKS)
def test_samples_do_not_depend_on_the_batch(name):
    x_0, frames = map(np.asarray, drawn(name, 8))
    assert np.abs(x_0[:, None] - x_0[None])[~np.eye(8, dtype=bool)].max((1, 2, 3)).min() > 1e-3  # all different
    for first, count in [(0, 3), (3, 5)]:
        part = drawn(name, count, first)
        np.testing.assert_allclose(part[0], x_0[first : first + count], **CLOSE)
        np.testing.assert_allclose(part[1], frames[:, first : first + count], **CLOSE)


def test_guided_and_self_conditioned_samples_do_not_depend_on_the_batch():
    class Conditioned(nnx.Module):
        def __call__(self, x_t, t, labels=None, *, rngs=None):
            return Small()(x_t[..., :1], t, labels) + 0.1 * x_t[..., 1:]

    def draw(count, first):
        labels = (first + jnp.arange(count)) % 2
        process = processes.GaussianDiffusion(schedules.linear(20))
        network = denoisers.of_network(Conditioned(), process, labels=labels, null_label=2)
        guided = denoisers.guided(denoisers.self_conditioned(network), 3.0, rescale=0.7)
        denoise = denoisers.thresholded(guided, 0.9)
        keys = noise.sample_keys(0, count, first)
        return np.asarray(samplers.sample(denoise, "ancestral", keys, (count, *SHAPE), 5))

    np.testing.assert_allclose(np.concatenate([draw(3, 0), draw(5, 3)]), draw(8, 0), **CLOSE)


@pytest.mark.slow
def test_each_sample_of_the_adaptive_solver_takes_its_own_steps():
    """One that is hard to solve gives the others no more steps than they take alone."""
    process = processes.FlowMatching()
    stiffness = jnp.array([1.0, 40.0, 1.0])

    def denoise(of):
        return denoisers.of(process, lambda x_t, t: -of[:, None] * jnp.sin(3 * x_t))

    x_T = jax.random.normal(jax.random.key(0), (3, 2))
    walk = samplers.solve(denoise(stiffness), x_T)
    assert walk.num_steps[1] > 2 * max(walk.num_steps[0], walk.num_steps[2])
    for i in range(3):
        alone = samplers.solve(denoise(stiffness[i : i + 1]), x_T[i : i + 1])
        np.testing.assert_allclose(alone.x_0[0], walk.x_0[i], **CLOSE)
        assert alone.num_steps[0] == walk.num_steps[i]


def test_the_adaptive_solvers_steps_are_not_decided_by_rounding():
    """Of a network that is rough in t the lengths of steps hang on every digit of the error, and the samples on the lengths."""
    # network times run to 999
    rough = denoisers.of(processes.FlowMatching(), lambda x_t, t: jnp.sin(t)[:, None] * jnp.tanh(3 * x_t) - x_t)
    x_T = jax.random.normal(jax.random.key(0), (64, 3))
    shaken = x_T * (1 + 1e-6 * jax.random.normal(jax.random.key(1), x_T.shape))
    expected, found = (samplers.solve(rough, x, 1e-3) for x in (x_T, shaken))
    assert expected.num_steps.max() > 50
    np.testing.assert_array_equal(found.num_steps, expected.num_steps)
    np.testing.assert_allclose(found.x_0, expected.x_0, **CLOSE)


def test_edits_do_not_depend_on_what_is_edited_beside():
    network = denoisers.of_network(Small(), processes.GaussianDiffusion(schedules.linear(20)))
    x_0 = np.random.default_rng(0).uniform(-1, 1, size=(5, *SHAPE)).astype(np.float32)
    labels = np.arange(5) % 3
    hidden = np.zeros(SHAPE[:2], bool)
    hidden[:2] = True

    def inpaint(count):
        denoise = network.with_labels(labels[:count])
        return editing.inpaint(denoise, 3, x_0[:count], hidden, num_steps=6, resample=2, jump=2)

    def vary(count):
        denoise = denoisers.clipped(network.with_labels(labels[:count]))
        return editing.vary(denoise, 3, x_0[:count], strength=0.5, num_steps=6, sampler="ancestral")

    for edit in (inpaint, vary):
        np.testing.assert_allclose(edit(2), edit(5)[:2], **CLOSE)


# Runs and commands


@pytest.mark.parametrize(
    "sampler",
    [
        pytest.param(Ancestral(), id="ancestral", marks=pytest.mark.slow),
        pytest.param(DPMSolver(sde=True), id="dpmpp_2m_sde"),
    ],
)
def test_a_runs_samples_depend_neither_on_their_count_nor_on_the_batch(finished_run, sampler):
    """Nor do the frames: as many samples are animated, whatever the batch."""
    run = open_run(finished_run)
    config = replace(run.config.sample, sampler=sampler, steps=4)

    def draw(num, batch_size):
        drawing = samples.Drawing(run, config, seed=7, batch_size=batch_size)
        return drawing.draw(run.labels(num), num, num_frames=3)

    whole = draw(11, 500)
    for num, batch_size in [(11, 4), (11, 1), (5, 500), (5, 3)]:
        part = draw(num, batch_size)
        assert part.frames.shape == (3, num, *run.shape)
        np.testing.assert_array_equal(part.labels, whole.labels[:num])
        # one step of 255, where rounding falls on the other side
        assert np.abs(part.values.astype(int) - whole.values[:num]).max() <= 1
        assert np.abs(part.frames.astype(int) - whole.frames[:, :num]).max() <= 1


def test_no_more_than_a_page_is_animated(finished_run, monkeypatch):
    monkeypatch.setattr(samples, "ANIMATED", 6)
    run = open_run(finished_run)
    for batch_size in (4, 6, 20):
        drawing = samples.Drawing(run, run.config.sample, batch_size=batch_size)
        drawn = drawing.draw(run.labels(9), 9, num_frames=3)
        assert drawn.frames.shape[:2] == (3, 6)


@pytest.mark.slow
def test_the_likelihood_does_not_depend_on_the_batch(finished_run, tmp_path):
    shutil.copytree(finished_run, tmp_path / "run")
    found = []
    for batch_size in (12, 5, 1):
        options = ["--num", "12", "--batch-size", str(batch_size)]
        assert cli.main(["evaluate", str(tmp_path / "run"), "--likelihood", *options]) == 0
        found.append(json.loads((tmp_path / "run" / "likelihood.json").read_text()))
    for other in found[1:]:
        np.testing.assert_allclose(other["terms"], found[0]["terms"], rtol=1e-4, atol=1e-6)
        assert other["standard_error"] == pytest.approx(found[0]["standard_error"], rel=1e-4)
