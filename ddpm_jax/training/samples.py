"""Samples of a run, and the files they become: an npz, a titled grid or a scatter, a denoising animation."""

import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from ddpm_jax import display, figures, launch, models, noise, progress, samplers
from ddpm_jax.data import PointSource, Source, stretched
from ddpm_jax.denoisers import Denoiser, clipped, guided, thresholded
from ddpm_jax.errors import UserError, fits_memory
from ddpm_jax.files import together, write_atomically
from ddpm_jax.parallel import ALONE, Layout
from ddpm_jax.presets import SampleConfig
from ddpm_jax.processes import GaussianDiffusion
from ddpm_jax.training.conditions import Conditions, of_source
from ddpm_jax.training.npz_writer import NpzWriter
from ddpm_jax.training.objective import check
from ddpm_jax.training.run import Run, open_run

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
    shown: np.ndarray | None = None
    """uint8 images (M, H, W, 1 or 3): what the network was shown for the SHOWN first; None: nothing."""

    __repr__ = display.of_fields

    def _repr_html_(self) -> str:
        """Their picture: a grid with the labels as titles, or a scatter of points."""
        if self.values.ndim == 2:
            picture = figures.scatter(self.values[:0], self.values)
        else:
            titles = [] if self.labels is None else [str(label) for label in self.labels[:SHOWN]]
            picture = figures.grid(_beside_what_was_shown(self), titles)
        return display.paragraph(repr(self)) + display.picture(figures.as_png(picture), f"{len(self.values)} samples")


class Batch(NamedTuple):
    """One call of the sampler."""

    values: np.ndarray
    """As in `Samples`."""
    frames: np.ndarray
    """(K, M, ...): the walk of its samples, as far as they are among those that are animated."""
    num_steps: int
    """Denoising steps that it took."""
    seconds: float

    def __repr__(self) -> str:
        return display.of_fields(self)


