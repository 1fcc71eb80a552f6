"""Parquet files read where they lie, in a folder or on the Hugging Face Hub, a row group at a time: nothing is downloaded whole."""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from ddpm_jax.data import grouped
from ddpm_jax.data.folder import FolderSource
from ddpm_jax.data.hf import (
    Row,
    Rows,
    builder_of,
    bytes_of,
    columns_of,
    features_of,
    import_datasets,
    labels_in,
    path_in,
    split_of,
    what_and_split,
)
from ddpm_jax.data.source import FORMS, Form, Opening
from ddpm_jax.errors import UserError

READERS = 16
"""Files whose footers are read at once."""


class StreamedSource(FolderSource):
    """Rows of parquet files, whose `groups` are read whole: a batch wants its examples from few of them."""

    groups: np.ndarray
    """Rows of each row group, int64 (G,)."""


class RowGroups:
    """Reads the images of parquet files, keeping the row groups that were read last: two windows of the order and a group more.

    Args:
        files: paths or URLs.
        footers: the metadata of each.
        column: of the images.
    """

    def __init__(self, files: Sequence[str], footers: Sequence[Any], column: str):
        self._footers, self._column = dict(zip(files, footers, strict=True)), column
        self._ends = {file: np.cumsum(group_sizes(footer)) for file, footer in self._footers.items()}
        self._largest = max(max(group_sizes(footer), default=0) for footer in footers)
        self._fresh()

    def _fresh(self) -> None:
        self._kept: OrderedDict[tuple[str, int], Future[Any]] = OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_kept", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._fresh()

    def __call__(self, row: Row) -> bytes:
        """The bytes of the image in a row of a file.

        Raises:
            UserError: its row group cannot be read.
        """
        ends = self._ends[row.table]
        group = int(np.searchsorted(ends, row.index, "right"))
        first = int(ends[group - 1]) if group else 0
        return bytes_of(self._group(row.table, group)[row.index - first].as_py())

    def _group(self, file: str, group: int) -> Any:
        """The column of images of a row group, read by the first thread that asks for it while the others wait."""
        with self._lock:
            future = self._kept.get((file, group))
            if mine := future is None:
                future = self._kept[file, group] = Future()
            self._kept.move_to_end((file, group))
        if mine:
            try:
                future.set_result(self._read(file, group))
            except BaseException as error:
                with self._lock:
                    self._kept.pop((file, group), None)
                future.set_exception(error)
            self._drop()
        return future.result()

    def _read(self, file: str, group: int) -> Any:
        try:
            with opened(file, self._footers[file]) as parquet:
                return parquet.read_row_group(group, columns=[self._column]).column(self._column)
        except Exception as error:  # of pyarrow, fsspec, the Hub's client and its network; nothing is swallowed
            raise UserError(f"{file}: its row group {group} cannot be read: {error}") from error

    def _drop(self) -> None:
        """Forget what was not used for longest, beyond two windows of rows."""
        with self._lock:
            held = sum(self._footers[file].row_group(group).num_rows for file, group in self._kept)
            while held > 2 * grouped.WINDOW + self._largest:
                (file, group), _ = self._kept.popitem(last=False)
                held -= self._footers[file].row_group(group).num_rows


def open_hf_stream(spec: str, how: Opening) -> StreamedSource:
    """Open `PATH[:split]` or `NAME[/config][:split]` of parquet files as `hf.open_hf` does, without copying or downloading them.

    Their footers and the column of labels are read at once; images in groups, when it is their turn.

    Raises:
        UserError: what `open_hf` refuses; files that are not parquet; files whose columns differ.
    """
    datasets, where = import_datasets(f"hf-stream:{spec}"), f"hf-stream:{spec}"
    what, split = what_and_split(spec)
    splits = {
        str(name): list(files) for name, files in (builder_of(datasets, what, where).config.data_files or {}).items()
    }
    wanted = split_of(list(splits), split, where)
    if wanted not in splits:
        raise UserError(f"{where} has no split {wanted!r}; it has {', '.join(splits)}.")
    files = splits[wanted]
    if strange := next((file for file in files if not file.endswith(".parquet")), None):
        raise UserError(f"{where} must consist of .parquet files; got {strange}. Take hf:{spec} instead.")
    with ThreadPoolExecutor(READERS) as pool:
        footers = list(pool.map(_footer, files))
        schema = footers[0].schema.to_arrow_schema()
        features = features_of(datasets, schema)
        image, label = columns_of(datasets, features, how.label, where)
        for file, footer in zip(files, footers, strict=True):
            if missing := {image, label} - {None, *footer.schema.to_arrow_schema().names}:
                raise UserError(f"{file} has no column {missing.pop()}, which {files[0]} has.")
        if not (count := sum(footer.num_rows for footer in footers)):
            raise UserError(f"{where} has no rows.")
        labels, class_names = np.zeros(count, np.int32), tuple[str, ...]()
        if label is not None:
            import pyarrow

            chunks = [
                chunk for column in pool.map(_column, files, footers, [label] * len(files)) for chunk in column.chunks
            ]
            labels, class_names = labels_in(pyarrow.chunked_array(chunks), features[label], f"{where}: {label}")
    rows = Rows(files, [footer.num_rows for footer in footers])
    source = StreamedSource(where, rows, labels, class_names, how.on_bad_image, RowGroups(files, footers, image))
    source.groups = np.concatenate([group_sizes(footer) for footer in footers])
    return source


def group_sizes(footer: Any) -> np.ndarray:
    """Rows of each row group of a file, int64 (G,)."""
    return np.array([footer.row_group(group).num_rows for group in range(footer.num_row_groups)], np.int64)


def opened(file: str, footer: Any = None) -> Any:
    """A parquet file, at a path or a URL, as pyarrow opens it; its footer is not read again where it is given."""
    import fsspec
    import pyarrow.parquet

    stream = fsspec.open(file, "rb").open()
    return pyarrow.parquet.ParquetFile(stream, metadata=footer, pre_buffer=True)


def _footer(file: str) -> Any:
    try:
        with opened(file) as parquet:
            return parquet.metadata
    except Exception as error:  # of pyarrow, fsspec, the Hub's client and its network; nothing is swallowed
        raise UserError(f"{file} cannot be read: {error}") from error


def _column(file: str, footer: Any, name: str) -> Any:
    try:
        with opened(file, footer) as parquet:
            return parquet.read(columns=[name]).column(name)
    except Exception as error:  # as above
        raise UserError(f"{file}: its column {name} cannot be read: {error}") from error


FORMS["hf-stream"] = Form(
    "hf-stream:PATH|NAME[/config][:split]",
    "the same parquet, read where it lies",
    open_hf_stream,
    path_in,
    columns=True,
)
