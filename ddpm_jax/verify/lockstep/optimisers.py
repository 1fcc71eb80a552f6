"""Which formula an update followed, found from its numbers: the optimiser's form, its rate, and its weight decay."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ddpm_jax.verify.lockstep.history import Arrays, History

EPSILONS = (1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-10, 1e-12, 1e-16, 0.0)
"""Values that are tried, beside PyTorch's own."""
MOST = 2_000
"""Numbers of one parameter that a fit looks at."""


@dataclass(frozen=True)
class Form:
    """A formula that an update may follow."""

    name: str
    """In words, to be read after "JAX: " or "PyTorch: "."""
    direction: Callable[[Arrays, int], np.ndarray]
    """(what is remembered of one parameter, number of the step from 1) -> the update for a rate of 1."""


@dataclass(frozen=True)
class Update:
    """An update that was understood: parameters moved by -rate * direction - decay * parameter."""

    form: str
    """Name of the form."""
    rate: float
    """The factor of the direction."""
    decay: dict[str, float]
    """By parameter."""
    residual: float
    """Relative size of what the formula does not explain."""


def forms(settings: dict[str, Any], kinds: set[str]) -> Iterator[Form]:
    """The formulas that fit what an optimiser remembers; settings: PyTorch's, for the betas and epsilon."""
    own = settings.get("eps", 1e-8)
    epsilons = [own, *(eps for eps in EPSILONS if eps != own)]
    if {"first", "second"} <= kinds:
        for eps in epsilons:
            yield from _adam(eps, *settings.get("betas", (0.9, 0.999)))
    elif "second" in kinds or "sum" in kinds:
        name = "second" if "second" in kinds else "sum"
        for eps in epsilons:
            yield from _scaled(eps, name)
    elif "momentum" in kinds:
        factor = settings.get("momentum", 0.9)
        yield Form("plain momentum", lambda m, t: m["momentum"])
        yield Form("Nesterov's momentum", lambda m, t: m["fed"] + factor * m["momentum"])
    else:
        yield Form("plain gradient descent", lambda m, t: m["fed"])


def _scaled(eps: float, name: str) -> Iterator[Form]:
    """Gradients divided by a root: RMSprop, Adagrad."""
    yield Form(f"epsilon {eps:g} outside the root", lambda m, t: m["fed"] / _safe(np.sqrt(m[name]) + eps))
    yield Form(f"epsilon {eps:g} inside the root", lambda m, t: m["fed"] / _safe(np.sqrt(m[name] + eps)))


def _safe(array: np.ndarray) -> np.ndarray:
    return np.where(array == 0, 1.0, array)


def _adam(eps: float, b1: float, b2: float) -> Iterator[Form]:
    def outside(m: Arrays, t: int) -> np.ndarray:
        return m["first"] / (1 - b1**t) / _safe(np.sqrt(m["second"] / (1 - b2**t)) + eps)

    def inside(m: Arrays, t: int) -> np.ndarray:
        return m["first"] / (1 - b1**t) / _safe(np.sqrt(m["second"] / (1 - b2**t) + eps))

    def early(m: Arrays, t: int) -> np.ndarray:
        return m["first"] / (1 - b1**t) / _safe((np.sqrt(m["second"]) + eps) / np.sqrt(1 - b2**t))

    def uncorrected(m: Arrays, t: int) -> np.ndarray:
        return m["first"] / _safe(np.sqrt(m["second"]) + eps)

    def first_alone(m: Arrays, t: int) -> np.ndarray:
        return uncorrected(m, t) / (1 - b1**t)

    def second_alone(m: Arrays, t: int) -> np.ndarray:
        return m["first"] / _safe(np.sqrt(m["second"] / (1 - b2**t)) + eps)

    def nesterov(m: Arrays, t: int) -> np.ndarray:
        ahead = b1 * m["first"] / (1 - b1 ** (t + 1)) + (1 - b1) * m["fed"] / (1 - b1**t)
        return ahead / _safe(np.sqrt(m["second"] / (1 - b2**t)) + eps)

    yield Form(f"epsilon {eps:g} outside the root", outside)
    yield Form(f"epsilon {eps:g} inside the root", inside)
    yield Form(f"epsilon {eps:g} added before the bias correction", early)
    yield Form("no bias correction", uncorrected)
    yield Form("bias correction of the first moment alone", first_alone)
    yield Form("bias correction of the second moment alone", second_alone)
    yield Form("a step counted one too late in the bias correction", lambda m, t: outside(m, t + 1))
    if eps:
        yield Form("Nesterov's momentum (NAdam)", nesterov)


