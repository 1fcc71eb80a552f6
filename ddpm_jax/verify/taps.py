"""`tap`: names an array inside any function, so that both sides' can be held to each other there."""

from contextvars import ContextVar
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class Listener(Protocol):
    """What a side's recorder does with a named array."""

    def tapped(self, name: str, value: Any) -> Any:
        """Take note of a value; returns it, or what the code is to go on with instead."""
        ...


listener: ContextVar[Listener | None] = ContextVar("listener", default=None)
"""Who listens at present; nobody outside a comparison."""


def tap(name: str, value: T) -> T:
    """Name a value in a function of JAX or PyTorch: `h = verify.tap("block1", h)`; it is returned as it is.

    name: what the value is called, alike on both sides (or mapped by names=). value: an array or tensor, or a structure of them.
    A name that is used again is numbered: "block1#2".
    """
    active = listener.get()
    return value if active is None else active.tapped(name, value)
