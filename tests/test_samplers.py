"""Samplers against data whose every marginal is known: a Gaussian, for which the exact noise has a closed form."""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ddpm_jax import denoisers, processes, samplers, schedules
from ddpm_jax.errors import UserError

MEAN, STD = np.array([-1.5, 0.0, 0.7]), np.array([0.3, 1.0, 2.0])
STEPS = {
    "ancestral beta": samplers.Ancestral("beta"),
    "ancestral posterior": samplers.Ancestral("posterior"),
    "ddim": samplers.DDIM(),
    "ddim 1": samplers.DDIM(eta=1.0),
}


def gaussian_eps(process, x_t, t):
    """E[eps | x_t] for x_0 ~ N(MEAN, STD^2)."""
    alpha, sigma = process.level(t, x_t)
    return sigma * (x_t - alpha * MEAN) / (alpha**2 * STD**2 + sigma**2)


@pytest.mark.parametrize(
    ("step", "num_steps"),
    [pytest.param("ancestral beta", None, marks=pytest.mark.slow), *((step, 250) for step in STEPS)],
)
def test_samples_of_a_gaussian(step, num_steps):
    process = processes.GaussianDiffusion(schedules.cosine(1000))
    denoise, sampler = denoisers.of(process, functools.partial(gaussian_eps, process)), STEPS[step]
    shape = (20_000, 3)

    @jax.jit
    def draw(key):
        start, rest = jax.random.split(key)
        return samplers.walk(
            denoise,
            sampler,
            jax.random.normal(start, shape),
            lambda i: jax.random.normal(jax.random.fold_in(rest, i), shape),
            sampler.grid(process, num_steps),
        ).x_0

    x_0 = np.asarray(draw(jax.random.key(0)))
    error = STD / np.sqrt(len(x_0))  # of the mean; that of the standard deviation is smaller by sqrt(2)
    share = 0.01 if num_steps is None else 0.04  # what the finite number of steps leaves, as the next test shows
    assert (np.abs(x_0.mean(0) - MEAN) < 5 * error + share * STD).all()
    assert (np.abs(x_0.std(0) - STD) < 5 * error / np.sqrt(2) + share * STD).all()


def propagate(process, sampler, grid):
    """Mean and standard deviation of the samples, exactly: with Gaussian data every step is affine in x_t and noise."""
    mean, variance = np.zeros(3), np.ones(3)

    denoise = denoisers.of(process, functools.partial(gaussian_eps, process))

    @jax.jit
    def one(x_t, times, noise):
        return sampler.step(denoise, x_t, times, noise, ()).x[0]

    zero, unit = jnp.zeros((1, 3)), jnp.ones((1, 3))
    for times in grid:
        base = one(zero, times, zero)
        slope, spread = one(unit, times, zero) - base, one(zero, times, unit) - base
        mean = base + slope * mean
        variance = slope**2 * variance + (spread**2 if times[1] != grid[-1, 1] else 0)
    return np.asarray(mean), np.sqrt(variance)


@pytest.mark.parametrize("step", STEPS)
def test_moments_of_a_gaussian_converge(step):
    with jax.enable_x64(True):
        process = processes.GaussianDiffusion(schedules.cosine(1000))
        sampler, errors = STEPS[step], []
        for num_steps in (50, 250, 1000):
            mean, std = propagate(process, sampler, sampler.grid(process, num_steps))
            errors.append(max(np.abs(mean - MEAN).max(), np.abs(std / STD - 1).max()))
    assert errors[2] < 0.008
    assert errors[2] < errors[1] / 2 < errors[0] / 4


def test_steps_keep_the_marginals_of_known_data():
    """With the true x_0 and eps, x_s is distributed as q(x_s | x_0), whatever eta: its mean and variance by hand."""
    with jax.enable_x64(True):
        process = processes.GaussianDiffusion(schedules.linear(1000))
        like, x_0 = jnp.zeros((1, 1)), 0.8
        for t, s in [(999, 500), (500, 499), (20, 3), (1, 0), (0, -1)]:
            here, there = process.level(np.array([t]), like), process.level(np.array([s]), like)
            steps = [functools.partial(samplers.ddim_step, eta=eta) for eta in (0.0, 0.4, 1.0)]
            for step in [*steps, functools.partial(samplers.ancestral_step, variance="posterior")]:

                def move(eps, noise, step=step, here=here, there=there):
                    x_t = here.alpha * x_0 + here.sigma * eps
                    return float(step(x_t, processes.Estimate(like + x_0, like + eps), here, there, like + noise)[0, 0])

                mean = move(0.0, 0.0)
                variance = (move(1.0, 0.0) - mean) ** 2 + (move(0.0, 1.0) - mean) ** 2
                np.testing.assert_allclose(mean, there.alpha[0, 0] * x_0, rtol=1e-10)
                np.testing.assert_allclose(variance, there.sigma[0, 0] ** 2, rtol=1e-9, atol=1e-15)


