"""What an argument has to be, whoever passes it: a number, a whole number, a path; refused by name otherwise."""

import operator
import os
from collections.abc import Callable
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


def leaf(name: str, value: Any, allowed: Callable[[float], bool], words: str) -> None:
    """Refuses a number of a pytree that is not allowed; what JAX has in its place, traced or not, is trusted.

    Raises:
        UserError: it is no number, or not allowed: name must `words`.
    """
    if hasattr(value, "weak_type") or type(value) is object:  # the latter stands for a leaf where a tree is rebuilt
        return
    if not allowed(number(name, value)):
        raise UserError(f"{name} must {words}; got {value:g}.")
