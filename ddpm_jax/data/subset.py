"""Some classes of a source, under the numbers they have there."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ddpm_jax.class_names import class_index
from ddpm_jax.data.labels import labels_of
from ddpm_jax.data.source import Source, Told
from ddpm_jax.errors import UserError


class ClassSubset(Told):
    """The elements of some classes, by name or as `class_index` takes them. Labels and class names stay those of the whole source.

    Raises:
        UserError: the source has no classes, one that is asked for is not there, or no element is left.
    """

    def __init__(self, source: Source, classes: Sequence[str]):
        names = source.class_names
        if not names:
            raise UserError(f"classes {', '.join(classes)} are asked for, and {source.name!r} has no classes.")
        wanted = [class_index(name, names, source.name) for name in classes]
        labels = labels_of(source)
        self.indices = np.flatnonzero(np.isin(labels, wanted))
        if not len(self.indices):
            raise UserError(f"{source.name!r} holds no image of the classes {', '.join(classes)}.")
        self.name = f"{source.name} ({', '.join(classes)})"
        self.class_names = names
        self.labels = labels[self.indices]
        self._source = source
        if (groups := getattr(source, "groups", None)) is not None:
            of_group = np.searchsorted(np.cumsum(groups), self.indices, "right")
            self.groups = np.bincount(of_group, minlength=len(groups))

    @property
    def bad_files(self) -> int:
        """How many damaged files have been met so far."""
        return getattr(self._source, "bad_files", 0)

    def __len__(self) -> int:
        """How many elements are left."""
        return len(self.indices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The element at `index`."""
        return self._source[int(self.indices[index])]
