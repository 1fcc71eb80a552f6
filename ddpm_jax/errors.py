"""The one error that a user's mistake raises; the command line prints its message without a traceback."""


class UserError(ValueError):
    """Something the caller asked for cannot be done; the message names it and says what is allowed."""