@dataclass(frozen=True)
class Drawing:
    """How a run's samples are drawn; how many, and of which classes, is said when they are.

    What sample n of a seed is depends neither on the devices nor on batch_size and the number of samples, up to rounding.

    Raises:
        UserError: the config does not fit the run's.
    """

    run: Run
    config: SampleConfig
    """Sampler, bounds, guidance."""
    trained: tuple[models.Variables, int] | None = None
    """Parameters and running statistics, and the step they are of; None: those of the newest checkpoint, once they are needed."""
    seed: int = 0
    """Start of the random draws."""
    batch_size: int = 500
    """Samples drawn at a time."""
    layout: Layout = ALONE
    """The devices that share each batch."""
    conditions: Conditions | None = None
    """What the network of each sample is shown; None: of images of the run's data, where it is shown any."""

    def __post_init__(self) -> None:
        check(replace(self.run.config, sample=self.config))

    def __repr__(self) -> str:
        changed = display.changed(self, "run", "config", "trained", "conditions")
        return display.line(self, repr(str(self.run.folder)), self.config, **changed)

    @property
    def step(self) -> int:
        """The step whose network is drawn with."""
        return self._variables[1]

    @functools.cached_property
    def network(self) -> Denoiser:
        """The run's network, in the precision of its parameters."""
        return self.run.denoiser(variables=self._variables[0])

    @functools.cached_property
    def _drawn_with(self) -> Denoiser:
        dtype = self.run.config.train.dtype
        return self.run.denoiser(variables=self._variables[0], dtype=None if dtype == "float32" else dtype)

    @functools.cached_property
    def _variables(self) -> tuple[models.Variables, int]:
        variables, step = self.trained or self.run.load_variables(layout=self.layout)
        return self.layout.everywhere(variables), step

    def denoiser(self, labels: Any, shown: Any = None) -> Denoiser:
        """The run's network for these labels, computing as in training, guided and bounded as the config asks.

        shown: (B, H, W, C'), what a network with data.condition is shown.
        """
        other = None if self._weaker is None else self._weaker.with_labels(labels)
        denoise = believed(self._drawn_with.with_labels(labels), self.config, other)
        return denoise if shown is None else denoise.beside(shown)

    @functools.cached_property
    def _weaker(self) -> Denoiser | None:
        if not self.config.weaker:
            return None
        folder, _, step = self.config.weaker.partition("@")
        if step and not step.isdecimal():
            raise UserError(f"sample.weaker must be FOLDER or FOLDER@STEP; got {self.config.weaker}.")
        run = open_run(Path(folder))
        if run.process != self.run.process or run.shape != self.run.shape:
            raise UserError(
                f"sample.weaker = {folder} must be a run of the same process and shape; it has {run.process} and {run.shape}, "
                f"{self.run.folder} {self.run.process} and {self.run.shape}."
            )
        if run.condition != self.run.condition:
            raise UserError(
                f"sample.weaker = {folder} must be a run with the same data.condition; it has {run.condition}, "
                f"{self.run.folder} {self.run.condition}."
            )
        if run.class_names and run.class_names != self.run.class_names:
            raise UserError(f"sample.weaker = {folder} is of other classes than {self.run.folder}.")
        variables, _ = run.load_variables(layout=self.layout, step=int(step) if step else None)
        dtype = self.run.config.train.dtype
        whole = self.layout.everywhere(variables)
        return run.denoiser(variables=whole, dtype=None if dtype == "float32" else dtype)

    def shown_for(self, labels: np.ndarray | None, num: int) -> Conditions | None:
        """What num samples of these labels are shown; None: nothing.

        Raises:
            UserError: the run's data is gone or damaged, or it has none of its own, and no conditions were given.
        """
        if self.conditions is not None or self.run.condition is None:
            return self.conditions
        if not self.run.config.data.source:
            raise UserError(
                f"{self.run.folder} has no data of its own to make conditions of: pass --condition IMAGE ..., "
                f"what {self.run.condition!r} leaves of an image."
            )
        return of_source(self.run, self._source, labels, num, self.seed)

    @functools.cached_property
    def _source(self) -> Source:
        """The run's own data."""
        return self.run.open_source()

    def batches(self, labels: np.ndarray | None, num: int, *, num_frames: int = 0) -> Iterator[Batch]:
        """Draw num samples, batch after batch through one compiled program; num_frames: at most, evenly spaced over the walk.

        Raises:
            NotFiniteError: samples of a batch hold NaN or infinity.
        """
        run, config, layout = self.run, self.config, self.layout
        to_data = stretched if config.stretch else run.to_data
        steps = None if isinstance(config.sampler, samplers.Adaptive) else config.steps
        num_frames = min(num_frames, 1 + run.process.sampling_steps(steps))
        size = min(num, self.batch_size)
        whole = layout.rounded_up(size)  # of what is drawn to fill up the devices nothing is kept
        animated = min(num, ANIMATED if run.holds_images else ANIMATED_POINTS)
        conditions = self.shown_for(labels, num)
        with progress.bar(num, "sampling, to be compiled first", unit="sample") as bar:
            for start in range(0, num, size):
                begun, count = time.perf_counter(), min(size, num - start)
                shown = max(0, min(count, animated - start))
                of_batch = None if labels is None else layout.deal(np.resize(labels[start : start + size], whole))
                beside = None if conditions is None else layout.deal(conditions.of(start + np.arange(whole)))
                keys = np.asarray(jax.random.key_data(noise.sample_keys(self.seed, whole, start)))
                with fits_memory(
                    f"{size} samples at a time do not fit into memory; try --batch-size {max(1, size // 2)}, which draws the same."
                ):
                    walked = samplers.draw(
                        self.denoiser(of_batch, beside),
                        config.sampler,
                        layout.deal(keys),
                        (whole, *run.shape),
                        steps,
                        config.spacing,
                        num_frames,
                        count,
                    )
                    jax.block_until_ready(walked)
                frames = (
                    to_data(layout.gather(walked.frames)[:, :shown]) if shown else np.zeros((num_frames, 0, *run.shape))
                )
                values, taken = to_data(layout.gather(walked.x_0))[:count], layout.gather(walked.num_steps)[:count]
                bar.set_description_str("sampling", refresh=False)
                bar.update(count)
                yield Batch(values, frames, int(taken.max()), time.perf_counter() - begun)

    def draw(
        self,
        labels: np.ndarray | None,
        num: int,
        *,
        num_frames: int = 0,
        sink: Callable[[np.ndarray], object] | None = None,
    ) -> Samples:
        """The `batches` together.

        sink: is given each batch, in the units of the data, and the samples returned are then the SHOWN first of the images alone.

        Raises:
            NotFiniteError: samples hold NaN or infinity.
        """
        kept = SHOWN if sink is not None and self.run.holds_images else num
        values, frames, seconds = list[np.ndarray](), list[np.ndarray](), list[float]()
        drawn = num_steps = 0
        for batch in self.batches(labels, num, num_frames=num_frames):
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
        conditions = self.shown_for(labels, num)
        return Samples(
            values=np.concatenate(values),
            labels=labels if labels is None else labels[:kept],
            frames=walk,
            frame_steps=samplers.frame_steps(num_steps, len(walk)),
            first_call_s=seconds[0],
            later_call_s=float(np.mean(seconds[1:])) if len(seconds) > 1 else None,
            shown=None if conditions is None else conditions.pictures(np.arange(min(num, SHOWN))),
        )


