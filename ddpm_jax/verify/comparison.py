"""`compare`: any JAX side held to any PyTorch side on the same inputs, layer by layer, with the faults named."""

import contextlib
import dataclasses
import fnmatch
import inspect
import itertools
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np

from ddpm_jax.errors import UserError
from ddpm_jax.verify import program
from ddpm_jax.verify.carrying import carry
from ddpm_jax.verify.faults import diagnose
from ddpm_jax.verify.holding import AFTER, agreeing, hidden, rows_held
from ddpm_jax.verify.jax_side import program_of
from ddpm_jax.verify.kinks import SAFE, relu_margin
from ddpm_jax.verify.layouts import Layout, of_order, ordinary
from ddpm_jax.verify.matching import match, paired
from ddpm_jax.verify.measure import Measure
from ddpm_jax.verify.observing import Feeding
from ddpm_jax.verify.options import Options
from ddpm_jax.verify.recording import OnDisk, Recording, arguments, give_back, leaves
from ddpm_jax.verify.report import KINK, Report
from ddpm_jax.verify.torch_side import TorchSide, import_torch
from ddpm_jax.weights.structure import noted_modules

TRIALS = 8
"""Orders of the inputs' axes that are tried, at most."""


def compare(jax_model: Any, torch_model: Any, inputs: Any, options: Options | None = None, **changes: Any) -> Report:
    """Run both sides on the same inputs, and hold all that they compute to each other.

    jax_model: an nnx.Module, an equinox.Module, or a pair: (linen module, variables), (haiku.Transformed, params),
    (function, params), where params may be or hold modules of NNX or equinox. torch_model: a torch.nn.Module, a function, or a
    pair (function, parameters). Functions name what is to be compared within them by `verify.tap`. Neither side is changed.
    inputs: NumPy arrays in PyTorch's order of axes: one array, a tuple of positional arguments, a dict of keyword arguments, or a
    pair (tuple, dict); None, numbers and words are passed on. How JAX wants their axes is found, or given by `layouts`.
    options, changes: as `Options` lists them: dtype, device, training, gradients, names, layouts, tolerances, ignore, weights,
    adapt_inputs, adapt_output, loss, dropout, single_step, title.

    Raises:
        UserError: a side of another kind; parameters that do not correspond (both lists side by side); weights that are not finite;
            inputs that one side refuses; outputs of another structure; an unknown option or name.
    """
    options = (options or Options()).but(changes)
    torch_side = TorchSide(torch_model, options)
    comparison = _Comparison(jax_model, torch_side, inputs, options)
    with jax.enable_x64(True), jax.default_device(jax_device(options.device)):
        return comparison.report()


def assert_parity(
    jax_model: Any, torch_model: Any, inputs: Any, options: Options | None = None, **changes: Any
) -> Report:
    """`compare`, for a test: returns the report where both sides agree.

    Raises:
        AssertionError: they do not; the message is the table, with the faults.
    """
    report = compare(jax_model, torch_model, inputs, options, **changes)
    if not report.ok:
        raise AssertionError(f"\n{report.table()}")
    return report


