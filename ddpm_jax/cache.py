"""What is kept between commands: its folder, and JAX's compiled programs in it."""

import os
import re
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from ddpm_jax.errors import UserError
from ddpm_jax.files import check_writable

_FAILED = re.compile(r"Error (?:reading|writing) persistent compilation cache entry for '.*?': (\w+)")
_HARMLESS = {"FileNotFoundError", "Timeout"}
"""Another process has dropped the program, or takes long; it is compiled anew."""
_said = False
_held: list[Any] = []


def cache_folder(name: str) -> Path:
    """`$DDPM_CACHE/name`, or where that is not set `~/.cache/ddpm-jax/name`; it may not exist yet."""
    base = os.environ.get("DDPM_CACHE")
    return (Path(base) if base else Path.home() / ".cache" / "ddpm-jax") / name


def keep_programs() -> str | None:
    """Have JAX, which is not imported yet, keep what it compiles for the next command; a user's own settings are left alone.

    Returns why it does not, where the folder cannot be written to.
    """
    global _said
    _said = False
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = cache_folder("programs")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            check_writable(folder)
            _mend(folder)
        except (OSError, UserError) as error:
            _said = True
            reason = str(error.strerror if isinstance(error, OSError) else error).rstrip(".")
            return f"compiled programs are not kept for the next command, in {folder}: {reason}. Set $DDPM_CACHE to another folder."
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
        os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", "2000000000")  # bytes; the least recently used go first
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
    return None


def is_worth_saying(warning: str) -> bool:
    """Whether a warning is: of the programs that are not kept, only the first that tells of anything but other processes."""
    global _said
    found = _FAILED.match(warning)
    if found is None:
        return True
    if _said or found[1] in _HARMLESS:
        return False
    _said = True
    return True


def _mend(folder: Path) -> None:
    """Remove programs that a killed process had half written: JAX writes the time of use last, and fails wherever it lacks."""
    if not _unpaired(folder):
        return
    from filelock import FileLock, Timeout

    with suppress(Timeout), FileLock(folder / ".lockfile", timeout=1.0):  # JAX's own
        for path in _unpaired(folder):
            path.unlink(missing_ok=True)


def _unpaired(folder: Path) -> list[Path]:
    names = set(os.listdir(folder))
    other = {"-cache": "-atime", "-atime": "-cache"}
    return [folder / name for name in names if name[-6:] in other and name[:-6] + other[name[-6:]] not in names]


def finish_program() -> None:
    """Before the process ends amid its work: let JAX write to the end what it is writing, and begin nothing more.

    It does so where programs are dropped to make room, for under a lock it then writes; another one's folder is left alone.
    """
    filelock, folder = sys.modules.get("filelock"), os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if filelock and folder and "JAX_COMPILATION_CACHE_MAX_SIZE" in os.environ:
        with suppress(filelock.Timeout):
            lock = filelock.FileLock(Path(folder) / ".lockfile", timeout=1.0)
            _held.append(lock.acquire())  # never to be released
