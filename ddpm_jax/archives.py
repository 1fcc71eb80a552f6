"""NumPy archives that somebody else may have made: nothing is unpickled, and nothing unpacks to gigabytes before it is refused."""

import lzma
import math
import struct
import zipfile
import zlib
from pathlib import Path
from tokenize import TokenError

import numpy as np

from ddpm_jax.errors import UserError

LARGE = 256 * 2**20
"""Bytes up to which anything may be unpacked."""
MOST_TIMES = 200
"""How many times its packed size a larger thing may unpack to: a photograph compresses 2 times, a bomb 1,000 times."""

BROKEN = (
    ValueError,
    TypeError,
    EOFError,
    KeyError,
    IndexError,
    RuntimeError,
    OverflowError,
    NotImplementedError,
    SyntaxError,
    TokenError,
    struct.error,
    zlib.error,
    lzma.LZMAError,
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
)
"""What zipfile and NumPy raise for an archive whose bytes have changed, besides OSError, which may be the machine's fault."""


def check_unpacked(what: str, *, packed: int, unpacked: int) -> None:
    """See that something of so many bytes may be unpacked to so many.

    Raises:
        UserError: it is a bomb (names `what`).
    """
    if unpacked > LARGE and unpacked > MOST_TIMES * packed:
        raise UserError(
            f"{what} is refused: {packed:,} bytes would unpack to {unpacked:,}; more than {LARGE:,} are unpacked only where "
            f"that is at most {MOST_TIMES} times the packed size."
        )


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a NumPy archive by name.

    Raises:
        UserError: it is missing or damaged, or holds something else than plain arrays.
    """
    arrays = {}
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            if file.read(6) == np.lib.format.MAGIC_PREFIX:
                raise UserError(f"{path}: a single array, not an archive; write it with numpy.savez(path, images=...).")
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                what = f"{path}: {entry.filename}"
                check_unpacked(what, packed=min(entry.compress_size, size), unpacked=entry.file_size)
                _check_header(archive, entry, what)
                with archive.open(entry) as file:
                    array = np.lib.format.read_array(file, allow_pickle=False)
                arrays[entry.filename.removesuffix(".npy")] = array
    except UserError:
        raise
    except (OSError, *BROKEN) as error:
        raise UserError(
            f"{path}: cannot be read as a NumPy archive without pickled objects ({type(error).__name__}: {error})."
        ) from error
    return arrays


def _check_header(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, what: str) -> None:
    """See that an array is as large as its header says, before it is allocated."""
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    with archive.open(entry) as file:
        version = np.lib.format.read_magic(file)
        if version not in readers:
            raise UserError(f"{what} has NumPy's format {version}; plain arrays have 1.0 or 2.0.")
        shape, _, dtype = readers[version](file)
        if dtype.hasobject:
            raise UserError(f"{what} cannot be read without pickled objects, which might run code.")
        declared, found = math.prod(shape) * dtype.itemsize, entry.file_size - file.tell()
    if declared != found or min(shape, default=0) < 0:
        raise UserError(f"{what} is damaged: an array {shape} of {dtype} takes {declared} bytes, {found} follow.")
