"""Settings that JAX's libraries and PyTorch call differently, or give another default, brought to one meaning and compared."""

import math
from collections.abc import Iterator
from typing import Any

from ddpm_jax.verify.recording import Call

MEANINGS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "epsilon": (("epsilon", "eps"), ("eps", "epsilon", "variance_epsilon")),
    "groups of the norm": (("num_groups", "groups"), ("num_groups",)),
    "stride": (("strides", "stride"), ("stride",)),
    "dilation": (("kernel_dilation", "dilation"), ("dilation",)),
    "groups": (("feature_group_count", "groups"), ("groups",)),
    "negative slope": (("negative_slope",), ("negative_slope",)),
    "number of heads": (("num_heads", "n_heads"), ("num_heads", "n_heads")),
    "scale": (("scale",), ("scale",)),
}
"""meaning -> (attributes in JAX, attributes in PyTorch)."""


def differences(ours: Call, theirs: Call) -> list[str]:
    """Settings of two calls of one layer that mean different things, in words."""
    found = []
    for meaning, (mine, their) in MEANINGS.items():
        a, b = _first(ours, mine), _first(theirs, their)
        if meaning == "groups" and "norm" in ours.kind.lower():
            continue
        if a is not None and b is not None and not _same(a, b):
            found.append(f"{meaning} {_shown(a)} in JAX, {_shown(b)} in PyTorch")
    found += _padding(ours, theirs)
    return found


def _first(call: Call, names: tuple[str, ...]) -> Any:
    return next((call.settings[name] for name in names if call.settings.get(name) is not None), None)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, str) or isinstance(b, str):
        return bool(a == b)
    a, b = (tuple(x) if isinstance(x, tuple) else (x,) for x in (a, b))
    if len(a) == 1 or len(b) == 1:
        length = max(len(a), len(b))
        a, b = (x * length if len(x) == 1 else x for x in (a, b))
    return len(a) == len(b) and all(x == y or math.isclose(x, y, rel_tol=1e-6) for x, y in zip(a, b, strict=True))


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _padding(ours: Call, theirs: Call) -> Iterator[str]:
    """Paddings that put other numbers of rows at either end."""
    x, kernel = theirs.inputs.get("0"), theirs.parameters.get("weight")
    given = ours.settings.get("padding")
    if given is None or "padding" not in theirs.settings or x is None or kernel is None or "Transpose" in theirs.kind:
        return
    spatial = kernel.ndim - 2
    if spatial < 1 or x.ndim != kernel.ndim or theirs.settings.get("padding_mode", "zeros") != "zeros":
        return
    stride, dilation = (_spread(theirs.settings.get(name, 1), spatial) for name in ("stride", "dilation"))
    reach = [d * (k - 1) for d, k in zip(dilation, kernel.shape[2:], strict=True)]
    sizes = x.shape[2:]
    a, b = (_edges(padding, reach, stride, sizes) for padding in (given, theirs.settings["padding"]))
    if a is not None and b is not None and a != b:
        yield f"padding {given!r} puts {a[0]} at either end in JAX, {b[0]} in PyTorch"


def _spread(value: Any, times: int) -> list[int]:
    return [int(part) for part in value] if isinstance(value, tuple) else [int(value)] * times


def _edges(padding: Any, reach: list[int], stride: list[int], sizes: Any) -> list[tuple[int, int]] | None:
    """(before, after) along each axis."""
    if isinstance(padding, str):
        kind = padding.upper()
        if kind == "VALID":
            return [(0, 0)] * len(reach)
        if kind not in ("SAME", "SAME_LOWER"):
            return None
        totals = [max((math.ceil(n / s) - 1) * s + r + 1 - n, 0) for n, s, r in zip(sizes, stride, reach, strict=True)]
        edges = [(total // 2, total - total // 2) for total in totals]
        return edges if kind == "SAME" else [(b, a) for a, b in edges]
    if isinstance(padding, int):
        return [(padding, padding)] * len(reach)
    if len(padding) != len(reach):
        return None
    return [(part, part) if isinstance(part, int) else (part[0], part[1]) for part in padding]
