"""The training loop: from a preset to a run folder with checkpoints, metrics and pictures."""

import functools
import json
import math
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ddpm_jax import data, figures, launch, models, presets, progress
from ddpm_jax.errors import NotFiniteError, UserError, fits_memory
from ddpm_jax.launch import ALL_DEVICES, ParallelConfig
from ddpm_jax.parallel import Layout, check_batch, layout_of
from ddpm_jax.presets import Preset
from ddpm_jax.signals import Interruption
from ddpm_jax.training import feeding, samples
from ddpm_jax.training.checkpoints import Checkpoints
from ddpm_jax.training.conditions import Conditions, of_batches, of_source
from ddpm_jax.training.metrics import Metrics, NoMetrics, read_metrics
from ddpm_jax.training.objective import check, step_of
from ddpm_jax.training.optimizers import learning_rate, updates_done
from ddpm_jax.training.profiling import Profile
from ddpm_jax.training.run import Run, environment, start_run
from ddpm_jax.training.state import TrainState
from ddpm_jax.training.trackers import Trackers

_ADVICE = (
    "a batch of {} examples does not fit into memory. Try --train.batch-size {}, --train.accumulate 2 (the same update, half a "
    "batch at a time) or --train.remat (computes layers again instead of keeping them)."
)

_MODES = {"data": "data parallel", "fsdp": "fully sharded data parallel", "pmap": "data parallel by pmap"}

MOST_SKIPPED = 100
"""So many steps in a row without a finite loss and gradient stop a run that skips them."""


@dataclass(frozen=True)
class Outcome:
    """How a call of `train` ended."""

    run: Run
    """The run folder that was written."""
    step: int
    """The step of the last checkpoint."""
    stopped_by: signal.Signals | None
    """The signal that ended it before its last step, or before its pictures: SIGINT (Ctrl-C) or SIGTERM (preemption); None: it is
    finished."""
    skipped: int = 0
    """Steps whose loss or gradient was not finite."""

    def _repr_html_(self) -> str:
        """What a notebook shows: the run."""
        return self.run._repr_html_()


@dataclass(frozen=True)
class Start:
    """Where a run starts that does not start from fresh parameters."""

    variables: models.Variables
    """Parameters, and running statistics where the network has them."""
    scaling: data.Scaling
    """Between data and what those parameters were trained on."""
    origin: dict[str, Any]
    """Which run they are from: kept in the new one's config.json."""


@dataclass(frozen=True)
class How:
    """How a run is trained, which is no part of it: the arguments of `train`."""

    resume: bool = False
    overwrite: bool = False
    parallel: ParallelConfig = ALL_DEVICES
    profile: bool = False
    trackers: Any = ()


def train(
    config: Preset | str,
    folder: Path | str,
    *,
    source: Any = None,
    resume: bool = False,
    overwrite: bool = False,
    parallel: ParallelConfig = ALL_DEVICES,
    profile: bool = False,
    trackers: Any = (),
) -> Outcome:
    """Train as the config says and leave everything in the folder; Ctrl-C and SIGTERM save and return early.

    With several processes (`launch.join`), all of them call this alike and see the same folder.

    config: or the name of a preset. source: data of one's own in the place of the config's: a `data.Source`, an object with a
    length and items; or `data.Batches`, or what these are made of, an iterable of batches or a function of the first step (its name
    stands in the run's config; evaluation and another start ask for it again). profile: record a few steps in
    folder/profile, for TensorBoard or Perfetto. trackers: a list of `Tracker`s that are told its numbers, besides those
    of train.trackers.

    Raises:
        UserError: the config, the data, the devices and the folder do not fit together; an image cannot be read; the loss is not
            finite; the folder cannot be written to; a batch does not fit into memory; a tracker cannot be started.
        NotFiniteError: the trained network's samples hold NaN or infinity; its last step is saved all the same.
    """
    return trained(config, Path(folder), How(resume, overwrite, parallel, profile, trackers), source=source)


