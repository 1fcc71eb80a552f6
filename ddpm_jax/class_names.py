"""Classes by name: which one a word on the command line means.

A word is a class's name. Where no name is a number, a number is a position, from 0; where one is, numbers are names and nothing
else, so that `3` never means two classes.
"""

from collections.abc import Iterable, Sequence

from ddpm_jax.errors import UserError, meant

_SHOWN = 20


def class_index(word: str, names: Sequence[str], whose: str) -> int:
    """The position in `names` of the class that a word means.

    whose: the classes are, in messages.

    Raises:
        UserError: it means none of them (names the most like).
    """
    if word in names:
        return names.index(word)
    positions = not any(map(_is_number, names))
    if positions and _is_number(word) and int(word) < len(names):
        return int(word)
    shown = ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
    rule = f", or a position in 0..{len(names) - 1}" if positions else ""
    raise UserError(f"class {word!r} is none of {whose}'s {len(names)} classes: {shown}{rule}.{meant(word, names)}")


def check_distinct(names: Iterable[str], whose: str) -> None:
    """Raise UserError where two classes have one name."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise UserError(f"{whose}: the names of classes must differ; {name!r} is there twice.")
        seen.add(name)


def _is_number(word: str) -> bool:
    return word.isascii() and word.isdecimal()
