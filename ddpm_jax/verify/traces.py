"""Traces: everything that a model's layers were given and returned, in one file, so that it can be compared elsewhere and later.

This file needs NumPy alone, and torch or jax, whichever the model is of: copy it to any machine as it is.

    python -c "import traces; ..."      traces.record(model, inputs, "here.safetensors")

The file is a safetensors one. Its metadata holds, under "trace", JSON with the order of the calls, names, settings and versions; a
tensor is called "INDEX/in/PLACE", "INDEX/out/PLACE" or "INDEX/own/NAME" after the call's number and the place in its arguments.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import platform
import struct
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO

import numpy as np

try:
    from ddpm_jax.errors import UserError
except ImportError:  # copied to where this project is not installed
    UserError = ValueError  # type: ignore[misc, assignment]

VERSION = 1
"""Of what is in a trace."""
DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "U16": "uint16",
    "U32": "uint32",
    "U64": "uint64",
    "BOOL": "bool",
}
"""Types of safetensors, and NumPy's names for them; NumPy has no bfloat16."""


class TraceError(UserError):
    """A trace that cannot be made or read; the message says why."""


def record(model: Any, inputs: Any, path: str | os.PathLike[str], *, parameters: bool = True, **kwargs: Any) -> str:
    """Call a model and write what went into every layer and came out; returns the path.

    model: a torch.nn.Module, an NNX or equinox module, or linen's (module, variables). It is called as it is: put it into
    evaluation mode, on its device and in its precision, first. inputs: its arguments, a tuple, or one array; NumPy arrays become
    those of the framework, of the parameters' precision where they are floats. kwargs: further arguments, by name. parameters:
    write each layer's own parameters too, so that a difference can be told from one of weights.

    Raises:
        TraceError: the model is of another kind, or returns no arrays.
    """
    inputs = inputs if isinstance(inputs, tuple | list) else (inputs,)
    side = _side_of(model)
    writer = _Writer(os.fspath(path))
    try:
        with side.watching(lambda call: writer.add(call, parameters)):
            args = [side.array(value) for value in inputs]
            named = {name: side.array(value) for name, value in kwargs.items()}
            output = side.call(args, named)
        whole = _Call("", side.kind, _places(_arguments(args, named)), _places(output), {}, {})
        if not whole.outputs:
            raise TraceError(f"the model must return arrays; got a {type(output).__name__}.")
        writer.add(whole, False)
        writer.finish(
            {"side": side.name, "model": side.kind, "layers": side.layers(), "environment": side.environment()}
        )
    finally:
        writer.clear()
    return os.fspath(path)


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A trace: what it says of itself, and its calls in order, the model's own last.

    Each call is {"name", "kind", "settings", "inputs", "outputs", "parameters"}, the last three {place: array}; bfloat16 comes as
    float32.

    Raises:
        TraceError: the file is missing, cut short, damaged, no trace, or of another version; the message says which.
    """
    path = os.fspath(path)
    try:
        with open(path, "rb") as file:
            return _read(path, file)
    except OSError as error:
        raise TraceError(f"{path} cannot be read: {error.strerror}.") from error


def _read(path: str, file: BinaryIO) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    size = os.fstat(file.fileno()).st_size
    start = file.read(8)
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else -1
    if length < 2 or length > max(size, 8) * 1024 or length > 1 << 30:
        raise TraceError(f"{path} is no safetensors file.")
    if 8 + length > size:
        raise TraceError(f"{path} is cut short: {size} bytes, its header alone has {8 + length}.")
    try:
        header = json.loads(file.read(length))
        about = json.loads(header.pop("__metadata__")["trace"])
        version = about["version"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise TraceError(f"{path} is no trace: its header has no readable entry 'trace'.") from error
    if version != VERSION:
        raise TraceError(f"{path} is a trace of version {version}; this reads version {VERSION}. Record it again.")
    try:
        needed = 8 + length + max((int(tensor["data_offsets"][1]) for tensor in header.values()), default=0)
        if size < needed:
            raise TraceError(f"{path} is cut short: {size} bytes of {needed}.")
        data = file.read()
        if hashlib.sha256(data).hexdigest() != about["sha256"]:
            raise TraceError(f"{path} is damaged: its numbers are not those that were written.")
        arrays = {name: _decoded(data, tensor) for name, tensor in header.items()}
        return about, [_call_of(index, call, arrays) for index, call in enumerate(about["calls"])]
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        if isinstance(error, TraceError):
            raise
        raise TraceError(f"{path} is damaged: {type(error).__name__}: {error}.") from error


def _call_of(index: int, call: dict[str, Any], arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    groups = {"inputs": "in", "outputs": "out", "parameters": "own"}
    found = {
        group: {place: arrays[f"{index}/{short}/{place}"] for place in call[group]} for group, short in groups.items()
    }
    return {"name": call["name"], "kind": call["kind"], "settings": call["settings"], **found}


def _decoded(data: bytes, tensor: dict[str, Any]) -> np.ndarray:
    start, stop = tensor["data_offsets"]
    kind, shape = DTYPES[tensor["dtype"]], tuple(tensor["shape"])
    if kind == "bfloat16":
        half = np.frombuffer(data[start:stop], np.uint16).astype(np.uint32) << 16
        return half.view(np.float32).reshape(shape)
    return np.frombuffer(data[start:stop], kind).reshape(shape).copy()


# Writing


@dataclasses.dataclass
class _Call:
    name: str
    kind: str
    inputs: dict[str, Any]
    outputs: dict[str, Any]
    parameters: dict[str, Any]
    settings: dict[str, Any]


class _Writer:
    """Tensors go to a file beside the one that is made, so that memory holds one at a time; the header is written last."""

    def __init__(self, path: str):
        self.path, self.aside = path, f"{path}.{os.getpid()}.part"
        folder = os.path.dirname(os.path.abspath(path))
        if not os.path.isdir(folder):
            raise TraceError(f"the folder {folder} does not exist.")
        self.file: BinaryIO = open(self.aside, "wb")  # noqa: SIM115 - closed in finish and clear
        self.header: dict[str, Any] = {}
        self.calls: list[dict[str, Any]] = []
        self.times: dict[str, int] = {}
        self.hash, self.offset = hashlib.sha256(), 0

    def add(self, call: _Call, parameters: bool) -> None:
        self.times[call.name] = self.times.get(call.name, 0) + 1
        name = call.name if self.times[call.name] == 1 else f"{call.name}#{self.times[call.name]}"
        own = call.parameters if parameters and self.times[call.name] == 1 else {}
        places = {}
        for group, short, arrays in (
            ("inputs", "in", call.inputs),
            ("outputs", "out", call.outputs),
            ("parameters", "own", own),
        ):
            for place, value in arrays.items():
                self._tensor(f"{len(self.calls)}/{short}/{place}", value)
            places[group] = list(arrays)
        self.calls.append({"name": name, "kind": call.kind, "settings": call.settings, **places})

    def _tensor(self, name: str, value: Any) -> None:
        kind, raw, shape = _raw(value)
        self.file.write(raw)
        self.hash.update(raw)
        self.header[name] = {"dtype": kind, "shape": shape, "data_offsets": [self.offset, self.offset + len(raw)]}
        self.offset += len(raw)

    def finish(self, about: dict[str, Any]) -> None:
        self.file.close()
        about = {"version": VERSION, **about, "calls": self.calls, "sha256": self.hash.hexdigest()}
        text = json.dumps({"__metadata__": {"trace": json.dumps(about)}, **self.header}).encode()
        text += b" " * (-len(text) % 8)
        whole = f"{self.aside}.whole"
        with open(whole, "wb") as file, open(self.aside, "rb") as data:
            file.write(struct.pack("<Q", len(text)) + text)
            while piece := data.read(1 << 24):
                file.write(piece)
        os.replace(whole, self.path)

    def clear(self) -> None:
        self.file.close()
        for left in (self.aside, f"{self.aside}.whole"):
            if os.path.exists(left):
                os.remove(left)


def _raw(value: Any) -> tuple[str, bytes, list[int]]:
    """Type in safetensors, bytes and shape of an array or tensor."""
    if hasattr(value, "detach"):
        value = value.detach().cpu().contiguous()
        if str(value.dtype) == "torch.bfloat16":
            return "BF16", value.view(_torch().int16).numpy().tobytes(), list(value.shape)
        value = value.numpy()
    array = np.asarray(value)
    shape = list(array.shape)
    if str(array.dtype) == "bfloat16":
        return "BF16", np.ascontiguousarray(array).view(np.uint16).tobytes(), shape
    kind = {name: short for short, name in DTYPES.items()}.get(str(array.dtype))
    if kind is None:
        raise TraceError(f"arrays of type {array.dtype} cannot be written; of {', '.join(DTYPES.values())} they can.")
    return kind, np.ascontiguousarray(array).tobytes(), shape


# Structures


def _places(value: Any, place: str = "") -> dict[str, Any]:
    """The arrays within a structure by place: "" for a bare array, "0", "1", names, with dots between."""
    parts: Any = ()
    if value is None or isinstance(value, str | bytes):
        return {}
    if isinstance(value, Mapping):
        parts = value.items()
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        parts = zip(value._fields, value, strict=True)
    elif isinstance(value, tuple | list):
        parts = enumerate(value)
    elif hasattr(value, "shape") and hasattr(value, "dtype"):
        return {} if "key<" in str(value.dtype) else {place: value}
    elif isinstance(value, bool | int | float):
        return {place: np.asarray(value)}
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = ((part.name, getattr(value, part.name)) for part in dataclasses.fields(value))
    found: dict[str, Any] = {}
    for name, part in parts:
        found |= _places(part, f"{place}.{name}" if place else str(name))
    return found


def _arguments(args: Any, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return {str(index): value for index, value in enumerate(args)} | dict(kwargs)


def _settings(module: Any) -> dict[str, Any]:
    """A layer's numbers, words and tuples of them, by attribute."""

    def plain(value: Any) -> bool:
        return isinstance(value, bool | int | float | str) or (
            isinstance(value, tuple | list) and all(map(plain, value))
        )

    kept = {name: value for name, value in vars(module).items() if not name.startswith("_") and plain(value)}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in kept.items()}


