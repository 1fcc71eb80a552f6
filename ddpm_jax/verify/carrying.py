"""PyTorch's weights in a JAX side, whatever that is made of, and its gradients under PyTorch's names."""

import itertools
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any

import numpy as np

from ddpm_jax.errors import UserError
from ddpm_jax.paths import listed, renamed
from ddpm_jax.verify.options import Options
from ddpm_jax.verify.program import Program, own_weights
from ddpm_jax.verify.proposal import propose
from ddpm_jax.verify.tolerances import relative_error
from ddpm_jax.verify.torch_side import Tensors
from ddpm_jax.weights.bridge import (
    IGNORED,
    Asked,
    Entry,
    arrays_from,
    candidates,
    gradients_by_tensor,
    tensors_from,
    without_rule,
)

SAME = 1e-5
"""Relative error within which an array is PyTorch's tensor."""


def carry(program: Program, theirs: Tensors, options: Options, modules: Callable[[], Mapping[str, Any]]) -> None:
    """Give a program PyTorch's weights, where the options say so, and have it name its gradients as PyTorch does, where it can.

    modules: of linen, {dotted path: module}, found only when needed.

    Raises:
        UserError: the weights are to be carried, and do not correspond (both lists), or a rule fits nothing.
    """
    if program.tree is None or not theirs:
        if options.weights == "carried" or options.rules:
            raise UserError("weights are carried from a torch.nn.Module to parameters in JAX; a side has none.")
        return
    own = own_weights(options, carried=program.carried) or callable(options.weights)
    if own and not (options.gradients or options.rules):
        return
    try:
        entries = entries_of(program, theirs, options, modules())
    except UserError:
        if not own or options.rules:
            raise
        return
    summed = {key for entry in entries if len(entry.keys) > 1 for key in entry.keys}  # of two biases one
    arrays = arrays_from(
        entries, {key: x.astype(np.float64) if key in summed else x for key, x in theirs.arrays.items()}
    )
    held = program.own()
    check_made(entries, arrays, held)
    if not own:
        program.fill(arrays)
    elif not options.rules and any(relative_error(held[path], array) > SAME for path, array in arrays.items()):
        return  # what is not the same by value may not be the same by name
    _name(program, entries, theirs)


def _name(program: Program, entries: list[Entry], theirs: Tensors) -> None:
    """Have a program's gradients and statistics named as PyTorch's are."""

    def gradients(grads: Any) -> dict[str, np.ndarray]:
        found: dict[str, np.ndarray] = {}
        for key, grad in gradients_by_tensor(entries, program.by_path(grads)).items():
            first = tied.get(key, key)  # PyTorch adds what comes to a tensor by all its names
            found[first] = found[first] + grad if first in found else grad
        return found

    tied = theirs.tied  # the tensors themselves need not be kept
    running = [entry for entry in entries if entry.path[0] == "batch_stats"]
    program.gradients = gradients
    if running:
        program.statistics = lambda after: tensors_from(running, program.by_path({"batch_stats": {}, **after}))


def entries_of(program: Program, theirs: Tensors, options: Options, modules: Mapping[str, Any]) -> list[Entry]:
    """How every array of a program is made of PyTorch's tensors; what is to be ignored, only if it is so made.

    Raises:
        UserError: arrays or tensors without a partner, both listed; a rule that fits nothing.
    """
    asked = Asked(options.names, options.rules, (), theirs.arrays)
    entries: list[Entry] = []
    for full, layer, made in candidates(program.tree, asked, modules):
        fits = made is not None and all(
            key in theirs.arrays and theirs.arrays[key].shape == shape
            for key, shape in zip(made.keys, made.shapes, strict=True)
        )
        if made is not None and (fits or not listed(full, options.ignore)):
            entries.append(made)
        elif made is None and not listed(full, options.ignore):
            raise UserError(f"{without_rule(full, layer)}{_proposed(program, theirs, modules)}")
    program.arrays = asked.paths
    asked.check_used(["rules"])
    try:
        check_pair(entries, theirs, options.ignore)
    except UserError as error:
        # a name that fits nothing is the likelier reason, unless it is a layer's that holds no arrays
        layers = [*program.layers, *modules]
        asked.names = {one: to for one, to in asked.names.items() if not any(renamed(p, {one: to})[1] for p in layers)}
        asked.check_used(["names"])
        raise UserError(f"{error}{_proposed(program, theirs, modules)}") from error
    return entries


def _proposed(program: Program, theirs: Tensors, modules: Mapping[str, Any]) -> str:
    """What `verify.propose` finds, where it finds anything."""
    with suppress(UserError):
        found = propose(program.tree, theirs.arrays, modules=modules)
        return f"\nverify.propose finds:\n{found.text()}" if found.names else ""
    return ""


def check_pair(entries: list[Entry], theirs: Tensors, ignore: Iterable[str]) -> None:
    """See that a network's arrays and PyTorch's tensors correspond.

    Raises:
        UserError: names or shapes that do not match (both lists side by side).
    """
    ours = {key: tuple(shape) for entry in entries for key, shape in zip(entry.keys, entry.shapes, strict=True)}
    used = {theirs.tied.get(key, key) for key in ours}
    wanted = {
        key: tuple(array.shape)
        for key, array in theirs.arrays.items()
        if key in ours
        or not (
            theirs.tied.get(key, key) in used
            or key in theirs.computed
            or listed(key, ignore)
            or key.rpartition(".")[2] in IGNORED
        )
    }
    if ours == wanted:
        return
    left = [f"{key} {shape}" for key, shape in sorted(ours.items()) if wanted.get(key) != shape]
    right = [f"{key} {shape}" for key, shape in sorted(wanted.items()) if ours.get(key) != shape]
    width = max(map(len, [*left, "JAX"]))
    lines = [
        f"  {a:<{width}}  |  {b}" for a, b in itertools.zip_longest(["JAX", *left], ["PyTorch", *right], fillvalue="")
    ]
    raise UserError(
        f"the modules' arrays do not correspond ({len(left)} of JAX's and {len(right)} of PyTorch's stand alone):\n"
        + "\n".join(lines)
        + "\nRename attributes, or pass names={'path in JAX': 'path in PyTorch'}, or ignore=."
    )


def check_made(entries: list[Entry], arrays: Mapping[Any, np.ndarray], own: Mapping[Any, Any]) -> None:
    """See that rules make arrays of the shapes that JAX has.

    Raises:
        UserError: one does not, by name.
    """
    for entry in entries:
        made, wanted = arrays[entry.path].shape, tuple(own[entry.path].shape)
        if made != wanted:
            raise UserError(
                f"the rule for {'.'.join(map(str, entry.path))} makes {made} of {', '.join(entry.keys)}; it must make {wanted}."
            )
