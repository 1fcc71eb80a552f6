"""Samples of a run, and the files they become: an npz, a titled grid or a scatter, a denoising animation."""

import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from ddpm_jax import figures, launch, models, samplers
from ddpm_jax.data import PointSource, stretched
from ddpm_jax.errors import UserError, fits_memory
from ddpm_jax.files import write_atomically
from ddpm_jax.parallel import ALONE, Layout
from ddpm_jax.presets import SampleConfig
from ddpm_jax.training.npz_writer import NpzWriter
from ddpm_jax.training.run import Run

FRAMES = 24
"""Pictures in an animation, fewer where there are fewer steps."""
SHOWN = 100
"""Samples in a grid at most; the npz holds all."""
ANIMATED, ANIMATED_POINTS = 40, 500
"""Images, and points, in an animation at most."""
REAL_POINTS = 2_000
"""Points of the data beneath a scatter of samples, at most."""


@dataclass(frozen=True)
class Samples:
    """What was drawn from a run, in the units of its data."""

    values: np.ndarray
    """uint8 images (N, H, W, C), or float32 points (N, 2)."""
    labels: np.ndarray | None
    """int32 (N,), or None for an unconditional run."""
    frames: np.ndarray
    """(K, M, ...): the walk of the first M samples from noise to data."""
    frame_steps: np.ndarray
    """int (K,): after how many denoising steps each frame was taken."""
    first_call_s: float
    """Seconds of the first batch, compilation included."""
    later_call_s: float | None
    """Mean seconds of a later full batch; None: there was one batch only."""


class Batch(NamedTuple):
    """One call of the sampler."""

    values: np.ndarray
    """As in `Samples`."""
    frames: np.ndarray
    """(K, M, ...): the walk of its samples, as far as they are among those that are animated."""
    num_steps: int
    """Denoising steps that it took."""
    seconds: float


def draw_batches(
    run: Run,
    graphdef: nnx.GraphDef,
    variables: models.Variables,
    labels: np.ndarray | None,
    num: int,
    *,
    config: SampleConfig,
    seed: int = 0,
    batch_size: int = 500,
    num_frames: int = 0,
    layout: Layout = ALONE,
) -> Iterator[Batch]:
    """Draw num samples, batch after batch through one compiled program; num_frames: at most, evenly spaced over the walk.

    layout: the devices that share each batch, among which the variables lie. What sample n of a seed is depends neither on them nor
    on batch_size and num, up to rounding.

    Raises:
        UserError: sampler and options that do not fit each other or the schedule; with the first batch.
        NotFiniteError: samples of a batch hold NaN or infinity.
    """
    if config.stretch and not run.holds_images:
        raise UserError(f"sample.stretch is for images; {run.folder} is a run of points.")
    to_data = stretched if config.stretch else run.to_data
    call, num_steps, num_frames = _sampler(run, config, num_frames)
    size = min(num, batch_size)
    whole = layout.rounded_up(size)  # of what is drawn to fill up the devices nothing is kept
    animated = min(num, ANIMATED if run.holds_images else ANIMATED_POINTS)
    key = jax.random.key(seed)
    for start in range(0, num, size):
        begun, count = time.perf_counter(), min(size, num - start)
        batch_labels = None if labels is None else np.resize(labels[start : start + size], whole)
        with fits_memory(
            f"{size} samples at a time do not fit into memory; try --batch-size {max(1, size // 2)}, which draws the same."
        ):
            x_0, walk, *taken = call(
                (graphdef, variables),
                run.process,
                key,
                (whole, *run.shape),
                None if batch_labels is None else layout.deal(jax.numpy.asarray(batch_labels)),
                first=start,
                kept=count,
                layout=layout,
            )
            jax.block_until_ready(x_0)
        num_steps = taken[0] if taken else num_steps
        shown = max(0, min(count, animated - start))
        frames = to_data(layout.gather(walk)[:, :shown]) if shown else np.zeros((num_frames, 0, *run.shape))
        yield Batch(to_data(layout.gather(x_0))[:count], frames, num_steps, time.perf_counter() - begun)


def draw(
    run: Run,
    graphdef: nnx.GraphDef,
    variables: models.Variables,
    labels: np.ndarray | None,
    num: int,
    *,
    sink: Callable[[np.ndarray], object] | None = None,
    **options: Any,
) -> Samples:
    """The batches of `draw_batches`, whose options these are, together.

    sink: is given each batch, in the units of the data, and the samples returned are then the SHOWN first of the images alone.

    Raises:
        UserError: sampler and options that do not fit each other or the schedule.
        NotFiniteError: samples hold NaN or infinity.
    """
    kept = SHOWN if sink is not None and run.holds_images else num
    values, frames, seconds = list[np.ndarray](), list[np.ndarray](), list[float]()
    drawn = num_steps = 0
    for batch in draw_batches(run, graphdef, variables, labels, num, **options):
        if sink is not None:
            sink(batch.values)
        if drawn < kept:
            values.append(batch.values[: kept - drawn])
        if batch.frames.shape[1]:
            frames.append(batch.frames)
        num_steps = max(num_steps, batch.num_steps)
        drawn += len(batch.values)
        seconds.append(batch.seconds)
    walk = np.concatenate(frames, axis=1)
    return Samples(
        values=np.concatenate(values),
        labels=labels if labels is None else labels[:kept],
        frames=walk,
        frame_steps=samplers.frame_steps(num_steps, len(walk)),
        first_call_s=seconds[0],
        later_call_s=float(np.mean(seconds[1:])) if len(seconds) > 1 else None,
    )


