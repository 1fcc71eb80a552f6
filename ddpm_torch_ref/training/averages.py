"""Averages of the parameters whose weights grow as a power of the step, and averages of other lengths made of several of them.

After t steps the parameters of step tau weigh p(tau) = (gamma + 1) tau^gamma / t^(gamma + 1), a profile on [0, t]; its standard
deviation divided by t is the average's length.

Karras et al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion Models", section 3 and appendix C.
"""

from collections.abc import Sequence
from math import sqrt

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

LONGEST = 0.28
"""Of the lengths: with gamma = 0, where all steps weigh the same, it is 1/sqrt(12)."""


def exponent(length: float) -> float:
    """gamma of a length.

    Raises:
        ValueError: length outside (0, LONGEST].
    """
    if not 0 < length <= LONGEST:
        raise ValueError(f"length must lie in (0, {LONGEST}]; got {length}.")

    def too_long(gamma: float) -> float:
        # The deviation of the power function's distribution on [0, 1], whose mean is (gamma + 1)/(gamma + 2).
        return sqrt((gamma + 1) / (gamma + 3)) / (gamma + 2) - length

    return float(brentq(too_long, 0.0, 2 / length, xtol=1e-13, rtol=1e-14))


def lengths_of(ema: float | Sequence[float]) -> tuple[float, ...]:
    """The lengths of power-function averages; none for a decay.

    Raises:
        ValueError: a decay outside [0, 1), or a length out of range.
    """
    if isinstance(ema, int | float):
        if not 0 <= ema < 1:
            raise ValueError(f"ema must lie in [0, 1); got {ema}.")
        return ()
    if len(ema) == 0:
        raise ValueError("ema must be a decay, or at least one length; got none.")
    for length in ema:
        exponent(length)
    return tuple(ema)


def decays(step: int, ema: float | Sequence[float]) -> list[float]:
    """What each average keeps of itself in the update after `step` others.

    A decay is min(ema, (1 + step)/(10 + step)); that of a length is (1 - 1/t)^(gamma + 1) in the t-th update (eq. 6).
    """
    lengths = lengths_of(ema)
    if not lengths:
        return [min(float(ema), (1 + step) / (10 + step))]  # type: ignore[arg-type]
    return [(step / (step + 1)) ** (1 + exponent(length)) for length in lengths]


def overlap(one: tuple[float, float], two: tuple[float, float]) -> float:
    """The integral of the product of two profiles, each told by (step, length).

    Up to the earlier of the two steps, both are there: int tau^(a + b) from 0 to t = t^(a + b + 1)/(a + b + 1).
    """
    (s, a), (t, b) = (one[0], exponent(one[1])), (two[0], exponent(two[1]))
    end = min(s, t)
    # In ratios, as powers of a step soon leave what floating point holds.
    return (a + 1) * (b + 1) / (a + b + 1) * (end / s) ** a * (end / t) ** b * end / (s * t)


def shares(kept: Sequence[tuple[float, float]], step: float, length: float) -> tuple[NDArray[np.float64], float]:
    """(n,) shares of the n averages kept, each told by (step, length), that make the average of another length.

    The profile that they make together is the nearest to the wanted one (algorithm 3).

    Args:
        kept: at least one.
        step: of the average that is wanted.
        length: its length.

    Returns:
        The shares, and the distance of the profiles divided by the wanted one's norm.

    Raises:
        ValueError: nothing is kept, or a length out of range.
    """
    if len(kept) == 0:
        raise ValueError("kept must be at least one average; got none.")
    aim = (step, length)
    scale = np.array([sqrt(overlap(one, one)) for one in kept])
    gram = np.array([[overlap(one, two) for two in kept] for one in kept]) / np.outer(scale, scale)
    wanted = np.array([overlap(one, aim) for one in kept]) / scale
    solution = np.linalg.pinv(gram, rcond=1e-14, hermitian=True) @ wanted
    norm = overlap(aim, aim)
    apart = norm - 2 * solution @ wanted + solution @ gram @ solution
    return solution / scale, sqrt(max(apart, 0.0) / norm)
