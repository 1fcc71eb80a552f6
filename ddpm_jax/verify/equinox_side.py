"""Equinox: modules anywhere in a pytree of parameters, watched while a function runs."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from functools import partial
from typing import Any

import equinox as eqx
import jax

from ddpm_jax.verify.observing import Site, current
from ddpm_jax.verify.options import Options
from ddpm_jax.verify.patching import patched
from ddpm_jax.verify.recording import arrays_of
from ddpm_jax.verify.settings import settings_of


def prepared(tree: Any, options: Options) -> Any:
    """A pytree whose modules are in evaluation or training mode, with dropout off."""
    if not options.training:
        return eqx.nn.inference_mode(tree)
    if options.dropout:
        return tree
    is_dropout = lambda part: isinstance(part, eqx.nn.Dropout)  # noqa: E731
    return jax.tree.map(
        lambda part: eqx.tree_at(lambda one: one.inference, part, True) if is_dropout(part) else part,
        tree,
        is_leaf=is_dropout,
    )


def modules(tree: Any, path: str = "") -> Iterator[tuple[str, eqx.Module]]:
    """Every equinox module within a pytree, by its path, the outermost first."""
    if isinstance(tree, eqx.Module):
        yield path, tree
    parts: Iterator[tuple[Any, Any]] = iter(())
    if isinstance(tree, Mapping):
        parts = iter(tree.items())
    elif isinstance(tree, tuple | list):
        parts = iter(enumerate(tree))
    elif is_dataclass(tree) and not isinstance(tree, type):
        parts = ((f.name, getattr(tree, f.name, None)) for f in fields(tree))
    for name, part in parts:
        yield from modules(part, f"{path}.{name}" if path else str(name))


@contextmanager
def watched(tree: Any) -> Iterator[None]:
    """While entered, calls of the modules within a pytree are taken note of.

    A module is known by its identity; one that a transformation took apart and put together, by its class, structure and turn.
    """
    found = list(modules(tree))
    by_identity: dict[int, str] = {}
    for path, module in found:
        by_identity.setdefault(id(module), path)
    by_structure: dict[Any, list[str]] = {}
    for path, module in found:
        by_structure.setdefault(_structure(module), []).append(path)
    turns: dict[Any, int] = {}

    def around(call: Callable[..., Any], module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        observer = current()
        path = by_identity.get(id(module))
        if path is None:
            alike = by_structure.get(_structure(module), [""])
            turn = turns.get(_structure(module), 0)
            turns[_structure(module)] = turn + 1
            path = alike[turn % len(alike)]
        if observer is None or not path:
            return call(module, *args, **kwargs)
        own = {f.name: getattr(module, f.name, None) for f in fields(module)}
        concrete = {n: x for n, x in own.items() if isinstance(x, jax.Array) and not isinstance(x, jax.core.Tracer)}
        site = Site(path, type(module).__name__, settings_of(module), lambda: arrays_of(concrete, copy=False))
        return observer.call(site, partial(call, module), args, kwargs)

    with patched({type(module) for _, module in found if callable(module)}, around):
        yield


def _structure(module: eqx.Module) -> Any:
    shapes = tuple(getattr(x, "shape", None) for x in jax.tree.leaves(module) if not isinstance(x, jax.core.Tracer))
    return type(module), str(jax.tree.structure(module)), len(shapes)
