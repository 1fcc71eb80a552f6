"""The PyTorch twin's processes, solvers, bound, guidance and draws of t: against closed forms, and against diffusers.

Where data are N(MEAN, STD^2), every prediction is known in closed form, and so is the map from x_T to x_0 that the deterministic
solvers approximate.
"""

from functools import partial
from itertools import pairwise
from math import exp, expm1, log, log2, sqrt

import diffusers.schedulers as theirs
import numpy as np
import pytest
import torch
from torch import nn

from ddpm_torch_ref import guidance, likelihood, samplers, schedules, solvers, training
from ddpm_torch_ref.processes import AlphaBlending, Estimate, FlowMatching, GaussianDiffusion

MEAN, STD = -0.7, 0.4
SHAPE = (2, 1, 4, 4)
PREDICTIONS = ["eps", "x0", "v"]
DETERMINISTIC = [solvers.euler, solvers.heun, solvers.dpmpp_2m, solvers.dpmpp_3m, solvers.unipc]
PATHS = [FlowMatching(), AlphaBlending()]


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def max_relative(got, wanted):
    return float((got - wanted).abs().max() / wanted.abs().max())


def predictor(process, mean=MEAN, std=STD):
    """The best output there is for data N(mean, std^2)."""

    def predict(x_t, network_time):
        if isinstance(process, GaussianDiffusion):
            t, levels = network_time, [process.level(int(t)) for t in network_time]
        else:
            t = network_time / (process.num_steps - 1)
            t = 1 - t if isinstance(process, AlphaBlending) else t
            levels = [(1 - float(t), float(t)) for t in t]
        alpha, sigma = torch.tensor(levels, dtype=x_t.dtype).T.reshape(2, -1, *[1] * (x_t.ndim - 1))
        shift = (x_t - alpha * mean) / (alpha**2 * std**2 + sigma**2)
        return process.target(mean + alpha * std**2 * shift, sigma * shift, t)

    return predict


