"""Samplers against data whose every marginal is known: a Gaussian, for which the exact noise has a closed form."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ddpm_jax import processes, samplers, schedules
from ddpm_jax.errors import UserError

MEAN, STD = np.array([-1.5, 0.0, 0.7]), np.array([0.3, 1.0, 2.0])
STEPS = {
    "ancestral beta": ("ancestral", {"variance": "beta"}),
    "ancestral posterior": ("ancestral", {"variance": "posterior"}),
    "ddim": ("ddim", {"eta": 0.0}),
    "ddim 1": ("ddim", {"eta": 1.0}),
}


def gaussian_eps(process, x_t, t):
    """E[eps | x_t] for x_0 ~ N(MEAN, STD^2)."""
    alpha, sigma = process.level(t, x_t)
    return sigma * (x_t - alpha * MEAN) / (alpha**2 * STD**2 + sigma**2)


@pytest.mark.parametrize(("step", "num_steps"), [("ancestral beta", None), *((step, 250) for step in STEPS)])
def test_samples_of_a_gaussian(step, num_steps):
    process = processes.GaussianDiffusion(schedules.cosine(1000))
    name, options = STEPS[step]
    shape = (20_000, 3)

    @jax.jit
    def draw(key):
        start, rest = jax.random.split(key)
        return samplers.run(
            process,
            functools.partial(gaussian_eps, process),
            jax.random.normal(start, shape),
            lambda i: jax.random.normal(jax.random.fold_in(rest, i), shape),
            step=samplers.create(name, **options),
            times=process.times(num_steps),
        )[0]

    x_0 = np.asarray(draw(jax.random.key(0)))
    error = STD / np.sqrt(len(x_0))  # of the mean; that of the standard deviation is smaller by sqrt(2)
    share = 0.01 if num_steps is None else 0.04  # what the finite number of steps leaves, as the next test shows
    assert (np.abs(x_0.mean(0) - MEAN) < 5 * error + share * STD).all()
    assert (np.abs(x_0.std(0) - STD) < 5 * error / np.sqrt(2) + share * STD).all()


def propagate(process, step, times):
    """Mean and standard deviation of the samples, exactly: with Gaussian data every step is affine in x_t and noise."""
    mean, variance = np.zeros(3), np.ones(3)

    @jax.jit
    def one(x_t, t, s, noise):
        eps = gaussian_eps(process, x_t, t[None])
        hat = process.estimate(x_t, eps, t[None])
        return step(x_t, hat, process.level(t[None], x_t), process.level(s[None], x_t), noise)[0]

    zero, unit = jnp.zeros((1, 3)), jnp.ones((1, 3))
    for t, s in itertools.pairwise(times):
        base = one(zero, t, s, zero)
        slope, spread = one(unit, t, s, zero) - base, one(zero, t, s, unit) - base
        mean = base + slope * mean
        variance = slope**2 * variance + (spread**2 if s != times[-1] else 0)
    return np.asarray(mean), np.sqrt(variance)


@pytest.mark.parametrize("step", STEPS)
def test_moments_of_a_gaussian_converge(step):
    with jax.enable_x64(True):
        process = processes.GaussianDiffusion(schedules.cosine(1000))
        name, options = STEPS[step]
        errors = []
        for num_steps in (50, 250, 1000):
            mean, std = propagate(process, samplers.create(name, **options), process.times(num_steps))
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
            steps = [samplers.create("ddim", eta=eta) for eta in (0.0, 0.4, 1.0)]
            for step in [*steps, samplers.create("ancestral", variance="posterior")]:

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

    def move(step, t, s):
        x = jnp.asarray(x_t)
        hat = process.estimate(x, jnp.asarray(output), jnp.full(4, t))
        return np.asarray(step(x, hat, *(process.level(np.array([u]), x) for u in (t, s)), jnp.asarray(noise)))

    for name, options in STEPS.values():
        step = samplers.create(name, **options)
        for t, s in [(0, -1), (1, 0), (2, 1), (10, 9)]:
            single = move(step, t, s)
            assert single.dtype == np.float32
            with jax.enable_x64(True):
                double = move(step, t, s)
            np.testing.assert_allclose(single, double, rtol=0, atol=2e-6)


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


def test_frames():
    def halve(x_t, hat, t, s, noise):
        return x_t / 2

    x_T = jnp.ones((1, 2))
    walk = functools.partial(samplers.run, PROCESS, lambda x_t, t: x_t, x_T, lambda i: x_T, step=halve)
    for num_frames in range(2, 22):
        samples, frames, _ = walk(times=PROCESS.times(), num_frames=num_frames)
        halvings = -np.log2(np.asarray(frames)[:, 0, 0])
        assert frames.shape == (num_frames, 1, 2)
        assert (halvings[0], halvings[-1]) == (0, 20)
        assert np.ptp(np.diff(halvings)) <= 1
        np.testing.assert_array_equal(frames[-1], samples)
    _, frames, _ = walk(times=PROCESS.times())
    assert frames.shape == (0, 1, 2)


def test_noise_is_taken_at_every_step_but_the_last():
    def add(x_t, hat, t, s, noise):
        return x_t + noise

    samples, *_ = samplers.run(
        PROCESS,
        lambda x_t, t: x_t,
        jnp.zeros((1, 1)),
        lambda i: 10.0 ** (i + jnp.zeros((1, 1))),
        step=add,
        times=PROCESS.times(4),
    )
    assert samples.item() == 111


def test_the_network_is_asked_at_the_times_of_the_grid():
    asked = []

    def predict(x_t, t):
        jax.debug.callback(lambda t: asked.append(t.tolist()), t, ordered=True)
        return x_t

    x_T = jnp.ones((2, 1))
    samplers.run(PROCESS, predict, x_T, lambda i: x_T, step=samplers.ddim_step, times=PROCESS.times(4))
    jax.effects_barrier()
    assert asked == [[time, time] for time in PROCESS.times(4)[:-1]]


def test_sampling_again_compiles_nothing_and_its_program_does_not_grow():
    traced = []

    def counted(x_t, hat, t, s, noise):
        traced.append(1)
        return samplers.ddim_step(x_t, hat, t, s, noise)

    def draw(seed, **options):
        traced.clear()
        samples, _ = samplers.sample(Affine(), PROCESS, jax.random.key(seed), SHAPE, step=counted, **options)
        return samples, len(traced)

    first, cost = draw(0, num_steps=3)
    assert cost >= 1
    again, more = draw(0, num_steps=3)
    other, yet_more = draw(1, num_steps=3)
    assert (more, yet_more) == (0, 0)
    np.testing.assert_array_equal(first, again)  # the same key, the same samples
    assert np.abs(first - other).min() > 0
    assert draw(0, num_steps=20)[1] == cost  # as many steps traced for 20 as for 3


def test_samples_are_within_the_clip_and_frames_start_from_noise():
    key = jax.random.key(0)
    options = {"num_steps": 10, "num_frames": 3, "step": samplers.create("ancestral")}
    samples, frames = samplers.sample(Affine(), PROCESS, key, SHAPE, clip=0.5, **options)
    free, _ = samplers.sample(Affine(), PROCESS, key, SHAPE, **options)
    assert samples.shape == SHAPE
    assert float(jnp.abs(samples).max()) <= 0.5 + 1e-6 < float(jnp.abs(free).max())
    assert frames.shape == (3, *SHAPE)
    start = jax.random.split(key)[0]
    for number, image in enumerate(frames[0]):
        np.testing.assert_array_equal(image, jax.random.normal(jax.random.fold_in(start, number), SHAPE[1:]))
    np.testing.assert_array_equal(frames[-1], samples)


def test_clipping_keeps_x_0_and_eps_in_agreement():
    x_t, t = jnp.array([[3.0, -0.1]]), jnp.array([10])
    hat = samplers.denoise(PROCESS, lambda x_t, t: -x_t, x_t, t, clip=1.0)
    free = samplers.denoise(PROCESS, lambda x_t, t: -x_t, x_t, t)
    np.testing.assert_array_equal(hat.x_0, jnp.clip(free.x_0, -1, 1))
    assert hat.x_0[0, 0] == 1 < free.x_0[0, 0]
    np.testing.assert_allclose(PROCESS.add_noise(hat.x_0, hat.eps, t), x_t, rtol=1e-6)
    np.testing.assert_allclose(hat.eps[0, 1], free.eps[0, 1], rtol=1e-5)


def test_labels_reach_the_network():
    def draw(labels):
        return samplers.sample(Affine(3), PROCESS, jax.random.key(0), SHAPE, jnp.array(labels), num_steps=2)[0]

    same, other = draw([0, 0]), draw([0, 1])
    np.testing.assert_array_equal(same[0], other[0])
    assert float(jnp.abs(same[1] - other[1]).max()) > 1e-4


def test_the_same_options_give_the_same_step():
    assert samplers.create("ddim", eta=0.5) is samplers.create("ddim", eta=0.5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: samplers.create("ddpm"), r"must be one of ancestral, ddim.*; got 'ddpm'"),
        (lambda: samplers.create("ddim", variance="beta"), "ddim has no option 'variance'; it has eta"),
        (lambda: samplers.create("ddim", eta=1.5), r"eta must lie in \[0, 1\]; got 1.5"),
        (lambda: samplers.create("ancestral", variance="small"), "beta, posterior, learned; got 'small'"),
        (lambda: samplers.sample(Affine(), PROCESS, jax.random.key(0), SHAPE, num_steps=21), r"1..20 .*got 21"),
        (
            lambda: samplers.sample(Affine(), PROCESS, jax.random.key(0), SHAPE, num_steps=3, num_frames=5),
            r"num_frames must be 0 or lie in 2..4 .*got 5",
        ),
        (
            lambda: samplers.sample(Affine(3), PROCESS, jax.random.key(0), SHAPE, jnp.array([0])),
            r"labels must have shape \(2,\), one for each sample; got \(1,\)",
        ),
    ],
)
def test_errors(call, message):
    with pytest.raises(UserError, match=message):
        call()
