"""The training loop: from a preset to a run folder with checkpoints, metrics and pictures."""

import math
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import jax
import numpy as np
from flax import nnx

from ddpm_jax import data, figures, models
from ddpm_jax.errors import UserError
from ddpm_jax.presets import Preset
from ddpm_jax.training import samples
from ddpm_jax.training.checkpoints import Checkpoints
from ddpm_jax.training.metrics import Metrics, read_metrics
from ddpm_jax.training.run import Run, environment, start_run
from ddpm_jax.training.state import TrainState
from ddpm_jax.training.step import learning_rate, train_step


@dataclass(frozen=True)
class Outcome:
    """How a call of `train` ended."""

    run: Run
    step: int
    """The step of the last checkpoint."""
    interrupted: bool
    """Whether Ctrl-C ended it before its last step."""


def train(config: Preset, folder: Path, *, resume: bool = False, overwrite: bool = False) -> Outcome:
    """Train as the config says and leave everything in the folder; Ctrl-C saves and returns early.

    Raises:
        UserError: the config, the data and the folder do not fit together; an image cannot be read; the loss is not finite.
    """
    if not config.data.source:
        raise UserError("this preset has no data of its own: pass --data.source PATH (a folder of images, for one).")
    source = data.open_source(config.data.source, on_bad_image=config.data.on_bad_image)
    model: Any = config.model
    batch_options: dict[str, Any] = {
        "image_size": model.image_size,
        "channels": model.channels,
        "batch_size": config.train.batch_size,
        "seed": config.train.seed,
        "flip": config.data.flip,
        "num_threads": config.data.threads,
    }
    data.batches(source, **batch_options)  # refuses what does not fit, before the folder is touched
    run = start_run(config, source, folder, resume=resume, overwrite=overwrite)
    config = run.config

    with Checkpoints(run.checkpoint_folder, config.train.keep_checkpoints) as checkpoints:
        state = run.fresh_state()
        if resume and checkpoints.latest_step is not None:
            state = checkpoints.restore(state)
        start = int(state.step)
        _announce(run, state, source, start)
        batches = data.batches(source, start_step=start, **batch_options)
        with (
            Metrics(folder, start=start, total=config.train.steps, batch_size=config.train.batch_size) as metrics,
            _Interruption() as interruption,
        ):
            final = _run_steps(run, state, batches, checkpoints, metrics, interruption)
    done = int(final.step)
    if bad := getattr(source, "bad_files", 0):
        print(f"{bad} unreadable images were skipped.")
    interrupted = done < config.train.steps
    figures.save_loss_curve(folder / "loss.png", read_metrics(folder))
    if not interrupted:
        drawn = _draw(run, final.variables(ema=True), animate=True)
        samples.save_all(folder, run, drawn, _heading(run, done))
    return Outcome(run, done, interrupted)


def _run_steps(
    run: Run,
    state: TrainState,
    batches: Iterator[dict[str, np.ndarray]],
    checkpoints: Checkpoints,
    metrics: Metrics,
    interruption: "_Interruption",
) -> TrainState:
    """Steps from the state's to the config's last, or until interrupted; returns the last state, which is saved."""
    config, process = run.config.train, run.process
    graphdef, _ = models.split(nnx.eval_shape(run.fresh_model), training=True)
    key = jax.random.key(config.seed)
    rate = learning_rate(config)
    step = start = int(state.step)
    flight = _InFlight()
    begun = time.perf_counter()
    last = step >= config.steps
    while not last:
        try:
            batch = next(batches)
        except UserError:
            flight.land()
            checkpoints.save(state)  # once the images are mended, the run goes on from here
            raise
        if not run.class_names:
            batch = {"image": batch["image"]}
        state, numbers = train_step(state, batch, key, graphdef=graphdef, process=process, config=config)
        step += 1
        flight.take_off(step, numbers)
        metrics.advance()
        if step == start + 1:
            flight.land()
            metrics.say(f"the first step, compilation included, took {time.perf_counter() - begun:.1f} s")
            metrics.restart_clock(step)
        last = step == config.steps or interruption.requested
        if step % config.log_every == 0 or last:
            flight.land()
            metrics.write(step, loss=flight.mean_loss(), grad_norm=flight.latest["grad_norm"], lr=float(rate(step - 1)))
        if step % config.checkpoint_every == 0 or last:
            flight.land()
            checkpoints.save(state)
        if config.sample_every and step % config.sample_every == 0 and not last:
            drawn = _draw(run, state.variables(ema=True), animate=False)
            samples.save_grid(run.folder / "samples" / f"step_{step:07d}.png", run, drawn, _heading(run, step))
            metrics.restart_clock(step)
    return state


class _InFlight:
    """The numbers of the step that the device may still be computing: looked at one step late, so that it never waits."""

    def __init__(self) -> None:
        self.latest: dict[str, float] = {}
        self._losses: list[float] = []
        self._pending: tuple[int, dict[str, jax.Array]] | None = None

    def take_off(self, step: int, numbers: dict[str, jax.Array]) -> None:
        """A step was dispatched; the one before it is landed."""
        self.land()
        self._pending = step, numbers

    def land(self) -> None:
        """Wait for the pending step, if there is one.

        Raises:
            UserError: one of its numbers is not finite.
        """
        if self._pending is None:
            return
        (step, numbers), self._pending = self._pending, None
        self.latest = {name: float(value) for name, value in numbers.items()}
        if not all(map(math.isfinite, self.latest.values())):
            shown = ", ".join(f"{name} = {value}" for name, value in self.latest.items())
            raise UserError(
                f"training stopped at step {step}: {shown}. Every checkpoint so far is sound; "
                "lower --train.lr or --train.grad-clip and start again."
            )
        self._losses.append(self.latest["loss"])

    def mean_loss(self) -> float:
        """Mean loss of the steps landed since the last call."""
        mean = float(np.mean(self._losses))
        self._losses.clear()
        return mean


def _announce(run: Run, state: TrainState, source: data.Source, start: int) -> None:
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    size = "x".join(map(str, run.image_shape))
    classes = f"{len(run.class_names)} classes" if run.class_names else "no classes"
    facts = environment(run.config.train.dtype)
    print(f"data: {source.name}, {len(source):,} images, as {size}, {classes}")
    print(f"network: {count:,} parameters")
    print("environment: " + ", ".join(f"{name} {value}" for name, value in facts.items()))
    print(f"run: {run.folder}, step {start} to {run.config.train.steps}", flush=True)


def _draw(run: Run, variables: models.Variables, *, animate: bool) -> samples.Samples:
    graphdef, _ = models.split(nnx.eval_shape(run.fresh_model))
    num = run.config.sample.num
    return samples.draw(run, graphdef, variables, run.labels(num), num, config=run.config.sample, animate=animate)


def _heading(run: Run, step: int) -> str:
    return f"{run.folder.name}, step {step}"


class _Interruption:
    """While entered, the first Ctrl-C only asks to stop; the second one interrupts at once."""

    def __init__(self) -> None:
        self.requested = False
        self._in_main_thread = threading.current_thread() is threading.main_thread()
        self._before: Any = None

    def __enter__(self) -> "_Interruption":
        if self._in_main_thread:
            self._before = signal.signal(signal.SIGINT, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        if self._in_main_thread:
            signal.signal(signal.SIGINT, self._before)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
