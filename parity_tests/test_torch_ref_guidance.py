"""The twin's denoisers: guidance by hand and by Bayes, bounds on x_0, self-conditioning."""

import pytest
import torch
from gaussian_data import PATHS, PREDICTIONS, STD, normal, predictor

from ddpm_torch_ref import denoisers, schedules
from ddpm_torch_ref.processes import GaussianDiffusion


def test_classifier_free_guidance():
    labels, t = torch.tensor([1, 2, 3]), torch.tensor([5, 10, 20])
    x_t, seen = normal(3, 2, 4, 4), []

    def network(x_t, t, labels):
        seen.append(labels.tolist())
        wave = labels.reshape(-1, 1, 1, 1)
        return torch.cat([torch.sin(x_t * (1 + wave)), x_t + wave], 1)

    c, u = network(x_t, t, labels), network(x_t, t, torch.zeros_like(labels))
    process = GaussianDiffusion(schedules.linear(30), "v", loss="hybrid", learned_variance=True)
    denoise = denoisers.of(process, network, labels=labels, null_label=0)

    def make(**options):
        return denoisers.guided(denoise, **options).output

    def joined(out):
        """Two guided channels, and the conditional side's word on the variance."""
        return torch.cat([out[:, :2], c[:, 2:]], 1)

    out = u + 3.5 * (c - u)
    for scale, wanted in [(0, u), (1, c), (3.5, out)]:
        torch.testing.assert_close(make(scale=scale)(x_t, t), joined(wanted), rtol=1e-12, atol=1e-13)
    assert seen[-2:] == [[1, 2, 3], [0, 0, 0]]
    got = make(scale=3.5, interval=(6, 10))(x_t, t)
    torch.testing.assert_close(got, torch.stack([c[0], joined(out)[1], c[2]]), rtol=1e-12, atol=1e-13)

    got = make(scale=3.5, rescale=1.0)(x_t, t)
    assert (got[:, 2:] == c[:, 2:]).all()
    for i in range(3):
        wanted = out[i, :2] * c[i, :2].std() / out[i, :2].std()
        torch.testing.assert_close(got[i, :2], wanted, rtol=1e-12, atol=1e-13)
    mixed = make(scale=3.5, rescale=0.7)(x_t, t)
    torch.testing.assert_close(mixed[:, :2], 0.7 * got[:, :2] + 0.3 * out[:, :2], rtol=1e-12, atol=1e-13)

    hat = denoisers.guided(denoise, 3.5)(x_t, t)
    wanted = process.estimate(x_t, joined(out), t)
    assert all(torch.equal(a, b) for a, b in zip(hat, wanted, strict=True))
    with pytest.raises(ValueError, match=r"rescale must lie in \[0, 1\]; got 2"):
        make(scale=1.0, rescale=2)
    with pytest.raises(ValueError, match=r"interval must be \(lowest, highest\); got \(3, 1\)"):
        make(scale=1.0, interval=(3, 1))
    with pytest.raises(ValueError, match="needs labels and a null_label"):
        denoisers.guided(denoisers.of(process, network, labels=labels), 2.0)


def test_an_output_without_spread_is_not_rescaled():
    process = GaussianDiffusion(schedules.linear(30))
    denoise = denoisers.of(
        process, lambda x, t, labels: x * labels.reshape(-1, 1), labels=torch.tensor([1]), null_label=2
    )
    x_t = normal(1, 4)
    assert torch.equal(denoisers.guided(denoise, 2.0, rescale=0.7).output(x_t, 5), torch.zeros(1, 4, dtype=x_t.dtype))


