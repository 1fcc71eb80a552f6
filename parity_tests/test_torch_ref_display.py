"""The twin's objects in a line each."""

import torch

from ddpm_torch_ref import denoisers, processes, samplers, schedules


def test_one_line_each():
    chain = processes.GaussianDiffusion(schedules.linear(1000))
    assert repr(chain.schedule) == "Schedule(linear, t 0 to 999, beta 0.0001 to 0.02)"
    assert repr(schedules.zero_terminal_snr(schedules.cosine(9))).startswith(
        "Schedule(zero_terminal_snr(cosine), t 0 to 8,"
    )
    assert repr(chain) == "GaussianDiffusion(linear, T=1000, eps, mse)"
    network = denoisers.of(chain, torch.nn.Linear(2, 2), labels=torch.arange(3), null_label=9)
    told = "network(Linear, GaussianDiffusion(linear, T=1000, eps, mse), 3 labels)"
    assert repr(denoisers.clipped(denoisers.guided(network, 2.0), 1)) == f"clipped(guided({told}, 2), 1)"
    assert repr(denoisers.thresholded(network, 0.995)) == f"thresholded({told}, 0.995, 1)"
    hat = processes.Estimate(torch.zeros(2, 3), torch.zeros(2, 3))
    assert repr(hat) == "Estimate(x_0 (2, 3), eps (2, 3), variance_logit None)"
    assert repr(samplers.DDIM()) == "DDIM(eta=0.0)"


def test_every_schedule_has_its_name():
    for name in ("linear", "linear_inclusive", "cosine", "cosine_unclipped", "quadratic", "sigmoid", "sigmoid_cumprod"):
        assert repr(getattr(schedules, name)(10)).startswith(f"Schedule({name}, t ")
