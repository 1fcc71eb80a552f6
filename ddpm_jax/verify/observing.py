"""What a JAX side's layers are given and return, seen through jit, remat, scan and vmap; and, if asked for, given something else.

Recording: an array that is being traced is watched by a callback of the running program, under vmap with its whole batch.
Feeding: each layer takes, and returns, what its PyTorch partner did, whatever it would have itself.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap

from ddpm_jax.verify import taps
from ddpm_jax.verify.layouts import comparable, decide
from ddpm_jax.verify.matching import paired
from ddpm_jax.verify.recording import Arrays, Call, arguments, leaves, numbered, to_array

LAYER = "layer:"
"""What the scopes begin with in which layers are traced: by them a program tells which layer an operation belongs to."""


@dataclass
class Site:
    """A place in the program where a layer is called: once, or again and again where it stands in a loop."""

    path: str
    kind: str
    settings: dict[str, Any]
    parameters: Callable[[], Arrays]
    inputs: dict[str, list[np.ndarray]] = field(default_factory=dict)
    outputs: dict[str, list[np.ndarray]] = field(default_factory=dict)

    @property
    def times(self) -> int:
        """How often it ran."""
        return max((len(found) for found in (*self.inputs.values(), *self.outputs.values())), default=0)


def _in_place(old: Any, new: Any) -> Any:
    """What is given instead, in the caller's own list where it is one: a layer may take from its end, as a decoder takes skips."""
    if type(old) is not list:
        return new
    old[:] = new
    return old


@dataclass
class Feeding:
    """What to give the layers instead."""

    partners: Mapping[str, Call]
    """JAX name -> the PyTorch call whose inputs and outputs are given."""
    tolerance: float
    """Within which two arrays agree, where the order of axes has to be decided by values."""
    within_loops: bool = False
    """Whether some layers are called within a compiled part or a loop: it is taken apart, so that they can be fed."""


