"""Where a run's numbers go besides metrics.jsonl: TensorBoard, Weights & Biases, or an object of somebody's own."""

import importlib.util
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from PIL import Image

from ddpm_jax import progress
from ddpm_jax.errors import UserError, kind_of, meant
from ddpm_jax.files import write_text

FLUSH_S = 30.0
"""Seconds after which TensorBoard is shown what is new."""
_METHODS = ("start", "log", "picture", "close")


@runtime_checkable
class Tracker(Protocol):
    """What is told of a run while it trains. A class of one's own inherits from it, and says what it wants to know; the rest does
    nothing.

    It is called in the thread that trains, of the first process alone. What `start` raises ends the command before any step. What
    the others raise is said, and this tracker is told nothing more: the run goes on, and metrics.jsonl has every number.
    """

    # each says `return`: a type checker takes a protocol's method without a statement for one that has to be defined

    def start(self, folder: Path, config: dict[str, Any], step: int) -> None:
        """The run in `folder` goes on from `step`, 0 for a new one. config: what its config.json holds as "config"."""
        return

    def log(self, step: int, numbers: dict[str, float]) -> None:
        """A line of metrics.jsonl: "loss", "grad_norm", "lr", "steps_per_s", "images_per_s", "processor_s" (of the process,
        since the line before), and "skipped" where steps may be."""
        return

    def picture(self, step: int, path: Path) -> None:
        """A grid of samples was drawn, the PNG at `path`."""
        return

    def close(self, failed: bool) -> None:
        """The run is finished, or interrupted; failed: by an error."""
        return


@contextmanager
def _without_torch() -> Iterator[None]:
    """tensorboardX imports PyTorch wherever it is installed, for the name of a type: a second, and memory, in every run."""
    if "torch" in sys.modules:
        yield
        return
    sys.modules["torch"] = None  # type: ignore[assignment]  # an import of it fails
    try:
        yield
    finally:
        del sys.modules["torch"]


class TensorBoard(Tracker):
    """TensorBoard's file, written in the caller's thread: tensorboardX's own thread ends at a full disk, and the run would wait for
    it for ever."""

    def start(self, folder: Path, config: dict[str, Any], step: int) -> None:
        """Begin a file in folder/tensorboard."""
        with _without_torch():
            from tensorboardX.event_file_writer import EventsWriter
            from tensorboardX.proto.event_pb2 import Event, SessionLog

        (folder / "tensorboard").mkdir(parents=True, exist_ok=True)
        self._writer = EventsWriter(str(folder / "tensorboard" / "events"))
        if step:  # what a killed run wrote past its last checkpoint is not shown twice
            begun = SessionLog(status=SessionLog.START)
            self._writer.write_event(Event(wall_time=time.time(), step=step + 1, session_log=begun))
        self._flushed = time.monotonic()

    def log(self, step: int, numbers: dict[str, float]) -> None:
        """One scalar for each number."""
        from tensorboardX.proto.summary_pb2 import Summary

        self._write(step, [Summary.Value(tag=name, simple_value=value) for name, value in numbers.items()])

    def picture(self, step: int, path: Path) -> None:
        """The picture, as "samples"."""
        from tensorboardX.proto.summary_pb2 import Summary

        with Image.open(path) as picture:
            width, height = picture.size
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=path.read_bytes())
        self._write(step, [Summary.Value(tag="samples", image=image)])

    def _write(self, step: int, values: list[Any]) -> None:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        self._writer.write_event(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))
        if time.monotonic() > self._flushed + FLUSH_S:
            self._writer.flush()
            self._flushed = time.monotonic()

    def close(self, failed: bool) -> None:
        """Write what is left."""
        self._writer.close()


