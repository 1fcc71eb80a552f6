"""Drawing samples: one compiled program for a sampler, a grid's length and a kind of denoiser."""

import functools
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ddpm_jax import noise
from ddpm_jax.checks import whole
from ddpm_jax.compilation import jit
from ddpm_jax.denoisers import Denoiser, as_denoiser, remedies
from ddpm_jax.errors import NotFiniteError, UserError
from ddpm_jax.samplers.base import SAMPLERS, Sampler, Walked


def walk(
    denoise: Denoiser,
    sampler: Any,
    x_T: Float[Array, "b *shape"],
    drawn: Callable[[jax.Array], Any],
    grid: Any,
    num_frames: int = 0,
) -> Walked:
    """Walk x_T down a grid, with noise that is given; traceable, so jit it or use `sample`.

    sampler: a sampler, or the name of one. x_T: what the process's `prior` makes of standard normal noise. drawn(i): noise of the
    i-th step, of the shape of x_T; the last step takes none. grid: as made by the sampler's
    `grid`. num_frames: states to keep, evenly spaced over the walk, the starting noise first and the samples last; 0 or
    2..steps + 1.
    """
    return as_sampler(sampler).walk(as_denoiser(denoise), x_T, drawn, grid, num_frames)


def draw(
    denoise: Denoiser,
    sampler: Any,
    key: Any,
    shape: Any,
    num_steps: int | None = None,
    spacing: Any = None,
    num_frames: int = 0,
    kept: int | None = None,
) -> Walked:
    """Samples with all that is known of their walk: what `sample` and `sample_with_frames` give a part of.

    num_frames: as in `sample_with_frames`, or 0. kept: how many samples, from the first on, have to be finite, where others only
    fill up a batch; None: all.

    Raises:
        UserError, NotFiniteError: as `sample_with_frames`.
    """
    arguments = _arguments(denoise, sampler, key, shape, num_steps, spacing, num_frames)
    denoise, keys, grid, sampler, _ = arguments
    kept = len(keys) if kept is None else kept
    walked, bad, first = _from_noise(*arguments, num_frames=num_frames, kept=kept)
    check_finite(int(bad), kept, int(first), denoise=denoise, sampler=sampler, grid=grid)
    return walked


def sample(
    denoise: Denoiser,
    sampler: Any,
    key: Any,
    shape: Any,
    num_steps: int | None = None,
    *,
    spacing: Any = None,
) -> Float[Array, "b *shape"]:
    """Draw samples: one compiled program per sampler, shape and number of steps.

    Sample n of a key is given the same noise, bit for bit, in whatever batch and on however many devices it is drawn, and so comes
    out the same up to the rounding of that batch's program.

    sampler: a sampler, or the name of one. key: a key, a seed, or a key for each sample (`noise.sample_keys`); where they lie
    decides where the batch is computed. shape: (B, H, W, C) of the samples. num_steps: None for the whole chain. spacing: one of
    GRIDS, or times of one's own, descending, the clean end last; None: the sampler's own.

    Raises:
        UserError: no denoiser, a sampler that does not fit its process, num_steps out of range, labels that do not fit the shape.
        NotFiniteError: samples hold NaN or infinity.
    """
    return draw(denoise, sampler, key, shape, num_steps, spacing).x_0


def sample_with_frames(
    denoise: Denoiser,
    sampler: Any,
    key: Any,
    shape: Any,
    num_steps: int | None = None,
    *,
    spacing: Any = None,
    num_frames: int = 24,
) -> tuple[Float[Array, "b *shape"], Float[Array, "k b *shape"]]:
    """`sample`, and num_frames states (K, B, H, W, C) evenly spaced over the walk, the starting noise first and the samples last.

    Raises:
        UserError: as `sample`; num_frames outside 2..steps + 1.
        NotFiniteError: samples hold NaN or infinity.
    """
    walked = draw(denoise, sampler, key, shape, num_steps, spacing, num_frames)
    return walked.x_0, walked.frames