def understood(
    history: History, index: int, settings: dict[str, Any], rates: dict[str, float], *, precise: bool
) -> Update | None:
    """The formula of a step's update, with its rate and weight decay; None: it is none that is known.

    rates: expected, by parameter; of formulas that differ by a factor alone, that with the expected rate is taken. precise: in
    float64, where an epsilon shows.
    """
    step, before = history.steps[index], history.before(index)
    enough = 1e-9 if precise else 2e-4
    moved = [name for name in step.params if np.any(step.params[name] != before.params[name])]
    if not moved:
        return None
    data = {name: _remembered(step, before, name, settings if history.side == "PyTorch" else {}) for name in moved}
    for name in moved if "momentum" in step.moments else ():  # what it took up, weight decay included
        old = before.moments.get("momentum", {}).get(name, np.zeros_like(step.params[name]))
        taken = step.moments["momentum"][name] - settings.get("momentum", 0.9) * old
        data[name]["fed"] = _some(taken)
    expected = rates if all(rates.get(name) for name in moved) else dict.fromkeys(moved, 1.0)
    top = max(expected[name] for name in moved)
    scales = {name: expected[name] / top for name in moved}
    found = [
        update for form in forms(settings, set(step.moments)) if (update := _fitted(form, data, scales, index + 1))
    ]
    found = [update for update in found if update.residual < enough]
    if not found:
        return None
    best = min(update.residual for update in found)
    found = [update for update in found if update.residual <= max(10 * best, enough / 1e4)]
    return min(found, key=lambda update: abs(update.rate / top - 1) > 1e-6)  # the first with the rate, or the first


def _remembered(step: Any, before: Any, name: str, settings: dict[str, Any]) -> Arrays:
    """What a fit needs of one parameter, in float64."""
    arrays = {kind: found[name] for kind, found in step.moments.items() if name in found}
    fed = (step.fed or step.gradients).get(name, np.zeros_like(step.params[name]))
    if not step.moments and settings.get("coupled"):  # nothing tells it from decay apart
        fed = fed - settings["decay"].get(name, 0.0) * before.params[name]
    arrays |= {"fed": fed, "before": before.params[name], "after": step.params[name]}
    return {kind: _some(array) for kind, array in arrays.items()}


def _some(array: np.ndarray) -> np.ndarray:
    """Its numbers in float64; some of them, if it has very many."""
    return np.asarray(array, np.float64).ravel()[:: max(1, array.size // MOST)]


def _fitted(form: Form, data: dict[str, Arrays], scales: dict[str, float], t: int) -> Update | None:
    """Rate and decay by least squares: one rate for all, a decay for each parameter."""
    moves, directions, sizes = {}, {}, {}
    for name, arrays in data.items():
        try:
            directions[name] = scales[name] * form.direction(arrays, t)
        except KeyError:  # this parameter is remembered in another way
            return None
        moves[name], sizes[name] = arrays["after"] - arrays["before"], arrays["before"]
    # what the parameters' own direction explains is taken out of both first
    top = bottom = total = 0.0
    for name in data:
        d, y = _without(directions[name], sizes[name]), _without(moves[name], sizes[name])
        top, bottom, total = top + float(d @ y), bottom + float(d @ d), total + float(moves[name] @ moves[name])
    if bottom == 0 or total == 0:
        return None
    rate, rest, decay = -top / bottom, 0.0, {}
    for name in data:
        left, size = moves[name] + rate * directions[name], sizes[name]
        decay[name] = -float(left @ size) / float(size @ size) if size.size > 1 and size.any() else 0.0
        left = left + decay[name] * size
        rest += float(left @ left)
    return Update(form.name, rate, decay, float(np.sqrt(rest / total)))


def _without(array: np.ndarray, along: np.ndarray) -> np.ndarray:
    if along.size < 2 or not along.any():
        return array
    return array - along * (float(array @ along) / float(along @ along))
