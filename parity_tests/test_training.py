"""Twenty updates from the same start, on the same batches, times and noise: everything that an update changes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import assert_close
from twins import SMALL, compiled, indices, normal, to_nchw

from ddpm_jax import processes, schedules, weights
from ddpm_jax.presets import TrainConfig
from ddpm_jax.training import Examples, Update, create_state, learning_rate, make_optimizer
from ddpm_jax.training.update import ema_decay
from ddpm_torch_ref import processes as twin_processes
from ddpm_torch_ref import schedules as twin_schedules
from ddpm_torch_ref import training as twin_training
from ddpm_torch_ref.training.update import ema_decay as twin_ema_decay

UPDATES = 20
NEVER, ALWAYS = 1e6, 0.5  # limits on the gradients' norm that no gradient here reaches, and that all of them exceed

RUNS = {
    "not clipped": (TrainConfig(steps=UPDATES, lr=1e-3, grad_clip=None, ema_decay=0.5), "eps", "mse"),
    "never clipped": (
        TrainConfig(steps=UPDATES, lr=2e-3, warmup_steps=4, grad_clip=NEVER, ema_decay=0.9999),
        "v",
        "huber",
    ),
    "always clipped": (
        TrainConfig(steps=UPDATES, lr=1e-3, warmup_steps=5, lr_decay="cosine", grad_clip=ALWAYS, ema_decay=0.5),
        "eps",
        "mse",
    ),
}


def twin_rate(config):
    decay_steps = None if config.lr_decay == "constant" else config.total_steps
    epoch_steps = config.epoch_steps if config.lr_decay == "cosine_by_epoch" else 1
    options = {"end": config.lr_end, "epoch_steps": epoch_steps}
    return twin_training.learning_rate(config.lr, config.warmup_steps, decay_steps, **options)


def by_name(model, tree, source):
    """{name: (ours, the twin's)} of a tree of parameters, their average or Adam's moments."""
    ours = weights.to_torch(model, {"params": tree})
    assert ours.keys() == source.keys()
    return {name: (ours[name], source[name]) for name in ours}


@pytest.mark.parametrize(
    "run", [pytest.param(run, marks=() if run == "always clipped" else pytest.mark.slow) for run in RUNS]
)
def test_twenty_updates(pair, dtype, run):
    config, prediction, loss = RUNS[run]
    model, twin = pair("unet", dtype, **SMALL, num_classes=3)
    process = processes.GaussianDiffusion(schedules.cosine(1000), prediction, loss)
    twin_process = twin_processes.GaussianDiffusion(twin_schedules.cosine(1000), prediction, loss)
    state = create_state(model, make_optimizer(config))
    twin_optimizer = twin_training.make_optimizer(twin.parameters(), twin_rate(config))
    twin_state = twin_training.create_state(twin, twin_optimizer)
    update = compiled(Update(process, make_optimizer(config), config.ema_decay).with_draws)
    twin_update = twin_training.Update(twin_process, config.ema_decay, grad_clip=config.grad_clip)

    rng = np.random.default_rng(0)
    norms = []
    for k in range(UPDATES):
        x_0, noise = normal(dtype, 4, 8, 8, 3, seed=2 * k), normal(dtype, 4, 8, 8, 3, seed=2 * k + 1)
        (t, tt), (labels, tlabels) = indices(rng.integers(0, 1000, 4)), indices(rng.integers(0, 3, 4))
        x, z = jnp.asarray(x_0), jnp.asarray(noise)
        state, metrics = update(state, Examples(x, z, t, labels))
        twin_examples = twin_training.Examples(to_nchw(x_0), to_nchw(noise), tt, tlabels)
        _, twin_metrics = twin_update.with_draws(twin_state, twin_examples)
        for name in ("loss", "grad_norm"):
            assert_close("training", metrics[name], np.asarray(twin_metrics[name], dtype), f"{run}: {name} {k}")
        norms.append(twin_metrics["grad_norm"])
        trees = {"params": (state.params, twin), "average": (state.ema_params, twin_state.ema_model)}
        for what, (tree, module) in trees.items():
            for name, (ours, reference) in by_name(model, tree, dict(module.named_parameters())).items():
                assert_close("training", ours, reference, f"{run}: {what} {name} {k}")

    assert int(state.step) == twin_state.step == UPDATES
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(state)} == {dtype, "int32"}
    for ours_name, twin_name in (("mu", "exp_avg"), ("nu", "exp_avg_sq")):
        moments = {name: twin_state.optimizer.state[p][twin_name] for name, p in twin.named_parameters()}
        tree = optax.tree.get(state.opt_state, ours_name)
        for name, (ours, reference) in by_name(model, tree, moments).items():
            assert_close("training", ours, reference, f"{run}: {ours_name} {name}")
    if config.grad_clip is not None:
        assert min(norms) > ALWAYS if config.grad_clip == ALWAYS else max(norms) < NEVER
    moved = by_name(model, state.params, dict(twin_state.ema_model.named_parameters()))
    assert all((average != trained).any() for trained, average in moved.values())


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_learning_rate(data):
    total = data.draw(st.integers(1, 300))
    decay = data.draw(st.sampled_from(["constant", "cosine", "cosine_by_epoch"]))
    warmup = data.draw(st.integers(0, {"constant": 2 * total, "cosine": total - 1, "cosine_by_epoch": 0}[decay]))
    options = {"lr_end": data.draw(st.sampled_from([0.0, 1e-5])), "epoch_steps": data.draw(st.integers(1, total))}
    config = TrainConfig(steps=total, lr=3e-4, warmup_steps=warmup, lr_decay=decay, **options)
    rate = learning_rate(config)
    ours = np.array([float(rate(jnp.asarray(step, jnp.int32))) for step in range(0, total + 3, 1 + total // 20)])
    reference = np.array([twin_rate(config)(step) for step in range(0, total + 3, 1 + total // 20)])
    assert_close("schedule", ours, reference, f"learning rate, {decay}")


def test_an_optimiser_for_every_epoch(pair):
    """Adam forgotten every third step, on either side."""
    config = TrainConfig(lr=1e-3, grad_clip=None, reset_optimizer=True, epoch_steps=3)
    model, twin = pair("mlp", "float64", dim=8)
    process = processes.GaussianDiffusion(schedules.linear(1000))
    twin_process = twin_processes.GaussianDiffusion(twin_schedules.linear(1000))
    state = create_state(model, make_optimizer(config))
    twin_optimizer = twin_training.make_optimizer(twin.parameters(), twin_rate(config), epoch_steps=3)
    twin_state = twin_training.create_state(twin, twin_optimizer)
    update = compiled(Update(process, make_optimizer(config), config.ema_decay).with_draws)
    twin_update = twin_training.Update(twin_process, config.ema_decay)
    for k in range(8):
        x_0, noise = normal("float64", 5, 2, seed=2 * k), normal("float64", 5, 2, seed=2 * k + 1)
        t, tt = indices(np.arange(5) * 200)
        state, _ = update(state, Examples(jnp.asarray(x_0), jnp.asarray(noise), t))
        twin_update.with_draws(twin_state, twin_training.Examples(*map(torch.from_numpy, (x_0, noise)), tt))
    for name, (ours, reference) in by_name(model, state.params, dict(twin.named_parameters())).items():
        assert_close("training", ours, reference, f"an optimiser for every epoch: {name}")


def test_decay_of_the_average():
    counts = np.unique(np.geomspace(1, 1e6, 40).astype(int)) - 1
    for decay in (0.0, 0.5, 0.995, 0.9999):
        ours = [float(ema_decay(jnp.asarray(step, jnp.int32), decay)) for step in counts]
        reference = [twin_ema_decay(int(step), decay) for step in counts]
        assert_close("schedule", ours, reference, "decay of the average")
