"""Sampling: the one loop that runs a step down a grid of times as a single compiled program."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num

from ddpm_jax import models, noise, parallel
from ddpm_jax.compilation import jit
from ddpm_jax.errors import NotFiniteError, UserError
from ddpm_jax.guidance import classifier_free
from ddpm_jax.parallel import ALONE, Layout
from ddpm_jax.processes import Estimate, GaussianDiffusion, Level, Predict, Process
from ddpm_jax.samplers.steps import Past, Seen, Step, ddim_step, depth_of


def denoise(
    process: Process,
    predict: Predict,
    x_t: Float[Array, "b *shape"],
    t: Num[Array, "b"],
    clip: float | None = None,
    *,
    threshold: float | None = None,
    guess: Float[Array, "b *shape"] | None = None,
) -> Estimate:
    """What the network makes of x_t.

    With `clip`, x_0 is kept within [-clip, clip] and eps made to agree with it. With `threshold` as well, each example's bound is
    the larger one of clip and that quantile of its |x_0|, and x_0 is scaled back by it (dynamic thresholding, Saharia et al.
    2022, section 2.3). guess: an earlier estimate of x_0, for a network that is conditioned on its own.
    """
    shown = x_t if guess is None else jnp.concatenate([x_t, guess], axis=-1)
    hat = process.estimate(x_t, predict(shown, process.network_time(t)), t)
    if clip is None:
        return hat
    if threshold is None:
        x_0 = jnp.clip(hat.x_0, -clip, clip)
    else:
        axes = tuple(range(1, x_t.ndim))
        largest = jnp.quantile(jnp.abs(hat.x_0), threshold, axis=axes, keepdims=True)
        bound = jnp.maximum(largest, clip).astype(x_t.dtype)
        x_0 = jnp.clip(hat.x_0, -bound, bound) * (clip / bound)
    return Estimate(x_0, process.eps_given_x_0(x_t, x_0, t), hat.variance_logit)


class Walk(NamedTuple):
    """What a walk from noise leaves."""

    x_0: Float[Array, "b *shape"]
    """The samples."""
    frames: Float[Array, "k b *shape"]
    """States evenly spaced over the walk, the starting noise first and the samples last."""
    broke: Int[Array, "b"]
    """After how many steps a sample first held NaN or infinity; -1: never."""


def run(
    process: Process,
    predict: Predict,
    x_T: Float[Array, "b *shape"],
    noise: Callable[[jax.Array], jax.Array],
    *,
    step: Step,
    times: np.ndarray | tuple[int | float, ...],
    clip: float | None = None,
    threshold: float | None = None,
    num_frames: int = 0,
    frames_before_noise: bool = False,
    self_conditioned: bool = False,
) -> Walk:
    """Walk x_T along the grid `times` (as made by `samplers.times`) as one lax.scan; traceable, so jit it or use `sample`.

    noise(i) gives the noise of the i-th step, of the shape of x_T; the last step takes none. num_frames: how many states are kept;
    with frames_before_noise, each as it was before its step's noise was added. self_conditioned: the network sees its last estimate
    of x_0 beside x_t.
    """
    num_steps = len(times) - 1
    frames = jnp.zeros((num_frames, *x_T.shape), x_T.dtype)
    slots = np.full(num_steps, num_frames)  # where the state after each step is kept; one past the end: nowhere
    if num_frames:
        frames = frames.at[0].set(x_T)
        slots[frame_steps(num_steps, num_frames)[1:] - 1] = np.arange(1, num_frames)
    looks = depth_of(step)
    empty = jnp.zeros_like(x_T)
    nowhere = Seen(empty, Estimate(empty, empty), Level(*(jnp.zeros((1,) * x_T.ndim, x_T.dtype),) * 2))
    seen = (nowhere,) * max(looks, int(self_conditioned))

    def body(carry, xs):
        x_t, frames, seen, broke = carry
        index, t, s, slot = xs
        batch_t = jnp.full(x_T.shape[:1], t)
        guess = seen[0].hat.x_0 if self_conditioned else None
        hat = denoise(process, predict, x_t, batch_t, clip, threshold=threshold, guess=guess)
        z = jnp.where(index < num_steps - 1, noise(index), 0)
        levels = process.level(t[None], x_t), process.level(s[None], x_t)
        past = (Past(seen[:looks], index),) if looks else ()
        x_s = step(x_t, hat, *levels, z, *past).astype(x_t.dtype)
        if num_frames:
            shown = step(x_t, hat, *levels, jnp.zeros_like(z), *past).astype(x_t.dtype) if frames_before_noise else x_s
            frames = frames.at[slot].set(shown, mode="drop")
        seen = (Seen(x_t, Estimate(hat.x_0, hat.eps), levels[0]), *seen)[: len(seen)]
        broke = jnp.where((broke < 0) & ~_finite(x_s), index + 1, broke)
        return (x_s, frames, seen, broke), None

    whole = np.issubdtype(np.asarray(times).dtype, np.integer)
    t_and_s = (jnp.asarray(a, jnp.int32 if whole else x_T.dtype) for a in (times[:-1], times[1:]))
    xs = (jnp.arange(num_steps), *t_and_s, jnp.asarray(slots, jnp.int32))
    broke = jnp.where(_finite(x_T), -1, 0)
    (x_0, frames, _, broke), _ = jax.lax.scan(body, (x_T, frames, seen, broke), xs)
    return Walk(x_0, frames, broke)


def _finite(x: Float[Array, "b *shape"]) -> Bool[Array, "b"]:
    return jnp.isfinite(x).all(tuple(range(1, x.ndim)))


def frame_steps(num_steps: int, num_frames: int) -> np.ndarray:
    """After how many steps each frame is taken: evenly spaced from 0 to num_steps."""
    return np.round(np.linspace(0, num_steps, num_frames)).astype(int)


def check_finite(broke: Any, times: np.ndarray, **settings: Any) -> None:
    """Refuse samples of which any is not finite; broke: that of their `Walk` down the grid `times`.

    settings: those of the walk that may be to blame: clip, guidance, dtype.

    Raises:
        NotFiniteError: says how many of them, from which step on, and what to try.
    """
    broke = np.asarray(broke)
    bad, taken = broke[broke >= 0], len(times) - 1
    if not len(bad):
        return
    first = int(bad.min())
    if first == 0:
        since, tries = "what the walk starts from", ["data that is finite"]
    else:
        since = f"step {first} of {taken} (t = {times[first - 1]:g})"
        tries = ["a lower guidance"] if settings.get("guidance") else []
        tries += ["clip = 1, where data lies in [-1, 1]"] if settings.get("clip") is None else []
        tries += ["float32"] if jnp.dtype(settings.get("dtype") or "float32").itemsize < 4 else []
        tries += ["more steps or another sampler"] if first > 1 else ["other weights: these may be damaged"]
    raise NotFiniteError(
        f"{len(bad)} of {len(broke)} samples hold NaN or infinity, the first since {since}. Try {', or '.join(tries)}."
    )


def _from_noise(key, first, variables, labels, *, process, graphdef, shape, dtype, guidance, settings, layout):
    numbers = layout.share(first + jnp.arange(shape[0]))
    x_T, of_step = noise.of_walk(key, numbers, shape[1:])
    predict = models.predictor(graphdef, layout.whole(variables), labels, dtype=dtype)
    if guidance is not None:
        predict = classifier_free(predict, labels, **dict(guidance))
    spread = layout.spread
    return tuple(run(process, predict, spread(x_T), lambda index: spread(of_step(index)), **dict(settings)))


_compiled = parallel.compiled(
    _from_noise,
    ("process", "graphdef", "shape", "dtype", "guidance", "settings"),
    in_batch=(False, False, False, True),
    out_axes=(0, 1, 0),
)


def sample(
    model: models.Model,
    process: Process,
    key: jax.Array,
    shape: tuple[int, ...],
    labels: Int[Array, "b"] | None = None,
    *,
    first: int = 0,
    kept: int | None = None,
    step: Step = ddim_step,
    num_steps: int | None = None,
    times: np.ndarray | None = None,
    clip: float | None = None,
    threshold: float | None = None,
    guidance: dict[str, Any] | None = None,
    self_conditioned: bool = False,
    num_frames: int = 0,
    frames_before_noise: bool = False,
    dtype: Any = None,
    layout: Layout = ALONE,
) -> tuple[Float[Array, "b *shape"], Float[Array, "k b *shape"]]:
    """Draw samples from a trained network: one compiled program per (step, shape, grid), whatever the number of steps.

    Sample n of a key is given the same noise, bit for bit, in whatever batch and on however many devices it is drawn, and so comes
    out the same up to the rounding of that batch's program. first: the number of the first sample, for batches after the first.
    kept: how many samples, from the first on, have to be finite, where others only fill up a batch; None: all.

    model: an NNX module, or what `models.split` made of it. shape: (B, H, W, C) of the samples. labels: (B,) classes of a
    conditional network. num_steps: evenly spaced ones, None for the whole chain; or times: a grid of one's own, descending, the
    clean end last. clip: bound on x_0 during sampling, 1.0 for images in [-1, 1]. threshold: see `denoise`. guidance: the options
    of `guidance.classifier_free`, for a network trained with dropped labels. self_conditioned: see `run`. dtype: the network's
    compute dtype, None for that of its parameters. layout: the devices to spread the batch over, among which the variables lie.
    Returns the samples and num_frames frames (K, B, H, W, C), as `run` does.

    Raises:
        UserError: num_steps outside 1..T, num_frames outside 2..steps + 1, labels that do not fit the shape, guidance without
            labels, a batch that the devices do not divide.
        NotFiniteError: samples hold NaN or infinity.
    """
    grid = process.times(num_steps) if times is None else times
    if num_frames and not 2 <= num_frames <= len(grid):
        raise UserError(f"num_frames must be 0 or lie in 2..{len(grid)} (steps + 1); got {num_frames}.")
    check_shape(shape, labels, layout)
    if guidance is not None and labels is None:
        raise UserError("guidance needs labels to guide to; got labels = None.")
    graphdef, variables = models.parts(model)
    settings = (
        ("step", step),
        ("times", tuple(np.asarray(grid).tolist())),
        ("clip", clip),
        ("threshold", threshold),
        ("num_frames", num_frames),
        ("frames_before_noise", frames_before_noise),
        ("self_conditioned", self_conditioned),
    )
    options = None if guidance is None else tuple(sorted(guidance.items()))
    static = {"process": process, "graphdef": graphdef, "shape": shape, "dtype": dtype}
    x_0, frames, broke = _compiled(
        key, np.int32(first), variables, labels, layout=layout, guidance=options, settings=settings, **static
    )
    check_finite(layout.gather(broke)[:kept], grid, clip=clip, guidance=guidance, dtype=dtype)
    return x_0, frames


def check_shape(shape: tuple[int, ...], labels: Any, layout: Layout) -> None:
    """Refuse labels and devices that do not fit a batch of samples of a shape.

    Raises:
        UserError: there is not one label for each sample, or the devices do not divide them.
    """
    if labels is not None and labels.shape != shape[:1]:
        raise UserError(f"labels must have shape {shape[:1]}, one for each sample; got {labels.shape}.")
    if shape[0] % layout.size:
        fitting = layout.rounded_up(shape[0])
        raise UserError(f"{layout.size} devices must divide a batch of samples; got {shape[0]}; {fitting} would fit.")


def invert(
    model: models.Model,
    process: Process,
    x_0: Float[Array, "b *shape"],
    labels: Int[Array, "b"] | None = None,
    *,
    num_steps: int | None = None,
    dtype: Any = None,
) -> Float[Array, "b *shape"]:
    """The noise x_T that deterministic DDIM takes to the given data, by its steps upwards (Song et al. 2021, section 5.4).

    The network is asked at the time that is left, so that what comes back is the data up to the steps' size. x_0: data as the
    network sees it, (B, H, W, C) in [-1, 1] or (B, 2).

    Raises:
        UserError: num_steps outside 1..T.
        NotFiniteError: what comes out holds NaN or infinity.
    """
    graphdef, variables = models.parts(model)
    times = process.times(num_steps)[::-1]
    walk = _inverted(process, graphdef, variables, x_0, labels, times=tuple(times.tolist()), dtype=dtype)
    check_finite(walk.broke, times, clip=1.0, dtype=dtype)
    return walk.x_0


@functools.partial(jit, static_argnames=("process", "graphdef", "times", "dtype"))
def _inverted(process, graphdef, variables, x_0, labels, *, times, dtype):
    return climb(process, models.predictor(graphdef, variables, labels, dtype=dtype), x_0, times)


def climb(
    process: Process, predict: Predict, x_0: Float[Array, "b *shape"], times: np.ndarray | tuple[int | float, ...]
) -> Walk:
    """Walk data up an ascending grid, the clean end first, by deterministic DDIM steps; traceable. The noise is the walk's x_0.

    No network is trained at the clean end of a chain: there the noise is what it sees at the first timestep.
    """
    clean, first = np.asarray(times)[:2]
    asked_at = process.schedule.first if isinstance(process, GaussianDiffusion) else clean
    t = jnp.full(x_0.shape[:1], asked_at, x_0.dtype if isinstance(clean, np.floating) else jnp.int32)
    eps = process.estimate(x_0, predict(x_0, process.network_time(t)), t).eps
    here, there = (process.level(np.asarray([time]), x_0) for time in (clean, first))
    # a chain may end a little short of clean data
    hat = Estimate((x_0 - here.sigma * eps) / here.alpha, eps)
    x_t = ddim_step(x_0, hat, here, there, eps).astype(x_0.dtype)
    walk = run(process, predict, x_t, lambda index: jnp.zeros_like(x_0), step=ddim_step, times=times[1:])
    since = jnp.where(walk.broke < 0, -1, walk.broke + 1)
    return walk._replace(broke=jnp.where(_finite(x_0), since, 0))
