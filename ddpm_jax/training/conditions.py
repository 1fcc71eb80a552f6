"""What the samples of a run are shown: of the images of its data, or of files that hold what is left of an image."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_jax import data, display
from ddpm_jax.condition import Condition
from ddpm_jax.data.decoding import BadImageError, decode_image, read_file
from ddpm_jax.data.geometry import fit
from ddpm_jax.errors import UserError
from ddpm_jax.training.run import Run
from ddpm_jax.training.step import as_batch


@dataclass(frozen=True)
class Conditions:
    """What each sample is shown, in turn: made when it is asked for, so that their number costs no memory."""

    condition: Condition
    """What is left of an image, and how the network sees it."""
    read: Callable[[int], np.ndarray]
    """The uint8 image (H, W, C) of a number; or, where `kept`, what is kept of one."""
    numbers: np.ndarray
    """(N,), of the image that each sample is shown."""
    scaling: data.Scaling
    """Of pixels to what the network sees."""
    labels: np.ndarray | None = None
    """int32 (N,), the class of each image; None: nobody knows."""
    kept: bool = False
    """Whether `read` gives what is kept of an image."""

    def __repr__(self) -> str:
        return display.line(self, repr(self.condition), f"{len(self.numbers)} samples")

    def of(self, samples: np.ndarray) -> np.ndarray:
        """float32 (n, H, W, C'), what the network is shown for samples of these numbers; beyond the last one they begin anew."""
        numbers = self.numbers[np.asarray(samples) % len(self.numbers)]
        x = self.scaling.apply(np.stack([self.read(int(number)) for number in numbers]))
        return np.asarray(self.condition.raised(x) if self.kept else self.condition.shown(x))

    def pictures(self, samples: np.ndarray) -> np.ndarray:
        """The same as uint8 images (n, H, W, 1 or 3)."""
        return self.scaling.to_images(self.condition.pictured(self.of(samples)))


def of_source(run: Run, source: data.Source, labels: np.ndarray | None, num: int, seed: int) -> Conditions:
    """Conditions made of a source's images in a seed's order; with labels, of images of these classes in turn.

    labels: (num,), as `Run.labels` makes them; None: of whatever class.

    Raises:
        UserError: the source has no image of a class.
    """
    size, _, channels = run.shape
    order = np.random.default_rng(seed).permutation(len(source))
    if labels is None:
        numbers = np.resize(order, num)
    else:
        own, numbers = data.labels_of(source)[order], np.zeros(num, int)
        for label in np.unique(labels):
            found = order[own == label]
            if not len(found):
                name = source.class_names[label] if label < len(source.class_names) else label
                raise UserError(f"{source.name} has no image of class {name} to make a condition of: pass --condition.")
            numbers[labels == label] = np.resize(found, np.count_nonzero(labels == label))
    own_labels = data.labels_of(source)[numbers] if source.class_names else None

    def read(number: int) -> np.ndarray:
        return fit(source[number]["image"], size, channels)

    return Conditions(_condition(run), read, numbers, run.scaling, own_labels)


def of_batches(run: Run, batches: Iterator[Any], num: int) -> Conditions:
    """Conditions made of the first num images of somebody's own batches, or of fewer that begin anew, where there are no more."""
    images: list[np.ndarray] = []
    for batch in batches:
        x_0 = np.asarray(as_batch(batch)["x_0"])
        images += [*(x_0 if x_0.dtype == np.uint8 else run.to_data(x_0))]
        if len(images) >= num:
            break
    if not images:
        raise UserError("the batches must hold images to make conditions of; got none.")
    return Conditions(_condition(run), images.__getitem__, np.arange(len(images))[:num], run.scaling)


def of_files(run: Run, files: Sequence[Path]) -> Conditions:
    """Conditions of image files that hold what is left of an image: small ones, grey ones, or ones with a part missing.

    Each is cut to the middle square and brought to the size of what is kept of an image of the run.

    Raises:
        UserError: the run's network is shown no images, or a file is no image.
    """
    condition = _condition(run)
    size, _, channels = condition.degraded_shape(run.shape)
    images = []
    for path in files:
        try:
            images.append(fit(decode_image(read_file(path)), size, channels))
        except BadImageError as error:
            raise UserError(f"condition: {path} is not a readable image ({error}).") from error
    return Conditions(condition, images.__getitem__, np.arange(len(images)), run.scaling, kept=True)


def _condition(run: Run) -> Condition:
    if run.condition is None:
        raise UserError(
            f"condition is for a run that was trained with data.condition; {run.folder} was trained without."
        )
    return run.condition