def exact(process, x_t, t, s):
    """Where the probability flow carries x_t: as many standard deviations from the mean as before."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = process.level(t), process.level(s)
    spread = sqrt((alpha_s**2 * STD**2 + sigma_s**2) / (alpha_t**2 * STD**2 + sigma_t**2))
    return alpha_s * MEAN + spread * (x_t - alpha_t * MEAN)


def even_in_lambda(num_steps=1024, reach=4.0):
    """A schedule whose lambda falls evenly from reach to -reach, so that grids of every n = 2^k need no rounding."""
    abars = 1 / (1 + np.exp(-2 * np.linspace(reach, -reach, num_steps + 1)))
    return schedules.Schedule(1 - abars / np.concatenate([[1], abars[:-1]]), _products=abars)


def orders(errors):
    return [log2(coarse / fine) for coarse, fine in pairwise(errors)]


# Schedules


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
    with pytest.raises(ValueError, match=r"products\[1\] = 0"):
        schedules.Schedule(np.array([0.1, 1, 0.1]), _products=np.array([0.9, 0, 0.5]))


# Processes


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
        (linear, {"loss": "hybrid"}, "without learned_variance"),
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

    got = process.log_variance(x_t, t, "learned", v)
    for i, time in enumerate(t.tolist()):
        smaller, larger = log(schedule.posterior_variance[max(time, 1)]), log(schedule.betas[time])
        torch.testing.assert_close(got[i], (v[i] + 1) / 2 * larger + (1 - v[i]) / 2 * smaller, rtol=1e-12, atol=1e-12)
    beta = process.log_variance(x_t, t, "beta").flatten()
    assert beta.tolist() == pytest.approx([log(schedule.posterior_variance[1]), *np.log(schedule.betas[[7, 19]])])
    with pytest.raises(ValueError, match="variance_logit"):
        process.log_variance(x_t, t, "learned")
    with pytest.raises(ValueError, match="variance must be one of beta, posterior, learned; got 'both'"):
        process.log_variance(x_t, t, "both")


def test_a_learned_step_lies_between_the_two_fixed_ones():
    schedule = schedules.linear(100)
    x_t, eps, noise = normal(*SHAPE), normal(*SHAPE, seed=1), normal(*SHAPE, seed=2)
    step = partial(samplers.ancestral_step, schedule, x_t, eps, 80, 60, noise)
    learned = [step("learned", variance_logit=torch.full(SHAPE, v, dtype=torch.float64)) for v in (1.0, -1.0, 0.2)]
    torch.testing.assert_close(learned[0], step("beta"), rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(learned[1], step("posterior"), rtol=1e-13, atol=1e-14)
    mean = samplers.ancestral_step(schedule, x_t, eps, 80, 60, 0 * noise)
    deviations = [(step - mean) / noise for step in learned]
    torch.testing.assert_close(deviations[2], deviations[0] ** 0.6 * deviations[1] ** 0.4, rtol=1e-11, atol=0)
    clean = partial(samplers.ancestral_step, schedule, x_t, eps, 80, -1)
    assert (clean(noise, "learned", variance_logit=noise) == clean(0 * noise)).all()
    with pytest.raises(ValueError, match="variance_logit"):
        step("learned")
    with pytest.raises(ValueError, match="variance must be one of beta, posterior, learned"):
        step("both")


def test_sampling_with_a_learned_variance():
    """v = -1 is the posterior variance; the loop hands the step what the network said."""
    schedule = schedules.linear(30, 0.01, 0.3)
    plain, learned = GaussianDiffusion(schedule), GaussianDiffusion(schedule, learned_variance=True)
    predict, times = predictor(plain), samplers.times(schedule, 10)
    noises = normal(10, 5, 3, seed=3)

    def predict_both(x_t, t):
        return torch.cat([predict(x_t, t), torch.full_like(x_t, -1)], 1)

    wanted, _ = samplers.sample(
        plain, predict, normal(5, 3), times, partial(samplers.ancestral_step, variance="posterior"), noises
    )
    step = partial(samplers.ancestral_step, variance="learned")
    got, _ = samplers.sample(learned, predict_both, normal(5, 3), times, step, noises, learned_variance=True)
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-13)
    got, _ = solvers.dpmpp_2m(learned, predict_both, normal(5, 3), times)
    torch.testing.assert_close(got, solvers.dpmpp_2m(plain, predict, normal(5, 3), times)[0], rtol=1e-12, atol=1e-13)


# The bound


def test_the_terms_are_divergences_of_normals():
    schedule = schedules.linear(20, 0.01, 0.3)
    process = GaussianDiffusion(schedule, learned_variance=True)
    x_0, x_t, t = normal(4, 3).clamp(-1, 1), normal(4, 3, seed=1), torch.tensor([1, 5, 12, 19])
    estimate = Estimate(normal(4, 3, seed=2), normal(4, 3, seed=3), normal(4, 3, seed=4).clamp(-1, 1))
    betas, small = (torch.from_numpy(table[t])[:, None] for table in (schedule.betas, schedule.posterior_variance))
    fraction = (estimate.variance_logit + 1) / 2
    variances = {"beta": betas, "posterior": small, "learned": betas**fraction * small ** (1 - fraction)}

    def posterior_mean(x_0):
        abar, before = (
            torch.from_numpy(table[t])[:, None] for table in (schedule.alphas_cumprod, schedule.alphas_cumprod_prev)
        )
        return (before.sqrt() * betas * x_0 + (1 - betas).sqrt() * (1 - before) * x_t) / (1 - abar)

    for clip in (None, 0.5):
        x_0_hat = estimate.x_0 if clip is None else estimate.x_0.clamp(-clip, clip)
        for variance, size in variances.items():
            got = likelihood.term(process, estimate, x_0, x_t, t, variance, clip)
            ours = torch.distributions.Normal(posterior_mean(x_0), small.sqrt())
            network = torch.distributions.Normal(posterior_mean(x_0_hat), size.sqrt())
            wanted = torch.distributions.kl_divergence(ours, network).mean(1) / log(2)
            torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-13)

    abar = schedule.alphas_cumprod[-1]
    last = torch.distributions.Normal(sqrt(abar) * x_0, sqrt(1 - abar))
    wanted = torch.distributions.kl_divergence(last, torch.distributions.Normal(0.0, 1.0)).mean(1) / log(2)
    torch.testing.assert_close(likelihood.prior(process, x_0), wanted, rtol=1e-12, atol=0)


@pytest.mark.parametrize("first", [0, 1])
def test_the_first_term_is_a_distribution_over_256_values(first):
    """The probabilities of all values add up to 1, as the outermost bins are open; none counts less than 1e-12."""
    betas = np.array([0.0, 0.02, 0.1, 0.2])[1 - first :]
    process = GaussianDiffusion(schedules.Schedule(betas, first=first), "x0")
    values = torch.linspace(-1, 1, 256, dtype=torch.float64)[:, None]
    t = torch.full((256,), first)
    estimate = Estimate(torch.full_like(values, 0.93), torch.zeros_like(values))
    for variance in ("beta", "posterior"):
        bits = likelihood.term(process, estimate, values, torch.zeros_like(values), t, variance)
        # The first entry of both variances is the successor's posterior variance.
        deviation = torch.tensor(sqrt(0.1 * 0.02 / (1 - 0.98 * 0.9)), dtype=torch.float64)
        wide = torch.distributions.Normal(estimate.x_0[0], deviation)
        middle = wide.cdf(values[200] + 1 / 255) - wide.cdf(values[200] - 1 / 255)
        assert float(bits[200]) == pytest.approx(-log2(float(middle)), rel=1e-10)
        assert float(bits[255]) == pytest.approx(-log2(1 - float(wide.cdf(values[255] - 1 / 255))), rel=1e-10)
        inside = bits < 39.8
        assert float((2 ** -bits[inside]).sum()) == pytest.approx(1, abs=1e-9)
        assert float(bits[0]) == pytest.approx(log2(1e12), rel=1e-12)


def test_the_bound_of_gaussian_data():
    """With the best predictor, the expected divergence at t is c^2 Var(x_0 | x_t) / (2 beta~), c the posterior's weight of x_0."""
    schedule = schedules.linear(12, 0.02, 0.5)
    process = GaussianDiffusion(schedule, "v")
    x_0 = MEAN + STD * normal(400, 100)
    noises = normal(12, 400, 100, seed=1)
    bound = likelihood.bits_per_dim(process, predictor(process), x_0, noises)
    assert bound["prior"].shape == (400,) and bound["terms"].shape == (12, 400) and bound["total"].shape == (400,)
    torch.testing.assert_close(bound["total"], bound["prior"] + sum(bound["terms"]), rtol=1e-12, atol=0)
    for t in range(1, 12):
        abar = schedule.alphas_cumprod[t]
        left = STD**2 * (1 - abar) / (abar * STD**2 + 1 - abar)
        wanted = schedule.posterior_mean_coef1[t] ** 2 * left / schedule.posterior_variance[t] / 2 / log(2)
        assert float(bound["terms"][t].mean()) == pytest.approx(wanted, rel=0.03)
    abar = schedule.alphas_cumprod[-1]
    wanted = (abar * (MEAN**2 + STD**2) - abar - log(1 - abar)) / 2 / log(2)
    assert float(bound["prior"].mean()) == pytest.approx(wanted, rel=0.03)
    # At t = 0 row by row, with the noise that its index names.
    x_t = process.add_noise(x_0, noises[4], torch.full((400,), 4))
    estimate = process.estimate(x_t, predictor(process)(x_t, torch.full((400,), 4)), torch.full((400,), 4))
    assert (likelihood.term(process, estimate, x_0, x_t, torch.full((400,), 4)) == bound["terms"][4]).all()
    with pytest.raises(ValueError, match=r"alphas_cumprod\[0\] must be 1"):
        likelihood.prior(GaussianDiffusion(schedules.linear_inclusive(5)), x_0)
    with pytest.raises(ValueError, match="variance_logit"):
        likelihood.bits_per_dim(process, predictor(process), x_0, noises, "learned")


