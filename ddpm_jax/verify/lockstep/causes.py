"""Why a quantity of a training differs: known differences tried on the numbers, and the one named that explains them."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from ddpm_jax.verify.lockstep.history import Arrays, History
from ddpm_jax.verify.lockstep.optimisers import Update

CLOSE = 1e-5
"""Relative size of what an explanation may leave unexplained."""


class Causes:
    """Explanations of what differs between two histories; each method takes the step, and returns "" where nothing known fits."""

    def __init__(self, ours: History, theirs: History, close: float = CLOSE):
        self.ours, self.theirs, self.close = ours, theirs, close

    def steps(self, index: int) -> tuple[Any, Any]:
        """Both sides' step."""
        return self.ours.steps[index], self.theirs.steps[index]

    # What goes in and comes out

    def data(self, index: int, which: int) -> str:
        """Of an input of the batch."""
        a, b = (step.inputs[which] for step in self.steps(index))
        b = aligned(b, a)
        if a.size != b.size:
            return "the batches have other shapes"
        if a.shape != b.shape:
            return "the batches have other shapes, beyond the order of their axes"
        if a.ndim and sorted(map(_digest, a)) == sorted(map(_digest, b)):
            return "the same examples in another order: shuffling, or a sampler's seed, differs"
        for axis in range(1, a.ndim):
            if 1 < a.shape[axis] <= 4 and self._same(np.flip(a, axis), b):
                return f"axis {axis} is reversed: RGB against BGR"
        flat = np.stack([b.ravel(), np.ones(b.size)], 1).astype(np.float64)
        (factor, shift), *_ = np.linalg.lstsq(flat, a.ravel().astype(np.float64), rcond=None)
        if self._same(factor * b + shift, a):
            return f"scaled otherwise: JAX = {_number(factor)} * PyTorch {'+' if shift >= 0 else '-'} {_number(abs(shift))}"
        return _rounding(a, b)

    def loss(self, index: int) -> str:
        """Of the loss."""
        a, b = self.steps(index)
        decay = self._penalty(a.gradients, b.gradients, self.ours.before(index).params)
        if decay is not None:
            return f"{decay[0]}'s loss has the penalty {_number(decay[1] / 2)} * (sum of the squared weights), the other's has not"
        factor = a.loss / b.loss if b.loss else 0.0
        known = self._factor(factor, index, "loss")
        if known:
            return known
        return _rounding(np.asarray(a.loss), np.asarray(b.loss)) or (
            "the forward pass or the loss differs: verify.compare of the two networks tells where"
        )

    def statistics(self, index: int, name: str) -> str:
        """Of running statistics."""
        (a, b), old = self.steps(index), self.theirs.before(index).statistics[name]
        x, y = a.statistics[name] - old, b.statistics[name] - old
        factor = _along(x, y)
        if factor is not None and self._same(factor * y, x) and name.endswith("mean"):
            return _momenta(factor)
        if name.endswith("var"):
            mean = name.removesuffix("var") + "mean"
            before = self.theirs.before(index).statistics.get(mean)
            share = 1.0 if before is None else _along(a.statistics[mean] - before, b.statistics[mean] - before) or 1.0
            if abs(share - 1) > 1e-6 and factor is not None and self._same(factor * y, x):
                return _momenta(factor)
            return self._variance(x, y, old)
        return ""

    def _variance(self, x: np.ndarray, y: np.ndarray, old: np.ndarray) -> str:
        """Of what running variances moved by: biased or not, at one of the usual momenta."""
        for momentum in (0.1, 0.01, 0.2, 0.05, 0.001, 0.3, 0.5):
            ours, theirs = x / momentum + old, y / momentum + old
            ratio = _along(ours, theirs)
            if ratio is None or not 0.4 < ratio < 2.1 or ratio == 1 or not self._same(ratio * theirs, ours):
                continue
            n = 1 / (1 - min(ratio, 1 / ratio))
            kind = ("biased", "unbiased") if ratio < 1 else ("unbiased", "biased")
            if abs(n - round(n)) < 1e-3 * n:
                text = f"JAX keeps the {kind[0]} variance of the batch, PyTorch the {kind[1]}"
                return f"{text}: a factor n / (n - 1), n = {round(n)}"
        return ""

    # Gradients

    def gradient(self, index: int, name: str) -> str:
        """Of the gradients of the loss."""
        ours, theirs = self.steps(index)
        found = self._between(ours.gradients, theirs.gradients, index, name, self.ours.before(index).params)
        # what JAX's optimiser is given may have been clipped before, part by part
        return found or self._clipped_by_parts(ours.gradients, theirs.fed, theirs)

    def _between(self, a: Arrays, b: Arrays, index: int, name: str, params: Arrays) -> str:
        factor = _along_all(a, b)
        if factor is not None and self._all_same({key: factor * b[key] for key in b}, a):
            return self._factor(factor, index, "gradient")
        decay = self._penalty(a, b, params)
        if decay is not None:
            return f"{decay[0]} adds {_number(decay[1])} * weights to the gradients: a penalty in the loss, or coupled weight decay"
        if not np.any(a[name]):
            return f"{name} has no gradient in JAX: stop_gradient, or the weight is not used"
        if not np.any(b[name]):
            return f"{name} has no gradient in PyTorch: detached, or the weight is not used"
        rounded = _rounding(
            np.concatenate([x.ravel() for x in a.values()]), np.concatenate([b[key].ravel() for key in a])
        )
        if rounded:
            return rounded
        alone = _along(a[name], b[name])
        if alone is not None and self._same(alone * b[name], a[name]):
            return f"the gradient of {name} is {_number(alone)} times PyTorch's, that of others is not"
        size = _apart(a[name], b[name])
        if 3e-4 < size < 3e-2:
            return f"an error of {size:.0e}, as bfloat16 makes it: a cast within the backward pass"
        return ""

    def _factor(self, factor: float, index: int, what: str) -> str:
        """What a constant factor may mean."""
        if not factor or not math.isfinite(factor) or abs(factor - 1) < 1e-12:
            return ""
        larger, ratio = ("JAX", factor) if abs(factor) > 1 else ("PyTorch", 1 / factor)
        said = f"{larger}'s {what} is {_number(ratio)} times the other's"
        if abs(factor + 1) < self.close:
            return f"the {what} has the other sign"
        whole = abs(ratio - round(ratio)) < 1e-6 * ratio
        if not whole:
            return f"{said}: a constant factor" if what == "gradient" else ""
        if what == "gradient" and round(ratio) == len(self.theirs.steps[index].parts) > 1:
            return f"{said}: accumulated gradients are summed on one side and averaged on the other"
        if what == "loss" or round(ratio) in self._lengths(index):
            means = self._lengths(index).get(round(ratio))
            if means:
                return f"{said}, {means}: a sum on one side, a mean on the other"
        if what == "gradient" and round(ratio) & (round(ratio) - 1) == 0:
            return (
                f"{said}, and the losses agree: a loss scale is not undone, or accumulated gradients are not averaged"
            )
        return f"{said}: a constant factor"

    def _lengths(self, index: int) -> dict[int, str]:
        """Numbers of things in a batch, and what they count."""
        found: dict[int, str] = {}
        for array in reversed(self.theirs.steps[index].inputs):
            if array.ndim:
                found[array.size] = "the numbers of a batch"
                found[array.size // max(array.shape[0], 1)] = "the numbers of an example"
        for array in self.theirs.steps[index].inputs:
            if array.ndim:
                found[array.shape[0]] = "the examples of a batch"
        found.pop(1, None)
        return found

    def _clipped_by_parts(self, ours: Arrays, theirs: Arrays, step: Any) -> str:
        """Whether one side clips each part of an accumulated gradient; theirs: what PyTorch's optimiser takes up."""
        if len(step.parts) < 2:
            return ""
        limit = min(_norm(theirs), _norm(step.gradients))
        for bound, share in itertools.product((limit, _norm(ours)), (1.0, 1 / len(step.parts))):
            parts = [_clipped({k: g / share for k, g in part.items()}, bound) for part in step.parts]
            split: Arrays = {key: sum(part[key] for part in parts) * share for key in step.gradients}  # type: ignore[misc]
            if self._all_same(split, ours) or self._all_same(split, theirs):
                side = "JAX" if self._all_same(split, ours) else "PyTorch"
                return f"{side} clips the gradients of each part and then adds them up, the other the sum"
        return ""

    def fed(self, index: int, ours: Arrays | None = None) -> str:
        """Of gradients as the optimiser takes them up: clipping, its order and kind, weight decay; ours: JAX's, if not seen."""
        a, b = self.steps(index)
        theirs, raw = b.fed, b.gradients
        ours = ours or a.fed or a.gradients
        decay = self._penalty(ours, theirs, self.ours.before(index).params)
        if decay is not None:
            return _coupled(*decay)
        norm = _norm(raw)
        limit = min(_norm(theirs), norm)
        if self._all_same(ours, raw):
            return f"JAX does not clip: the gradients' norm is {_number(norm)}, PyTorch makes it {_number(limit)}"
        if self._all_same(theirs, raw):
            return f"PyTorch does not clip: the gradients' norm is {_number(norm)}, JAX makes it {_number(_norm(ours))}"
        if by_parts := self._clipped_by_parts(ours, theirs, b):
            return by_parts
        factor = _along_all(ours, theirs)
        equal = factor is not None and self._all_same({key: factor * theirs[key] for key in theirs}, ours)
        if equal and abs(norm - limit) > 1e-6 * norm:
            return f"another limit: the norm becomes {_number(_norm(ours))} in JAX, {_number(_norm(theirs))} in PyTorch"
        for side, found in (("JAX", ours), ("PyTorch", theirs)):
            bound = max(float(np.abs(g).max()) for g in found.values())
            if self._all_same({key: np.clip(g, -bound, bound) for key, g in raw.items()}, found):
                return f"{side} clips each number to {_number(bound)}, the other the norm"
            if all(self._same((_along(found[key], g) or 0.0) * g, found[key]) for key, g in raw.items()):
                return f"{side} clips each parameter's gradient by itself, the other all together"
        return ""

    # What the optimiser remembers and does

    def moment(self, index: int, kind: str) -> str:
        """Of a moment."""
        words = {"first": "first moment", "second": "second moment", "momentum": "momentum", "sum": "sum of squares"}[
            kind
        ]
        start = self.ours.start.moments.get(kind, {})
        if index == 0 and kind in ("sum", "second") and any(np.any(array) for array in start.values()):
            value = next(float(array.flat[0]) for array in start.values() if np.any(array))
            return f"the {words} begins with {_number(value)} in JAX, with 0 in PyTorch: initial_accumulator_value, initial_scale"
        at = max(
            index, min(1, len(self.theirs.steps) - 1)
        )  # in the first step there is no old value whose weight would show
        (ours, left), (theirs, right) = (_followed(history, at, kind) for history in (self.ours, self.theirs))
        if abs(ours[2] - theirs[2]) > 1e-7 * max(1, abs(theirs[1])) and min(left, right) < self.close:
            side, weights = ("JAX", ours) if abs(ours[2]) > abs(theirs[2]) else ("PyTorch", theirs)
            return _coupled(side, weights[2] / weights[1])
        if left < self.close and right < self.close:
            dampened = [abs(weights[1] - 1) < 1e-7 for weights in (ours, theirs)]
            if dampened[0] != dampened[1]:
                side, share = ("JAX", ours[1]) if dampened[1] else ("PyTorch", theirs[1])
                return f"{side} weights each gradient with {_number(share)} in its {words}, the other with 1: dampening"
            if at and abs(ours[0] - theirs[0]) > 1e-7:
                return f"the decay of the {words} is {_number(ours[0])} in JAX, {_number(theirs[0])} in PyTorch"
        if kind == "first" and not self.ours.steps[index].fed:
            return self.fed(index, self.taken_up(index))
        return ""

    def taken_up(self, index: int) -> Arrays:
        """The gradients that JAX's first moment took up, by PyTorch's decay."""
        new, old = self.ours.steps[index].moments["first"], self.ours.before(index).moments.get("first", {})
        b1 = self.theirs.settings.get("betas", (0.9, 0.999))[0]
        return {key: (array - b1 * old.get(key, np.zeros_like(array))) / (1 - b1) for key, array in new.items()}

    def rate(self, index: int, found: list[tuple[Update | None, Update | None]]) -> str:
        """Of the learning rate; found: both sides' updates as they were understood, of all steps."""
        pairs = [(a.rate, b.rate) for a, b in found if a is not None and b is not None]
        ours, theirs = [a for a, _ in pairs], [b for _, b in pairs]
        listed = f"({', '.join(map(_number, ours[:4]))}, ... against {', '.join(map(_number, theirs[:4]))}, ...)"
        if len(pairs) > 2 and np.ptp(theirs) > 0:
            if np.allclose(ours[:-1], theirs[1:], rtol=1e-6):
                return f"the schedule's step is counted from 1 in JAX, from 0 in PyTorch {listed}"
            if np.allclose(ours[1:], theirs[:-1], rtol=1e-6):
                return f"the schedule's step is counted from 0 in JAX, from 1 in PyTorch {listed}"
        ratios = np.array(ours) / np.array(theirs)
        if np.allclose(ratios, ratios[0], rtol=1e-6):
            return f"the learning rate is {_number(ours[0])} in JAX, {_number(theirs[0])} in PyTorch"
        return f"the schedules differ {listed}"

    def decay(self, a: Update, b: Update) -> str:
        """Of weight decay, by parameter; a, b: JAX's and PyTorch's update as understood."""
        some = {
            side: [k for k, value in u.decay.items() if abs(value) > 1e-10] for side, u in (("JAX", a), ("PyTorch", b))
        }
        for side, other in (("JAX", "PyTorch"), ("PyTorch", "JAX")):
            if not some[side] and some[other]:
                return f"{side} does not decay the weights, {other} does"
        if set(some["JAX"]) != set(some["PyTorch"]):
            alone = sorted(set(some["JAX"]) ^ set(some["PyTorch"]))
            side = "JAX" if alone[0] in some["JAX"] else "PyTorch"
            return (
                f"the mask differs: {side} alone decays {', '.join(alone[:4])}{' and others' if len(alone) > 4 else ''}"
            )
        if not some["JAX"]:
            return ""
        name = some["JAX"][0]
        ours, theirs = a.decay[name], b.decay[name]
        if abs(ours - theirs / b.rate) < 1e-5 * abs(ours):
            return f"JAX's decay is not multiplied by the learning rate: {_number(ours)} against {_number(theirs)}"
        return f"each step takes {_number(ours)} of a weight in JAX, {_number(theirs)} in PyTorch"

    def update(self, index: int, a: Update | None, b: Update | None) -> str:
        """Of an update whose moments agree."""
        if a is not None and b is not None and a.form != b.form:
            return f"JAX: {a.form}; PyTorch: {b.form}"
        if a is None and b is None:
            return ""
        ours, theirs = self.steps(index)
        for side, step, history in (("JAX", ours, self.ours), ("PyTorch", theirs, self.theirs)):
            still = [k for k, array in step.params.items() if not np.any(array != history.before(index).params[k])]
            other = theirs if side == "JAX" else ours
            start = (self.theirs if side == "JAX" else self.ours).before(index).params
            stuck = [key for key in still if np.any(other.params[key] != start[key])]
            if stuck and len(stuck) == len(step.params):
                return f"{side} does not move in this step: its learning rate is 0, or it only accumulates"
            if stuck:
                return f"{side} does not train {', '.join(stuck[:4])}: frozen, or not given to the optimiser"
        known = a or b
        assert known is not None
        side, other = ("PyTorch", "JAX") if a is None else ("JAX", "PyTorch")
        return f"{side}: {known.form}; {other} follows no formula that is known here"

    def average(self, index: int, name: str) -> str:
        """Of the averaged weights."""
        decays: dict[str, list[float | None]] = {}
        early = {}
        for history in (self.ours, self.theirs):
            found = [_decay(history, k, after=True) for k in range(len(history.steps))]
            late = [_decay(history, k, after=False) for k in range(len(history.steps))]
            early[history.side] = found[-1] is None and late[-1] is not None
            decays[history.side] = late if early[history.side] else found
        if early["JAX"] != early["PyTorch"]:
            side = "JAX" if early["JAX"] else "PyTorch"
            return f"{side} averages the weights as they were before the step, the other those after it"
        ours, theirs = decays["JAX"], decays["PyTorch"]
        if None in ours or None in theirs:
            return "one side's average is no mixture of its last value and the weights"
        a, b = np.array(ours, float), np.array(theirs, float)
        listed = f"(JAX {', '.join(map(_number, a[:4]))}, ...; PyTorch {', '.join(map(_number, b[:4]))}, ...)"
        for side, values, others in (("JAX", a, b), ("PyTorch", b, a)):
            if abs(values[0]) < 1e-9 and abs(others[0]) > 1e-9:
                return f"{side}'s first update of the average copies the weights, the other's mixes them in {listed}"
        shifted = np.allclose(a[:-1], b[1:], rtol=1e-6) or np.allclose(a[1:], b[:-1], rtol=1e-6)
        if len(a) > 2 and np.ptp(b) > 1e-9 and shifted:
            return f"the average's warm-up is one step off {listed}"
        for side, values, others in (("JAX", a, b), ("PyTorch", b, a)):
            if np.ptp(values) > 1e-9 and np.ptp(others) < 1e-9:
                return f"{side}'s decay of the average warms up, the other's is constant {listed}"
        return f"the decay of the average differs {listed}"

    # Helpers

    def _same(self, a: np.ndarray, b: np.ndarray) -> bool:
        return _apart(a, b) < self.close

    def _all_same(self, a: Arrays, b: Arrays) -> bool:
        top = max((float(np.abs(array).max(initial=0.0)) for array in b.values()), default=0.0)
        return all(float(np.abs(a[key] - b[key]).max(initial=0.0)) <= self.close * top for key in b if key in a)

    def _penalty(self, a: Arrays, b: Arrays, params: Arrays) -> tuple[str, float] | None:
        """(side, weight) of a multiple of the weights that one side's gradients have on top."""
        rest = {key: a[key] - b[key] for key in b if key in a}
        moved = {key: array for key, array in rest.items() if np.any(params[key])}
        factor = _along_all(moved, {key: params[key] for key in moved})
        if factor is None or not factor or not self._all_same({k: factor * params[k] for k in rest}, rest):
            return None
        return ("JAX", factor) if factor > 0 else ("PyTorch", -factor)


def _coupled(side: str, weight: float) -> str:
    return f"{side} adds {_number(weight)} * weights to the gradients (coupled decay, L2), the other does not (AdamW)"


def _momenta(factor: float) -> str:
    text = f"JAX's running statistics move {_number(factor)} times as far as PyTorch's: the momentum differs"
    return text + "; flax's is the weight of the old value (0.9), PyTorch's that of the new (0.1)"


def _digest(example: np.ndarray) -> tuple[float, ...]:
    flat = np.asarray(example, np.float64).ravel()
    return (*map(float, flat[:8].round(9)), round(float(flat.sum()), 6))


def _number(value: Any) -> str:
    return f"{float(value):.4g}"


def _norm(arrays: Arrays) -> float:
    return math.sqrt(sum(float(np.square(array, dtype=np.float64).sum()) for array in arrays.values()))


def _clipped(arrays: Arrays, limit: float) -> Arrays:
    factor = min(1.0, limit / max(_norm(arrays), 1e-300))
    return {key: factor * array for key, array in arrays.items()}


def _apart(a: np.ndarray, b: np.ndarray) -> float:
    size = float(np.abs(b).max(initial=0.0))
    return float(np.abs(a - b).max(initial=0.0)) / size if size else float(np.any(a))


def _along(a: np.ndarray, b: np.ndarray) -> float | None:
    """The factor by which b comes nearest to a."""
    below = float(np.sum(b * b))
    return float(np.sum(a * b)) / below if below else None


def _along_all(a: Arrays, b: Arrays) -> float | None:
    below = sum(float(np.sum(b[key] * b[key])) for key in b if key in a)
    return sum(float(np.sum(a[key] * b[key])) for key in b if key in a) / below if below else None


def _rounding(a: np.ndarray, b: np.ndarray) -> str:
    """Whether one side's numbers are those of a shorter type."""
    for name, kind in (("bfloat16", ml_dtypes.bfloat16), ("float16", np.float16), ("float32", np.float32)):
        with np.errstate(over="ignore"):
            short = [bool(np.all(array.astype(kind).astype(np.float64) == array)) for array in (a, b)]
        if short[0] != short[1]:
            return f"{'JAX' if short[0] else 'PyTorch'}'s numbers are rounded to {name}: a cast"
    return ""


def aligned(array: np.ndarray, other: np.ndarray) -> np.ndarray:
    """An array with its axes in another's order, where one order brings it nearest; as it is otherwise."""
    if array.shape == other.shape or sorted(array.shape) != sorted(other.shape) or array.ndim > 5:
        return array
    orders = (o for o in itertools.permutations(range(array.ndim)) if tuple(array.shape[i] for i in o) == other.shape)
    return min((array.transpose(order) for order in orders), key=lambda moved: float(np.abs(moved - other).sum()))


def _followed(history: History, index: int, kind: str) -> tuple[tuple[float, float, float], float]:
    """The `_recurrence` of what an optimiser remembers."""
    step, before = history.steps[index], history.before(index)
    new = step.moments[kind]
    old = {key: before.moments.get(kind, {}).get(key, np.zeros_like(array)) for key, array in new.items()}
    grads = {key: (step.fed or step.gradients).get(key, np.zeros_like(array)) for key, array in new.items()}
    params = {key: before.params[key] for key in new}
    return _recurrence(new, old, grads, params, 2 if kind in ("second", "sum") else 1)


def _recurrence(
    new: Arrays, old: Arrays, grads: Arrays, params: Arrays, power: int
) -> tuple[tuple[float, float, float], float]:
    """(a, b, c) of new = a * old + b * gradient**power + c * weight, and how much that leaves unexplained."""
    columns: list[Callable[[str], np.ndarray]] = [lambda k: old[k], lambda k: grads[k] ** power]
    if power == 1:
        columns.append(lambda k: params[k])
    table = np.stack([np.concatenate([np.asarray(c(k), np.float64).ravel() for k in new]) for c in columns], 1)
    target = np.concatenate([np.asarray(new[k], np.float64).ravel() for k in new])
    scale = np.abs(table).max(0)
    scale[scale == 0] = 1.0
    found, *_ = np.linalg.lstsq(table / scale, target, rcond=None)
    left = float(np.linalg.norm(table / scale @ found - target)) / max(float(np.linalg.norm(target)), 1e-300)
    weights = [float(x) for x in found / scale] + [0.0] * (3 - len(columns))
    return (weights[0], weights[1], weights[2]), left


def _decay(history: History, index: int, *, after: bool) -> float | None:
    """The d of average = d * average + (1 - d) * weights that a step followed; None: it did not."""
    step, before = history.steps[index], history.before(index)
    weights = step.params if after else before.params
    top = below = 0.0
    for name, average in step.average.items():
        span = before.average[name] - weights[name]
        top, below = top + float(np.sum((average - weights[name]) * span)), below + float(np.sum(span * span))
    if not below:
        return None
    decay = top / below
    rest = sum(
        float(np.sum((average - decay * before.average[name] - (1 - decay) * weights[name]) ** 2))
        for name, average in step.average.items()
    )
    return decay if math.sqrt(rest / below) < 1e-6 else None
