"""How far a command is: bars on a terminal and in a notebook, and lines, all on standard error."""

import contextlib
import functools
import sys
import threading
import warnings
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")

TICK_S = 1.0
"""Seconds between two looks at the clock while a bar stands still, as it does while one program is compiled or runs."""


_hushed = False


def hush() -> None:
    """From here on this process says nothing: another one of the same command does."""
    global _hushed
    _hushed = True


def wanted() -> bool:
    """Whether somebody watches: standard error is a terminal, or the page of a notebook."""
    return not _hushed and (sys.stderr.isatty() or _in_notebook())


def say(text: str) -> None:
    """A line of text, above the bars where there are any."""
    if not _hushed:
        _tqdm().write(text, file=sys.stderr)


def duration(seconds: float) -> str:
    """Seconds as minutes and seconds, and hours where there are any: 03:07, 1:00:00."""
    return _tqdm().format_interval(seconds)


def made(total: int, what: str, *, unit: str, done: int = 0, **options: Any) -> Any:
    """A bar to be updated and closed, with the time that is left; nothing where nobody watches. options: tqdm's."""
    options |= {"total": total, "initial": done, "desc": what, "unit": unit, "dynamic_ncols": True}
    return _tqdm()(**options, file=sys.stderr, disable=not wanted())


@contextlib.contextmanager
def bar(total: int, what: str, *, unit: str) -> Iterator[Any]:
    """A bar that is gone once its work is done; its clock goes on while a single program keeps it from moving.

    One program, such as a walk, cannot say how far it is: to call back from within would keep it from being cached, and the
    device waiting.
    """
    with made(total, what, unit=unit, leave=False, mininterval=0, miniters=1) as shown:
        if shown.disable:
            yield shown
            return
        over = threading.Event()

        def tick() -> None:
            while not over.wait(TICK_S):
                shown.refresh()

        clock = threading.Thread(target=tick, name="clock of a progress bar", daemon=True)
        clock.start()
        try:
            yield shown
        finally:
            over.set()
            clock.join()


def each(things: Iterable[T], total: int, what: str, *, unit: str) -> Iterator[T]:
    """The things, with a bar that counts them."""
    with bar(total, what, unit=unit) as shown:
        for thing in things:
            yield thing
            shown.update()


@functools.cache
def _tqdm() -> Any:
    """tqdm's bar of a notebook where this is one and has ipywidgets, the bar of a terminal otherwise."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that ipywidgets is not installed
        from tqdm.auto import tqdm
    return tqdm


def _in_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and "IPKernelApp" in shell.config
