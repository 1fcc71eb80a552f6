"""Editing with a trained network: fill in parts of an image, vary it, walk from one to another, and find an image's noise."""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from ddpm_jax import display, noise, samplers
from ddpm_jax.checks import number, whole
from ddpm_jax.compilation import jit
from ddpm_jax.data.scaling import as_x_0
from ddpm_jax.denoisers import Denoiser, as_denoiser
from ddpm_jax.errors import UserError
from ddpm_jax.processes import Estimate, Level
from ddpm_jax.samplers import DDIM, Sampler, Stepped, Walked


def inpaint(
    denoise: Denoiser,
    key: Any,
    x_0: Any,
    mask: Any,
    *,
    num_steps: int | None = None,
    resample: int = 10,
    jump: int = 10,
) -> Float[Array, "b *shape"]:
    """Draw what the mask hides, given the rest (RePaint, Lugmayr et al. 2022, algorithm 1).

    x_0: images (B, H, W, C) or (H, W, C), uint8 or as the network sees them, in [-1, 1]. mask: True where to draw, of the shape of
    x_0 or of one example or one channel of it. At every time the known part is put in place, noised; every `jump` steps the walk
    goes back up by as many, `resample` times in all, so that both parts come to agree.

    Raises:
        UserError: no denoiser, no images, a mask of another shape, resample or jump below 1, num_steps out of range.
        NotFiniteError: what is drawn holds NaN or infinity.
    """
    denoise = as_denoiser(denoise)
    batch, single = _as_batch("x_0", x_0)
    hidden = fitting_mask(mask, batch.shape)
    grid = samplers.rows(repaint_times(denoise.process.times(num_steps), resample, jump))
    walked = _inpainted(denoise, noise.as_keys(key, len(batch)), batch, hidden, grid)
    return _checked(walked, denoise, grid, single)


@jit
def _inpainted(denoise: Denoiser, keys: Array, x_0: Array, hidden: Array, grid: Array) -> Walked:
    start, drawn = noise.of_walk(keys, x_0.shape[1:])
    return RePaint(x_0, hidden).walk(denoise, denoise.process.prior(start, grid[0, 0]), drawn, grid)


def fitting_mask(mask: Any, shape: tuple[int, ...]) -> Bool[Array, "..."]:
    """The mask, boolean, shaped to broadcast against examples of the given shape (B, H, W, C).

    Raises:
        UserError: it is not (H, W), (H, W, 1 or C), (B, H, W) or (B, H, W, 1 or C), or hides nothing.
    """
    found = np.asarray(mask)
    if found.dtype.kind not in "biuf" or not np.isfinite(found).all():
        raise UserError(f"mask must be an array, True where to draw; got {display.short(mask)}.")
    mask = found.astype(bool)
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
        if whole(name, value) < 1:
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


@dataclass(frozen=True)
class RePaint(Sampler):
    """The sampler of `inpaint`, `repaint_step`: its grid, of `repaint_times`, goes up as well as down."""

    known: Float[Array, "b *shape"]
    """Data of which some is given."""
    hidden: Bool[Array, "..."]
    """Where to draw."""

    __repr__ = display.of_fields

    def step(self, denoise: Denoiser, x_t: Float[Array, "b *shape"], times: Any, noise: Any, memory: Any) -> Stepped:
        """x_t -> x_s."""
        t, s = samplers.levels(denoise.process, times, x_t)
        hat = denoise(x_t, times[0])
        return Stepped(repaint_step(x_t, hat, t, s, noise, self.known, self.hidden), hat)


def repaint_step(
    x_t: Float[Array, "b *shape"],
    hat: Estimate,
    t: Level,
    s: Level,
    noise: Float[Array, "b *shape"],
    known: Float[Array, "b *shape"],
    hidden: Bool[Array, "..."],
) -> Float[Array, "b *shape"]:
    """x_t -> x_s: ancestral downwards and q(x_s | x_t) upwards where hidden, the known data at s elsewhere."""
    down = samplers.ancestral_step(x_t, hat, t, s, noise)
    kept = s.alpha / t.alpha
    up = kept * x_t + jnp.sqrt(jnp.maximum(s.sigma**2 - (kept * t.sigma) ** 2, 0)) * noise
    # the two parts share no pixel, so they may share the noise
    return jnp.where(hidden, jnp.where(s.sigma > t.sigma, up, down), s.alpha * known + s.sigma * noise)


