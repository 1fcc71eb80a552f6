"""Editing with a trained network: fill in parts of an image, vary an image, walk from one image to another."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ddpm_jax import models, noise, samplers
from ddpm_jax.compilation import jit
from ddpm_jax.errors import UserError
from ddpm_jax.processes import Estimate, Level, Process
from ddpm_jax.samplers import Step


def inpaint(
    model: models.Model,
    process: Process,
    key: jax.Array,
    x_0: Any,
    mask: Any,
    labels: Int[Array, "b"] | None = None,
    *,
    num_steps: int | None = None,
    resample: int = 10,
    jump: int = 10,
    clip: float | None = None,
) -> Float[Array, "b *shape"]:
    """Draw what the mask hides, given the rest (RePaint, Lugmayr et al. 2022, algorithm 1).

    x_0: data as the network sees it. mask: True where to draw, of the shape of x_0 or of one example or one channel of it. At every
    time the known part is put in place, noised; every `jump` steps the walk goes back up by as many, `resample` times in all, so
    that both parts come to agree.

    Raises:
        UserError: a mask of another shape, resample or jump below 1, num_steps out of range.
        NotFiniteError: what is drawn holds NaN or infinity.
    """
    x_0 = jnp.asarray(x_0)
    hidden = fitting_mask(mask, x_0.shape)
    times = repaint_times(process.times(num_steps), resample, jump)
    graphdef, variables = models.parts(model)
    walk = _inpainted(process, graphdef, variables, key, x_0, hidden, labels, times=tuple(times.tolist()), clip=clip)
    samplers.check_finite(walk.broke, times, clip=clip)
    return walk.x_0


def fitting_mask(mask: Any, shape: tuple[int, ...]) -> Bool[Array, "..."]:
    """The mask, boolean, shaped to broadcast against examples of the given shape (B, H, W, C).

    Raises:
        UserError: it is not (H, W), (H, W, 1 or C), (B, H, W) or (B, H, W, 1 or C), or hides nothing.
    """
    mask = np.asarray(mask).astype(bool)
    batch, *size, channels = shape
    allowed = {tuple(size): 1, (*size, 1): 0, (*size, channels): 0}
    allowed |= {(batch, *of): add for of, add in allowed.items()}
    if mask.shape not in allowed:
        raise UserError(f"mask must have the shape {tuple(size)} of an image, or {shape}; got {mask.shape}.")
    if not mask.any():
        raise UserError("mask hides nothing: it must be True, or white, where the network is to draw.")
    mask = mask[..., None] if allowed[mask.shape] else mask
    return jnp.asarray(mask if mask.ndim == len(shape) else mask[None])


def repaint_times(times: np.ndarray, resample: int, jump: int) -> np.ndarray:
    """A descending grid with detours: after every `jump` steps back up by as many and down again, resample - 1 times.

    Raises:
        UserError: either is below 1.
    """
    for name, value in (("resample", resample), ("jump", jump)):
        if value < 1:
            raise UserError(f"{name} must be at least 1; got {value}.")
    grid = [times[0]]
    for start in range(0, len(times) - 1, jump):
        down = times[start : start + jump + 1]
        last = start + jump >= len(times) - 1
        # from the clean end there is no way back up that would leave its noise to chance
        for _ in range(1 if last else resample):
            if grid[-1] != down[0]:
                grid.append(down[0])
            grid.extend(down[1:])
    return np.array(grid, times.dtype)


def repaint_step(known: Float[Array, "b *shape"], hidden: Bool[Array, "..."]) -> Step:
    """The step of `inpaint`: ancestral downwards and q(x_s | x_t) upwards where hidden, the known data at s elsewhere."""

    def step(
        x_t: Float[Array, "b *shape"], hat: Estimate, t: Level, s: Level, noise: Float[Array, "b *shape"]
    ) -> Float[Array, "b *shape"]:
        down = samplers.ancestral_step(x_t, hat, t, s, noise)
        kept = s.alpha / t.alpha
        up = kept * x_t + jnp.sqrt(jnp.maximum(s.sigma**2 - (kept * t.sigma) ** 2, 0)) * noise
        # the two parts share no pixel, so they may share the noise
        return jnp.where(hidden, jnp.where(s.sigma > t.sigma, up, down), s.alpha * known + s.sigma * noise)

    return step


@functools.partial(jit, static_argnames=("process", "graphdef", "times", "clip"))
def _inpainted(process, graphdef, variables, key, x_0, hidden, labels, *, times, clip):
    predict, step = models.predictor(graphdef, variables, labels), repaint_step(x_0, hidden)
    x_T, of_step = noise.of_walk(key, jnp.arange(len(x_0)), x_0.shape[1:])
    return samplers.run(process, predict, x_T, of_step, step=step, times=times, clip=clip)


def vary(
    model: models.Model,
    process: Process,
    key: jax.Array,
    x_0: Any,
    labels: Int[Array, "b"] | None = None,
    *,
    strength: float = 0.5,
    num_steps: int | None = None,
    step: Step = samplers.ddim_step,
    clip: float | None = None,
) -> Float[Array, "b *shape"]:
    """Other data like the given: noised part of the way and denoised from there (SDEdit, Meng et al. 2022).

    strength: share of the way, in (0, 1]; 1 leaves nothing of x_0 but what the last timestep keeps. num_steps: of the whole way;
    the walk takes the share of them.

    Raises:
        UserError: a strength outside (0, 1], or num_steps out of range.
        NotFiniteError: what is drawn holds NaN or infinity.
    """
    if not 0 < strength <= 1:
        raise UserError(f"strength must lie in (0, 1]; got {strength:g}.")
    whole = process.times(num_steps)
    times = whole[-1 - max(1, round(strength * (len(whole) - 1))) :]
    graphdef, variables = models.parts(model)
    options: dict[str, Any] = {"step": step, "times": tuple(times.tolist()), "clip": clip}
    walk = _varied(process, graphdef, variables, key, jnp.asarray(x_0), labels, **options)
    samplers.check_finite(walk.broke, times, clip=clip)
    return walk.x_0


@functools.partial(jit, static_argnames=("process", "graphdef", "step", "times", "clip"))
def _varied(process, graphdef, variables, key, x_0, labels, *, step, times, clip):
    start, of_step = noise.of_walk(key, jnp.arange(len(x_0)), x_0.shape[1:])
    x_t = process.add_noise(x_0, start, jnp.full(x_0.shape[:1], times[0]))
    predict = models.predictor(graphdef, variables, labels)
    return samplers.run(process, predict, x_t, of_step, step=step, times=times, clip=clip)


def interpolate(
    model: models.Model,
    process: Process,
    x_0: Any,
    other: Any,
    num: int,
    *,
    num_steps: int | None = None,
    label: int | None = None,
) -> Float[Array, "num *shape"]:
    """num examples on the way from one to another, ends included, by way of their noise (Song et al. 2021, section 5.3).

    x_0, other: one example each, as the network sees it; both are inverted by DDIM, their noises joined by the great circle between
    them, and each point of it sampled by DDIM. label: the class of all of them, of a conditional network.

    Raises:
        UserError: num below 2, examples of two shapes, or num_steps out of range.
        NotFiniteError: what is drawn holds NaN or infinity.
    """
    if num < 2:
        raise UserError(f"num must be at least 2, for the ends; got {num}.")
    if x_0.shape != other.shape:
        raise UserError(f"both examples must have one shape; got {x_0.shape} and {other.shape}.")
    both = None if label is None else jnp.full((2,), label, jnp.int32)
    x_T = samplers.invert(model, process, jnp.stack([x_0, other]), both, num_steps=num_steps)
    between = slerp(x_T[0], x_T[1], jnp.linspace(0, 1, num))
    graphdef, variables = models.parts(model)
    labels = None if label is None else jnp.full((num,), label, jnp.int32)
    times = process.times(num_steps)
    walk = _sampled(process, graphdef, variables, between, labels, times=tuple(times.tolist()))
    samplers.check_finite(walk.broke, times, clip=1.0)
    return walk.x_0


@functools.partial(jit, static_argnames=("process", "graphdef", "times"))
def _sampled(process, graphdef, variables, x_T, labels, *, times):
    predict = models.predictor(graphdef, variables, labels)
    return samplers.run(process, predict, x_T, lambda _: jnp.zeros_like(x_T), step=samplers.ddim_step, times=times)


def slerp(a: Float[Array, "*shape"], b: Float[Array, "*shape"], share: Float[Array, "n"]) -> Float[Array, "n *shape"]:
    """Points on the great circle from a to b, which keeps the length of Gaussian noise; the line where they are parallel, or one of
    them is zero."""
    lengths = jnp.sqrt((a**2).sum() * (b**2).sum())
    cosine = jnp.where(lengths > 0, (a * b).sum() / jnp.where(lengths > 0, lengths, 1), 1)
    angle = jnp.arccos(jnp.clip(cosine, -1, 1))
    share = share.reshape((-1,) + (1,) * a.ndim)
    small = jnp.sin(angle) < 1e-6
    divisor = jnp.where(small, 1, jnp.sin(angle))
    weight_a = jnp.where(small, 1 - share, jnp.sin((1 - share) * angle) / divisor)
    weight_b = jnp.where(small, share, jnp.sin(share * angle) / divisor)
    return weight_a * a + weight_b * b
