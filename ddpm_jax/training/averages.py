"""Averages of the parameters by power functions, several lengths at once, and averages of other lengths made of them afterwards.

The average after t steps weighs what the parameters were at tau by (gamma + 1) tau^gamma / t^(gamma + 1). It looks back over a
share of the training so far; its length is the deviation of that profile over t (Karras et al. 2024, section 3).
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from ddpm_jax.checks import number
from ddpm_jax.errors import UserError

Kept = tuple[Any, float]
"""An average: after how many steps, and of which length."""
LONGEST = 0.28
"""Above it a profile would rise towards the beginning: that of gamma = 0, the plain mean, has the length 1 / sqrt(12)."""


def exponent(length: float) -> float:
    """gamma of a relative length sigma_rel = sqrt((gamma + 1) / ((gamma + 2)^2 (gamma + 3))) (Karras et al. 2024, eq. 123-126).

    Raises:
        UserError: a length outside (0, 0.28].
    """
    if not 0 < number("length", length) <= LONGEST:
        raise UserError(f"length must lie in (0, {LONGEST}], as a share of the training; got {length:g}.")
    inverse = length**-2
    roots = np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse])
    return float(roots.real.max())


def lengths_of(ema: Any) -> tuple[float, ...]:
    """The lengths of power-function averages; none where `ema` is a decay.

    Raises:
        UserError: a decay outside [0, 1), no lengths, or lengths out of range.
    """
    if isinstance(ema, int | float):
        if not 0 <= ema < 1:
            raise UserError(f"ema must lie in [0, 1), or be lengths of averages; got {ema}.")
        return ()
    if not ema:
        raise UserError("ema must be a decay, or one or more lengths of averages; got none.")
    for length in ema:
        exponent(length)
    return tuple(ema)


def decays(step: Any, ema: Any) -> list[Any]:
    """What each average keeps of itself in the update after `step` others: beta of `lengths_of(ema)`, or the decay's.

    A decay warms up as (1 + step) / (10 + step), at most itself. A length's is (1 - 1 / t)^(gamma + 1), t = step + 1 (eq. 127), so
    that the first update leaves nothing of what was there before.
    """
    step = jnp.asarray(step, float)  # a quotient of int32s would be float32 even where float64 is in use
    lengths = lengths_of(ema)
    if not lengths:
        return [jnp.minimum(ema, (1 + step) / (10 + step))]
    return [(1 - 1 / (step + 1)) ** (exponent(length) + 1) for length in lengths]


def overlap(one: Kept, two: Kept) -> float:
    """The inner product of two profiles, each (step, length) (Karras et al. 2024, appendix C.3)."""
    (first, gamma), (later, other) = sorted((step, exponent(length)) for step, length in (one, two))
    return (gamma + 1) * (other + 1) * first**other / ((gamma + other + 1) * later ** (other + 1))


def shares(kept: Sequence[Kept], step: int, length: float) -> tuple[np.ndarray, float]:
    """How much of each kept average, (step, length), makes the average of another length at a step: the least squares of their
    profiles (Karras et al. 2024, section 3.2 and algorithm 3).

    Returns:
        The shares, and how far the profile that they make is from the one wanted, as a share of its own norm.

    Raises:
        UserError: nothing is kept, or a length is out of range.
    """
    if not kept:
        raise UserError("kept must hold one average or more; got none.")
    products = np.array([[overlap(one, two) for two in kept] for one in kept])
    wanted = np.array([overlap(one, (step, length)) for one in kept])
    # profiles of neighbouring steps are nearly the same: scaled to one norm, and the smallest of the solutions
    norms = np.sqrt(np.diag(products))
    found = np.linalg.lstsq(products / norms / norms[:, None], wanted / norms, rcond=1e-14)[0] / norms
    own = overlap((step, length), (step, length))
    left = own - 2 * found @ wanted + found @ products @ found
    return found, float(np.sqrt(max(left, 0.0) / own))