def test_another_denoiser_on_the_other_side():
    """Guidance away from a worse one; both are given the guess of x_0."""
    process, x_t, guess = GaussianDiffusion(schedules.linear(30), "v"), normal(2, 1, 3, 3), normal(2, 1, 3, 3, seed=1)

    def network(factor):
        return denoisers.self_conditioned(denoisers.of(process, lambda x, t: factor * x[:, :1] + x[:, 1:]))

    guided = denoisers.guided(network(3.0), 2.0, other=network(1.0))
    assert guided.self_conditioned
    torch.testing.assert_close(guided.output(x_t, 5), 5 * x_t, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(guided.given(guess).output(x_t, 5), 5 * x_t + guess, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("process", [GaussianDiffusion(schedules.cosine(100), "v"), *PATHS])
def test_bounds_on_x_0(process):
    """x_0 is bounded as it says, and eps belongs to it: alpha x_0 + sigma eps = x_t still."""
    chain = isinstance(process, GaussianDiffusion)
    x_t, t = 3 * normal(2, 1, 4, 4), 70 if chain else 0.7
    plain = denoisers.of(process, predictor(process, std=2.0))
    free = plain(x_t, t).x_0
    for denoise in (denoisers.clipped(plain, 0.5), denoisers.thresholded(plain, 0.8, 0.5)):
        hat = denoise(x_t, t)
        if isinstance(denoise, denoisers.Clipped):
            wanted = free.clamp(-0.5, 0.5)
        else:
            wide = torch.stack([torch.quantile(one.abs(), 0.8).clamp(min=0.5) for one in free])[:, None, None, None]
            assert (wide > 0.5).any()
            wanted = torch.minimum(torch.maximum(free, -wide), wide) / wide * 0.5
        torch.testing.assert_close(hat.x_0, wanted, rtol=1e-12, atol=1e-13)
        alpha, sigma = process.level(t)
        torch.testing.assert_close(alpha * hat.x_0 + sigma * hat.eps, x_t, rtol=1e-11, atol=1e-12)
        # What a network would say that believes the same.
        again = process.estimate(x_t, denoise.output(x_t, t), denoisers.times_of(process, x_t, t))
        torch.testing.assert_close(again.x_0, hat.x_0, rtol=1e-9, atol=1e-10)
    for make in (lambda: denoisers.clipped(plain, 0), lambda: denoisers.thresholded(plain, 0.5, 0)):
        with pytest.raises(ValueError, match="bound must be above 0; got 0"):
            make()
    with pytest.raises(ValueError, match=r"quantile must lie in \(0, 1\]; got 0"):
        denoisers.thresholded(plain, 0)


@pytest.mark.parametrize("value", [0.0, 0.1, -3.7])
def test_an_output_of_one_value_is_not_rescaled(value):
    """It has no deviation; the other example has."""
    x_t, labels, t = normal(2, 3, 7, 5), torch.tensor([1, 1]), torch.tensor([5, 5])

    def network(x_t, t, labels):
        return torch.cat([torch.full_like(x_t[:1], value), x_t[1:] * (1 + labels[1])])

    denoise = denoisers.of(GaussianDiffusion(schedules.linear(30)), network, labels=labels, null_label=0)
    out = denoisers.guided(denoise, 3.0, rescale=1.0).output(x_t, t)
    torch.testing.assert_close(out[0], torch.full_like(out[0], value), rtol=1e-12, atol=0)
    assert float(out[1].std()) == pytest.approx(float(2 * x_t[1].std()), rel=1e-12)


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_classifier_guidance_turns_a_mixture_into_one_of_its_parts(prediction, learned):
    """Bayes: the slope of log p(x_t) and that of log p(y | x_t) add up to that of log p(x_t | y)."""
    loss = "hybrid" if learned else "mse"
    process = GaussianDiffusion(schedules.linear(1000), prediction, loss, learned_variance=learned)
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
            denoise = denoisers.of(process, mixture)
            got = denoisers.classifier_guided(denoise, lambda x_t, t, k=k: log_prob_of_both(x_t, t)[:, k]).output(
                x_t, t
            )
            torch.testing.assert_close(got[:, :1], parts[k](x_t, t), rtol=1e-9, atol=1e-10)
            if learned:
                assert (got[:, 1:] == 0.3).all()
    blind = GaussianDiffusion(schedules.zero_terminal_snr(process.schedule), "v")
    with pytest.raises(ValueError, match="last alphas_cumprod of its schedule above 0"):
        denoisers.classifier_guided(denoisers.of(blind, mixture), lambda x_t, t: x_t)
