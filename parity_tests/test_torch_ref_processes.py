"""The twin's processes against closed forms: targets, posteriors, losses and their weights, straight paths, learned variance."""

from math import log, sqrt

import numpy as np
import pytest
import torch
from gaussian_data import (
    PATHS,
    PREDICTIONS,
    SHAPE,
    max_relative,
    normal,
    predictor,
    walk,
)

from ddpm_torch_ref import denoisers, processes, samplers, schedules
from ddpm_torch_ref.processes import AlphaBlending, Estimate, FlowMatching, GaussianDiffusion


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_the_target_is_converted_back_to_the_pair(prediction):
    process = processes.GaussianDiffusion(schedules.linear(1000), prediction)
    x_0, noise, t = normal(4, 3, 2, 2), normal(4, 3, 2, 2, seed=1), torch.tensor([0, 10, 500, 999])
    x_t = process.add_noise(x_0, noise, t)
    abar = process.schedule.alphas_cumprod[500]
    assert max_relative(x_t[2], sqrt(abar) * x_0[2] + sqrt(1 - abar) * noise[2]) < 1e-14
    estimate = process.estimate(x_t, process.target(x_0, noise, t), t)
    assert max_relative(estimate.x_0, x_0) < 1e-12
    assert max_relative(estimate.eps, noise) < 1e-12


@pytest.mark.parametrize("make", [schedules.cosine, schedules.linear_inclusive])
@pytest.mark.parametrize("variance", ["beta", "posterior"])
def test_the_posterior_is_the_ancestral_step(variance, make):
    process = processes.GaussianDiffusion(make(20))
    x_0, eps = normal(1, 1, 3, 3), normal(1, 1, 3, 3, seed=1)
    for t in process.schedule.timesteps.tolist():
        times = torch.tensor([t])
        x_t = process.add_noise(x_0, eps, times)
        mean, spread = process.posterior(x_0, x_t, times, variance)
        for noise in (torch.zeros_like(x_t), torch.ones_like(x_t)):
            hat, levels = Estimate(x_0, eps), (process.level(t), process.level(t - 1))
            step = samplers.ancestral_step(x_t, hat, *levels, noise, variance)
            assert max_relative(mean + spread.sqrt() * noise, step) < 1e-10


@pytest.mark.parametrize(("loss", "wanted"), [("mse", (0.25, 9.0)), ("l1", (0.5, 3.0)), ("huber", (0.125, 2.5))])
def test_losses(loss, wanted):
    process = processes.GaussianDiffusion(schedules.linear(10), loss=loss)
    noise, t = normal(2, 1, 4, 4), torch.tensor([3, 7])
    off = torch.tensor([0.5, -3.0], dtype=torch.float64).reshape(2, 1, 1, 1)
    got = process.loss_per_example(lambda x_t, t: noise + off, normal(2, 1, 4, 4, seed=1), noise, t)
    assert got.tolist() == pytest.approx(wanted, rel=1e-13)


def test_the_p2_weight():
    plain, weighted = (
        processes.GaussianDiffusion(schedules.linear(10, 0.1, 0.5), weighting=weighting, p2_gamma=1.5, p2_k=2.0)
        for weighting in ("none", "p2")
    )
    x_0, noise, t = normal(2, 1, 4, 4), normal(2, 1, 4, 4, seed=1), torch.tensor([0, 9])
    loss, got = (process.loss_per_example(lambda x_t, t: x_t, x_0, noise, t) for process in (plain, weighted))
    abar = plain.schedule.alphas_cumprod[[0, 9]]
    assert (got / loss).tolist() == pytest.approx((2 + abar / (1 - abar)) ** -1.5, rel=1e-12)
    for option in ({"p2_gamma": -1}, {"p2_k": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(option))} must be"):
            processes.GaussianDiffusion(schedules.linear(10), **option)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("weighting", ["none", "p2", "snr", "truncated_snr", "min_snr"])
