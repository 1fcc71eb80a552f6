"""Batches of somebody's own, in the place of a source of examples."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from ddpm_jax import display
from ddpm_jax.class_names import check_distinct
from ddpm_jax.errors import UserError, kind_of


class Batches:
    """Batches that a loader makes, which `training.train` takes as its source: they come in its order, and are not shuffled.

    Args:
        batches: an iterable of batches, or a function `batches(start_step)` that returns one beginning with the batch of that step,
            with which a run that is resumed sees what the uninterrupted one would have seen. A batch is whatever a step of training
            takes: {"x_0": …, "label": …}, (x_0, labels) or x_0 alone; x_0 uint8 images, or floats as the network sees them.
        class_names: one for each class, where the batches have labels.
        name: what to call them in messages.

    Raises:
        UserError: neither an iterable nor a function; two classes have one name.
    """

    def __init__(
        self,
        batches: Iterable[Any] | Callable[[int], Iterable[Any]],
        class_names: Sequence[str] = (),
        name: str = "batches",
    ):
        if not callable(batches) and not hasattr(batches, "__iter__"):
            raise UserError(f"batches must be an iterable, or a function that returns one; got {kind_of(batches)}.")
        check_distinct(class_names, name)
        self.batches, self.class_names, self.name = batches, tuple(class_names), name

    def __repr__(self) -> str:
        return display.line(self, repr(self.name), *([f"{len(self.class_names)} classes"] if self.class_names else []))

    def since(self, start_step: int) -> Iterator[Any]:
        """The batches from a step on."""
        return iter(self.batches(start_step) if callable(self.batches) else self.batches)
