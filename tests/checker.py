"""What `--jaxtyping-packages` checks the package's annotations with, while it is tested."""

from collections.abc import Callable
from typing import Any

from beartype import beartype


def outermost(function: Callable[..., Any]) -> Callable[..., Any]:
    """By beartype, but for functions within others, which would be made anew in each call of those: a tenth of the tests' time."""
    return function if "<locals>" in getattr(function, "__qualname__", "") else beartype(function)
