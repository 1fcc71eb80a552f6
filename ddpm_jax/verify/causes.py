"""Known differences between ports: each entry of the table looks at one fault and says its probable cause, or nothing.

Settings that differ are read; everything else is an experiment: the layer is computed from what fed it in each of its usual
variants, and where one of them is PyTorch's and another JAX's, they are named.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import combinations, permutations
from typing import Any

import numpy as np

from ddpm_jax.verify import variants
from ddpm_jax.verify.evidence import LARGEST, Evidence, difference_of, pair_of, shaped, told, which
from ddpm_jax.verify.measure import precision_of
from ddpm_jax.verify.recording import Call
from ddpm_jax.verify.settings_table import differences
from ddpm_jax.verify.tolerances import relative_error

DIGITS = {"bfloat16": 0.05, "float16": 0.01, "float32": 1e-5}
"""Relative errors that a cast to a dtype leaves, at most."""

MANY = 50_000
"""Numbers for which hundreds of variants are computed."""


def cause_of(evidence: Evidence) -> str:
    """The probable cause of a fault: what the first entry of the table says; empty where none says anything."""
    return next((said for cause in CAUSES if (said := cause(evidence))), "")


def cause_of_statistics(name: str, ours: np.ndarray, theirs: np.ndarray, call: Call) -> str:
    """Why a running statistic differs: its momentum, or the variance that it takes in.

    name: running_mean or running_var. call: PyTorch's, whose parameters are those before.
    """
    old, x = call.parameters.get(name), call.inputs.get("0")
    if old is None or x is None or x.ndim < 2:
        return ""
    axes = (0, *range(2, x.ndim))
    size = x.size // x.shape[1]
    seen = {"": x.mean(axes)} if name == "running_mean" else {
        "the biased variance": x.var(axes),
        "the unbiased variance": x.var(axes) * size / max(size - 1, 1),
    }  # fmt: skip
    given = float(call.settings.get("momentum") or 0.1)
    momenta = sorted({given, 1 - given, 0.1, 0.01, 0.9, 0.99, 0.001, 0.999, 1.0})
    options = {(said, m): (1 - m) * old + m * new for said, new in seen.items() for m in momenta}
    a, b = which(ours, options, 1e-6), which(theirs, options, 1e-6)
    if a is None or b is None:
        return ""
    if a[1] != b[1]:
        return f"momentum: a new batch counts {a[1]:g} in JAX, {b[1]:g} in PyTorch (flax's momentum is 1 - PyTorch's)"
    return f"JAX takes {a[0]} into the running one, PyTorch {b[0]}"


# Entries of the table --------------------------------------------------------------------------------------------


def settings(evidence: Evidence) -> str:
    """Settings of the two layers that mean different things: epsilon, stride, padding, groups, negative slope, ..."""
    if evidence.calls is None:
        return ""
    ours, theirs = evidence.calls
    return "; ".join(differences(ours, theirs))


def weights(evidence: Evidence) -> str:
    """Parameters of one side that the other does not hold in any order."""
    if evidence.calls is None or not all(call.parameters for call in evidence.calls):
        return ""
    ours, theirs = (dict(call.parameters) for call in evidence.calls)
    if len(ours) > len(theirs) or any(array.size > LARGEST for array in (*ours.values(), *theirs.values())):
        return ""
    for name, array in ours.items():
        alike = [x for x in theirs.values() if x.size == array.size]
        if alike and not any(
            np.allclose(np.sort(x.ravel()), np.sort(array.ravel()), rtol=1e-5, atol=1e-7) for x in alike
        ):
            return f"its {name!r} holds other numbers than PyTorch's"
    return ""


def a_cast(evidence: Evidence) -> str:
    """Fewer digits on one side."""
    if not evidence.comparable:
        return ""
    kinds = {"JAX": precision_of(evidence.ours), "PyTorch": precision_of(evidence.theirs)}
    coarsest = min(kinds.values(), key=["bfloat16", "float16", "float32", "float64"].index)
    if relative_error(evidence.ours, evidence.theirs) > DIGITS.get(coarsest, 0.0):
        return ""  # numbers that only happen to have few digits, such as parameters
    for side, other in (("JAX", "PyTorch"), ("PyTorch", "JAX")):
        if kinds[side] in ("bfloat16", "float16", "float32") and kinds[side] != kinds[other] and evidence.exact:
            return f"a cast to {kinds[side]} left in {side}"
        if kinds[side] in ("bfloat16", "float16") and kinds[other] not in ("bfloat16", "float16"):
            return f"a cast to {kinds[side]} left in {side}"
    return ""


def dropout(evidence: Evidence) -> str:
    """Some numbers zero on one side, the others larger by one factor."""
    if not evidence.comparable:
        return ""
    ours, theirs = evidence.ours, evidence.theirs
    both = (ours != 0) & (theirs != 0)
    if min((ours[theirs != 0] == 0).sum(), (theirs[ours != 0] == 0).sum()) > 2 and both.any():
        factors = ours[both] / theirs[both]
        return "dropout is active on both sides" if np.ptp(factors) <= 1e-4 * np.abs(factors).max() else ""
    for side, a, b in (("JAX", ours, theirs), ("PyTorch", theirs, ours)):
        dropped = (a == 0) & (b != 0)
        kept = (a != 0) & (b != 0)
        share = float(dropped.mean())
        if 0 < share < 1 and kept.any():
            factors = a[kept] / b[kept]
            if (
                factors.min() > 1
                and np.ptp(factors) <= 1e-4 * factors.max()
                and abs(1 - 1 / factors.mean() - share) < 0.25
            ):
                return f"dropout is active in {side} (rate {1 - 1 / factors.mean():.2g})"
    return ""


def activation(evidence: Evidence) -> str:
    """Another elementwise function, or softmax along another axis, of something before."""
    return _experiments(evidence, lambda x: variants.activations(x), "{ours} in JAX, {theirs} in PyTorch")


def residual(evidence: Evidence) -> str:
    """Something before it added on one side alone, or one thing instead of another."""
    if not evidence.comparable:
        return ""
    difference = difference_of(evidence)
    fitting = {name: x for name, x in shaped(evidence) if x.any() and " + " not in name}
    for name, x in fitting.items():
        factor = float((difference * x).sum() / (x * x).sum())
        if relative_error(factor * x, difference) <= evidence.close:
            more, less = ("JAX", "PyTorch") if factor > 0 else ("PyTorch", "JAX")
            return f"{more} adds {_times(abs(factor))}`{name}`, {less} does not"
    for (one, x), (other, y) in permutations(fitting.items(), 2):
        if relative_error(x - y, difference) <= evidence.close:
            return f"JAX adds `{one}` where PyTorch adds `{other}`"
    return ""


def norm(evidence: Evidence) -> str:
    """Another epsilon, in the root or beside it, over other axes, with another variance."""
    is_norm = evidence.calls is not None and "norm" in f"{evidence.calls[0].kind}{evidence.calls[1].kind}".lower()
    if not evidence.comparable or (evidence.calls is not None and not is_norm) or evidence.ours.ndim < 2:
        return ""
    size = evidence.ours[0].size
    if len(evidence.ours) * size > MANY and size <= MANY:  # each example is normalised by itself
        some = slice(MANY // size)
        sources = {name: x[some] for name, x in evidence.sources.items() if x.shape[:1] == evidence.ours.shape[:1]}
        evidence = replace(evidence, ours=evidence.ours[some], theirs=evidence.theirs[some], sources=sources)
    gain = _gain(evidence)
    groups = None if evidence.calls is None else evidence.calls[1].settings.get("num_groups")
    difference = difference_of(evidence)
    for _, x in shaped(evidence, most=3):
        found = variants.norms(x, groups)
        pair = pair_of({name: gain * array for name, array in found.items()}, difference, evidence.close)
        if pair:
            return told("normalised {ours} in JAX, {theirs} in PyTorch", pair)
    return ""


def products(evidence: Evidence) -> str:
    """Scale and shift, or the halves of a gate, in another order."""
    if not evidence.comparable:
        return ""
    width = evidence.ours.shape[-1]
    difference = difference_of(evidence)
    for name, packed in evidence.sources.items():
        if packed.ndim < 2 or packed.shape[-1] != 2 * width:
            continue
        try:
            a, b = (
                np.broadcast_to(_raised(half, evidence.ours.ndim), evidence.ours.shape)
                for half in np.split(packed, 2, -1)
            )
        except ValueError:
            continue
        hs: list[np.ndarray | None] = [None]
        for _, x in shaped(evidence, most=3):
            hs += [x, *variants.norms(x).values()][:40]
        for h in hs:
            pair = pair_of(variants.products(a, b, h), difference, evidence.close)
            if pair:
                return told(f"of `{name}`: {{ours}} in JAX, {{theirs}} in PyTorch", pair)
    return ""


def attention(evidence: Evidence) -> str:
    """Order of q, k, v; heads packed or merged otherwise; scale; softmax's axis; mask."""
    if not evidence.comparable or evidence.ours.ndim < 3 or evidence.ours.size > 20_000:
        return ""
    target_ours, target_theirs = (_tokens(x) for x in (evidence.ours, evidence.theirs))
    batch, length, width = target_theirs.shape
    named = {name: _tokens(x) for name, x in evidence.sources.items() if x.ndim >= 3}
    packed = [[x] for x in named.values() if x.shape == (batch, length, 3 * width)]
    apart = [x for x in named.values() if x.shape == (batch, length, width)][:3][::-1]
    for sources in [*packed, *([apart] if len(apart) == 3 else [])]:
        found: dict[str, dict[str, str]] = {}
        for said, result in variants.attentions(sources, width):
            for side, target in (("theirs", target_theirs), ("ours", target_ours)):
                if side not in found and relative_error(result, target) <= evidence.close:
                    found[side] = said
            if len(found) == 2:
                ours, theirs = found["ours"], found["theirs"]
                told = [
                    f"{key} {ours[key]} in JAX, {theirs[key]} in PyTorch" for key in ours if ours[key] != theirs[key]
                ]
                return f"attention: {'; '.join(told)}"
    return ""


