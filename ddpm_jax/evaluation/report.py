"""Evaluate a run: draw samples, hold them against real data, and real data against itself; write what was found."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_jax import data, display, launch, progress
from ddpm_jax.class_names import class_index
from ddpm_jax.data.geometry import fit
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation.cache import cached_classifier
from ddpm_jax.evaluation.distances import frechet_distance, kernel_distance, nearest_distances
from ddpm_jax.evaluation.points import mmd, sliced_wasserstein
from ddpm_jax.files import check_writable, write_text
from ddpm_jax.samplers import Adaptive
from ddpm_jax.training import Drawing, Run
from ddpm_jax.training.conditions import Conditions, of_source

REAL_IMAGES = 20_000
"""Real images looked at, unless told otherwise."""
HELD_OUT_SEED = 2**32
"""Seeds of points that no run trains on begin here: a run's own seed lies below."""
REAL_PAIRS = 4
"""Pairs of sets of real points whose mean distance stands beside that of the samples."""


@dataclass(frozen=True)
class Metric:
    """One figure of the samples, beside the same figure of real data that takes the samples' place."""

    name: str
    """What it is called: fid, class_agreement, ..."""
    samples: float
    """What was found of the samples."""
    real: float | None = None
    """None: the data is too small for it."""


@dataclass(frozen=True)
class Evaluation:
    """What was measured of a run, and how."""

    metrics: tuple[Metric, ...]
    """The figures, in the order of the table."""
    facts: dict[str, Any]
    """What the figures depend on: step, sampler, counts, splits, seeds."""
    by_class: dict[str, float]
    """Class agreement of each class; empty where no class was asked for."""

    def __repr__(self) -> str:
        """Its figures; `table` and `json` tell what they depend on."""
        return display.line(self, **{metric.name: metric.samples for metric in self.metrics})

    def _repr_html_(self) -> str:
        """Its figures beside those of real data, and what they depend on."""
        return display.table([("", "samples", "real data"), *self._figures()]) + display.table(self.facts.items())

    def json(self) -> str:
        """As JSON text."""
        metrics = {metric.name: {"samples": metric.samples, "real": metric.real} for metric in self.metrics}
        return (
            json.dumps({**self.facts, "metrics": metrics, "class_agreement_by_class": self.by_class}, indent=2) + "\n"
        )

    def table(self) -> str:
        """As lines for a terminal."""
        lines = [f"{name}: {value}" for name, value in self.facts.items()]
        rows = [("", "samples", "real data"), *self._figures()]
        return "\n".join([*lines, "", *(f"{name:<24}{samples:>12}{real:>12}" for name, samples, real in rows)])

    def _figures(self) -> list[tuple[str, str, str]]:
        """A row for every metric: its name, and the figures of samples and of real data, in digits."""
        return [
            (
                metric.name.replace("_", " "),
                f"{metric.samples:.4g}",
                "-" if metric.real is None else f"{metric.real:.4g}",
            )
            for metric in self.metrics
        ]


