"""Train in both frameworks in lockstep, and name the first quantity that diverges, and why."""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from ddpm_jax.errors import UserError, kind_of
from ddpm_jax.verify.lockstep import jax_side, torch_side
from ddpm_jax.verify.lockstep.causes import Causes, aligned
from ddpm_jax.verify.lockstep.distributions import differ
from ddpm_jax.verify.lockstep.history import Arrays, History
from ddpm_jax.verify.lockstep.jax_side import JaxTraining
from ddpm_jax.verify.lockstep.optimisers import Update, understood
from ddpm_jax.verify.lockstep.torch_side import TorchTraining, restored
from ddpm_jax.verify.report import Report, Row
from ddpm_jax.verify.tolerances import relative_error, tolerance
from ddpm_jax.weights.bridge import arrays_from, as_array, check_finite, check_fit, layout

QUANTITY = {"data": "process", "loss": "loss", "statistics": "statistics", "gradient": "gradient"}
"""What is compared -> whose tolerance it has; all else has that of "training"."""


MOST_CORRECTED = 10.0
"""How much larger a first moment is made, at most, to make up for its start at zero: 1 / (1 - 0.9)."""


@dataclass
class TrainingReport(Report):
    """Rows in the order in which a training computes them, and why the first that diverges does."""

    cause: str = ""
    """Of the first divergence; "" where none is known, or nothing diverges."""
    initial: str = ""
    """How the parameters that the two sides draw differ; "" if they do not."""

    __repr__ = Report.__repr__

    def verdict(self) -> str:
        """Agreement, or the first divergence and its probable cause; and what is to be said of the initial weights."""
        text = super().verdict()
        if self.cause:
            text += f" Probable cause: {self.cause}."
        return text + (f" {self.initial}" if self.initial else "")


def compare_training(
    jax_training: JaxTraining,
    torch_training: TorchTraining,
    batches: Iterable[Any],
    *,
    torch_batches: Iterable[Any] | None = None,
    steps: int = 5,
    dtype: str | None = "float64",
    names: Mapping[str, str] | None = None,
    weights: Mapping[str, Any] | None = None,
) -> TrainingReport:
    """Make steps in both frameworks from PyTorch's weights on the same batches; name what diverges first, and its probable cause.

    Compared, in this order: how each parameter is drawn; then, for each step, the batch, the loss, running statistics, gradients
    in backward order, gradients as clipped, what the optimiser remembers, learning rate, weight decay, the update, averaged
    weights. batches: tuples of arrays, the further arguments of both losses; single arrays and mappings are one argument.
    torch_batches: for PyTorch, where each side has its own pipeline. dtype: what both sides are cast to, weights and batches;
    None: as they are. names: {JAX path: PyTorch path}, as `weights.layout` takes them. weights: more of its arguments, {"rules":
    ..., "ignore": ...}.

    Raises:
        UserError: parameters that do not correspond, weights that are not finite, no batches, or sides of another kind.
    """
    if not isinstance(jax_training, JaxTraining):
        raise UserError(f"jax_training must be a verify.JaxTraining; got {kind_of(jax_training)}.")
    if not isinstance(torch_training, TorchTraining):
        raise UserError(f"torch_training must be a verify.TorchTraining; got {kind_of(torch_training)}.")
    ours_fed = [_as_tuple(batch) for batch in itertools.islice(batches, steps)]
    theirs_fed = ours_fed if torch_batches is None else [_as_tuple(b) for b in itertools.islice(torch_batches, steps)]
    if not ours_fed or len(ours_fed) != len(theirs_fed):
        raise UserError(
            f"batches must be as many on both sides, and at least 1; got {len(ours_fed)} and {len(theirs_fed)}."
        )
    drawn = {name: as_array(p) for name, p in torch_training.module.named_parameters()}
    with jax.enable_x64(dtype == "float64" or jax.config.values["jax_enable_x64"]), restored(torch_training, dtype):
        state = _state_of(torch_training.module)
        entries = layout(jax_training.side, names, theirs=state, **(weights or {}))
        expected = {key: shape for entry in entries for key, shape in zip(entry.keys, entry.shapes, strict=True)}
        check_fit(
            "the two sides' parameters do not correspond",
            expected,
            {k: state[k] for k in state if k in expected or k in drawn},
        )
        check_finite(state)
        weights_here = arrays_from(entries, state)  # before PyTorch changes its own
        theirs = torch_side.run(torch_training, theirs_fed, dtype, drawn)
        ours = jax_side.run(jax_training, entries, weights_here, ours_fed, dtype)
    precision = dtype or str(next(iter(theirs.start.params.values())).dtype)
    return _report(ours, theirs, precision)


def _as_tuple(batch: Any) -> tuple[Any, ...]:
    return tuple(batch) if isinstance(batch, tuple | list) else (batch,)