class Observer:
    """Takes note of every call of a layer, in order, and feeds them where a Feeding says so."""

    def __init__(self, feeding: Feeding | None = None):
        self.feeding, self.sites, self.fed = feeding, list[Site](), set[str]()
        self.begun: dict[str, int] = {}
        self.compiled = False

    def call(self, site: Site, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """function(*args, **kwargs), taken note of."""
        name = self._name(site.path)
        partner = self.feeding.partners.get(name) if self.feeding else None
        given = self._seen(site.inputs, arguments(args, kwargs), partner.inputs if partner else {}, name)
        if partner is not None:
            args = tuple(_in_place(old, given[str(i)]) for i, old in enumerate(args))
            kwargs = {key: _in_place(old, given[key]) for key, old in kwargs.items()}
        with jax.named_scope(f"{LAYER}{site.path}"):
            output = function(*args, **kwargs)
        self.sites.append(site)
        return self._seen(site.outputs, output, partner.outputs if partner else {}, name)

    def tapped(self, name: str, value: Any) -> Any:
        """A named value of a function: a layer without inputs."""
        site = Site(name, "tap", {}, dict)
        self.sites.append(site)
        numbered_name = self._name(name)
        partner = self.feeding.partners.get(numbered_name) if self.feeding else None
        return self._seen(site.outputs, value, partner.outputs if partner else {}, numbered_name)

    def calls(self) -> list[Call]:
        """All calls, once the program has run and its callbacks are through; those of a loop turn by turn."""
        jax.effects_barrier()
        found: list[Call] = []
        before: dict[str, int] = {}
        for group in _loops(self.sites):
            for turn in range(group[0].times):
                for site in group:
                    inputs, outputs = (
                        {key: arrays[turn] for key, arrays in side.items() if turn < len(arrays)}
                        for side in (site.inputs, site.outputs)
                    )
                    name = numbered(site.path, before)
                    before[site.path] = before.get(site.path, 0) + 1
                    found.append(Call(name, site.kind, inputs, outputs, site.settings, site.parameters()))
        return found

    def _name(self, path: str) -> str:
        name = numbered(path, self.begun)
        self.begun[path] = self.begun.get(path, 0) + 1
        return name

    def _seen(self, into: dict[str, list[np.ndarray]], value: Any, instead: Arrays, name: str) -> Any:
        arrays = {place: leaf for place, leaf in leaves(value) if _is_array(leaf)}
        theirs = {ours: instead[their] for ours, their in paired(list(arrays), list(instead))}
        for place in arrays:
            into.setdefault(place, [])

        def replace(place: str, leaf: Any) -> Any:
            return self._one(into[place], leaf, theirs.get(place), name) if place in arrays else leaf

        return rebuilt(value, replace)

    def _one(self, into: list[np.ndarray], leaf: Any, theirs: np.ndarray | None, name: str) -> Any:
        if not isinstance(leaf, jax.core.Tracer):
            return self._concrete(into, leaf, theirs, name)

        def note(value: Any) -> None:
            self.compiled = True
            into.append(_kept(value))

        def note_double(words: Any) -> None:
            self.compiled = True
            into.append(np.array(words).view(np.float64)[..., 0])

        @custom_vmap
        def watch(x: Any) -> Any:
            if x.dtype == jnp.float64:
                # callbacks run in threads of their own, where 64 bits may not be enabled
                jax.debug.callback(note_double, jax.lax.bitcast_convert_type(x, jnp.uint32))
            else:
                jax.debug.callback(note, x)
            return x

        @watch.def_vmap
        def whole(axis_size: int, batched: list[bool], x: Any) -> tuple[Any, bool]:
            if isinstance(x, jax.core.Tracer):
                return watch(x), True
            return self._concrete(into, x, theirs, name), True

        return watch(leaf)

    def _concrete(self, into: list[np.ndarray], leaf: Any, theirs: np.ndarray | None, name: str) -> Any:
        ours = _kept(leaf)
        into.append(ours)
        if theirs is None or self.feeding is None or not comparable(theirs, ours):
            return leaf
        layout, _ = decide(theirs, ours, self.feeding.tolerance)
        self.fed.add(name)
        return leaf if layout is None else jnp.asarray(layout.to_jax(theirs)).astype(leaf.dtype)


@contextmanager
def observed(observer: Observer) -> Iterator[Observer]:
    """While entered, taps, and the layers of whatever is called by a side's program, are taken note of."""
    token = taps.listener.set(observer)
    try:
        yield observer
    finally:
        taps.listener.reset(token)


def current() -> Observer | None:
    """The observer of the program that runs at present."""
    active = taps.listener.get()
    return active if isinstance(active, Observer) else None


def rebuilt(value: Any, replace: Callable[[str, Any], Any], place: str = "") -> Any:
    """A structure with replace(place, leaf) in the place of each of its leaves, where there is any other."""

    def part(name: Any, inner: Any) -> Any:
        return rebuilt(inner, replace, f"{place}.{name}" if place else str(name))

    if value is None or isinstance(value, str | bytes):
        return value
    if isinstance(value, Mapping):
        changed = {name: part(name, inner) for name, inner in value.items()}
        if all(changed[name] is value[name] for name in changed):
            return value
        if type(value) is dict:
            return changed
        return type(value)(**changed) if dataclasses.is_dataclass(value) else type(value)(changed)  # type: ignore[call-arg]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(part(name, inner) for name, inner in zip(value._fields, value, strict=True)))
    if isinstance(value, tuple | list):
        return type(value)(part(index, inner) for index, inner in enumerate(value))
    if dataclasses.is_dataclass(value) and not callable(value) and not hasattr(value, "shape"):
        fields = [f.name for f in dataclasses.fields(value)]
        changed = {name: part(name, getattr(value, name)) for name in fields}
        same = all(changed[name] is getattr(value, name) for name in fields)
        return value if same else dataclasses.replace(value, **changed)
    return replace(place, value)


def _loops(sites: list[Site]) -> Iterator[list[Site]]:
    """Neighbouring sites that ran equally often, together."""
    group: list[Site] = []
    for site in sites:
        if group and (site.times != group[0].times or site.times < 2):
            yield group
            group = []
        group.append(site)
    if group:
        yield group


def _is_array(leaf: Any) -> bool:
    if isinstance(leaf, jax.Array):
        return not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return isinstance(leaf, np.ndarray | np.generic)


def _kept(value: Any) -> np.ndarray:
    kept = to_array(value)
    assert kept is not None
    return kept
