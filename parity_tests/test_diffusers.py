"""ddpm_jax against an independent library: schedules, DDPM and DDIM of diffusers, over whole trajectories.

The multistep and the sigma-based samplers are held to diffusers through the twin, in test_torch_ref_diffusers.
"""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from tolerances import relative_error
from twins import normal

from ddpm_jax import denoisers, processes, samplers, schedules

SHAPE = (2, 4, 4, 3)
PREDICTIONS = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}


def network(x_t, t, sin):
    """One function of x_t and t for both frameworks."""
    return sin(2 * x_t) * (0.6 + t / 2000) + 0.3 * x_t


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (schedules.linear(1000), {"beta_schedule": "linear"}),
        (schedules.quadratic(1000), {"beta_schedule": "scaled_linear"}),
        (schedules.sigmoid(1000), {"beta_schedule": "sigmoid"}),
        (schedules.cosine(1000), {"beta_schedule": "squaredcos_cap_v2"}),
    ],
    ids=["linear", "quadratic", "sigmoid", "cosine"],
)
def test_schedules(ours, theirs):
    """Its tables are float32: they agree to that."""
    scheduler = DDPMScheduler(1000, **theirs)
    assert relative_error(scheduler.betas.numpy(), ours.betas) < 5e-6
    assert relative_error(scheduler.alphas_cumprod.numpy(), ours.alphas_cumprod) < 5e-6


def test_zero_terminal_snr():
    ours = schedules.zero_terminal_snr(schedules.linear(1000))
    scheduler = DDPMScheduler(1000, rescale_betas_zero_snr=True)
    # diffusers keeps the last A at 2^-24, so that it can divide by it
    assert np.abs(scheduler.alphas_cumprod.numpy() - ours.alphas_cumprod)[:-1].max() < 5e-6


def in_double(scheduler, schedule):
    """The scheduler with our tables, in double precision."""
    scheduler.betas = torch.tensor(schedule.betas)
    scheduler.alphas = 1 - scheduler.betas
    scheduler.alphas_cumprod = torch.tensor(schedule.alphas_cumprod)
    scheduler.one = scheduler.final_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)
    return scheduler


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize(("variance", "theirs"), [("posterior", "fixed_small"), ("beta", "fixed_large")])
@pytest.mark.parametrize("clip", [None, 1.0])
def test_ddpm(prediction, variance, theirs, clip, monkeypatch):
    """50 of 1,000 steps. Its grid is set to ours; its "fixed_large" adds noise to the last step's neighbour as ours does."""
    process = processes.GaussianDiffusion(schedules.linear(1000), prediction)
    options = {"prediction_type": PREDICTIONS[prediction], "variance_type": theirs, "clip_sample": clip is not None}
    scheduler = in_double(DDPMScheduler(1000, **options), process.schedule)
    times = process.times(50)
    scheduler.custom_timesteps, scheduler.num_inference_steps = True, 50
    scheduler.timesteps = torch.tensor(times[:-1].astype(np.int64))
    noises = normal("float64", 50, *SHAPE, seed=1)
    fresh = iter(noises)
    monkeypatch.setattr(
        "diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, **__: torch.from_numpy(next(fresh))
    )
    x_t = torch.from_numpy(normal("float64", *SHAPE))
    for t in scheduler.timesteps[:-1]:
        x_t = scheduler.step(network(x_t, int(t), torch.sin), int(t), x_t).prev_sample
    # the last step, to the clean end, takes no noise with us; diffusers leaves it out at t = 0 alone
    sampler, grid = samplers.Ancestral(variance), times[:-1]
    ours = jnp.asarray(normal("float64", *SHAPE))
    for index, (t, s) in enumerate(itertools.pairwise(grid)):
        denoise = denoisers.of(process, lambda x, t: network(x, int(t[0]), jnp.sin))
        denoise = denoise if clip is None else denoisers.clipped(denoise, clip)
        ours = sampler.step(denoise, ours, jnp.array([t, s]), jnp.asarray(noises[index]), ()).x
    assert relative_error(np.asarray(ours), x_t.numpy()) < 1e-10


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("clip", [None, 1.0])
def test_ddim(prediction, eta, clip):
    """50 of 1,000 steps to the clean end. Difference of definition: with clip it keeps the eps of before, unless told otherwise."""
    process = processes.GaussianDiffusion(schedules.linear(1000), prediction)
    options = {"prediction_type": PREDICTIONS[prediction], "clip_sample": clip is not None, "set_alpha_to_one": True}
    scheduler = in_double(DDIMScheduler(1000, **options), process.schedule)
    scheduler.num_inference_steps = 50
    times = np.append(np.arange(980, -1, -20), -1).astype(np.int32)  # its previous time is always t - 1000 // 50
    noises = normal("float64", 50, *SHAPE, seed=1)
    x_t = torch.from_numpy(normal("float64", *SHAPE))
    for index, t in enumerate(times[:-1]):
        noise = torch.from_numpy(noises[index] * (index < 49))
        output = network(x_t, int(t), torch.sin)
        options = {"eta": eta, "variance_noise": noise, "use_clipped_model_output": True}
        x_t = scheduler.step(output, int(t), x_t, **options).prev_sample
    denoise = denoisers.of(process, lambda x, t: network(x, t.astype(float).reshape(-1, 1, 1, 1), jnp.sin))
    denoise, x_T = denoise if clip is None else denoisers.clipped(denoise, clip), jnp.asarray(normal("float64", *SHAPE))
    ours = samplers.walk(denoise, samplers.DDIM(eta), x_T, lambda i: jnp.asarray(noises)[i], samplers.rows(times))
    assert relative_error(np.asarray(ours.x_0), x_t.numpy()) < 1e-10
