"""`ddpm plot`: the pictures of a run that the systems' authors showed, each made from the run folder alone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from ddpm_jax import data, figures, noise
from ddpm_jax.errors import UserError, meant
from ddpm_jax.evaluation.distances import nearest
from ddpm_jax.evaluation.report import load_images
from ddpm_jax.files import check_writable
from ddpm_jax.processes import GaussianDiffusion
from ddpm_jax.training import samples as drawing
from ddpm_jax.training.metrics import read_metrics
from ddpm_jax.training.objective import check
from ddpm_jax.training.run import Run

NOISED = 8
"""Examples in the rows of `noising`, at most."""
SEARCHED = 60_000
"""Images of the data among which `nearest` looks, at most."""


@dataclass(frozen=True)
class Pictures:
    """Draws pictures of one run; the network is loaded, and samples are drawn, when the first picture needs them."""

    run: Run
    folder: Path
    seed: int = 0
    num: int | None = None
    """Samples in a picture; None: as the run's config says."""

    def samples(self) -> Path:
        """Samples: a grid with class titles, or a scatter over the data."""
        drawn, step = self._draw(num_frames=0)
        return drawing.save_picture(self.folder / "samples.png", self.run, drawn, self._heading(step))

    def animation(self) -> Path:
        """The grid, or the scatter, on its way from noise to data."""
        drawn, step = self._draw(num_frames=drawing.FRAMES)
        return drawing.save_animation(self.folder / "animation.gif", self.run, drawn, self._heading(step))

    def one(self) -> Path:
        """One image on its way from noise to data, large."""
        self._images_only("one")
        drawn, step = self._draw(num_frames=2 * drawing.FRAMES, num=1)
        first = replace(drawn, frames=np.kron(drawn.frames, np.ones((1, 1, 4, 4, 1), np.uint8)))
        return drawing.save_animation(self.folder / "one.gif", self.run, first, self._heading(step))

    def walk(self) -> Path:
        """A few images on their way from noise to data, from top to bottom."""
        self._images_only("walk")
        num = min(2 * NOISED, self.num or self.run.config.sample.num)
        drawn, step = self._draw(num_frames=6, num=num)
        *before, of = drawn.frame_steps
        return figures.save_grid(
            self.folder / "walk.png",
            drawn.frames.reshape(-1, *self.run.shape),
            heading=self._heading(step),
            columns=num,
            row_titles=[f"after {after}" for after in before] + [f"after {of} steps"],
        )

    def middle(self) -> Path:
        """Samples in the middle of the walk: images above what they became, points over the data."""
        num = self.num or self.run.config.sample.num
        drawn, step = self._draw(num_frames=3, num=min(NOISED, num) if self.run.holds_images else num)
        after, of = drawn.frame_steps[1:]
        heading = f"{self._heading(step)}, after {after} of {of} steps"
        path = self.folder / "middle.png"
        if not self.run.holds_images:
            return figures.save_scatter(path, drawing.real_points(self.run), drawn.frames[1], heading=heading)
        rows = drawn.frames[1:].reshape(-1, *self.run.shape)
        return figures.save_grid(
            path, rows, heading=heading, columns=drawn.frames.shape[1], row_titles=["middle", "final"]
        )

    def beside(self) -> Path:
        """Samples above images of the data."""
        self._images_only("beside")
        num = min(NOISED, self.num or self.run.config.sample.num)
        drawn, step = self._draw(num_frames=0, num=num)
        real = self.run.to_data(self.run.first_batch(num, self.seed)["x_0"])
        return figures.save_grid(
            self.folder / "beside.png",
            np.concatenate([drawn.values, real]),
            heading=self._heading(step),
            columns=num,
            row_titles=["samples", "data"],
        )

    def nearest(self) -> Path:
        """Samples above the image of the data that is nearest to each, by all pixels: copies would show."""
        self._images_only("nearest")
        num = min(NOISED, self.num or self.run.config.sample.num)
        drawn, step = self._draw(num_frames=0, num=num)
        images, _ = load_images(self.run, self.run.open_source(), self.seed, SEARCHED)
        distances, which = nearest(drawn.values, images)
        return figures.save_grid(
            self.folder / "nearest.png",
            np.concatenate([drawn.values, images[which]]),
            [""] * num + [f"{distance:.2f}" for distance in distances],
            heading=self._heading(step),
            columns=num,
            row_titles=["samples", f"of {len(images):,}"],
        )

    def noising(self) -> Path:
        """Rows of data, data with noise at rising times, that noise, and the noise that the network sees in it."""
        self._images_only("noising")
        run, process = self.run, self.run.process
        batch = self.run.first_batch(min(NOISED, process.sampling_steps(None)), self.seed)
        num = len(batch["x_0"])
        variables, step = run.load_variables()
        x_0 = jnp.asarray(batch["x_0"])
        drawn = noise.normal(noise.sample_keys(self.seed, num), x_0.shape[1:])
        t = jnp.asarray(process.times(num)[:num][::-1])
        x_t = process.add_noise(x_0, drawn, t)
        labels = batch["label"] if run.class_names else None
        denoise = run.denoiser(labels, variables=variables, shown=run.shown(batch["x_0"]))
        predicted = denoise(x_t, t).eps
        # noise is shown as an image of mean 127.5, two standard deviations to either end
        shown = [run.to_data(x) for x in (x_0, x_t)] + [data.to_images(eps / 2) for eps in (drawn, predicted)]
        titles = [f"t = {float(time):g}" for time in t] + [""] * (3 * num)
        return figures.save_grid(
            self.folder / "noising.png",
            np.concatenate(shown),
            titles,
            heading=self._heading(step),
            columns=num,
            row_titles=["data", "noised", "noise", "predicted noise"],
        )

    def schedule(self) -> Path:
        """The noise schedule by t, on a logarithmic axis."""
        process = self.run.process
        if not isinstance(process, GaussianDiffusion):
            raise UserError(f"the picture schedule is of a diffusion, and {self.run.folder} is of kind {process.name}.")
        table = process.schedule
        times = table.timesteps
        curves = {
            "beta": table.betas[times],
            "1 - beta": 1 - table.betas[times],
            "alphas_cumprod": table.alphas_cumprod[times],
            "sigma of the reverse step": np.sqrt(table.betas[times]),
        }
        heading = f"{table.title}, {table.num_steps} steps"
        return figures.save_curves(self.folder / "schedule.png", times, curves, heading=heading, xlabel="t")

    def loss(self) -> Path:
        """The loss by step, as recorded and smoothed."""
        metrics = read_metrics(self.run.folder)
        if not metrics:
            raise UserError(f"{self.run.folder} has no metrics yet, so there is no loss to plot; train it first.")
        return figures.save_loss_curve(self.folder / "loss.png", metrics)

    def _draw(self, *, num_frames: int, num: int | None = None) -> tuple[drawing.Samples, int]:
        config = self.run.config.sample
        num = num or self.num or config.num
        drawn = drawing.Drawing(self.run, config, seed=self.seed)
        return drawn.draw(self.run.labels(num), num, num_frames=num_frames), drawn.step

    def _heading(self, step: int) -> str:
        return f"{self.run.folder.name}, step {step}"

    def _images_only(self, kind: str) -> None:
        if not self.run.holds_images:
            raise UserError(f"the picture {kind} is of images, and {self.run.folder} is of points.")