def embedding(evidence: Evidence) -> str:
    """Sinusoidal embeddings: sines or cosines first, other frequencies."""
    if not evidence.comparable or evidence.ours.ndim != 2:
        return ""
    for _, t in evidence.sources.items():
        if t.shape == evidence.ours.shape[:1]:
            found = variants.embeddings(t.astype(np.float64), evidence.ours.shape[1])
            ours, theirs = (which(x, found, max(evidence.close, 1e-5)) for x in (evidence.ours, evidence.theirs))
            if ours and theirs:
                return told("sinusoidal embedding: {ours} in JAX, {theirs} in PyTorch", (ours, theirs))
    return ""


def resizing(evidence: Evidence) -> str:
    """Nearest or bilinear, align_corners, max or average pooling."""
    if not evidence.comparable or evidence.ours.ndim != 4:
        return ""
    height, width = evidence.ours.shape[1:3]
    for _, x in evidence.sources.items():
        if (
            x.ndim == 4
            and x.shape[0] == len(evidence.ours)
            and x.shape[-1] == evidence.ours.shape[-1]
            and x.shape[1] != height
        ):
            pair = pair_of(variants.resized(x, (height, width)), difference_of(evidence), evidence.close)
            if pair:
                return told("resized by {ours} in JAX, {theirs} in PyTorch", pair)
    return ""


