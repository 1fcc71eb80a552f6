"""A profile of a few training steps, for TensorBoard or Perfetto."""

from pathlib import Path

import jax

BEFORE, DURING = 5, 3
"""Calls of the compiled step before the profile, which are not like later ones, and in it."""


class Profile:
    """Records the calls BEFORE .. BEFORE + DURING - 1 into a folder; None: nothing. Use as a context manager."""

    def __init__(self, folder: Path | None):
        self._folder = folder
        self._calls = 0
        self._running = False

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def next_call(self, results: object) -> None:
        """A call is about to be made; results: those of the one before, waited for where the profile begins or ends."""
        if self._folder is None:
            return
        if self._calls in (BEFORE, BEFORE + DURING):
            jax.block_until_ready(results)
        if self._calls == BEFORE:
            jax.profiler.start_trace(str(self._folder), create_perfetto_trace=True)
            self._running = True
        elif self._calls == BEFORE + DURING:
            self._stop()
        self._calls += 1

    def _stop(self) -> None:
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
