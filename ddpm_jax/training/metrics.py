"""What a run says of itself while it trains: a progress bar, metrics.jsonl, and what its trackers are told."""

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ddpm_jax import progress
from ddpm_jax.errors import UserError
from ddpm_jax.files import write_text
from ddpm_jax.training.trackers import Trackers


class Metrics:
    """Writes a line of numbers every so often: to metrics.jsonl, to the trackers and into the progress bar.

    Raises:
        UserError: the folder cannot be written to, also from `write`.
    """

    def __init__(self, folder: Path, *, start: int, total: int, batch_size: int, trackers: Trackers | None = None):
        self._path = folder / "metrics.jsonl"
        kept = [line for line in read_metrics(folder) if line["step"] <= start]
        write_text(self._path, "".join(json.dumps(line) + "\n" for line in kept))
        with _told(folder):
            self._file = self._path.open("a", buffering=1)
        self._trackers = trackers or Trackers()
        self._bar = progress.made(total, "training", unit="step", done=start)
        self._total = total
        self._batch_size = batch_size
        self._since = (start, time.perf_counter(), time.process_time())

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        with suppress(OSError):  # was told when the line was written
            self._file.close()

    def restart_clock(self, step: int) -> None:
        """Count the speed from here: called after time was spent on something other than steps."""
        self._since = (step, time.perf_counter(), time.process_time())

    def advance(self, steps: int) -> None:
        """So many steps of the progress bar."""
        self._bar.update(steps)

    def write(self, step: int, **numbers: float | int | None) -> None:
        """Record numbers at a step, None where there is none, with the speed since the line before."""
        then, since, used = self._since
        steps_per_s = (step - then) / max(time.perf_counter() - since, 1e-9)
        self._since = (step, time.perf_counter(), time.process_time())
        line: dict[str, Any] = {"step": step, **numbers, "steps_per_s": round(steps_per_s, 3)}
        line["images_per_s"] = round(steps_per_s * self._batch_size, 1)
        line["processor_s"] = round(self._since[2] - used, 3)
        with _told(self._path.parent):
            self._file.write(json.dumps(line) + "\n")
        self._trackers.log(step, {name: value for name, value in line.items() if name != "step" and value is not None})
        loss = numbers["loss"]
        text = "loss not finite" if loss is None else f"loss {loss:.4f}"
        if numbers.get("skipped"):
            text += f"  {numbers['skipped']} skipped"
        if step > then:
            text += f"  {line['images_per_s']:.0f} images/s"
        self._bar.set_postfix_str(text)
        if self._bar.disable:  # not a terminal: a line now and then instead
            speed = ""
            if step > then:
                left = progress.duration((self._total - step) / steps_per_s)
                speed = f"  {steps_per_s:.1f} steps/s  {left} left"
            self.say(f"step {step}/{self._total}  {text}{speed}")

    def say(self, text: str) -> None:
        """A line of text that does not tear the progress bar."""
        progress.say(text)


class NoMetrics(Metrics):
    """Says and writes nothing: for the processes of a run but the first."""

    def __init__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass

    def restart_clock(self, step: int) -> None:
        """Nothing."""

    def advance(self, steps: int) -> None:
        """Nothing."""

    def write(self, step: int, **numbers: float | int | None) -> None:
        """Nothing."""

    def say(self, text: str) -> None:
        """Nothing."""


@contextmanager
def _told(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{folder} cannot be written to: {error.strerror or error}.") from error


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl, ascending by step; one cut short by a crash, or damaged, is left out."""
    path = folder / "metrics.jsonl"
    try:
        lines = path.read_bytes().splitlines() if path.exists() else []
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from error
    return sorted(filter(None, map(_parsed, lines)), key=lambda line: line["step"])


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        tree = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(tree, dict) or tree.get("step") is None or "loss" not in tree:
        return None
    return tree if all(value is None or _is_number(value) for value in tree.values()) else None


def _is_number(value: Any) -> bool:
    return (type(value) is int and abs(value) < 2**63) or (type(value) is float and math.isfinite(value))
