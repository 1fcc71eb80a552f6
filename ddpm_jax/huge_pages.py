"""Memory in huge pages: what a training step asks for and gives back in each call is then mapped in a few hundred pieces."""

import os
import sys
from contextlib import suppress
from pathlib import Path

TUNABLE = "glibc.malloc.hugetlb=1"
"""glibc's allocator asks the system for huge pages; it reads this from $GLIBC_TUNABLES when a process starts."""
_SYSTEM = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def restart_with_huge_pages() -> None:
    """Start this command anew with huge pages, where that is up to the process: Linux with glibc, huge pages on demand.

    Does not return then; the process keeps its number, its environment, its arguments, and the signals that are blocked and wait.
    A user's own GLIBC_TUNABLES or MALLOC_* are left alone, and so is a program that is no file: it may have been read from a pipe,
    which is not read twice. Whatever fails, the command goes on without.
    """
    own = "GLIBC_TUNABLES" in os.environ or any(name.startswith("MALLOC_") for name in os.environ)
    with suppress(Exception):  # it would be faster; that is all
        if not own and _is_a_file() and _has_glibc() and _on_demand():
            os.execve(sys.executable, sys.orig_argv, os.environ | {"GLIBC_TUNABLES": TUNABLE})


def _is_a_file() -> bool:
    """Whether the program can be read anew, by the user that this process is by now."""
    return os.access(str(sys.modules["__main__"].__file__), os.R_OK)


def _has_glibc() -> bool:
    try:
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    except (AttributeError, ValueError, OSError):  # not a POSIX system, or one with another C library
        return False


def _on_demand() -> bool:
    try:
        return "[madvise]" in _SYSTEM.read_text()
    except OSError:
        return False
