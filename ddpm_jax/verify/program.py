"""A JAX side as a program: pure in its weights and inputs, run once with every layer watched, and once for its gradients."""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.compilation import compile_for
from ddpm_jax.verify.layouts import Layout
from ddpm_jax.verify.observing import LAYER, Feeding, Observer, observed, rebuilt
from ddpm_jax.verify.options import Options
from ddpm_jax.verify.recording import Arrays, Recording, arguments, arrays_of, leaves, to_array
from ddpm_jax.weights.structure import Path, leaves_by_path, with_leaves

CONCRETE = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.NonConcreteBooleanIndexError,
)
"""What code raises that looks at numbers while it is traced: it runs without being compiled."""

Placed = Mapping[str, Layout]
"""input -> how it becomes JAX's."""


@dataclass
class Program:
    """A side's weights and what computes with them."""

    weights: Any
    """A pytree, of which gradients are taken."""
    fixed: Any
    """Another: running statistics, counters."""
    call: Callable[[Any, tuple[Any, ...], Mapping[str, Any]], tuple[Any, Any]]
    """({**weights, **fixed}, args, kwargs) -> (output, statistics afterwards)."""
    layers: list[str] = field(default_factory=list)
    """Paths of all layers."""
    gradients: Callable[[Any], Arrays] | None = None
    """Gradients of the weights -> by PyTorch name and in its order; None: PyTorch's names are not known."""
    statistics: Callable[[Any], Arrays] | None = None
    """What call returned of statistics -> by PyTorch name."""
    tree: Any = None
    """What its arrays are known by, as `weights.layout` takes it; None: it has none."""
    carried: bool = False
    """Whether it is given PyTorch's weights unless the options say otherwise."""
    joined: Callable[[Any], Any] = lambda values: values
    """Weights, their gradients or statistics, as call takes them -> in the form of its tree."""
    parted: Callable[[Any], Any] = lambda tree: tree
    """The way back."""
    arrays: list[str] = field(default_factory=list)
    """Names of all parameters and statistics."""

    def by_path(self, values: Any) -> dict[Path, Any]:
        """Weights, gradients or statistics by their path in its tree."""
        return leaves_by_path(self.joined(values))

    def own(self) -> dict[Path, Any]:
        """Its weights and statistics by path."""
        return self.by_path({**_as_dict(self.weights), **_as_dict(self.fixed)})

    def fill(self, arrays: Mapping[Path, Any]) -> None:
        """Put other arrays in the place of its own."""
        before = self.joined({**_as_dict(self.weights), **_as_dict(self.fixed)})
        after = self.parted(with_leaves(before, arrays))
        self.weights = {name: after[name] for name in _as_dict(self.weights)}
        self.fixed = {name: after[name] for name in _as_dict(self.fixed)}


def own_weights(options: Options, *, carried: bool) -> bool:
    """Whether JAX keeps its own weights; carried: what is done unless the options say so."""
    return options.weights == "own" or (options.weights is None and not carried)


def traced(program: Program, given: Mapping[str, Any]) -> None:
    """Trace a program's call without computing anything; given: of placed_inputs."""
    arrays, places = _parted(given)

    def call(variables: Any, arrays: list[Any]) -> Any:
        args, kwargs = _arguments(_joined(given, arrays, places))
        return _arrays(program.call(variables, args, kwargs)[0])

    jax.eval_shape(call, {**_as_dict(program.weights), **_as_dict(program.fixed)}, arrays)


def cast(tree: Any, dtype: Any) -> Any:
    """Every floating-point array of a pytree in a dtype."""

    def one(x: Any) -> Any:
        if not isinstance(x, jax.Array | np.ndarray) or not jnp.issubdtype(x.dtype, jnp.floating):
            return x
        return jnp.asarray(x).astype(dtype)

    return jax.tree.map(one, tree)


def placed_inputs(args: tuple[Any, ...], kwargs: Mapping[str, Any], layouts: Placed, dtype: str) -> dict[str, Any]:
    """Inputs by name as JAX takes them: floating-point arrays in a dtype, integers in 32 bits, axes in order."""

    def one(place: str, leaf: Any) -> Any:
        if not hasattr(leaf, "shape"):
            return leaf
        array = to_array(leaf)
        if array is None:
            return leaf
        kind = {"f": dtype, "i": "int32", "u": "int32"}.get(array.dtype.kind, str(array.dtype))
        return jnp.asarray((layouts[place].to_jax(array) if place in layouts else array).astype(kind))

    return rebuilt(arguments(args, kwargs), one)


def run(
    program: Program,
    given: Mapping[str, Any],
    dtype: str,
    options: Options,
    *,
    feeding: Feeding | None = None,
) -> tuple[Recording, Observer]:
    """One forward pass with every call recorded; and what observed it.

    given: of placed_inputs. feeding: every layer is fed as its partner was; that pass looks at numbers, and is not compiled.
    """
    variables = {**_as_dict(program.weights), **_as_dict(program.fixed)}
    arrays, places = _parted(given)
    names: list[str] = []

    def forward(variables: Any, arrays: list[Any]) -> Any:
        args, kwargs = _arguments(_joined(given, arrays, places))
        output, after = program.call(
            cast(variables, dtype), args, kwargs
        )  # here, so that no second copy of all need be there
        flat = _arrays(options.adapt_output(output) if options.adapt_output else output)
        names[:] = flat
        return list(flat.values()), after

    observer = Observer(feeding)
    if feeding is None:
        try:
            with observed(observer):
                values, after = compile_for(1, forward, variables, arrays)(variables, arrays)
        except CONCRETE:
            feeding = Feeding({}, 0.0)
            observer = Observer(feeding)
    if feeding is not None:
        with observed(observer), jax.disable_jit(feeding.within_loops):
            values, after = forward(variables, arrays)
    calls = observer.calls()
    outputs = {name: array for name, array in zip(names, map(to_array, values), strict=True) if array is not None}
    recording = Recording("JAX", calls, arrays_of(dict(given)), outputs, layers=program.layers, arrays=program.arrays)
    if options.training and program.statistics:
        recording.statistics = program.statistics(after)
    return recording, observer


