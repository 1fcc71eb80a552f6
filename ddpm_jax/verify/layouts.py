"""How an array of PyTorch's becomes JAX's: orders of axes and regroupings that fit both shapes; values decide between several."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ddpm_jax.verify.tolerances import relative_error

ORDINARY: dict[int, tuple[tuple[int, ...], ...]] = {
    2: ((0, 1),),
    3: ((0, 1, 2), (0, 2, 1), (1, 0, 2)),  # as it is; channels first to last; sequence first
    4: ((0, 2, 3, 1), (0, 1, 2, 3), (0, 3, 1, 2), (0, 2, 1, 3)),  # channels first to last; as it is; back; heads
    5: ((0, 2, 3, 4, 1), (0, 1, 2, 3, 4), (0, 4, 1, 2, 3), (0, 1, 3, 2, 4), (0, 2, 1, 3, 4)),
}
"""number of axes -> orders in which the frameworks' conventions differ, the likelier first.

Of several orders that fit a shape these alone are taken: height and width exchanged are a fault, not a convention.
"""


@dataclass(frozen=True)
class Layout:
    """A transposition, a regrouping of neighbouring axes, and another transposition, one after the other."""

    before: tuple[int, ...]
    """Order of PyTorch's axes."""
    grouped: tuple[int, ...]
    """Shape in between."""
    after: tuple[int, ...]
    """Order of the axes of that shape in JAX."""

    def to_jax(self, array: np.ndarray) -> np.ndarray:
        """PyTorch's array in JAX's order."""
        return array.transpose(self.before).reshape(self.grouped).transpose(self.after)

    def to_torch(self, array: np.ndarray, shape: Sequence[int]) -> np.ndarray:
        """JAX's array in PyTorch's order; shape: of PyTorch's array."""
        grouped = tuple(shape[axis] for axis in self.before)
        return array.transpose(np.argsort(self.after)).reshape(grouped).transpose(np.argsort(self.before))

    @property
    def moves(self) -> bool:
        """Whether it does anything at all."""
        return self != identity(self.grouped)

    def words(self) -> str:
        """What it does, for a reader: "axes (0, 2, 3, 1)"; empty where nothing."""
        parts = []
        if self.before != tuple(range(len(self.before))):
            parts.append(f"axes {self.before}")
        if len(self.grouped) != len(self.before):
            parts.append(f"as {'x'.join(map(str, self.grouped))}")
        if self.after != tuple(range(len(self.after))):
            parts.append(f"{'then ' if parts else ''}axes {self.after}")
        return ", ".join(parts)


def identity(shape: Sequence[int]) -> Layout:
    """As it is."""
    order = tuple(range(len(shape)))
    return Layout(order, tuple(shape), order)


def of_order(order: Sequence[int] | None, shape: Sequence[int]) -> Layout:
    """The layout of an order of PyTorch's axes (None: as they are)."""
    order = tuple(range(len(shape))) if order is None else tuple(order)
    return Layout(order, tuple(shape[axis] for axis in order), tuple(range(len(shape))))


def ordinary(rank: int) -> tuple[tuple[int, ...], ...]:
    """Orders of so many axes that are conventions."""
    return ORDINARY.get(rank, (tuple(range(rank)),))


def fitting(theirs: Sequence[int], ours: Sequence[int]) -> list[Layout]:
    """All layouts that take PyTorch's shape to JAX's, the likelier first; orders that are no convention only where none is."""
    theirs, ours = tuple(theirs), tuple(ours)
    if math.prod(theirs) != math.prod(ours):
        return []
    if theirs == ours and len(ours) < 2:
        return [identity(ours)]
    found: list[Layout] = []
    if len(theirs) == len(ours):
        orders = [order for order in ordinary(len(ours)) if _shape(theirs, order) == ours]
        if not orders and 2 <= len(ours) <= 5 and sorted(theirs) == sorted(ours):
            orders = [order for order in itertools.permutations(range(len(ours))) if _shape(theirs, order) == ours]
        found = [of_order(order, theirs) for order in orders]
    return found or list(dict.fromkeys(_regroupings(theirs, ours)))