def lower(
    denoise: Denoiser,
    sampler: Any,
    key: Any,
    shape: Any,
    num_steps: int | None = None,
    *,
    spacing: Any = None,
    platforms: tuple[str, ...] | None = None,
) -> jax.stages.Lowered:
    """The program of `sample`, lowered and not compiled: what the compiler says of it, also for platforms and devices that are not
    here.

    denoise, key: arrays, or jax.ShapeDtypeStruct in their place, with the shardings of those devices.
    """
    return trace(denoise, sampler, key, shape, num_steps, spacing=spacing).lower(lowering_platforms=platforms)


def trace(
    denoise: Denoiser,
    sampler: Any,
    key: Any,
    shape: Any,
    num_steps: int | None = None,
    *,
    spacing: Any = None,
    elsewhere: bool = False,
) -> jax.stages.Traced:
    """The program of `sample`, traced: its `lower` takes the platforms it is wanted for.

    elsewhere: without this platform's compiler options, to be compiled for another one. Otherwise as `lower`.
    """
    arguments = _arguments(denoise, sampler, key, shape, num_steps, spacing)
    program: Any = _from_noise.elsewhere if elsewhere else _from_noise  # type: ignore[attr-defined]
    return program.trace(*arguments, num_frames=0, kept=len(arguments[1]))


@functools.partial(jit, static_argnames=("sampler", "shape", "num_frames"))
def _from_noise(
    denoise: Denoiser,
    keys: jax.Array,
    grid: jax.Array,
    sampler: Sampler,
    shape: tuple[int, ...],
    *,
    num_frames: int,
    kept: Any,
) -> tuple[Walked, jax.Array, jax.Array]:
    start, drawn = noise.of_walk(keys, shape)
    walked = sampler.walk(denoise, denoise.process.prior(start, grid[0, 0]), drawn, grid, num_frames)
    bad = (walked.broke >= 0) & (jnp.arange(len(keys)) < kept)
    return walked, bad.sum(), jnp.where(bad, walked.broke, np.iinfo(np.int32).max).min()


def check_finite(bad: int, total: int, first: int, *, denoise: Denoiser, sampler: Sampler, grid: np.ndarray) -> None:
    """Refuse samples of which any is not finite; first: the earliest step after which one was not.

    Raises:
        NotFiniteError: says how many of them, from which step on, and what to try.
    """
    if bad:
        raise NotFiniteError(sampler.failure(f"{bad} of {total}", first, grid, remedies(denoise)))


def _arguments(
    denoise: Any, sampler: Any, key: Any, shape: Any, num_steps: Any, spacing: Any, num_frames: int = 0
) -> tuple[Denoiser, Any, np.ndarray, Sampler, tuple[int, ...]]:
    denoise, sampler = as_denoiser(denoise), as_sampler(sampler)
    try:
        num, *rest = map(operator.index, shape)
    except (TypeError, ValueError) as error:
        raise UserError(f"shape must be that of the samples, such as (B, H, W, C); got {shape!r}.") from error
    if not rest or min(num, *rest) < 1:
        raise UserError(f"shape must be that of the samples, such as (B, H, W, C), and not empty; got {shape!r}.")
    if denoise.labels is not None and denoise.labels.shape not in ((), (num,)):
        raise UserError(f"labels must have shape ({num},), one for each sample; got {denoise.labels.shape}.")
    grid = sampler.grid(denoise.process, num_steps, spacing)
    if whole("num_frames", num_frames) and not 2 <= num_frames <= len(grid) + 1:
        raise UserError(f"num_frames must be 0 or lie in 2..{len(grid) + 1} (steps + 1); got {num_frames}.")
    return denoise, noise.as_keys(key, num), grid, sampler, tuple(rest)


def as_sampler(found: Any) -> Sampler:
    """A sampler that was given by itself, by its class, or by its name.

    Raises:
        UserError: it is none; says which there are.
    """
    if isinstance(found, str):
        return Sampler.member(found)()
    if isinstance(found, type) and issubclass(found, Sampler):
        return found()
    if isinstance(found, Sampler):
        return found
    raise UserError(f"sampler must be one of {', '.join(SAMPLERS)}, or a samplers.Sampler of your own; got {found!r}.")
