"""Twenty updates of each of the five systems' networks, BatchNorm's statistics as explicit state, from the same start and draws."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from tolerances import assert_close
from twins import make_pair, normal

from ddpm_jax import processes, schedules, verify, weights
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


class Both:
    """One network's training in both frameworks, and what each step is given."""

    def __init__(self, name, dtype):
        self.model, self.twin = make_pair(name, dtype, **OPTIONS[name])
        process = system_of(self.model.config)[0]
        twin_schedule = getattr(twin_schedules, process.schedule.name)(process.schedule.num_steps)
        twin_process = twin_processes.GaussianDiffusion(
            twin_schedule, process.prediction, process.loss, weighting=process.weighting
        )
        self.state = create_state(self.model, make_optimizer(CONFIG))
        self.twin_state = twin_training.create_state(self.twin, torch.optim.Adam(self.twin.parameters(), lr=CONFIG.lr))
        self.update, self.twin_update = update_of(process), twin_training.Update(twin_process, CONFIG.ema_decay)
        # at 16, the inmost BatchNorm of some would see one pixel of each image
        rng, batch, size = np.random.default_rng(0), 4 if name in SLOW else 8, OPTIONS[name].get("image_size", 32)
        shape = (batch, 2) if name == "mlp" else (batch, size, size, self.model.config.channels)
        first, last = process.schedule.timesteps[[0, -1]]
        self.batches = []
        for k in range(UPDATES):
            x_0, noise = (normal(dtype, *shape, seed=2 * k + part) for part in range(2))
            t = rng.integers(first, last + 1, batch)
            labels = rng.integers(0, 10, batch) if getattr(self.model.config, "num_classes", None) else None
            self.batches.append((x_0, noise, t) if labels is None else (x_0, noise, t, labels))
        self.twin_batches = [tuple(np.moveaxis(a, -1, 1) if a.ndim == 4 else a for a in b) for b in self.batches]

    def step(self, state, *drawn):
        state, metrics = self.update(state, Examples(*map(jnp.asarray, drawn)))
        return state, metrics["loss"]

    def twin_step(self, *drawn):
        return self.twin_update.with_draws(self.twin_state, twin_training.Examples(*map(torch.as_tensor, drawn)))[1][
            "loss"
        ]


def each_system(test):
    slow = [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in OPTIONS]
    return pytest.mark.parametrize("name", slow)(test)


@each_system
def test_twenty_updates(name):
    """In lockstep, by the comparison that strangers' trainings go through."""
    both = Both(name, "float64")
    report = verify.compare_training(
        verify.JaxTraining.of_step(both.step, both.state, model=both.model),
        verify.TorchTraining.of_step(
            both.twin_step, both.twin, both.twin_state.optimizer, ema=both.twin_state.ema_model
        ),
        both.batches,
        torch_batches=both.twin_batches,
        steps=UPDATES,
    )
    assert report.ok, report.table()
    seen = {row.stage.partition(" ")[2].partition(" ")[2] for row in report.rows}
    always = {"data", "loss", "first moment", "second moment", "learning rate", "weight decay", "update", "average"}
    assert seen == always | ({"statistics"} if both.state.batch_stats else set())


@each_system
def test_twenty_updates_in_float32(name):
    """Losses, parameters, statistics and the average.

    Adam makes every gradient as long as the learning rate, those that are all rounding included (a bias before a norm): such a
    parameter may go anywhere within the twenty steps, and no further.
    """
    both, dtype = Both(name, "float32"), "float32"
    state, twin, twin_state = both.state, both.twin, both.twin_state
    for k, (drawn, twin_drawn) in enumerate(zip(both.batches, both.twin_batches, strict=True)):
        state, loss = both.step(state, *drawn)
        assert_close("training", loss, np.asarray(both.twin_step(*twin_drawn), dtype), f"{name}: loss {k}")

    moments = {key: twin_state.optimizer.state[p]["exp_avg_sq"].sqrt().max() for key, p in twin.named_parameters()}
    rounding = {key for key, size in moments.items() if size < ROUNDING * max(moments.values())}
    assert len(rounding) < len(moments) / 2
    ours = weights.to_numpy(both.model, {"params": state.params, "batch_stats": state.batch_stats})
    averages = weights.to_numpy(both.model, {"params": state.ema_params})
    for what, arrays, theirs in (("", ours, twin), ("average of ", averages, twin_state.ema_model)):
        tensors = theirs.state_dict()
        for key, array in arrays.items():
            # a running mean takes in the bias before its norm
            if key in rounding or key.endswith("running_mean"):
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
