"""How the C library hands out memory: what a training step frees stays with the process for the next one."""

import contextlib
import ctypes
import os

# mallopt's numbers are those of glibc's malloc.h; its integers are 32 bits wide, and -1 becomes the largest size there is
_SETTINGS = {
    "MALLOC_ARENA_MAX": (-8, 1),
    "MALLOC_MMAP_MAX_": (-4, 0),
    "MALLOC_TRIM_THRESHOLD_": (-1, -1),
    "MALLOC_TOP_PAD_": (-2, 2**26),
}
_LARGEST = 2**63 - 1


def keep_memory() -> bool:
    """Have glibc keep freed memory; for this process, whose threads must not have begun, and for those that it starts.

    A compiled program on CPU asks for its working memory in each call. As glibc comes, such large pieces go back to the system
    after the call, and each of their pages is cleared and mapped anew in the next. Returns whether it took effect: not with another
    C library or allocator, nor where the user has settings of their own (MALLOC_*, GLIBC_TUNABLES).
    """
    if any(name.startswith("MALLOC_") for name in os.environ) or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    with contextlib.suppress(OSError, AttributeError, TypeError):  # no such library, function or way to look for it
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018  # what tells glibc from the others
        if all(library.mallopt(option, value) for option, value in _SETTINGS.values()):
            for name, (_, value) in _SETTINGS.items():
                os.environ[name] = str(_LARGEST if value < 0 else value)
            return True
    return False
