"""Files and folders: whole or not there, written beside their name and renamed."""

import errno
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path

from ddpm_jax import signals
from ddpm_jax.checks import path as as_path
from ddpm_jax.errors import UserError

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]

_STALE_S = 10.0
"""Seconds after which something unfinished that nobody holds was left by a process that was killed."""

_Set = tuple[ExitStack, list[tuple[Path, Path]]]
_set: ContextVar[_Set | None] = ContextVar("set", default=None)


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


def write_atomically(path: Path, write: Callable[[Path], object]) -> Path:
    """Let `write` fill a temporary file beside `path` (with the same suffix), then rename it; returns path.

    Raises:
        UserError: the folder cannot be made, or the file cannot be written (read-only, disk full).
    """
    path = as_path("path", path)
    with ExitStack() as own, _told(path):
        together = _set.get()
        temporary = (together[0] if together else own).enter_context(_beside(path))
        write(temporary)
        if together is None:
            _appear([(temporary, path)])
        else:
            together[1].append((temporary, path))
    return path


def write_text(path: Path, text: str) -> Path:
    """Write a file of text, as `write_atomically` does; returns path.

    Raises:
        UserError: as there.
    """
    return write_atomically(path, lambda temporary: temporary.write_text(text))


@contextmanager
def together() -> Iterator[None]:
    """The files that `write_atomically` writes within are there at its end: all of them, or none.

    Raises:
        UserError: one of them cannot be written.
    """
    with ExitStack() as stack:
        made: list[tuple[Path, Path]] = []
        token = _set.set((stack, made))
        try:
            yield
        finally:
            _set.reset(token)
        if made:
            with _told(made[0][1].parent):
                _appear(made)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to be filled in another place; at the end it is there, under its own name. One that is there must be empty.

    Raises:
        UserError: it cannot be made, or what is written into it fails with an OSError.
    """
    with _told(folder), _beside(folder, is_folder=True) as made:
        yield made
        made.chmod(0o777 & ~_umask())
        _appear([(made, folder)])


def delete_folder(folder: Path) -> None:
    """A folder is gone at once, however long its files take.

    Raises:
        OSError: it cannot be deleted.
    """
    if folder.is_symlink():
        raise OSError("it is a symbolic link")
    with _beside(folder, is_folder=True) as grave:
        with signals.undivided():
            os.rename(folder, grave / folder.name)
        shutil.rmtree(grave)


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder for what the command needs while it runs."""
    with _beside(Path(tempfile.gettempdir()) / "ddpm-jax", is_folder=True) as folder:
        yield folder


@contextmanager
def _beside(path: Path, *, is_folder: bool = False) -> Iterator[Path]:
    """A temporary file or folder, which is gone at the end unless it was renamed; also where a signal ends the command."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stem, suffix = (path.name, "") if is_folder else (path.stem, path.suffix)
    _clear(path.parent, stem, suffix)
    with ExitStack() as stack:
        with signals.undivided():
            name = f".partial{suffix}", f".{stem}-", path.parent
            if is_folder:
                temporary = Path(tempfile.mkdtemp(*name))
                handle = os.open(temporary, os.O_RDONLY) if fcntl else -1
            else:
                handle, made = tempfile.mkstemp(*name)
                temporary = Path(made)
                if os.name == "posix":
                    os.fchmod(handle, 0o666 & ~_umask())  # mkstemp's files are private; these are not
            stack.callback(_remove, temporary)
            stack.enter_context(signals.undone(lambda: _remove(temporary)))
            if fcntl:
                stack.callback(os.close, handle)
                _lock(handle)
            elif not is_folder:
                os.close(handle)
        yield temporary


def _appear(made: list[tuple[Path, Path]]) -> None:
    for temporary, path in made:
        if path.is_dir() and not temporary.is_dir():  # before any is renamed
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    with signals.undivided():
        for temporary, path in made:
            os.replace(temporary, path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _lock(handle: int) -> bool:
    """Hold what is unfinished for as long as this process lives; False: another one does, or files cannot be locked there."""
    with suppress(OSError):
        if fcntl:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    return False


def _clear(folder: Path, stem: str, suffix: str) -> None:
    """Remove what processes that were killed have left of something."""
    ours = re.compile(rf"\.{re.escape(stem)}-\w{{8}}\.partial{re.escape(suffix)}")
    for name in filter(ours.fullmatch, os.listdir(folder)):
        with suppress(OSError):
            if time.time() - (folder / name).stat().st_mtime < _STALE_S:
                continue
            handle = os.open(folder / name, os.O_RDONLY)
            try:
                if _lock(handle):
                    _remove(folder / name)
            finally:
                os.close(handle)


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


@contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}.") from error
