"""The twin's schedules against closed forms and plain loops."""

from math import cos, log, pi, sqrt

import numpy as np
import pytest
import torch
from gaussian_data import SHAPE, max_relative, normal

from ddpm_torch_ref import samplers, schedules
from ddpm_torch_ref.processes import Estimate, GaussianDiffusion

MAKERS = [schedules.linear, schedules.cosine, schedules.quadratic, schedules.sigmoid]


def test_linear_ends():
    schedule = schedules.linear(1000)
    assert schedule.num_steps == 1000 and schedule.first == 0
    assert (schedule.timesteps == np.arange(1000)).all()
    assert schedule.betas[[0, 999]] == pytest.approx([1e-4, 0.02], rel=1e-15)
    assert schedule.betas[500] == pytest.approx(1e-4 + (0.02 - 1e-4) * 500 / 999, rel=1e-14)


def test_quadratic_and_sigmoid_ends():
    quadratic, sigmoid = schedules.quadratic(11), schedules.sigmoid(11)
    assert quadratic.betas[[0, 10]] == pytest.approx([1e-4, 0.02], rel=1e-14)
    assert quadratic.betas[5] == pytest.approx((0.01 / 2 + sqrt(0.02) / 2) ** 2, rel=1e-14)
    assert sigmoid.betas[5] == pytest.approx((1e-4 + 0.02) / 2, rel=1e-14)
    assert sigmoid.betas[10] == pytest.approx(1e-4 + (0.02 - 1e-4) / (1 + np.exp(-6)), rel=1e-14)


def test_cosine_is_the_squared_cosine_until_it_is_clipped():
    schedule = schedules.cosine(100)

    def f(t):
        return cos((t / 100 + 0.008) / 1.008 * pi / 2) ** 2

    for t in (0, 40, 98):
        assert schedule.alphas_cumprod[t] == pytest.approx(f(t + 1) / f(0), rel=1e-12)
    assert schedule.betas[99] == 0.999


@pytest.mark.parametrize("make", MAKERS)
def test_tables_agree_with_plain_loops(make):
    schedule = make(7)
    product = 1.0
    for t in range(7):
        before, product = product, product * (1 - schedule.betas[t])
        variance = schedule.betas[t] * (1 - before) / (1 - product)
        assert schedule.alphas_cumprod_prev[t] == pytest.approx(before, rel=1e-13)
        assert schedule.alphas_cumprod[t] == pytest.approx(product, rel=1e-13)
        assert schedule.posterior_variance[t] == pytest.approx(variance, rel=1e-12)
        assert schedule.posterior_log_variance_clipped[max(t, 1)] == pytest.approx(
            log(schedule.posterior_variance[max(t, 1)]), rel=1e-12
        )
        assert schedule.sqrt_alphas_cumprod[t] ** 2 == pytest.approx(product, rel=1e-13)
        assert schedule.sqrt_one_minus_alphas_cumprod[t] ** 2 == pytest.approx(1 - product, rel=1e-13)
        assert schedule.sqrt_recip_alphas[t] ** -2 == pytest.approx(1 - schedule.betas[t], rel=1e-13)
        assert schedule.sqrt_recip_alphas_cumprod[t] ** -2 == pytest.approx(product, rel=1e-13)
        assert schedule.sqrt_recipm1_alphas_cumprod[t] ** 2 == pytest.approx(1 / product - 1, rel=1e-12)
        assert schedule.snr[t] == pytest.approx(product / (1 - product), rel=1e-12)
    assert schedule.posterior_variance[0] == 0
    assert schedule.posterior_log_variance_clipped[0] == schedule.posterior_log_variance_clipped[1]
    with pytest.raises(ValueError, match="read-only"):
        schedule.alphas_cumprod[0] = 1


def test_one_step_and_a_table_that_starts_at_one():
    assert schedules.linear(1).posterior_log_variance_clipped[0] == pytest.approx(log(1e-4), rel=1e-14)
    betas = np.array([0.0, 0.1, 0.2])
    schedule = schedules.Schedule(betas, np.cumprod(1 - betas), first=1)
    assert schedule.num_steps == 2 and schedule.timesteps.tolist() == [1, 2]
    assert schedule.alphas_cumprod_prev[1:] == pytest.approx([1, 0.9])
    assert schedule.posterior_variance[1:] == pytest.approx([0, 0.2 * 0.1 / 0.28])
    assert schedule.posterior_log_variance_clipped[1] == schedule.posterior_log_variance_clipped[2]
    assert GaussianDiffusion(schedule).times(2).tolist() == [2, 1, 0]


