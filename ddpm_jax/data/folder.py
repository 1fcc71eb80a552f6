"""A folder of image files, flat or with one subfolder for each class."""

import itertools
import os
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_jax.data.decoding import BadImageError, read_image
from ddpm_jax.errors import UserError

EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff"})


class FolderSource:
    """Image files decoded when asked for.

    With `on_bad_image = "skip"` the next readable file takes the place of a damaged one, label and all; which
    one depends on the files alone, so the order of a run can be repeated.

    Args:
        name: what to call it in messages.
        files: the images, in order.
        labels: int32 (N,).
        class_names: one name for each class; empty without classes.
        on_bad_image: "stop" raises at the first damaged file, "skip" warns once for each.
    """

    labels_within_class_names = True

    def __init__(
        self,
        name: str,
        files: list[str],
        labels: np.ndarray,
        class_names: tuple[str, ...],
        on_bad_image: str,
    ):
        self.name = name
        self.class_names = class_names
        self.files = files
        self.labels = labels
        self.on_bad_image = on_bad_image
        self._bad: set[int] = set()
        self._lock = threading.Lock()

    @property
    def bad_files(self) -> int:
        """How many damaged files have been met so far."""
        return len(self._bad)

    def __len__(self) -> int:
        """How many files there are, damaged ones included."""
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The image at `index`, or the next readable one.

        Raises:
            UserError: the file is damaged and `on_bad_image` is "stop", or no file is readable.
        """
        start = range(len(self.files))[index]
        for candidate in itertools.chain(range(start, len(self.files)), range(start)):
            if candidate in self._bad:
                continue
            try:
                return {"image": read_image(self.files[candidate]), "label": self.labels[candidate]}
            except BadImageError as error:
                self._meet_bad(candidate, error)
        raise UserError(f"{self.name}: none of its {len(self.files)} files is a readable image.")

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    def _meet_bad(self, index: int, error: BadImageError) -> None:
        file = self.files[index]
        if self.on_bad_image == "stop":
            raise UserError(
                f"{file}: not a readable image ({error}). Repair or remove it, or pass "
                "`--data.on-bad-image skip` to go on with the next one in its place."
            ) from error
        with self._lock:
            if index in self._bad:
                return
            self._bad.add(index)
        warnings.warn(f"{file}: not a readable image ({error}); skipped.", stacklevel=3)


def open_folder(path: Path, on_bad_image: str = "stop") -> FolderSource:
    """List the images of a folder; none is opened.

    Every direct subfolder that holds images (at any depth) is a class, in the order of the sorted names; a
    folder with no such subfolder is one set without classes. Hidden files and folders are ignored.

    Raises:
        UserError: the folder is missing, holds no images, or holds images beside class folders.
    """
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; folder:PATH needs images, or one subfolder of images for each class.")
    entries = sorted((entry for entry in os.scandir(path) if not entry.name.startswith(".")), key=lambda e: e.name)
    flat = [entry.path for entry in entries if _is_image(entry.name) and not entry.is_dir()]
    classes = {entry.name: _images_below(entry.path) for entry in entries if entry.is_dir()}
    classes = {name: files for name, files in classes.items() if files}
    if flat and classes:
        raise UserError(
            f"{path}: holds both images ({Path(flat[0]).name}, {len(flat)} in all) and folders of images "
            f"({', '.join(list(classes)[:3])}); put every image into a class folder, or all into one folder."
        )
    if not flat and not classes:
        wanted = " ".join(sorted(extension[1:] for extension in EXTENSIONS))
        raise UserError(f"{path}: no images there; the extensions looked for are {wanted}.")
    files = flat or [file for group in classes.values() for file in group]
    sizes = [len(group) for group in classes.values()] or [len(files)]  # without classes every label is 0
    labels = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
    return FolderSource(f"folder:{path}", files, labels, tuple(classes), on_bad_image)


def _is_image(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in EXTENSIONS


def _images_below(folder: str) -> list[str]:
    found: list[str] = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [os.path.join(parent, name) for name in names if _is_image(name)]
    return sorted(found)
