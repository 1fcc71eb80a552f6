"""A layer's settings, read off its attributes: what the two sides' can be told apart by."""

import numbers
from typing import Any

import numpy as np

PLAIN = (bool, numbers.Number, str)


def settings_of(layer: Any) -> dict[str, Any]:
    """Numbers, words, functions' names, and tuples of them, by attribute."""
    found = {}
    for name, value in getattr(layer, "__dict__", {}).items():
        plain = _plain(value)
        if not name.startswith("_") and name not in ("training", "path") and plain is not None:
            found[name] = plain
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, tuple | list) and len(value) <= 8:
        parts = [_plain(part) for part in value]
        return tuple(parts) if all(part is not None for part in parts) else None
    if callable(value) and hasattr(value, "__name__") and not isinstance(value, type):
        return value.__name__
    return None
