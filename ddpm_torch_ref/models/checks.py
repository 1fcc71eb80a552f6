"""Checks that networks make of their options and of their labels."""

from torch import Tensor


def check_counts(**counts: int | None) -> None:
    """Raise ValueError for a count below 1; None passes."""
    for name, count in counts.items():
        if count is not None and count < 1:
            raise ValueError(f"{name} must be at least 1; got {count}.")


def check_choice(argument: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raise ValueError for a value that is not allowed."""
    if value not in allowed:
        raise ValueError(f"{argument} must be one of {', '.join(allowed)}; got {value!r}.")


def check_divides(name: str, value: int, divisor: int, why: str) -> None:
    """Raise ValueError for a value that is not a positive multiple of divisor."""
    if value < 1 or value % divisor:
        raise ValueError(f"{name} must be a multiple of {divisor}, {why}; got {value}.")


def refuse_labels(labels: Tensor | None) -> None:
    """Raise ValueError for labels given to a network that does not take any."""
    if labels is not None:
        raise ValueError("labels must be None: this network takes no classes.")
