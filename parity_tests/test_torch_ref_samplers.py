"""The twin's steps, its loop and its grids of times, against closed forms and plain loops."""

from functools import partial
from math import log, sqrt

import numpy as np
import pytest
import torch
from gaussian_data import max_relative, normal, predictor, walk

from ddpm_torch_ref import denoisers, processes, samplers, schedules
from ddpm_torch_ref.processes import Estimate
from ddpm_torch_ref.samplers import DDIM, GRIDS, Ancestral, Strided


def step(step, schedule, x_t, eps, t, s, noise, **options):
    """A plain step of eps alone between two times of a schedule."""
    process = processes.GaussianDiffusion(schedule)
    x_0 = process.estimate(x_t, eps, torch.full((len(x_t),), t)).x_0
    return step(x_t, Estimate(x_0, eps), process.level(t), process.level(s), noise, **options)


@pytest.mark.parametrize("sampler", [Ancestral(), Ancestral("posterior"), DDIM(), DDIM(eta=1.0)])
def test_a_gaussian_is_recovered(sampler):
    """Data N(mean, std^2), each pixel by itself, with the exact eps of the marginal of x_t."""
    mean, std, num_steps, side = -0.7, 0.4, 1000, 128
    process = processes.GaussianDiffusion(schedules.linear(num_steps))
    abar = torch.from_numpy(process.schedule.alphas_cumprod.copy())

    def predict(x_t, t):
        a = abar[t].reshape(-1, 1, 1, 1)
        return (1 - a).sqrt() * (x_t - a.sqrt() * mean) / (a * std**2 + 1 - a)

    generator = torch.Generator().manual_seed(0)

    def drawn(i):
        return torch.randn(1, 1, side, side, generator=generator, dtype=torch.float64)

    denoise, x_T = denoisers.of(process, predict), normal(1, 1, side, side)
    x_0, frames = samplers.walk(denoise, sampler, x_T, drawn, sampler.grid(process), 3)
    assert torch.equal(frames[0], x_T) and torch.equal(frames[2], x_0) and len(frames) == 3
    # Six standard errors, and what 1,000 steps leave of the error of discretisation.
    assert float(x_0.mean()) == pytest.approx(mean, abs=6 * std / side + 2e-3)
    assert float(x_0.std()) == pytest.approx(std, rel=6 / (sqrt(2) * side) + 1e-2)


@pytest.mark.parametrize("sampler", [Ancestral(), DDIM(eta=0.5)])
def test_a_known_image_is_reached_exactly_in_few_steps(sampler):
    process = processes.GaussianDiffusion(schedules.linear(1000))
    image = normal(1, 1, 4, 4)
    times, noises = process.times(7), normal(7, 1, 1, 4, 4, seed=2)

    def predict(x_t, t):
        return process.eps_given_x_0(x_t, image, t)

    x_0, _ = walk(sampler, process, predict, normal(1, 1, 4, 4, seed=1), times, noises)
    assert max_relative(x_0, image) < 1e-10
    x_0, _ = walk(sampler, process, predict, normal(1, 1, 4, 4, seed=1), times, noises, clip=0.5)
    assert max_relative(x_0, image.clamp(-0.5, 0.5)) < 1e-10


def test_ddim_with_eta_one_is_the_ancestral_step_with_the_posterior_variance():
    schedule = schedules.linear(1000)
    x_t, eps, noise = normal(2, 1, 3, 3), normal(2, 1, 3, 3, seed=1), normal(2, 1, 3, 3, seed=2)
    for t, s in [(999, 998), (999, 500), (500, 3), (1, 0), (0, -1), (10, -1)]:
        ddim = step(samplers.ddim_step, schedule, x_t, eps, t, s, noise, eta=1.0)
        ancestral = step(samplers.ancestral_step, schedule, x_t, eps, t, s, noise, variance="posterior")
        assert max_relative(ddim, ancestral) < 1e-9


def test_times():
    process = processes.GaussianDiffusion(schedules.linear(1000))
    assert process.times().tolist() == process.times(1000).tolist() == list(range(999, -2, -1))
    assert process.times(4).tolist() == [999, 749, 499, 249, -1]
    assert process.times(1).tolist() == [999, -1]
    assert all((np.diff(process.times(n)) < 0).all() for n in range(1, 1001, 7))
    assert GRIDS["leading"](process, 4).tolist() == [750, 500, 250, 0, -1]
    assert GRIDS["leading"](chain(schedules.linear_inclusive(10)), 3).tolist() == [7, 4, 1, 0]
    assert processes.FlowMatching().times().shape == (1001,)


