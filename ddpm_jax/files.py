"""Files: whole or not there, written beside their name and renamed; and the folder of what is kept between commands."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from ddpm_jax.checks import path as as_path
from ddpm_jax.errors import UserError


def cache_folder(name: str) -> Path:
    """`$DDPM_CACHE/name`, or where that is not set `~/.cache/ddpm-jax/name`; it may not exist yet."""
    base = os.environ.get("DDPM_CACHE")
    return (Path(base) if base else Path.home() / ".cache" / "ddpm-jax") / name


def check_writable(folder: Path) -> None:
    """See that files can be made in a folder, or the folder itself, before work is spent on what they would hold; nothing is left.

    Raises:
        UserError: it is read-only, or below something that is no folder.
    """
    nearest = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise UserError(f"{folder} cannot be written to: {nearest} is a file, not a folder.")
    try:
        with tempfile.TemporaryFile(dir=nearest) as file:
            file.write(b"1")
    except OSError as error:
        raise UserError(f"{folder} cannot be written to: {error.strerror or error}.") from error


def keep_programs() -> None:
    """Have JAX, which is not imported yet, keep what it compiles for the next command; a user's own settings are left alone."""
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    folder = cache_folder("programs")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # a home that cannot be written to: programs are compiled anew each time
        return
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
    os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", "2000000000")  # bytes; the least recently used go first
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")


def write_atomically(path: Path, write: Callable[[Path], object]) -> Path:
    """Let `write` fill a temporary file beside `path` (with the same suffix), then rename it; returns path.

    Raises:
        UserError: the folder cannot be made, or the file cannot be written (read-only, disk full).
    """
    path = as_path("path", path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
        temporary = Path(name)
        umask = os.umask(0)
        os.umask(umask)
        os.fchmod(handle, 0o666 & ~umask)  # mkstemp's files are private; these are not
        os.close(handle)
        write(temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}.") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
    return path