def evaluate_run(
    drawing: Drawing, *, num_real: int = REAL_IMAGES, held_out: str | None = None
) -> tuple[Evaluation, Path]:
    """Draw as many samples as the config says and measure them; also written to evaluation.json in the run folder.

    Of images: class agreement (share of the samples that a classifier of real images takes for the class asked for), Fréchet and
    kernel distance to held-out images in that classifier's features, median distance to the nearest training image. Of points:
    sliced Wasserstein distance and squared maximum mean discrepancy to points drawn anew.

    num_real: real images looked at, at most. held_out: spec of a source that the run was not trained on (tfds:mnist:test);
    None: 30 % of the run's own images are kept from the classifier, though the run itself has seen them.

    Raises:
        UserError: no checkpoint, data that is gone, too few images or samples, a folder that cannot be written to.
    """
    check_drawing(drawing)
    run, config, seed = drawing.run, drawing.config, drawing.seed
    check_writable(run.results)
    facts = facts_of(drawing)  # without a checkpoint there is nothing to measure

    def drawn(labels: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
        conditions = conditions_of(drawing, labels, held_out)
        asked = labels if conditions is None or labels is not None else conditions.labels
        return replace(drawing, conditions=conditions).draw(labels, config.num).values, asked

    if run.holds_images:
        metrics, by_class, told = _of_images(run, config.num, drawn, seed, num_real, held_out)
    elif held_out is None:
        metrics, by_class, told = _of_points(run, config.num, drawn, seed)
    else:
        raise UserError(f"held_out is for images: points are drawn anew; got {held_out!r}.")
    evaluation = Evaluation(tuple(metrics), facts | told, by_class)
    return evaluation, save(run, "evaluation.json", evaluation.json())


def conditions_of(drawing: Drawing, labels: np.ndarray | None, held_out: str | None) -> Conditions | None:
    """What the samples are shown: of held-out images where there are any, otherwise of the run's own; None: nothing."""
    if drawing.conditions is not None or drawing.run.condition is None:
        return drawing.conditions
    source, _ = open_data(drawing.run, held_out)
    return of_source(drawing.run, source, labels, drawing.config.num, drawing.seed)


def check_drawing(found: Any) -> None:
    """Refuses what is no `training.Drawing`, and says how to make one."""
    if not isinstance(found, Drawing):
        raise UserError(
            f"drawing must be a training.Drawing; got {found!r}: write training.Drawing(training.open_run(FOLDER), config)."
        )


def save(run: Run, name: str, text: str) -> Path:
    """Write a file to where the results of a run go, from the first process alone; returns its path."""
    path = run.results / name
    return write_text(path, text) if launch.is_first() else path


def facts_of(drawing: Drawing) -> dict[str, Any]:
    """What every figure of samples depends on."""
    run, config = drawing.run, drawing.config
    steps = run.process.sampling_steps(config.steps)
    name = config.sampler.name
    sampler = name if isinstance(config.sampler, Adaptive) else f"{name}, {steps} steps"
    step = drawing.step
    facts = {
        "step": step,
        "weights": run.weights_at(step),
        "samples": config.num,
        "sampler": sampler,
        "seed": drawing.seed,
    }
    shown = {} if run.condition is None else {"condition": repr(run.condition)}
    return facts | {"data": run.config.data.source} | shown


Found = tuple[list[Metric], dict[str, float], dict[str, str]]
"""Metrics, class agreement by class, and what they were held against."""


Drawn = Callable[[np.ndarray | None], tuple[np.ndarray, np.ndarray | None]]
"""Of labels: samples, and the classes that they should be of; None: of any."""


def _of_points(run: Run, num: int, drawn: Drawn, seed: int) -> Found:
    source = run.open_source()
    if not isinstance(source, data.PointSource):
        raise UserError(f"{run.folder} is a run of points, and its data {source.name!r} holds images.")
    samples, _ = drawn(None)
    reference, *others = (
        data.PointSource(source.shape, num, HELD_OUT_SEED + seed + k).points for k in range(1 + REAL_PAIRS)
    )
    metrics = [
        Metric(name, distance(samples, reference), float(np.mean([distance(x, reference) for x in others])))
        for name, distance in (("sliced_wasserstein", sliced_wasserstein), ("mmd_squared", mmd))
    ]
    return metrics, {}, {"held out": f"{num} points drawn anew; real data: mean of {REAL_PAIRS} other sets of them"}


@dataclass(frozen=True)
class _Real:
    """Real images in three parts: the classifier's own, and two that it has not seen."""

    names: tuple[str, ...]
    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]
    reference: tuple[np.ndarray, np.ndarray]
    told: str


def _of_images(
    run: Run,
    num: int,
    drawn: Drawn,
    seed: int,
    num_real: int,
    held_out: str | None,
) -> Found:
    labels = run.labels(num)
    classes = run.config.data.classes
    count = len(classes or run.class_names)
    if labels is not None and num < count:
        raise UserError(f"num must be at least {count}, one sample for each class; got {num}.")
    real = _real(run, seed, num_real, held_out)
    images, labels = drawn(labels)
    if labels is None and len(classes) == 1:
        labels = np.full(
            num, class_index(classes[0], real.names, run.config.data.source)
        )  # what a run of one class is asked for

    metrics, by_class = [], dict[str, float]()
    if len(real.names) > 1:
        progress.say(f"a classifier of {len(real.train[0]):,} real images is trained, unless it is in the cache")
        classifier = cached_classifier(*real.train, len(real.names), seed=seed)
        if labels is not None:
            right = classifier.predict(images) == labels
            by_class = {real.names[k]: float(right[labels == k].mean()) for k in np.unique(labels)}
            metrics.append(Metric("class_agreement", float(right.mean()), classifier.accuracy(*real.test)))
        features, of_test, of_reference = (classifier.features(x) for x in (images, real.test[0], real.reference[0]))
        same = min(len(features), len(of_test))  # the distances of few images are larger: as many on either side
        for name, distance in (("frechet_distance", frechet_distance), ("kernel_distance", _kernel_distance)):
            pair = distance(features[:same], of_reference), distance(of_test[:same], of_reference)
            metrics.append(Metric(name, *pair))
    nearest = (float(np.median(nearest_distances(x, real.train[0]))) for x in (images, real.test[0]))
    metrics.append(Metric("nearest_training_image", *nearest))
    return metrics, by_class, {"real images": real.told}


