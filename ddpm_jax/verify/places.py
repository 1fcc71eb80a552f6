"""Where in an array two sides differ, or what takes one to the other: a factor, a shift, a permutation, an edge, a channel."""

from collections.abc import Iterator, Sequence

import numpy as np

from ddpm_jax.verify.layouts import exchanged
from ddpm_jax.verify.tolerances import relative_error

CLOSE = 1e-6
"""Relative error within which one array is another by a simple rule."""

AXES = {
    1: ("entry",),
    2: ("example", "channel"),
    3: ("example", "token", "channel"),
    4: ("example", "row", "column", "channel"),
    5: ("example", "plane", "row", "column", "channel"),
}
"""What the axes of an array of JAX's are called."""


def place_of(ours: np.ndarray, theirs: np.ndarray) -> str:
    """A few words on the difference of two arrays in the same order of axes; empty where nothing simple is to be said."""
    if ours.shape != theirs.shape or ours.ndim == 0 or ours.size == 0:
        return "" if ours.shape == theirs.shape else f"shapes differ: JAX {ours.shape}, PyTorch {theirs.shape}"
    a, b = ours.astype(np.float64), theirs.astype(np.float64)
    broken = [side for side, array in (("JAX", a), ("PyTorch", b)) if not np.isfinite(array).all()]
    if broken:
        return f"{' and '.join(broken)} hold NaN or infinity"
    return next((words for words in (*_rules(a, b), *_parts(a, b)) if words), "")


def _rules(a: np.ndarray, b: np.ndarray) -> Iterator[str]:
    """What takes PyTorch's array to JAX's as a whole."""
    if not np.any(a) or not np.any(b):
        yield f"{'JAX' if not np.any(a) else 'PyTorch'} has zeros alone"
        return
    factor = float((a * b).sum() / (b * b).sum())
    if a.size > 1 and relative_error(a, factor * b) <= CLOSE:
        yield f"JAX's is {factor:.6g} times PyTorch's"
    shift = float((a - b).mean())
    if a.size > 1 and abs(shift) > 0 and np.abs(a - b - shift).max() <= CLOSE * abs(shift):
        yield f"JAX's is PyTorch's plus {shift:.6g}"
    order = exchanged(b, a, CLOSE, conventions=True)
    if order is not None:
        yield f"axes are exchanged: PyTorch's in the order {order} are JAX's"
    for axis in range(1 if a.ndim > 1 else 0, a.ndim):
        yield _along(a, b, axis)


def _along(a: np.ndarray, b: np.ndarray, axis: int) -> str:
    """A rule along one axis: turned round, rolled, its slices in another order, a factor or a shift for each."""
    size, name = a.shape[axis], _name(a.ndim, axis)
    if size < 2:
        return ""
    if relative_error(a, np.flip(b, axis)) <= CLOSE:
        return f"turned round along the {name}s"
    for shift in (s for s in range(1, size) if size <= 64):
        if relative_error(a, np.roll(b, shift, axis)) <= CLOSE:
            return f"shifted by {shift if shift <= size // 2 else shift - size} along the {name}s"
    if size <= 4096 and (order := _order(a, b, axis)) is not None:
        shown = ", ".join(map(str, order[:12])) + (", …" if size > 12 else "")
        return f"{name}s are in another order: JAX's are PyTorch's {shown}"
    others = tuple(i for i in range(a.ndim) if i != axis)
    if axis == a.ndim - 1 and a.size >= 4 * size:
        difference = a - b
        mean = difference.mean(others, keepdims=True)
        many = np.count_nonzero(np.abs(mean) > CLOSE * np.abs(mean).max()) > size // 2
        if many and np.abs(difference - mean).max() <= CLOSE * np.abs(difference).max():
            return f"a constant for each {name} (a bias)"
        with np.errstate(divide="ignore", invalid="ignore"):
            factor = (a * b).sum(others, keepdims=True) / (b * b).sum(others, keepdims=True)
        if np.isfinite(factor).all() and relative_error(a, factor * b) <= CLOSE:
            return f"a factor for each {name}, from {factor.min():.8g} to {factor.max():.8g}"
    return ""


def _order(a: np.ndarray, b: np.ndarray, axis: int) -> Sequence[int] | None:
    """The order of PyTorch's slices along an axis that makes JAX's; None where there is none."""
    left, right = (np.moveaxis(x, axis, 0).reshape(x.shape[axis], -1) for x in (a, b))
    if left.shape[1] < 2:
        return None
    keys = [np.lexsort(np.round(x / (np.abs(b).max() or 1.0), 7).T[:3]) for x in (left, right)]
    order = np.empty(len(left), int)
    order[keys[0]] = keys[1]
    if np.array_equal(order, np.arange(len(order))) or relative_error(left, right[order]) > CLOSE:
        return None
    return [int(index) for index in order]


def _parts(a: np.ndarray, b: np.ndarray) -> Iterator[str]:
    """Which slices the difference is confined to."""
    apart = np.abs(a - b)
    wrong = apart > 1e-3 * apart.max()
    for axis in reversed(range(a.ndim)):
        size, name = a.shape[axis], _name(a.ndim, axis)
        others = tuple(i for i in range(a.ndim) if i != axis)
        where = np.flatnonzero(wrong.any(others))
        if size < 2 or not 0 < len(where) <= size // 2:
            continue
        if len(where) == 1 and 0 < where[0] == size - 1 and name in ("row", "column", "token"):
            yield f"in the last {name} alone"
        elif len(where) == 1:
            yield f"in {name} {where[0]} of {size} alone"
        elif list(where) == [0, size - 1]:
            yield f"in the first and last {name}s alone"
        elif len(where) == where[-1] - where[0] + 1:
            yield f"in {name}s {where[0]} to {where[-1]} of {size} alone"
        else:
            shown = ", ".join(map(str, where[:8])) + (", …" if len(where) > 8 else "")
            yield f"in {len(where)} of {size} {name}s alone: {shown}"
    if a.ndim >= 4 and wrong.any() and not wrong[:, 1:-1, 1:-1].any():
        yield "at the edges alone"
    share = float(wrong.mean())
    if 0 < share < 0.9:
        yield f"in {share:.0%} of its numbers"


def _name(rank: int, axis: int) -> str:
    return AXES[rank][axis] if rank in AXES else f"axis {axis}"
