"""Sampling: pure steps x_t -> x_s, and the one loop that runs them as a single compiled program."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from ddpm_jax import models
from ddpm_jax.compilation import jit
from ddpm_jax.errors import UserError
from ddpm_jax.processes import Estimate, GaussianDiffusion, Level, Predict

Step = Callable[..., jax.Array]
"""step(x_t, hat, t, s, noise) -> x_s: hat is the Estimate of (x_0, eps) at x_t; t and s are the Levels gone from and to."""


def ddim_step(
    x_t: Float[Array, "b *shape"],
    hat: Estimate,
    t: Level,
    s: Level,
    noise: Float[Array, "b *shape"],
    *,
    eta: float = 0.0,
) -> Float[Array, "b *shape"]:
    """x_t -> x_s along the DDIM family (Song et al. 2021, eq. 12 and 16); eta 0 is deterministic, eta 1 ancestral sampling.

    Shapes: x_t, noise (B, ...). Requires eta in [0, 1].
    """
    std = eta * s.sigma * jnp.sqrt(1 - (t.alpha / s.alpha * s.sigma / t.sigma) ** 2)
    return s.alpha * hat.x_0 + jnp.sqrt(jnp.maximum(s.sigma**2 - std**2, 0)) * hat.eps + std * noise


def ancestral_step(
    x_t: Float[Array, "b *shape"],
    hat: Estimate,
    t: Level,
    s: Level,
    noise: Float[Array, "b *shape"],
    *,
    variance: str = "beta",
) -> Float[Array, "b *shape"]:
    """x_t -> x_s by the reverse chain (Ho et al. 2020, eq. 6-7 and algorithm 2), also between times that are not neighbours.

    variance: `beta` = 1 - (alpha_t / alpha_s)^2, or `posterior` = beta sigma_s^2 / sigma_t^2. Shapes: x_t, noise (B, ...).
    """
    kept = (s.sigma / t.sigma) ** 2
    # beta / sigma_t^2; near the data, in float32, beta itself would have lost most of its digits
    fresh = 1 - (t.alpha / s.alpha) ** 2 * kept
    mean = s.alpha * fresh * hat.x_0 + t.alpha / s.alpha * kept * x_t
    std = jnp.sqrt(fresh) * (t.sigma if variance == "beta" else s.sigma)
    return mean + std * noise


def strided_step(
    x_t: Float[Array, "b *shape"],
    hat: Estimate,
    t: Level,
    s: Level,
    noise: Float[Array, "b *shape"],
    *,
    eta: float = 0.1,
) -> Float[Array, "b *shape"]:
    """x_t -> x_s as system 1 does: the mean of `ancestral_step`, the posterior *variance* in beta's place, noise times eta.

    Not the published DDIM. On the grid of `strided_times`, whose last time lies above the one before, beta clips to 0 there and
    x_t is returned as it is. Shapes: x_t, noise (B, ...).
    """
    beta = jnp.clip((1 - (t.alpha / s.alpha) ** 2) * (s.sigma / t.sigma) ** 2, 0, 0.999)
    mean = (x_t - beta / t.sigma * hat.eps) / jnp.sqrt(1 - beta)
    return mean + eta * jnp.sqrt(beta) * noise


def strided_times(process: GaussianDiffusion, num_steps: int | None = None) -> np.ndarray:
    """System 1's grid: tau = first + (0, k, 2k, ... < T) with k = T // num_steps, walked from tau[num_steps - 1] down to tau[0].

    The original then looks up tau[-1] for the time after the last, which wraps around to tau's largest entry; so does this grid.
    Raises UserError unless 1 <= num_steps <= T.
    """
    num_steps = len(process.times(num_steps)) - 1
    schedule = process.schedule
    tau = schedule.first + np.arange(0, schedule.num_steps, schedule.num_steps // num_steps)
    return np.append(tau[:num_steps][::-1], tau[-1]).astype(np.int32)


STEPS: dict[str, Step] = {"ddim": ddim_step, "ancestral": ancestral_step, "strided": strided_step}


def times(name: str, process: GaussianDiffusion, num_steps: int | None = None) -> np.ndarray:
    """The grid that the named sampler walks in num_steps steps (None: the whole chain): evenly spaced, or system 1's.

    Raises UserError unless 1 <= num_steps <= T.
    """
    return strided_times(process, num_steps) if name == "strided" else process.times(num_steps)


@functools.cache  # the same options give the same object, which is what keeps a compiled program in use
def create(name: str, **options: Any) -> Step:
    """The named step with its options bound: create("ddim", eta=0.5).

    Raises:
        UserError: unknown name or option, eta outside [0, 1], variance other than beta or posterior.
    """
    if name not in STEPS:
        raise UserError(f"sampler must be one of {', '.join(STEPS)}; got {name!r}.")
    known = [p.name for p in inspect.signature(STEPS[name]).parameters.values() if p.kind is p.KEYWORD_ONLY]
    for option in options.keys() - set(known):
        raise UserError(f"sampler {name} has no option {option!r}; it has {', '.join(known)}.")
    if not 0 <= options.get("eta", 0) <= 1:
        raise UserError(f"eta must lie in [0, 1]; got {options['eta']:g}.")
    if options.get("variance", "beta") not in ("beta", "posterior"):
        raise UserError(f"variance must be beta or posterior; got {options['variance']!r}.")
    return functools.partial(STEPS[name], **options)


def denoise(
    process: GaussianDiffusion,
    predict: Predict,
    x_t: Float[Array, "b *shape"],
    t: Int[Array, "b"],
    clip: float | None = None,
) -> Estimate:
    """What the network makes of x_t. With `clip`, x_0 is kept within [-clip, clip] and eps made to agree with it."""
    hat = process.estimate(x_t, predict(x_t, t), t)
    if clip is None:
        return hat
    x_0 = jnp.clip(hat.x_0, -clip, clip)
    return Estimate(x_0, process.eps_given_x_0(x_t, x_0, t))


def run(
    process: GaussianDiffusion,
    predict: Predict,
    x_T: Float[Array, "b *shape"],
    noise: Callable[[jax.Array], jax.Array],
    *,
    step: Step,
    times: np.ndarray | tuple[int, ...],
    clip: float | None = None,
    num_frames: int = 0,
    frames_before_noise: bool = False,
) -> tuple[Float[Array, "b *shape"], Float[Array, "k b *shape"]]:
    """Walk x_T down the grid `times` (as made by process.times) as one lax.scan; traceable, so jit it or use `sample`.

    noise(i) gives the noise of the i-th step, of the shape of x_T; the last step takes none. Returns the samples and
    num_frames states evenly spaced over the walk, the starting noise first and the samples last; with frames_before_noise, each
    as it was before its step's noise was added.
    """
    num_steps = len(times) - 1
    frames = jnp.zeros((num_frames, *x_T.shape), x_T.dtype)
    slots = np.full(num_steps, num_frames)  # where the state after each step is kept; one past the end: nowhere
    if num_frames:
        frames = frames.at[0].set(x_T)
        slots[frame_steps(num_steps, num_frames)[1:] - 1] = np.arange(1, num_frames)

    def body(carry, xs):
        x_t, frames = carry
        index, t, s, slot = xs
        batch_t = jnp.full(x_T.shape[:1], t)
        hat = denoise(process, predict, x_t, batch_t, clip)
        z = jnp.where(index < num_steps - 1, noise(index), 0)
        levels = process.level(t[None], x_t), process.level(s[None], x_t)
        x_s = step(x_t, hat, *levels, z).astype(x_t.dtype)
        if num_frames:
            shown = step(x_t, hat, *levels, jnp.zeros_like(z)).astype(x_t.dtype) if frames_before_noise else x_s
            frames = frames.at[slot].set(shown, mode="drop")
        return (x_s, frames), None

    xs = tuple(jnp.asarray(a, jnp.int32) for a in (np.arange(num_steps), times[:-1], times[1:], slots))
    (x_0, frames), _ = jax.lax.scan(body, (x_T, frames), xs)
    return x_0, frames


def frame_steps(num_steps: int, num_frames: int) -> np.ndarray:
    """After how many steps each frame is taken: evenly spaced from 0 to num_steps."""
    return np.round(np.linspace(0, num_steps, num_frames)).astype(int)


@functools.partial(jit, static_argnames=("process", "graphdef", "shape", "dtype", "settings"))
def _compiled(process, graphdef, variables, key, labels, *, shape, dtype, settings):
    def predict(x_t, t):
        return models.apply(graphdef, variables, x_t, t, labels, dtype=dtype)[0]

    start, steps = jax.random.split(key)
    x_T = jax.random.normal(start, shape)
    return run(
        process,
        predict,
        x_T,
        lambda index: jax.random.normal(jax.random.fold_in(steps, index), shape),
        **dict(settings),
    )


def sample(
    model: nnx.Module | tuple[nnx.GraphDef, models.Variables],
    process: GaussianDiffusion,
    key: jax.Array,
    shape: tuple[int, ...],
    labels: Int[Array, "b"] | None = None,
    *,
    step: Step = ddim_step,
    num_steps: int | None = None,
    times: np.ndarray | None = None,
    clip: float | None = None,
    num_frames: int = 0,
    frames_before_noise: bool = False,
    dtype: Any = None,
) -> tuple[Float[Array, "b *shape"], Float[Array, "k b *shape"]]:
    """Draw samples from a trained network: one compiled program per (step, shape, grid), whatever the number of steps.

    model: an NNX module, or what `models.split` made of it. shape: (B, H, W, C) of the samples. labels: (B,) classes of a
    conditional network. num_steps: evenly spaced ones, None for the whole chain; or times: a grid of one's own, descending, the
    clean end last. clip: bound on x_0 during sampling, 1.0 for images in [-1, 1]. dtype: the network's compute dtype, None for
    that of its parameters. Returns the samples and num_frames frames (K, B, H, W, C), as `run` does.

    Raises:
        UserError: num_steps outside 1..T, num_frames outside 2..steps + 1, labels that do not fit the shape.
    """
    grid = process.times(num_steps) if times is None else times
    if num_frames and not 2 <= num_frames <= len(grid):
        raise UserError(f"num_frames must be 0 or lie in 2..{len(grid)} (steps + 1); got {num_frames}.")
    if labels is not None and labels.shape != shape[:1]:
        raise UserError(f"labels must have shape {shape[:1]}, one for each sample; got {labels.shape}.")
    graphdef, variables = models.split(model) if isinstance(model, nnx.Module) else model
    settings = (
        ("step", step),
        ("times", tuple(int(t) for t in grid)),
        ("clip", clip),
        ("num_frames", num_frames),
        ("frames_before_noise", frames_before_noise),
    )
    return _compiled(process, graphdef, variables, key, labels, shape=shape, dtype=dtype, settings=settings)
