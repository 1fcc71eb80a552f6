"""ddpm_jax.training.step against closed forms, on a network of one number."""

import dataclasses
import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from ddpm_jax import models, schedules
from ddpm_jax.presets import TrainConfig
from ddpm_jax.processes import GaussianDiffusion
from ddpm_jax.training import Examples, Update, create_state, learning_rate, make_optimizer, make_step


class Scale(nnx.Module):
    """(x_t, t) -> a * dropout(x_t)."""

    def __init__(self, *, rate=0.0, a=2.0, rngs):
        self.a = nnx.Param(jnp.array(a))
        self.dropout = nnx.Dropout(rate)

    def __call__(self, x_t, t, labels=None, *, rngs=None):
        return self.a[...] * self.dropout(x_t, rngs=rngs)


@dataclasses.dataclass(frozen=True)
class Bare(GaussianDiffusion):
    """No noise and no target: the loss of an example is the mean of what the network makes of it."""

    def loss_per_example(self, predict, x_0, noise, t):
        return predict(x_0, t).mean(axis=tuple(range(1, x_0.ndim)))


BARE = Bare(schedules.create("linear", 10))


def begun(model, config, process=BARE):
    """A state, and the step that changes it."""
    optimizer = make_optimizer(config)
    return create_state(model, optimizer), make_step(process, optimizer, ema=config.ema_decay, bounded=False)


def run_scale(config, steps, *, x_0=3.0, rate=0.0):
    """States and metrics of so many steps of Scale on images that are x_0 everywhere; d loss / d a = x_0."""
    state, step = begun(Scale(rate=rate, rngs=nnx.Rngs(0)), config)
    batch = {"x_0": np.full((4, 10, 10, 1), x_0, np.float32)}
    history = []
    for _ in range(steps):
        state, metrics = step(state, batch, jax.random.key(0))
        history.append(jax.tree.map(np.array, (state, metrics)))
    return history


def test_adam_loss_and_gradient():
    """The gradient is constant, so that every step of Adam is lr long; loss and norm are those before the step."""
    history = run_scale(TrainConfig(lr=0.25, grad_clip=None), 3)
    for k, (state, metrics) in enumerate(history):
        assert state.step == k + 1
        assert state.params["a"] == pytest.approx(2 - 0.25 * (k + 1), rel=1e-5)
        assert metrics["loss"] == pytest.approx(3 * (2 - 0.25 * k), rel=1e-5)
        assert metrics["grad_norm"] == pytest.approx(3, rel=1e-5)


@pytest.mark.parametrize(("clip", "seen"), [(None, 3.0), (0.5, 0.5), (100.0, 3.0)])
def test_gradients_are_clipped_before_adam(clip, seen):
    """Adam's first moment is a tenth of the clipped gradient; the metric shows the gradient as it was."""
    ((state, metrics),) = run_scale(TrainConfig(grad_clip=clip), 1)
    (adam,) = (part for part in jax.tree.leaves(state.opt_state, is_leaf=_is_adam) if _is_adam(part))
    assert adam.mu["a"] == pytest.approx(0.1 * seen, rel=1e-5)
    assert metrics["grad_norm"] == pytest.approx(3, rel=1e-5)


def _is_adam(node):
    return isinstance(node, optax.ScaleByAdamState)


def test_the_average_warms_up():
    """Decay (1 + k) / (10 + k) after k updates, until it reaches the config's: 1/10, 2/11, 3/12, then 0.3."""
    expected = 2.0
    decays = [1 / 10, 2 / 11, 3 / 12, 0.3, 0.3, 0.3]
    history = run_scale(TrainConfig(lr=0.25, ema_decay=0.3), len(decays))
    for (state, _), decay in zip(history, decays, strict=True):
        expected = decay * expected + (1 - decay) * float(state.params["a"])
        assert state.ema_params["a"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("config", "rates"),
    [
        (TrainConfig(lr=0.5), {0: 0.5, 7: 0.5, 10**6: 0.5}),
        (TrainConfig(lr=0.5, warmup_steps=10), {0: 0, 1: 0.05, 5: 0.25, 10: 0.5, 10**6: 0.5}),
        (
            TrainConfig(lr=0.5, steps=100, lr_decay="cosine"),
            {0: 0.5, 25: 0.25 * (1 + math.sqrt(0.5)), 50: 0.25, 100: 0},
        ),
        (
            TrainConfig(lr=0.5, steps=110, warmup_steps=10, lr_decay="cosine"),
            {0: 0, 5: 0.25, 10: 0.5, 60: 0.25, 85: 0.25 * (1 - math.sqrt(0.5)), 110: 0},
        ),
        (TrainConfig(lr=0.5, steps=100, lr_decay="cosine", lr_end=0.1), {0: 0.5, 50: 0.3, 100: 0.1, 10**6: 0.1}),
        (
            TrainConfig(lr=0.5, steps=None, epochs=4, epoch_steps=25, lr_decay="cosine_by_epoch", lr_end=0.1),
            {
                0: 0.5,
                24: 0.5,
                25: 0.3 + 0.2 * math.sqrt(0.5),
                49: 0.3 + 0.2 * math.sqrt(0.5),
                50: 0.3,
                74: 0.3,
                100: 0.1,
            },
        ),
    ],
)
def test_learning_rates(config, rates):
    rate = learning_rate(config)
    for step, expected in rates.items():
        assert float(rate(step)) == pytest.approx(expected, rel=1e-5, abs=1e-8)


