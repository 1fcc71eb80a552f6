"""Checkpoints of other libraries' U-Nets: for each tensor of the twin those that it is made of there, by rule.

A library is one function from a name of the twin to the names there; shapes and the order of rows follow from the network.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from ddpm_jax import models
from ddpm_jax.weights.bridge import as_array, check_fit, layout, weights_of


class Source(NamedTuple):
    """What one tensor of the twin is made of in another library."""

    names: tuple[str, ...]
    """Its parts' names there, stacked along the first axis."""
    trailing: tuple[int, ...] = ()
    """Axes of length 1 that it has there at the end: a linear map as a convolution of one pixel."""
    leading: tuple[int, ...] = ()
    """Axes of length 1 that it has there at the beginning."""
    heads: int = 0
    """Where queries, keys and values are one, their rows come head by head there, for this many heads; 0: one after the other."""


class Row(NamedTuple):
    """One tensor of the twin, its shape, and its source."""

    ours: str
    shape: tuple[int, ...]
    source: Source

    @property
    def part_shape(self) -> tuple[int, ...]:
        """Shape of each part there."""
        return (*self.source.leading, self.shape[0] // len(self.source.names), *self.shape[1:], *self.source.trailing)

    def read(self, tensors: Mapping[str, Any]) -> np.ndarray:
        """The twin's tensor of theirs."""
        array = np.concatenate([as_array(tensors[name]) for name in self.source.names]).reshape(self.shape)
        return self._reordered(array, (self.source.heads, 3)) if self.source.heads else array

    def write(self, array: np.ndarray) -> dict[str, np.ndarray]:
        """Their tensors of the twin's."""
        if self.source.heads:
            array = self._reordered(array, (3, self.source.heads))
        parts = np.split(array, len(self.source.names))
        return {name: part.reshape(self.part_shape).copy() for name, part in zip(self.source.names, parts, strict=True)}

    @staticmethod
    def _reordered(array: np.ndarray, groups: tuple[int, int]) -> np.ndarray:
        """Rows (a, b, d) as (b, a, d)."""
        split = array.reshape(*groups, -1, *array.shape[1:])
        return np.ascontiguousarray(split.swapaxes(0, 1)).reshape(array.shape)


def rows(config: models.ModelConfig, source: Callable[[str], Source]) -> list[Row]:
    """The rows of a network, by the rule of a library."""
    return [Row(entry.key, entry.shape, source(entry.key)) for entry in layout(models.abstract(config))]


def read(rows: Iterable[Row], tensors: Mapping[str, Any], what: str) -> dict[str, np.ndarray]:
    """The twin's state dict of another library's, strictly; what: the checkpoint in words.

    Raises:
        UserError: tensors are missing, left over, or misshapen; they are listed.
    """
    rows = list(rows)
    expected = {name: row.part_shape for row in rows for name in row.source.names}
    given = weights_of(tensors)
    check_fit(f"{what} does not fit", expected, given)
    return {row.ours: row.read(given) for row in rows}


def write(rows: Iterable[Row], tensors: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Another library's state dict of the twin's."""
    written: dict[str, np.ndarray] = {}
    for row in rows:
        written |= row.write(as_array(tensors[row.ours]))
    return written
