"""What a source of data is, and the one of images that lies in memory."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from ddpm_jax import display
from ddpm_jax.class_names import check_distinct
from ddpm_jax.errors import UserError, kind_of


@runtime_checkable
class Source(Protocol):
    """Random access to images (or points) and labels; stateless and picklable, so that workers may share it.

    An element is `{"image": uint8 (H, W, C) with C = 1 or 3, "label": np.int32 scalar}`; sizes may differ
    from one element to the next. The elements of a `PointSource` have a "point" instead. `class_names` names the
    labels `0 .. len(class_names) - 1`; it is empty where the source has no labels, and every label is then 0.

    Two optional attributes spare reading images for their labels: `labels`, int32 (N,), and
    `labels_within_class_names = True` where the format itself promises `0 <= label < len(class_names)`. A third, `groups`,
    int64 (G,) of sum N, says how many neighbours in a row are read at once, where single ones are dear: they are then shuffled
    by groups (`grouped.grouped_order`).
    """

    @property
    def name(self) -> str:
        """What it is called in messages."""
        ...

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the labels."""
        ...

    def __len__(self) -> int:
        """How many elements there are."""
        ...

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        """The element at `index`; IndexError outside `-N .. N - 1`."""
        ...


@dataclass(frozen=True)
class Opening:
    """How a source is opened; each form heeds what concerns it."""

    on_bad_image: str = "stop"
    """At an unreadable image "stop", or "skip" to the next one."""
    label: str | None = None
    """Which of several columns holds the labels; None: the only one there is."""

    __repr__ = display.of_fields


@dataclass(frozen=True)
class Form:
    """What --data.source may say: KIND:REST. A module with a source enters its own: FORMS["npz"] = Form("npz:PATH", "…", open)."""

    usage: str
    """How it is written."""
    about: str
    """What it stands for."""
    open: Callable[[str, Opening], Source]
    """Makes the source of what follows the colon."""
    path: Callable[[str], Path | None] | None = None
    """The path in what follows the colon, which has to exist; None, or what it returns: there is none."""
    alone: bool = False
    """Whether nothing need follow."""
    columns: bool = False
    """Whether there may be several columns of labels, of which `Opening.label` chooses one."""

    __repr__ = display.of_fields


FORMS: dict[str, Form] = {}
"""Kinds of source by what stands before the colon."""


def checked(source: Any) -> Source:
    """A source of somebody's own, as it is.

    Raises:
        UserError: it has no length, items, name or class_names.
    """
    if isinstance(source, Source):
        return source
    missing = [name for name in ("__len__", "__getitem__", "name", "class_names") if not hasattr(source, name)]
    raise UserError(
        "source must have a length, items {'image': uint8 (H, W, C), 'label': int}, a name and class_names; "
        f"{kind_of(source)} has no {', '.join(missing)}."
    )


class Told:
    """How a source shows itself: its name, how many examples it holds, and of which classes."""

    name: str
    class_names: tuple[str, ...]

    def __repr__(self) -> str:
        examples = f"{len(self):,} examples"  # type: ignore[arg-type]
        return display.line(
            self, repr(self.name), examples, *([f"{len(self.class_names)} classes"] if self.class_names else [])
        )


class ArraySource(Told):
    """Images and labels held in memory.

    Args:
        name: what to call it in messages.
        images: uint8 (N, H, W) or (N, H, W, C), C = 1 or 3, N >= 1.
        labels: integers (N,) that index `class_names`; None where there are none.
        class_names: one name for each class, none of them twice; empty without labels.

    Raises:
        UserError: two classes have one name.
    """

    def __init__(
        self, name: str, images: np.ndarray, labels: np.ndarray | None = None, class_names: Sequence[str] = ()
    ):
        check_distinct(class_names, name)
        images = np.asarray(images)
        if (
            images.dtype != np.uint8
            or images.ndim not in (3, 4)
            or (images.ndim == 4 and images.shape[3] not in (1, 3))
        ):
            raise UserError(
                f"images must be uint8 (N, H, W) or (N, H, W, C), C = 1 or 3; got {images.dtype} of shape {images.shape}."
            )
        if labels is not None:
            labels = np.asarray(labels)
            if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]:
                raise UserError(
                    f"labels must be integers of shape ({len(images)},), one for each image; "
                    f"got {labels.dtype} of shape {labels.shape}."
                )
        self.name = name
        self.class_names = tuple(class_names)
        self.images = images[..., None] if images.ndim == 3 else images
        self.labels = np.zeros(len(images), np.int32) if labels is None else labels.astype(np.int32)

    def __len__(self) -> int:
        """How many images there are."""
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The element at `index`."""
        return {"image": self.images[index], "label": self.labels[index]}