def chain(schedule):
    return processes.GaussianDiffusion(schedule)


def test_strided_times_and_steps():
    schedule = schedules.cosine_unclipped(10)
    process = chain(schedule)
    assert samplers.strided_times(process, 3).tolist() == [7, 4, 1, 10]
    assert Strided().grid(process, 3) == [(7, 4), (4, 1), (1, 10)]
    assert samplers.strided_times(process, 10).tolist() == [*range(10, 0, -1), 10]
    assert samplers.strided_times(process, 1).tolist() == [1, 1]
    with pytest.raises(ValueError, match=r"num_steps must lie in 1..10"):
        samplers.strided_times(process, 11)

    x_t, eps, noise = normal(1, 1, 2, 2), normal(1, 1, 2, 2, seed=1), normal(1, 1, 2, 2, seed=2)
    assert torch.equal(step(samplers.strided_step, schedule, x_t, eps, 1, 10, noise, eta=1.0), x_t)
    abar_t, abar_s = schedule.alphas_cumprod[[7, 4]]
    variance = (1 - abar_t / abar_s) * (1 - abar_s) / (1 - abar_t)
    mean = (x_t - variance * eps / sqrt(1 - abar_t)) / sqrt(1 - variance)
    got = step(samplers.strided_step, schedule, x_t, eps, 7, 4, noise, eta=0.3)
    assert max_relative(got, mean + 0.3 * sqrt(variance) * noise) < 1e-13
    drawn, denoise = (lambda i: noise), denoisers.of(process, lambda x, t: eps)
    x_0, shown = samplers.walk(denoise, Strided(0.3), x_t, drawn, [(7, 4), (4, 10)], 3)
    assert max_relative(shown[1], mean) < 1e-13  # frames are as they are before their noise
    assert max_relative(x_0, got) < 1e-13
    with pytest.raises(ValueError, match=r"eta must lie in \[0, 1\]; got -0.1"):
        Strided(eta=-0.1)


# Grids


SPREAD = [GRIDS["quadratic"], GRIDS["karras"], GRIDS["log_snr"], partial(GRIDS["karras"], rho=1.0)]


@pytest.mark.parametrize("grid", SPREAD)
@pytest.mark.parametrize("make", [schedules.linear, schedules.cosine_unclipped, schedules.linear_inclusive])
def test_grids_descend_strictly_to_the_clean_end(grid, make):
    schedule = make(60)
    for num_steps in range(1, 61):
        times = grid(chain(schedule), num_steps)
        assert times.shape == (num_steps + 1,) and times.dtype == np.int64
        assert times[0] == schedule.timesteps[-1] and times[-1] == schedule.first - 1
        assert (np.diff(times) < 0).all()
    for num_steps in (0, 61):
        with pytest.raises(ValueError, match=r"num_steps must lie in 1\.\.60"):
            grid(chain(schedule), num_steps)


def test_grids_by_plain_loops():
    schedule, quadratic = schedules.linear(1000), GRIDS["quadratic"]
    wanted = [round(999 * (i / 20) ** 2) for i in range(20, 0, -1)]
    assert quadratic(chain(schedule), 20).tolist() == [*wanted, -1]
    assert quadratic(chain(schedules.linear_inclusive(9)), 3).tolist() == [9, round(1 + 8 * 4 / 9), 2, 0]
    np.testing.assert_allclose(quadratic(processes.FlowMatching(), 4), [1, 9 / 16, 1 / 4, 1 / 16, 0])
    # 9, 8.x and so on would repeat: pressed down from above, then pushed up from below.
    assert quadratic(chain(schedules.linear(6)), 5).tolist() == [5, 3, 2, 1, 0, -1]
    assert quadratic(chain(schedules.linear(6)), 6).tolist() == [5, 4, 3, 2, 1, 0, -1]

    taus = np.sqrt(1 / schedule.alphas_cumprod - 1)
    lambdas = np.log(schedule.sqrt_alphas_cumprod / schedule.sqrt_one_minus_alphas_cumprod)
    for i, (t, u) in enumerate(
        zip(GRIDS["karras"](chain(schedule), 10), GRIDS["log_snr"](chain(schedule), 10), strict=True)
    ):
        if i < 10:
            tau = (taus[-1] ** (1 / 7) + i / 9 * (taus[0] ** (1 / 7) - taus[-1] ** (1 / 7))) ** 7
            assert t == min(range(1000), key=lambda t: abs(log(taus[t]) - log(tau)))
            level = lambdas[-1] + i / 9 * (lambdas[0] - lambdas[-1])
            assert u == min(range(1000), key=lambda t: abs(lambdas[t] - level))


