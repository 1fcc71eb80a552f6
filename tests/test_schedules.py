"""Schedules against closed forms."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddpm_jax import schedules
from ddpm_jax.errors import UserError

NAMES = ("linear", "cosine", "quadratic", "sigmoid", "sigmoid_cumprod")


def test_ends():
    linear, quadratic, sigmoid = (schedules.create(name, 1001) for name in ("linear", "quadratic", "sigmoid"))
    np.testing.assert_allclose(linear.betas[[0, 500, 1000]], [1e-4, 0.01005, 0.02], rtol=1e-14)
    middle = (0.01 + math.sqrt(0.02)) ** 2 / 4
    np.testing.assert_allclose(quadratic.betas[[0, 500, 1000]], [1e-4, middle, 0.02], rtol=1e-14)
    low, high = 1 / (1 + math.exp(6)), 1 / (1 + math.exp(-6))
    wanted = [1e-4 + 0.0199 * share for share in (low, 0.5, high)]
    np.testing.assert_allclose(sigmoid.betas[[0, 500, 1000]], wanted, rtol=1e-14)


def test_cosine_telescopes_until_it_is_clipped():
    schedule = schedules.cosine(1000)

    def f(time):
        return math.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2

    wanted = [f((t + 1) / 1000) / f(0) for t in range(999)]
    np.testing.assert_allclose(schedule.alphas_cumprod[:999], wanted, rtol=1e-10)
    assert schedule.betas[999] == 0.999
    assert schedule.betas[998] < 0.999
    assert (schedules.cosine(1000, max_beta=0.01).betas <= 0.01).all()


@settings(max_examples=30, deadline=None)
@given(name=st.sampled_from(NAMES), num_steps=st.integers(1, 400))
def test_identities(name, num_steps):
    schedule = schedules.create(name, num_steps)
    product, close = 1.0, {"rel_tol": 1e-9}
    for t in range(num_steps):
        before, product = product, product * (1 - float(schedule.betas[t]))
        assert math.isclose(schedule.alphas_cumprod[t], product, **close)
        assert math.isclose(schedule.alphas_cumprod_prev[t], before, **close)
        # two Gaussians multiplied: precisions add, means are weighted by them (eq. 7, by another way)
        if t:
            precision = (1 - schedule.betas[t]) / schedule.betas[t] + 1 / (1 - before)
            assert math.isclose(schedule.posterior_variance[t], 1 / precision, **close)
            assert math.isclose(schedule.posterior_mean_coef1[t], math.sqrt(before) / (1 - before) / precision, **close)
            weight = math.sqrt(1 - schedule.betas[t]) / schedule.betas[t] / precision
            assert math.isclose(schedule.posterior_mean_coef2[t], weight, **close)
    alpha, sigma = schedule.sqrt_alphas_cumprod, schedule.sqrt_one_minus_alphas_cumprod
    np.testing.assert_allclose(alpha**2 + sigma**2, 1, rtol=1e-14)
    np.testing.assert_allclose(schedule.snr, (alpha / sigma) ** 2, rtol=1e-9)
    np.testing.assert_allclose(schedule.sqrt_recip_alphas**-2, schedule.alphas, rtol=1e-9)
    np.testing.assert_allclose(schedule.sqrt_recip_alphas_cumprod * alpha, 1, rtol=1e-12)
    np.testing.assert_allclose(schedule.sqrt_recipm1_alphas_cumprod * alpha, sigma, rtol=1e-9)
    assert (np.diff(schedule.alphas_cumprod) < 0).all()


def test_the_first_posterior():
    """At t = 0 the posterior is the data itself: no variance, and a logarithm borrowed from the next entry."""
    schedule = schedules.linear(10)
    assert (schedule.posterior_variance[0], schedule.posterior_mean_coef2[0]) == (0, 0)
    assert math.isclose(schedule.posterior_mean_coef1[0], 1, rel_tol=1e-12)
    logs = schedule.posterior_log_variance_clipped
    assert logs[0] == logs[1] == math.log(schedule.posterior_variance[1])
    assert schedules.linear(1).posterior_log_variance_clipped[0] == math.log(1e-4)  # no second entry: beta


def test_timesteps_and_a_table_that_starts_at_one():
    schedule = schedules.linear(5)
    assert (schedule.num_steps, schedule.first, schedule.timesteps.tolist()) == (5, 0, [0, 1, 2, 3, 4])
    betas = np.array([0.0, 0.1, 0.2])
    later = schedules.Schedule(betas, np.cumprod(1 - betas), first=1)
    assert (later.num_steps, later.timesteps.tolist()) == (2, [1, 2])
    assert later.snr[0] == np.inf
    assert later.posterior_variance[0] == 0
    np.testing.assert_allclose(later.posterior_variance[1:], [0, 0.2 * 0.1 / 0.28])


def test_a_chain_may_end_in_pure_noise():
    schedule = schedules.from_betas(np.array([0.5, 1.0]))
    assert schedule.alphas_cumprod[1] == 0
    assert schedule.snr[1] == 0
    assert schedule.sqrt_recip_alphas_cumprod[1] == schedule.sqrt_recip_alphas[1] == np.inf


def test_equal_tables_are_equal_schedules():
    one, same, other = schedules.linear(10), schedules.linear(10), schedules.linear(10, beta_end=0.03)
    assert one == same
    assert hash(one) == hash(same)
    assert one != other
    assert one != schedules.linear(9)
    assert one != "linear"
    assert one != schedules.Schedule(one.betas.copy(), one.alphas_cumprod.copy(), first=1)


def test_tables_are_double_and_cannot_be_changed():
    given_betas = np.array([0.1, 0.2], np.float32)
    schedule = schedules.from_betas(given_betas)
    given_betas[0] = 0.9
    assert schedule.betas[0] == np.float32(0.1)
    for table in (schedule.betas, schedule.alphas_cumprod):
        assert table.dtype == np.float64
        with pytest.raises(ValueError, match="read-only"):
            table[0] = 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        *((lambda name=name: schedules.create(name, 0), "num_steps must be at least 1; got 0") for name in NAMES),
        (lambda: schedules.linear(3, beta_end=1.2), r"betas must lie in \(0, 1\]; betas\[2\] = 1.2. Change beta_start"),
        (lambda: schedules.linear(3, beta_start=0.0), r"betas\[0\] = 0"),
        (lambda: schedules.linear(3, beta_start=math.nan), r"betas\[0\] = nan"),
        (lambda: schedules.quadratic(3, beta_start=-0.1), "beta_start and beta_end must lie in .*got -0.1 and 0.02"),
        (lambda: schedules.cosine(3, s=0.0), "s must be positive; got 0"),
        (lambda: schedules.cosine(3, max_beta=0.0), r"max_beta must lie in \(0, 1\]; got 0"),
        (lambda: schedules.create("cosin", 3), "must be one of linear, cosine, .*; got 'cosin'"),
    ],
)
def test_errors(call, message):
    with pytest.raises(UserError, match=message):
        call()
