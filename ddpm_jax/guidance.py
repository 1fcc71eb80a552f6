"""Guidance: predictors wrapped so that what they draw fits a label better."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Num

from ddpm_jax.errors import UserError
from ddpm_jax.processes import Estimate, GaussianDiffusion, Predict


def classifier_free(
    predict: Callable[..., jax.Array],
    labels: Int[Array, "b"],
    *,
    null_label: int,
    scale: float,
    interval: tuple[float, float] = (0.0, float("inf")),
    rescale: float = 0.0,
    channels: int | None = None,
) -> Predict:
    """predict(x_t, t, labels) -> output, guided by what it says without a label (Ho & Salimans 2022): u + scale (c - u).

    scale: 1 is the conditional network as it is, 0 the unconditional one. interval: of network times t, both ends included, within
    which to guide; elsewhere the output is the conditional one (Kynkäänniemi et al. 2024). rescale: share, in [0, 1], of the guided
    output that is brought back to the conditional one's standard deviation over each example (Lin et al. 2024, eq. 15-16); an
    output of a single value has none, and stays as it is.
    channels: how many of the output's channels are guided, None for all; what follows says the variance and stays the conditional
    one's.
    """
    nothing = jnp.full_like(labels, null_label)

    def guided(x_t: Float[Array, "b *shape"], t: Num[Array, "b"]) -> Float[Array, "b *out"]:
        both = predict(jnp.concatenate([x_t, x_t]), jnp.concatenate([t, t]), jnp.concatenate([labels, nothing]))
        conditional, unconditional = jnp.split(both, 2)
        c, u = conditional[..., :channels], unconditional[..., :channels]
        output = u + scale * (c - u)
        if rescale:
            output = rescale * _with_deviation(output, c) + (1 - rescale) * output
        inside = ((interval[0] <= t) & (t <= interval[1])).reshape((-1,) + (1,) * (x_t.ndim - 1))
        output = jnp.where(inside, output, c)
        return output if channels is None else jnp.concatenate([output, conditional[..., channels:]], axis=-1)

    return guided


def _with_deviation(x: Float[Array, "b *shape"], like: Float[Array, "b *shape"]) -> Float[Array, "b *shape"]:
    """x times what gives each example the standard deviation of `like`; examples of a single value as they are."""
    axes = tuple(range(1, x.ndim))
    std = x.std(axes, keepdims=True)
    # a single value may have a deviation too, of its rounded mean; and a tiny spread none, where its squares underflow
    spread = (x.max(axes, keepdims=True) > x.min(axes, keepdims=True)) & (std > 0)
    return x * jnp.where(spread, like.std(axes, keepdims=True) / jnp.where(spread, std, 1), 1)


def classifier_guided(
    process: GaussianDiffusion,
    predict: Predict,
    log_prob: Callable[[Float[Array, "b *shape"], Int[Array, "b"]], Float[Array, "b"]],
    *,
    scale: float = 1.0,
) -> Predict:
    """A predictor led up the gradient of a classifier's log p(y | x_t) (Dhariwal & Nichol 2021, algorithm 2), of any prediction.

    eps becomes eps - scale sigma_t grad log p(y | x_t), and x_0 what belongs to it. log_prob(x_t, t): (B,), of the class wanted of
    each example.

    Raises:
        UserError: x_T holds no data, so that no classifier can know anything of it, and x_0 has no finite shift.
    """
    if process.schedule.alphas_cumprod[-1] == 0:
        raise UserError(
            "a classifier's guidance needs data in x_T: the schedule's last alphas_cumprod must be above 0; got 0."
        )

    def guided(x_t: Float[Array, "b *shape"], t: Int[Array, "b"]) -> Float[Array, "b *out"]:
        hat = process.estimate(x_t, predict(x_t, t), t)
        alpha, sigma = process.level(t, x_t)
        gradient = jax.grad(lambda x: log_prob(x, t).sum())(x_t)
        led = Estimate(hat.x_0 + scale * sigma**2 / alpha * gradient, hat.eps - scale * sigma * gradient)
        mean = process.target(led.x_0, led.eps, t)
        return mean if hat.variance_logit is None else jnp.concatenate([mean, hat.variance_logit], axis=-1)

    return guided
