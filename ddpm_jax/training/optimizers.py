"""The optimiser that a config asks for; any other of optax's does as well."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from ddpm_jax.presets import TrainConfig


def make_optimizer(config: TrainConfig) -> optax.GradientTransformation:
    """Adam (Kingma & Ba 2015), on gradients whose joint norm is clipped where the config asks for it."""
    clip = optax.identity() if config.grad_clip is None else optax.clip_by_global_norm(config.grad_clip)
    moments = optax.scale_by_adam()
    if config.reset_optimizer:
        moments = forgetful(moments, config.steps_in_epoch)
    return optax.chain(clip, optax.chain(moments, optax.scale_by_learning_rate(learning_rate(config))))


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


def forgetful(moments: optax.GradientTransformation, every: int) -> optax.GradientTransformation:
    """The same transformation, which begins anew after so many updates: what it is where each epoch makes its own.

    moments: counts its updates in its state, as optax.scale_by_adam does. every: at least 1.
    """

    def update(grads: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        over = state.count >= every
        state = jax.tree.map(lambda fresh, old: jnp.where(over, fresh, old), moments.init(params), state)
        return optax.with_extra_args_support(moments).update(grads, state, params, **extra)

    return optax.GradientTransformationExtraArgs(moments.init, update)


def updates_done(opt_state: optax.OptState) -> int:
    """How often an optimiser of `make_optimizer` has moved the parameters: the steps done, less those that were skipped."""
    return int(optax.tree.get(opt_state, "count", filtering=_counts_the_rate))


def _counts_the_rate(path: Any, _: Any) -> bool:
    return getattr(path[-1], "tuple_name", None) == "ScaleByScheduleState"
