"""The twin's solvers, state by state, against those of diffusers."""

from itertools import pairwise
from math import expm1, log

import diffusers.schedulers as theirs
import pytest
import torch
from gaussian_data import SHAPE, max_relative, normal, walk

from ddpm_torch_ref import schedules
from ddpm_torch_ref.processes import FlowMatching, GaussianDiffusion
from ddpm_torch_ref.samplers import GRIDS, DPMSolver, Euler, Heun, UniPC


class DoubleTorch:
    """torch, whose float32 is float64: diffusers casts each state to single precision, which would hide small differences."""

    float32 = torch.float64

    def __getattr__(self, name):
        return getattr(torch, name)


def scheduler_at(monkeypatch, kind, process, times, **options):
    """One of diffusers' schedulers, in double precision, at our times and levels; its sigma is our tau."""
    monkeypatch.setattr(f"{kind.__module__}.torch", DoubleTorch())
    scheduler = kind(num_train_timesteps=process.schedule.num_steps, prediction_type="epsilon", **options)
    scheduler.set_timesteps(len(times) - 1)
    levels = [process.level(t) for t in times]
    scheduler.sigmas = torch.tensor([sigma / alpha for alpha, sigma in levels], dtype=torch.float64)
    scheduler.timesteps = torch.tensor([float(t) for t in times[:-1]], dtype=torch.float64)
    return scheduler


CHAIN = GaussianDiffusion(schedules.linear(1000))


@pytest.fixture
def eps_of():
    """A network that is not linear in x_t, so that nothing agrees by accident."""
    wild = normal(*SHAPE, seed=9)
    return lambda x_t, t: torch.sin(2 * x_t + wild) * (0.6 + t.double().reshape(-1, 1, 1, 1) / 2000) + 0.3 * x_t


@pytest.mark.parametrize("grid", [GRIDS["even"], GRIDS["karras"]])
@pytest.mark.parametrize(
    ("solver", "kind", "options"),
    [
        (DPMSolver(), theirs.DPMSolverMultistepScheduler, {"solver_order": 2, "lower_order_final": False}),
        (UniPC(), theirs.UniPCMultistepScheduler, {"solver_order": 2, "solver_type": "bh2"}),
    ],
)
def test_multistep_solvers_are_those_of_diffusers(solver, kind, options, grid, eps_of, monkeypatch):
    """Difference of definition: its DPMSolver lowers the order over the last steps of grids below 15 (lower_order_final); ours only
    where sigma_s = 0, as its final_sigmas_type "zero" does without that option. Of UniPC: none.
    """
    times = grid(CHAIN, 12)
    scheduler = scheduler_at(monkeypatch, kind, CHAIN, times, **options)
    x_T = normal(*SHAPE)
    x_0, states = walk(solver, CHAIN, eps_of, x_T, times)
    x_t = x_T
    for i, t in enumerate(scheduler.timesteps):
        x_t = scheduler.step(eps_of(x_t, t.expand(2)), t, x_t).prev_sample
        assert max_relative(states[i + 1], x_t) < 1e-10, i
    assert torch.equal(x_0, states[-1])


def test_third_order_is_that_of_diffusers_but_for_a_factor(eps_of, monkeypatch):
    """Difference of definition: diffusers, as the authors' code, puts a divided difference D in the place of h^2 f'' = 2 D."""
    times = GRIDS["karras"](CHAIN, 12)
    options = {"solver_order": 3, "lower_order_final": False}
    scheduler = scheduler_at(monkeypatch, theirs.DPMSolverMultistepScheduler, CHAIN, times, **options)
    x_t = normal(*SHAPE)
    _, states = walk(DPMSolver(order=3), CHAIN, eps_of, x_t, times)
    guesses = []
    for i, t in enumerate(scheduler.timesteps[:3]):
        t_batch = torch.full((2,), int(t))
        guesses.append(CHAIN.estimate(x_t, eps_of(x_t, t_batch), t_batch).x_0)
        x_t = scheduler.step(eps_of(x_t, t_batch), t, x_t).prev_sample
        if i < 2:
            assert max_relative(states[i + 1], x_t) < 1e-10
    lambdas = [log(alpha / sigma) for alpha, sigma in (CHAIN.level(t) for t in times[:4])]
    h1, h0, h = (after - before for before, after in pairwise(lambdas))
    D = ((guesses[2] - guesses[1]) * h / h0 - (guesses[1] - guesses[0]) * h / h1) / ((h0 + h1) / h)
    phi3 = (expm1(-h) / h + 1) / h - 0.5
    assert max_relative(states[3], x_t - CHAIN.level(times[3])[0] * phi3 * D) < 1e-10


