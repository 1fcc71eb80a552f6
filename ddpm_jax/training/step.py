"""One training step: a pure function (state, batch) -> (state, metrics), compiled once with the state donated."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from ddpm_jax import models
from ddpm_jax.compilation import jit
from ddpm_jax.presets import TrainConfig
from ddpm_jax.processes import GaussianDiffusion
from ddpm_jax.training.state import TrainState


def learning_rate(config: TrainConfig) -> optax.Schedule:
    """Number of updates done -> learning rate: linear warm-up from 0, then constant, or a cosine down to 0 at the last step."""
    if config.lr_decay == "cosine":
        rate = optax.warmup_cosine_decay_schedule(0.0, config.lr, config.warmup_steps, max(config.steps, 1))
    elif config.warmup_steps:
        rate = optax.linear_schedule(0.0, config.lr, config.warmup_steps)
    else:
        rate = optax.constant_schedule(config.lr)
    return lambda count: rate(jnp.asarray(count, float))  # a quotient of int32s is float32 even where float64 is in use


def make_optimizer(config: TrainConfig) -> optax.GradientTransformation:
    """Adam (Kingma & Ba 2015), on gradients whose joint norm is clipped where the config asks for it."""
    clip = optax.identity() if config.grad_clip is None else optax.clip_by_global_norm(config.grad_clip)
    return optax.chain(clip, optax.adam(learning_rate(config)))


def ema_decay(step: jax.Array, decay: float) -> jax.Array:
    """The average's decay after `step` updates: warms up as (1 + step) / (10 + step), at most `decay`."""
    step = jnp.asarray(step, float)  # a quotient of int32s would be float32 even where float64 is in use
    return jnp.minimum(decay, (1 + step) / (10 + step))


def update(
    state: TrainState,
    x_0: jax.Array,
    noise: jax.Array,
    t: jax.Array,
    labels: jax.Array | None,
    key: jax.Array | None,
    *,
    graphdef: nnx.GraphDef,
    process: GaussianDiffusion,
    config: TrainConfig,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """The step with every draw given: x_0, noise (B, ...), t (B,); key: dropout's. Returns loss and grad_norm as metrics.

    Gradients, Adam's moments and the average stay in the dtype of the parameters; the network computes in config.dtype.
    """
    dtype = None if config.dtype == "float32" else jnp.dtype(config.dtype)

    def mean_loss(params):
        batch_stats = state.batch_stats

        def predict(x_t, t):
            nonlocal batch_stats
            variables = {"params": params, "batch_stats": batch_stats}
            output, batch_stats = models.apply(graphdef, variables, x_t, t, labels, key=key, dtype=dtype)
            return output

        return process.loss_per_example(predict, x_0, noise, t).mean(), batch_stats

    (loss, batch_stats), grads = jax.value_and_grad(mean_loss, has_aux=True)(state.params)
    updates, opt_state = make_optimizer(config).update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    decay = ema_decay(state.step, config.ema_decay)
    ema_params = jax.tree.map(lambda e, p: (decay * e + (1 - decay) * p).astype(e.dtype), state.ema_params, params)
    metrics = {"loss": loss, "grad_norm": optax.tree.norm(grads)}
    return TrainState(state.step + 1, params, batch_stats, ema_params, opt_state), metrics


def draw_and_update(
    state: TrainState, batch: dict[str, jax.Array], key: jax.Array, **static: Any
) -> tuple[TrainState, dict[str, jax.Array]]:
    """`update` with times and noise drawn from the run's key folded with the step, so that a resumed run draws the same.

    batch: "image" (B, H, W, C) in [-1, 1] and, for a conditional network, "label" (B,).
    """
    times, noise, dropout = jax.random.split(jax.random.fold_in(key, state.step), 3)
    x_0 = batch["image"]
    t = static["process"].draw_times(times, x_0.shape[0])
    return update(state, x_0, jax.random.normal(noise, x_0.shape), t, batch.get("label"), dropout, **static)


train_step = jit(draw_and_update, static_argnames=("graphdef", "process", "config"), donate_argnums=0)
"""The compiled step: train_step(state, batch, key, graphdef=…, process=…, config=…) -> (state, metrics); state is consumed."""