def _kernel_distance(a: np.ndarray, b: np.ndarray) -> float:
    return kernel_distance(a, b)[0]


def _real(run: Run, seed: int, num_real: int, held_out: str | None) -> _Real:
    """The run's images, of all classes for the classifier, and of those it was trained on to hold samples against."""
    config = run.config.data
    if not config.source:
        raise UserError(f"{run.folder} was made from a file of weights and has no data to hold samples against.")
    if num_real < 10:
        raise UserError(f"num_real must be at least 10; got {num_real}.")
    source = data.open_source(config.source, on_bad_image=config.on_bad_image, label=config.label)
    images, labels = load_images(run, source, seed, num_real)
    names = source.class_names or ("",)
    if len(names) > 1:
        by_class = np.bincount(labels, minlength=len(names))
        if by_class.min() < 5:
            few = names[int(by_class.argmin())]
            raise UserError(
                f"a classifier needs at least 5 images of each class; of {len(images)} images of {source.name} "
                f"{by_class.min()} are of class {few}."
            )
    if held_out is None:
        first, second = 7 * len(images) // 10, 85 * len(images) // 100
        parts = [(images[a:b], labels[a:b]) for a, b in ((0, first), (first, second), (second, None))]
        told = "of the run's own"
    else:
        other = data.open_source(held_out, on_bad_image=config.on_bad_image, label=config.label)
        if other.class_names != source.class_names:
            raise UserError(
                f"held_out {held_out} has the classes {', '.join(other.class_names) or '(none)'}; "
                f"the run's data has {', '.join(source.class_names) or '(none)'}."
            )
        x, y = load_images(run, other, seed, num_real)
        parts = [(images, labels), (x[::2], y[::2]), (x[1::2], y[1::2])]
        told = f"of {held_out}"
    if config.classes:
        wanted = [class_index(name, names, source.name) for name in config.classes]
        parts[1:] = [(x[np.isin(y, wanted)], y[np.isin(y, wanted)]) for x, y in parts[1:]]
    if min(len(x) for x, _ in parts) < 2:
        raise UserError(
            f"too few real images to hold samples against: {[len(x) for x, _ in parts]}; 2 in each part are needed."
        )
    counts = [len(x) for x, _ in parts]
    told = f"{counts[0]} to train the classifier; {told}: {counts[1]} in the samples' place, {counts[2]} to hold both against"
    train, test, reference = parts
    return _Real(tuple(names), train, test, reference, told)


def open_data(run: Run, held_out: str | None) -> tuple[data.Source, str]:
    """The run's own data, or that of a spec, of the classes that the run is trained on; and which of the two it is.

    Raises:
        UserError: the data is gone or damaged, or the run came from a file of weights and has none.
    """
    if held_out is None:
        return run.open_source(), "seen in training"
    config = run.config.data
    source = data.open_source(held_out, on_bad_image=config.on_bad_image, classes=config.classes, label=config.label)
    return source, "held out"


def load_images(run: Run, source: data.Source, seed: int, most: int) -> tuple[np.ndarray, np.ndarray]:
    """The first of a source's images in random order, uint8, cut to the run's shape, and their labels."""
    return fitted(run, source, order_of(source, seed)[:most])


def order_of(source: data.Source, seed: int) -> np.ndarray:
    """The indices of a source in random order."""
    return np.random.default_rng(seed).permutation(len(source))


def fitted(run: Run, source: data.Source, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Images of a source, uint8, cut to the run's shape, and their labels."""
    in_order = {int(index): source[int(index)] for index in np.sort(indices)}  # neighbours may be read at once
    elements = [in_order[int(index)] for index in indices]
    size, _, channels = run.shape
    images = np.stack([fit(element["image"], size, channels) for element in elements])
    return images, np.array([element["label"] for element in elements], np.int32)