def test_the_bound_as_a_loss():
    schedule = schedules.linear(20, 0.01, 0.3)
    x_0, noise, t = normal(3, 4).clamp(-1, 1), normal(3, 4, seed=1), torch.tensor([0, 4, 19])
    output = normal(3, 8, seed=2).requires_grad_(True)

    def loss(kind, **options):
        process = GaussianDiffusion(schedule, loss=kind, learned_variance=True, **options)
        return process.loss_per_example(lambda x_t, t: output, x_0, noise, t)

    def gradients(loss):
        return torch.autograd.grad(loss.sum(), output)[0].chunk(2, 1)

    plain = GaussianDiffusion(schedule, learned_variance=True)
    x_t = plain.add_noise(x_0, noise, t)
    terms = likelihood.term(plain, plain.estimate(x_t, output, t), x_0, x_t, t, "learned")
    torch.testing.assert_close(loss("vlb"), 20 * terms, rtol=1e-13, atol=0)
    torch.testing.assert_close(loss("hybrid"), loss("mse") + 0.02 * terms, rtol=1e-13, atol=0)
    (mean, variance), (of_mse, none), (of_bound, of_variance) = map(gradients, map(loss, ["hybrid", "mse", "vlb"]))
    assert (none == 0).all() and (of_bound != 0).any()
    torch.testing.assert_close(mean, of_mse, rtol=1e-13, atol=0)
    torch.testing.assert_close(variance, 0.001 * of_variance, rtol=1e-13, atol=0)
    weighted = loss("hybrid", weighting="min_snr") - 0.02 * terms
    torch.testing.assert_close(weighted, loss("mse", weighting="min_snr"), rtol=1e-12, atol=0)

    fixed = GaussianDiffusion(schedule, "x0", loss="vlb")
    x_0_hat = normal(3, 4, seed=5)
    got = fixed.loss_per_example(lambda x_t, t: x_0_hat, x_0, noise, t)
    estimate = Estimate(x_0_hat, noise)
    torch.testing.assert_close(got, 20 * likelihood.term(fixed, estimate, x_0, x_t, t, "posterior"), rtol=1e-13, atol=0)


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