def _state_of(module: Any) -> dict[str, np.ndarray]:
    """Floating-point tensors of a module by name: those that are trained under every name, and running statistics."""
    tensors = dict(module.state_dict())
    trained = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    kept = trained | {name for name in tensors if name.endswith(("running_mean", "running_var"))}
    return {name: as_array(t) for name, t in tensors.items() if name in kept and t.is_floating_point()}


def _report(ours: History, theirs: History, precision: str) -> TrainingReport:
    environment = {"dtype": precision, "steps": len(theirs.steps), "optimiser": theirs.settings.get("optimizer")}
    report = TrainingReport("training in lockstep", environment)
    report.initial = _initial(ours.own, theirs.own)
    causes = Causes(ours, theirs, 1e-5 if precision == "float64" else 1e-3)
    compare = _Comparison(ours, theirs, causes, precision)
    for row, cause in compare.rows():
        if not row.ok and not report.cause and all(before.ok for before in report.rows):
            report.cause = cause()
        report.rows.append(row)
    if compare.harmless:
        report.warnings.append(compare.harmless)
    return report


def _initial(ours: Arrays, theirs: Arrays) -> str:
    """What is to be said of how the two sides draw their parameters."""
    shared = [name for name in theirs if name in ours and ours[name].shape == theirs[name].shape]
    if all(np.array_equal(ours[name].astype(np.float32), theirs[name].astype(np.float32)) for name in shared):
        return ""  # JAX was given PyTorch's weights before
    found = {name: said for name in shared if (said := differ(ours[name], theirs[name], len(shared)))}
    if not found:
        return ""
    first = next(iter(found))
    count = f" and {len(found) - 1} others" if len(found) > 1 else ""
    return f"Initial weights are of other distributions: {first}{count} ({found[first]})."


_ROUNDED = 2e-7
"""A decay of this, at the tolerance of 1e-8, is ten times what rounding a weight to float64 takes of it."""


