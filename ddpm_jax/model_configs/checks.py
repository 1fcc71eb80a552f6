"""The checks that the options of several networks share."""

from typing import Any

from ddpm_jax.errors import UserError


def at_least_1(config: object, *names: str) -> None:
    """Raise UserError where one of these options is below 1."""
    for name in names:
        if getattr(config, name) < 1:
            raise UserError(f"{name} must be at least 1; got {getattr(config, name)}.")


def divides(config: object, name: str, divisor: int) -> None:
    """Raise UserError where an option is no multiple of the divisor."""
    if getattr(config, name) % divisor:
        raise UserError(f"{name} must be divisible by {divisor}; got {getattr(config, name)}.")


def even_dim(config: Any) -> None:
    """Raise UserError where dim, the width of the sinusoids of t, is odd or below 4."""
    if config.dim % 2 or config.dim < 4:
        raise UserError(f"dim must be even and at least 4; got {config.dim}.")


def for_each_level(config: object, name: str) -> None:
    """Raise UserError where an option is not one or more positive integers."""
    numbers = getattr(config, name)
    if not numbers or min(numbers) < 1:
        raise UserError(f"{name} must be positive integers, one for each level; got {numbers}.")


def droppable(config: Any) -> None:
    """Raise UserError where dropout lies outside [0, 1)."""
    if not 0 <= config.dropout < 1:
        raise UserError(f"dropout must lie in [0, 1); got {config.dropout:g}.")
