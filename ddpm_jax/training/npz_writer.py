"""An .npz file written row by row, so that what goes into it need not fit in memory."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np


class NpzWriter:
    """What np.savez_compressed writes: an array that grows along its first axis, then other arrays. Use as a context manager.

    Args:
        path: of the file, which is replaced.
        name: of the growing array.
        shape: what it has in the end.
        dtype: of its numbers.
        others: the arrays beside it, by name.
    """

    def __init__(self, path: Path, name: str, shape: tuple[int, ...], dtype: Any, others: dict[str, np.ndarray]):
        self._dtype, self._missing, self._others = np.dtype(dtype), shape[0], others
        self._zip = zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED)
        self._entry = self._zip.open(f"{name}.npy", "w", force_zip64=True)
        header = {"descr": np.lib.format.dtype_to_descr(self._dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._entry, header)

    def append(self, rows: np.ndarray) -> None:
        """The next rows of the growing array."""
        self._missing -= len(rows)
        self._entry.write(np.ascontiguousarray(rows, self._dtype).data)

    def __enter__(self) -> "NpzWriter":
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        self._entry.close()
        if kind is None:
            assert self._missing == 0
            for name, array in self._others.items():
                with self._zip.open(f"{name}.npy", "w", force_zip64=True) as entry:
                    np.lib.format.write_array(entry, array, allow_pickle=False)
        self._zip.close()
