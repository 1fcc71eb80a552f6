"""The labels of a source: all of them at once, and the check that a conditional network can take them."""

import numpy as np

from ddpm_jax.data.source import Source
from ddpm_jax.errors import UserError


def labels_of(source: Source) -> np.ndarray:
    """All labels, int32 (N,); images are decoded only where the source has no attribute `labels`."""
    labels = getattr(source, "labels", None)
    if labels is None:
        labels = [source[index]["label"] for index in range(len(source))]
    return np.asarray(labels, np.int32)


def check_labels(source: Source, num_classes: int) -> None:
    """Check that every label lies in `0 .. num_classes - 1`.

    Raises:
        UserError: num_classes is below 1, the source has no labels, or a label lies outside.
    """
    if num_classes < 1:
        raise UserError(f"num_classes must be at least 1; num_classes = {num_classes}.")
    if not source.class_names:
        raise UserError(
            f"num_classes = {num_classes} asks for labels, and the data source {source.name!r} has none. "
            "Choose a labelled source, or train without classes."
        )
    if getattr(source, "labels_within_class_names", False) and len(source.class_names) <= num_classes:
        return
    labels = labels_of(source)
    outside = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if outside.size:
        first = int(outside[0])
        advice = "Number the classes from 0" if labels.min() < 0 else f"Set num_classes = {labels.max() + 1}"
        raise UserError(
            f"labels must lie in 0..{num_classes - 1} (num_classes = {num_classes}); image {first} of "
            f"{source.name!r} has the label {labels[first]} (all span {labels.min()}..{labels.max()}). "
            f"{advice}, or choose another source."
        )
