"""The twin's guidance: classifier-free by hand, a classifier's by Bayes."""

from functools import partial

import pytest
import torch
from gaussian_data import (
    PREDICTIONS,
    STD,
    normal,
    predictor,
)

from ddpm_torch_ref import guidance, schedules
from ddpm_torch_ref.processes import GaussianDiffusion


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


@pytest.mark.parametrize("value", [0.0, 0.1, -3.7])
def test_an_output_of_one_value_is_not_rescaled(value):
    """It has no deviation; the other example has."""
    x_t, labels, t = normal(2, 3, 7, 5), torch.tensor([1, 1]), torch.tensor([5, 5])

    def network(x_t, t, labels):
        return torch.cat([torch.full_like(x_t[:1], value), x_t[1:] * (1 + labels[1])])

    out = guidance.classifier_free(network, labels, null_label=0, scale=3.0, rescale=1.0)(x_t, t)
    torch.testing.assert_close(out[0], torch.full_like(out[0], value), rtol=1e-12, atol=0)
    assert float(out[1].std()) == pytest.approx(float(2 * x_t[1].std()), rel=1e-12)


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
