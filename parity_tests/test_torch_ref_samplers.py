"""The twin's steps, its loop and its grids of times, against closed forms and plain loops."""

from functools import partial
from math import log, sqrt

import numpy as np
import pytest
import torch
from gaussian_data import (
    max_relative,
    normal,
)

from ddpm_torch_ref import processes, samplers, schedules


@pytest.mark.parametrize(
    "step",
    [
        samplers.ancestral_step,
        partial(samplers.ancestral_step, variance="posterior"),
        samplers.ddim_step,
        partial(samplers.ddim_step, eta=1.0),
    ],
)
def test_a_gaussian_is_recovered(step):
    """Data N(mean, std^2), each pixel by itself, with the exact eps of the marginal of x_t."""
    mean, std, num_steps, side = -0.7, 0.4, 1000, 128
    process = processes.GaussianDiffusion(schedules.linear(num_steps))
    abar = torch.from_numpy(process.schedule.alphas_cumprod.copy())

    def predict(x_t, t):
        a = abar[t].reshape(-1, 1, 1, 1)
        return (1 - a).sqrt() * (x_t - a.sqrt() * mean) / (a * std**2 + 1 - a)

    generator = torch.Generator().manual_seed(0)

    class Noises:
        def __getitem__(self, i):
            return torch.randn(1, 1, side, side, generator=generator, dtype=torch.float64)

    times = samplers.times(process.schedule, num_steps)
    x_0, states = samplers.sample(process, predict, normal(1, 1, side, side), times, step, Noises())
    assert len(states) == num_steps + 1
    # Six standard errors, and what 1,000 steps leave of the error of discretisation.
    assert float(x_0.mean()) == pytest.approx(mean, abs=6 * std / side + 2e-3)
    assert float(x_0.std()) == pytest.approx(std, rel=6 / (sqrt(2) * side) + 1e-2)


@pytest.mark.parametrize("step", [samplers.ancestral_step, partial(samplers.ddim_step, eta=0.5)])
def test_a_known_image_is_reached_exactly_in_few_steps(step):
    process = processes.GaussianDiffusion(schedules.linear(1000))
    image = normal(1, 1, 4, 4)
    times = samplers.times(process.schedule, 7)
    noises = normal(6, 1, 1, 4, 4, seed=2)

    def predict(x_t, t):
        return process.eps_given_x_0(x_t, image, t)

    x_0, _ = samplers.sample(process, predict, normal(1, 1, 4, 4, seed=1), times, step, noises)
    assert max_relative(x_0, image) < 1e-10
    x_0, _ = samplers.sample(process, predict, normal(1, 1, 4, 4, seed=1), times, step, noises, clip=0.5)
    assert max_relative(x_0, image.clamp(-0.5, 0.5)) < 1e-10


def test_ddim_with_eta_one_is_the_ancestral_step_with_the_posterior_variance():
    schedule = schedules.linear(1000)
    x_t, eps, noise = normal(2, 1, 3, 3), normal(2, 1, 3, 3, seed=1), normal(2, 1, 3, 3, seed=2)
    for t, s in [(999, 998), (999, 500), (500, 3), (1, 0), (0, -1), (10, -1)]:
        ddim = samplers.ddim_step(schedule, x_t, eps, t, s, noise, eta=1.0)
        ancestral = samplers.ancestral_step(schedule, x_t, eps, t, s, noise, variance="posterior")
        assert max_relative(ddim, ancestral) < 1e-9


def test_times():
    schedule = schedules.linear(1000)
    assert samplers.times(schedule, 1000).tolist() == list(range(999, -2, -1))
    assert samplers.times(schedule, 4).tolist() == [999, 749, 499, 249, -1]
    assert samplers.times(schedule, 1).tolist() == [999, -1]
    assert all((np.diff(samplers.times(schedule, n)) < 0).all() for n in range(1, 1001, 7))


