"""Samples of a run, and the files they become: an npz, a titled grid, a denoising animation."""

import time
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from ddpm_jax import figures, models, samplers
from ddpm_jax.data import to_images
from ddpm_jax.files import write_atomically
from ddpm_jax.presets import SampleConfig
from ddpm_jax.training.run import Run

FRAMES = 24
"""Pictures in an animation, fewer where there are fewer steps."""
SHOWN = 100
"""Samples in a grid at most; the npz holds all."""
ANIMATED = 40
"""Samples in an animation at most."""


@dataclass(frozen=True)
class Samples:
    """Images drawn from a run."""

    images: np.ndarray
    """uint8 (N, H, W, C)."""
    labels: np.ndarray | None
    """int32 (N,), or None for an unconditional run."""
    frames: np.ndarray
    """uint8 (K, M, H, W, C): the walk of the first M samples from noise to image."""
    frame_steps: np.ndarray
    """int (K,): after how many denoising steps each frame was taken."""
    first_call_s: float
    """Seconds of the first batch, compilation included."""
    later_call_s: float | None
    """Mean seconds of a later full batch; None: there was one batch only."""


def draw(
    run: Run,
    graphdef: nnx.GraphDef,
    variables: models.Variables,
    labels: np.ndarray | None,
    num: int,
    *,
    config: SampleConfig,
    seed: int = 0,
    batch_size: int = 500,
    animate: bool = True,
) -> Samples:
    """Draw num samples, batch after batch through one compiled program.

    Raises:
        UserError: sampler and options that do not fit each other or the schedule.
    """
    step = samplers.create(config.sampler, **config.step_options)
    strided = config.sampler == "strided"
    times = samplers.strided_times(run.process, config.steps) if strided else run.process.times(config.steps)
    num_steps = len(times) - 1
    num_frames = min(FRAMES, num_steps + 1) if animate else 0
    size = min(num, batch_size)
    key = jax.random.key(seed)
    images, frames, seconds = [], np.zeros((0, 0)), []
    for start in range(0, num, size):
        begun = time.perf_counter()
        batch_labels = None if labels is None else np.resize(labels[start : start + size], size)
        x_0, walk = samplers.sample(
            (graphdef, variables),
            run.process,
            jax.random.fold_in(key, start // size),
            (size, *run.image_shape),
            None if batch_labels is None else jax.numpy.asarray(batch_labels),
            step=step,
            times=times,
            clip=config.clip,
            num_frames=num_frames,
            frames_before_noise=strided,
            dtype=None if run.config.train.dtype == "float32" else run.config.train.dtype,
        )
        images.append(to_images(x_0)[: num - start])
        if start == 0:
            frames = to_images(walk[:, :ANIMATED])
        seconds.append(time.perf_counter() - begun)
    return Samples(
        images=np.concatenate(images),
        labels=labels,
        frames=frames,
        frame_steps=samplers.frame_steps(num_steps, num_frames),
        first_call_s=seconds[0],
        later_call_s=float(np.mean(seconds[1:])) if len(seconds) > 1 else None,
    )


def save_grid(path: Path, run: Run, samples: Samples, heading: str) -> Path:
    """Write the first samples as a titled grid, a row for every round through the classes."""
    return figures.save_grid(
        path,
        samples.images[:SHOWN],
        _titles(run, samples)[:SHOWN],
        heading=heading,
        columns=_columns(run, samples),
    )


def save_all(folder: Path, run: Run, samples: Samples, heading: str) -> list[Path]:
    """Write samples.npz, samples.png and, where frames were kept, denoising.gif; returns their paths."""
    arrays = {"images": samples.images} | ({} if samples.labels is None else {"labels": samples.labels})
    if run.class_names:
        arrays["class_names"] = np.array(run.class_names)
    paths = [
        write_atomically(folder / "samples.npz", lambda path: np.savez_compressed(path, allow_pickle=False, **arrays)),
        save_grid(folder / "samples.png", run, samples, heading),
    ]
    if len(samples.frames):
        headings = [f"{heading}: {step}" for step in samples.frame_steps]
        titles = _titles(run, samples)[: samples.frames.shape[1]]
        paths.append(
            figures.save_animation(
                folder / "denoising.gif", samples.frames, titles, headings=headings, columns=_columns(run, samples)
            )
        )
    return paths


def _titles(run: Run, samples: Samples) -> list[str]:
    return [] if samples.labels is None else [run.class_names[label] for label in samples.labels]


def _columns(run: Run, samples: Samples) -> int | None:
    """One column for each class in turn, while they fit a page."""
    if samples.labels is None:
        return None
    classes = len(np.unique(samples.labels))
    return classes if 4 <= classes <= 20 else None
