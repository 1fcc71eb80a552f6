"""Images as condition: what a network is shown, an update and a walk of one that is shown an image, against PyTorch."""

import copy

import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import torch.nn.functional as F
from precisions import FLOAT32_SLOWLY
from tolerances import assert_close
from twins import SMALL, compiled, indices, normal, to_nchw, to_nhwc

from ddpm_jax import denoisers, processes, samplers, schedules
from ddpm_jax.condition import as_condition
from ddpm_jax.errors import UserError
from ddpm_jax.presets import TrainConfig
from ddpm_jax.training import Chance, Examples, Update, create_state, make_optimizer, make_step
from ddpm_torch_ref import denoisers as twin_denoisers
from ddpm_torch_ref import models as twin_models
from ddpm_torch_ref import processes as twin_processes
from ddpm_torch_ref import samplers as twin_samplers
from ddpm_torch_ref import schedules as twin_schedules
from ddpm_torch_ref import training as twin_training

OPTIONS = SMALL | {"channels": 1, "dim_mults": (1,), "attention_resolutions": (), "num_classes": 3}


def processes_of(steps=1000):
    return (
        processes.GaussianDiffusion(schedules.cosine(steps), "v"),
        twin_processes.GaussianDiffusion(twin_schedules.cosine(steps), "v"),
    )