def believed(denoise: Denoiser, config: SampleConfig, other: Denoiser | None = None) -> Denoiser:
    """A denoiser guided and bounded as a config asks that was checked; other: what it is led away from, None for no labels."""
    process = denoise.process
    if config.guidance != 1:
        longest = process.schedule.num_steps if isinstance(process, GaussianDiffusion) else float(process.times(1)[0])
        interval = config.guidance_from * longest, config.guidance_to * longest
        denoise = guided(denoise, config.guidance, interval=interval, rescale=config.guidance_rescale, other=other)
    if config.clip is None:
        return denoise
    return (
        clipped(denoise, config.clip)
        if config.threshold is None
        else thresholded(denoise, config.threshold, config.clip)
    )


def save_picture(path: Path, run: Run, samples: Samples, heading: str) -> Path:
    """Write the first samples as a titled grid, a row for every round through the classes; points as a scatter over the data.

    Each stands to the right of what its network was shown, where that is something.
    """
    if not run.holds_images:
        return figures.save_scatter(path, real_points(run), samples.values, heading=heading)
    return figures.save_grid(
        path,
        _beside_what_was_shown(samples),
        titles(run, samples)[:SHOWN],
        heading=heading,
        columns=columns(run, samples),
    )


def _beside_what_was_shown(samples: Samples) -> np.ndarray:
    values = samples.values[:SHOWN]
    if samples.shown is None:
        return values
    shown = np.broadcast_to(samples.shown[: len(values)], values.shape)  # one channel becomes three
    return np.concatenate([shown, values], axis=2)


def save_animation(path: Path, run: Run, samples: Samples, heading: str) -> Path:
    """Write the frames of the samples as a GIF."""
    headings = [f"{heading}, after {step} of {samples.frame_steps[-1]} steps" for step in samples.frame_steps]
    if not run.holds_images:
        return figures.save_scatter_animation(path, real_points(run), samples.frames, headings=headings)
    of_shown = titles(run, samples)[: samples.frames.shape[1]]
    return figures.save_animation(path, samples.frames, of_shown, headings=headings, columns=columns(run, samples))


def draw_and_save(
    folder: Path,
    drawing: Drawing,
    labels: np.ndarray | None,
    num: int,
    *,
    num_frames: int = 0,
    heading: Callable[[Samples], str],
) -> tuple[Samples, list[Path]]:
    """Draw samples straight into samples.npz, whatever their number; then samples.png and, where frames were kept, denoising.gif.

    Returns the samples, of images the SHOWN first, and the paths; of several processes the first one writes.
    """
    run = drawing.run
    if not launch.is_first():
        return drawing.draw(labels, num, num_frames=num_frames, sink=lambda _: None), []
    found: list[Samples] = []
    name, dtype = ("images", np.uint8) if run.holds_images else ("points", np.float32)
    others = {} if labels is None else {"labels": labels, "class_names": np.array(run.class_names)}

    def write(path: Path) -> None:
        with NpzWriter(path, name, (num, *run.shape), dtype, others) as file:
            found.append(drawing.draw(labels, num, num_frames=num_frames, sink=file.append))

    with together():
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
