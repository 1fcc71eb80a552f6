"""Twenty updates of each of the five systems' networks, BatchNorm's statistics as explicit state, from the same start and draws."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from tolerances import assert_close
from twins import indices, make_pair, normal, to_nchw

from ddpm_jax import models, processes, schedules, weights
from ddpm_jax.compilation import jit
from ddpm_jax.presets import TrainConfig, system_of
from ddpm_jax.training import Examples, Update, create_state, make_optimizer
from ddpm_torch_ref import processes as twin_processes
from ddpm_torch_ref import schedules as twin_schedules
from ddpm_torch_ref import training as twin_training

UPDATES = 20
CONFIG = TrainConfig(lr=5e-5, grad_clip=None, ema_decay=0.9)
OPTIONS = {
    "mlp": {},
    "conv_net": {"dim": 16},
    "tiny_unet": {"image_size": 8},
    "double_conv_unet": {"dim": 4},
    "strided_unet_conditional": {},
    "annotated_unet": {"image_size": 8, "dim": 16, "dim_mults": (1, 2)},
    "convnext_unet": {"image_size": 16, "expansion": 1},
}


SLOW = {"double_conv_unet", "strided_unet_conditional", "tiny_unet", "annotated_unet", "convnext_unet"}
ROUNDING = 1e-5
"""A parameter whose gradients stay below this share of the network's largest holds nothing but rounding in float32."""


def update_of(process):
    """(state, examples) -> (state, metrics), compiled."""
    return jit(Update(process, make_optimizer(CONFIG), CONFIG.ema_decay).with_draws)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in OPTIONS]
)
def test_twenty_updates(name, dtype):
    """Losses, parameters, statistics and the average, in either precision.

    Adam makes every gradient as long as the learning rate, those that are all rounding included (a bias before a norm): in float32
    such a parameter may go anywhere within the twenty steps, and no further.
    """
    model, twin = make_pair(name, dtype, **OPTIONS[name])
    process = system_of(models.configure(name, {}))[0]
    twin_schedule = getattr(twin_schedules, process.schedule.name)(process.schedule.num_steps)
    twin_process = twin_processes.GaussianDiffusion(
        twin_schedule, process.prediction, process.loss, weighting=process.weighting
    )
    state = create_state(model, make_optimizer(CONFIG))
    twin_state = twin_training.create_state(twin, torch.optim.Adam(twin.parameters(), lr=CONFIG.lr))
    step, twin_update = update_of(process), twin_training.Update(twin_process, CONFIG.ema_decay)

    # at 16, the inmost BatchNorm of some would see one pixel of each image
    rng, batch, size = np.random.default_rng(0), 4 if name in SLOW else 8, OPTIONS[name].get("image_size", 32)
    shape = (batch, 2) if name == "mlp" else (batch, size, size, model.config.channels)
    first, last = process.schedule.timesteps[[0, -1]]
    for k in range(UPDATES):
        x_0, noise = normal(dtype, *shape, seed=2 * k), normal(dtype, *shape, seed=2 * k + 1)
        t, tt = indices(rng.integers(first, last + 1, batch))
        labels, tlabels = (
            indices(rng.integers(0, 10, batch)) if getattr(model.config, "num_classes", None) else (None,) * 2
        )
        state, metrics = step(state, Examples(jnp.asarray(x_0), jnp.asarray(noise), t, labels))
        tensors = map(torch.from_numpy if name == "mlp" else to_nchw, (x_0, noise))
        _, found = twin_update.with_draws(twin_state, twin_training.Examples(*tensors, tt, tlabels))
        assert_close("training", metrics["loss"], np.asarray(found["loss"], dtype), f"{name}: loss {k}")

    moments = {key: twin_state.optimizer.state[p]["exp_avg_sq"].sqrt().max() for key, p in twin.named_parameters()}
    rounding = {key for key, size in moments.items() if size < ROUNDING * max(moments.values())}
    assert len(rounding) < len(moments) / 2
    ours = weights.to_numpy(model, {"params": state.params, "batch_stats": state.batch_stats})
    averages = weights.to_numpy(model, {"params": state.ema_params})
    for what, arrays, theirs in (("", ours, twin), ("average of ", averages, twin_state.ema_model)):
        tensors = theirs.state_dict()
        for key, array in arrays.items():
            # a running mean takes in the bias before its norm
            if dtype == "float32" and (key in rounding or key.endswith("running_mean")):
                apart = np.abs(array - tensors[key].numpy()).max()
                assert apart <= 2 * UPDATES * CONFIG.lr, f"{what}{key}"
            else:
                assert_close("training", array, tensors[key], f"{name}: {what}{key}")
    assert any("running_mean" in key for key in ours) == bool(state.batch_stats)


@pytest.mark.parametrize("name", ["conv_net", "mlp"])
def test_a_whole_state_goes_to_pytorch_and_back(name):
    """Parameters, statistics, the average and both of Adam's moments, bit for bit."""
    model, _ = make_pair(name, "float32", **OPTIONS[name])
    state = create_state(model, make_optimizer(CONFIG))
    shape = (4, 2) if name == "mlp" else (4, 8, 8, 3)
    process = processes.GaussianDiffusion(schedules.linear(1000))
    step = update_of(process)
    x = jnp.asarray(normal("float32", *shape))
    for _ in range(2):
        state, _ = step(state, Examples(x, x[::-1], jnp.arange(4)))
    arrays = weights.state_to_numpy(model, state)
    fresh = create_state(model, make_optimizer(CONFIG))
    again = weights.state_to_numpy(model, weights.state_from_numpy(model, fresh, arrays))
    assert arrays.keys() == again.keys() and int(again["step"]) == 2
    for key, array in arrays.items():
        assert array.dtype == again[key].dtype and np.array_equal(array, again[key]), key
    assert np.abs(arrays[next(key for key in arrays if key.startswith("exp_avg_sq."))]).max() > 0
