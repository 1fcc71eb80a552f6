"""Batches on their way to the devices: read by the host or looked up on the device, and laid out a few calls ahead."""

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ddpm_jax import data
from ddpm_jax.data.resident import Resident, fits
from ddpm_jax.errors import UserError
from ddpm_jax.presets import Preset
from ddpm_jax.training.run import Run

AHEAD = 2
"""Batches that are being copied to the device while it computes."""


def check(config: Preset, source: data.Source) -> None:
    """Refuse data that does not fit the config, before anything is done.

    Raises:
        UserError: what `data.batches` refuses.
    """
    data.batches(source, **_options(config))


def feed(
    run: Run,
    source: data.Source,
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
        UserError: an unreadable image, in the turn of the batch that it belongs to.
    """
    config = run.config
    options = _options(config) | {"scaling": run.scaling, "start_step": start_step, "rows": rows}
    options |= {"stacked": per_call if per_call > 1 else None}
    whole = None
    if resident and not config.data.stream and fits(source, run.shape):
        whole = Resident(source, run.shape, run.scaling)
    batches = data.batches(source, **options, indices=whole is not None)

    def placed(batch: dict[str, Any]) -> dict[str, Any]:
        if whole is not None:
            batch = whole.take(batch)
        if not run.class_names:
            batch = {"x_0": batch["x_0"]}
        return place(batch)

    return _ahead(batches, placed)


def _options(config: Preset) -> dict[str, Any]:
    return {
        "shape": config.model.shape,
        "batch_size": config.train.batch_size,
        "seed": config.train.seed,
        "flip": config.data.flip,
        "stream": config.data.stream,
        "num_threads": config.data.threads,
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