KINDS: dict[str, Callable[[Pictures], Path]] = {
    "samples": Pictures.samples,
    "animation": Pictures.animation,
    "one": Pictures.one,
    "walk": Pictures.walk,
    "middle": Pictures.middle,
    "beside": Pictures.beside,
    "nearest": Pictures.nearest,
    "noising": Pictures.noising,
    "schedule": Pictures.schedule,
    "loss": Pictures.loss,
}

OF_IMAGES = frozenset({"one", "walk", "beside", "nearest", "noising"})


def plot(
    run: Run, kinds: Sequence[str] = (), folder: Path | None = None, *, seed: int = 0, num: int | None = None
) -> list[Path]:
    """Draw pictures of a run into RUN/pictures, or another folder; kinds: of KINDS, all that fit the run and its data unless given.

    Raises:
        UserError: an unknown kind, or one that does not fit the run; a config whose parts do not fit each other; no checkpoint or
            data where the picture needs them; a folder that cannot be written to.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise UserError(f"a picture must be one of {', '.join(KINDS)}; got {kind!r}.{meant(kind, KINDS)}")
    if num is not None and num < 1:
        raise UserError(f"num must be at least 1; got {num}.")
    check(run.config)
    check_writable(folder or run.results / "pictures")
    pictures = Pictures(run, folder or run.results / "pictures", seed, num)
    return [KINDS[kind](pictures) for kind in kinds or fitting(run)]


def fitting(run: Run) -> list[str]:
    """The kinds that a run has what it takes for: one made of a file of weights has neither data nor losses."""
    unfit = set() if run.holds_images else set(OF_IMAGES)
    if not isinstance(run.process, GaussianDiffusion):
        unfit.add("schedule")
    if not run.config.data.source:
        unfit |= {"beside", "nearest", "noising"}
    if not read_metrics(run.folder):
        unfit.add("loss")
    return [kind for kind in KINDS if kind not in unfit]
