"""Images in one NumPy archive: `images` and, where they exist, `labels` and `class_names`."""

import warnings
from pathlib import Path

import numpy as np

from ddpm_jax.archives import read_npz
from ddpm_jax.data.columns import chosen, numbered
from ddpm_jax.data.source import FORMS, ArraySource, Form
from ddpm_jax.errors import UserError

IMAGE_KEYS = ("images", "x_train", "x", "arr_0")
LABEL_KEYS = ("labels", "y_train", "y", "arr_1")


def open_npz(path: Path, label: str | None = None) -> ArraySource:
    """Read an archive; nothing in it is unpickled.

    The images are the first of `IMAGE_KEYS`, (N, H, W) or (N, H, W, C) with C = 1 or 3: uint8, or floats in
    [0, 1]. The labels are the first of `LABEL_KEYS`, integers (N,) from 0; `class_names` (K,) names them, or
    they are named "0", "1", ... Arrays of other names are named in a warning.

    label: the array of labels instead: integers, named by the array LABEL_names where there is one, true and false, or text.

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
    names_key = "class_names"
    if label not in (None, label_key):
        rows = {key: array.dtype for key, array in arrays.items() if key != image_key and array.shape == (len(images),)}
        label_key, names_key = chosen(label, rows, str(path)), f"{label}_names"
    if unused := [key for key in arrays if key not in (image_key, label_key, names_key)]:
        warnings.warn(f"{path}: not used: {', '.join(unused)}.", stacklevel=3)
    if label_key is None:
        if "class_names" in arrays:
            raise UserError(f"{path}: class_names without labels; add one of the keys {', '.join(LABEL_KEYS)}.")
        return ArraySource(f"npz:{path}", images)
    labels, names = arrays[label_key], arrays.get(names_key)
    where = f"{path}: {label_key}"
    if labels.dtype.kind not in ("iu" if label is None else "iubU") or labels.shape != (len(images),):
        raise UserError(
            f"{where} must be integers of shape ({len(images)},), one for each image; "
            f"got {labels.dtype} of shape {labels.shape}."
        )
    numbers, class_names = numbered(labels, None if names is None else [str(n) for n in np.atleast_1d(names)], where)
    return ArraySource(f"npz:{path}", images, numbers, class_names)


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


FORMS["npz"] = Form(
    "npz:PATH",
    "a NumPy archive with images, labels",
    lambda rest, how: open_npz(Path(rest), how.label),
    Path,
    columns=True,
)
