"""The twin's bound on the likelihood: its terms against torch.distributions, the whole of it for Gaussian data, and as a loss."""

from math import log, log2, sqrt

import numpy as np
import pytest
import torch
from gaussian_data import MEAN, PATHS, STD, normal, predictor

from ddpm_torch_ref import bound, denoisers, likelihood, schedules
from ddpm_torch_ref.processes import Estimate, GaussianDiffusion


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

    for variance, size in variances.items():
        got = process.bound_term(estimate, x_0, x_t, t, variance)
        ours = torch.distributions.Normal(posterior_mean(x_0), small.sqrt())
        network = torch.distributions.Normal(posterior_mean(estimate.x_0), size.sqrt())
        wanted = torch.distributions.kl_divergence(ours, network).mean(1) / log(2)
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-13)

    abar = schedule.alphas_cumprod[-1]
    last = torch.distributions.Normal(sqrt(abar) * x_0, sqrt(1 - abar))
    wanted = torch.distributions.kl_divergence(last, torch.distributions.Normal(0.0, 1.0)).mean(1) / log(2)
    torch.testing.assert_close(bound.prior(x_0, abar), wanted, rtol=1e-12, atol=0)


@pytest.mark.parametrize("first", [0, 1])
def test_the_first_term_is_a_distribution_over_256_values(first):
    """The probabilities of all values add up to 1, as the outermost bins are open; none counts less than 1e-12."""
    betas = np.array([0.0, 0.02, 0.1, 0.2])[1 - first :]
    process = GaussianDiffusion(schedules.Schedule(betas, np.cumprod(1 - betas), first), "x0")
    values = torch.linspace(-1, 1, 256, dtype=torch.float64)[:, None]
    t = torch.full((256,), first)
    estimate = Estimate(torch.full_like(values, 0.93), torch.zeros_like(values))
    for variance in ("beta", "posterior"):
        bits = process.bound_term(estimate, values, torch.zeros_like(values), t, variance)
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
    found = likelihood.variational_bound(denoisers.of(process, predictor(process)), x_0, noises.__getitem__)
    assert found.prior.shape == (400,) and found.terms.shape == (12, 400) and found.total.shape == (400,)
    torch.testing.assert_close(found.total, found.prior + sum(found.terms), rtol=1e-12, atol=0)
    for t in range(1, 12):
        abar = schedule.alphas_cumprod[t]
        left = STD**2 * (1 - abar) / (abar * STD**2 + 1 - abar)
        wanted = schedule.posterior_mean_coef1[t] ** 2 * left / schedule.posterior_variance[t] / 2 / log(2)
        assert float(found.terms[t].mean()) == pytest.approx(wanted, rel=0.03)
    abar = schedule.alphas_cumprod[-1]
    wanted = (abar * (MEAN**2 + STD**2) - abar - log(1 - abar)) / 2 / log(2)
    assert float(found.prior.mean()) == pytest.approx(wanted, rel=0.03)
    # At t = 0 row by row, with the noise that its index names.
    x_t = process.add_noise(x_0, noises[4], torch.full((400,), 4))
    estimate = process.estimate(x_t, predictor(process)(x_t, torch.full((400,), 4)), torch.full((400,), 4))
    assert (process.bound_term(estimate, x_0, x_t, torch.full((400,), 4)) == found.terms[4]).all()
    with pytest.raises(ValueError, match=r"alphas_cumprod\[0\] must be 1"):
        likelihood.variational_bound(
            denoisers.of(GaussianDiffusion(schedules.linear_inclusive(5)), torch.sin), x_0, noises.__getitem__
        )
    with pytest.raises(ValueError, match="variance_logit"):
        likelihood.variational_bound(
            denoisers.of(process, predictor(process)), x_0, noises.__getitem__, variance="learned"
        )
    with pytest.raises(ValueError, match="the bound belongs to a GaussianDiffusion; got FlowMatching"):
        likelihood.variational_bound(denoisers.of(PATHS[0], predictor(PATHS[0])), x_0, noises.__getitem__)


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
    terms = plain.bound_term(plain.estimate(x_t, output, t), x_0, x_t, t, "learned")
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
    torch.testing.assert_close(got, 20 * fixed.bound_term(estimate, x_0, x_t, t, "posterior"), rtol=1e-13, atol=0)
