"""Data sets of the Hugging Face Hub, or of parquet and arrow files, by the library `datasets`: memory-mapped, at random access."""

import bisect
import glob
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np

from ddpm_jax.data.columns import chosen, listed, numbered
from ddpm_jax.data.decoding import BadImageError, read_file
from ddpm_jax.data.folder import FolderSource
from ddpm_jax.data.source import FORMS, Form, Opening
from ddpm_jax.errors import UserError

SUFFIXES = {".parquet": "parquet", ".arrow": "arrow"}
"""Files of tables, and what `datasets` calls their form."""
_SPEC = re.compile(r"(?P<what>.+?)(:(?P<split>[A-Za-z_][^/\\]*))?")
_NAME = re.compile(r"(?P<name>[\w.-]+(/[\w.-]+)?)(/(?P<config>[\w.-]+))?")
_WILD = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Row:
    """One row of a table."""

    table: str
    index: int

    def __str__(self) -> str:
        return f"{self.table}, row {self.index}"


class Rows(Sequence[Row]):
    """The rows of several tables, one after the other."""

    def __init__(self, tables: Sequence[str], counts: Sequence[int]):
        self._tables, self._ends = tables, np.cumsum(counts).tolist()

    def __len__(self) -> int:
        return self._ends[-1]

    @overload
    def __getitem__(self, index: int) -> Row: ...

    @overload
    def __getitem__(self, index: slice) -> "Sequence[Row]": ...

    def __getitem__(self, index: int | slice) -> Row | Sequence[Row]:
        if isinstance(index, slice):
            return [self[row] for row in range(len(self))[index]]
        row = range(len(self))[index]
        table = bisect.bisect_right(self._ends, row)
        return Row(self._tables[table], row - (self._ends[table - 1] if table else 0))


class TableReader:
    """Reads the images of a `datasets.Dataset`, undecoded."""

    def __init__(self, table: Any, column: str):
        self._table, self._column = table, column

    def __call__(self, row: Row) -> bytes:
        """The bytes of the image in a row."""
        return bytes_of(self._table[row.index][self._column])


def bytes_of(cell: Any) -> bytes:
    """What a cell of a column of images holds: bytes, or {"bytes", "path"}, of which one may be None.

    Raises:
        BadImageError: neither is there, or the file at the path cannot be read.
    """
    found = cell.get("bytes") if isinstance(cell, dict) else cell
    if found is None and isinstance(cell, dict) and cell.get("path"):
        return read_file(cell["path"])
    if found is None:
        raise BadImageError("the cell is empty")
    return bytes(found)


def open_hf(spec: str, how: Opening) -> FolderSource:
    """Open `PATH[:split]` or `NAME[/config][:split]`, split "train" unless named, or the only one there is.

    PATH: a folder that `save_to_disk` wrote, a .parquet or .arrow file, a pattern of such (`data/*.parquet`), or a folder of
    whatever `datasets.load_dataset` knows. NAME: of the Hub, `owner/name`; a split may be a part of one, as `train[:1000]`. The
    images are the column of type Image, or of bytes; the labels that of type ClassLabel, or the one that `how.label` names:
    classes, integers, true or false, or text.

    Raises:
        UserError: `datasets` is missing; nothing is there, or it is damaged; an unknown split; no column of images, or several;
            several columns of labels, or none of that name; a label that is none of the classes.
    """
    datasets = import_datasets(f"hf:{spec}")
    what, split = what_and_split(spec)
    where = f"hf:{spec}"
    table = _saved(datasets, Path(what), split, where) if _is_saved(what) else _loaded(datasets, what, split, where)
    if not len(table):
        raise UserError(f"{where} has no rows.")
    image, label = columns_of(datasets, table.features, how.label, where)
    labels, class_names = np.zeros(len(table), np.int32), tuple[str, ...]()
    if label is not None:
        column = table.select_columns([label]).with_format("arrow")[:][label]
        labels, class_names = labels_in(column, table.features[label], f"{where}: {label}")
    images = table.select_columns([image])
    if isinstance(table.features[image], datasets.Image):
        images = images.cast_column(image, datasets.Image(decode=False))
    reader = TableReader(images.with_format(None), image)
    return FolderSource(where, Rows([where], [len(table)]), labels, class_names, how.on_bad_image, reader)


def import_datasets(asker: str) -> Any:
    """The library `datasets`.

    Raises:
        UserError: it is not installed.
    """
    try:
        import datasets
    except ImportError as error:
        raise UserError(f'{asker} needs the library datasets:\n    pip install "ddpm-jax[hf]"') from error
    return datasets


def what_and_split(spec: str) -> tuple[str, str | None]:
    """A spec before and after the colon of its split; a path that holds colons itself is one where it exists."""
    match = None if os.path.exists(spec) else _SPEC.fullmatch(spec)
    return (match["what"], match["split"]) if match else (spec, None)


def path_in(spec: str) -> Path | None:
    """The path in a spec, up to its first wildcard; None where it may be the name of a data set."""
    return _path(what_and_split(spec)[0])


def _path(what: str) -> Path | None:
    if wild := _WILD.search(what):
        return Path(what[: wild.start()] + "x").parent
    looks_like_one = what.startswith((".", "/", "~")) or Path(what).suffix in SUFFIXES or _NAME.fullmatch(what) is None
    return Path(what) if looks_like_one or os.path.exists(what) else None


