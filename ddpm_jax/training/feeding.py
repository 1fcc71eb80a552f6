"""Batches on their way to the devices: read by the host or looked up on the device, and laid out a few calls ahead."""

import itertools
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from ddpm_jax import data
from ddpm_jax.data.resident import Resident, fits
from ddpm_jax.data.scaling import as_x_0
from ddpm_jax.errors import UserError, kind_of
from ddpm_jax.presets import Preset
from ddpm_jax.training.run import Run
from ddpm_jax.training.step import as_batch

AHEAD = 2
"""Batches that are being copied to the device while it computes."""


def check(config: Preset, source: data.Source | data.Batches) -> None:
    """Refuse data that does not fit the config, before anything is done.

    Raises:
        UserError: what `data.batches` refuses; of given batches, options that belong to a source.
    """
    if not isinstance(source, data.Batches):
        data.batches(source, **_options(config))
        return
    if asked := [name for name in ("flip", "stream", "classes", "label") if getattr(config.data, name)]:
        raise UserError(f"data.{asked[0]} is for a source; {source.name!r} are batches, which come as they are.")
    if config.data.condition is not None and not callable(source.batches):
        raise UserError(
            f"data.condition needs batches that can be read again for the pictures, as a function of the first step makes them; "
            f"{source.name!r} are of {kind_of(source.batches)}."
        )
    if config.train.steps is None and config.train.epoch_steps is None:
        raise UserError(f"train.epoch_steps is needed to count in epochs, since {source.name!r} are batches; got None.")


def feed(
    run: Run,
    source: data.Source | data.Batches,
    place: Callable[[Any], Any],
    *,
    rows: np.ndarray | None,
    resident: bool,
    start_step: int,
    per_call: int,
) -> Iterator[dict[str, Any]]:
    """What the compiled step takes, call after call without end: batches, or with per_call > 1 stacks of so many.

    place: lays a batch out on the devices. rows: of each batch, what this process reads; None: all of it. resident: whether a small
    data set may lie on the device whole, so that only the numbers of its examples are sent.

    Raises:
        UserError: an unreadable image, in the turn of the batch that it belongs to; given batches that end, or do not fit.
    """
    shown = _showing(run)
    if isinstance(source, data.Batches):
        return _ahead(_given(run, source, rows, start_step, per_call), lambda batch: shown(place(batch)))
    config = run.config
    whole = None
    if resident and not config.data.stream and fits(source, run.shape):
        whole = Resident(source, run.shape, run.scaling)
    stacked = per_call if per_call > 1 else None
    reading = data.Reading(start_step, stacked, rows, whole is not None, config.data.threads)
    batches = data.batches(source, **_options(config), scaling=run.scaling, reading=reading)

    def placed(batch: dict[str, Any]) -> dict[str, Any]:
        if whole is not None:
            batch = whole.take(batch)
        if not run.class_names:
            batch = {"x_0": batch["x_0"]}
        return shown(place(batch))

    return _ahead(batches, placed)


def _showing(run: Run) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Adds to a batch on the devices what the network is shown of its images, where that is something."""
    condition = run.condition
    if condition is None:
        return lambda batch: batch
    program = jax.jit(condition.shown)
    return lambda batch: {**batch, "condition": program(batch["x_0"])}


def _given(
    run: Run, source: data.Batches, rows: np.ndarray | None, start_step: int, per_call: int
) -> Iterator[dict[str, Any]]:
    """Somebody's own batches as the compiled step takes them, in stacks where a call takes several."""
    wanted, batches = (run.config.train.batch_size, *run.shape), source.since(start_step)

    def one(step: int) -> dict[str, Any]:
        try:
            batch = as_batch(next(batches))
            if "condition" in batch:
                raise UserError(
                    f"a batch of {source.name!r} must hold no 'condition', which a run makes of its images as data.condition says; "
                    "make_step takes any."
                )
        except StopIteration:
            raise UserError(f"{source.name!r} ended before the batch of step {step}.") from None
        x_0 = as_x_0("x_0", batch["x_0"]) if run.config.data.scale == "signed" else np.asarray(batch["x_0"])
        if x_0.shape != wanted:
            raise UserError(f"a batch of {source.name!r} must have the shape {wanted}; got {x_0.shape} at step {step}.")
        found = {"x_0": x_0}
        if run.class_names:
            if "label" not in batch:
                raise UserError(f"the network has classes, and the batch of step {step} of {source.name!r} no labels.")
            found["label"] = np.asarray(batch["label"]).astype(np.int32)
        return found if rows is None else {name: array[rows] for name, array in found.items()}

    for step in itertools.count(start_step, per_call):
        parts = [one(step + k) for k in range(per_call)]
        yield parts[0] if per_call == 1 else {name: np.stack([part[name] for part in parts]) for name in parts[0]}


def _options(config: Preset) -> dict[str, Any]:
    return {
        "shape": config.model.shape,
        "batch_size": config.train.batch_size,
        "seed": config.train.seed,
        "flip": config.data.flip,
        "stream": config.data.stream,
    }


def _ahead(batches: Iterator[Any], place: Callable[[Any], Any]) -> Iterator[Any]:
    """The batches, placed AHEAD of their turn; an error waits for its own."""
    placed: deque[Any] = deque()
    error: UserError | None = None
    while True:
        while error is None and len(placed) <= AHEAD:
            try:
                placed.append(place(next(batches)))
            except UserError as found:
                error = found
        if not placed:
            assert error is not None
            raise error
        yield placed.popleft()