def vary(
    denoise: Denoiser,
    key: Any,
    x_0: Any,
    *,
    strength: float = 0.5,
    num_steps: int | None = None,
    sampler: Any = "ddim",
    spacing: Any = None,
) -> Float[Array, "b *shape"]:
    """Other data like the given: noised part of the way and denoised from there (SDEdit, Meng et al. 2022).

    x_0: data, images as for `inpaint`; one example alone gives one. strength: share of the way, in (0, 1]; 1 leaves nothing of x_0
    but what the last timestep keeps. num_steps: of the whole way; the walk takes the share of them. sampler: a sampler, or the name
    of one. spacing: as of `samplers.sample`.

    Raises:
        UserError: no denoiser, no data, a strength outside (0, 1], num_steps out of range, a sampler that does not fit.
        NotFiniteError: what is drawn holds NaN or infinity.
    """
    denoise, sampler = as_denoiser(denoise), samplers.as_sampler(sampler)
    batch, single = _as_batch("x_0", x_0)
    if not 0 < number("strength", strength) <= 1:
        raise UserError(f"strength must lie in (0, 1]; got {strength:g}.")
    whole = sampler.grid(denoise.process, num_steps, spacing)
    grid = whole[-max(1, round(strength * len(whole))) :]
    walked = _varied(denoise, noise.as_keys(key, len(batch)), batch, grid, sampler=sampler)
    return _checked(walked, denoise, grid, single, sampler)


@functools.partial(jit, static_argnames=("sampler",))
def _varied(denoise: Denoiser, keys: Array, x_0: Array, grid: Array, *, sampler: Sampler) -> Walked:
    start, of_step = noise.of_walk(keys, x_0.shape[1:])
    x_t = denoise.process.add_noise(x_0, start, jnp.broadcast_to(grid[0, 0], x_0.shape[:1]))
    return sampler.walk(denoise, x_t, of_step, grid)


def invert(denoise: Denoiser, x_0: Any, *, num_steps: int | None = None) -> Float[Array, "b *shape"]:
    """The noise x_T that deterministic DDIM takes to the given data, by its steps upwards (`samplers.ddim_inversion`).

    The denoiser is asked at the time that is left, so that what comes back is the data up to the steps' size. x_0: data, images as
    for `inpaint`.

    Raises:
        UserError: no denoiser, no data, or num_steps out of range.
        NotFiniteError: what comes out holds NaN or infinity.
    """
    denoise = as_denoiser(denoise)
    batch, single = _as_batch("x_0", x_0)
    times = denoise.process.times(num_steps)[::-1]
    walked = _inverted(denoise, batch, times=tuple(times.tolist()))
    return _checked(walked, denoise, samplers.rows(times), single)


@functools.partial(jit, static_argnames=("times",))
def _inverted(denoise: Denoiser, x_0: Array, *, times: tuple[int | float, ...]) -> Walked:
    return samplers.ddim_inversion(denoise, x_0, np.array(times))


def interpolate(
    denoise: Denoiser, x_0: Any, other: Any, num: int, *, num_steps: int | None = None
) -> Float[Array, "num *shape"]:
    """num examples on the way from one to another, ends included, by way of their noise (Song et al. 2021, section 5.3).

    denoise: with one label for all of them, where it is conditional. x_0, other: one example each, images as for `inpaint`; both
    are inverted by DDIM, their noises joined by the great circle between them, and each point of it sampled by DDIM.

    Raises:
        UserError: no denoiser, num below 2, examples of two shapes, or num_steps out of range.
        NotFiniteError: what is drawn holds NaN or infinity.
    """
    denoise = as_denoiser(denoise)
    if whole("num", num) < 2:
        raise UserError(f"num must be at least 2, for the ends; got {num}.")
    (first, single), (second, also) = _as_batch("x_0", x_0), _as_batch("other", other)
    if first.shape != second.shape or not (single and also):
        raise UserError(
            f"x_0 and other must be one example each, of one shape; got {np.shape(x_0)} and {np.shape(other)}."
        )
    x_T = invert(denoise, np.concatenate([first, second]), num_steps=num_steps)
    between = slerp(x_T[0], x_T[1], jnp.linspace(0, 1, num))
    grid = DDIM().grid(denoise.process, num_steps)
    return _checked(_sampled(denoise, between, grid), denoise, grid)


@jit
def _sampled(denoise: Denoiser, x_T: Array, grid: Array) -> Walked:
    return DDIM().walk(denoise, x_T, lambda _: jnp.zeros_like(x_T), grid)


def _as_batch(name: str, values: Any) -> tuple[np.ndarray, bool]:
    """Data of the network's, as a batch, and whether it was one example alone."""
    found = as_x_0(name, values)
    if found.ndim not in (1, 2, 3, 4):
        raise UserError(
            f"{name} must be images (B, H, W, C) or points (B, 2), or one of them; got the shape {found.shape}."
        )
    single = found.ndim in (1, 3)
    return found[None] if single else found, single


def _checked(
    walked: Walked, denoise: Denoiser, grid: np.ndarray, single: bool = False, sampler: Any = "ddim"
) -> jax.Array:
    broke = np.asarray(walked.broke)
    bad = broke[broke >= 0]
    if len(bad):
        samplers.check_finite(
            len(bad), len(broke), int(bad.min()), denoise=denoise, sampler=samplers.as_sampler(sampler), grid=grid
        )
    return walked.x_0[0] if single else walked.x_0


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
