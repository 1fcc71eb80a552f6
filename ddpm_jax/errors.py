"""The one error that a user's mistake raises; the command line prints its message without a traceback."""

import contextlib
from collections.abc import Iterator


class UserError(ValueError):
    """Something the caller asked for cannot be done; the message names it and says what is allowed."""


class NotFiniteError(UserError):
    """Samples, or figures of them, hold NaN or infinity; nothing was made of them."""


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
