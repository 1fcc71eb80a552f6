"""The one pipeline: a source in, shuffled batches out, each a function of source, seed and number."""

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np

from ddpm_jax.data.geometry import fit
from ddpm_jax.data.source import Source
from ddpm_jax.errors import UserError


def batches(
    source: Source,
    *,
    image_size: int,
    channels: int,
    batch_size: int,
    seed: int = 0,
    flip: bool = False,
    start_step: int = 0,
    num_threads: int = 4,
) -> Iterator[dict[str, np.ndarray]]:
    """Batches of `source` without end, shuffled anew in every epoch.

    Batch k holds elements k * batch_size .. (k + 1) * batch_size - 1 of the endless sequence of epochs: one
    batch may span two of them and no image is dropped. It does not depend on the number of threads nor on
    `start_step`: a run resumed at step k sees bit for bit what the uninterrupted one would have seen.

    Args:
        source: where the images come from.
        image_size: side of the square images, pixels.
        channels: 1 or 3.
        batch_size: images a batch, 1 .. len(source).
        seed: of the order and the flips, 0 .. 2**32 - 1.
        flip: mirror each image left to right with probability 1/2, drawn anew in every epoch.
        start_step: the number of the first batch.
        num_threads: threads that prepare batches ahead; 0 does the work in the caller's thread.

    Returns:
        `{"image": float32 (B, image_size, image_size, channels) in [-1, 1], "label": int32 (B,)}`, again and
        again.

    Raises:
        UserError: an argument out of range, at the call; an unreadable image, from the iterator.
    """
    _check(source, image_size, channels, batch_size, seed, start_step, num_threads)
    import grain  # here, because it takes a second and brings jax along

    dataset = grain.MapDataset.source(source).seed(seed).shuffle().repeat()
    dataset = dataset.map(functools.partial(_fit, image_size=image_size, channels=channels))
    if flip:
        dataset = dataset.random_map(_random_flip)
    dataset = dataset.batch(batch_size, drop_remainder=True).map(_scale)[start_step:]
    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=2 * num_threads)
    return iter(dataset.to_iter_dataset(options))


def epoch_steps(source: Source, batch_size: int) -> int:
    """Steps after which every image has been drawn at least once: ceil(len(source) / batch_size).

    Raises:
        UserError: batch_size lies outside 1 .. len(source).
    """
    _check_batch_size(source, batch_size)
    return -(-len(source) // batch_size)


def to_images(x: Any) -> np.ndarray:
    """[-1, 1] -> uint8 of the same shape: round((x + 1) * 127.5), clipped to 0..255; undoes the scaling."""
    return np.clip(np.rint((np.asarray(x, np.float32) + 1) * 127.5), 0, 255).astype(np.uint8)


def _fit(element: dict[str, Any], *, image_size: int, channels: int) -> dict[str, Any]:
    return {"image": fit(element["image"], image_size, channels), "label": np.int32(element["label"])}


def _scale(batch: dict[str, Any]) -> dict[str, Any]:
    return {**batch, "image": batch["image"].astype(np.float32) / 127.5 - 1}


def _random_flip(element: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    return {**element, "image": element["image"][:, ::-1]} if rng.random() < 0.5 else element


def _check_batch_size(source: Source, batch_size: int) -> None:
    if not 1 <= batch_size <= len(source):
        raise UserError(
            f"batch_size must lie in 1..{len(source)}, the number of images in {source.name!r}; "
            f"batch_size = {batch_size}."
        )


def _check(
    source: Source,
    image_size: int,
    channels: int,
    batch_size: int,
    seed: int,
    start_step: int,
    num_threads: int,
) -> None:
    _check_batch_size(source, batch_size)
    if channels not in (1, 3):
        raise UserError(f"channels must be 1 (grey) or 3 (RGB); channels = {channels}.")
    if image_size < 1:
        raise UserError(f"image_size must be at least 1; image_size = {image_size}.")
    if not 0 <= seed < 2**32:
        raise UserError(f"seed must lie in 0..{2**32 - 1}; seed = {seed}.")
    if start_step < 0:
        raise UserError(f"start_step must be at least 0; start_step = {start_step}.")
    if num_threads < 0:
        raise UserError(f"num_threads must be at least 0; num_threads = {num_threads}.")