class _Comparison:
    """One call of `compare`: what both sides are called with, and their recordings as they are needed."""

    def __init__(self, jax_model: Any, torch_side: TorchSide, inputs: Any, options: Options):
        self.options, self.torch_side = options, torch_side
        self.args, self.kwargs = as_arguments(inputs)
        adapted = inputs if options.adapt_inputs is None else options.adapt_inputs(inputs)
        self.jax_args, self.jax_kwargs = as_arguments(adapted)
        self.warnings: list[str] = []
        self.single: dict[str, str] | None = None
        tensors = torch_side.weights()
        check_finite(tensors.arrays)
        with jax.enable_x64(True):
            self.program = program_of(jax_model, tensors.arrays, options)
            carry(self.program, tensors, options, self._linen_modules)

    def report(self) -> Report:
        """Run both, hold them to each other, and, where they part, once more with each layer fed alike."""
        options, dtype = self.options, self.options.dtype
        with refusing("PyTorch"):
            kink = self._kink()  # first, while nothing else is there
            theirs = self.torch_side.run(self.args, self.kwargs, dtype, gradients=options.gradients)
        ours, layouts = self._ours(theirs)
        if options.gradients:
            self._add_gradients(ours, layouts, theirs)
        exact = exact_ours = None
        if dtype != "float64":  # one precision after the other: both at once would not fit where one does
            exact = self.torch_side.run(self.args, self.kwargs, "float64", gradients=options.gradients)
            if options.gradients:
                exact.gradients = self.torch_side.gradients("float64", [their for _, their in compared(ours, theirs)])
            exact_ours, _ = self._run(layouts, "float64")
        ours.environment |= environment(dtype, options.device)
        report, matched, measure = rows_held(ours, theirs, exact, options)
        if not report.ok and dtype == "float64" and self._mark_single(ours, layouts):
            report, matched, measure = rows_held(ours, theirs, exact, options)
        if report.ok and options.single_step is not False and excused(report):
            # a fault may hide in what float32 leaves of the free run; fed alike, it does not
            found = self._fed_faults(report, layouts, ours, theirs, measure) or []
            if any(fault.kind not in ("gradient", "statistics") for fault in found):
                report, matched, measure = rows_held(ours, theirs, exact, options, strict=True)
        report.title = options.title or self.torch_side.name
        runs = [(ours, theirs, measure)]
        if exact_ours is not None and exact is not None:
            report.hidden, _ = hidden(report, exact_ours, exact, options)
            if report.hidden and self._mark_single(exact_ours, layouts):
                report.hidden, _ = hidden(report, exact_ours, exact, options)
            runs.insert(0, (exact_ours, exact, dataclasses.replace(measure, dtype="float64", tolerances={})))
        if options.single_step or (options.single_step is None and not report.ok):
            report.faults = self._faults(report, layouts, runs)
        elif not report.ok:
            report.faults = diagnose(ours, theirs, matched, measure)
        self._note(report)
        report.environment |= kink
        return report

    def _ours(self, theirs: Recording) -> tuple[Recording, program.Placed]:
        """JAX's recording, with its inputs' axes in the first order that it takes, and, of several, in which both agree."""
        tried: list[tuple[int, Recording, program.Placed]] = []
        refused: Exception | None = None
        for layouts in self._layouts():
            try:
                ours, _ = self._run(layouts, self.options.dtype)
            except UserError:
                if not tried:
                    raise
                continue  # a network that says which axes it takes
            except Exception as error:  # whatever the user's code or library raises of shapes that it did not expect
                refused = refused or error
                continue
            number, all_agree = agreeing(ours, theirs, self.options)
            tried.append((number, ours, layouts))
            if all_agree:
                break
        if not tried:
            assert refused is not None
            with refusing("JAX"):
                raise refused
        _, ours, layouts = max(tried, key=lambda trial: trial[0])
        return ours, layouts

    def _layouts(self) -> Iterator[program.Placed]:
        """Orders of the inputs' axes to be tried, the likeliest first: channels last for images, the rest as it is."""
        if self.options.adapt_inputs is not None:
            yield {}
            return
        names = parameter_names(self.torch_side, len(self.args))
        choices: dict[str, list[Layout]] = {}
        for place, leaf in leaves(arguments(self.jax_args, self.jax_kwargs)):
            shape = tuple(getattr(leaf, "shape", ()))
            called = [place, names.get(place.partition(".")[0], place)]
            given = [order for name, order in self.options.layouts.items() if fnmatch.filter(called, name)]
            if given:
                choices[place] = [of_order(given[0], shape)]
            elif len(shape) >= 3:
                image = len(shape) >= 4
                orders = [o for o in ordinary(len(shape)) if o in (ordinary(len(shape))[0], tuple(range(len(shape))))]
                orders = orders if image else [(0, 1, 2), (0, 2, 1)]
                if image and np.asarray(leaf).dtype.kind == "b":
                    orders = orders[::-1]
                choices[place] = [of_order(order, shape) for order in orders]
        combinations = [dict(zip(choices, found, strict=True)) for found in itertools.product(*choices.values())]
        # the fewer inputs leave the likeliest order, the earlier
        combinations.sort(key=lambda one: sum(layout != choices[place][0] for place, layout in one.items()))
        yield from combinations[:TRIALS]

    def _linen_modules(self) -> dict[str, Any]:
        """Linen's layers by path, found by tracing a call with the inputs in the first order that it takes; nothing is computed."""
        for layouts in self._layouts() if "flax.linen" in sys.modules else ():
            given = program.placed_inputs(self.jax_args, self.jax_kwargs, layouts, self.options.dtype)
            with contextlib.suppress(Exception), noted_modules() as found:  # what it raises is told when it runs
                program.traced(self.program, given)
                return found
        return {}

    def _run(self, layouts: program.Placed, dtype: str, feeding: Feeding | None = None) -> tuple[Recording, set[str]]:
        give_back(self.torch_side.size)
        given = program.placed_inputs(self.jax_args, self.jax_kwargs, layouts, dtype)
        recording, observer = program.run(self.program, given, dtype, self.options, feeding=feeding)
        if feeding is not None and observer.compiled and not feeding.within_loops:
            return self._run(layouts, dtype, dataclasses.replace(feeding, within_loops=True))
        recording.environment = {"dtype": dtype}
        return recording, observer.fed

    def _mark_single(self, ours: Recording, layouts: program.Placed) -> bool:
        """Say of JAX's layers which compute in float32 within a float64 run; whether any does."""
        if self.single is None:
            given = program.placed_inputs(self.jax_args, self.jax_kwargs, layouts, "float64")
            self.single = program.precisions(self.program, given, self.options)
        for call in ours.calls:
            call.precision = self.single.get(call.path, "")
        ours.environment["precision"] = self.single.get("", "")
        return bool(self.single)

    def _add_gradients(self, ours: Recording, layouts: program.Placed, theirs: Recording) -> None:
        """Gradients of both sides' losses, which are made of the outputs that both have."""
        places = compared(ours, theirs)
        theirs.gradients = self.torch_side.gradients(self.options.dtype, [their for _, their in places])
        if not theirs.gradients:
            return
        give_back(self.torch_side.size)
        given = program.placed_inputs(self.jax_args, self.jax_kwargs, layouts, self.options.dtype)
        by_weight, by_input = program.gradients(
            self.program, given, self.options.dtype, self.options, [mine for mine, _ in places]
        )
        ours.gradients = OnDisk(by_weight)
        del by_weight
        for key, row in self.torch_side.skipped().items():
            if key in ours.gradients and key in theirs.gradients:
                grad = ours.gradients[key].copy()
                grad[row] = theirs.gradients[key][row]
                ours.gradients[key] = grad
                self.warnings.append(f"padding_idx: PyTorch gives row {row} of {key} no gradient; it is not compared.")
        for place, grad in by_input.items():
            shape = theirs.inputs[place].shape if place in theirs.inputs else grad.shape
            moved = layouts[place].to_torch(grad, shape) if place in layouts else grad
            ours.gradients[f"input {place}"] = moved

    def _faults(
        self, report: Report, layouts: program.Placed, runs: list[tuple[Recording, Recording, Measure]]
    ) -> list[Any]:
        """The faults of a run in which every layer is fed as its partner was: of the first of the free runs that shows any."""
        options, free = self.options, list[Any]()
        for ours, theirs, measure in runs:
            found = self._fed_faults(report, layouts, ours, theirs, measure)
            if found:
                return found
            if found is None:
                free += diagnose(ours, theirs, match(ours, theirs, options.names, options.ignore), measure)
        return free

    def _fed_faults(
        self, report: Report, layouts: program.Placed, ours: Recording, theirs: Recording, measure: Measure
    ) -> list[Any] | None:
        """The faults of a run in which every layer is fed as its partner was; None: they could not be fed, which is noted."""
        options = self.options
        feeding = Feeding(match(ours, theirs, options.names, options.ignore).partners, measure.allowed("layer", ""))
        try:
            fed_ours, fed = self._run(layouts, measure.dtype, feeding)
        except Exception as error:
            report.warnings.append(f"layers could not be fed one by one: {type(error).__name__}: {first_line(error)}")
            return None
        fed_ours.gradients, fed_ours.statistics = ours.gradients, ours.statistics
        if measure.dtype == "float64":
            self._mark_single(fed_ours, layouts)
        return diagnose(fed_ours, theirs, match(fed_ours, theirs, options.names, options.ignore), measure, fed)

    def _note(self, report: Report) -> None:
        options, side = self.options, self.torch_side
        report.warnings += self.warnings
        if options.training and options.dropout:
            report.warnings.append(
                "dropout is left on: the two sides draw different masks, and differ wherever one is drawn."
            )
        if report.coverage and report.coverage.hidden:
            names = ", ".join(report.coverage.hidden[:8])
            report.warnings.append(
                f"PyTorch calls these layers, and JAX was not seen to, be they left out or hidden: {names}."
            )
        if options.gradients and not self.program.gradients and side.module is not None:
            report.warnings.append("gradients by parameter are not compared: JAX's weights are not PyTorch's by name.")

    def _kink(self) -> dict[str, str]:
        """What is to be said of a ReLU whose input is so small that float32 may not know its sign."""
        if not self.options.gradients or self.options.dtype == "float64" or self.torch_side.module is None:
            return {}
        torch = import_torch()
        module = self.torch_side.copied("float64")
        args, kwargs = self.torch_side.tensors(self.args, self.kwargs, "float64")
        with torch.no_grad():
            margin = relu_margin(module, args, kwargs, training=self.options.training)
        return {KINK: f"{margin:.0e} of its largest: gradients may differ; try other inputs"} if margin < SAFE else {}


