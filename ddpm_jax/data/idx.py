"""The IDX files of MNIST and its relatives (yann.lecun.com/exdb/mnist), plain or gzipped."""

import gzip
import io
import math
import re
import struct
import zlib
from pathlib import Path

import numpy as np

from ddpm_jax.archives import check_unpacked
from ddpm_jax.data.source import FORMS, ArraySource, Form
from ddpm_jax.errors import UserError

FASHION_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
_PREFIXES = {"train": "train", "test": "t10k"}


def holds_idx(folder: Path) -> bool:
    """Whether `folder` holds the images of MNIST's training or test split."""
    return any(_find(folder, prefix, "images", 3) for prefix in _PREFIXES.values())


def open_idx(path: Path, split: str | None = None) -> ArraySource:
    """Read the images, and the labels beside them where there are any.

    Args:
        path: a folder with `train-images-idx3-ubyte[.gz]` or `t10k-...`, or one file of images.
        split: "train" or "test" of a folder; without it train where it exists, else test.

    Raises:
        UserError: a file is missing, truncated or not what its name says.
    """
    images_file = path if path.is_file() else _images_of(path, split)
    if path.is_file() and split is not None:
        raise UserError(f"{path}: the split {split!r} can be chosen of a folder only, and this is a file.")
    images = read_idx(images_file, dimensions=3)
    labels_file = _labels_beside(images_file)
    name = f"idx:{path}" + (f":{split}" if split else "")
    if labels_file is None:
        return ArraySource(name, images)
    labels = read_idx(labels_file, dimensions=1)
    if len(labels) != len(images):
        raise UserError(f"{labels_file}: {len(labels)} labels for the {len(images)} images of {images_file}.")
    return ArraySource(name, images, labels, _class_names(path, images_file, int(labels.max())))


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """One IDX file of unsigned bytes -> uint8 array of `dimensions` axes, none of them empty.

    Raises:
        UserError: the file cannot be read, is of another kind, or holds fewer or more bytes than it declares.
    """
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"  # gzip, whatever the name says
            raw.seek(0)
            with gzip.GzipFile(fileobj=raw) if packed else raw as file:
                return _read(path, file, dimensions)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error


def _read(path: Path, file: io.BufferedIOBase, dimensions: int) -> np.ndarray:
    header = 4 + 4 * dimensions
    head = file.read(header)
    if len(head) < header:
        raise UserError(f"{path}: truncated; {len(head)} bytes, and the header alone takes {header}.")
    magic, *shape = struct.unpack(f">{1 + dimensions}I", head)
    expected = 0x0800 + dimensions  # 0x08: unsigned bytes; then the number of dimensions
    if magic != expected:
        raise UserError(
            f"{path}: not an IDX file of {'images' if dimensions == 3 else 'labels'}; "
            f"the magic number must be 0x{expected:08x}, found 0x{magic:08x}."
        )
    if 0 in shape:
        raise UserError(f"{path}: empty; the dimensions it declares are {tuple(shape)}.")
    declared = math.prod(shape)
    check_unpacked(str(path), packed=path.stat().st_size, unpacked=declared)
    data = file.read(declared)
    if len(data) < declared:
        raise UserError(f"{path}: truncated; the dimensions {tuple(shape)} need {declared} bytes, {len(data)} follow.")
    if file.read(1):
        raise UserError(f"{path}: too long; the dimensions {tuple(shape)} need {declared} bytes, and more follow.")
    return np.frombuffer(data, np.uint8).reshape(shape)


def _find(folder: Path, prefix: str, kind: str, dimensions: int) -> Path | None:
    for joint in "-.":  # some mirrors write train-images.idx3-ubyte
        for suffix in ("", ".gz"):
            file = folder / f"{prefix}-{kind}{joint}idx{dimensions}-ubyte{suffix}"
            if file.is_file():
                return file
    return None


def _images_of(folder: Path, split: str | None) -> Path:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such file or folder; idx:PATH needs IDX files.")
    for wanted in _PREFIXES if split is None else (split,):
        file = _find(folder, _PREFIXES[wanted], "images", 3)
        if file is not None:
            return file
    expected = " or ".join(f"{_PREFIXES[s]}-images-idx3-ubyte[.gz]" for s in ([split] if split else _PREFIXES))
    raise UserError(f"{folder}: no IDX images there; expected {expected}.")


def _labels_beside(images_file: Path) -> Path | None:
    stem = re.fullmatch(r"(.*)-images[-.]idx3-ubyte(\.gz)?", images_file.name)
    return _find(images_file.parent, stem[1], "labels", 1) if stem else None


def _class_names(path: Path, images_file: Path, highest: int) -> list[str]:
    where = f"{path} {images_file.resolve().parent.name}".lower()
    if highest < 10:
        return list(FASHION_NAMES) if "fashion" in where else [str(digit) for digit in range(10)]
    return [str(label) for label in range(highest + 1)]  # EMNIST and other relatives


def _path_and_split(text: str) -> tuple[Path, str | None]:
    whole = Path(text).expanduser()
    head, _, tail = text.rpartition(":")
    if head and tail in ("train", "test") and not whole.exists():
        return Path(head).expanduser(), tail
    return whole, None


FORMS["idx"] = Form(
    "idx:PATH[:train|:test]",
    "IDX files of MNIST or Fashion-MNIST",
    lambda rest, _: open_idx(*_path_and_split(rest)),
    lambda rest: _path_and_split(rest)[0],
)