def comparable(theirs: np.ndarray, ours: np.ndarray) -> bool:
    """Whether two arrays may be the same thing: numbers of one kind, and shapes that a layout takes to each other."""
    kinds = {"u": "i"}
    alike = kinds.get(ours.dtype.kind, ours.dtype.kind) == kinds.get(theirs.dtype.kind, theirs.dtype.kind)
    return alike and bool(fitting(theirs.shape, ours.shape))


def repeated(theirs: np.ndarray, ours: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both in one shape, where one side computes for each example what the other computes once: positions (1, N, C), (B, N, C)."""
    if theirs.shape and ours.shape and math.prod(theirs.shape) != math.prod(ours.shape):
        try:
            shape = np.broadcast_shapes(theirs.shape, ours.shape)
        except ValueError:
            return theirs, ours
        if shape in (theirs.shape, ours.shape):
            return np.broadcast_to(theirs, shape), np.broadcast_to(ours, shape)
    return theirs, ours


def exchanged(
    theirs: np.ndarray, ours: np.ndarray, tolerance: float, *, conventions: bool = False
) -> tuple[int, ...] | None:
    """The order of axes in which both agree: what a missing or wrong transposition leaves.

    conventions: also one of those; arrays that are in one order already may differ by such an order as well.
    """
    if theirs.ndim != ours.ndim or not 2 <= ours.ndim <= 4 or theirs.size < 2:
        return None
    for order in itertools.permutations(range(ours.ndim)):
        if order == tuple(range(ours.ndim)) or (not conventions and order in ordinary(ours.ndim)):
            continue
        if _shape(theirs.shape, order) == ours.shape and relative_error(ours, theirs.transpose(order)) <= tolerance:
            return order
    return None


def decide(theirs: np.ndarray, ours: np.ndarray, tolerance: float) -> tuple[Layout | None, bool]:
    """The layout in which both agree, or else come closest by far, or else the likeliest; and whether that was left undecided.

    None: none fits.
    """
    found = fitting(theirs.shape, ours.shape)
    if not found:
        return None, False
    if len(found) == 1:
        return found[0], False
    errors = [relative_error(ours, one.to_jax(theirs)) for one in found]
    for one, error in zip(found, errors, strict=True):
        if error <= tolerance:
            return one, False
    order = sorted(range(len(found)), key=errors.__getitem__)
    if errors[order[0]] < 0.5 * errors[order[1]]:
        return found[order[0]], False
    return found[0], len({tuple(found[i].to_jax(theirs).ravel()[:4096]) for i in range(len(found))}) > 1


def _shape(shape: tuple[int, ...], order: Sequence[int]) -> tuple[int, ...]:
    return tuple(shape[axis] for axis in order)


def _regroupings(theirs: tuple[int, ...], ours: tuple[int, ...]) -> Iterator[Layout]:
    as_is = tuple(range(len(ours)))
    for order in sorted(ordinary(len(theirs)), key=lambda order: order != tuple(range(len(theirs)))):
        if _regroups(_shape(theirs, order), ours):
            yield Layout(order, ours, as_is)
    for order in ordinary(len(ours)):
        grouped = _shape(ours, order)
        if order != as_is and _regroups(theirs, grouped):
            yield Layout(tuple(range(len(theirs))), grouped, tuple(int(axis) for axis in np.argsort(order)))


def _regroups(a: Sequence[int], b: Sequence[int]) -> bool:
    """Whether one shape is the other with neighbouring axes merged."""
    edges_a, edges_b = ({math.prod(shape[:i]) for i in range(len(shape) + 1)} for shape in (a, b))
    return edges_a <= edges_b or edges_b <= edges_a