def test_grids_in_alpha_over_sigma_need_it_finite():
    blind = processes.GaussianDiffusion(schedules.zero_terminal_snr(schedules.linear(10)), "v")
    for name in ("karras", "log_snr"):
        with pytest.raises(ValueError, match="last alphas_cumprod above 0"):
            GRIDS[name](blind, 5)
        with pytest.raises(ValueError, match=f"spacing must be one that needs no timesteps.*got {name}"):
            GRIDS[name](processes.FlowMatching(), 5)
    assert GRIDS["quadratic"](blind, 2).tolist() == [9, 2, -1]
    with pytest.raises(ValueError, match="rho must be above 0; got 0"):
        GRIDS["karras"](chain(schedules.linear(10)), 5, rho=0)


def test_ancestral_steps_from_nothing_but_noise():
    """alpha_T = 0: the first step goes to where x_0 hat is, and the whole walk to the data."""
    blind = processes.GaussianDiffusion(schedules.zero_terminal_snr(schedules.linear(1000)), "v")
    x_T, noises = normal(64, 64), normal(1000, 64, 64, seed=1)
    x_0, states = walk(Ancestral(), blind, predictor(blind), x_T, blind.times(), noises)
    level = blind.level(998)
    assert max_relative(states[1], level.alpha * -0.7 + noises[0]) < 1e-10
    assert float(x_0.mean()) == pytest.approx(-0.7, abs=0.03) and float(x_0.std()) == pytest.approx(0.4, rel=0.03)


def test_frames():
    """Evenly spread, the noise first and the data last; every step but the last takes its noise."""
    process, asked = chain(schedules.linear(5)), []
    denoise, x_T, noises = denoisers.of(process, predictor(process)), normal(2, 4), normal(4, 2, 4, seed=1)

    def drawn(i):
        asked.append(i)
        return noises[i]

    grid = Ancestral().grid(process)
    x_0, every = samplers.walk(denoise, Ancestral(), x_T, drawn, grid, 6)
    assert asked == [0, 1, 2, 3] and samplers.frame_steps(5, 3).tolist() == [0, 2, 5]
    x_0, some = samplers.walk(denoise, Ancestral(), x_T, drawn, grid, 3)
    assert torch.equal(some, every[[0, 2, 5]]) and torch.equal(some[-1], x_0)
    assert samplers.walk(denoise, Ancestral(), x_T, drawn, grid).frames.shape == (0, 2, 4)


def test_samples_are_drawn_by_a_generator():
    process = chain(schedules.linear(20))
    denoise = denoisers.of(process, lambda x_t, t: x_t / 2)
    drawn = [
        samplers.sample(denoise, Ancestral(), torch.Generator().manual_seed(seed), (2, 1, 3, 3), 5)
        for seed in (0, 0, 1)
    ]
    generator = torch.Generator().manual_seed(0)
    x_0, frames = samplers.sample_with_frames(denoise, Ancestral(), generator, (2, 1, 3, 3), 5, num_frames=4)
    assert torch.equal(x_0, drawn[0]) and torch.equal(frames[-1], x_0) and frames.shape == (4, 2, 1, 3, 3)
    with pytest.raises(ValueError, match=r"num_frames must lie in 2..6, the steps and one; got 7"):
        samplers.sample_with_frames(denoise, Ancestral(), generator, (2, 1, 3, 3), 5, num_frames=7)
    assert drawn[0].shape == (2, 1, 3, 3) and torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


# Errors


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: chain(schedules.linear(10)).times(11), r"num_steps must lie in 1..10.*got 11"),
        (lambda: processes.FlowMatching().times(0), r"num_steps must be at least 1; got 0"),
        (lambda: DDIM(eta=2.0), r"eta must lie in \[0, 1\]; got 2.0"),
        (lambda: Ancestral("small"), r"variance must be one of beta, posterior, learned; got 'small'"),
        (
            lambda: Ancestral("learned").grid(chain(schedules.linear(3))),
            r"variance must be beta or posterior on a process without learned_variance; got 'learned'",
        ),
    ],
)
def test_errors_name_the_argument_its_value_and_what_is_allowed(call, message):
    with pytest.raises(ValueError, match=message):
        call()