def test_sde_solver_is_that_of_diffusers(eps_of, monkeypatch):
    """Difference of definition: its last step, to sigma = 0, is given noise too, which sigma_s = 0 multiplies."""
    times, noises = GRIDS["karras"](CHAIN, 12), normal(12, *SHAPE, seed=1)
    options = {"solver_order": 2, "lower_order_final": False, "algorithm_type": "sde-dpmsolver++"}
    scheduler = scheduler_at(monkeypatch, theirs.DPMSolverMultistepScheduler, CHAIN, times, **options)
    x_t = normal(*SHAPE)
    _, states = walk(DPMSolver(sde=True), CHAIN, eps_of, x_t, times, noises)
    for i, t in enumerate(scheduler.timesteps):
        x_t = scheduler.step(eps_of(x_t, t.expand(2)), t, x_t, variance_noise=noises[i]).prev_sample
        assert max_relative(states[i + 1], x_t) < 1e-10, i


def test_euler_is_that_of_diffusers(eps_of, monkeypatch):
    """Difference of definition: its states are y = x/alpha, which scale_model_input multiplies by alpha again for the network."""
    times = GRIDS["karras"](CHAIN, 12)
    scheduler = scheduler_at(monkeypatch, theirs.EulerDiscreteScheduler, CHAIN, times)
    x_T = normal(*SHAPE)
    _, states = walk(Euler(), CHAIN, eps_of, x_T, times)
    y = x_T / process_alpha(times[0])
    for i, t in enumerate(scheduler.timesteps):
        y = scheduler.step(eps_of(scheduler.scale_model_input(y, t), t.expand(2)), t, y).prev_sample
        assert max_relative(states[i + 1], process_alpha(times[i + 1]) * y) < 1e-10, i


def process_alpha(t):
    return CHAIN.level(t)[0]


def test_heun_is_that_of_diffusers(eps_of, monkeypatch):
    """Differences of definition: it takes two calls for a step and keeps each of the times and sigmas but the first twice; it
    has no churn; its states are y = x/alpha.
    """
    times = GRIDS["karras"](CHAIN, 12)
    scheduler = scheduler_at(monkeypatch, theirs.HeunDiscreteScheduler, CHAIN, times)
    sigmas, repeated = scheduler.sigmas, scheduler.timesteps
    scheduler.sigmas = torch.cat([sigmas[:1], sigmas[1:-1].repeat_interleave(2), sigmas[-1:]])
    scheduler.timesteps = torch.cat([repeated[:1], repeated[1:].repeat_interleave(2)])
    x_T = normal(*SHAPE)
    _, states = walk(Heun(), CHAIN, eps_of, x_T, times)
    y, arrivals = x_T / process_alpha(times[0]), []
    for i, t in enumerate(scheduler.timesteps):
        y = scheduler.step(eps_of(scheduler.scale_model_input(y, t), t.expand(2)), t, y).prev_sample
        if i % 2 == 1 or i == len(scheduler.timesteps) - 1:
            arrivals.append(y)
    for s, state, y in zip(times[1:], states[1:], arrivals, strict=True):
        assert max_relative(state, process_alpha(s) * y) < 1e-10, s


def test_euler_on_a_straight_path_is_that_of_diffusers(eps_of, monkeypatch):
    """Differences of definition: it tells the network t T, where ours are told t (T - 1); its grid may be shifted, ours is not."""
    process = FlowMatching()
    kind = theirs.FlowMatchEulerDiscreteScheduler
    monkeypatch.setattr(f"{kind.__module__}.torch", DoubleTorch())
    scheduler = kind()
    scheduler.set_timesteps(12)
    scheduler.sigmas = torch.from_numpy(process.times(12))
    scheduler.timesteps = scheduler.sigmas[:-1] * 1000
    x_t = normal(*SHAPE)
    _, states = walk(Euler(), process, eps_of, x_t, process.times(12))
    for i, t in enumerate(scheduler.timesteps):
        x_t = scheduler.step(eps_of(x_t, t.expand(2) / 1000 * 999), t, x_t).prev_sample
        assert max_relative(states[i + 1], x_t) < 1e-10, i
