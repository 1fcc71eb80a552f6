"""A folder or zip archive of image files, flat or with one subfolder for each class."""

import errno
import itertools
import os
import threading
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_jax.archives import BROKEN, check_unpacked
from ddpm_jax.data.decoding import BadImageError, decode_image, read_file
from ddpm_jax.data.source import FORMS, Form, Told
from ddpm_jax.errors import UserError

EXTENSIONS = frozenset(
    {".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm"}
)
BOOKKEEPING = frozenset({"Thumbs.db", "desktop.ini"})
"""Files that an operating system leaves in folders of images: like hidden ones, they are not counted among those not used."""


class FolderSource(Told):
    """Image files, or what else holds their bytes, decoded when asked for.

    With `on_bad_image = "skip"` the next readable file takes the place of a damaged one, label and all; which
    one depends on the files alone, so the order of a run can be repeated.

    Args:
        name: what to call it in messages.
        files: the images, in order: what `read` takes, and `str` names in messages.
        labels: int32 (N,).
        class_names: one name for each class; empty without classes.
        on_bad_image: "stop" raises at the first damaged file, "skip" warns once for each.
        read: one of the files -> its bytes; raises BadImageError where they cannot be had.
    """

    labels_within_class_names = True

    def __init__(
        self,
        name: str,
        files: Sequence[Any],
        labels: np.ndarray,
        class_names: tuple[str, ...],
        on_bad_image: str,
        read: Callable[[Any], bytes] = read_file,
    ):
        self.name = name
        self.class_names = class_names
        self.files = files
        self.labels = labels
        self.on_bad_image = on_bad_image
        self._read = read
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
                image = decode_image(self._read(self.files[candidate]))
                return {"image": image, "label": self.labels[candidate]}
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


class ZipReader:
    """Reads members of a zip archive, opened once in every process; nothing is unpacked.

    Raises:
        UserError: it is no zip archive, or cannot be read.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            self._zip: zipfile.ZipFile | None = zipfile.ZipFile(path)
        except (OSError, *BROKEN) as error:
            raise UserError(f"{path}: not a readable zip archive ({error}).") from error

    @property
    def names(self) -> list[str]:
        """The names of its files."""
        return [entry.filename for entry in self._opened().infolist() if entry.filename and not entry.is_dir()]

    def __call__(self, file: str) -> bytes:
        """The bytes of the member that `file`, a path that begins with the archive's, names."""
        try:
            archive = self._opened()
            entry = archive.getinfo(file.removeprefix(f"{self.path}/"))
            packed = min(entry.compress_size, self.path.stat().st_size)
            check_unpacked("its entry in the archive", packed=packed, unpacked=entry.file_size)
            return archive.read(entry)
        except UserError as error:
            raise BadImageError(str(error)) from error
        except OSError as error:
            if error.errno != errno.EINVAL:  # the machine's fault; this one is an offset before the file's beginning
                raise
            raise BadImageError("its entry in the archive is damaged: it lies outside") from error
        except BROKEN as error:
            raise BadImageError(f"its entry in the archive is damaged: {error}") from error

    def _opened(self) -> zipfile.ZipFile:
        if self._zip is None:
            self._zip = zipfile.ZipFile(self.path)
        return self._zip

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_zip": None}


def open_folder(path: Path, on_bad_image: str = "stop") -> FolderSource:
    """List the images of a folder; none is opened.

    Every direct subfolder that holds images (at any depth) is a class, in the order of the sorted names; a
    folder with no such subfolder is one set without classes. Links to folders and files are followed. Hidden files and
    folders are ignored; whatever else is not used is counted in one warning.

    Raises:
        UserError: the folder is missing or cannot be listed, holds no images, holds images beside class folders, or links to
            itself.
    """
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; folder:PATH needs images, or one subfolder of images for each class.")
    names = list(_names_below(path, "", (os.path.realpath(path),)))
    return _source(f"folder:{path}", path, names, on_bad_image, read_file)


