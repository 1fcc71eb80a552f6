"""The Gaussian process against closed forms."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddpm_jax import processes, schedules
from ddpm_jax.errors import UserError

TIMES = jnp.array([0, 1, 500, 999])


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_the_estimate_inverts_add_noise(prediction):
    with jax.enable_x64(True):
        process = processes.GaussianDiffusion(schedules.linear(1000), prediction)
        x_0, noise = normal(4, 3, 3, 1), normal(4, 3, 3, 1, seed=1)
        x_t = process.add_noise(x_0, noise, TIMES)
        hat = process.estimate(x_t, process.target(x_0, noise, TIMES), TIMES)
        np.testing.assert_allclose(hat.x_0, x_0, rtol=0, atol=1e-11)
        np.testing.assert_allclose(hat.eps, noise, rtol=0, atol=1e-11)
        np.testing.assert_allclose(process.eps_given_x_0(x_t, x_0, TIMES), noise, rtol=0, atol=1e-11)


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_the_estimate_explains_x_t_whatever_the_output(prediction):
    process = processes.GaussianDiffusion(schedules.cosine(1000), prediction)
    x_t, output, t = normal(4, 3, 3, 1), normal(4, 3, 3, 1, seed=1), jnp.array([0, 1, 500, 990])
    hat = process.estimate(x_t, output, t)
    np.testing.assert_allclose(process.add_noise(hat.x_0, hat.eps, t), x_t, rtol=0, atol=1e-5)


def test_targets_by_hand():
    schedule = schedules.from_betas(np.array([0.36]))  # alpha 0.8, sigma 0.6
    x_0, noise, t = jnp.full((1, 2), 10.0), jnp.full((1, 2), 100.0), jnp.array([0])
    wanted = {"eps": 100, "x0": 10, "v": 0.8 * 100 - 0.6 * 10}
    for prediction, value in wanted.items():
        process = processes.GaussianDiffusion(schedule, prediction)
        np.testing.assert_allclose(process.target(x_0, noise, t), np.full((1, 2), value), rtol=1e-6)
        np.testing.assert_allclose(process.add_noise(x_0, noise, t), np.full((1, 2), 68), rtol=1e-6)


@settings(max_examples=20, deadline=None)
@given(t=st.integers(1, 99), x_0=st.floats(-3, 3), x_t=st.floats(-3, 3))
def test_the_posterior_is_bayes_rule(t, x_0, x_t):
    """q(x_{t-1} | x_t, x_0) ∝ q(x_t | x_{t-1}) q(x_{t-1} | x_0), by moments of the product on a grid."""
    schedule = schedules.linear(100)
    with jax.enable_x64(True):
        process = processes.GaussianDiffusion(schedule)
        mean, var = process.posterior(jnp.array([[x_0]]), jnp.array([[x_t]]), jnp.array([t]))
        _, beta = process.posterior(jnp.array([[x_0]]), jnp.array([[x_t]]), jnp.array([t]), "beta")
    mean, var = float(mean[0, 0]), float(var[0, 0])
    before, step = float(np.prod(1 - schedule.betas[:t])), float(schedule.betas[t])
    grid = mean + np.linspace(-12, 12, 20_001) * np.sqrt(var)
    density = -((x_t - np.sqrt(1 - step) * grid) ** 2) / step - (grid - np.sqrt(before) * x_0) ** 2 / (1 - before)
    density = np.exp((density - density.max()) / 2)
    wanted = np.average(grid, weights=density)
    np.testing.assert_allclose(mean, wanted, rtol=0, atol=1e-9)
    np.testing.assert_allclose(var, np.average((grid - wanted) ** 2, weights=density), rtol=1e-8)
    np.testing.assert_allclose(float(beta[0, 0]), step, rtol=1e-12)


def test_the_clean_end_of_a_chain():
    like = jnp.zeros((2, 4, 4, 3), jnp.bfloat16)
    level = processes.GaussianDiffusion(schedules.linear(10)).level(np.array([-1, 9]), like)
    assert level.alpha.shape == level.sigma.shape == (2, 1, 1, 1)
    assert level.alpha.dtype == jnp.bfloat16
    assert (level.alpha[0].item(), level.sigma[0].item()) == (1, 0)
    betas = np.array([0.0, 0.36])
    later = processes.GaussianDiffusion(schedules.Schedule(betas, np.cumprod(1 - betas), first=1))
    level = later.level(np.array([0, 1]), jnp.zeros(2))
    np.testing.assert_allclose(level.alpha, [1, 0.8], rtol=1e-6)
    np.testing.assert_allclose(level.sigma, [0, 0.6], rtol=1e-6)


def test_grids_of_times():
    process = processes.GaussianDiffusion(schedules.linear(1000))
    assert process.times().tolist() == list(range(999, -2, -1))
    assert process.times(1).tolist() == [999, -1]
    assert process.times(4).tolist() == [999, 749, 499, 249, -1]
    for num_steps in range(1, 1001, 37):
        times = process.times(num_steps)
        assert (len(times), times[0], times[-1], times.dtype) == (num_steps + 1, 999, -1, np.int32)
        assert (np.diff(times) < 0).all()
        assert np.ptp(np.diff(times)) <= 1
    betas = np.array([0.0, 0.1, 0.2, 0.3])
    later = processes.GaussianDiffusion(schedules.Schedule(betas, np.cumprod(1 - betas), first=1))
    assert later.times().tolist() == [3, 2, 1, 0]


def test_drawn_times_are_uniform_over_the_chain():
    for first in (0, 1):
        schedule = schedules.Schedule(np.full(4 + first, 0.1), 0.9 ** np.arange(1, 5 + first), first=first)
        drawn = processes.GaussianDiffusion(schedule).draw_times(jax.random.key(0), 40_000)
        times, counts = np.unique(np.asarray(drawn), return_counts=True)
        assert times.tolist() == schedule.timesteps.tolist()
        assert np.abs(counts - 10_000).max() < 6 * np.sqrt(40_000 * 0.25 * 0.75)


@pytest.mark.parametrize(("loss", "wanted"), [("mse", (0.25, 9.0)), ("l1", (0.5, 3.0)), ("huber", (0.125, 2.5))])
@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_losses(loss, wanted, prediction):
    process = processes.GaussianDiffusion(schedules.linear(10), prediction, loss)
    x_0, noise, t = normal(3, 4, 4, 1), normal(3, 4, 4, 1, seed=1), jnp.array([3, 7, 9])
    off = jnp.array([0.5, -3.0, 0.0]).reshape(3, 1, 1, 1)
    seen = []

    def predict(x_t, t):
        seen.append(x_t)
        return process.target(x_0, noise, t) + off

    np.testing.assert_allclose(process.loss_per_example(predict, x_0, noise, t), [*wanted, 0], rtol=1e-5)
    np.testing.assert_array_equal(seen[0], process.add_noise(x_0, noise, t))


def test_huber_is_smooth_at_its_seam():
    process = processes.GaussianDiffusion(schedules.linear(10), loss="huber")
    zero, t = jnp.zeros((1, 1)), jnp.array([0])
    slope = jax.grad(lambda d: process.loss_per_example(lambda x_t, t: zero + d, zero, zero, t).sum())
    np.testing.assert_allclose([slope(d) for d in (0.0, 0.999, 1.001, -5.0)], [0, 0.999, 1, -1], rtol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda schedule: processes.GaussianDiffusion(schedule, "epsilon"), "eps, x0, v; got 'epsilon'"),
        (
            lambda schedule: processes.GaussianDiffusion(schedule, loss="l2"),
            "loss must be .*mse, l1, huber, vlb, hybrid; got 'l2'",
        ),
        (lambda schedule: processes.GaussianDiffusion(schedule).times(0), r"steps must lie in 1..10 .*got 0"),
        (lambda schedule: processes.GaussianDiffusion(schedule).times(11), r"steps must lie in 1..10 .*got 11"),
    ],
)
def test_errors(call, message, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # a user has no type checks at run time
    with pytest.raises(UserError, match=message):
        call(schedules.linear(10))
