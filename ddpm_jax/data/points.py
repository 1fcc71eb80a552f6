"""Points in the plane as a source: drawn once and gone through in epochs, or drawn anew for every batch."""

from typing import Any

import numpy as np

from ddpm_jax.checks import whole
from ddpm_jax.data import toy
from ddpm_jax.data.scaling import Scaling
from ddpm_jax.data.source import FORMS, Form, Told
from ddpm_jax.errors import UserError

DEFAULT_NUM = 25_000
"""Points in a set, as in system 4."""


class PointSource(Told):
    """Points of one of the shapes of `toy`, in their own units.

    Args:
        shape: one of toy.SHAPES.
        num: how many points.
        seed: which draw of them; other seeds give held-out data.

    Raises:
        UserError: an unknown shape, or num below 2.
    """

    class_names: tuple[str, ...] = ()
    """Points have no classes."""

    def __init__(self, shape: str, num: int = DEFAULT_NUM, seed: int = 0):
        if whole("num", num) < 2:
            raise UserError(f"{shape}:{num} must have at least 2 points, or there is no standard deviation.")
        self.name = shape if num == DEFAULT_NUM else f"{shape}:{num}"
        self.points = toy.points(shape, num, seed)
        self.shape = shape
        mean, std = toy.statistics(self.points)
        self.scaling = Scaling(mean, std)
        """What standardises them: one mean and one standard deviation over all coordinates."""

    def __len__(self) -> int:
        """How many points there are."""
        return len(self.points)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The point at `index`, float64 (2,)."""
        return {"point": self.points[index], "label": np.int32(0)}

    def fresh(self, rng: np.random.Generator, num: int) -> np.ndarray:
        """Other points of the same shape, float64 (num, 2)."""
        return toy.SHAPES[self.shape](rng, num)


def open_points(shape: str, num: str = "") -> PointSource:
    """The source that the spec `SHAPE[:NUM]` names.

    Raises:
        UserError: NUM is no whole number from 2 up.
    """
    if num and not num.isdecimal():
        raise UserError(f"{shape}:{num} must have the form {shape}[:NUM], as in {shape}:10000.")
    return PointSource(shape, int(num) if num else DEFAULT_NUM)


for _shape in toy.SHAPES:
    FORMS[_shape] = Form(
        f"{_shape}[:N]",
        f"N points in the plane, {DEFAULT_NUM:,}",
        lambda rest, _, shape=_shape: open_points(shape, rest),  # type: ignore[misc]
        alone=True,
    )