def _sampler(run: Run, config: SampleConfig, num_frames: int) -> tuple[Callable[..., Any], int, int]:
    """The call that samples as a config says; how many steps it takes (0: it decides itself), and how many frames it can show.

    Raises:
        UserError: sampler and options that do not fit each other or the process.
    """
    process = run.process
    options: dict[str, Any] = {
        "clip": config.clip,
        "dtype": None if run.config.train.dtype == "float32" else run.config.train.dtype,
    }
    guidance, self_conditioned = guidance_of(run, config), run.inputs.self_conditioned
    if config.sampler == "adaptive":
        if guidance or self_conditioned or config.threshold:
            raise UserError(
                "sampler = adaptive takes neither guidance, nor a threshold, nor a self-conditioned network."
            )
        options |= {"tolerance": config.tolerance, "num_frames": num_frames}
        return functools.partial(samplers.sample_adaptively, **options), 0, num_frames
    times = samplers.times(config.sampler, process, config.steps, spacing=config.spacing, churn=config.churn)
    num_frames = min(num_frames, len(times))
    options |= {
        "step": samplers.create(config.sampler, process, **config.step_options),
        "times": times,
        "threshold": config.threshold,
        "guidance": guidance,
        "self_conditioned": self_conditioned,
        "num_frames": num_frames,
        "frames_before_noise": config.sampler == "strided",
    }
    return functools.partial(samplers.sample, **options), len(times) - 1, num_frames


def guidance_of(run: Run, config: SampleConfig) -> dict[str, Any] | None:
    """The options of classifier-free guidance that a config asks for; None: it asks for none.

    Raises:
        UserError: the run was trained without label dropout, or without classes.
    """
    if config.guidance == 1:
        return None
    null_label = run.inputs.null_label
    if null_label is None:
        raise UserError(
            f"guidance = {config.guidance:g} needs a network that was trained with some labels hidden (--train.label-dropout 0.1); "
            f"{run.folder} was not."
        )
    longest = float(run.config.process.num_steps)
    return {
        "null_label": null_label,
        "scale": config.guidance,
        "interval": (config.guidance_from * longest, config.guidance_to * longest),
        "rescale": config.guidance_rescale,
        "channels": run.shape[-1],
    }


def save_picture(path: Path, run: Run, samples: Samples, heading: str) -> Path:
    """Write the first samples as a titled grid, a row for every round through the classes; points as a scatter over the data."""
    if not run.holds_images:
        return figures.save_scatter(path, real_points(run), samples.values, heading=heading)
    return figures.save_grid(
        path,
        samples.values[:SHOWN],
        titles(run, samples)[:SHOWN],
        heading=heading,
        columns=columns(run, samples),
    )


def save_animation(path: Path, run: Run, samples: Samples, heading: str) -> Path:
    """Write the frames of the samples as a GIF."""
    headings = [f"{heading}: {step}" for step in samples.frame_steps]
    if not run.holds_images:
        return figures.save_scatter_animation(path, real_points(run), samples.frames, headings=headings)
    of_shown = titles(run, samples)[: samples.frames.shape[1]]
    return figures.save_animation(path, samples.frames, of_shown, headings=headings, columns=columns(run, samples))


def draw_and_save(
    folder: Path,
    run: Run,
    graphdef: nnx.GraphDef,
    variables: models.Variables,
    labels: np.ndarray | None,
    num: int,
    *,
    heading: Callable[[Samples], str],
    **options: Any,
) -> tuple[Samples, list[Path]]:
    """Draw samples as `draw` does, straight into samples.npz, whatever their number; then samples.png and, where frames were kept,
    denoising.gif.

    Returns the samples, of images the SHOWN first, and the paths; of several processes the first one writes.
    """
    if not launch.is_first():
        return draw(run, graphdef, variables, labels, num, sink=lambda _: None, **options), []
    found: list[Samples] = []
    name, dtype = ("images", np.uint8) if run.holds_images else ("points", np.float32)
    others = {} if labels is None else {"labels": labels, "class_names": np.array(run.class_names)}

    def write(path: Path) -> None:
        with NpzWriter(path, name, (num, *run.shape), dtype, others) as file:
            found.append(draw(run, graphdef, variables, labels, num, sink=file.append, **options))

    paths = [write_atomically(folder / "samples.npz", write)]
    samples = found[0]
    paths.append(save_picture(folder / "samples.png", run, samples, heading(samples)))
    if len(samples.frames):
        paths.append(save_animation(folder / "denoising.gif", run, samples, heading(samples)))
    return samples, paths


def real_points(run: Run) -> np.ndarray:
    """The first points of the run's data, (n, 2), n at most REAL_POINTS; none where the run has no data of its own."""
    source = run.open_source() if run.config.data.source else None
    return source.points[:REAL_POINTS] if isinstance(source, PointSource) else np.zeros((0, 2))


def titles(run: Run, samples: Samples) -> list[str]:
    """The class of each sample; empty for an unconditional run."""
    return [] if samples.labels is None else [run.class_names[label] for label in samples.labels]


def columns(run: Run, samples: Samples) -> int | None:
    """One column for each class in turn, while they fit a page."""
    if samples.labels is None:
        return None
    classes = len(np.unique(samples.labels))
    return classes if 4 <= classes <= 20 else None