def test_float32_steps_near_the_data_are_exact_to_float32():
    """1 - (alpha_t / alpha_s)^2 has lost most of its digits there."""
    process = processes.GaussianDiffusion(schedules.cosine(1000))
    x_t, output, noise = np.random.default_rng(0).normal(size=(3, 4, 5))

    def move(sampler, t, s):
        denoise = denoisers.of(process, lambda x, time: jnp.asarray(output))
        return np.asarray(sampler.step(denoise, jnp.asarray(x_t), jnp.array([t, s]), jnp.asarray(noise), ()).x)

    for sampler in STEPS.values():
        for t, s in [(0, -1), (1, 0), (2, 1), (10, 9)]:
            single = move(sampler, t, s)
            assert single.dtype == np.float32
            with jax.enable_x64(True):
                double = move(sampler, t, s)
            np.testing.assert_allclose(single, double, rtol=0, atol=2e-6)


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_float32_steps_far_from_the_data_are_exact_to_float32(eta):
    """With eta 1 the first of five steps keeps 1.5e-4 of eps."""
    process = processes.GaussianDiffusion(schedules.cosine(1000))
    x_0, eps, noise = np.random.default_rng(0).normal(size=(3, 4, 5))

    def move(t, s):
        hat, like = processes.Estimate(jnp.asarray(x_0), jnp.asarray(eps)), jnp.asarray(noise)
        here, there = (process.level(np.array([time]), like) for time in (t, s))
        return np.asarray(samplers.ddim_step(like, hat, here, there, like, eta))

    for t, s in [(999, 799), (999, 998), (799, 599)]:
        single = move(t, s)
        assert single.dtype == np.float32
        with jax.enable_x64(True):
            np.testing.assert_allclose(single, move(t, s), rtol=0, atol=2e-6)


class Affine(nnx.Module):
    """A network small enough to compile at once: a multiple of x_t, moved by the time and by the class."""

    def __init__(self, num_classes=None):
        self.weight = nnx.Param(jnp.array(0.5))
        self.classes = None if num_classes is None else nnx.Param(jnp.arange(1.0, num_classes + 1))

    def __call__(self, x_t, t, labels=None, *, rngs=None):
        moved = 0.01 * t if self.classes is None else 0.01 * t + self.classes[labels]
        return self.weight * x_t + moved[:, None, None, None]


PROCESS = processes.GaussianDiffusion(schedules.linear(20))
SHAPE = (2, 4, 4, 1)
SAME = denoisers.of(PROCESS, lambda x_t, t: x_t)


@dataclass(frozen=True)
class OneStep(samplers.Sampler):
    """A sampler of one's own: x_s = move(x_t, noise)."""

    move: Any

    def step(self, denoise, x_t, times, noise, memory):
        return samplers.Stepped(self.move(x_t, noise), denoise(x_t, times[0]))


def network(num_classes=None, **options):
    return denoisers.of_network(Affine(num_classes), PROCESS, **options)


def test_frames():
    x_T, halve = jnp.ones((1, 2)), OneStep(lambda x_t, noise: x_t / 2)
    walk = functools.partial(samplers.walk, SAME, halve, x_T, lambda i: x_T, halve.grid(PROCESS))
    for num_frames in range(2, 22):
        samples, frames, *_ = walk(num_frames=num_frames)
        halvings = -np.log2(np.asarray(frames)[:, 0, 0])
        assert frames.shape == (num_frames, 1, 2)
        assert (halvings[0], halvings[-1]) == (0, 20)
        assert np.ptp(np.diff(halvings)) <= 1
        np.testing.assert_array_equal(frames[-1], samples)
    assert walk().frames.shape == (0, 1, 2)


