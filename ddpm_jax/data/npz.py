"""Images in one NumPy archive: `images` and, where they exist, `labels` and `class_names`."""

import warnings
from pathlib import Path

import numpy as np

from ddpm_jax.archives import read_npz
from ddpm_jax.data.source import FORMS, ArraySource, Form
from ddpm_jax.errors import UserError

IMAGE_KEYS = ("images", "x_train", "x", "arr_0")
LABEL_KEYS = ("labels", "y_train", "y", "arr_1")
_MAX_CLASSES = 1_000_000


def open_npz(path: Path) -> ArraySource:
    """Read an archive; nothing in it is unpickled.

    The images are the first of `IMAGE_KEYS`, (N, H, W) or (N, H, W, C) with C = 1 or 3: uint8, or floats in
    [0, 1]. The labels are the first of `LABEL_KEYS`, integers (N,) from 0; `class_names` (K,) names them, or
    they are named "0", "1", ... Arrays of other names are named in a warning.

    Raises:
        UserError: the file is missing or damaged, or what it holds is something else.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; npz:PATH needs a NumPy archive (numpy.savez).")
    arrays = read_npz(path)
    image_key = next((key for key in IMAGE_KEYS if key in arrays), None)
    if image_key is None:
        raise UserError(
            f"{path}: no images; one of the keys {', '.join(IMAGE_KEYS)} is required, found {list(arrays)}."
        )
    images = _as_uint8(arrays[image_key], f"{path}: {image_key}")
    label_key = next((key for key in LABEL_KEYS if key in arrays), None)
    if unused := [key for key in arrays if key not in (image_key, label_key, "class_names")]:
        warnings.warn(f"{path}: not used: {', '.join(unused)}.", stacklevel=3)
    if label_key is None:
        if "class_names" in arrays:
            raise UserError(f"{path}: class_names without labels; add one of the keys {', '.join(LABEL_KEYS)}.")
        return ArraySource(f"npz:{path}", images)
    labels = arrays[label_key]
    where = f"{path}: {label_key}"
    if labels.dtype.kind not in "iu" or labels.shape != (len(images),):
        raise UserError(
            f"{where} must be integers of shape ({len(images)},), one for each image; "
            f"got {labels.dtype} of shape {labels.shape}."
        )
    return ArraySource(f"npz:{path}", images, labels, _class_names(arrays.get("class_names"), labels, where))


def _as_uint8(images: np.ndarray, where: str) -> np.ndarray:
    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[-1] not in (1, 3)) or images.size == 0:
        raise UserError(f"{where} must have the shape (N, H, W) or (N, H, W, C), C = 1 or 3; got {images.shape}.")
    if images.dtype == np.uint8:
        return images
    if images.dtype.kind != "f":
        raise UserError(f"{where} must be uint8, or floats in [0, 1]; got {images.dtype}.")
    low, high = float(images.min()), float(images.max())
    if not (low >= 0 and high <= 1):  # false for NaN too
        raise UserError(f"{where} must be uint8, or floats in [0, 1]; got floats from {low} to {high}.")
    return np.rint(images.astype(np.float32) * 255).astype(np.uint8)


def _class_names(names: np.ndarray | None, labels: np.ndarray, where: str) -> list[str]:
    low, high = int(labels.min()), int(labels.max())
    limit = _MAX_CLASSES if names is None else len(np.atleast_1d(names))
    if low < 0 or high >= limit:
        first = int(np.flatnonzero((labels < 0) | (labels >= limit))[0])
        raise UserError(
            f"{where} must lie in 0..{limit - 1}{'' if names is None else ', one for each of class_names'}; "
            f"label {labels[first]} of image {first} does not."
        )
    return [str(name) for name in (range(high + 1) if names is None else np.atleast_1d(names))]


FORMS["npz"] = Form("npz:PATH", "a NumPy archive with images, labels", lambda rest, _: open_npz(Path(rest)), Path)
