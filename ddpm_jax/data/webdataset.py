"""Shards of WebDataset: tar archives in which neighbours of one name make an example; read at random access, never unpacked."""

import bisect
import glob
import hashlib
import json
import os
import re
import tarfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, overload

import numpy as np

from ddpm_jax import progress
from ddpm_jax.cache import cache_folder
from ddpm_jax.data.columns import numbered
from ddpm_jax.data.decoding import BadImageError
from ddpm_jax.data.folder import EXTENSIONS, FolderSource
from ddpm_jax.data.source import FORMS, Form, Opening
from ddpm_jax.errors import UserError
from ddpm_jax.files import write_text

VERSION = 1
"""To be raised with every change of what an index holds."""
MOST_SHARDS = 1_000_000
_BRACES = re.compile(r"\{([^{}]*)\}")
_SPAN = re.compile(r"(\d+)\.\.(\d+)")
_WILD = re.compile(r"[*?\[{]")
_URL = re.compile(r"\w+:(//| )|pipe:")
_MEMBER = re.compile(r"(?P<key>(?:.*/|)[^./][^./]*)\.(?P<extension>[^/]*)")


@dataclass(frozen=True)
class Member:
    """A file in a tar archive: where it begins, and how many bytes it has."""

    shard: str
    name: str
    offset: int
    size: int

    def __str__(self) -> str:
        return f"{self.shard}/{self.name}"


@dataclass(frozen=True)
class Index:
    """The examples of a shard: the names of their images, where these lie, and their labels as the shard has them."""

    names: list[str]
    offsets: list[int]
    sizes: list[int]
    labels: list[Any]
    """Integers, true and false, or text; None: there is none."""

    def __post_init__(self) -> None:
        columns = (self.names, self.offsets, self.sizes, self.labels)
        if not all(isinstance(column, list) and len(column) == len(self.names) for column in columns):
            raise ValueError("an index has four lists of one length")


class Images(Sequence[Member]):
    """The images of all shards in a row."""

    def __init__(self, shards: Sequence[str], indices: Sequence[Index]):
        self._shards, self._indices = shards, indices
        self._ends = np.cumsum([len(index.names) for index in indices]).tolist()

    def __len__(self) -> int:
        return self._ends[-1]

    @overload
    def __getitem__(self, index: int) -> Member: ...

    @overload
    def __getitem__(self, index: slice) -> "Sequence[Member]": ...

    def __getitem__(self, index: int | slice) -> Member | Sequence[Member]:
        if isinstance(index, slice):
            return [self[place] for place in range(len(self))[index]]
        place = range(len(self))[index]
        shard = bisect.bisect_right(self._ends, place)
        found, within = self._indices[shard], place - (self._ends[shard - 1] if shard else 0)
        return Member(self._shards[shard], found.names[within], found.offsets[within], found.sizes[within])


def read_member(member: Member) -> bytes:
    """The bytes of a file in a tar archive.

    Raises:
        BadImageError: the archive ends before they do, or is gone.
    """
    try:
        with open(member.shard, "rb") as file:
            file.seek(member.offset)
            found = file.read(member.size)
    except FileNotFoundError as error:
        raise BadImageError("its shard is gone") from error
    if len(found) < member.size:
        raise BadImageError("its shard has become shorter")
    return found


