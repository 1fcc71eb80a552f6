"""Trained classifiers kept on disk, so that a second evaluation on the same images need not train one."""

import hashlib
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ddpm_jax.archives import read_npz
from ddpm_jax.cache import cache_folder
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation.classifier import Classifier, check_images, create, train_classifier
from ddpm_jax.files import write_atomically

VERSION = 1
"""To be raised with every change of the network or its training: what is kept from before is then not taken any more."""


def cached_classifier(
    images: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    *,
    seed: int = 0,
    epochs: int | None = None,
    folder: Path | None = None,
) -> Classifier:
    """`train_classifier` with the same arguments, or what it returned for them before.

    folder: where classifiers are kept (None: `cache_folder("classifiers")`), one .npz of about 2 MB each. One that is damaged is
    replaced; a folder that cannot be written to is warned about.

    Raises:
        UserError: what `train_classifier` refuses.
    """
    check_images(images, labels, num_classes)
    folder = cache_folder("classifiers") if folder is None else folder
    path = folder / f"{_key(images, labels, num_classes, seed, epochs)}.npz"
    kept = _load(path, num_classes, image_shape=(images.shape[1], images.shape[2], images.shape[3]))
    if kept is not None:
        return kept
    classifier = train_classifier(images, labels, num_classes, seed=seed, epochs=epochs)
    names, leaves = _leaves(classifier)
    arrays: dict[str, Any] = dict(zip(names, map(np.asarray, leaves), strict=True))
    try:
        write_atomically(path, lambda temporary: np.savez(temporary, **arrays))
    except UserError as error:
        warnings.warn(f"The classifier is not kept for the next evaluation: {error}", stacklevel=2)
    return classifier


def _key(images: np.ndarray, labels: np.ndarray, num_classes: int, seed: int, epochs: int | None) -> str:
    digest = hashlib.sha256()
    for array in (images, labels):
        digest.update(f"{array.dtype.str} {array.shape} ".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).data.cast("B"))
    digest.update(f"{num_classes} {seed} {epochs} {VERSION}".encode())
    return digest.hexdigest()


def _leaves(classifier: Classifier) -> tuple[list[str], list[jax.Array]]:
    found = jax.tree_util.tree_flatten_with_path(classifier.variables)[0]
    return [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in found], [leaf for _, leaf in found]


def _load(path: Path, num_classes: int, *, image_shape: tuple[int, int, int]) -> Classifier | None:
    """What is kept at path; None where there is nothing, or something that is no such classifier."""
    try:
        arrays = read_npz(path)
    except UserError:
        return None
    fresh = create(image_shape, num_classes)
    names, leaves = _leaves(fresh)
    if arrays.keys() != set(names):
        return None
    if any(
        arrays[n].shape != leaf.shape or arrays[n].dtype != leaf.dtype for n, leaf in zip(names, leaves, strict=True)
    ):
        return None
    if not all(np.isfinite(array).all() for array in arrays.values()):
        return None
    structure = jax.tree.structure(fresh.variables)
    variables = jax.tree.unflatten(structure, [arrays[name] for name in names])
    return Classifier(fresh.graphdef, variables, image_shape, num_classes)
