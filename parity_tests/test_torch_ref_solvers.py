"""The twin's solvers on Gaussian data: orders of convergence, limits, noise, and what they ask the network."""

from math import exp, inf, log, sqrt

import numpy as np
import pytest
import torch
from gaussian_data import (
    MEAN,
    PATHS,
    PREDICTIONS,
    SHAPE,
    STD,
    even_in_lambda,
    exact,
    max_relative,
    normal,
    orders,
    predictor,
    walk,
)

from ddpm_torch_ref import denoisers, samplers, schedules
from ddpm_torch_ref.processes import AlphaBlending, FlowMatching, GaussianDiffusion
from ddpm_torch_ref.samplers import DDIM, Ancestral, DPMSolver, Euler, Heun, Midpoint, Strided, UniPC

DETERMINISTIC = [Euler(), Heun(), DPMSolver(), DPMSolver(order=3), UniPC()]


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize(
    ("solver", "order"),
    [(Euler(), 1), (Heun(), 2), (DPMSolver(), 2), (DPMSolver(order=3), 3), (UniPC(), 3)],
)
def test_convergence_on_a_chain(solver, order, prediction):
    """At the state before the clean end: the last step is of first order, its error that of sigma there.

    UniPC-2 is of order 3, one more than UniP-2 alone; dpmpp_3m does better than 3 on this problem.
    """
    process = GaussianDiffusion(even_in_lambda(), prediction)
    x_T = normal(4, 8)
    errors = []
    for num_steps in (32, 64, 128):
        times = [*range(1024, -1, -1024 // num_steps), -1]
        x_0, states = walk(solver, process, predictor(process), x_T, times)
        assert len(states) == num_steps + 2 and torch.equal(states[0], x_T) and torch.equal(states[-1], x_0)
        errors.append(max_relative(states[-2], exact(process, x_T, 1024, 0)))
        assert max_relative(x_0, exact(process, x_T, 1024, -1)) < 0.1
    found = orders(errors)[-1]
    assert found > order - 0.1 and (solver == DPMSolver(order=3) or found < order + 0.1)
    assert errors[-1] < 0.02


@pytest.mark.parametrize("process", PATHS)
@pytest.mark.parametrize(("solver", "order"), [(Euler(), 1), (Heun(), 2), (Midpoint(), 2)])
def test_convergence_on_a_straight_path(solver, order, process):
    """Of a Gaussian, and of dx/dt = t x^2, as on the former the midpoint rule happens to be of order 3.

    Heun's last step is Euler's, whose one error is of second order too.
    """
    direction = -1 if isinstance(process, AlphaBlending) else 1

    def curved(x_t, network_time):
        t = network_time / 999
        t = 1 - t if isinstance(process, AlphaBlending) else t
        return direction * t[:, None] * x_t**2

    x_T = normal(4, 8)
    of_gaussian, of_curved = [], []
    for num_steps in (32, 64, 128):
        times = process.times(num_steps)
        x_0, _ = walk(solver, process, predictor(process), x_T, times)
        of_gaussian.append(max_relative(x_0, MEAN + STD * x_T))
        x_0, states = walk(solver, process, curved, x_T.abs(), times)
        assert len(states) == num_steps + 1 and torch.equal(states[-1], x_0)
        of_curved.append(max_relative(x_0, x_T.abs() / (1 + x_T.abs() / 2)))
    assert orders(of_gaussian)[-1] > order - 0.1
    assert orders(of_curved)[-1] == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize(
    "process", [*PATHS, GaussianDiffusion(schedules.zero_terminal_snr(schedules.linear(1000)), "v")]
)
@pytest.mark.parametrize("solver", [DPMSolver(), DPMSolver(order=3), UniPC()])
def test_log_snr_solvers_from_nothing_but_noise(solver, process):
    """alpha_T = 0, lambda = -inf: the first step is finite and of first order, and the limit is right."""
    x_T = normal(4, 8)
    errors = []
    for num_steps in (20, 80):
        times = process.times(num_steps)
        x_0, states = walk(solver, process, predictor(process), x_T, times)
        errors.append(max_relative(x_0, MEAN + STD * x_T))
        (alpha, sigma), first = process.level(times[1]), states[1]
        torch.testing.assert_close(first, sigma * x_T + alpha * MEAN, rtol=1e-12, atol=1e-12)
    assert errors[1] < 0.02 and errors[1] < errors[0]


@pytest.mark.parametrize("process", PATHS)
def test_what_an_infinite_lambda_leaves_of_the_second_step(process):
    """The extrapolation's ratio is infinite: dpmpp_2m and dpmpp_3m make a first-order step; UniC keeps its arrival's share b1."""
    x_T, times, predict = normal(4, 8), [1.0, 0.7, 0.4, 0.1, 0.0], predictor(process)

    def x_0_hat(x_t, t):
        t = torch.full((4,), t, dtype=torch.float64)
        return process.estimate(x_t, predict(x_t, process.network_time(t)), t).x_0

    for solver in (DPMSolver(), DPMSolver(order=3)):
        _, states = walk(solver, process, predict, x_T, times)
        h = log(0.6 / 0.4) - log(0.3 / 0.7)
        wanted = 0.4 / 0.7 * states[1] + 0.6 * (1 - exp(-h)) * x_0_hat(states[1], 0.7)
        torch.testing.assert_close(states[2], wanted, rtol=1e-12, atol=1e-13)

    _, states = walk(UniPC(), process, predict, x_T, times)
    m0, m1 = x_0_hat(x_T, 1.0), x_0_hat(states[1], 0.7)
    corrected = 0.7 * x_T + 0.3 * (m0 + 0.5 * (m1 - m0))
    torch.testing.assert_close(states[2], 0.4 / 0.7 * corrected + 0.6 * (1 - exp(-h)) * m1, rtol=1e-12, atol=1e-13)
    # int_0^1 e^{-h(1-u)} u h du, the exact share of a slope in x_0 hat, against that of a constant.
    m2 = x_0_hat(states[2], 0.4)
    corrected = 0.4 / 0.7 * corrected + 0.6 * ((1 - exp(-h)) * m1 + (1 - (1 - exp(-h)) / h) * (m2 - m1))
    h_prev, h = h, log(0.9 / 0.1) - log(0.6 / 0.4)
    wanted = 0.1 / 0.4 * corrected + 0.9 * (1 - exp(-h)) * (m2 + 0.5 * h / h_prev * (m2 - m1))
    torch.testing.assert_close(states[3], wanted, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_first_order_solvers_are_ddim(prediction):
    """Euler in tau is DDIM's line, step by step; and to sigma = 0 all is x_0 hat."""
    process = GaussianDiffusion(schedules.cosine(100), prediction)
    predict, x_T, times = predictor(process), normal(*SHAPE), process.times(7)
    for clip in (None, 0.3):
        wanted, states = walk(DDIM(), process, predict, x_T, times, normal(7, *SHAPE), clip=clip)
        got, ours = walk(Euler(), process, predict, x_T, times, clip=clip)
        for state, other in zip(ours, states, strict=True):
            torch.testing.assert_close(state, other, rtol=1e-11, atol=1e-12)
        one, _ = walk(DPMSolver(), process, predict, x_T, times[[0, -1]], clip=clip)
        x_0 = process.estimate(x_T, predict(x_T, torch.full((2,), 99)), torch.full((2,), 99)).x_0
        torch.testing.assert_close(one, x_0 if clip is None else x_0.clamp(-clip, clip), rtol=1e-12, atol=1e-13)
        assert got.shape == wanted.shape


def test_ancestral_euler_is_ancestral_sampling():
    """k-diffusion's tau_up and tau_down are the posterior's deviation and mean (and DDIM's with eta = 1)."""
    process = GaussianDiffusion(schedules.linear(1000))
    times, noises = samplers.GRIDS["karras"](process, 12), normal(12, *SHAPE, seed=1)
    got, states = walk(Euler(eta=1.0), process, predictor(process), normal(*SHAPE), times, noises)
    for sampler in (Ancestral("posterior"), DDIM(eta=1.0)):
        wanted, others = walk(sampler, process, predictor(process), normal(*SHAPE), times, noises)
        assert max_relative(got, wanted) < 1e-11
        assert max(max_relative(state, other) for state, other in zip(states, others, strict=True)) < 1e-11


@pytest.mark.parametrize(
    ("solver", "process"),
    [
        *((solver, GaussianDiffusion(schedules.linear(1000))) for solver in (Euler(eta=1.0), Heun(churn=20.0))),
        *((DPMSolver(sde=True), process) for process in (GaussianDiffusion(schedules.linear(1000)), *PATHS)),
    ],
)
def test_a_gaussian_is_recovered_by_stochastic_solvers(solver, process):
    chain = isinstance(process, GaussianDiffusion)
    # Ancestral steps take too little spread from the posterior's variance, by an error that falls as 1/n.
    num_steps = 400 if solver == Euler(eta=1.0) else 60
    times = samplers.GRIDS["log_snr"](process, num_steps) if chain else process.times(num_steps)
    noises = normal(num_steps, 100, 100, seed=1)
    x_0, _ = walk(solver, process, predictor(process), normal(100, 100, seed=2), times, noises)
    assert float(x_0.mean()) == pytest.approx(MEAN, abs=0.015)
    assert float(x_0.std()) == pytest.approx(STD, rel=0.03)


def test_the_noise_of_2m_sde():
    """One step from t to s and one to the end: the noise enters the first alone, by sigma_s sqrt(1 - e^-2h)."""
    process = GaussianDiffusion(schedules.linear(1000), "v")
    noises, x_T = normal(2, *SHAPE, seed=1), normal(*SHAPE)
    runs = [
        walk(DPMSolver(sde=True), process, predictor(process), x_T, [999, 300, -1], n)[1][1]
        for n in (noises, 0 * noises)
    ]
    (alpha_t, sigma_t), (alpha_s, sigma_s) = process.level(999), process.level(300)
    shrink = alpha_t * sigma_s / (alpha_s * sigma_t)
    torch.testing.assert_close(runs[0] - runs[1], sigma_s * sqrt(1 - shrink**2) * noises[0], rtol=1e-11, atol=1e-13)


def test_churn_goes_back_to_a_time_that_the_network_knows():
    process, asked = GaussianDiffusion(schedules.linear(1000)), []
    predict = predictor(process)

    def spy(x_t, t):
        asked.append(int(t[0]))
        return predict(x_t, t)

    taus = np.sqrt(1 / process.schedule.alphas_cumprod - 1)
    times, noises, x_T = [999, 600, 300, 100, -1], normal(4, *SHAPE, seed=1), normal(*SHAPE)
    _, states = walk(Heun(churn=1.0, churn_noise=1.1), process, spy, x_T, times, noises)
    later = [int(np.argmin(np.abs(np.log(taus) - log(1.25 * taus[t])))) for t in times[:-1]]
    assert asked == [999, 600, later[1], 300, later[2], 100, later[3]]
    assert later[0] == 999 and later[1] > 600 and later[2] > 300 and later[3] > 100
    # The last step, by hand: up by noise, then Euler.
    (alpha, _), t_hat = process.level(100), later[3]
    y = states[3] / alpha + 1.1 * sqrt(taus[t_hat] ** 2 - taus[100] ** 2) * noises[2]
    eps = predict(sqrt(process.schedule.alphas_cumprod[t_hat]) * y, torch.full((2,), t_hat))
    torch.testing.assert_close(states[4], y - taus[t_hat] * eps, rtol=1e-11, atol=1e-12)
    _, quiet = walk(Heun(churn=1e-6), process, spy, x_T, times, noises)
    assert (quiet[-1] == walk(Heun(), process, spy, x_T, times)[0]).all()
    # gamma is at most sqrt(2) - 1.
    asked.clear()
    walk(Heun(churn=1e9), process, spy, x_T, [999, 100, -1], noises)
    assert asked[-1] == int(np.argmin(np.abs(np.log(taus) - log(sqrt(2) * taus[100]))))


def test_no_solver_asks_the_network_for_a_time_it_does_not_know():
    """The clean end of linear_inclusive is entry 0, not quite clean, and still no valid t."""
    process, asked = GaussianDiffusion(schedules.linear_inclusive(50)), []
    predict = predictor(process)

    def spy(x_t, t):
        asked.append(int(t[0]))
        return predict(x_t, t)

    times, noises = process.times(10), normal(10, *SHAPE)
    for solver in (*DETERMINISTIC, DPMSolver(sde=True), Euler(eta=1.0)):
        x_0, states = walk(solver, process, spy, normal(*SHAPE), times, noises)
        assert len(states) == 11 and torch.isfinite(x_0).all()
    x_T, states = samplers.ddim_inversion(denoisers.of(process, spy), normal(*SHAPE), process.times(10)[::-1])
    assert len(states) == 11 and torch.isfinite(x_T).all()
    assert min(asked) == 1


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_inversion_undoes_sampling_on_a_chain(prediction):
    process = GaussianDiffusion(schedules.linear(1000), prediction)
    predict, x_0, errors = predictor(process), MEAN + STD * normal(4, 8), []
    for num_steps in (125, 250, 500):
        times = process.times(num_steps)
        x_T, states = samplers.ddim_inversion(denoisers.of(process, predict), x_0, times[::-1])
        assert len(states) == num_steps + 1 and torch.equal(states[0], x_0) and torch.equal(states[-1], x_T)
        errors.append(max_relative(walk(Euler(), process, predict, x_T, times)[0], x_0))
    assert orders(errors)[-1] == pytest.approx(1, abs=0.3) and errors[-1] < 0.02
    # All predictions of one x_0 and eps lead the same way, the clean end included.
    other = GaussianDiffusion(process.schedule, "eps")
    wanted, _ = samplers.ddim_inversion(denoisers.of(other, predictor(other)), x_0, times[::-1])
    torch.testing.assert_close(x_T, wanted, rtol=1e-9, atol=1e-10)
    # The first step: eps at the first valid t, from a state with alpha = 1, sigma = 0.
    alpha, sigma = process.level(times[-2])
    eps = predictor(other)(x_0, torch.zeros(4, dtype=torch.int64))
    torch.testing.assert_close(states[1], alpha * x_0 + sigma * eps, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("process", PATHS)
def test_inversion_undoes_sampling_on_a_straight_path(process):
    predict, x_0, times = predictor(process), MEAN + STD * normal(4, 8), process.times(400)
    x_T, _ = samplers.ddim_inversion(denoisers.of(process, predict), x_0, times[::-1])
    assert max_relative(x_T, (x_0 - MEAN) / STD) < 0.02
    assert max_relative(walk(Euler(), process, predict, x_T, times)[0], x_0) < 0.01


def test_deblending_is_eulers_method():
    """Heitz et al. 2023, algorithm 4, as it is printed: x += (a_next - a) network(x, a)."""
    process, predict = AlphaBlending(num_steps=128), predictor(AlphaBlending(num_steps=128))
    x = normal(4, 8)
    for i in range(10):
        a, a_next = i / 10, (i + 1) / 10
        x = x + (a_next - a) * predict(x, torch.full((4,), a * 127, dtype=torch.float64))
    got, _ = walk(Euler(), process, predict, normal(4, 8), process.times(10))
    torch.testing.assert_close(got, x, rtol=1e-12, atol=1e-13)


def test_single_precision_stays_single():
    process, flow = GaussianDiffusion(schedules.linear(50, 1e-3, 0.3)), FlowMatching()
    x_T, noises = normal(2, 4).float(), normal(8, 2, 4).float()
    times = process.times(8)
    for solver in (*DETERMINISTIC, Heun(churn=4.0)):
        _, states = walk(solver, process, predictor(process), x_T, times, noises)
        assert all(state.dtype == torch.float32 for state in states)
    _, states = samplers.ddim_inversion(denoisers.of(process, predictor(process)), x_T, times[::-1])
    assert all(state.dtype == torch.float32 for state in states)
    for solver in (*DETERMINISTIC, Midpoint(), DPMSolver(sde=True)):
        _, states = walk(solver, flow, predictor(flow), x_T, flow.times(8), noises)
        assert all(state.dtype == torch.float32 for state in states)


def test_what_solvers_refuse():
    chain, flow, x_T = GaussianDiffusion(schedules.linear(10)), FlowMatching(), normal(2, 4)
    for times in ([9, 9, -1], [-1], [3, 5, -1]):
        with pytest.raises(ValueError, match="times must be at least two and strictly descending"):
            samplers.times(chain, spacing=times)
    for process, times, message in [
        (chain, [10, 5, -1], r"times must lie in -1..9; got \[10, 5, -1\]"),
        (flow, [1.0, 0.5, -0.1], r"times must lie in 0.0..1.0"),
        (chain, [9.0, 5.5, -1.0], "times must be whole numbers on a chain; got float64"),
    ]:
        with pytest.raises(ValueError, match=message):
            samplers.times(process, spacing=times)
    with pytest.raises(ValueError, match="num_steps must be None where spacing is the times themselves; got 2"):
        samplers.times(chain, 2, [9, 5, -1])
    for churn in (-1, inf):
        with pytest.raises(ValueError, match=f"churn must be at least 0, and finite; got {churn}"):
            Heun(churn=churn)
    with pytest.raises(ValueError, match="churn must be 0 on a straight path"):
        Heun(churn=1).grid(flow, 3)
    with pytest.raises(ValueError, match="eta must be 0 on a straight path"):
        Euler(eta=1.0).grid(flow, 3)
    with pytest.raises(ValueError, match="process must be one in continuous time"):
        Midpoint().grid(chain, 3)
    with pytest.raises(ValueError, match="order must be 2 or 3; got 4"):
        DPMSolver(order=4)
    with pytest.raises(ValueError, match="order must be 2 with sde; got 3"):
        DPMSolver(order=3, sde=True)
    with pytest.raises(ValueError, match="spacing must be one of even, leading"):
        Euler().grid(chain, 3, "evenly")
    with pytest.raises(ValueError, match="spacing must be None, as Strided has times of its own; got 'even'"):
        Strided().grid(chain, 3, "even")
    with pytest.raises(ValueError, match="process must be a GaussianDiffusion, which has timesteps; got FlowMatching"):
        Strided().grid(flow, 3)
    blind = GaussianDiffusion(schedules.zero_terminal_snr(schedules.linear(10)), "v")
    for sampler in (Euler(), Heun()):
        with pytest.raises(ValueError, match="alpha above 0"):
            walk(sampler, blind, predictor(blind), x_T, [9, -1])