def open_webdataset(pattern: str, how: Opening) -> FolderSource:
    """Open shards: `train-{000..146}.tar`, `shards/*.tar`, or a folder of .tar files; what lies where is looked up once, and kept.

    Neighbours in a shard whose names differ only after their first dot are one example, as WebDataset writes them. Its image is the
    member with an extension of images; its label what the member `.cls` says, or, with `how.label`, the member of that extension or
    that field of the member `.json`: an integer, a class's name, or true or false.

    Raises:
        UserError: no shard is there; one is cut off, compressed, or no tar archive; an example has no image, several, or no label
            where others have one; a label that is none of the classes.
    """
    where = f"webdataset:{pattern}"
    shards = shards_of(pattern, where)
    indices = list(progress.each((_index(shard, how.label) for shard in shards), len(shards), "shards", unit="shard"))
    images = Images(shards, indices)
    if not len(images):
        raise UserError(f"{where}: its {len(shards)} shards hold no examples.")
    labels = [label for index in indices for label in index.labels]
    if all(label is None for label in labels):
        if how.label is not None:
            raise UserError(
                f"{where}: data.label = {how.label!r} is no member of its examples, nor a field of their .json; {images[0]} has "
                f"{', '.join(_columns(images[0])) or 'none'}."
            )
        return FolderSource(where, images, np.zeros(len(images), np.int32), (), how.on_bad_image, read_member)
    if None in labels:
        without = images[labels.index(None)]
        raise UserError(f"{where}: {without} has no label ({how.label or 'cls'}), and other examples have one.")
    numbers, class_names = numbered(_values(labels), None, f"{where}: labels", lambda place: str(images[place]))
    return FolderSource(where, images, numbers, class_names, how.on_bad_image, read_member)


def shards_of(pattern: str, where: str) -> list[str]:
    """The paths that a pattern stands for: those of braces in their order, those of wildcards sorted.

    Raises:
        UserError: there is none, one of the braces is missing, or the pattern is a URL.
    """
    if _URL.match(pattern):
        raise UserError(f"{where}: shards must lie in a folder of this machine, since they are read at random access.")
    if os.path.isdir(pattern):
        pattern = os.path.join(glob.escape(pattern), "*.tar")
    found = []
    for path in _expanded(pattern):
        if not re.search(r"[*?\[]", path) and not os.path.isfile(path):
            raise UserError(f"{where}: {path}: no such file.")
        found += sorted(glob.glob(path, recursive=True)) if re.search(r"[*?\[]", path) else [path]
    if not found:
        raise UserError(f"{where}: no shard is there; a pattern is, for one, shards/*.tar or train-{{000..146}}.tar.")
    return list(dict.fromkeys(found))


def path_in(pattern: str) -> Path | None:
    """The folder in a pattern, or the file where it is none."""
    if _URL.match(pattern):
        return None
    wild = _WILD.search(pattern)
    return Path(pattern) if wild is None else Path(pattern[: wild.start()] + "x").parent


def _expanded(pattern: str) -> Iterator[str]:
    """A pattern without its braces, {08..12} or {train,test}, as a shell writes them out."""
    match = _BRACES.search(pattern)
    if match is None:
        yield pattern
        return
    span = _SPAN.fullmatch(match[1])
    words = match[1].split(",")
    if span is not None:
        first, last, width = int(span[1]), int(span[2]), len(span[1]) if span[1].startswith("0") else 0
        if not 0 <= last - first < MOST_SHARDS:
            raise UserError(f"{match[0]} must rise, by less than {MOST_SHARDS:,}.")
        words = [str(number).zfill(width) for number in range(first, last + 1)]
    for word in words:
        yield from _expanded(pattern[: match.start()] + word + pattern[match.end() :])


def _index(shard: str, label: str | None) -> Index:
    """A shard's index, from the cache where it is kept there for this very file."""
    status = os.stat(shard)
    facts = [VERSION, os.path.realpath(shard), status.st_size, status.st_mtime_ns, label]
    path = cache_folder("webdataset") / f"{hashlib.sha256(json.dumps(facts).encode()).hexdigest()}.json"
    try:
        return Index(**json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError):  # not kept yet, or damaged
        index = _indexed(shard, label)
    try:
        write_text(path, json.dumps(index.__dict__))
    except UserError as error:
        warnings.warn(f"{shard}: where its examples lie is not kept for the next command: {error}", stacklevel=4)
    return index


def _indexed(shard: str, label: str | None) -> Index:
    """A shard's index, from the shard.

    Raises:
        UserError: it is no whole tar archive; an example has no image, or several, or a label that cannot be read.
    """
    index = Index([], [], [], [])
    try:
        with _opened(shard) as archive:
            for key, members in _examples(shard, archive):
                image = _image_of(shard, key, members)
                index.names.append(image.name)
                index.offsets.append(image.offset_data)
                index.sizes.append(image.size)
                index.labels.append(_label_of(f"{shard}/{key}", archive, members, label))
    except (tarfile.TarError, EOFError, OSError) as error:
        raise UserError(f"{shard}: not a whole tar archive ({error}); copy or make it anew.") from error
    return index