# The frameworks


def _side_of(model: Any) -> Any:
    kinds = {kind.__module__.partition(".")[0] for kind in type(model).__mro__}
    if "torch" in kinds and hasattr(model, "named_modules"):
        return _TorchSide(model)
    if "flax" in kinds and any(kind.__module__.startswith("flax.nnx") for kind in type(model).__mro__):
        return _NnxSide(model)
    if isinstance(model, tuple) and len(model) == 2 and hasattr(model[0], "apply"):
        return _LinenSide(*model)
    if "equinox" in kinds:
        return _EquinoxSide(model)
    raise TraceError(
        "model must be a torch.nn.Module, an NNX or equinox module, or linen's (module, variables); "
        f"got a {type(model).__name__}."
    )


def _torch() -> Any:
    import torch

    return torch


class _TorchSide:
    name = "PyTorch"

    def __init__(self, model: Any):
        self.model, self.kind = model, type(model).__name__
        tensors = [*model.parameters(), *model.buffers()]
        self.like = next((tensor for tensor in tensors if tensor.is_floating_point()), None)

    def array(self, value: Any) -> Any:
        if not hasattr(value, "shape") or hasattr(value, "detach"):
            return value
        tensor = _torch().from_numpy(np.array(value))
        if self.like is None:
            return tensor
        return tensor.to(self.like.device, self.like.dtype if tensor.is_floating_point() else tensor.dtype)

    def call(self, args: Any, kwargs: Any) -> Any:
        with _torch().no_grad():
            return self.model(*args, **kwargs)

    @contextlib.contextmanager
    def watching(self, add: Callable[[_Call], None]) -> Iterator[None]:
        given: list[tuple[Any, Any]] = []

        def before(module: Any, args: Any, kwargs: Any) -> None:
            # a copy, since a layer may change its input in place
            given.append((module, {k: _copy(v) for k, v in _places(_arguments(args, kwargs)).items()}))

        def after(name: str) -> Callable[..., None]:
            def note(module: Any, args: Any, kwargs: Any, output: Any) -> None:
                while given and given[-1][0] is not module:
                    given.pop()  # of a layer that raised
                inputs = given.pop()[1]
                own = {n: t for n, t in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))}
                add(_Call(name, type(module).__name__, inputs, _places(output), own, _settings(module)))

            return note

        handles = []
        for name, module in self.model.named_modules():
            if name:
                handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
                handles.append(module.register_forward_hook(after(name), with_kwargs=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def layers(self) -> list[str]:
        return [name for name, _ in self.model.named_modules() if name]

    def environment(self) -> dict[str, Any]:
        torch = _torch()
        found = {"torch": str(torch.__version__), "numpy": np.__version__, "python": platform.python_version()}
        if self.like is not None:
            found |= {"dtype": str(self.like.dtype).removeprefix("torch."), "device": str(self.like.device)}
            if self.like.is_cuda:
                found["device"] = torch.cuda.get_device_name(self.like.device)
        return found | {"training": bool(self.model.training)}


def _copy(value: Any) -> Any:
    return value.detach().clone() if hasattr(value, "detach") else value


class _JaxSide:
    name = "JAX"
    kind = ""

    def like(self) -> list[Any]:
        """Arrays of the network, the first of which says precision and device."""
        raise NotImplementedError

    def array(self, value: Any) -> Any:
        import jax.numpy as jnp

        if not hasattr(value, "shape"):
            return value
        floats = [array for array in self.like() if jnp.issubdtype(array.dtype, jnp.floating)]
        array = jnp.asarray(value)
        return array.astype(floats[0].dtype) if floats and jnp.issubdtype(array.dtype, jnp.floating) else array

    def environment(self) -> dict[str, Any]:
        import jax

        found = {"jax": jax.__version__, "numpy": np.__version__, "python": platform.python_version()}
        array = next((a for a in self.like() if jax.numpy.issubdtype(a.dtype, jax.numpy.floating)), None)
        if array is not None:
            found |= {"dtype": str(array.dtype), "device": next(iter(array.devices())).device_kind}
        return found | {"matmul_precision": str(jax.config.values["jax_default_matmul_precision"] or "default")}

    @contextlib.contextmanager
    def patched(
        self, named: dict[int, str], kinds: set[type], own: Callable[[Any], dict[str, Any]], add: Any
    ) -> Iterator[None]:
        """While entered, calls of modules with a name, by id, are told; without jit, so that numbers are there."""
        import jax

        def wrap(kind: type, call: Callable[..., Any]) -> Callable[..., Any]:
            def noted(module: Any, *args: Any, **kwargs: Any) -> Any:
                output = call(module, *args, **kwargs)
                # a subclass that calls its parent's __call__ is one layer, not two
                if id(module) in named and type(module) is kind:
                    inputs, outputs = _places(_arguments(args, kwargs)), _places(output)
                    if not any(isinstance(leaf, jax.core.Tracer) for leaf in (*inputs.values(), *outputs.values())):
                        add(_Call(named[id(module)], kind.__name__, inputs, outputs, own(module), _settings(module)))
                return output

            return noted

        before = {kind: kind.__dict__.get("__call__") for kind in kinds}
        originals: dict[type[Any], Any] = {kind: kind.__call__ for kind in kinds}
        try:
            for kind, original in originals.items():
                type.__setattr__(kind, "__call__", wrap(kind, original))
            with jax.disable_jit():
                yield
        finally:
            for kind, call in before.items():
                if call is None:
                    type.__delattr__(kind, "__call__")
                else:
                    type.__setattr__(kind, "__call__", call)


class _NnxSide(_JaxSide):
    def __init__(self, model: Any):
        from flax import nnx

        self.model, self.kind = model, type(model).__name__
        self.modules = {".".join(map(str, path)): module for path, module in nnx.iter_modules(model)}

    def like(self) -> list[Any]:
        import jax
        from flax import nnx

        return [leaf for leaf in jax.tree.leaves(nnx.state(self.model, nnx.Param)) if hasattr(leaf, "dtype")]

    def call(self, args: Any, kwargs: Any) -> Any:
        return self.model(*args, **kwargs)

    def watching(self, add: Callable[[_Call], None]) -> Any:
        from flax import nnx

        def own(module: Any) -> dict[str, Any]:
            found = {
                name: value for name, value in vars(module).items() if isinstance(value, nnx.Param | nnx.BatchStat)
            }
            return {name: value.get_value() for name, value in found.items() if value.get_value() is not None}

        named = {id(module): name for name, module in self.modules.items() if name}
        kinds = {type(module) for name, module in self.modules.items() if name and "__call__" in dir(type(module))}
        return self.patched(named, kinds, own, add)

    def layers(self) -> list[str]:
        return [name for name in self.modules if name]


class _EquinoxSide(_JaxSide):
    def __init__(self, model: Any):
        self.model, self.kind = model, type(model).__name__
        self.modules: dict[str, Any] = {}
        self._walk(model, "")

    def _walk(self, node: Any, path: str) -> None:
        if isinstance(node, list | tuple):
            parts: Any = enumerate(node)
        elif isinstance(node, Mapping):
            parts = node.items()
        elif any(kind.__module__.startswith("equinox") for kind in type(node).__mro__) and dataclasses.is_dataclass(
            node
        ):
            self.modules.setdefault(path, node)
            parts = ((f.name, getattr(node, f.name, None)) for f in dataclasses.fields(node))
        else:
            return
        for name, part in parts:
            self._walk(part, f"{path}.{name}".lstrip("."))

    def like(self) -> list[Any]:
        import jax

        return [leaf for leaf in jax.tree.leaves(self.model) if hasattr(leaf, "dtype") and hasattr(leaf, "devices")]

    def call(self, args: Any, kwargs: Any) -> Any:
        return self.model(*args, **kwargs)

    def watching(self, add: Callable[[_Call], None]) -> Any:
        def own(module: Any) -> dict[str, Any]:
            return {name: value for name, value in vars(module).items() if hasattr(value, "devices")}

        named = {id(module): name for name, module in self.modules.items() if name}
        kinds = {type(module) for name, module in self.modules.items() if name and "__call__" in dir(type(module))}
        return self.patched(named, kinds, own, add)

    def layers(self) -> list[str]:
        return [name for name in self.modules if name]


class _LinenSide(_JaxSide):
    def __init__(self, module: Any, variables: Any):
        self.module, self.variables, self.kind = module, variables, type(module).__name__
        self.seen: list[str] = []

    def like(self) -> list[Any]:
        import jax

        return jax.tree.leaves(self.variables)

    def call(self, args: Any, kwargs: Any) -> Any:
        return self.module.apply(self.variables, *args, **kwargs)

    @contextlib.contextmanager
    def watching(self, add: Callable[[_Call], None]) -> Iterator[None]:
        import jax
        from flax import linen

        def note(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
            output = call(*args, **kwargs)
            module, path = context.module, ".".join(context.module.path)
            if path and context.method_name == "__call__":
                own = {n: v for tree in module.variables.values() for n, v in tree.items() if hasattr(v, "shape")}
                add(
                    _Call(
                        path,
                        type(module).__name__,
                        _places(_arguments(args, kwargs)),
                        _places(output),
                        own,
                        _settings(module),
                    )
                )
                self.seen.append(path)
            return output

        with linen.intercept_methods(note), jax.disable_jit():
            yield

    def layers(self) -> list[str]:
        return list(dict.fromkeys(self.seen))
