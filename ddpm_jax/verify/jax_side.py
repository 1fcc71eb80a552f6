"""Any JAX side: which library it belongs to, and its program."""

import sys
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import jax
import jax.numpy
from flax import nnx

from ddpm_jax.errors import UserError, kind_of
from ddpm_jax.verify.observing import current
from ddpm_jax.verify.options import Options
from ddpm_jax.verify.program import Program

TAKEN = (
    "an nnx.Module, an equinox.Module, or a pair: (linen module, variables), (haiku.Transformed, params), "
    "(function, params), where params may be or hold modules of NNX or equinox"
)


def program_of(side: Any, state: Mapping[str, Any], options: Options) -> Program:
    """The program of a JAX side; state: PyTorch's tensors, to be carried over where the options say so.

    Raises:
        UserError: it is of another kind, named; or the weights do not correspond.
    """
    if isinstance(side, nnx.Module):
        return _nnx(side, None, state, options)
    if _is_equinox(side):
        return _function(lambda module, *args, **kwargs: _each_example(module, args, kwargs), side, state, options)
    pair = isinstance(side, tuple) and len(side) == 2
    if pair and isinstance(side[1], nnx.Module) and callable(side[0]):
        return _nnx(side[1], side[0], state, options)
    if pair and isinstance(side[0], _of("flax.linen", "Module")):
        from ddpm_jax.verify import linen_side

        module: Any = side[0]
        return linen_side.program_of(module, _weights(side[1], state, options), options)
    if pair and isinstance(side[0], (*_of("haiku", "Transformed"), *_of("haiku", "TransformedWithState"))):
        from ddpm_jax.verify import haiku_side

        return haiku_side.program_of(side[0], _weights(side[1], state, options))
    if pair and callable(side[0]) and not isinstance(side[0], type):
        return _function(side[0], side[1], state, options)
    if callable(side) and not isinstance(side, type):
        return _function(lambda _, *args, **kwargs: side(*args, **kwargs), {}, state, options)
    given = f"a pair of {kind_of(side[0])} and {kind_of(side[1])}" if pair else kind_of(side)
    raise UserError(f"jax_model must be {TAKEN}; got {given}.")


def _nnx(model: nnx.Module, function: Any, state: Mapping[str, Any], options: Options) -> Program:
    from ddpm_jax.verify import nnx_side

    return nnx_side.program_of(model, function, state, options)


def _function(function: Any, params: Any, state: Mapping[str, Any], options: Options) -> Program:
    """A function of parameters and inputs; modules of equinox within the parameters are watched, taps as everywhere."""
    params = _weights(params, state, options)
    with_modules = "equinox" in sys.modules and any(map(_is_equinox, jax.tree.leaves(params, is_leaf=_is_equinox)))
    layers: list[str] = []
    if with_modules:
        from ddpm_jax.verify import equinox_side

        params = equinox_side.prepared(params, options)
        layers = [path for path, _ in equinox_side.modules(params) if path]
    arrays, joined = _partition(params)
    frozen = {jax.numpy.dtype(array.dtype) for array in arrays}

    def call(variables: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, Any]:
        whole = joined(variables["params"])
        with ExitStack() as stack:
            if with_modules and current():
                stack.enter_context(equinox_side.watched(whole))
            if "haiku" in sys.modules:
                from ddpm_jax.verify import haiku_side

                stack.enter_context(haiku_side.watched())
            if "flax.linen" in sys.modules:
                from ddpm_jax.verify import linen_side

                dtype = next((x.dtype for x in variables["params"]), options.dtype)
                stack.enter_context(linen_side.intercepted(dtype, frozen, options))
            return function(whole, *args, **kwargs), {}

    return Program(
        {"params": arrays},
        {},
        call,
        layers=layers,
        tree=params if arrays else None,
        joined=lambda values: joined(values["params"]),
        parted=lambda tree: {"params": _partition(tree)[0]},
    )


def _partition(tree: Any) -> tuple[list[Any], Any]:
    """The arrays of a pytree, and what makes the pytree of them again; what is no array stays where it is."""
    leaves, structure = jax.tree.flatten(tree)
    is_array = [hasattr(leaf, "dtype") and hasattr(leaf, "shape") for leaf in leaves]

    def joined(arrays: list[Any]) -> Any:
        left = iter(arrays)
        filled = [next(left) if array else leaf for leaf, array in zip(leaves, is_array, strict=True)]
        return jax.tree.unflatten(structure, filled)

    return [leaf for leaf, array in zip(leaves, is_array, strict=True) if array], joined


def _each_example(module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """An equinox module takes one example, so it is mapped over the batch."""
    given = (args, dict(kwargs))
    axes = jax.tree.map(lambda leaf: 0 if getattr(leaf, "ndim", 0) else None, given)
    return jax.vmap(lambda args, kwargs: module(*args, **kwargs), in_axes=axes)(*given)


def _weights(own: Any, state: Mapping[str, Any], options: Options) -> Any:
    if callable(options.weights):
        return options.weights(state)
    return own


def _is_equinox(value: Any) -> bool:
    return isinstance(value, _of("equinox", "Module"))


def _of(library: str, name: str) -> tuple[type, ...]:
    """A class of a library that is imported already, as nothing could be an instance of it otherwise."""
    module = sys.modules.get(library)
    return () if module is None else (getattr(module, name),)