def builder_of(datasets: Any, what: str, where: str) -> Any:
    """The `datasets.DatasetBuilder` of a path or name, which knows its splits and their files.

    Raises:
        UserError: nothing is there, or nothing that it can read.
    """
    path = _path(what)
    if path is None:
        match = _NAME.fullmatch(what)
        assert match is not None
        asked: tuple[Any, ...] = (match["name"], match["config"])
        files = None
    elif path.is_dir() and not _WILD.search(what):
        asked, files = (str(path),), None
    else:
        found = sorted(glob.glob(what, recursive=True))
        kinds = {SUFFIXES.get(Path(file).suffix.lower()) for file in found}
        if not found or len(kinds) > 1 or None in kinds:
            raise UserError(
                f"{where}: {'no such file' if not found else 'files of several or other kinds'}; hf:PATH needs a folder, or "
                f"files of one of the kinds {', '.join(SUFFIXES)}."
            )
        asked, files = (kinds.pop(),), {"train": found}
    try:
        return datasets.load_dataset_builder(*asked, **({"data_files": files} if files else {}))
    except Exception as error:  # whatever the Hub's client and a data set's files raise; nothing is swallowed
        what_for = f"no path here, and the Hub says of {what}" if path is None else "cannot be opened"
        raise UserError(f"{where}: {what_for}: {error}") from error


def split_of(known: Sequence[str], split: str | None, where: str) -> str:
    """The split that was asked for, or else "train", or the only one.

    Raises:
        UserError: there are several, and none is train.
    """
    if split is not None:
        return split
    if "train" in known or not known:
        return "train"
    if len(known) > 1:
        raise UserError(f"{where} has the splits {', '.join(known)}; name one: {where}:{known[0]}.")
    return known[0]


def _is_saved(what: str) -> bool:
    return any(Path(what, name).is_file() for name in ("state.json", "dataset_dict.json"))


def _saved(datasets: Any, folder: Path, split: str | None, where: str) -> Any:
    """The table that `save_to_disk` wrote."""
    try:
        found = datasets.load_from_disk(str(folder))
    except Exception as error:  # whatever damaged files make pyarrow and datasets raise; nothing is swallowed
        raise UserError(f"{where} cannot be read: {error}") from error
    tables = found if isinstance(found, datasets.DatasetDict) else {str(found.split or "train"): found}
    wanted = split_of(list(tables), split, where)
    if wanted not in tables:
        raise UserError(f"{where} has no split {wanted!r}; it has {', '.join(tables)}.")
    return tables[wanted]


def _loaded(datasets: Any, what: str, split: str | None, where: str) -> Any:
    """The table that `datasets` makes of files, once, in its own cache."""
    builder = builder_of(datasets, what, where)
    known = list(map(str, builder.config.data_files or ()))
    wanted = split_of(known, split, where)
    try:
        builder.download_and_prepare()
        return builder.as_dataset(split=wanted)
    except Exception as error:  # as above
        cause = error.__cause__ or error
        raise UserError(f"{where} cannot be read: {cause}") from error


def columns_of(datasets: Any, features: Any, label: str | None, where: str) -> tuple[str, str | None]:
    """The columns of images and of labels; None: there are no labels.

    Raises:
        UserError: no images, or several columns of them; several of labels, or none of the name that is asked for.
    """
    kinds = {name: _told(datasets, feature) for name, feature in features.items()}
    images = [name for name, kind in kinds.items() if kind == "Image"] or [
        name for name, kind in kinds.items() if kind == "bytes"
    ]
    if not images:
        raise UserError(f"{where} has no column of images; it has {listed(kinds)}.")
    if len(images) > 1 and "image" not in images:
        raise UserError(f"{where} has several columns of images, {', '.join(images)}, and none is called image.")
    image = "image" if "image" in images else images[0]
    possible = {name: kind for name, kind in kinds.items() if kind in ("ClassLabel", "integers", "bool", "text")}
    if label is not None:
        return image, chosen(label, possible, where)
    classes = [name for name, kind in kinds.items() if kind == "ClassLabel"]
    if len(classes) > 1:
        raise UserError(f"{where} has several columns of labels, {', '.join(classes)}; choose one with --data.label.")
    if not classes and "label" in possible:
        return image, "label"
    return image, classes[0] if classes else None


def _told(datasets: Any, feature: Any) -> str:
    """The type of a column in a word."""
    if isinstance(feature, datasets.Image | datasets.ClassLabel):
        return type(feature).__name__
    if isinstance(feature, dict):
        return "bytes" if getattr(feature.get("bytes"), "dtype", "") in ("binary", "large_binary") else "struct"
    dtype = getattr(feature, "dtype", type(feature).__name__)
    if isinstance(feature, datasets.Value):
        if dtype in ("binary", "large_binary"):
            return "bytes"
        if dtype in ("string", "large_string", "string_view"):
            return "text"
        if dtype.startswith(("int", "uint")):
            return "integers"
    return str(dtype)


def labels_in(column: Any, feature: Any, where: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """A column of labels, of pyarrow, as numbers, int32 (N,), and the names of the classes.

    Raises:
        UserError: a cell is empty, or a label is none of the classes.
    """
    if column.null_count:
        empty = int(np.flatnonzero(np.asarray(column.is_null()))[0])
        raise UserError(f"{where} must have a label in every row; row {empty} has none.")
    is_text = getattr(feature, "dtype", "").endswith(("string", "string_view"))
    values = np.array(column.to_pylist(), str) if is_text else np.asarray(column)
    return numbered(values, getattr(feature, "names", None), where, "row {}".format)


def features_of(datasets: Any, schema: Any) -> Any:
    """The `datasets.Features` of a table's schema: those that `datasets` kept in it, or else what the types of pyarrow say."""
    try:
        return datasets.Features.from_arrow_schema(schema)
    except (ValueError, TypeError, KeyError, json.JSONDecodeError):  # kept by a version that knew other types
        return datasets.Features.from_arrow_schema(schema.remove_metadata())


FORMS["hf"] = Form(
    "hf:PATH|NAME[/config][:split]", "parquet, arrow, or the Hugging Face Hub", open_hf, path_in, columns=True
)
