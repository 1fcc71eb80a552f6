"""Pickled objects read for their tensors and plain data: nothing in a file is imported, and none of its code is run.

Unpickling calls what a file names. Here every name becomes a class that records what it is called with, and only the records that
are known to be tensors, dictionaries and modules are made out afterwards; any other is refused by its name.
"""

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_jax import display
from ddpm_jax.archives import BROKEN
from ddpm_jax.errors import UserError

PLAIN = (type(None), bool, int, float, complex, str, bytes)
"""What stands for itself."""
DICTIONARIES = ("collections.OrderedDict", "dnnlib.util.EasyDict")
PERSISTENT = "torch_utils.persistence._reconstruct_persistent_obj"
"""How NVIDIA's networks are pickled: with their source, which is left alone, and their attributes."""
MODULES = "torch.nn.modules."
SCALARS = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")


class Recorded:
    """An object as a file describes it: the name of its class, what that is called with, and what it is filled with."""

    name = ""
    args: tuple[Any, ...]
    state: Any
    items: dict[Any, Any]

    def __new__(cls, *args: Any) -> "Recorded":
        """A pickle may make an object without its __init__."""
        made = super().__new__(cls)
        made.args, made.state, made.items = args, None, {}
        return made

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items[key] = value


class Module:
    """A module that was pickled: the name of its class, and its attributes, of which `_modules` are those within it."""

    def __init__(self, name: str, attributes: dict[str, Any]):
        self.name, self.attributes = name, attributes

    def __repr__(self) -> str:
        return display.line(self, self.name, attributes=len(self.attributes))

    def tensors(self, prefix: str = "") -> dict[str, np.ndarray]:
        """Its parameters and buffers by name, as its state dict has them.

        Raises:
            UserError: it is no module of PyTorch's.
        """
        parts = [self.attributes.get(part, {}) for part in ("_parameters", "_buffers", "_modules")]
        if not all(isinstance(part, dict) for part in parts):
            raise UserError(f"a {self.name} is no module of PyTorch's: it holds no parameters by name.")
        own = {f"{prefix}{name}": value for part in parts[:2] for name, value in part.items() if value is not None}
        strangers = [name for name, value in own.items() if not isinstance(value, np.ndarray)]
        if strangers:
            raise UserError(f"{', '.join(strangers[:5])} of a {self.name} must be tensors.")
        for name, module in parts[2].items():
            if isinstance(module, Module):
                own |= module.tensors(f"{prefix}{name}.")
        return own


def read_pickle(path: Path) -> Any:
    """What a pickle holds: numbers, strings, lists, dictionaries, arrays for tensors, `Module` for a module of PyTorch's.

    Raises:
        UserError: the file cannot be read, needs PyTorch, or holds anything else, which is named.
    """
    try:
        with path.open("rb") as file:
            found = _Recorder(file).load()
        return _Reader(path).read(found)
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} is refused: {error}.") from error
    except (OSError, MemoryError, AssertionError, AttributeError, *BROKEN) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} is not a readable pickle: {reason}.") from error


class _Recorder(pickle.Unpickler):
    """Finds no class and no function, but makes for every name a class that records."""

    def find_class(self, module: str, name: str) -> Any:
        return type("Recorded", (Recorded,), {"name": f"{module}.{name}"})

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it refers to objects outside of it")


