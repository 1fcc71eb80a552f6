"""Data: sources of uint8 images with labels, and the one grain pipeline that makes batches of them."""

from ddpm_jax.data.labels import check_labels, labels_of
from ddpm_jax.data.pipeline import batches, epoch_steps, to_images
from ddpm_jax.data.source import ArraySource, Source
from ddpm_jax.data.sources import open_source

__all__ = [
    "ArraySource",
    "Source",
    "batches",
    "check_labels",
    "epoch_steps",
    "labels_of",
    "open_source",
    "to_images",
]
