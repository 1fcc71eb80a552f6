"""Twenty updates from the same start, on the same batches, times and noise: everything that an update changes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from precisions import FLOAT32_SLOWLY
from tolerances import assert_close
from twins import SMALL, compiled, indices, normal, to_nchw

from ddpm_jax import processes, schedules, weights
from ddpm_jax.presets import TrainConfig
from ddpm_jax.training import Examples, Update, averages, create_state, learning_rate, make_optimizer
from ddpm_torch_ref import processes as twin_processes
from ddpm_torch_ref import schedules as twin_schedules
from ddpm_torch_ref import training as twin_training
from ddpm_torch_ref.training import averages as twin_averages

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


@FLOAT32_SLOWLY
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
        ours = [float(averages.decays(jnp.asarray(step, jnp.int32), decay)[0]) for step in counts]
        reference = [twin_averages.decays(int(step), decay)[0] for step in counts]
        assert_close("schedule", ours, reference, "decay of the average")


LENGTHS = [0.28, 0.2, 0.1, 0.05, 0.01]


def test_averages_by_powers():
    """Exponents, decays and shares; profiles of hundreds of thousands of steps too."""
    for length in LENGTHS:
        assert averages.exponent(length) == pytest.approx(twin_averages.exponent(length), rel=1e-10, abs=1e-12)
    for step in (0, 1, 7, 10**6):
        ours = [float(kept) for kept in averages.decays(jnp.asarray(step, jnp.int32), LENGTHS)]
        assert_close("schedule", ours, twin_averages.decays(step, LENGTHS), f"after {step} steps")
    for scale in (1, 10**5):
        kept = [(scale * step, length) for step in (2, 4, 6, 8) for length in (0.05, 0.1)]
        ours, apart = averages.shares(kept, 8 * scale, 0.07)
        reference, other = twin_averages.shares(kept, 8 * scale, 0.07)
        np.testing.assert_allclose(ours, reference, rtol=1e-6, atol=1e-8)
        assert apart == pytest.approx(other, rel=1e-5) and 0 < apart < 0.1
    assert averages.overlap((3, 0.1), (8, 0.05)) == pytest.approx(twin_averages.overlap((3, 0.1), (8, 0.05)), rel=1e-12)


def test_an_update_that_keeps_two_averages(pair):
    model, twin = pair("mlp", "float64", dim=8)
    process = processes.GaussianDiffusion(schedules.linear(1000))
    twin_process = twin_processes.GaussianDiffusion(twin_schedules.linear(1000))
    optimizer, lengths = make_optimizer(TrainConfig(steps=5, lr=1e-2, grad_clip=None)), (0.05, 0.2)
    update = compiled(Update(process, optimizer, lengths).with_draws)
    state = create_state(model, optimizer, ema=lengths)
    twin_state = twin_training.create_state(twin, torch.optim.Adam(twin.parameters(), lr=1e-2), ema=lengths)
    twin_update = twin_training.Update(twin_process, lengths)
    for k in range(4):
        x_0, noise = normal("float64", 5, 2, seed=2 * k), normal("float64", 5, 2, seed=2 * k + 1)
        t, tt = indices(np.arange(5) * 200)
        state, _ = update(state, Examples(jnp.asarray(x_0), jnp.asarray(noise), t))
        twin_update.with_draws(twin_state, twin_training.Examples(*map(torch.from_numpy, (x_0, noise)), tt))
    pairs = [(state.ema_params, twin_state.ema_model), (state.averages[0], twin_state.averages[0])]
    for which, (ours, theirs) in enumerate(pairs):
        for name, (one, two) in by_name(model, ours, dict(theirs.named_parameters())).items():
            assert_close("training", one, two, f"average {which}: {name}")
