"""Whether two parameters were drawn from one distribution, and which one each looks like."""

import math

import numpy as np

LEAST = 1e-6
"""Probability, over all parameters, below which two draws are not of one distribution."""


def differ(ours: np.ndarray, theirs: np.ndarray, tests: int) -> str:
    """Why two initial values are not of one distribution, "" if they may be; tests: how many parameters are looked at."""
    from scipy import stats

    a, b = (np.asarray(array, np.float64).ravel() for array in (ours, theirs))
    told = f"JAX: {describe(ours)}; PyTorch: {describe(theirs)}"
    if np.ptp(a) == 0 or np.ptp(b) == 0:  # constants
        alike = a.size == b.size and np.ptp(a) == np.ptp(b) == 0 and a[0] == b[0]
        single = min(a.size, b.size) < 2
        return "" if alike or single else told
    if min(a.size, b.size) < 8:
        return ""
    return told if stats.ks_2samp(a, b).pvalue < LEAST / tests else ""


def describe(array: np.ndarray) -> str:
    """Mean and deviation, and the initialiser that they fit."""
    flat = np.asarray(array, np.float64).ravel()
    if np.ptp(flat) == 0:
        return f"all {flat[0]:.4g}"
    text = f"mean {flat.mean():.2g}, deviation {flat.std():.4g}"
    found = initialiser(np.asarray(array, np.float64))
    return f"{text} ({found})" if found else text


def initialiser(array: np.ndarray) -> str:
    """The usual initialiser that an array in PyTorch's order of axes fits; "" if none, or too few numbers to tell."""
    flat = array.ravel()
    if flat.size < 64 or array.ndim < 2:
        return ""
    fan_out, fan_in = array.shape[0] * math.prod(array.shape[2:]), math.prod(array.shape[1:])
    deviation, reach = float(flat.std()), float(np.abs(flat).max())
    known = {
        "kaiming_uniform(a=sqrt(5)), PyTorch's default": 1 / math.sqrt(3 * fan_in),
        "lecun, 1/sqrt(fan_in), flax's default": 1 / math.sqrt(fan_in),
        "kaiming, sqrt(2/fan_in)": math.sqrt(2 / fan_in),
        "xavier, sqrt(2/(fan_in + fan_out))": math.sqrt(2 / (fan_in + fan_out)),
        "normal, 0.02": 0.02,
        "normal, 1": 1.0,
        "1/sqrt(features)": 1 / math.sqrt(array.shape[1]),
    }
    error = 4 / math.sqrt(2 * flat.size)
    fits = [(abs(deviation / size - 1), name) for name, size in known.items() if abs(deviation / size - 1) < error]
    if not fits:
        return ""
    kind = "uniform" if reach < 1.75 * deviation else "truncated normal" if reach < 2.4 * deviation else "normal"
    return f"{min(fits, key=lambda fit: fit[0])[1]}; {kind}"