def test_weightings(weighting, prediction):
    """The loss of an output that is off by a known amount, in the space of x_0."""
    process = GaussianDiffusion(
        schedules.linear(50, 1e-3, 0.3), prediction, weighting=weighting, p2_gamma=0.5, p2_k=2.0, min_snr_gamma=3.0
    )
    x_0, noise, off, t = normal(4, 3), normal(4, 3, seed=1), normal(4, 3, seed=2), torch.tensor([0, 5, 20, 49])
    x_t = process.add_noise(x_0, noise, t)
    output = process.target(x_0, noise, t) + off
    got = process.loss_per_example(lambda x_t, t: output, x_0, noise, t)
    snr = torch.from_numpy(process.schedule.snr[t])
    error = (process.estimate(x_t, output, t).x_0 - x_0).square().mean(1)
    plain = off.square().mean(1)
    wanted = {
        "none": plain,
        "p2": plain * (2.0 + snr) ** -0.5,
        "snr": error * snr,
        "truncated_snr": error * snr.clamp(min=1),
        "min_snr": error * snr.clamp(max=3.0),
    }
    torch.testing.assert_close(got, wanted[weighting], rtol=1e-10, atol=0)
    assert snr[0] > 3 and snr[3] < 1


def test_snr_weights_where_there_is_only_noise():
    schedule = schedules.zero_terminal_snr(schedules.linear(10, 0.1, 0.5))
    for prediction in ("x0", "v"):
        weights = {
            weighting: GaussianDiffusion(schedule, prediction, weighting=weighting).loss_weights()[-1]
            for weighting in ("snr", "truncated_snr", "min_snr")
        }
        assert weights == {"snr": 0, "truncated_snr": 1, "min_snr": 0}


def test_what_a_gaussian_diffusion_refuses():
    linear, unclean = schedules.linear(10), schedules.linear_inclusive(10)
    for schedule, options, message in [
        (linear, {"weighting": "sqrt"}, "weighting must be one of none, p2, snr, truncated_snr, min_snr; got 'sqrt'"),
        (linear, {"p2_gamma": -1}, "p2_gamma must be at least 0; got -1"),
        (linear, {"p2_k": 0}, "p2_k must be above 0; got 0"),
        (linear, {"min_snr_gamma": 0}, "min_snr_gamma must be above 0; got 0"),
        (linear, {"loss": "hybrid", "learned_variance": False}, "without learned_variance"),
        (linear, {"loss": "vlb", "weighting": "snr"}, "weighting must be none"),
        (linear, {"loss": "l2"}, "loss must be one of mse, l1, huber, hybrid, vlb; got 'l2'"),
        (unclean, {"loss": "vlb"}, r"alphas_cumprod\[0\] must be 1"),
        (schedules.zero_terminal_snr(linear), {}, "prediction must be x0 or v"),
        (schedules.zero_terminal_snr(linear), {"weighting": "truncated_snr"}, "prediction must be x0 or v"),
    ]:
        with pytest.raises(ValueError, match=message):
            GaussianDiffusion(schedule, **options)
    assert 0 < GaussianDiffusion(schedules.cosine_unclipped(500)).schedule.alphas_cumprod[500] < 1e-30