def test_linear_inclusive_starts_from_an_end_that_is_not_quite_clean():
    schedule = schedules.linear_inclusive(4, 0.1, 0.5)
    assert schedule.num_steps == 4 and schedule.timesteps.tolist() == [1, 2, 3, 4]
    assert schedule.betas == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
    assert schedule.alphas == pytest.approx([0.9, 0.8, 0.7, 0.6, 0.5])
    assert schedule.alphas_cumprod == pytest.approx([0.9, 0.72, 0.504, 0.3024, 0.1512])
    assert schedule.alphas_cumprod_prev == pytest.approx([1, 0.9, 0.72, 0.504, 0.3024])
    assert schedule.posterior_variance[1] == pytest.approx(0.2 * 0.1 / 0.28)
    assert schedule.posterior_log_variance_clipped[1] == pytest.approx(log(0.2 * 0.1 / 0.28))
    x_t, eps = normal(1, 1, 2, 2), normal(1, 1, 2, 2, seed=1)
    x_0 = (x_t - sqrt(0.28) * eps) / sqrt(0.72)
    process = GaussianDiffusion(schedule)
    step = samplers.ddim_step(x_t, Estimate(x_0, eps), process.level(1), process.level(0), torch.zeros_like(x_t))
    assert max_relative(step, sqrt(0.9) * x_0 + sqrt(0.1) * eps) < 1e-14


def test_cosine_unclipped_reaches_pure_noise():
    schedule = schedules.cosine_unclipped(500)
    assert schedule.num_steps == 500 and schedule.first == 1
    assert schedule.alphas_cumprod[0] == 1 and schedule.posterior_variance[1] == 0
    f = [cos((t / 500 + 0.008) / 1.008 * pi / 2) ** 2 for t in range(501)]
    assert schedule.alphas_cumprod[1:500] == pytest.approx([f_t / f[0] for f_t in f[1:500]], rel=1e-12)
    assert schedule.betas[1:500] == pytest.approx([1 - f[t] / f[t - 1] for t in range(1, 500)], rel=1e-9)
    assert 0 < schedule.alphas_cumprod[500] < 1e-30
    assert all(np.isfinite(getattr(schedule, table)[1:]).all() for table in ("sqrt_recip_alphas", "snr"))
    with pytest.raises(ValueError, match=r"s must be at least 0; got -1"):
        schedules.cosine_unclipped(10, s=-1)
    with pytest.raises(ValueError, match=r"alphas_cumprod must lie in \(0, 1\); alphas_cumprod\[2\] = 1.5"):
        schedules.Schedule(np.array([0, 0.1, 0.1]), np.array([1, 0.9, 1.5]), first=1)


@pytest.mark.parametrize(
    "make", [schedules.linear, schedules.cosine, schedules.cosine_unclipped, schedules.linear_inclusive]
)
def test_zero_terminal_snr(make):
    before = make(100)
    schedule, first = schedules.zero_terminal_snr(before), before.first
    roots, wanted = schedule.sqrt_alphas_cumprod[first:], before.sqrt_alphas_cumprod[first:]
    assert schedule.alphas_cumprod[-1] == 0 and schedule.betas[-1] == 1 and schedule.snr[-1] == 0
    assert roots[0] == pytest.approx(wanted[0], rel=1e-14)
    slope = wanted[0] / (wanted[0] - wanted[-1])
    np.testing.assert_allclose(np.diff(roots), slope * np.diff(wanted), rtol=1e-9, atol=1e-15)
    np.testing.assert_array_equal(schedule.alphas_cumprod[:first], before.alphas_cumprod[:first])
    np.testing.assert_allclose(
        schedule.betas[first:], 1 - (schedule.alphas_cumprod / schedule.alphas_cumprod_prev)[first:], rtol=1e-12
    )
    process = GaussianDiffusion(schedule, "v")
    x_0, noise, t = normal(*SHAPE), normal(*SHAPE, seed=1), torch.full((2,), int(schedule.timesteps[-1]))
    assert (process.add_noise(x_0, noise, t) == noise).all()
    assert (process.target(x_0, noise, t) == -x_0).all()


def test_zero_terminal_snr_refuses_what_it_cannot_do():
    with pytest.raises(ValueError, match="at least 2 steps"):
        schedules.zero_terminal_snr(schedules.linear(1))
    with pytest.raises(ValueError, match=r"alphas_cumprod\[1\] = 0"):
        schedules.Schedule(np.array([0.1, 1, 0.1]), np.array([0.9, 0, 0.5]))


# Errors


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: schedules.linear(0), r"num_steps must be at least 1; got 0"),
        (lambda: schedules.linear(10, beta_end=1.2), r"beta_end must lie in \(0, 1\); got 1.2"),
        (lambda: schedules.quadratic(10, beta_start=0.0), r"beta_start must lie in \(0, 1\); got 0.0"),
        (lambda: schedules.cosine(10, s=-1.0), r"s must be at least 0; got -1.0"),
        (lambda: schedules.cosine(10, max_beta=1.0), r"max_beta must lie in \(0, 1\); got 1.0"),
        (lambda: schedules.from_betas(np.array([0.1, 1.2])), r"betas\[1\] = 1.2"),
    ],
)
def test_errors_name_the_argument_its_value_and_what_is_allowed(call, message):
    with pytest.raises(ValueError, match=message):
        call()
