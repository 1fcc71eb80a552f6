"""FID, KID, precision and recall of a run's samples in the features of Inception-v3, as the literature reports them."""

import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ddpm_jax import data, launch, progress
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation import inception
from ddpm_jax.evaluation.distances import frechet_of_moments, kernel_distance
from ddpm_jax.evaluation.manifolds import precision_recall
from ddpm_jax.evaluation.moments import Moments, Reference, Sums, read_reference, write_reference
from ddpm_jax.evaluation.report import Evaluation, Metric, check_drawing, facts_of, fitted, open_data, order_of, save
from ddpm_jax.files import check_writable
from ddpm_jax.presets import SampleConfig
from ddpm_jax.training import Drawing, Run

KEPT = 10_000
"""Features of either side that KID, precision and recall see, at most: 80 MB; FID sees them all, and keeps none."""
NEIGHBOURS = 3
"""k of precision and recall."""

Features = Callable[[np.ndarray], np.ndarray]
"""uint8 images (N, H, W, C) -> features (N, F) float32."""


@dataclass(frozen=True)
class Gathered:
    """The features of images that passed by."""

    sums: Sums
    kept: np.ndarray
    """Those of the first images, float32 (at most KEPT, F)."""


def gather(features: Features, batches: Iterable[np.ndarray], *, keep: int = KEPT) -> Gathered:
    """Sums over all images of the batches, one batch in memory at a time, and the features of the first `keep`.

    Raises:
        UserError: there is no image.
    """
    sums: Sums | None = None
    kept = []
    for images in batches:
        found = features(images)
        kept.append(found[: max(0, keep - (sums.count if sums else 0))])
        sums = sums + Sums.of(found) if sums else Sums.of(found)
    if sums is None:
        raise UserError("features need at least 1 image; got none.")
    return Gathered(sums, np.concatenate(kept))


@dataclass(frozen=True)
class _Held:
    """What samples are held against, and real images that take their place."""

    moments: Moments
    kept: np.ndarray | None
    """Features for KID, precision and recall; None: a file of moments has none."""
    real: Gathered | None
    """As many real images as there are samples; None where there are too few."""
    real_moments: Moments
    """What those are held against: the moments of real images that are not among them, where the data is ours to divide."""
    told: str
    """Which images those are that samples are held against."""
    real_told: str | None
    """Which images take the samples' place, and what they are held against."""


def evaluate_fid(
    drawing: Drawing,
    *,
    weights: Path | None = None,
    reference: Path | None = None,
    save_reference: Path | None = None,
    num_real: int | None = None,
    held_out: str | None = None,
) -> tuple[Evaluation, Path]:
    """Draw as many samples as the config says and measure them in Inception's features; also written to fid.json in the run folder.

    Samples are drawn batch after batch and kept no longer than it takes to see them. They are held against the run's own data,
    against held_out (spec of a source), or against a file of statistics or images (`moments.read_reference`). The column of real
    data: config.num images against the others, where there are twice as many; against the file, where one is given.

    weights: of the network, None: those in the cache. save_reference: where to write the statistics of the data that samples are
    held against. num_real: images of that data looked at, at most; None: all.

    Raises:
        UserError: points; weights, reference or data that are missing or do not fit; no checkpoint; fewer than 4
            samples; a folder that cannot be written to.
    """
    check_drawing(drawing)
    run, config, seed, batch_size = drawing.run, drawing.config, drawing.seed, drawing.batch_size
    _check(run, config, reference, save_reference)
    labels = run.labels(config.num)
    facts = facts_of(drawing)  # without a checkpoint there is nothing to measure
    features = inception.load_extractor(weights)
    file = None if reference is None else read_reference(reference, inception.NUM_FEATURES)
    try:
        source = _Reals(run, *open_data(run, held_out), seed, batch_size, num_real)
    except UserError:
        if file is None or held_out is not None:
            raise
        source = None  # samples can be held against the file all the same
    if file is None and source is not None and len(source) <= NEIGHBOURS:
        raise UserError(f"FID needs at least {NEIGHBOURS + 1} real images; got {len(source)} of {source.source.name}.")
    batches = drawing.batches(labels, config.num)
    samples = gather(features, (batch.values for batch in batches))
    if file is not None:
        held = _against_file(features, file, source, config.num, str(reference), batch_size)
    else:
        assert source is not None
        held = _against_data(features, source, config.num)
    facts |= {
        "seed of training": run.config.train.seed,
        "held against": held.told,
        "network": f"Inception-v3 of 2015, {features.told}",
        "resize": inception.RESIZE,
    }
    if held.real_told is not None:
        facts["real data"] = held.real_told
    if held.kept is not None:
        facts["KID, precision, recall"] = f"of {len(samples.kept)} samples and {len(held.kept)} real; k = {NEIGHBOURS}"
    evaluation = Evaluation(_metrics(samples, held), facts, {})
    if save_reference is not None and launch.is_first():
        about = f"{held.told}; {features.told}; {inception.RESIZE}"
        write_reference(save_reference, held.moments, about)
    return evaluation, save(run, "fid.json", evaluation.json())


