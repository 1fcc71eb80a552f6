"""Small data sets on the device whole: the host sends the numbers of a batch's examples, and the device looks them up."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.data.geometry import fit
from ddpm_jax.data.points import PointSource
from ddpm_jax.data.scaling import Scaling
from ddpm_jax.data.source import ArraySource, Source

LARGEST = 2**28
"""Bytes of images, or of points, that are put on a device at most."""


class Resident:
    """The examples of a source as the network sees them, bit for bit what `batches` makes of them.

    Args:
        source: one that `fits`.
        shape: of one example, as `batches` takes it.
        scaling: of the values.
    """

    def __init__(self, source: Source, shape: tuple[int, ...], scaling: Scaling):
        if isinstance(source, PointSource):
            values, table = scaling.apply(source.points), np.zeros(0, np.float32)
            labels = np.zeros(len(source), np.int32)
        else:
            assert isinstance(source, ArraySource)
            values = np.stack([fit(image, shape[0], shape[2]) for image in source.images])
            # a value for each byte: computed on the device, the last bit could differ
            table = scaling.apply(np.arange(256, dtype=np.uint8))
            labels = source.labels
        self._arrays = jax.device_put((values, table, labels))

    def take(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """The batch, or stack of batches, that `batches` names, read by indices: {"x_0": float32, "label": int32}."""
        return _take(*self._arrays, batch)


def fits(source: Source, shape: tuple[int, ...]) -> bool:
    """Whether a source lies in memory already and is small enough to lie on a device."""
    in_memory = isinstance(source, ArraySource | PointSource)
    size = len(source) * int(np.prod(shape)) * (4 if isinstance(source, PointSource) else 1)
    return in_memory and size <= LARGEST


@jax.jit
def _take(values: jax.Array, table: jax.Array, labels: jax.Array, batch: dict[str, Any]) -> dict[str, jax.Array]:
    index = batch["index"]
    x_0 = values[index]
    if len(table):
        x_0 = table[x_0.astype(jnp.int32)]
    if "flip" in batch:
        x_0 = jnp.where(batch["flip"][..., None, None, None], x_0[..., ::-1, :], x_0)
    return {"x_0": x_0, "label": labels[index]}