def compared(ours: Recording, theirs: Recording) -> list[tuple[str, str]]:
    """Places of the outputs that correspond."""
    return paired(list(ours.outputs), list(theirs.outputs))


def excused(report: Report) -> bool:
    """Whether some of it agrees for no other reason than that something before it computes in float32."""
    return any(row.note.startswith(AFTER) for row in report.rows)


def as_arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of whatever `compare` takes as inputs."""
    if (
        isinstance(inputs, tuple | list)
        and len(inputs) == 2
        and isinstance(inputs[0], tuple)
        and isinstance(inputs[1], dict)
    ):
        return inputs[0], dict(inputs[1])
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    if isinstance(inputs, tuple | list):
        return tuple(inputs), {}
    return (inputs,), {}


def parameter_names(side: TorchSide, number: int) -> dict[str, str]:
    """What the PyTorch side calls its positional arguments: {"0": "x", ...}."""
    function = side.module.forward if side.module is not None else side.function
    try:
        found = list(inspect.signature(function).parameters)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return {}
    skip = 0 if side.parameters is None else 1
    return {str(index): name for index, name in enumerate(found[skip : skip + number])}


def check_finite(state: Mapping[str, np.ndarray]) -> None:
    """See that weights are numbers.

    Raises:
        UserError: some hold NaN or infinity, by name.
    """
    bad = [key for key, array in state.items() if not np.isfinite(array).all()]
    if bad:
        raise UserError(f"weights must be finite; these hold NaN or infinity: {', '.join(bad)}.")


@contextmanager
def refusing(side: str) -> Iterator[None]:
    """Raises a UserError with a side's own message where it refuses its inputs within."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"the {side} side refuses the inputs: {type(error).__name__}: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    """The first lines of an error's message."""
    return " ".join(str(error).split())[:500]


def environment(dtype: str, device: str) -> dict[str, Any]:
    """Precision, device and versions of both sides."""
    return {
        "dtype": dtype,
        "device": f"JAX on {device} ({jax_device(device).device_kind}), PyTorch on cpu",
        "matmul_precision": jax.config.values["jax_default_matmul_precision"] or "default",
        "jax": jax.__version__,
        "torch": str(import_torch().__version__),
    }


def jax_device(device: str) -> jax.Device:
    """A device of JAX's by its kind. Raises UserError where there is none."""
    try:
        return jax.devices(device)[0]
    except RuntimeError as error:
        raise UserError(f"device must be one that JAX finds here ({jax.default_backend()}); got {device!r}.") from error
