"""How objects show themselves: a line at a prompt, and HTML in a notebook."""

import base64
import dataclasses
import html
from collections.abc import Iterable, Mapping
from typing import Any

LONGEST = 120
"""Characters of one part of a line, at most."""
SHOWN = 4
"""Entries of a sequence that are shown, at most; the rest are counted."""


def line(name: Any, /, *parts: Any, **named: Any) -> str:
    """name(part, ..., key=part, ...), each part as `short` has it; a string among the parts stands as it is.

    name: a string, or an object whose class is meant.
    """
    told = [part if isinstance(part, str) else short(part) for part in parts if part != ""]
    told += [f"{key}={short(value)}" for key, value in named.items()]
    return f"{name if isinstance(name, str) else type(name).__name__}({', '.join(told)})"


def of_fields(self: Any) -> str:
    """The repr of a dataclass, or of a named tuple: its fields, without those that are at their defaults."""
    if isinstance(self, tuple):
        return line(self, **self._asdict())  # type: ignore[attr-defined]
    return line(self, **changed(self))


def changed(self: Any, *but: str) -> dict[str, Any]:
    """The fields of a dataclass that are not at their defaults, without those named."""
    found = {}
    for field in dataclasses.fields(self):
        value = getattr(self, field.name)
        if field.repr and field.name not in but and not _same(value, _default(field)):
            found[field.name] = value
    return found


def short(value: Any) -> str:
    """A value in a few characters: an array by its type and shape, a tree by how many numbers it holds, the rest by its repr."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return _array(value)
    if isinstance(value, str):
        return repr(value if len(value) <= LONGEST // 2 else f"{value[: LONGEST // 2]}…")
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        numbers = count(value)
        return f"{numbers:,} numbers" if numbers else f"{len(value)} entries"
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        shown = [short(part) for part in value[:SHOWN]]
        shown += [f"… {len(value)} in all"] if len(value) > SHOWN else []
        return f"({', '.join(shown)}{',' if len(value) == 1 else ''})"
    text = value.__qualname__ if callable(value) and hasattr(value, "__qualname__") else repr(value)
    text = " ".join(text.split())
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def count(tree: Any) -> int:
    """How many numbers the arrays of nested mappings hold."""
    if isinstance(tree, Mapping):
        return sum(map(count, tree.values()))
    return int(getattr(tree, "size", 0))


def _array(value: Any) -> str:
    if not value.shape:
        try:
            return short(value.item())
        except (AttributeError, RuntimeError, TypeError, ValueError):  # traced, abstract, deleted, or on another host
            pass
    return f"{value.dtype}[{','.join(map(str, value.shape))}]"


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default


def _same(value: Any, default: Any) -> bool:
    return value is default or (type(value) is type(default) and not hasattr(value, "shape") and value == default)


# HTML


def table(rows: Iterable[tuple[Any, ...]], *, heading: str = "") -> str:
    """Rows of cells, escaped, as an HTML table; the first cell of a row names it."""
    body = "".join(
        f"<tr><th>{_cell(first)}</th>{''.join(f'<td>{_cell(c)}</td>' for c in rest)}</tr>" for first, *rest in rows
    )
    caption = f"<caption>{html.escape(heading)}</caption>" if heading else ""
    return f"<table>{caption}{body}</table>"


def paragraph(text: str) -> str:
    """A line of text, escaped."""
    return f"<p>{html.escape(text)}</p>"


def picture(png: bytes, alt: str) -> str:
    """A PNG within the page itself; alt: what it shows, in words."""
    data = base64.b64encode(png).decode()
    return f'<img src="data:image/png;base64,{data}" alt="{html.escape(alt)}" style="max-width:100%">'


def options(config: Any) -> list[tuple[str, str]]:
    """A config's fields and values, in order, for `table`."""
    return [(field.name, short(getattr(config, field.name))) for field in dataclasses.fields(config)]


def _cell(value: Any) -> str:
    return html.escape(value if isinstance(value, str) else short(value))
