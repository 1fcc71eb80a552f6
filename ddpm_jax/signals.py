"""Ctrl-C and SIGTERM: one of them ends a command within seconds, with one line, and nothing is left half-written.

Python's own handlers run between two instructions of the main thread, so not while XLA compiles, and a KeyboardInterrupt that is
raised inside a callback is lost. Here both signals are blocked in every thread but one, which waits for nothing else and ends the
process itself. Nothing heavy is imported: this comes before all other imports of a command.
"""

import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM)
GRACE_S = 30.0
"""Seconds that training has, from a signal on, to get to the end of a step; saving it then takes the time it needs."""
_CLEAN_S = 5.0
"""Seconds after which the process ends, whatever is still to be cleaned away: a disk may hang."""

_undivided = threading.RLock()
_undone: list[Callable[[], object]] = []


@contextmanager
def undivided() -> Iterator[None]:
    """What is done within is done wholly, or not begun, when the command ends by a signal; for what takes milliseconds."""
    with _undivided:
        yield


@contextmanager
def undone(undo: Callable[[], object]) -> Iterator[None]:
    """While entered, a signal that ends the command calls `undo` first; it may come from another thread, at any moment."""
    _undone.append(undo)
    try:
        yield
    finally:
        _undone.remove(undo)


class Interruption:
    """While entered, Ctrl-C and SIGTERM only ask to stop. A second Ctrl-C ends the command, or outside one interrupts, at once.

    In a command that is so only while there is something to save, and for GRACE_S until that is noticed; where there are other
    processes to be asked, it is so from the start and for as long as that takes.
    """

    def __init__(self, *, alone: bool = True) -> None:
        self.alone = alone
        self.signal: signal.Signals | None = None
        """The first that came."""
        self.unsaved = not alone
        """Whether there is something to save."""
        self.noticed = False
        """Whether what is asked for is being done."""
        self._before: dict[signal.Signals, Any] = {}

    @property
    def requested(self) -> bool:
        """Whether one came."""
        return self.signal is not None

    def __enter__(self) -> "Interruption":
        if _watch is not None:
            _watch.interruption = self
        elif threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        if _watch is not None:
            _watch.interruption = None
        for number, before in self._before.items():
            signal.signal(number, before)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = self.signal or signal.Signals(number)


def block() -> bool:
    """Keep both signals waiting, in this process and in the program that it may turn into; False: not possible in this thread."""
    if not hasattr(signal, "sigwait") or threading.current_thread() is not threading.main_thread():
        return False
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    return True


@contextmanager
def blocked() -> Iterator[None]:
    """A process that is started within never gets either of the signals."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def watch() -> None:
    """From here on one of the signals, one that waits already included, ends the process; after `block`."""
    global _watch
    _watch = _Watch()


def tell(what: Callable[[], str]) -> None:
    """What the line says; asked for at the end, in another thread."""
    if _watch is not None:
        _watch.tell = what


def quiet() -> None:
    """Another process of the same command says the line."""
    if _watch is not None:
        _watch.said = True


def say(text: str) -> None:
    """Say the line to stderr, unless it was said."""
    if _watch is None or not _watch.said:
        print(f"ddpm: {text}", file=sys.stderr, flush=True)
    quiet()


def done(status: int) -> int:
    """The work is done, and has this status whatever comes now. Does not return where a signal is ending the process already."""
    _undivided.acquire()
    if _watch is not None:
        _watch.status = status
    _undivided.release()
    return status


class _Watch:
    """The thread that waits for the signals."""

    def __init__(self) -> None:
        self.interruption: Interruption | None = None
        self.tell: Callable[[], str] = lambda: "interrupted."
        self.said = False
        self.status: int | None = None
        self._thread = threading.Thread(target=self._wait, name="signals", daemon=True)
        self._thread.start()
        for number in SIGNALS:  # for threads in which somebody has unblocked them
            signal.signal(number, self._hand_on)

    def _hand_on(self, number: int, frame: FrameType | None) -> None:
        if self._thread.ident is not None:
            signal.pthread_kill(self._thread.ident, number)

    def _wait(self) -> None:
        while True:
            self._came(signal.Signals(signal.sigwait(SIGNALS)))

    def _came(self, number: signal.Signals) -> None:
        asked = self.interruption
        if asked is None or not asked.unsaved:
            self._end(number)
        elif asked.signal is None:
            asked.signal = number
            if not asked.alone:
                return
            clock = threading.Timer(GRACE_S, self._time_is_up, [asked])
            clock.daemon = True
            clock.start()
        elif number == signal.SIGINT:
            self._end(asked.signal)

    def _time_is_up(self, asked: Interruption) -> None:
        if not asked.noticed and asked.signal is not None and self.interruption is asked:
            self._end(asked.signal)

    def _end(self, number: signal.Signals) -> NoReturn:
        """End the process, whatever its other threads are doing."""
        ending = _Ending(self)
        ending.start()
        ending.join(_CLEAN_S)
        ending.say()
        os._exit(128 + number if self.status is None else self.status)


class _Ending(threading.Thread):
    """What is done before the process ends, in a thread of its own, which may be left hanging."""

    def __init__(self, watch: _Watch):
        super().__init__(daemon=True)
        self._watch = watch
        self._stderr: int | None = None
        self._text = "interrupted."

    def run(self) -> None:
        """Stop all that is undivided, silence the other threads, clean up."""
        _undivided.acquire()  # for good
        if self._watch.status is None:
            with suppress(OSError):
                self._stderr = os.dup(2)
                os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # no thread tells what it thinks of its files being gone
            with suppress(OSError):
                self._text = self._watch.tell()
            for undo in reversed(_undone):
                with suppress(OSError, ValueError):
                    undo()
        with suppress(OSError, ValueError):
            sys.stdout.flush()

    def say(self) -> None:
        """The one line, if anybody reads it."""
        if self._watch.said or self._watch.status is not None:
            return
        handle = 2 if self._stderr is None else self._stderr
        with suppress(OSError, ValueError):
            start = "\n" if os.isatty(handle) else ""  # after ^C, or a progress bar
            if select.select([], [handle], [], 1.0)[1]:
                os.write(handle, f"{start}ddpm: {self._text}\n".encode())


_watch: _Watch | None = None