class WandB(Tracker):
    """A run of Weights & Biases, which goes on where the run folder's does: its id is kept in folder/wandb/id.

    Its own variables say where to ($WANDB_PROJECT, "ddpm-jax" unless set; $WANDB_ENTITY), under which name ($WANDB_NAME, the
    folder's unless set) and how ($WANDB_MODE, online or offline). The axis of its plots is the number "step", so that a resumed run
    may go over steps again.

    Raises:
        UserError: wandb is not installed.
    """

    def __init__(self) -> None:
        if importlib.util.find_spec("wandb") is None:
            raise UserError('the tracker wandb needs its library:\n    pip install "ddpm-jax[wandb]"')

    def start(self, folder: Path, config: dict[str, Any], step: int) -> None:
        """Begin a run, or go on with that of the folder.

        Raises:
            UserError: nobody is logged in, or its server cannot be reached.
        """
        import wandb

        path = folder / "wandb" / "id"
        known = path.read_text().strip() if path.is_file() else None
        run_id = os.environ.get("WANDB_RUN_ID") or known or secrets.token_hex(4)
        write_text(path, run_id + "\n")
        quiet: dict[str, Any] = (
            {} if "WANDB_CONSOLE" in os.environ else {"console": "off"}
        )  # else it takes the terminal from the bar
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT") or "ddpm-jax",
                name=os.environ.get("WANDB_NAME") or folder.absolute().name,
                id=run_id,
                resume="allow",
                dir=str(folder),
                config=config,
                settings=wandb.Settings(**quiet),
            )
        except wandb.errors.Error as error:
            raise UserError(
                f"Weights & Biases cannot begin a run: {error} Log in with `wandb login`, or set WANDB_MODE=offline."
            ) from error
        self._image = wandb.Image
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, numbers: dict[str, float]) -> None:
        """The numbers, beside the step."""
        self._run.log({"step": step, **numbers})

    def picture(self, step: int, path: Path) -> None:
        """The picture, as "samples"."""
        self._run.log({"step": step, "samples": self._image(str(path))})

    def close(self, failed: bool) -> None:
        """End the run; waits until what is left is sent."""
        self._run.finish(exit_code=int(failed))


TRACKERS: dict[str, Callable[[], Tracker]] = {"tensorboard": TensorBoard, "wandb": WandB}
"""Trackers by the names that train.trackers takes."""


class Trackers:
    """The trackers of a run. One that fails is left out from then on, and `failures` says so.

    Args:
        names: of `TRACKERS`.
        own: a list of trackers besides.

    Raises:
        UserError: an unknown name, or an object that is no tracker.
    """

    def __init__(self, names: Sequence[str] = (), own: Any = ()):
        for name in names:
            if name not in TRACKERS:
                raise UserError(
                    f"train.trackers must be among {', '.join(TRACKERS)}; got {name!r}.{meant(name, TRACKERS)}"
                )
        if not isinstance(own, Sequence):
            raise UserError(f"trackers must be a list of objects; got {kind_of(own)}.")
        for tracker in own:
            if isinstance(tracker, type) or not isinstance(tracker, Tracker):
                missing = [name for name in _METHODS if not callable(getattr(tracker, name, None))]
                told = f"{kind_of(tracker)} has no {', '.join(missing)}" if missing else f"got {kind_of(tracker)}"
                raise UserError(
                    f"trackers must be objects with {', '.join(_METHODS)}, as training.Tracker has them; {told}."
                )
        self._waiting = [(name, TRACKERS[name]()) for name in dict.fromkeys(names)]
        self._waiting += [(type(tracker).__name__, tracker) for tracker in own]
        self._running: list[tuple[str, Tracker]] = []
        self.failures: list[str] = []

    def __enter__(self) -> "Trackers":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._each("end", lambda tracker: tracker.close(kind is not None))
        self._running = []

    def start(self, folder: Path, config: dict[str, Any], step: int) -> None:
        """Begin; what fails here has cost nothing yet.

        Raises:
            UserError: a tracker cannot be started.
        """
        while self._waiting:
            name, tracker = self._waiting.pop(0)
            try:
                tracker.start(folder, config, step)
            except UserError:
                raise
            except Exception as error:  # whatever somebody's own object raises
                raise UserError(f"the tracker {name} cannot be started: {_told(error)}.") from error
            self._running.append((name, tracker))

    def log(self, step: int, numbers: dict[str, float]) -> None:
        """Hand on the numbers of a step."""
        self._each(f"step {step}", lambda tracker: tracker.log(step, numbers))

    def picture(self, step: int, path: Path) -> None:
        """Hand on a picture of samples."""
        self._each(f"the picture of step {step}", lambda tracker: tracker.picture(step, path))

    def _each(self, what: str, call: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._running):
            try:
                call(tracker)
            except Exception as error:  # whatever somebody's own object, or a network, raises; nothing is swallowed
                self._running.remove((name, tracker))
                self.failures.append(f"the tracker {name} failed at {what} and was told nothing more: {_told(error)}.")
                progress.say(f"warning: {self.failures[-1]} Training goes on, and metrics.jsonl has every number.")


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".rstrip(". ")