def test_the_learning_rate_reaches_the_parameters():
    """The first step of a warm-up is 0 long, the next lr / 4, lr / 2, ..."""
    history = run_scale(TrainConfig(lr=0.4, warmup_steps=4), 6)
    moved = -np.diff([2.0, *(float(state.params["a"]) for state, _ in history)])
    np.testing.assert_allclose(moved, [0, 0.1, 0.2, 0.3, 0.4, 0.4], atol=1e-5)


@pytest.mark.parametrize("x_0", [3.0, -0.2])
def test_adam_is_forgotten_at_every_epoch(x_0):
    """With gradients that rise by a half in each step Adam's step differs by age; every second one is a first step again."""
    config = TrainConfig(lr=0.1, grad_clip=None, reset_optimizer=True, epoch_steps=2)
    sizes = {}
    for reset in (True, False):
        state, step = begun(Scale(rngs=nnx.Rngs(0)), replace(config, reset_optimizer=reset))
        before, sizes[reset] = 2.0, []
        for k in range(6):
            state, _ = step(state, jnp.full((4, 10, 10, 1), x_0 * 1.5**k), 0)
            sizes[reset].append(before - float(state.params["a"]))
            before = float(state.params["a"])
    np.testing.assert_allclose(sizes[True][::2], 0.1 * np.sign(x_0), rtol=1e-4)  # a first step is as long as the rate
    np.testing.assert_allclose(sizes[True][1::2], sizes[True][1], rtol=1e-4)
    assert abs(sizes[False][2] / 0.1) != pytest.approx(1, rel=1e-2)


def test_several_steps_in_one_call_are_the_same_steps():
    config, model = TrainConfig(lr=0.1, ema_decay=0.5), Scale(rate=0.3, rngs=nnx.Rngs(0))
    batches = {"x_0": np.random.default_rng(0).normal(size=(5, 4, 3, 3, 1)).astype(np.float32)}
    state, step = begun(model, config)
    together, metrics = step.many(state, batches, jax.random.key(1))
    state, losses = create_state(model, step.update.optimizer), []
    for k in range(5):
        state, found = step(state, {"x_0": batches["x_0"][k]}, jax.random.key(1))
        losses.append(float(found["loss"]))
    assert int(together.step) == 5
    np.testing.assert_allclose(metrics["loss"], losses, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), together, state)


def test_a_network_outlives_the_steps_that_start_from_it():
    model = Scale(rngs=nnx.Rngs(0))
    before = jax.tree.map(np.array, models.split(model)[1])
    state, step = begun(model, TrainConfig(lr=0.1))
    denoise = state.denoiser(BARE)
    believed = np.asarray(denoise(jnp.ones((1, 3, 3, 1)), 0).eps)
    step(state, np.ones((4, 3, 3, 1), np.float32), 0)
    np.testing.assert_array_equal(denoise(jnp.ones((1, 3, 3, 1)), 0).eps, believed)
    jax.tree.map(np.testing.assert_array_equal, models.split(model)[1], before)


def test_dropout_is_drawn_anew_at_every_step():
    """The loss is a times the share of pixels kept, over 1 - rate; that share changes and its mean is right."""
    config = TrainConfig(lr=1e-30)
    losses = np.array([metrics["loss"] for _, metrics in run_scale(config, 20, x_0=1.0, rate=0.25)])
    kept = losses / 2 * 0.75 * 400
    np.testing.assert_allclose(kept, np.rint(kept), atol=0.01)  # whole pixels
    assert len(set(np.rint(kept))) > 10
    assert abs(losses.mean() / 2 - 1) < 4 * math.sqrt(0.25 / 0.75 / 400 / 20)
    again = [metrics["loss"] for _, metrics in run_scale(config, 20, x_0=1.0, rate=0.25)]
    np.testing.assert_array_equal(losses, again)


def test_noise_and_times_differ_by_step_and_by_seed():
    """With the network at 0 the loss is the mean square of the noise itself."""
    config, process = TrainConfig(lr=1e-30), GaussianDiffusion(schedules.create("linear", 10))
    losses = []
    for seed in (0, 1):
        state, step = begun(Scale(a=0.0, rngs=nnx.Rngs(0)), config, process)
        for _ in range(3):
            state, metrics = step(state, np.zeros((4, 10, 10, 1), np.float32), jax.random.key(seed))
            losses.append(float(metrics["loss"]))
    assert len(set(losses)) == 6
    np.testing.assert_allclose(losses, 1, atol=5 * math.sqrt(2 / 400))


def test_compute_dtype_leaves_the_state_alone():
    """Everything kept stays in float32; in bfloat16 the product 3 * 1.001 falls on the grid of 2^-6 numbers between 2 and 4."""
    update = Update(BARE, optax.adam(1e-30), dtype=jnp.bfloat16)
    state, x_0 = create_state(Scale(a=1.001, rngs=nnx.Rngs(0)), update.optimizer), jnp.full((4, 2, 2, 1), 3.0)
    state, metrics = jax.jit(update.with_draws)(state, Examples(x_0, x_0, jnp.zeros(4, jnp.int32)))
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype("float32"), jnp.dtype("int32")}
    assert metrics["loss"] == 3.0 and metrics["loss"].dtype == jnp.float32
    assert state.params["a"] == np.float32(1.001)
