"""One training step: a pure function (state, batch) -> (state, metrics), compiled once with the state donated."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from ddpm_jax import models, parallel
from ddpm_jax.parallel import ALONE, Layout
from ddpm_jax.presets import TrainConfig
from ddpm_jax.processes import GaussianDiffusion, Process
from ddpm_jax.training import loss_aware
from ddpm_jax.training.state import TrainState


def learning_rate(config: TrainConfig) -> optax.Schedule:
    """Number of updates done -> learning rate: linear warm-up from 0, then constant, or along a cosine to lr_end.

    The cosine (Loshchilov & Hutter 2017, eq. 5, without restarts) ends at the last step; by epoch, it is looked up at the
    beginning of each epoch and stays there to its end.
    """
    if config.lr_decay == "constant":
        warmup = optax.linear_schedule(0.0, config.lr, config.warmup_steps)
        rate = warmup if config.warmup_steps else optax.constant_schedule(config.lr)
    else:
        rate = optax.warmup_cosine_decay_schedule(
            0.0, config.lr, config.warmup_steps, config.total_steps, end_value=config.lr_end
        )
    # how far the cosine is held back
    stride = config.steps_in_epoch if config.lr_decay == "cosine_by_epoch" else 1
    # a quotient of int32s is float32 even where float64 is in use
    return lambda count: rate(jnp.asarray(count // stride * stride, float))


def make_optimizer(config: TrainConfig) -> optax.GradientTransformation:
    """Adam (Kingma & Ba 2015), on gradients whose joint norm is clipped where the config asks for it."""
    clip = optax.identity() if config.grad_clip is None else optax.clip_by_global_norm(config.grad_clip)
    return optax.chain(clip, optax.adam(learning_rate(config)))


def ema_decay(step: jax.Array, decay: float) -> jax.Array:
    """The average's decay after `step` updates: warms up as (1 + step) / (10 + step), at most `decay`."""
    step = jnp.asarray(step, float)  # a quotient of int32s would be float32 even where float64 is in use
    return jnp.minimum(decay, (1 + step) / (10 + step))


def updates_done(state: TrainState) -> int:
    """How often the optimiser has moved the parameters: the steps done, less those that were skipped."""
    return int(optax.tree.get(state.opt_state, "count", filtering=_counts_the_rate))


def _counts_the_rate(path: Any, _: Any) -> bool:
    return getattr(path[-1], "tuple_name", None) == "ScaleByScheduleState"


@dataclass(frozen=True)
class Inputs:
    """What a network is shown besides x_t, t and its label."""

    null_label: int | None = None
    """The class that stands for none where labels are dropped."""
    self_conditioned: bool = False
    """Whether an estimate of x_0, or zeros, follows x_t's own channels."""


