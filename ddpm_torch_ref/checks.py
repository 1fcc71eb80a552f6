"""Checks of arguments: those of several networks and processes."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
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


def check_clean_end(first: int, alphas_cumprod: NDArray[np.float64]) -> None:
    """Raise ValueError for a chain that does not end at clean data, of which the bound is."""
    if first > 0 and alphas_cumprod[0] != 1:
        raise ValueError(f"alphas_cumprod[0] must be 1 for the bound, which is of clean data; got {alphas_cumprod[0]}.")


def check_divides(name: str, value: int, divisor: int, why: str) -> None:
    """Raise ValueError for a value that is not a positive multiple of divisor."""
    if value < 1 or value % divisor:
        raise ValueError(f"{name} must be a multiple of {divisor}, {why}; got {value}.")


def check_dim(dim: int) -> None:
    """Raise ValueError for a base width that the sines and cosines of t cannot share."""
    if dim < 4 or dim % 2:
        raise ValueError(f"dim must be even and at least 4, for the sines and cosines of t; got {dim}.")


def check_dim_mults(dim_mults: Sequence[int]) -> None:
    """Raise ValueError where there is no level, or one without a width."""
    if len(dim_mults) == 0 or min(dim_mults) < 1:
        raise ValueError(f"dim_mults must be one or more numbers of at least 1; got {tuple(dim_mults)}.")


def check_dropout(dropout: float) -> None:
    """Raise ValueError for a probability that would leave nothing."""
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must lie in [0, 1); got {dropout}.")


def refuse_labels(labels: Tensor | None) -> None:
    """Raise ValueError for labels given to a network that does not take any."""
    if labels is not None:
        raise ValueError("labels must be None: this network takes no classes.")