def _check(run: Run, config: SampleConfig, reference: Path | None, save_reference: Path | None) -> None:
    if not run.holds_images:
        raise UserError(f"FID is of images; {run.folder} is a run of points.")
    if config.num <= NEIGHBOURS:
        raise UserError(f"num must be at least {NEIGHBOURS + 1}, and is better 10,000; got {config.num}.")
    if save_reference is not None and reference is not None:
        raise UserError(
            "fid_save writes the statistics of data, and fid_reference takes those of a file; give one of them."
        )
    if save_reference is not None and save_reference.suffix != ".npz":
        raise UserError(f"fid_save must be an .npz file; got {save_reference}.")
    for folder in (run.results, *([] if save_reference is None else [save_reference.parent])):
        check_writable(folder)
    if config.num < inception.NUM_FEATURES:
        warnings.warn(
            f"FID of {config.num} samples is too large, by an amount that depends on their count: take 10,000 or more, "
            f"in no case fewer than the {inception.NUM_FEATURES:,} features.",
            stacklevel=3,
        )


@dataclass(frozen=True)
class _Reals:
    """Real images in random order, read as they are needed."""

    run: Run
    source: data.Source
    how: str
    seed: int
    batch_size: int
    most: int | None

    def __len__(self) -> int:
        return min(len(self.source), sys.maxsize if self.most is None else self.most)

    def batches(self, start: int, stop: int) -> Iterator[np.ndarray]:
        order = order_of(self.source, self.seed)[start:stop]
        return (
            fitted(self.run, self.source, order[first : first + self.batch_size])[0]
            for first in range(0, len(order), self.batch_size)
        )


def _against_data(features: Features, source: _Reals, num: int) -> _Held:
    """All images of the data are the reference; num of them are also held against the others, if those are as many."""
    total = len(source)
    aside = num if total >= 2 * num else 0
    real = None
    if aside:
        real = gather(features, _shown(source.batches(0, aside), aside, "real images"))
    rest = gather(features, _shown(source.batches(aside, total), total - aside, "reference"))
    told = f"{total} images of {source.source.name}, {source.how}"
    if real is None:
        return _Held(rest.sums.moments(), rest.kept, None, rest.sums.moments(), told, None)
    real_told = f"{aside} of these images against the other {total - aside}"
    return _Held((real.sums + rest.sums).moments(), rest.kept, real, rest.sums.moments(), told, real_told)


def _against_file(
    features: Features, file: Reference, source: _Reals | None, num: int, path: str, batch_size: int
) -> _Held:
    """The file's moments, or those of its images, are the reference; its images give the features for the rest."""
    told = f"{path}, {file.told}"
    kept, moments = None, file.moments
    if file.images is not None:
        parts = (file.images[first : first + batch_size] for first in range(0, len(file.images), batch_size))
        of_images = gather(features, _shown(parts, len(file.images), "reference"))
        kept, moments = of_images.kept, moments or of_images.sums.moments()
        told = f"{len(file.images)} images of {path}" if file.moments is None else f"{told}, and its images"
    assert moments is not None
    real = real_told = None
    if source is not None and len(source) >= num:
        real = gather(features, _shown(source.batches(0, num), num, "real images"))
        real_told = f"{num} images of {source.source.name}, {source.how}"
    return _Held(moments, kept, real, moments, told, real_told)


def _metrics(samples: Gathered, held: _Held) -> tuple[Metric, ...]:
    real = held.real
    of_samples = {"fid": frechet_of_moments(*samples.sums.moments(), *held.moments)}
    of_real = {} if real is None else {"fid": frechet_of_moments(*real.sums.moments(), *held.real_moments)}
    if held.kept is not None:
        of_samples |= _of_kept(samples.kept, held.kept)
        of_real |= {} if real is None else _of_kept(real.kept, held.kept)
    return tuple(Metric(name, value, of_real.get(name)) for name, value in of_samples.items())


def _of_kept(features: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """The figures that need every feature."""
    found = precision_recall(features, reference, neighbours=NEIGHBOURS)
    return {"kid": kernel_distance(features, reference)[0], "precision": found.precision, "recall": found.recall}


def _shown(batches: Iterable[np.ndarray], total: int, name: str) -> Iterator[np.ndarray]:
    """The batches, with a bar that counts their images."""
    with progress.bar(total, name, unit="image") as bar:
        for images in batches:
            yield images
            bar.update(len(images))