class _Reader:
    """Makes out what was recorded; what stands in two places is made out once."""

    def __init__(self, path: Path):
        self.path = path
        self.known: dict[int, Any] = {}
        self.made: dict[str, Callable[[Recorded], Any]] = {
            "torch._utils._rebuild_tensor_v2": self._tensor,
            "torch._utils._rebuild_parameter": lambda found: self.read(found.args[0]),
            "torch.storage._load_from_bytes": self._storage,
            PERSISTENT: self._persistent,
            **dict.fromkeys(DICTIONARIES, self._dictionary),
            **dict.fromkeys(SCALARS, self._scalar),
        }

    def read(self, found: Any) -> Any:
        if isinstance(found, PLAIN):
            return found
        if id(found) not in self.known:
            self.known[id(found)] = None  # what holds itself is read as None there
            self.known[id(found)] = self._read(found)
        return self.known[id(found)]

    def _read(self, found: Any) -> Any:
        if isinstance(found, dict):
            return {self._key(key): self.read(value) for key, value in found.items()}
        if isinstance(found, list | tuple | set | frozenset):
            return type(found)(self.read(part) for part in found)
        if isinstance(found, type) and issubclass(found, Recorded):
            if found.name.startswith("torch.float"):
                return found.name
            raise pickle.UnpicklingError(self._refusal(found.name))
        if not isinstance(found, Recorded):
            raise pickle.UnpicklingError(self._refusal(type(found).__name__))
        if found.name in self.made:
            return self.made[found.name](found)
        if found.name.startswith(MODULES):
            return Module(found.name.rpartition(".")[2], self._attributes(found.state))
        raise pickle.UnpicklingError(self._refusal(found.name))

    def _refusal(self, name: str) -> str:
        return f"it holds {name}, and only tensors, plain data and modules of PyTorch's are read of a pickle"

    def _key(self, key: Any) -> Any:
        if not isinstance(key, PLAIN):
            raise pickle.UnpicklingError(self._refusal(f"a {type(key).__name__} as a key"))
        return key

    def _attributes(self, state: Any) -> dict[str, Any]:
        attributes = self.read(state)
        if not isinstance(attributes, dict):
            raise pickle.UnpicklingError("an object in it has no attributes by name")
        return attributes

    def _dictionary(self, found: Recorded) -> dict[Any, Any]:
        given = dict(self.read(part) for part in found.args[0]) if found.args else {}
        return given | {self._key(key): self.read(value) for key, value in found.items.items()}

    def _persistent(self, found: Recorded) -> Module:
        (meta,) = found.args
        known = meta.items if isinstance(meta, Recorded) else meta
        if not isinstance(known, dict) or not isinstance(name := known.get("class_name"), str):
            raise pickle.UnpicklingError("an object in it does not say of which class it is")
        return Module(name, self._attributes(known.get("state")))

    def _scalar(self, found: Recorded) -> Any:
        kind, data = found.args
        return np.frombuffer(data, np.dtype(self._plain_dtype(kind)))[0].item()

    def _plain_dtype(self, kind: Any) -> str:
        if not (isinstance(kind, Recorded) and kind.name == "numpy.dtype" and kind.args):
            raise pickle.UnpicklingError(self._refusal(getattr(kind, "name", type(kind).__name__)))
        if kind.args[0] not in ("f8", "f4", "f2", "i8", "i4", "b1"):
            raise pickle.UnpicklingError(self._refusal(f"a number of type {kind.args[0]!r}"))
        return kind.args[0]

    def _storage(self, found: Recorded) -> Any:
        try:
            import torch
        except ImportError as error:
            raise UserError(f'{self.path} needs PyTorch: pip install "ddpm-jax[torch]".') from error
        (data,) = found.args
        if not isinstance(data, bytes):
            raise pickle.UnpicklingError("a storage in it is no bytes")
        storage = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        return torch.tensor([], dtype=storage.dtype).set_(storage)

    def _tensor(self, found: Recorded) -> np.ndarray:
        import torch

        storage, offset, size, stride, *_ = (self.read(part) for part in found.args)
        if not isinstance(storage, torch.Tensor):
            raise pickle.UnpicklingError("a tensor in it has no storage of its own")
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if min((offset, *size, *stride), default=0) < 0 or (0 not in size and last >= storage.numel()):
            raise pickle.UnpicklingError("a tensor in it lies outside its storage")
        if int(np.prod(size, dtype=object)) > storage.numel():
            raise pickle.UnpicklingError("a tensor in it holds more numbers than its storage")
        tensor = storage.as_strided(size, stride, offset)
        return tensor.contiguous().numpy() if tensor.dtype != torch.bfloat16 else tensor.float().numpy()