def _names_below(root: Path, below: str, above: tuple[str, ...]) -> Iterator[str]:
    """The files below a folder of root, links followed, and its empty folders with a slash at their end.

    above: the real paths of this folder and of those it lies in.
    """
    try:
        with os.scandir(root / below) as entries:
            found = sorted((entry.name, entry.is_dir()) for entry in entries if not entry.name.startswith("."))
    except OSError as error:
        raise UserError(f"{root / below}: cannot be listed: {error.strerror or error}.") from error
    for name, is_folder in found:
        if not is_folder:
            yield below + name
            continue
        real = os.path.realpath(root / below / name)
        if real in above:
            raise UserError(f"{root / below / name}: a link to {real}, in which it lies: remove it, or it never ends.")
        yield from _names_below(root, f"{below}{name}/", (*above, real))
    if below and not found:
        yield below


def open_zip(path: Path, on_bad_image: str = "stop") -> FolderSource:
    """List the images of a zip archive, laid out as a folder is; a single outermost folder around folders is looked into.

    Raises:
        UserError: it is missing or no zip archive, holds no images, or holds images beside class folders.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; zip:PATH needs an archive of images.")
    archive = ZipReader(path)
    # of a name that is there twice the last one counts, as for who unpacks it
    names = [
        name
        for name in dict.fromkeys(archive.names)
        if not any(part.startswith((".", "__MACOSX")) for part in name.split("/"))
    ]
    wrapped = {name.split("/")[0] for name in names if _is_image(name)}
    around = f"{wrapped.pop()}/" if len(wrapped) == 1 else ""
    if around and all(name.count("/") > 1 for name in names if _is_image(name)):
        names = [name.removeprefix(around) for name in names]
        return _source(f"zip:{path}", path / around, names, on_bad_image, archive)
    return _source(f"zip:{path}", path, names, on_bad_image, archive)


def _source(name: str, root: Path, names: list[str], on_bad_image: str, read: Callable[[str], bytes]) -> FolderSource:
    """The source of the images among `names`, paths below `root` whose first part is the class."""
    images = sorted(name for name in names if _is_image(name))
    flat = [image for image in images if "/" not in image]
    classes: dict[str, list[str]] = {}
    for image in images:
        if "/" in image:
            classes.setdefault(image.split("/")[0], []).append(image)
    if flat and classes:
        raise UserError(
            f"{root}: holds both images ({flat[0]}, {len(flat)} in all) and folders of images "
            f"({', '.join(list(classes)[:3])}); put every image into a class folder, or all into one folder."
        )
    if not images:
        wanted = " ".join(sorted(extension[1:] for extension in EXTENSIONS))
        raise UserError(f"{root}: no images there; the extensions looked for are {wanted}.")
    if unused := _unused(names):
        warnings.warn(f"{root}: not used: {unused}.", stacklevel=4)
    groups = [classes[known] for known in sorted(classes)] or [flat]  # without classes every label is 0
    labels = np.repeat(np.arange(len(groups), dtype=np.int32), [len(group) for group in groups])
    files = [f"{root}/{image}" for group in groups for image in group]
    return FolderSource(name, files, labels, tuple(sorted(classes)), on_bad_image, read)


def _unused(names: list[str]) -> str:
    """What is no image, as "3 .txt, 1 empty folder (cats)"."""
    others = [name for name in names if not _is_image(name) and name.rpartition("/")[2] not in BOOKKEEPING]
    folders = [name[:-1] for name in others if name.endswith("/")]
    kinds = Counter(
        os.path.splitext(name)[1].lower() or "without extension" for name in others if not name.endswith("/")
    )
    parts = [f"{count} {kind}" for kind, count in sorted(kinds.items())]
    if folders:
        shown = ", ".join(folders[:3]) + (", …" if len(folders) > 3 else "")
        parts.append(f"{len(folders)} empty folder{'s' * (len(folders) > 1)} ({shown})")
    return ", ".join(parts)


def _is_image(name: str) -> bool:
    last = name.rpartition("/")[2]
    return not last.startswith(".") and os.path.splitext(last)[1].lower() in EXTENSIONS


FORMS["folder"] = Form(
    "folder:PATH",
    "images, or a subfolder for each class",
    lambda rest, how: open_folder(Path(rest), how.on_bad_image),
    Path,
)
FORMS["zip"] = Form(
    "zip:PATH", "the same in a zip archive", lambda rest, how: open_zip(Path(rest), how.on_bad_image), Path
)
