"""What `--jaxtyping-packages` checks the package's annotations with, while it is tested."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jaxtyping
from beartype import beartype


def outermost(function: Callable[..., Any]) -> Callable[..., Any]:
    """By beartype, but for functions within others, which would be made anew in each call of those: a tenth of the tests' time."""
    return function if "<locals>" in getattr(function, "__qualname__", "") else beartype(function)


@contextmanager
def unchecked() -> Iterator[None]:
    """Nothing is checked meanwhile."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)