def in_torch(spec, x):
    """Area means and bilinear interpolation as guided-diffusion's scripts call them; the others by their definitions."""
    if spec.startswith("downsample"):
        small = F.interpolate(x, x.shape[-1] // int(spec[-1]), mode="area")
        return F.interpolate(small, x.shape[-2:], mode="bilinear")
    if spec == "gray":
        return torch.einsum("bchw,c->bhw", x, torch.tensor([0.299, 0.587, 0.114], dtype=x.dtype))[:, None]
    where = torch.zeros_like(x[:, :1])
    rows, columns = {"left": ((0, 8), (0, 4)), "bottom": ((4, 8), (0, 8)), "middle": ((2, 6), (2, 6))}[spec[5:]]
    where[..., slice(*rows), slice(*columns)] = 1
    return torch.cat([torch.where(where == 1, torch.zeros_like(x), x), where], dim=1)


@pytest.mark.parametrize("spec", ["downsample:2", "downsample:4", "gray", "mask:left", "mask:bottom", "mask:middle"])
def test_what_a_network_is_shown(dtype, spec):
    x, condition = normal(dtype, 3, 8, 8, 3), as_condition(spec)
    shown = condition.shown(jnp.asarray(x))
    assert shown.dtype == dtype and shown.shape == (3, 8, 8, condition.channels(3))
    assert_close("output", np.asarray(shown), to_nhwc(in_torch(spec, to_nchw(x))), spec)
    stacked = condition.shown(jnp.asarray(x[None]))
    np.testing.assert_array_equal(stacked[0], shown)
    assert condition.degraded(jnp.asarray(x)).shape[1:] == condition.degraded_shape((8, 8, 3))


@FLOAT32_SLOWLY
@pytest.mark.parametrize("guess", [*(pytest.param(guess, marks=pytest.mark.slow) for guess in (None, False)), True])
def test_an_update(pair, dtype, guess):
    """The condition stands behind x_t, and a guess behind both: with parts, classes, and weights drawn from the same numbers."""
    model, twin = pair("unet", dtype, **OPTIONS, condition_channels=2, self_conditioning=guess is not None)
    process, twin_process = processes_of()
    update = Update(process, make_optimizer(TrainConfig(steps=1, lr=1e-3)), ema=0.5, accumulate=2)
    x_0, noise, shown = (normal(dtype, 4, 8, 8, c, seed=seed) for seed, c in ((1, 1), (2, 1), (3, 2)))
    (t, twin_t), (labels, twin_labels) = indices([200, 700, 30, 999]), indices([0, 2, 1, 1])
    examples = Examples(x_0, noise, t, labels, None, shown)
    _, metrics = compiled(update.with_draws)(create_state(model, update.optimizer), examples, Chance(guess=guess))
    other = copy.deepcopy(twin)
    state = twin_training.create_state(other, torch.optim.Adam(other.parameters(), lr=1e-3))
    twin_update = twin_training.Update(twin_process, ema=0.5, grad_clip=1.0, accumulate=2)
    drawn = twin_training.Examples(to_nchw(x_0), to_nchw(noise), twin_t, twin_labels, None, to_nchw(shown))
    _, theirs = twin_update.with_draws(state, drawn, twin_training.Chance(guess))
    assert_close("loss", np.asarray(metrics["loss"]), theirs["loss"].numpy(), str(guess))
    assert_close("gradient", np.asarray(metrics["grad_norm"]), theirs["grad_norm"].numpy(), str(guess))


def test_a_walk(pair, dtype):
    """Guided by class, with its own guess, beside what is shown: every step from the same noise."""
    model, twin = pair("unet", dtype, **OPTIONS, condition_channels=2, self_conditioning=True)
    process, twin_process = processes_of(100)
    shown, x = normal(dtype, 2, 8, 8, 2, seed=3), normal(dtype, 2, 8, 8, 1, seed=4)
    labels, twin_labels = indices([0, 1])
    network = denoisers.of_network(model, process, labels=labels, null_label=2)
    denoise = denoisers.guided(denoisers.self_conditioned(network).beside(jnp.asarray(shown)), 2.0)
    twin_network = twin_denoisers.of(twin_process, twin, labels=twin_labels, null_label=2)
    twin_denoise = twin_denoisers.guided(twin_denoisers.self_conditioned(twin_network).beside(to_nchw(shown)), 2.0)
    noises, sampler, twin_sampler = normal(dtype, 4, 2, 8, 8, 1, seed=5), samplers.DDIM(1.0), twin_samplers.DDIM(1.0)
    grid, twin_grid = sampler.grid(process, 4, "even"), twin_sampler.grid(twin_process, 4, "even")
    walk = compiled(lambda denoise, x, noises: samplers.walk(denoise, sampler, x, lambda i: noises[i], grid, 5).frames)
    drawn = list(map(to_nchw, noises)).__getitem__
    with torch.no_grad():
        theirs = twin_samplers.walk(twin_denoise, twin_sampler, to_nchw(x), drawn, twin_grid, 5).frames
    for ours, wanted in zip(np.asarray(walk(denoise, x, noises)), theirs, strict=True):
        assert_close("trajectory", ours, to_nhwc(wanted))


def test_both_sides_refuse(pair):
    """A batch without what the network is shown, with what it is not shown, or with too little of it."""
    model, twin = pair("unet", "float32", **OPTIONS | {"num_classes": None}, condition_channels=2)
    plain, plain_twin = pair("unet", "float32", **OPTIONS | {"num_classes": None})
    process, twin_process = processes_of()
    x_0, shown = normal("float32", 2, 8, 8, 1) / 9, normal("float32", 2, 8, 8, 2)
    optimizer = optax.sgd(0.1)
    step, twin_step = make_step(process, optimizer), twin_training.make_step(twin_process)
    for ours, theirs, condition, message in (
        (model, twin, None, "needs .*condition"),
        (model, twin, shown[..., :1], "condition must be uint8 pixels or floats of .*got .*float32"),
        (model, twin, shown.astype(int), "condition must be uint8 pixels or floats of .*got .*int64"),
        (plain, plain_twin, shown, "condition_channels = 0; got one"),
    ):
        batch = {"x_0": x_0} | ({} if condition is None else {"condition": condition})
        with pytest.raises(UserError, match=message):
            step(create_state(ours, optimizer), batch, 0)
        state = twin_training.create_state(theirs, torch.optim.SGD(theirs.parameters(), lr=0.1))
        with pytest.raises(ValueError, match=message):
            twin_step(state, {name: to_nchw(array) for name, array in batch.items()}, torch.Generator())
    x_t, (t, twin_t) = np.concatenate([x_0, shown[..., :1]], axis=-1), indices([3, 4])
    with pytest.raises(UserError, match=r"takes 3 channels.*got 2"):
        model(jnp.asarray(x_t), t)
    with pytest.raises(UserError, match=r"got 1\. Show it the image: denoise.beside"):
        model(jnp.asarray(x_0), t)
    with pytest.raises(ValueError, match="must have 3 channels, 2 of a condition among them; got 2"):
        twin(to_nchw(x_t), twin_t)
    with pytest.raises(ValueError, match="condition_channels must not be negative; got -1"):
        twin_models.create("unet", condition_channels=-1)
