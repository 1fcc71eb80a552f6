"""How calls are timed: one contender after the other, round after round, so that all meet the machine in the same moods."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

REST = 0.05
"""Seconds between contenders: until the threads of the one before have stopped waiting for more work."""
TURN = 1.0
"""Seconds that a turn lasts at least, call after call, as in training: threads that slept take a while to reach their cores."""


@dataclass(frozen=True)
class Facts:
    """What is known of a piece of work without timing it."""

    flops: float | None = None
    """Floating-point operations; None: not counted."""
    memory: int | None = None
    """Most bytes in use at once, beyond what goes in; None: unknown."""
    from_cache_s: float | None = None
    """Seconds to have the program ready again from the cache of compiled programs."""


@runtime_checkable
class Contender(Protocol):
    """Somebody who can do a piece of work."""

    @property
    def examples(self) -> int:
        """Images (or points) that come of it: those of a batch times its updates, or samples."""
        ...

    def seconds(self, turn: float = 0.0) -> float:
        """Do it once; or, with a turn, until it is over and at least twice: then the median time of a call but for the first."""
        ...

    def facts(self) -> Facts:
        """Asked for once everything is timed."""
        ...


@dataclass(frozen=True)
class Call:
    """A contender in this process."""

    run: Callable[[], object]
    """Does the work, and returns once it is done."""
    examples: int
    """See `Contender`."""
    facts: Callable[[], Facts] = Facts
    """See `Contender`."""

    def seconds(self, turn: float = 0.0) -> float:
        """See `Contender`."""
        marks = [time.perf_counter()]
        least = 2 if turn else 1
        while len(marks) <= least or marks[-1] - marks[0] < turn:
            self.run()
            marks.append(time.perf_counter())
        return float(np.median(np.diff(marks)[least - 1 :]))


@dataclass(frozen=True)
class Timing:
    """Seconds of one contender's calls."""

    first: float
    """The first call: compilation and its execution."""
    later: tuple[float, ...]
    """A call of each turn after, round by round."""

    @property
    def median(self) -> float:
        """Median of the later calls."""
        return statistics.median(self.later)

    @property
    def quartiles(self) -> tuple[float, float]:
        """Quartiles of the later calls, the fast one first."""
        low, high = np.quantile(self.later, [0.25, 0.75])
        return float(low), float(high)


def alternate(
    calls: Mapping[str, Contender], *, seconds: float, turn: float = TURN, least: int = 5, most: int = 50
) -> dict[str, Timing]:
    """Have contenders take turns for about `seconds` in all, `least` to `most` rounds; the first two calls of each are apart.

    What JAX, torch.compile and cuDNN prepare happens in a first call, and now and then in a second.
    """
    first = {name: _seconds(call) for name, call in calls.items()}
    round_s = sum(max(2 * _seconds(call), turn) for call in calls.values())
    rounds = int(np.clip(seconds / round_s, least, most))
    later: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            later[name].append(_seconds(call, turn))
    return {name: Timing(first[name], tuple(later[name])) for name in calls}


def ratios(ours: Timing, theirs: Timing) -> list[float]:
    """How many times as fast as they we were, round by round."""
    return [b / a for a, b in zip(ours.later, theirs.later, strict=True)]


def _seconds(call: Contender, turn: float = 0.0) -> float:
    time.sleep(REST)
    return call.seconds(turn)