def _opened(shard: str) -> tarfile.TarFile:
    with open(shard, "rb") as file:
        if file.read(2) == b"\x1f\x8b":
            raise UserError(f"{shard}: compressed, so that its members cannot be found; gunzip it.")
    return tarfile.open(shard, "r:")


def _examples(shard: str, archive: tarfile.TarFile) -> Iterator[tuple[str, dict[str, tarfile.TarInfo]]]:
    """The key of each example, and its members by what follows the first dot of their names."""
    named = [(match, member) for member in archive if member.isfile() and (match := _MEMBER.fullmatch(member.name))]
    for key, group in groupby(named, lambda pair: pair[0]["key"]):
        members: dict[str, tarfile.TarInfo] = {}
        for match, member in group:
            if match["extension"].lower() in members:
                raise UserError(f"{shard}: two members are called {member.name}.")
            members[match["extension"].lower()] = member
        yield key, members


def _image_of(shard: str, key: str, members: dict[str, tarfile.TarInfo]) -> tarfile.TarInfo:
    images = [name for name in members if f".{name.rpartition('.')[2]}" in EXTENSIONS]
    plain = [name for name in images if "." not in name] or images
    if len(plain) != 1:
        raise UserError(
            f"{shard}: the example {key} must have one image; it has {'several: ' if plain else ''}"
            f"{', '.join(member.name for member in (members[name] for name in plain or members))}."
        )
    return members[plain[0]]


def _label_of(where: str, archive: tarfile.TarFile, members: dict[str, tarfile.TarInfo], label: str | None) -> Any:
    """What an example says of its class; None: nothing."""
    wanted = "cls" if label is None else label.lower()
    if wanted in members and wanted != "json":
        text = _text(where, archive, members[wanted])
        return int(text) if re.fullmatch(r"-?\d+", text) else text
    value = _fields(where, archive, members).get(label) if label is not None else None
    if value is not None and not isinstance(value, str | int):
        raise UserError(f"{where}: {label} must be an integer, true or false, or text; got {json.dumps(value)[:80]}.")
    return value


def _fields(where: str, archive: tarfile.TarFile, members: dict[str, tarfile.TarInfo]) -> dict[str, Any]:
    """What the member .json holds; empty: there is none."""
    if "json" not in members:
        return {}
    try:
        tree = json.loads(_text(where, archive, members["json"]))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}.json cannot be read: {error}.") from error
    if not isinstance(tree, dict):
        raise UserError(f"{where}.json must hold an object; got {json.dumps(tree)[:80]}.")
    return tree


def _text(where: str, archive: tarfile.TarFile, member: tarfile.TarInfo) -> str:
    file = archive.extractfile(member)
    assert file is not None
    try:
        return file.read().decode().strip()
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: {member.name} holds no text: {error}.") from error


def _columns(image: Member) -> list[str]:
    """What may hold the label of an example: its members but the image, and the fields of its .json."""
    with _opened(image.shard) as archive:
        for key, members in _examples(image.shard, archive):
            if image.name in (member.name for member in members.values()):
                others = [name for name, member in members.items() if name != "json" and member.name != image.name]
                return [*others, *_fields(key, archive, members)]
    return []


def _values(labels: list[Any]) -> np.ndarray:
    """Labels as a column of one type: all integers, all true or false, or text."""
    kinds = {type(label) for label in labels}
    if kinds == {int} and max(map(abs, labels)) >= 2**63:
        return np.array([float(label) for label in labels])  # which `numbered` refuses
    return np.array(labels if len(kinds) == 1 else list(map(str, labels)))


FORMS["webdataset"] = Form(
    "webdataset:PATTERN", "shards, as train-{000..146}.tar", open_webdataset, path_in, columns=True
)
