"""How many processors there are for this process."""

import os


def count() -> int:
    """Those that the system lets this process run on, at least 1; all of the machine's, where it does not say which."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
