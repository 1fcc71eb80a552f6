"""Calls of modules that know no interception: their classes' `__call__` is replaced for a while."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def patched(kinds: Iterable[type], around: Callable[..., Any]) -> Iterator[None]:
    """While entered, a call of an object of these classes is around(call, self, args, kwargs).

    A subclass that calls its parent's `__call__` is one module, not two: what is reached by super() goes by.
    """

    def wrap(kind: type, call: Callable[..., Any]) -> Callable[..., Any]:
        def replaced(self: Any, *args: Any, **kwargs: Any) -> Any:
            return around(call, self, args, kwargs) if type(self) is kind else call(self, *args, **kwargs)

        return replaced

    originals = {kind: kind.__call__ for kind in set(kinds) if hasattr(kind, "__call__")}  # noqa: B004 - the class's own, not type's
    before = {kind: kind.__dict__.get("__call__") for kind in originals}  # None: inherited
    try:
        for kind, original in originals.items():
            kind.__call__ = wrap(kind, original)  # type: ignore[method-assign]
        yield
    finally:
        for kind, call in before.items():
            if call is None:
                del kind.__call__
            else:
                kind.__call__ = call  # type: ignore[method-assign]