def trained(config: Preset | str, folder: Path, how: How, *, source: Any = None, start: Start | None = None) -> Outcome:
    """`train`, also from the weights of another run."""
    resume, overwrite = how.resume, how.overwrite
    config = presets.preset(config) if isinstance(config, str) else config
    trackers = Trackers(config.train.trackers, how.trackers)
    asked, source = _with_source(config, source)
    feeding.check(asked, source)  # before the folder is touched
    layout = layout_of(how.parallel)
    examples = None if isinstance(source, data.Batches) else len(source)
    check_batch(layout, asked.train.batch_size, asked.train.accumulate, examples)
    given = {"examples of data": examples, "out": str(folder), "resume": resume, "parallel": layout.mode}
    launch.agree(json.loads(presets.to_json(asked)) | given)
    of_start: dict[str, Any] = {} if start is None else {"scaling": start.scaling, "origin": start.origin}
    run = launch.on_first(lambda: start_run(asked, source, folder, resume=resume, overwrite=overwrite, **of_start))

    keep = run.config.train.keep_checkpoints, run.config.train.keep_every
    alone = not launch.several()
    with trackers:
        with Interruption(alone=alone) as interruption, Checkpoints(run.checkpoint_folder, *keep) as checkpoints:
            training = _Training(run, source, layout, checkpoints, interruption, trackers)
            state = training.first_state(resume=resume, start=start)
            training.announce(state)
            final = training.steps(state, profile=how.profile)
        skipped = training.finish(final)
    for failure in trackers.failures:
        print(failure)
    return Outcome(run, int(final.step), interruption.signal, skipped)


def _with_source(config: Preset, source: Any) -> tuple[Preset, data.Source | data.Batches]:
    """The config, found to fit together, and its data, or that of the caller's own."""
    check(config)  # before any data is read
    asked = config.data
    if source is not None:
        if callable(source) or isinstance(source, Iterator):
            source = data.Batches(source)
        name = source.name if isinstance(source, data.Batches) else data.checked(source).name
        return replace(config, data=replace(asked, source=f"python:{name}")), source
    if not asked.source:
        raise UserError("this preset has no data of its own: pass --data.source PATH (a folder of images, for one).")
    return config, data.open_source(
        asked.source, on_bad_image=asked.on_bad_image, classes=asked.classes, label=asked.label
    )


def _steps_per_call(run: Run, start: int) -> int:
    """The longest stretch of steps, within what the config allows, that ends wherever the loop has something to do."""
    config = run.config.train
    most = config.steps_per_call or (1 if run.holds_images else 100)
    stretch = math.gcd(start, config.total_steps, config.log_every, config.checkpoint_every, config.sample_every)
    return max(size for size in range(1, min(most, stretch) + 1) if stretch % size == 0)


