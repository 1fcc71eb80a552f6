"""From a spec on the command line (`digits`, `idx:PATH`, `folder:PATH`, ...) to a source."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from ddpm_jax.data.digits import open_digits
from ddpm_jax.data.folder import open_folder, open_zip
from ddpm_jax.data.idx import holds_idx, open_idx
from ddpm_jax.data.npz import open_npz
from ddpm_jax.data.points import open_points
from ddpm_jax.data.source import Source
from ddpm_jax.data.subset import ClassSubset
from ddpm_jax.data.tfds import open_tfds
from ddpm_jax.data.toy import SHAPES
from ddpm_jax.errors import UserError, meant

OnBadImage = Literal["stop", "skip"]

FORMS = """\
  digits                        scikit-learn's 8 x 8 digits
  idx:PATH[:train|:test]        IDX files of MNIST or Fashion-MNIST     idx:data/mnist:test
  folder:PATH                   images, or a subfolder for each class   folder:photos
  zip:PATH                      the same in a zip archive               zip:cifar10.zip
  npz:PATH                      a NumPy archive with images, labels     npz:cifar.npz
  tfds:NAME[/config][:split]    TensorFlow Datasets                     tfds:cifar10:train
  spiral[:N] | disc-grid[:N]    N points in the plane, 25,000           spiral
  PATH                          a folder, a .zip or an .npz file"""


def open_source(spec: Any, *, on_bad_image: str = "stop", classes: Sequence[str] = ()) -> Source:
    """Open a data source by its spec (the forms are in `FORMS`).

    Args:
        spec: which data; a bare path, as text or a Path, is taken for what lies there.
        on_bad_image: of a folder or an archive: "stop" at an unreadable image, or "skip" to the next one.
        classes: names of the only classes to take; none: all.

    Raises:
        UserError: an unknown spec, option or class, or data that is missing or damaged.
    """
    if not isinstance(spec, str | os.PathLike):
        raise UserError(f"the data source must be text or a path; got {spec!r}. The forms are\n{FORMS}")
    source = _open(os.fspath(spec), on_bad_image)
    wanted = (classes,) if isinstance(classes, str) else tuple(map(str, classes))
    return ClassSubset(source, wanted) if wanted else source


def check_there(spec: str) -> None:
    """See that a spec has one of the `FORMS`, and that the path in it exists; nothing is read.

    Raises:
        UserError: it has none, or nothing is there.
    """
    kind, rest = _kind_and_rest(spec)
    if kind in ("idx", "folder", "zip", "npz"):
        path = _path_and_split(rest)[0] if kind == "idx" else Path(rest).expanduser()
        if not path.exists():
            raise UserError(f"{path}: no such {'folder' if kind == 'folder' else 'file'}; data.source = {spec!r}.")


def _open(spec: str, on_bad_image: str) -> Source:
    if on_bad_image not in get_args(OnBadImage):
        raise UserError(f"on_bad_image must be 'stop' or 'skip'; on_bad_image = {on_bad_image!r}.")
    kind, rest = _kind_and_rest(spec)
    if kind == "digits":
        return open_digits()
    if kind in SHAPES:
        return open_points(kind, rest)
    if kind == "idx":
        return open_idx(*_path_and_split(rest))
    if kind == "tfds":
        return open_tfds(rest)
    path = Path(rest).expanduser()
    if kind == "npz":
        return open_npz(path)
    return open_zip(path, on_bad_image) if kind == "zip" else open_folder(path, on_bad_image)


def _kind_and_rest(spec: str) -> tuple[str, str]:
    """Which of the forms a spec has, a bare path being taken for what lies there, and what follows its colon."""
    kind, _, rest = spec.partition(":")
    if (kind == "digits" and not rest) or kind in SHAPES or (rest and kind in ("idx", "folder", "zip", "npz", "tfds")):
        return kind, rest
    if kind == "python":
        raise UserError(
            f"the data {rest!r} was given to training.train as an object in Python, which cannot be opened by name."
        )
    path = Path(spec).expanduser()
    if spec and path.is_dir():
        return ("idx" if holds_idx(path) else "folder"), spec
    if path.suffix.lower() in (".npz", ".zip"):
        return path.suffix.lower()[1:], spec
    forms = ", ".join(line.split()[0] for line in FORMS.splitlines())
    raise UserError(
        f"the data source {spec!r} is not known, and no folder of that name exists; it must be one of {forms}."
        f"{meant(kind, ['digits', *SHAPES, 'idx', 'folder', 'zip', 'npz', 'tfds'])}"
    )


def _path_and_split(text: str) -> tuple[Path, str | None]:
    whole = Path(text).expanduser()
    head, _, tail = text.rpartition(":")
    if head and tail in ("train", "test") and not whole.exists():
        return Path(head).expanduser(), tail
    return whole, None
