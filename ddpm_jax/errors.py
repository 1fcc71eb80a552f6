"""The one error that a user's mistake raises; the command line prints its message without a traceback. And what was meant."""

import contextlib
import difflib
from collections.abc import Iterable, Iterator
from typing import Any


class UserError(ValueError):
    """Something the caller asked for cannot be done; the message names it and says what is allowed."""


class NotFiniteError(UserError):
    """Samples, or figures of them, hold NaN or infinity; nothing was made of them."""


def kind_of(value: Any) -> str:
    """What an argument of the wrong kind is, in words: "the class UNet", "the function adam", "a float"."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if callable(value) and hasattr(value, "__name__"):
        return f"the function {value.__name__}"
    return f"a {type(value).__name__}"


@contextlib.contextmanager
def fits_memory(otherwise: str) -> Iterator[None]:
    """Raises a UserError that says `otherwise` where the memory of the host or of a device does not suffice for what is within."""
    try:
        yield
    except MemoryError as error:
        raise UserError(otherwise) from error
    except RuntimeError as error:  # XLA's and PyTorch's own
        if not any(sign in str(error) for sign in ("RESOURCE_EXHAUSTED", "out of memory", "can't allocate memory")):
            raise
        raise UserError(otherwise) from error


def meant(word: object, known: Iterable[str]) -> str:
    """` Did you mean 'x'?`, for the one of the known words that a misspelt one resembles most; nothing where none does."""
    close = difflib.get_close_matches(str(word), list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""
