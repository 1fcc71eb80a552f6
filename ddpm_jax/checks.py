"""What an argument has to be, whoever passes it: a number, a whole number, a path; refused by name otherwise."""

import operator
import os
from pathlib import Path
from typing import Any

from ddpm_jax.errors import UserError


def whole(name: str, value: Any) -> int:
    """A whole number, of Python, NumPy or JAX.

    Raises:
        UserError: it is none.
    """
    try:
        return operator.index(value)
    except TypeError as error:
        raise UserError(f"{name} must be a whole number; got {value!r}.") from error


def number(name: str, value: Any) -> float:
    """A number; text that reads as one is none.

    Raises:
        UserError: it is none.
    """
    try:
        if isinstance(value, str | bytes):
            raise TypeError
        return float(value)
    except (TypeError, ValueError) as error:
        raise UserError(f"{name} must be a number; got {value!r}.") from error


def path(name: str, value: Any) -> Path:
    """A path, also one that is given as text.

    Raises:
        UserError: it is neither.
    """
    if not isinstance(value, str | os.PathLike):
        raise UserError(f"{name} must be a path; got {value!r}.")
    return Path(value)
