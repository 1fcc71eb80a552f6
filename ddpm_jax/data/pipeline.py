"""The one pipeline: a source in, shuffled batches out, each a function of source, seed and number."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ddpm_jax import display
from ddpm_jax.checks import whole
from ddpm_jax.data.geometry import fit
from ddpm_jax.data.given import Batches
from ddpm_jax.data.grouped import grouped_order
from ddpm_jax.data.points import PointSource
from ddpm_jax.data.scaling import IMAGE_SCALINGS, Scaling
from ddpm_jax.data.source import Source
from ddpm_jax.errors import UserError, meant


@dataclass(frozen=True)
class Reading:
    """Which of the batches are read, and how; none of it changes what a batch holds."""

    start_step: int = 0
    """The number of the first batch."""
    stacked: int | None = None
    """So many batches in a row in each item, along a new first axis; None: no such axis."""
    rows: np.ndarray | None = None
    """The examples of each batch to read, ascending; None: all of them."""
    indices: bool = False
    """Name the examples instead of reading them, as `Resident.take` wants it."""
    num_threads: int = 4
    """Threads that prepare batches ahead; 0 does the work in the caller's thread."""

    __repr__ = display.of_fields


ALL = Reading()


def batches(
    source: Source,
    *,
    shape: tuple[int, ...],
    batch_size: int,
    scaling: Scaling | None = None,
    seed: int = 0,
    flip: bool = False,
    stream: bool = False,
    reading: Reading = ALL,
) -> Iterator[dict[str, np.ndarray]]:
    """Batches of `source` without end, shuffled anew in every epoch.

    Batch k holds elements k * batch_size .. (k + 1) * batch_size - 1 of the endless sequence of epochs: one
    batch may span two of them and nothing is dropped. It does not depend on how it is read: a run resumed at step k sees bit for
    bit what the uninterrupted one would have seen. The elements of a source with `groups` are shuffled by `grouped.GroupedOrder`.

    Args:
        source: where the data comes from.
        shape: of one example: (H, H, 1 or 3) of images, (2,) of points.
        batch_size: examples a batch, 1 .. len(source).
        scaling: of the values; None: images to [-1, 1], points standardised.
        seed: of the order, the flips and the streamed points, 0 .. 2**32 - 1.
        flip: mirror each image left to right with probability 1/2, drawn anew in every epoch.
        stream: draw new points for every batch, instead of going through those of the source.
        reading: which of the batches, and by how many threads.

    Returns:
        `{"x_0": float32 (B, *shape), "label": int32 (B,)}`, again and again; B is the number of `rows`, where they are given.
        With indices `{"index": int64 (B,)}`, and with flip also `"flip"`: bool (B,), which of them are mirrored.

    Raises:
        UserError: an argument out of range, at the call; an unreadable image, from the iterator.
    """
    shape = tuple(shape)
    _check(source, shape, batch_size, seed, flip, stream, reading)
    assert not (reading.indices and stream)  # fresh points have no numbers
    import grain  # here, because it takes a second and brings jax along

    if isinstance(source, PointSource):
        dataset = _of_points(source, batch_size, seed, stream, reading)
    else:
        dataset = _of_images(source, shape, batch_size, seed, flip, reading)
    if not reading.indices:
        dataset = dataset.map(functools.partial(_scale, scaling=scaling or scaling_of(source)))
    dataset = dataset[reading.start_step :]
    if reading.stacked is not None:
        dataset = dataset.batch(reading.stacked, drop_remainder=True)
    threads = reading.num_threads
    return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)))


def _of_points(source: PointSource, batch_size: int, seed: int, stream: bool, reading: Reading) -> Any:
    """Batches of points by index, so that those of a batch are fetched at once."""
    import grain

    numbers = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat().batch(batch_size, drop_remainder=True)
    if stream:
        return numbers.random_map(functools.partial(_fresh_points, source=source, rows=reading.rows))
    read = _named if reading.indices else functools.partial(_points, source=source)
    return numbers.map(functools.partial(read, rows=reading.rows))


def _of_images(source: Source, shape: tuple[int, ...], batch_size: int, seed: int, flip: bool, reading: Reading) -> Any:
    import grain

    (height, _, channels), rows, indices = shape, reading.rows, reading.indices
    examples = grain.MapDataset.range(len(source)) if indices else grain.MapDataset.source(source)
    groups = getattr(source, "groups", None)
    examples = examples.seed(seed)
    dataset = (examples.shuffle() if groups is None else grouped_order(examples, groups, seed)).repeat()
    # the same steps either way: the place of a random one in the chain is what its draws depend on
    dataset = dataset.map(_named if indices else functools.partial(_fit, image_size=height, channels=channels))
    if flip:
        dataset = dataset.random_map(_named_flip if indices else _random_flip)
    if rows is not None:
        dataset = _rows_of(dataset, batch_size, rows)
    return dataset.batch(batch_size if rows is None else len(rows), drop_remainder=True)


