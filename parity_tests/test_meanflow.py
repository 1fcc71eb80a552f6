"""MeanFlow on both sides: jax.jvp beside torch.func.jvp, through networks, training steps and walks of one and two steps."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from precisions import FLOAT32_SLOWLY
from tolerances import assert_close
from twins import SMALL, compiled, normal, to_nchw, to_nhwc

from ddpm_jax import denoisers, processes, samplers
from ddpm_jax.presets import TrainConfig
from ddpm_jax.training import Examples, Update, create_state, make_optimizer
from ddpm_torch_ref import denoisers as twin_denoisers
from ddpm_torch_ref import processes as twin_processes
from ddpm_torch_ref import samplers as twin_samplers
from ddpm_torch_ref import training as twin_training

OPTIONS = SMALL | {"channels": 1, "attention_resolutions": (4,), "num_classes": 3, "interval": True}
TIMES = [[0.9, 0.2], [0.7, 0.6], [0.5, 0.5]]


@pytest.mark.parametrize("loss", ["mse", "l1", "huber"])
@pytest.mark.parametrize("power", [0.0, 1.0])
def test_losses_and_their_gradients(dtype, loss, power):
    """Of a function that is linear in nothing."""
    options = {"loss": loss, "power": power}
    process, twin = processes.MeanFlow(**options), twin_processes.MeanFlow(**options)
    x_0, noise, scale = normal(dtype, 3, 4, 4, 2), normal(dtype, 3, 4, 4, 2, seed=1), np.asarray(1.3, dtype)

    def losses(scale):
        def network(x, told):
            t, way = told[:, :1, None, None], told[:, 1:, None, None]
            return jnp.sin(scale * x + t) * (1 + way**2) + 0.3 * x * t

        return process.loss_per_example(network, jnp.asarray(x_0), jnp.asarray(noise), jnp.asarray(TIMES, dtype))

    def twin_network(x, told):
        t, way = told[:, :1, None, None], told[:, 1:, None, None]
        return torch.sin(leaf * x + t) * (1 + way**2) + 0.3 * x * t

    leaf = torch.tensor(scale, requires_grad=True)
    theirs = twin.loss_per_example(twin_network, to_nchw(x_0), to_nchw(noise), torch.tensor(TIMES, dtype=leaf.dtype))
    theirs.sum().backward()

    assert_close("loss", losses(jnp.asarray(scale)), theirs.detach(), f"{loss}, power {power}")
    gradient = jax.grad(lambda scale: losses(scale).sum())(jnp.asarray(scale))
    assert_close("gradient", gradient, leaf.grad, f"{loss}, power {power}")


@FLOAT32_SLOWLY
def test_an_update_of_a_network(pair, dtype):
    model, twin = pair("unet", dtype, **OPTIONS)
    x_0, noise = normal(dtype, 3, 8, 8, 1, seed=1), normal(dtype, 3, 8, 8, 1, seed=2)
    update = Update(processes.MeanFlow(), make_optimizer(TrainConfig(steps=1, lr=1e-3)), ema=0.5)
    labels = np.array([0, 1, 2])
    examples = Examples(x_0, noise, jnp.asarray(TIMES, dtype), jnp.asarray(labels))
    _, metrics = compiled(update.with_draws)(create_state(model, update.optimizer), examples)
    other = copy.deepcopy(twin)
    state = twin_training.create_state(other, torch.optim.Adam(other.parameters(), lr=1e-3))
    twin_update = twin_training.Update(twin_processes.MeanFlow(), ema=0.5, grad_clip=1.0)
    told = torch.tensor(TIMES, dtype=getattr(torch, dtype))
    twin_examples = twin_training.Examples(to_nchw(x_0), to_nchw(noise), told, torch.as_tensor(labels))
    _, theirs = twin_update.with_draws(state, twin_examples)
    for name in ("loss", "grad_norm"):
        assert float(metrics[name]) == pytest.approx(float(theirs[name]), rel=1e-9 if dtype == "float64" else 1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("num_steps", [1, 2])
@FLOAT32_SLOWLY
def test_walks_through_a_network(pair, dtype, num_steps):
    model, twin = pair("unet", dtype, **OPTIONS)
    x_T, labels = normal(dtype, 3, 8, 8, 1, seed=3), np.array([2, 0, 1])
    denoise = denoisers.of_network(model, processes.MeanFlow(), labels=labels)
    twin_denoise = twin_denoisers.of(twin_processes.MeanFlow(), twin.eval(), labels=torch.as_tensor(labels))
    for name, kind in (("ddim", twin_samplers.DDIM), ("euler", twin_samplers.Euler)):
        sampler, twin_sampler = samplers.as_sampler(name), kind()
        grid = sampler.grid(denoise.process, num_steps)
        ours = samplers.walk(denoise, sampler, jnp.asarray(x_T), lambda i: jnp.zeros_like(x_T), grid).x_0
        rows = twin_sampler.grid(twin_denoise.process, num_steps)
        theirs = twin_samplers.walk(
            twin_denoise, twin_sampler, to_nchw(x_T), lambda i: torch.zeros(3, 1, 8, 8), rows
        ).x_0
        assert_close("trajectory", ours, to_nhwc(theirs), f"{name} in {num_steps}")
    plain = denoise(jnp.asarray(x_T), 0.5).x_0
    assert not np.allclose(plain, denoise.until(0.1)(jnp.asarray(x_T), 0.5).x_0)


def test_times_of_the_twin():
    drawn = twin_processes.MeanFlow(apart=0.4).draw_times(torch.Generator().manual_seed(0), 20_000).numpy()
    t, s = drawn.T
    assert (s <= t).all() and abs((s < t).mean() - 0.4) < 0.02
    together = np.sort(np.random.default_rng(0).standard_normal((200_000, 2)) - 0.4)
    logit = np.log(t / (1 - t))
    assert abs(logit.mean() - together[:, 1].mean()) < 0.03 and abs(logit.std() - together[:, 1].std()) < 0.03


def test_what_the_twin_refuses():
    for options in ({"apart": 0.0}, {"time_std": 0.0}, {"power": -1.0}, {"num_steps": 0}, {"loss": "l2"}):
        with pytest.raises(ValueError, match=next(iter(options))):
            twin_processes.MeanFlow(**options)
