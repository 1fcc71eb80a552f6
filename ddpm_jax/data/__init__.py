"""Data: sources of images or points with labels, and the one grain pipeline that makes batches of them."""

from ddpm_jax.data.given import Batches
from ddpm_jax.data.labels import check_labels, labels_of
from ddpm_jax.data.pipeline import Reading, batches, epoch_steps, scaling_of, to_images
from ddpm_jax.data.points import PointSource
from ddpm_jax.data.scaling import Scaling, stretched
from ddpm_jax.data.source import FORMS, ArraySource, Form, Opening, Source, checked
from ddpm_jax.data.sources import open_source

__all__ = [
    "FORMS",
    "ArraySource",
    "Batches",
    "Form",
    "Opening",
    "PointSource",
    "Reading",
    "Scaling",
    "Source",
    "batches",
    "check_labels",
    "checked",
    "epoch_steps",
    "labels_of",
    "open_source",
    "scaling_of",
    "stretched",
    "to_images",
]