def precisions(program: Program, given: Mapping[str, Any], options: Options) -> dict[str, str]:
    """{path of a layer: float32}, for those that compute in it within a float64 run, "" for what is in none; by tracing alone."""
    variables = cast({**_as_dict(program.weights), **_as_dict(program.fixed)}, "float64")
    arrays, places = _parted(given)

    def call(variables: Any, arrays: list[Any]) -> Any:
        args, kwargs = _arguments(_joined(given, arrays, places))
        output, _ = program.call(variables, args, kwargs)
        return _arrays(options.adapt_output(output) if options.adapt_output else output)

    try:
        with observed(Observer()):
            traced = jax.make_jaxpr(call)(variables, arrays)
    except CONCRETE:
        return {}
    return dict.fromkeys(_single(traced.jaxpr, ""), "float32")


def _single(jaxpr: Any, within: str) -> Iterator[str]:
    """Paths of the layers in which arrays are made in float32."""
    for equation in jaxpr.eqns:
        scope = f"{within}/{equation.source_info.name_stack}"
        if any(getattr(v.aval, "ndim", 0) and v.aval.dtype == jnp.float32 for v in equation.outvars):
            yield scope.rpartition(LAYER)[2].partition("/")[0] if LAYER in scope else ""
        for inner in jax.core.jaxprs_in_params(equation.params):
            yield from _single(inner, scope)


def gradients(
    program: Program, given: Mapping[str, Any], dtype: str, options: Options, places: Collection[str]
) -> tuple[Arrays, Arrays]:
    """Of the loss: by parameter, under PyTorch's names and in its order, and by input, in JAX's.

    places: of the outputs that are compared, of which the loss is made unless given.
    """
    weights, fixed = cast(_as_dict(program.weights), dtype), cast(_as_dict(program.fixed), dtype)
    arrays, rest = _parted(given)
    names = [place for place, leaf in leaves(given) if isinstance(leaf, jax.Array)]
    floating = [jnp.issubdtype(x.dtype, jnp.floating) for x in arrays]
    differentiated, undifferentiated = _split(weights)

    def loss(differentiated: list[Any], floats: list[Any]) -> Any:
        left = iter(floats)
        full = [next(left) if is_float else x for x, is_float in zip(arrays, floating, strict=True)]
        args, kwargs = _arguments(_joined(given, full, rest))
        output, _ = program.call({**undifferentiated(differentiated), **fixed}, args, kwargs)
        of_jax = options.loss[0] if isinstance(options.loss, tuple) else options.loss
        if of_jax:
            return of_jax(output)
        found = _arrays(options.adapt_output(output) if options.adapt_output else output).items()
        return sum(
            jnp.square(x).mean() for name, x in found if name in places and jnp.issubdtype(x.dtype, jnp.floating)
        )

    floats = [x for x, is_float in zip(arrays, floating, strict=True) if is_float]
    program_of_both = jax.grad(loss, argnums=(0, 1))
    try:
        by_weight, by_input = compile_for(1, program_of_both, differentiated, floats)(differentiated, floats)
    except CONCRETE:
        by_weight, by_input = program_of_both(differentiated, floats)
    of_inputs = [name for name, is_float in zip(names, floating, strict=True) if is_float]
    found = {name: np.asarray(grad) for name, grad in zip(of_inputs, by_input, strict=True)}
    return program.gradients(undifferentiated(by_weight)) if program.gradients else {}, found


def _as_dict(tree: Any) -> dict[str, Any]:
    return tree if isinstance(tree, dict) else {"params": tree}


def _split(tree: Any) -> tuple[list[Any], Callable[[list[Any]], Any]]:
    """The floating-point leaves of a pytree, and what puts others in their place."""
    all_leaves, structure = jax.tree.flatten(tree)
    floating = [hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.floating) for x in all_leaves]

    def joined(floats: list[Any]) -> Any:
        left = iter(floats)
        filled = [next(left) if is_float else x for x, is_float in zip(all_leaves, floating, strict=True)]
        return jax.tree.unflatten(structure, filled)

    return [x for x, is_float in zip(all_leaves, floating, strict=True) if is_float], joined


def _parted(given: Mapping[str, Any]) -> tuple[list[Any], list[str]]:
    found = [(place, leaf) for place, leaf in leaves(given) if isinstance(leaf, jax.Array)]
    return [leaf for _, leaf in found], [place for place, _ in found]


def _joined(given: Mapping[str, Any], arrays: list[Any], places: list[str]) -> dict[str, Any]:
    by_place = dict(zip(places, arrays, strict=True))
    return rebuilt(dict(given), lambda place, leaf: by_place.get(place, leaf))


def _arguments(given: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    positional = [name for name in given if name.isdigit()]
    return tuple(given[name] for name in positional), {n: v for n, v in given.items() if not n.isdigit()}


def _arrays(output: Any) -> dict[str, Any]:
    found = {
        place: leaf for place, leaf in leaves(output) if hasattr(leaf, "dtype") or isinstance(leaf, bool | int | float)
    }
    return {place: jnp.asarray(leaf) for place, leaf in found.items()}
