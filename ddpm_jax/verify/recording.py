"""What one framework computed, in NumPy alone: the calls of its layers with what went in and came out, and what came of it all."""

import ctypes
import dataclasses
import gc
import tempfile
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_jax import display

Arrays = dict[str, np.ndarray]
"""Arrays by their place in a structure: `""` for a bare array, `"0"`, `"1"` for tuples, names for dicts, nested with dots."""

LARGE = 2**20
"""Bytes from which on an array of `OnDisk` is a file."""


class OnDisk(MutableMapping[str, np.ndarray]):
    """Arrays by name, the large ones in files that are gone when it is: gradients of three runs do not fit where a network does."""

    def __init__(self, arrays: Mapping[str, np.ndarray] | None = None):
        self._arrays: dict[str, np.ndarray | Path] = {}
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._files = 0
        self.update(arrays or {})

    def __setitem__(self, name: str, array: np.ndarray) -> None:
        if array.nbytes < LARGE:
            self._arrays[name] = array
            return
        self._folder = self._folder or tempfile.TemporaryDirectory(prefix="ddpm-jax-verify-")
        path = Path(self._folder.name) / f"{self._files}.npy"
        self._files += 1
        np.save(path, array)
        del self[name]
        self._arrays[name] = path

    def __getitem__(self, name: str) -> np.ndarray:
        found = self._arrays[name]
        return np.load(found) if isinstance(found, Path) else found

    def __delitem__(self, name: str) -> None:
        before = self._arrays.pop(name, None)
        if isinstance(before, Path):
            before.unlink()

    def order(self, names: Iterable[str]) -> None:
        """Have the names in this order."""
        self._arrays = {name: self._arrays[name] for name in names}

    def __contains__(self, name: object) -> bool:
        return name in self._arrays

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __repr__(self) -> str:
        """Its names are many."""
        return display.line("OnDisk", f"{len(self)} arrays")


HEAVY = 2**26
"""Bytes of weights from which on it is worth while to `give_back`, which takes a tenth of a second and more."""


def give_back(nbytes: int, *, collect: bool = True) -> None:
    """Let the system have what was freed: glibc keeps arrays of a megabyte or so, in a heap for each thread that made one.

    nbytes: of the network's weights; nothing is done for a light one. collect: free first what only refers to itself.
    """
    if nbytes < HEAVY:
        return
    if collect:
        gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


@dataclass
class Call:
    """One call of one layer."""

    name: str
    """Dotted path of the layer; `path#2` is its second call."""
    kind: str
    """Name of its class; "tap" for an array that a function named by `tap`."""
    inputs: Arrays
    """What it was called with: positional arguments "0", "1", keyword arguments by name; structures within nested with dots."""
    outputs: Arrays
    """What it returned; `""` where that is one array."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Its numbers, words and tuples of them, such as eps and padding, by the attribute's name."""
    parameters: Arrays = field(default_factory=dict)
    """Its own parameters and running statistics (not those of the layers within it), as they were before the call."""
    precision: str = ""
    """The lowest floating-point dtype that anything in it was computed in, where that was seen: "float32"."""

    def __repr__(self) -> str:
        """Its name and shapes; the arrays are many."""
        shapes = [", ".join(f"{x.shape}" for x in arrays.values()) for arrays in (self.inputs, self.outputs)]
        return display.line("Call", display.short(self.name), self.kind, f"{shapes[0]} -> {shapes[1]}")

    @property
    def path(self) -> str:
        """The layer's name without the number of the call."""
        return self.name.partition("#")[0]


@dataclass
class Recording:
    """Everything that one side computed."""

    side: str
    """ "JAX" or "PyTorch"."""
    calls: list[Call]
    """In the order in which they finished."""
    inputs: Arrays
    """What the whole was called with."""
    outputs: Arrays
    """What it returned."""
    gradients: MutableMapping[str, np.ndarray] = field(default_factory=dict)
    """Of the loss: "input NAME" by input, the PyTorch name by parameter, each in PyTorch's order of axes."""
    statistics: Arrays = field(default_factory=dict)
    """Running statistics afterwards, by PyTorch name."""
    environment: dict[str, Any] = field(default_factory=dict)
    """dtype, device, versions; and what else is to be said."""
    layers: list[str] = field(default_factory=list)
    """Paths of all layers that the model holds, called or not; empty where that is not known."""
    arrays: list[str] = field(default_factory=list)
    """Names of all its parameters and statistics, likewise."""

    def __repr__(self) -> str:
        """Its side and how much it holds."""
        return display.line("Recording", self.side, f"{len(self.calls)} calls", f"{len(self.gradients)} gradients")

    def by_name(self) -> dict[str, Call]:
        """name -> call."""
        return {call.name: call for call in self.calls}


def numbered(path: str, before: Mapping[str, int]) -> str:
    """The name of the next call of a layer that was called before[path] times."""
    times = before.get(path, 0)
    return path if times == 0 else f"{path}#{times + 1}"


def leaves(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Everything within tuples, lists, mappings and dataclasses, by its place; nothing for None and for words."""
    if value is None or isinstance(value, str | bytes):
        return
    parts: Iterator[tuple[Any, Any]] | None = None
    if isinstance(value, Mapping):
        parts = iter(value.items())
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        parts = iter(zip(value._fields, value, strict=True))
    elif isinstance(value, tuple | list):
        parts = iter(enumerate(value))
    elif dataclasses.is_dataclass(value) and not callable(value) and not hasattr(value, "shape"):
        parts = ((part.name, getattr(value, part.name)) for part in dataclasses.fields(value))
    if parts is None:
        yield place, value
        return
    for name, part in parts:
        yield from leaves(part, f"{place}.{name}" if place else str(name))


def to_array(value: Any, *, copy: bool = True) -> np.ndarray | None:
    """A NumPy array of a tensor, array or number; None for what is neither. bfloat16 becomes float32, which holds it.

    copy: or else, where that can be, a view of what may change later.
    """
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = (value.float() if str(value.dtype) == "torch.bfloat16" else value).numpy()
    if not (hasattr(value, "shape") and hasattr(value, "dtype")) and not isinstance(
        value, bool | int | float | complex
    ):
        return None
    try:
        array = np.array(value) if copy else np.asarray(value)
    except TypeError:  # a key of jax.random
        return None
    if array.dtype.kind == "V" or str(array.dtype) == "bfloat16":
        array = array.astype(np.float32)
    return array if array.dtype.kind in "biufc" else None


def arrays_of(value: Any, *, copy: bool = True) -> Arrays:
    """The arrays within a structure, as NumPy arrays, by place; copy: as in to_array."""
    found = ((place, to_array(leaf, copy=copy)) for place, leaf in leaves(value))
    return {place: array for place, array in found if array is not None}


def arguments(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Positional and keyword arguments as one mapping: "0", "1", ..., then names."""
    return {str(index): value for index, value in enumerate(args)} | dict(kwargs)