def test_noise_is_taken_at_every_step_but_the_last():
    add = OneStep(lambda x_t, noise: x_t + noise)
    noise = lambda i: 10.0 ** (i + jnp.zeros((1, 1)))  # noqa: E731
    samples = samplers.walk(SAME, add, jnp.zeros((1, 1)), noise, add.grid(PROCESS, 4)).x_0
    assert samples.item() == 111


def test_the_network_is_asked_at_the_times_of_the_grid():
    asked = []

    def predict(x_t, t):
        jax.debug.callback(lambda t: asked.append(t.tolist()), t, ordered=True)
        return x_t

    x_T = jnp.ones((2, 1))
    denoise, grid = denoisers.of(PROCESS, predict), samplers.DDIM().grid(PROCESS, 4)
    samplers.walk(denoise, "ddim", x_T, lambda i: x_T, grid)
    jax.effects_barrier()
    assert asked == [[time, time] for time in PROCESS.times(4)[:-1]]


def test_sampling_again_compiles_nothing_and_its_program_does_not_grow():
    traced = []

    @dataclass(frozen=True)
    class Counted(samplers.DDIM):
        def step(self, *arguments):
            traced.append(1)
            return super().step(*arguments)

    def draw(seed, num_steps):
        traced.clear()
        samples = samplers.sample(network(), Counted(), jax.random.key(seed), SHAPE, num_steps)
        return samples, len(traced)

    first, cost = draw(0, 3)
    assert cost >= 1
    again, more = draw(0, 3)
    other, yet_more = draw(1, 3)
    assert (more, yet_more) == (0, 0)
    np.testing.assert_array_equal(first, again)  # the same key, the same samples
    assert np.abs(first - other).min() > 0
    assert draw(0, 20)[1] == cost  # as many steps traced for 20 as for 3


def test_samples_are_within_the_clip_and_frames_start_from_noise():
    key = jax.random.key(0)
    arguments = "ancestral", key, SHAPE, 10
    samples, frames = samplers.sample_with_frames(denoisers.clipped(network(), 0.5), *arguments, num_frames=3)
    free = samplers.sample(network(), *arguments)
    assert samples.shape == SHAPE
    assert float(jnp.abs(samples).max()) <= 0.5 + 1e-6 < float(jnp.abs(free).max())
    assert frames.shape == (3, *SHAPE)
    for number, image in enumerate(frames[0]):
        start, _ = jax.random.split(jax.random.fold_in(key, number))
        np.testing.assert_array_equal(image, jax.random.normal(start, SHAPE[1:]))
    np.testing.assert_array_equal(frames[-1], samples)


def test_clipping_keeps_x_0_and_eps_in_agreement():
    x_t, t = jnp.array([[3.0, -0.1]]), jnp.array([10])
    denoise = denoisers.of(PROCESS, lambda x_t, t: -x_t)
    hat, free = denoisers.clipped(denoise)(x_t, t), denoise(x_t, t)
    np.testing.assert_array_equal(hat.x_0, jnp.clip(free.x_0, -1, 1))
    assert hat.x_0[0, 0] == 1 < free.x_0[0, 0]
    np.testing.assert_allclose(PROCESS.add_noise(hat.x_0, hat.eps, t), x_t, rtol=1e-6)
    np.testing.assert_allclose(hat.eps[0, 1], free.eps[0, 1], rtol=1e-5)


def test_labels_reach_the_network():
    def draw(labels):
        return samplers.sample(network(3, labels=labels), "ddim", 0, SHAPE, 2)

    same, other = draw([0, 0]), draw([0, 1])
    np.testing.assert_array_equal(same[0], other[0])
    assert float(jnp.abs(same[1] - other[1]).max()) > 1e-4


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: samplers.sample(network(), "ddpm", 0, SHAPE), r"must be one of .*ancestral, ddim.*; got 'ddpm'"),
        (lambda: samplers.sample(network(), "ddim", 0, SHAPE, 21), r"1..20 .*got 21"),
        (
            lambda: samplers.sample_with_frames(network(), "ddim", 0, SHAPE, 3, num_frames=5),
            r"num_frames must be 0 or lie in 2..4 .*got 5",
        ),
        (
            lambda: samplers.sample(network(3, labels=[0]), "ddim", 0, SHAPE),
            r"labels must have shape \(2,\), one for each sample; got \(1,\)",
        ),
    ],
)
def test_errors(call, message):
    with pytest.raises(UserError, match=message):
        call()