@pytest.mark.parametrize("process", PATHS)
def test_straight_paths(process):
    x_0, noise = normal(*SHAPE), normal(*SHAPE, seed=1)
    t = torch.tensor([0.25, 1.0], dtype=torch.float64)
    x_t = process.add_noise(x_0, noise, t)
    torch.testing.assert_close(x_t[0], 0.75 * x_0[0] + 0.25 * noise[0], rtol=1e-14, atol=0)
    estimate = process.estimate(x_t, process.target(x_0, noise, t), t)
    torch.testing.assert_close(estimate.x_0, x_0, rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(estimate.eps, noise, rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(process.eps_given_x_0(x_t, x_0, t), noise, rtol=1e-13, atol=1e-14)
    assert process.level(0.25) == (0.75, 0.25)
    assert process.times(4).tolist() == [1, 0.75, 0.5, 0.25, 0]
    told = {FlowMatching: [249.75, 999], AlphaBlending: [749.25, 0]}[type(process)]
    assert process.network_time(t).tolist() == told

    def off_by_two(x_t, network_time):
        assert network_time.tolist() == told
        return process.target(x_0, noise, t) + 2

    assert process.loss_per_example(off_by_two, x_0, noise, t).tolist() == pytest.approx([4, 4], rel=1e-13)
    with pytest.raises(ValueError, match="num_steps must be at least 2; got 1"):
        type(process)(1)
    with pytest.raises(ValueError, match="loss must be one of mse, l1, huber; got 'vlb'"):
        type(process)(loss="vlb")
    with pytest.raises(ValueError, match="num_steps must be at least 1; got 0"):
        process.times(0)


# Learned variance


@pytest.mark.parametrize("shape", [(3, 2, 4, 4), (3, 2)])
def test_learned_variance_is_the_second_half_of_the_output(shape):
    schedule = schedules.cosine(20)
    process = GaussianDiffusion(schedule, "v", learned_variance=True)
    x_t, output, v, t = normal(*shape), normal(*shape, seed=1), normal(*shape, seed=2), torch.tensor([0, 7, 19])
    estimate = process.estimate(x_t, torch.cat([output, v], 1), t)
    plain = GaussianDiffusion(schedule, "v").estimate(x_t, output, t)
    assert (
        (estimate.x_0 == plain.x_0).all() and (estimate.eps == plain.eps).all() and (estimate.variance_logit == v).all()
    )
    assert plain.variance_logit is None

    got = process.log_variance(Estimate(x_t, x_t, v), t, "learned")
    for i, time in enumerate(t.tolist()):
        smaller, larger = log(schedule.posterior_variance[max(time, 1)]), log(schedule.betas[time])
        torch.testing.assert_close(got[i], (v[i] + 1) / 2 * larger + (1 - v[i]) / 2 * smaller, rtol=1e-12, atol=1e-12)
    beta = process.log_variance(Estimate(x_t, x_t), t, "beta").flatten()
    assert beta.tolist() == pytest.approx([log(schedule.posterior_variance[1]), *np.log(schedule.betas[[7, 19]])])
    with pytest.raises(ValueError, match="variance_logit"):
        process.log_variance(Estimate(x_t, x_t), t, "learned")
    with pytest.raises(ValueError, match="variance must be one of beta, posterior, learned; got 'both'"):
        process.log_variance(Estimate(x_t, x_t), t, "both")


def test_a_learned_step_lies_between_the_two_fixed_ones():
    process = GaussianDiffusion(schedules.linear(100))
    x_t, eps, noise = normal(*SHAPE), normal(*SHAPE, seed=1), normal(*SHAPE, seed=2)
    x_0 = process.estimate(x_t, eps, torch.full((SHAPE[0],), 80)).x_0

    def step(variance="beta", v=None, s=60, noise=noise):
        logit = None if v is None else torch.full(SHAPE, v, dtype=torch.float64)
        hat = Estimate(x_0, eps, logit)
        return samplers.ancestral_step(x_t, hat, process.level(80), process.level(s), noise, variance)

    learned = [step("learned", v) for v in (1.0, -1.0, 0.2)]
    torch.testing.assert_close(learned[0], step("beta"), rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(learned[1], step("posterior"), rtol=1e-13, atol=1e-14)
    mean = step(noise=0 * noise)
    deviations = [(state - mean) / noise for state in learned]
    torch.testing.assert_close(deviations[2], deviations[0] ** 0.6 * deviations[1] ** 0.4, rtol=1e-11, atol=0)
    assert (step("learned", 0.3, s=-1) == step(s=-1, noise=0 * noise)).all()
    with pytest.raises(ValueError, match="variance_logit"):
        step("learned")


def test_sampling_with_a_learned_variance():
    """v = -1 is the posterior variance; the step is told what the network said."""
    schedule = schedules.linear(30, 0.01, 0.3)
    plain, learned = GaussianDiffusion(schedule), GaussianDiffusion(schedule, learned_variance=True)
    predict, noises = predictor(plain), normal(10, 5, 3, seed=3)

    def predict_both(x_t, t):
        return torch.cat([predict(x_t, t), torch.full_like(x_t, -1)], 1)

    wanted, _ = walk(samplers.Ancestral("posterior"), plain, predict, normal(5, 3), plain.times(10), noises)
    sampler = samplers.Ancestral("learned")
    denoise = denoisers.clipped(denoisers.of(learned, predict_both), 1e9)
    got = samplers.walk(denoise, sampler, normal(5, 3), noises.__getitem__, sampler.grid(learned, 10)).x_0
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-10)
    got, _ = walk(samplers.DPMSolver(), learned, predict_both, normal(5, 3), plain.times(10))
    wanted, _ = walk(samplers.DPMSolver(), plain, predict, normal(5, 3), plain.times(10))
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("draw", ["uniform", "low_discrepancy", "logit_normal"])
def test_times_to_train_at(draw):
    """As they are said to be distributed: by their mean, and how evenly they lie."""
    generator = torch.Generator().manual_seed(0)
    if draw != "logit_normal":
        chain = GaussianDiffusion(schedules.linear_inclusive(100), time_draw=draw)
        t = chain.draw_times(generator, 5000)
        assert t.dtype == torch.int64 and int(t.min()) == 1 and int(t.max()) == 100
        counts = torch.bincount(t, minlength=101)[1:]
        assert ((counts - 50).abs() <= 1).all() if draw == "low_discrepancy" else 30 < float(counts.double().var()) < 75
    t = FlowMatching(time_draw=draw).draw_times(generator, 5000)
    assert t.dtype == torch.float64 and float(t.min()) >= 0 and float(t.max()) < 1
    inner = float(((t > 0.25) & (t < 0.75)).double().mean())
    wanted = 0.7281 if draw == "logit_normal" else 0.5  # P(|z| < log 3)
    assert inner == pytest.approx(wanted, abs=0.02)
    for make in (
        lambda: GaussianDiffusion(schedules.linear(3), time_draw="logit_normal"),
        lambda: FlowMatching(time_draw=""),
    ):
        with pytest.raises(ValueError, match="time_draw must be one of uniform, low_discrepancy"):
            make()


def test_evenly_spread_draws():
    """One uniform u for all: (u + i/n) mod 1; each time by itself uniform."""
    generator, other = (torch.Generator().manual_seed(3) for _ in range(2))
    starts = []
    for _ in range(400):
        t = FlowMatching(time_draw="low_discrepancy").draw_times(generator, 8)
        starts.append(float(torch.rand((), generator=other, dtype=torch.float64)))
        assert t.tolist() == pytest.approx([(starts[-1] + i / 8) % 1 for i in range(8)])
    chain = GaussianDiffusion(schedules.linear_inclusive(10), time_draw="low_discrepancy")
    counts = sum(torch.bincount(chain.draw_times(generator, 4), minlength=11)[1:] for _ in range(2000))
    assert all(abs(count - 800) < 5 * sqrt(800) for count in counts.tolist())


# Errors


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: processes.GaussianDiffusion(schedules.linear(2), "epsilon"), r"eps, x0, v; got 'epsilon'"),
        (lambda: processes.GaussianDiffusion(schedules.linear(2), loss="l2"), r"mse, l1, huber, hybrid, vlb; got 'l2'"),
    ],
)
def test_errors_name_the_argument_its_value_and_what_is_allowed(call, message):
    with pytest.raises(ValueError, match=message):
        call()
