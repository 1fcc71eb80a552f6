"""Dotted paths of layers and arrays: renamed from one framework's to the other's, spelt alike, listed by patterns."""

import fnmatch
import re
from collections.abc import Iterable, Mapping


def dotted(path: str) -> str:
    """A path with the numbers that flax and haiku append to names apart: "layers_0.Dense_1" -> "layers.0.Dense.1"."""
    return re.sub(r"(?<=[A-Za-z])_(\d+)(?=\.|$)", r".\1", path.replace("/~/", ".").replace("/", "."))


def loosely(path: str) -> str:
    """A path in one spelling, so that flax's "Layers_0" and PyTorch's "layers.0" are the same."""
    return dotted(path).lower()


def prefixes(path: str) -> list[str]:
    """A path and all above it, the outermost first: "a", "a.b", "a.b.c"."""
    parts = path.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))]


def renamed(path: str, names: Mapping[str, str]) -> tuple[str, str | None]:
    """A path in PyTorch, and the entry of names that made it.

    names: {path, or regular expression: path}. Of those that fit the path's beginning that decides which fits most of it, and what
    is below follows; "" stands for all that is left. None: it is as it was.
    """
    found: tuple[int, str, str] | None = None
    for entry, name in names.items():
        if entry and (path == entry or path.startswith(f"{entry}.")):
            end, beginning = len(entry), name
        elif entry and (match := re.match(rf"(?:{entry})(?=\.|$)", path)):
            end, beginning = match.end(), match.expand(name)
        else:
            continue
        if found is None or end > found[0]:
            found = end, (beginning + path[end:]).lstrip("."), entry
    if found is not None:
        return found[1:]
    return (f"{names['']}.{path}".strip("."), "") if "" in names else (path, None)


def listed(name: str, patterns: Iterable[str]) -> bool:
    """Whether a name is one of those listed, or within one of them; patterns may hold wildcards, or be regular expressions."""
    return any(
        fnmatch.fnmatchcase(name, one) or fnmatch.fnmatchcase(name, f"{one}.*") or _fits(one, name) for one in patterns
    )


def _fits(pattern: str, name: str) -> bool:
    # "blocks.*" is a wildcard, and what is below blocks
    if not pattern.startswith(".*") and not set(pattern) & set(r"\()|+^${"):
        return False
    try:
        return re.fullmatch(rf"(?:{pattern})(?:\..*)?", name) is not None
    except re.error:
        return False