# Solvers


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize(
    ("solver", "order"),
    [(solvers.euler, 1), (solvers.heun, 2), (solvers.dpmpp_2m, 2), (solvers.dpmpp_3m, 3), (solvers.unipc, 3)],
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
        x_0, states = solver(process, predictor(process), x_T, times)
        assert len(states) == num_steps + 2 and states[0] is x_T and states[-1] is x_0
        errors.append(max_relative(states[-2], exact(process, x_T, 1024, 0)))
        assert max_relative(x_0, exact(process, x_T, 1024, -1)) < 0.1
    found = orders(errors)[-1]
    assert found > order - 0.1 and (solver is solvers.dpmpp_3m or found < order + 0.1)
    assert errors[-1] < 0.02


@pytest.mark.parametrize("process", PATHS)
@pytest.mark.parametrize(("solver", "order"), [(solvers.euler, 1), (solvers.heun, 2), (solvers.midpoint, 2)])
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
        x_0, _ = solver(process, predictor(process), x_T, times)
        of_gaussian.append(max_relative(x_0, MEAN + STD * x_T))
        x_0, states = solver(process, curved, x_T.abs(), times)
        assert len(states) == num_steps + 1 and states[-1] is x_0
        of_curved.append(max_relative(x_0, x_T.abs() / (1 + x_T.abs() / 2)))
    assert orders(of_gaussian)[-1] > order - 0.1
    assert orders(of_curved)[-1] == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize(
    "process", [*PATHS, GaussianDiffusion(schedules.zero_terminal_snr(schedules.linear(1000)), "v")]
)
@pytest.mark.parametrize("solver", [solvers.dpmpp_2m, solvers.dpmpp_3m, solvers.unipc])
def test_log_snr_solvers_from_nothing_but_noise(solver, process):
    """alpha_T = 0, lambda = -inf: the first step is finite and of first order, and the limit is right."""
    x_T = normal(4, 8)
    chain = isinstance(process, GaussianDiffusion)
    errors = []
    for num_steps in (20, 80):
        times = samplers.times(process.schedule, num_steps) if chain else process.times(num_steps)
        x_0, states = solver(process, predictor(process), x_T, times)
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

    for solver in (solvers.dpmpp_2m, solvers.dpmpp_3m):
        _, states = solver(process, predict, x_T, times)
        h = log(0.6 / 0.4) - log(0.3 / 0.7)
        wanted = 0.4 / 0.7 * states[1] + 0.6 * (1 - exp(-h)) * x_0_hat(states[1], 0.7)
        torch.testing.assert_close(states[2], wanted, rtol=1e-12, atol=1e-13)

    _, states = solvers.unipc(process, predict, x_T, times)
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
    predict, x_T, times = predictor(process), normal(*SHAPE), samplers.times(process.schedule, 7)
    for clip in (None, 0.3):
        wanted, states = samplers.sample(process, predict, x_T, times, samplers.ddim_step, normal(7, *SHAPE), clip)
        got, ours = solvers.euler(process, predict, x_T, times, clip=clip)
        for state, other in zip(ours, states, strict=True):
            torch.testing.assert_close(state, other, rtol=1e-11, atol=1e-12)
        one, _ = solvers.dpmpp_2m(process, predict, x_T, times[[0, -1]], clip=clip)
        x_0 = process.estimate(x_T, predict(x_T, torch.full((2,), 99)), torch.full((2,), 99)).x_0
        torch.testing.assert_close(one, x_0 if clip is None else x_0.clamp(-clip, clip), rtol=1e-12, atol=1e-13)
        assert got.shape == wanted.shape


def test_ancestral_euler_is_ancestral_sampling():
    """k-diffusion's tau_up and tau_down are the posterior's deviation and mean (and DDIM's with eta = 1)."""
    process = GaussianDiffusion(schedules.linear(1000))
    times, noises = samplers.karras_times(process.schedule, 12), normal(12, *SHAPE, seed=1)
    got, states = solvers.euler_ancestral(process, predictor(process), normal(*SHAPE), times, noises)
    for step in (partial(samplers.ancestral_step, variance="posterior"), partial(samplers.ddim_step, eta=1.0)):
        wanted, others = samplers.sample(process, predictor(process), normal(*SHAPE), times, step, noises)
        assert max_relative(got, wanted) < 1e-11
        assert max(max_relative(state, other) for state, other in zip(states, others, strict=True)) < 1e-11


@pytest.mark.parametrize(
    ("solver", "process"),
    [
        *((solver, GaussianDiffusion(schedules.linear(1000))) for solver in (solvers.euler_ancestral, solvers.heun)),
        *((solvers.dpmpp_2m_sde, process) for process in (GaussianDiffusion(schedules.linear(1000)), *PATHS)),
    ],
)
def test_a_gaussian_is_recovered_by_stochastic_solvers(solver, process):
    chain = isinstance(process, GaussianDiffusion)
    # Ancestral steps take too little spread from the posterior's variance, by an error that falls as 1/n.
    num_steps = 400 if solver is solvers.euler_ancestral else 60
    times = samplers.log_snr_times(process.schedule, num_steps) if chain else process.times(num_steps)
    noises = normal(num_steps, 100, 100, seed=1)
    options = {"churn": 20.0, "churn_max": 50.0} if solver is solvers.heun else {}
    x_0, _ = solver(process, predictor(process), normal(100, 100, seed=2), times, noises=noises, **options)
    assert float(x_0.mean()) == pytest.approx(MEAN, abs=0.015)
    assert float(x_0.std()) == pytest.approx(STD, rel=0.03)


def test_the_noise_of_2m_sde():
    """One step from t to s and one to the end: the noise enters the first alone, by sigma_s sqrt(1 - e^-2h)."""
    process = GaussianDiffusion(schedules.linear(1000), "v")
    noises, x_T = normal(2, *SHAPE, seed=1), normal(*SHAPE)
    runs = [
        solvers.dpmpp_2m_sde(process, predictor(process), x_T, [999, 300, -1], n)[1][1] for n in (noises, 0 * noises)
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
    _, states = solvers.heun(process, spy, x_T, times, churn=1.0, churn_max=5.0, churn_noise=1.1, noises=noises)
    later = [int(np.argmin(np.abs(np.log(taus) - log(1.25 * taus[t])))) if taus[t] <= 5 else t for t in times[:-1]]
    assert asked == [999, 600, later[1], 300, later[2], 100, later[3]]
    assert later[0] == 999 and later[1] == 600 and later[2] > 300 and later[3] > 100
    # The last step, by hand: up by noise, then Euler.
    (alpha, _), t_hat = process.level(100), later[3]
    y = states[3] / alpha + 1.1 * sqrt(taus[t_hat] ** 2 - taus[100] ** 2) * noises[3]
    eps = predict(sqrt(process.schedule.alphas_cumprod[t_hat]) * y, torch.full((2,), t_hat))
    torch.testing.assert_close(states[4], y - taus[t_hat] * eps, rtol=1e-11, atol=1e-12)
    _, quiet = solvers.heun(process, spy, x_T, times, churn=1.0, churn_min=1e9, noises=noises)
    assert (quiet[-1] == solvers.heun(process, spy, x_T, times)[0]).all()
    # gamma is at most sqrt(2) - 1.
    asked.clear()
    solvers.heun(process, spy, x_T, [999, 100, -1], churn=1e9, churn_max=5.0, noises=noises)
    assert asked[-1] == int(np.argmin(np.abs(np.log(taus) - log(sqrt(2) * taus[100]))))


def test_no_solver_asks_the_network_for_a_time_it_does_not_know():
    """The clean end of linear_inclusive is entry 0, not quite clean, and still no valid t."""
    process, asked = GaussianDiffusion(schedules.linear_inclusive(50)), []
    predict = predictor(process)

    def spy(x_t, t):
        asked.append(int(t[0]))
        return predict(x_t, t)

    times, noises = samplers.times(process.schedule, 10), normal(10, *SHAPE)
    noisy = [partial(f, noises=noises) for f in (solvers.dpmpp_2m_sde, solvers.euler_ancestral)]
    for solver in (*DETERMINISTIC, *noisy, solvers.ddim_inversion):
        x_0, states = solver(process, spy, normal(*SHAPE), times)
        assert len(states) == 11 and torch.isfinite(x_0).all()
    assert min(asked) == 1


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_inversion_undoes_sampling_on_a_chain(prediction):
    process = GaussianDiffusion(schedules.linear(1000), prediction)
    predict, x_0, errors = predictor(process), MEAN + STD * normal(4, 8), []
    for num_steps in (125, 250, 500):
        times = samplers.times(process.schedule, num_steps)
        x_T, states = solvers.ddim_inversion(process, predict, x_0, times)
        assert len(states) == num_steps + 1 and states[0] is x_0 and states[-1] is x_T
        errors.append(max_relative(solvers.euler(process, predict, x_T, times)[0], x_0))
    assert orders(errors)[-1] == pytest.approx(1, abs=0.3) and errors[-1] < 0.02
    # All predictions of one x_0 and eps lead the same way, the clean end included.
    other = GaussianDiffusion(process.schedule, "eps")
    wanted, _ = solvers.ddim_inversion(other, predictor(other), x_0, times)
    torch.testing.assert_close(x_T, wanted, rtol=1e-9, atol=1e-10)
    # The first step: eps at the first valid t, from a state with alpha = 1, sigma = 0.
    alpha, sigma = process.level(times[-2])
    eps = predictor(other)(x_0, torch.zeros(4, dtype=torch.int64))
    torch.testing.assert_close(states[1], alpha * x_0 + sigma * eps, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("process", PATHS)
def test_inversion_undoes_sampling_on_a_straight_path(process):
    predict, x_0, times = predictor(process), MEAN + STD * normal(4, 8), process.times(400)
    x_T, _ = solvers.ddim_inversion(process, predict, x_0, times)
    assert max_relative(x_T, (x_0 - MEAN) / STD) < 0.02
    assert max_relative(solvers.euler(process, predict, x_T, times)[0], x_0) < 0.01


def test_deblending_is_eulers_method():
    """Heitz et al. 2023, algorithm 4, as it is printed: x += (a_next - a) network(x, a)."""
    process, predict = AlphaBlending(num_steps=128), predictor(AlphaBlending(num_steps=128))
    x = normal(4, 8)
    for i in range(10):
        a, a_next = i / 10, (i + 1) / 10
        x = x + (a_next - a) * predict(x, torch.full((4,), a * 127, dtype=torch.float64))
    got, _ = solvers.euler(process, predict, normal(4, 8), process.times(10))
    torch.testing.assert_close(got, x, rtol=1e-12, atol=1e-13)


def test_single_precision_stays_single():
    process, flow = GaussianDiffusion(schedules.linear(50, 1e-3, 0.3)), FlowMatching()
    x_T, noises = normal(2, 4).float(), normal(8, 2, 4).float()
    times = samplers.times(process.schedule, 8)
    for solver in (*DETERMINISTIC, partial(solvers.heun, churn=4.0, noises=noises), solvers.ddim_inversion):
        _, states = solver(process, predictor(process), x_T, times)
        assert all(state.dtype == torch.float32 for state in states)
    for solver in (*DETERMINISTIC, solvers.midpoint, partial(solvers.dpmpp_2m_sde, noises=noises)):
        _, states = solver(flow, predictor(flow), x_T, flow.times(8))
        assert all(state.dtype == torch.float32 for state in states)


def test_what_solvers_refuse():
    chain, flow, x_T = GaussianDiffusion(schedules.linear(10)), FlowMatching(), normal(2, 4)
    run = partial(solvers.heun, chain, predictor(chain), x_T)
    for times in ([9, 9, -1], [-1], [3, 5, -1]):
        with pytest.raises(ValueError, match="times must be at least two and strictly descending"):
            run(times)
    with pytest.raises(ValueError, match="times must end at the clean end, -1; got 0"):
        run([9, 5, 0])
    with pytest.raises(ValueError, match="churn must be at least 0; got -1"):
        run([9, -1], churn=-1)
    with pytest.raises(ValueError, match="noises must be given with churn"):
        run([9, -1], churn=1)
    with pytest.raises(ValueError, match="churn must be 0 on a straight path"):
        solvers.heun(flow, predictor(flow), x_T, [1.0, 0.0], churn=1, noises=[x_T])
    with pytest.raises(ValueError, match="process must be FlowMatching or AlphaBlending"):
        solvers.midpoint(chain, predictor(chain), x_T, [9, -1])
    blind = GaussianDiffusion(schedules.zero_terminal_snr(schedules.linear(10)), "v")
    noisy = partial(solvers.euler_ancestral, noises=[x_T])
    for solver, process, times in [
        (solvers.euler, blind, [9, -1]),
        (solvers.heun, blind, [9, -1]),
        (noisy, flow, [1.0, 0.0]),
    ]:
        with pytest.raises(ValueError, match="alpha above 0"):
            solver(process, predictor(process), x_T, times)


# diffusers


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


@pytest.mark.parametrize("grid", [samplers.times, samplers.karras_times])
@pytest.mark.parametrize(
    ("solver", "kind", "options"),
    [
        (solvers.dpmpp_2m, theirs.DPMSolverMultistepScheduler, {"solver_order": 2, "lower_order_final": False}),
        (solvers.unipc, theirs.UniPCMultistepScheduler, {"solver_order": 2, "solver_type": "bh2"}),
    ],
)
def test_multistep_solvers_are_those_of_diffusers(solver, kind, options, grid, eps_of, monkeypatch):
    """Difference of definition: its DPMSolver lowers the order over the last steps of grids below 15 (lower_order_final); ours only
    where sigma_s = 0, as its final_sigmas_type "zero" does without that option. Of UniPC: none.
    """
    times = grid(CHAIN.schedule, 12)
    scheduler = scheduler_at(monkeypatch, kind, CHAIN, times, **options)
    x_T = normal(*SHAPE)
    x_0, states = solver(CHAIN, eps_of, x_T, times)
    x_t = x_T
    for i, t in enumerate(scheduler.timesteps):
        x_t = scheduler.step(eps_of(x_t, t.expand(2)), t, x_t).prev_sample
        assert max_relative(states[i + 1], x_t) < 1e-10, i
    assert x_0 is states[-1]


def test_third_order_is_that_of_diffusers_but_for_a_factor(eps_of, monkeypatch):
    """Difference of definition: diffusers, as the authors' code, puts a divided difference D in the place of h^2 f'' = 2 D."""
    times = samplers.karras_times(CHAIN.schedule, 12)
    options = {"solver_order": 3, "lower_order_final": False}
    scheduler = scheduler_at(monkeypatch, theirs.DPMSolverMultistepScheduler, CHAIN, times, **options)
    x_t = normal(*SHAPE)
    _, states = solvers.dpmpp_3m(CHAIN, eps_of, x_t, times)
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
    times, noises = samplers.karras_times(CHAIN.schedule, 12), normal(12, *SHAPE, seed=1)
    options = {"solver_order": 2, "lower_order_final": False, "algorithm_type": "sde-dpmsolver++"}
    scheduler = scheduler_at(monkeypatch, theirs.DPMSolverMultistepScheduler, CHAIN, times, **options)
    x_t = normal(*SHAPE)
    _, states = solvers.dpmpp_2m_sde(CHAIN, eps_of, x_t, times, noises)
    for i, t in enumerate(scheduler.timesteps):
        x_t = scheduler.step(eps_of(x_t, t.expand(2)), t, x_t, variance_noise=noises[i]).prev_sample
        assert max_relative(states[i + 1], x_t) < 1e-10, i


def test_euler_is_that_of_diffusers(eps_of, monkeypatch):
    """Difference of definition: its states are y = x/alpha, which scale_model_input multiplies by alpha again for the network."""
    times = samplers.karras_times(CHAIN.schedule, 12)
    scheduler = scheduler_at(monkeypatch, theirs.EulerDiscreteScheduler, CHAIN, times)
    x_T = normal(*SHAPE)
    _, states = solvers.euler(CHAIN, eps_of, x_T, times)
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
    times = samplers.karras_times(CHAIN.schedule, 12)
    scheduler = scheduler_at(monkeypatch, theirs.HeunDiscreteScheduler, CHAIN, times)
    sigmas, repeated = scheduler.sigmas, scheduler.timesteps
    scheduler.sigmas = torch.cat([sigmas[:1], sigmas[1:-1].repeat_interleave(2), sigmas[-1:]])
    scheduler.timesteps = torch.cat([repeated[:1], repeated[1:].repeat_interleave(2)])
    x_T = normal(*SHAPE)
    _, states = solvers.heun(CHAIN, eps_of, x_T, times)
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
    _, states = solvers.euler(process, eps_of, x_t, process.times(12))
    for i, t in enumerate(scheduler.timesteps):
        x_t = scheduler.step(eps_of(x_t, t.expand(2) / 1000 * 999), t, x_t).prev_sample
        assert max_relative(states[i + 1], x_t) < 1e-10, i


# Guidance


def test_classifier_free_guidance():
    labels, t = torch.tensor([1, 2, 3]), torch.tensor([5, 10, 20])
    x_t, seen = normal(3, 2, 4, 4), []

    def network(x_t, t, labels):
        seen.append(labels.tolist())
        wave = labels.reshape(-1, 1, 1, 1)
        return torch.cat([torch.sin(x_t * (1 + wave)), x_t + wave], 1)

    c, u = network(x_t, t, labels), network(x_t, t, torch.zeros_like(labels))
    make = partial(guidance.classifier_free, network, labels, null_label=0)
    for scale, wanted in [(0, u), (1, c), (3.5, u + 3.5 * (c - u))]:
        torch.testing.assert_close(make(scale=scale)(x_t, t), wanted, rtol=1e-12, atol=1e-13)
    assert seen[-2:] == [[1, 2, 3], [0, 0, 0]]
    got = make(scale=3.5, interval=(6, 10))(x_t, t)
    torch.testing.assert_close(got, torch.stack([c[0], (u + 3.5 * (c - u))[1], c[2]]), rtol=1e-12, atol=1e-13)

    out = u + 3.5 * (c - u)
    got = make(scale=3.5, rescale=1.0)(x_t, t)
    for i in range(3):
        assert float(got[i].std()) == pytest.approx(float(c[i].std()), rel=1e-12)
        torch.testing.assert_close(got[i], out[i] * c[i].std() / out[i].std(), rtol=1e-12, atol=1e-13)
    mixed = make(scale=3.5, rescale=0.7)(x_t, t)
    torch.testing.assert_close(mixed, 0.7 * got + 0.3 * out, rtol=1e-12, atol=1e-13)

    got = make(scale=3.5, rescale=1.0, channels=2)(x_t, t)
    assert (got[:, 2:] == c[:, 2:]).all()
    for i in range(3):
        wanted = out[i, :2] * c[i, :2].std() / out[i, :2].std()
        torch.testing.assert_close(got[i, :2], wanted, rtol=1e-12, atol=1e-13)
    with pytest.raises(ValueError, match=r"rescale must lie in \[0, 1\]; got 2"):
        make(scale=1.0, rescale=2)
    with pytest.raises(ValueError, match=r"interval must be \(lowest, highest\); got \(3, 1\)"):
        make(scale=1.0, interval=(3, 1))


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_classifier_guidance_turns_a_mixture_into_one_of_its_parts(prediction, learned):
    """Bayes: the slope of log p(x_t) and that of log p(y | x_t) add up to that of log p(x_t | y)."""
    process = GaussianDiffusion(schedules.linear(1000), prediction, learned_variance=learned)
    means, x_t, t = (-0.7, 0.5), normal(4, 1), torch.tensor([0, 100, 500, 999])
    parts = [predictor(process, mean) for mean in means]

    def log_prob_of_both(x_t, t):
        abar = torch.tensor(process.schedule.alphas_cumprod)[t][:, None]
        spread = (abar * STD**2 + 1 - abar).sqrt()
        logs = [torch.distributions.Normal(abar.sqrt() * mean, spread).log_prob(x_t) for mean in means]
        return torch.log_softmax(torch.cat(logs, 1), 1)

    shares = log_prob_of_both(x_t, t).exp()

    def mixture(x_t, t):
        output = sum(shares[:, k : k + 1] * parts[k](x_t, t) for k in range(2))
        return torch.cat([output, torch.full_like(x_t, 0.3)], 1) if learned else output

    with torch.no_grad():
        for k in range(2):
            guided = guidance.classifier_guided(
                process, mixture, lambda x_t, t, k=k: log_prob_of_both(x_t, t)[:, k], scale=1.0
            )
            got = guided(x_t, t)
            torch.testing.assert_close(got[:, :1], parts[k](x_t, t), rtol=1e-9, atol=1e-10)
            if learned:
                assert (got[:, 1:] == 0.3).all()
    blind = GaussianDiffusion(schedules.zero_terminal_snr(process.schedule), "v")
    with pytest.raises(ValueError, match="last alphas_cumprod of its schedule above 0"):
        guidance.classifier_guided(blind, mixture, lambda x_t, t: x_t, scale=1.0)


# Training


def test_low_discrepancy_times():
    schedule = schedules.cosine_unclipped(100)
    for u in (0.0, 0.3, 0.999999999):
        times = training.low_discrepancy_times(schedule, 8, u)
        assert times.dtype == torch.int64
        assert times.tolist() == [1 + int((u + i / 8) % 1 * 100) for i in range(8)]
        assert int(times.min()) >= 1 and int(times.max()) <= 100
    # Every t exactly as often as any other, over a whole sweep of u.
    counts = sum(
        torch.bincount(training.low_discrepancy_times(schedules.linear(10), 4, (k + 0.5) / 40), minlength=10)
        for k in range(40)
    )
    assert counts.tolist() == [16] * 10
    for u in (-0.1, 1.0):
        with pytest.raises(ValueError, match=r"u must lie in \[0, 1\)"):
            training.low_discrepancy_times(schedule, 8, u)
    with pytest.raises(ValueError, match="num_examples must be at least 1; got 0"):
        training.low_discrepancy_times(schedule, 0, 0.5)


def test_loss_aware_times():
    times = training.LossAwareTimes(4, history=3, uniform_share=0.1)
    losses = normal(16, seed=3).exp()
    for k in range(11):
        times.update(torch.tensor([k % 4]), losses[k : k + 1])
        assert times.weights().tolist() == [0.25] * 4
    times.update(torch.tensor([3, 0, 0]), losses[11:14])
    remembered = [[losses[8], losses[12], losses[13]], losses[[1, 5, 9]], losses[[2, 6, 10]], losses[[3, 7, 11]]]
    roots = [sqrt(sum(float(loss) ** 2 for loss in row) / 3) for row in remembered]
    wanted = [0.9 * root / sum(roots) + 0.1 / 4 for root in roots]
    assert times.weights().tolist() == pytest.approx(wanted, rel=1e-12)
    assert float(times.weights().sum()) == pytest.approx(1, rel=1e-12)
    index = torch.tensor([2, 0, 2])
    assert times.importance(index).tolist() == pytest.approx([1 / (4 * wanted[i]) for i in index], rel=1e-12)
    # The weighted mean over draws by p is the plain mean over uniform ones.
    assert float((times.weights() * times.importance(torch.arange(4)) * torch.arange(4)).sum()) == pytest.approx(1.5)
    for options in ({"num_steps": 0}, {"num_steps": 4, "history": 0}, {"num_steps": 4, "uniform_share": 1.5}):
        with pytest.raises(ValueError, match="must"):
            training.LossAwareTimes(**options)


def test_dropped_labels():
    labels, drop = torch.tensor([3, 1, 2]), torch.tensor([True, False, True])
    assert training.drop_labels(labels, 10, drop).tolist() == [10, 1, 10]
    assert labels.tolist() == [3, 1, 2]


class Conditioned(nn.Module):
    """Linear in [x_t, guess], so that its gradient is known; remembers its inputs."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 2).double()
        self.seen = []

    def forward(self, x, t, labels=None):
        self.seen.append(x.detach().clone())
        return self.linear(x)


@pytest.mark.parametrize("process", [GaussianDiffusion(schedules.linear(20), "v"), FlowMatching(20)])
def test_self_conditioning(process):
    x_0, noise = normal(5, 2), normal(5, 2, seed=1)
    t = torch.tensor([0, 3, 9, 15, 19])
    t = t / 20.0 if isinstance(process, FlowMatching) else t
    x_t = process.add_noise(x_0, noise, t)
    for self_condition in (False, True):
        torch.manual_seed(0)
        model = Conditioned()
        with torch.no_grad():
            output = model.linear(torch.cat([x_t, 0 * x_t], 1))
        guess = process.estimate(x_t, output, t).x_0 if self_condition else 0 * x_t
        error = model.linear(torch.cat([x_t, guess], 1)) - process.target(x_0, noise, t)
        wanted = torch.autograd.grad(error.square().mean(), list(model.parameters()))
        norm = torch.sqrt(sum(g.square().sum() for g in wanted))

        state = training.TrainState.create(model, 1e-3)
        metrics = training.train_step(state, process, x_0, noise, t, ema=0.9, self_condition=self_condition)
        torch.testing.assert_close(model.seen[-1], torch.cat([x_t, guess], 1), rtol=1e-12, atol=1e-13)
        assert len(model.seen) == (2 if self_condition else 1)
        assert metrics["loss"] == pytest.approx(float(error.detach().square().mean()), rel=1e-12)
        assert metrics["grad_norm"] == pytest.approx(float(norm), rel=1e-12)


def test_flow_matching_trains():
    """The step takes a straight path as it takes a chain: a network told t (num_steps - 1)."""

    class Shift(nn.Module):
        def __init__(self):
            super().__init__()
            self.shift = nn.Parameter(torch.zeros((), dtype=torch.float64))

        def forward(self, x_t, t, labels=None):
            assert t.tolist() == [0, 4.5, 9]
            return x_t + self.shift

    state = training.TrainState.create(Shift(), 0.1)
    t = torch.tensor([0, 0.5, 1], dtype=torch.float64)
    losses = [
        training.train_step(state, FlowMatching(10), normal(3, 2), 2 + normal(3, 2, seed=1), t, ema=0.5)["loss"]
        for _ in range(20)
    ]
    assert losses[-1] < losses[0] and state.step == 20