def update(
    state: TrainState,
    x_0: jax.Array,
    noise: jax.Array,
    t: jax.Array,
    labels: jax.Array | None,
    key: jax.Array | None,
    weights: jax.Array | None = None,
    guess: jax.Array | None = None,
    *,
    graphdef: nnx.GraphDef,
    process: Process,
    config: TrainConfig,
    layout: Layout = ALONE,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """The step with every draw given: x_0, noise (B, ...), t (B,); key: dropout's. Returns loss and grad_norm as metrics.

    weights: (B,) of the examples' losses, None for ones. guess: for a self-conditioned network, a boolean scalar: whether it is
    shown its own estimate of x_0, found without one and without gradient (Chen et al. 2023, section 3.2), or zeros. Gradients,
    Adam's moments and the average stay in the dtype of the parameters; the network computes in config.dtype. Where the loss or the
    norm is not finite and config.on_nonfinite is "skip", the state stays as it was but for its step, which counts on.
    """
    options: Any = {"graphdef": graphdef, "process": process, "config": config, "layout": layout}
    losses, grads, batch_stats = gradients(state, x_0, noise, t, labels, key, weights, guess, **options)
    grads, batch_stats = layout.mean((grads, batch_stats))
    losses, t, weights = layout.every((losses, t, weights))
    new = layout.as_state(apply_gradients(state, grads, batch_stats, config))
    if state.loss_history is not None:
        assert isinstance(process, GaussianDiffusion)
        history = loss_aware.record(state.loss_history, t - process.schedule.first, losses)
        new = dataclasses.replace(new, loss_history=history)
    loss = (losses if weights is None else weights * losses).mean()
    grad_norm = optax.tree.norm(grads)
    if config.on_nonfinite == "skip":
        sound = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        unchanged = dataclasses.replace(state, step=new.step)
        new = jax.tree.map(lambda after, before: jnp.where(sound, after, before), new, unchanged)
    return new, {"loss": loss, "grad_norm": grad_norm}


def gradients(
    state: TrainState,
    x_0: jax.Array,
    noise: jax.Array,
    t: jax.Array,
    labels: jax.Array | None,
    key: jax.Array | None,
    weights: jax.Array | None = None,
    guess: jax.Array | None = None,
    *,
    graphdef: nnx.GraphDef,
    process: Process,
    config: TrainConfig,
    layout: Layout = ALONE,
) -> tuple[jax.Array, Any, Any]:
    """The first half of `update`: losses (B,), the gradients of their (weighted) mean by parameter, and the running statistics
    after the batch.

    With config.accumulate, the batch is gone through in that many parts: BatchNorm sees each of them alone, and dropout's masks
    are others; everything else is the same.
    """
    options: Any = {"graphdef": graphdef, "process": process, "config": config, "layout": layout}
    parts = config.accumulate
    if parts == 1:
        return _gradients_of_part(state, x_0, noise, t, labels, key, weights, guess, **options)

    def cut(a):  # every parts-th example, so that each device keeps its own
        return layout.spread(a.reshape(-1, parts, *a.shape[1:]).swapaxes(0, 1), axis=1)

    def add(carry, part):
        total, batch_stats = carry
        index, (x_0, noise, t, labels, weights) = part
        part_key = None if key is None else jax.random.fold_in(key, index)
        before = dataclasses.replace(state, batch_stats=batch_stats)
        losses, grads, batch_stats = _gradients_of_part(
            before, x_0, noise, t, labels, part_key, weights, guess, **options
        )
        return (layout.as_state(jax.tree.map(jnp.add, total, grads)), batch_stats), losses

    start = layout.as_state(jax.tree.map(jnp.zeros_like, state.params)), state.batch_stats
    each = jax.tree.map(cut, (x_0, noise, t, labels, weights))
    (total, batch_stats), losses = jax.lax.scan(add, start, (jnp.arange(parts), each))
    return losses.T.reshape(-1), jax.tree.map(lambda g: g / parts, total), batch_stats


def _gradients_of_part(
    state: TrainState,
    x_0: jax.Array,
    noise: jax.Array,
    t: jax.Array,
    labels: jax.Array | None,
    key: jax.Array | None,
    weights: jax.Array | None,
    guess: jax.Array | None,
    *,
    graphdef: nnx.GraphDef,
    process: Process,
    config: TrainConfig,
    layout: Layout,
) -> tuple[jax.Array, Any, Any]:
    dtype = None if config.dtype == "float32" else jnp.dtype(config.dtype)

    def mean_loss(params):
        params = layout.whole(params)
        batch_stats = state.batch_stats

        def call(x, time):
            variables = {"params": params, "batch_stats": state.batch_stats}
            return models.apply(graphdef, variables, x, time, labels, key=key, dtype=dtype)

        def predict(x_t, time):
            nonlocal batch_stats
            if guess is not None:
                nothing = jnp.zeros_like(x_t)

                def first_guess():
                    output, _ = call(jnp.concatenate([x_t, nothing], axis=-1), time)
                    return jax.lax.stop_gradient(process.estimate(x_t, output, t).x_0)

                x_t = jnp.concatenate([x_t, jax.lax.cond(guess, first_guess, lambda: nothing)], axis=-1)
            output, batch_stats = call(x_t, time)
            return output

        losses = process.loss_per_example(predict, x_0, noise, t)
        return (losses if weights is None else weights * losses).mean(), (losses, batch_stats)

    (_, (losses, batch_stats)), grads = jax.value_and_grad(mean_loss, has_aux=True)(state.params)
    return losses, grads, batch_stats


def apply_gradients(state: TrainState, grads: Any, batch_stats: Any, config: TrainConfig) -> TrainState:
    """The second half of `update`: the state after one step of the optimiser and of the average."""
    opt_state = state.opt_state
    if config.reset_optimizer:
        opt_state = _forget(opt_state, state.step % config.steps_in_epoch == 0)
    updates, opt_state = make_optimizer(config).update(grads, opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    decay = ema_decay(state.step, config.ema_decay)
    ema_params = jax.tree.map(lambda e, p: (decay * e + (1 - decay) * p).astype(e.dtype), state.ema_params, params)
    return TrainState(state.step + 1, params, batch_stats, ema_params, opt_state, state.loss_history)


def _forget(opt_state: optax.OptState, when: jax.Array) -> optax.OptState:
    """Adam's moments and its count of steps as at the start, `when` that is asked for; the learning rate goes on."""

    def cleared(part):
        return jax.tree.map(lambda a: jnp.where(when, 0, a).astype(a.dtype), part) if is_adam(part) else part

    def is_adam(part):
        return isinstance(part, optax.ScaleByAdamState)

    return jax.tree.map(cleared, opt_state, is_leaf=is_adam)


def draw_and_update(
    state: TrainState,
    batch: dict[str, jax.Array],
    key: jax.Array,
    *,
    process: Process,
    config: TrainConfig,
    inputs: Inputs = Inputs(),
    layout: Layout = ALONE,
    **static: Any,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """`update` with everything drawn from the run's key folded with the step, so that a resumed run draws the same.

    batch: "x_0" (B, H, W, C) or (B, 2) and, for a conditional network, "label" (B,). What is drawn does not depend on the layout,
    but for dropout's masks under pmap.
    """
    key = jax.random.fold_in(key, state.step)
    times, noise, dropout = jax.random.split(key, 3)
    x_0, labels = batch["x_0"], batch.get("label")
    size = x_0.shape[0] * layout.programs
    weights = guess = None
    if state.loss_history is None:
        t = process.draw_times(times, size)
    else:
        assert isinstance(process, GaussianDiffusion)
        index, weights = loss_aware.draw(state.loss_history, times, size)
        t = process.schedule.first + index
    if labels is not None and config.label_dropout:
        hidden = layout.share(jax.random.bernoulli(jax.random.fold_in(key, 0), config.label_dropout, (size,)))
        assert inputs.null_label is not None  # a run with dropout has one
        labels = jnp.where(hidden, inputs.null_label, labels)
    if inputs.self_conditioned:
        guess = jax.random.bernoulli(jax.random.fold_in(key, 1))
    noise = jax.random.normal(noise, (size, *x_0.shape[1:]))
    noise, t, weights = layout.share((noise, t, weights))
    options: Any = {"process": process, "config": config, "layout": layout, **static}
    return update(state, x_0, noise, t, labels, layout.own_key(dropout), weights, guess, **options)


def draw_and_update_all(
    state: TrainState, batches: dict[str, jax.Array], key: jax.Array, **static: Any
) -> tuple[TrainState, dict[str, jax.Array]]:
    """`draw_and_update` for each of the batches stacked along a first axis K; so are the metrics, (K,)."""
    return jax.lax.scan(lambda state, batch: draw_and_update(state, batch, key, **static), state, batches)


_STATIC = ("graphdef", "process", "config", "inputs")
train_step = parallel.compiled(
    draw_and_update, _STATIC, donate=True, in_batch=(False, True, False), out_axes=(None, None)
)
"""The compiled step: train_step(state, batch, key, graphdef=…, process=…, config=…, inputs=Inputs(), layout=ALONE) -> (state,
metrics); state is consumed.
"""
train_steps = parallel.compiled(
    draw_and_update_all, _STATIC, donate=True, in_batch=(False, True, False), batch_axis=1, out_axes=(None, None)
)
"""Several steps in one compiled call: what pays where a step takes no longer than its dispatch."""