@dataclass(frozen=True)
class _Training:
    """A run on its way from its first state to its last."""

    run: Run
    source: data.Source | data.Batches
    layout: Layout
    checkpoints: Checkpoints
    interruption: Interruption
    trackers: Trackers

    def first_state(self, *, resume: bool, start: Start | None) -> TrainState:
        """The newest checkpoint's where the run is resumed, or of the weights that it starts from, or a fresh one."""
        run, layout = self.run, self.layout
        if resume and self.checkpoints.latest_step is not None:
            return self.checkpoints.restore(layout.abstract(run.abstract_state()))
        if start is not None:
            state = layout.place(run.state_of(start.variables))
            self.checkpoints.save(state)  # from here on the run needs no other
            return state
        if run.origin is not None:
            raise UserError(f"{run.folder} holds no checkpoint to resume from; start it anew with --overwrite.")
        with layout.host():
            state = run.fresh_state()
        return layout.place(state)

    def steps(self, state: TrainState, *, profile: bool) -> TrainState:
        """Steps from the state's to the config's last, or until interrupted; returns the last state, which is saved."""
        run, config, start = self.run, self.run.config.train, int(state.step)
        sizes = {"start": start, "total": config.total_steps, "batch_size": config.batch_size}
        if launch.is_first():
            self.trackers.start(run.folder, json.loads(presets.to_json(run.config)), start)
        with (
            Metrics(run.folder, **sizes, trackers=self.trackers) if launch.is_first() else NoMetrics() as metrics,
            Profile(run.folder / "profile" if profile and launch.is_first() else None) as profiler,
            fits_memory(_ADVICE.format(config.batch_size, max(1, config.batch_size // 2))),
        ):
            return self._steps(state, metrics, profiler)

    def _steps(self, state: TrainState, metrics: Metrics, profiler: Profile) -> TrainState:
        config, step = self.run.config.train, int(state.step)
        per_call = _steps_per_call(self.run, step)
        batches = self._batches(step, per_call)
        update = step_of(self.run.config, self.layout)
        call = update if per_call == 1 else update.many
        key, flight = jax.random.key(config.seed), _InFlight(skip=config.on_nonfinite == "skip")
        begun: float | None = time.perf_counter()
        last = step >= config.total_steps or self.asked_to_stop()
        if last:
            self.checkpoints.save(state)
        while not last:
            try:
                batch = next(batches)
            except UserError:
                flight.land()
                if not launch.several():  # the others are in the middle of a step
                    self.checkpoints.save(state)  # once the images are mended, the run goes on from here
                raise
            profiler.next_call(state)
            state, numbers = call(state, batch, key)
            flight.take_off(step + 1, numbers)
            step += per_call
            metrics.advance(per_call)
            if begun is not None:
                flight.land()
                what = "step" if per_call == 1 else f"{per_call} steps"
                metrics.say(f"the first {what}, compilation included, took {time.perf_counter() - begun:.1f} s")
                metrics.restart_clock(step)
                begun, self.interruption.unsaved = None, True
            # to ask the others takes time
            may_stop = step % config.log_every == 0 or not launch.several()
            last = step == config.total_steps or (may_stop and self.asked_to_stop())
            if step % config.log_every == 0 or last:
                flight.land()
                self._log(state, metrics, flight)
            if step % config.checkpoint_every == 0 or last:
                flight.land()
                self.checkpoints.save(state)
            if config.sample_every and step % config.sample_every == 0 and not last:
                self._picture(state, metrics)
        return state

    def _batches(self, start: int, per_call: int) -> Iterator[dict[str, Any]]:
        return feeding.feed(
            self.run,
            self.source,
            functools.partial(self.layout.feed, axis=int(per_call > 1)),
            rows=self.layout.rows(self.run.config.train.batch_size),
            resident=self.layout.size == 1,
            start_step=start,
            per_call=per_call,
        )

    def _log(self, state: TrainState, metrics: Metrics, flight: "_InFlight") -> None:
        step, updates = int(state.step), updates_done(state.opt_state)
        rate = float(learning_rate(self.run.config.train)(max(updates - 1, 0)))
        metrics.write(step, **flight.numbers(), lr=rate, **({"skipped": step - updates} if flight.skip else {}))

    def _picture(self, state: TrainState, metrics: Metrics) -> None:
        try:
            self.save_samples(state, last=False)
        except NotFiniteError as error:
            # a network that is not trained yet may blow up where the trained one does not
            metrics.say(f"step {int(state.step)}: no picture of samples. {error}")
        metrics.restart_clock(int(state.step))

    def save_samples(self, state: TrainState, *, last: bool) -> None:
        """A picture of samples on the way, or at the end all that is made of them."""
        run, step, num = self.run, int(state.step), self.run.config.sample.num
        heading = f"{run.folder.name}, step {step}"
        given: dict[str, Any] = {"layout": self.layout, "conditions": self._conditions}
        drawing = samples.Drawing(run, run.config.sample, (state.variables(ema=True), step), **given)
        if last:
            samples.draw_and_save(
                run.folder, drawing, run.labels(num), num, num_frames=samples.FRAMES, heading=lambda _: heading
            )
            self.trackers.picture(step, run.folder / "samples.png")
            return
        drawn = drawing.draw(run.labels(num), num)
        if launch.is_first():
            path = run.folder / "samples" / f"step_{step:07d}.png"
            samples.save_picture(path, run, drawn, heading)
            self.trackers.picture(step, path)

    def finish(self, final: TrainState) -> int:
        """Say what was left out, and draw the loss and, unless interrupted, samples; returns how many steps were skipped.

        Raises:
            NotFiniteError: the samples hold NaN or infinity.
        """
        folder, done = self.run.folder, int(final.step)
        skipped = done - updates_done(final.opt_state)
        if bad := getattr(self.source, "bad_files", 0):
            print(f"{bad} unreadable images were skipped.")
        if skipped:
            print(f"{skipped} steps were skipped, because their loss or gradient was not finite.")
        if launch.is_first():
            figures.save_loss_curve(folder / "loss.png", read_metrics(folder))
        if not self.asked_to_stop():
            try:
                self.save_samples(final, last=True)
            except NotFiniteError as error:
                raise NotFiniteError(
                    f"training is finished and step {done} is saved, but no samples could be drawn. {error} "
                    f"ddpm sample {folder} draws them again."
                ) from error
        return skipped

    @functools.cached_property
    def _conditions(self) -> Conditions | None:
        """What the samples of its pictures are shown: of the data that it is trained on."""
        run, num = self.run, self.run.config.sample.num
        if run.condition is None:
            return None
        if isinstance(self.source, data.Batches):
            return of_batches(run, self.source.since(0), num)
        return of_source(run, self.source, run.labels(num), num, seed=0)

    def announce(self, state: TrainState) -> None:
        """What is trained, on what, and where."""
        run, train, layout = self.run, self.run.config.train, self.layout
        count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
        kind = "images, as " + "x".join(map(str, run.shape)) if run.holds_images else "points"
        classes = f"{len(run.class_names)} classes" if run.class_names else "no classes"
        many = "" if isinstance(self.source, data.Batches) else f"{len(self.source):,} "
        progress.say(f"data: {self.source.name}, {many}{kind}, {classes}")
        progress.say(f"network: {count:,} parameters")
        if layout.size > 1:
            processes = f" of {jax.process_count()} processes" if launch.several() else ""
            each = train.batch_size // layout.size
            progress.say(f"devices: {layout.size}{processes}, {_MODES[layout.mode]}, {each} examples on each")
        facts = environment(train.dtype)
        progress.say("environment: " + ", ".join(f"{name} {value}" for name, value in facts.items()))
        progress.say(f"run: {run.folder}, step {int(state.step)} to {train.total_steps}")

    def asked_to_stop(self) -> bool:
        """Whether any process was asked to: one that stopped alone would leave the others waiting."""
        interruption = self.interruption
        if launch.any_of(interruption.requested):
            interruption.signal = interruption.signal or signal.SIGINT
        interruption.noticed = interruption.requested
        return interruption.requested


class _InFlight:
    """The numbers of the call that the device may still be computing: looked at one call late, so that it never waits."""

    def __init__(self, *, skip: bool) -> None:
        self.skip = skip
        self._losses: list[float] = []
        self._grad_norm: float | None = None
        self._skipped_in_a_row = 0
        self._pending: tuple[int, dict[str, jax.Array]] | None = None

    def take_off(self, step: int, numbers: dict[str, jax.Array]) -> None:
        """A call was dispatched whose numbers are those of `step`, or of it and the next ones; the call before is landed."""
        self.land()
        self._pending = step, numbers

    def land(self) -> None:
        """Wait for the pending call, if there is one.

        Raises:
            UserError: one of its numbers is not finite (names the first step of which that is so), or too many in a row are not
                where such steps are skipped.
        """
        if self._pending is None:
            return
        (first, numbers), self._pending = self._pending, None
        steps = {name: np.atleast_1d(np.asarray(value)) for name, value in numbers.items()}
        for index in range(len(steps["loss"])):
            latest = {name: float(values[index]) for name, values in steps.items()}
            if all(map(math.isfinite, latest.values())):
                self._losses.append(latest["loss"])
                self._grad_norm = latest["grad_norm"]
                self._skipped_in_a_row = 0
                continue
            self._skipped_in_a_row += 1
            if not self.skip or self._skipped_in_a_row == MOST_SKIPPED:
                shown = ", ".join(f"{name} = {value}" for name, value in latest.items())
                in_a_row = f", and {MOST_SKIPPED} steps in a row were skipped" if self.skip else ""
                raise UserError(
                    f"training stopped at step {first + index}: {shown}{in_a_row}. Every checkpoint so far is sound; "
                    "lower --train.lr or --train.grad-clip and start again."
                )

    def numbers(self) -> dict[str, float | None]:
        """Mean loss and latest norm of the steps landed since the last call; None where all of them were skipped."""
        found = {"loss": float(np.mean(self._losses)) if self._losses else None, "grad_norm": self._grad_norm}
        self._losses, self._grad_norm = [], None
        return found