def test_strided_times_and_steps():
    schedule = schedules.cosine_unclipped(10)
    assert samplers.strided_times(schedule, 3).tolist() == [7, 4, 1, 10]
    assert samplers.strided_times(schedule, 10).tolist() == [*range(10, 0, -1), 10]
    assert samplers.strided_times(schedule, 1).tolist() == [1, 1]
    with pytest.raises(ValueError, match=r"num_steps must lie in 1..10"):
        samplers.strided_times(schedule, 11)

    x_t, eps, noise = normal(1, 1, 2, 2), normal(1, 1, 2, 2, seed=1), normal(1, 1, 2, 2, seed=2)
    assert torch.equal(samplers.strided_step(schedule, x_t, eps, 1, 10, noise, eta=1.0), x_t)
    abar_t, abar_s = schedule.alphas_cumprod[[7, 4]]
    variance = (1 - abar_t / abar_s) * (1 - abar_s) / (1 - abar_t)
    mean = (x_t - variance * eps / sqrt(1 - abar_t)) / sqrt(1 - variance)
    step = samplers.strided_step(schedule, x_t, eps, 7, 4, noise, eta=0.3)
    assert max_relative(step, mean + 0.3 * sqrt(variance) * noise) < 1e-14
    with pytest.raises(ValueError, match="eta must be at least 0"):
        samplers.strided_step(schedule, x_t, eps, 7, 4, noise, eta=-0.1)


# Grids


GRIDS = [
    samplers.quadratic_times,
    samplers.karras_times,
    samplers.log_snr_times,
    partial(samplers.karras_times, rho=1.0),
]


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("make", [schedules.linear, schedules.cosine_unclipped, schedules.linear_inclusive])
def test_grids_descend_strictly_to_the_clean_end(grid, make):
    schedule = make(60)
    for num_steps in range(1, 61):
        times = grid(schedule, num_steps)
        assert times.shape == (num_steps + 1,) and times.dtype == np.int64
        assert times[0] == schedule.timesteps[-1] and times[-1] == schedule.first - 1
        assert (np.diff(times) < 0).all()
    for num_steps in (0, 61):
        with pytest.raises(ValueError, match=r"num_steps must lie in 1\.\.60"):
            grid(schedule, num_steps)


def test_grids_by_plain_loops():
    schedule = schedules.linear(1000)
    wanted = [round(999 * (i / 20) ** 2) for i in range(20, 0, -1)]
    assert samplers.quadratic_times(schedule, 20).tolist() == [*wanted, -1]
    assert samplers.quadratic_times(schedules.linear_inclusive(9), 3).tolist() == [9, round(1 + 8 * 4 / 9), 2, 0]
    # 9, 8.x and so on would repeat: pressed down from above, then pushed up from below.
    assert samplers.quadratic_times(schedules.linear(6), 5).tolist() == [5, 3, 2, 1, 0, -1]
    assert samplers.quadratic_times(schedules.linear(6), 6).tolist() == [5, 4, 3, 2, 1, 0, -1]

    taus = np.sqrt(1 / schedule.alphas_cumprod - 1)
    lambdas = np.log(schedule.sqrt_alphas_cumprod / schedule.sqrt_one_minus_alphas_cumprod)
    for i, (t, u) in enumerate(
        zip(samplers.karras_times(schedule, 10), samplers.log_snr_times(schedule, 10), strict=True)
    ):
        if i < 10:
            tau = (taus[-1] ** (1 / 7) + i / 9 * (taus[0] ** (1 / 7) - taus[-1] ** (1 / 7))) ** 7
            assert t == min(range(1000), key=lambda t: abs(log(taus[t]) - log(tau)))
            level = lambdas[-1] + i / 9 * (lambdas[0] - lambdas[-1])
            assert u == min(range(1000), key=lambda t: abs(lambdas[t] - level))


def test_grids_in_alpha_over_sigma_need_it_finite():
    schedule = schedules.zero_terminal_snr(schedules.linear(10))
    for grid in (samplers.karras_times, samplers.log_snr_times):
        with pytest.raises(ValueError, match="last alphas_cumprod above 0"):
            grid(schedule, 5)
    assert samplers.quadratic_times(schedule, 2).tolist() == [9, 2, -1]
    with pytest.raises(ValueError, match="rho must be above 0; got 0"):
        samplers.karras_times(schedules.linear(10), 5, rho=0)


# Errors


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: samplers.times(schedules.linear(10), 11), r"num_steps must lie in 1..10.*got 11"),
        (
            lambda: samplers.ddim_step(schedules.linear(2), normal(1), normal(1), 1, 0, normal(1), eta=2.0),
            r"eta must lie in \[0, 1\]; got 2.0",
        ),
        (
            lambda: samplers.ancestral_step(schedules.linear(2), normal(1), normal(1), 1, 0, normal(1), "small"),
            r"variance must be one of beta, posterior, learned; got 'small'",
        ),
    ],
)
def test_errors_name_the_argument_its_value_and_what_is_allowed(call, message):
    with pytest.raises(ValueError, match=message):
        call()