def convolution(evidence: Evidence) -> str:
    """Padding, a kernel turned round or transposed, a bias left out."""
    if evidence.calls is None or not evidence.comparable or evidence.ours.ndim != 4:
        return ""
    theirs = evidence.calls[1]
    x, kernel = next(iter(evidence.sources.values()), None), theirs.parameters.get("weight")
    if x is None or kernel is None or x.ndim != 4 or kernel.ndim != 4 or x.size > LARGEST:
        return ""
    stride, padding, dilation = (_single(theirs.settings.get(name, 1)) for name in ("stride", "padding", "dilation"))
    bias = theirs.parameters.get("bias")
    if bias is not None and relative_error(evidence.ours + bias, evidence.theirs) <= evidence.close:
        return "the bias is left out in JAX"
    if "Transpose" in theirs.kind:
        found = variants.transposed_convolutions(x, kernel, stride, padding)
    else:
        found = variants.convolutions(x, kernel, stride, int(theirs.settings.get("groups", 1)), dilation)
    shape = evidence.ours.shape
    pair = pair_of({name: y for name, y in found.items() if y.shape == shape}, difference_of(evidence), evidence.close)
    return told("convolved with {ours} in JAX, {theirs} in PyTorch", pair) if pair else ""


def linear(evidence: Evidence) -> str:
    """A weight that is transposed, or a bias left out."""
    if evidence.calls is None or not evidence.comparable:
        return ""
    theirs = evidence.calls[1]
    x, weight, bias = (
        next(iter(evidence.sources.values()), None),
        theirs.parameters.get("weight"),
        theirs.parameters.get("bias"),
    )
    fits = bias is not None and bias.shape == evidence.ours.shape[-1:]
    if fits and relative_error(evidence.ours + bias, evidence.theirs) <= evidence.close:
        return "the bias is left out in JAX"
    if (
        x is None
        or weight is None
        or weight.ndim != 2
        or x.shape[-1:] != weight.shape[:1]
        or weight.shape[0] != weight.shape[1]
    ):
        return ""
    crossed = x @ weight + (0 if bias is None else bias)
    return "the weight is transposed" if relative_error(crossed, evidence.ours) <= evidence.close else ""