class _Comparison:
    """All rows of two histories, in order, each with what finds its cause."""

    def __init__(self, ours: History, theirs: History, causes: Causes, dtype: str):
        self.ours, self.theirs, self.causes = ours, theirs, causes
        self.dtype = "float64" if dtype == "float64" else "float32"
        self.slack, self.harmless = 0.0, ""
        self.updates: list[tuple[Update | None, Update | None]] = []

    def rows(self) -> Iterator[tuple[Row, Any]]:
        precise = self.dtype == "float64"
        settings = self.theirs.settings
        for k, step in enumerate(self.theirs.steps):
            pair = (understood(side, k, settings, step.rates, precise=precise) for side in (self.ours, self.theirs))
            self.updates.append((next(pair), next(pair)))
        for k in range(len(self.theirs.steps)):
            yield from self._inputs(k)
            yield from self._gradients(k)
            yield from self._optimiser(k)

    def _row(self, k: int, what: str, name: str, a: Any, b: Any, floor: float = 0.0) -> Row:
        a, b = np.asarray(a), np.asarray(b)
        allowed = max(tolerance(QUANTITY.get(what, "training"), self.dtype), self.slack)
        note = "" if a.shape == b.shape else f"shapes differ: JAX {a.shape}, PyTorch {b.shape}"
        error = relative_error(a, b, floor)
        return Row(f"step {k} {what}", name, a.shape, error, allowed, note=note)

    def _inputs(self, k: int) -> Iterator[tuple[Row, Any]]:
        a, b = self.causes.steps(k)
        for index, (x, y) in enumerate(zip(a.inputs, b.inputs, strict=False)):
            x, y = x.astype(np.float64), aligned(y.astype(np.float64), x.astype(np.float64))
            yield self._row(k, "data", f"input {index}", x, y), lambda index=index: self.causes.data(k, index)
        yield self._row(k, "loss", "loss", a.loss, b.loss), lambda: self.causes.loss(k)
        for name in (name for name in b.statistics if name in a.statistics):
            # the change, since an old value would hide it
            old = self.theirs.before(k).statistics[name], self.ours.before(k).statistics[name]
            row = self._row(k, "statistics", name, a.statistics[name] - old[1], b.statistics[name] - old[0], floor=1e-6)
            yield row, lambda name=name: self.causes.statistics(k, name)

    def _gradients(self, k: int) -> Iterator[tuple[Row, Any]]:
        a, b = self.causes.steps(k)
        if not a.gradients:
            return
        floor = max((float(np.abs(g).max(initial=0.0)) for g in b.gradients.values()), default=0.0) / 100
        zeros = {name: np.zeros_like(array) for name, array in b.params.items()}
        both = {name: b.gradients.get(name, zeros[name]) for name in [*b.gradients, *a.gradients] if name in zeros}
        for name, theirs in both.items():
            row = self._row(k, "gradient", name, a.gradients.get(name, zeros[name]), theirs, floor)
            yield row, lambda name=name: self.causes.gradient(k, name)
        if not a.fed or not b.fed:
            return
        self._forgive(k, a.fed, b.fed)
        for name, theirs in b.fed.items():
            row = self._row(k, "clipped gradient", name, a.fed[name], theirs, floor * 1e-3)
            yield row, lambda: self.causes.fed(k)

    def _forgive(self, k: int, ours: Arrays, theirs: Arrays) -> None:
        """PyTorch divides by the norm of all gradients plus 1e-6 where it clips; that is known, and no fault."""
        raw = self.theirs.steps[k].gradients
        norm = np.sqrt(sum(float(np.square(g, dtype=np.float64).sum()) for g in raw.values()))
        if not norm:
            return
        wanted = (norm + 1e-6) / norm
        for name, array in theirs.items():
            if relative_error(ours[name], wanted * array, 1e-3 * norm) > 1e-9 * (1 if self.dtype == "float64" else 1e5):
                return
        clipped = any(relative_error(theirs[name], raw[name]) > 1e-6 for name in theirs if name in raw)
        if clipped and self.dtype == "float64":
            self.slack = max(self.slack, 20 * 1e-6 / norm)
            self.harmless = "PyTorch clips by the norm + 1e-6, optax by the norm: what follows is held less tightly"

    def _optimiser(self, k: int) -> Iterator[tuple[Row, Any]]:
        a, b = self.causes.steps(k)
        if b.moments and a.moments and not set(a.moments) & set(b.moments):
            kinds = " and ".join(", ".join(step.moments) for step in (a, b))
            row = self._row(k, "optimiser", "moments", 1.0, 0.0)
            yield row, lambda: f"the optimisers are of other kinds: JAX and PyTorch remember {kinds}"
        if not a.fed and "first" in a.moments and "first" in b.moments and b.fed:
            self._forgive(k, self.causes.taken_up(k), b.fed)
        for kind in (kind for kind in b.moments if kind in a.moments):
            top = max((float(np.abs(m).max(initial=0.0)) for m in b.moments[kind].values()), default=0.0)
            for name, theirs in b.moments[kind].items():
                ours = a.moments[kind].get(name, np.zeros_like(theirs))
                row = self._row(
                    k, f"{kind} moment" if kind in ("first", "second") else kind, name, ours, theirs, top * 1e-4
                )
                yield row, lambda kind=kind: self.causes.moment(k, kind)
        yield from self._update(k)

    def _due_to_rounding(self, k: int, name: str) -> np.ndarray | float:
        """How far moves may part because first moments do, which agree: Adam divides each by its size, be it rounding alone."""
        a, b = self.causes.steps(k)
        if any(name not in side.moments.get(kind, {}) for side in (a, b) for kind in ("first", "second")):
            return 0.0
        apart = np.abs(a.moments["first"][name] - b.moments["first"][name])
        size = np.sqrt(b.moments["second"][name]) + self.theirs.settings.get("eps", 1e-8)
        return MOST_CORRECTED * b.rates.get(name, 0.0) * apart / size

    def _update(self, k: int) -> Iterator[tuple[Row, Any]]:
        a, b = self.causes.steps(k)
        ours, theirs = self.updates[k]
        if ours is not None and theirs is not None and ours.form == theirs.form:
            yield (
                self._row(k, "learning rate", "rate", ours.rate, theirs.rate),
                lambda: self.causes.rate(k, self.updates),
            )
            moved = sorted(set(ours.decay) & set(theirs.decay))
            one, other = (np.array([side.decay[name] for name in moved]) for side in (ours, theirs))
            floor = max(abs(theirs.rate) * 1e-4, _ROUNDED) if self.dtype == "float64" else abs(theirs.rate)
            row = self._row(k, "weight decay", f"of {len(moved)} parameters", one, other, floor)
            yield row, lambda: self.causes.decay(ours, theirs)
        before = self.ours.before(k).params, self.theirs.before(k).params
        moves = {
            name: (a.params[name] - before[0][name], b.params[name] - before[1][name])
            for name in b.params
            if name in a.params
        }
        top = max((float(np.abs(move).max(initial=0.0)) for _, move in moves.values()), default=0.0)
        for name, (mine, other) in moves.items():
            due = self._due_to_rounding(k, name)
            mine = mine - np.clip(mine - other, -due, due)
            yield self._row(k, "update", name, mine, other, top * 1e-2), lambda: self.causes.update(k, ours, theirs)
        for name in (name for name in b.average if name in a.average):
            row = self._row(k, "average", name, a.average[name], b.average[name])
            yield row, lambda name=name: self.causes.average(k, name)