def scaling_of(source: Source | Batches, scale: str = "signed", shape: tuple[int, ...] = ()) -> Scaling:
    """How the source's data is scaled: points by their statistics, images to [-1, 1] ("signed") or [0, 1] ("unit").

    shape: of one example, which tells given batches of points from those of images; these points come as they are.

    Raises:
        UserError: an unknown scale.
    """
    if isinstance(source, PointSource):
        return source.scaling
    if isinstance(source, Batches) and len(shape) == 1:
        return Scaling(0.0, 1.0)
    if scale not in IMAGE_SCALINGS:
        raise UserError(
            f"scale must be one of {', '.join(IMAGE_SCALINGS)}; got {scale!r}.{meant(scale, IMAGE_SCALINGS)}"
        )
    return IMAGE_SCALINGS[scale]


def epoch_steps(source: Source, batch_size: int) -> int:
    """Steps after which every element has been drawn at least once: ceil(len(source) / batch_size).

    Raises:
        UserError: batch_size lies outside 1 .. len(source).
    """
    _check_batch_size(source, batch_size)
    return -(-len(source) // batch_size)


def to_images(x_0: Any) -> np.ndarray:
    """Images in [-1, 1] -> uint8 of the same shape."""
    return IMAGE_SCALINGS["signed"].to_images(x_0)


def _fit(element: dict[str, Any], *, image_size: int, channels: int) -> dict[str, Any]:
    return {"x_0": fit(element["image"], image_size, channels), "label": np.int32(element["label"])}


def _named(index: Any, *, rows: np.ndarray | None = None) -> dict[str, Any]:
    return {"index": np.asarray(index if rows is None else index[rows])}


def _named_flip(element: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    return {**element, "flip": np.bool_(rng.random() < 0.5)}


def _points(indices: np.ndarray, *, source: PointSource, rows: np.ndarray | None) -> dict[str, Any]:
    return _as_batch(source.points[indices if rows is None else indices[rows]])


def _fresh_points(
    indices: np.ndarray, rng: np.random.Generator, *, source: PointSource, rows: np.ndarray | None
) -> dict[str, Any]:
    points = source.fresh(rng, len(indices))
    return _as_batch(points if rows is None else points[rows])


def _as_batch(points: np.ndarray) -> dict[str, Any]:
    return {"x_0": points, "label": np.zeros(len(points), np.int32)}


def _rows_of(dataset: Any, batch_size: int, rows: np.ndarray) -> Any:
    """From every batch_size elements of a dataset, those numbered `rows`; the others are never read."""
    import grain

    class Rows(grain.MapDataset):
        def __len__(self) -> int:
            return len(self._parent) // batch_size * len(rows)

        def __getitem__(self, index: Any) -> Any:
            if isinstance(index, slice):
                return self.slice(index)
            batch, row = divmod(index, len(rows))
            return self._parent[batch * batch_size + int(rows[row])]

    return Rows(dataset)


def _scale(batch: dict[str, Any], *, scaling: Scaling) -> dict[str, Any]:
    return {**batch, "x_0": scaling.apply(batch["x_0"])}


def _random_flip(element: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    return {**element, "x_0": element["x_0"][:, ::-1]} if rng.random() < 0.5 else element


def _check_batch_size(source: Source, batch_size: int) -> None:
    if not 1 <= whole("batch_size", batch_size) <= len(source):
        raise UserError(
            f"batch_size must lie in 1..{len(source)}, the number of examples in {source.name!r}; "
            f"batch_size = {batch_size}. A command takes it as --train.batch-size."
        )


def _check(
    source: Source,
    shape: tuple[int, ...],
    batch_size: int,
    seed: int,
    flip: bool,
    stream: bool,
    reading: Reading,
) -> None:
    if not (hasattr(source, "class_names") and hasattr(source, "__getitem__")):
        raise UserError(f"source must be one that data.open_source opened, or your own Source; got {source!r}.")
    _check_batch_size(source, batch_size)
    whole("seed", seed)
    for name in ("start_step", "num_threads"):
        if whole(name, getattr(reading, name)) < 0:
            raise UserError(f"{name} must be at least 0; {name} = {getattr(reading, name)}.")
    if isinstance(source, PointSource):
        if shape != (2,):
            raise UserError(
                f"{source.name!r} holds points in the plane, which networks of another shape cannot take: "
                f"{shape}. Use the network mlp with data_dim 2, or a source of images."
            )
        if flip:
            raise UserError(f"flip is for images; {source.name!r} holds points.")
    else:
        if len(shape) != 3 or shape[0] != shape[1]:
            raise UserError(f"{source.name!r} holds images, which need a network of square ones; its shape is {shape}.")
        if shape[2] not in (1, 3):
            raise UserError(f"channels must be 1 (grey) or 3 (RGB); channels = {shape[2]}.")
        if shape[0] < 1:
            raise UserError(f"image_size must be at least 1; image_size = {shape[0]}.")
        if stream:
            raise UserError(f"stream is for points, which can be drawn without end; {source.name!r} holds images.")
    if not 0 <= seed < 2**32:
        raise UserError(f"seed must lie in 0..{2**32 - 1}; seed = {seed}.")