def order_of_channels(evidence: Evidence) -> str:
    """The same numbers in another order: flattened in another order of axes, parts put together in another order."""
    if not evidence.comparable or evidence.ours.ndim < 2:
        return ""
    for axis in range(evidence.ours.ndim - 1, 0, -1):
        size = evidence.ours.shape[axis]
        flat = [np.moveaxis(x, axis, 0).reshape(size, -1) for x in (evidence.ours, evidence.theirs)]
        if size > 4096 or size < 3:
            continue
        few = [x[:, :4] for x in flat]
        for said, order in _orders(size):
            moved = not np.array_equal(order, np.arange(size))
            likely = moved and relative_error(few[0], few[1][order]) <= evidence.close
            if likely and relative_error(flat[0], flat[1][order]) <= evidence.close:
                return said
        for shift in range(1, size):
            if relative_error(flat[0], np.roll(flat[1], shift, 0)) <= evidence.close:
                return (
                    f"parts of a concatenation stand in another order (the first {shift} of JAX's are PyTorch's last)"
                )
    return ""


def scale(evidence: Evidence) -> str:
    """One number times the other side's: the root of a width, such as attention's scale."""
    if not evidence.comparable or not evidence.theirs.any():
        return ""
    a, b = evidence.ours.astype(np.float64), evidence.theirs.astype(np.float64)
    factor = float((a * b).sum() / (b * b).sum())
    if a.size < 2 or relative_error(a, factor * b) > evidence.close or abs(factor) < 1e-6 or abs(factor - 1) < 1e-6:
        return ""
    if abs(factor + 1) < 1e-6:
        return "a sign"
    for value, said in ((factor, "{}"), (1 / factor, "1/{}")):
        square = value * value
        if value > 0 and abs(value - round(value)) > 1e-6 and abs(square - round(square)) < 1e-4 * square:
            return f"a scale of {said.format(f'sqrt({round(square)})')} that PyTorch does not have, such as attention's"
    return f"a factor of {factor:.6g}"


CAUSES: tuple[Callable[[Evidence], str], ...] = (
    settings,
    weights,
    dropout,
    a_cast,
    embedding,
    order_of_channels,
    linear,
    convolution,
    resizing,
    residual,
    activation,
    norm,
    products,
    attention,
    scale,
)
"""The table, the surer entries first."""


# Helpers -----------------------------------------------------------------------------------------------------------


def _experiments(evidence: Evidence, compute: Callable[[np.ndarray], variants.Variants], words: str) -> str:
    if not evidence.comparable:
        return ""
    for name, x in shaped(evidence):
        with np.errstate(over="ignore", invalid="ignore"):
            pair = pair_of(compute(x), difference_of(evidence), evidence.close)
        if pair:
            where = "" if evidence.calls else f" (of `{name}`)"
            return told(words, pair) + where
    return ""


def _times(factor: float) -> str:
    return "" if abs(factor - 1) < 1e-6 else f"{factor:g} times "


def _gain(evidence: Evidence) -> np.ndarray | float:
    if evidence.calls is None:
        return 1.0
    gain = evidence.calls[1].parameters.get("weight")
    return gain if gain is not None and gain.shape == evidence.ours.shape[-1:] else 1.0


def _raised(half: np.ndarray, rank: int) -> np.ndarray:
    """(B, C) as (B, 1, ..., C)."""
    if half.ndim >= rank:
        return half
    return half.reshape(half.shape[0], *(1,) * (rank - half.ndim), *half.shape[1:])


def _tokens(x: np.ndarray) -> np.ndarray:
    return x.reshape(x.shape[0], math.prod(x.shape[1:-1]), x.shape[-1])


def _single(value: Any) -> int:
    value = value[0] if isinstance(value, tuple) else value
    return int(value) if isinstance(value, int | float) else 0


def _orders(size: int) -> Iterator[tuple[str, np.ndarray]]:
    """Orders of so many numbers that come of flattening two or three axes in another order."""
    divisors = [d for d in range(2, size) if size % d == 0]
    for a in divisors:
        yield f"two axes ({a}, {size // a}) are flattened in another order", np.arange(size).reshape(a, -1).T.ravel()
    for a, b in combinations(divisors, 2):
        for x, y in ((a, b), (b, a), (a, a)):
            if size % (x * y) == 0 and size // (x * y) > 1:
                cube = np.arange(size).reshape(x, y, -1)
                for order in ((0, 2, 1), (1, 0, 2), (2, 1, 0), (1, 2, 0), (2, 0, 1)):
                    said = f"three axes {cube.shape} are flattened in another order"
                    yield said, cube.transpose(order).ravel()
