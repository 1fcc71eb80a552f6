"""The PyTorch side: a module or a function, run once, with the calls of its layers, its gradients and its running statistics."""

import copy
import math
from collections.abc import Callable, Collection, Iterator, Mapping, MutableMapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from ddpm_jax.errors import UserError, kind_of
from ddpm_jax.verify import taps
from ddpm_jax.verify.options import Options
from ddpm_jax.verify.recording import (
    LARGE,
    Arrays,
    Call,
    OnDisk,
    Recording,
    arguments,
    arrays_of,
    give_back,
    leaves,
    numbered,
    to_array,
)
from ddpm_jax.verify.settings import settings_of


def import_torch() -> Any:
    """PyTorch. Raises UserError where it is not installed."""
    try:
        import torch
    except ImportError as error:
        raise UserError('verifying needs PyTorch: pip install "ddpm-jax[torch]"') from error
    return torch


class Recorder:
    """Takes note of every call of a module's submodules, of taps, and of what is computed in less than the dtype asked for."""

    def __init__(self, module: Any, names: Mapping[int, str], source: Any = None):
        self.module, self.names, self.calls = module, names, list[Call]()
        self.sources = {} if source is None else dict(source.named_modules())
        self.before: dict[str, int] = {}
        self.outside: set[str] = set()
        self.open: list[tuple[str, Arrays, Arrays, set[str]]] = []

    def begin(self, module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """A layer is about to be called."""
        # running statistics change within the call, and an activation may overwrite its input; parameters stay
        path = self.names[id(module)]
        with import_torch()._C.DisableTorchFunction():  # what is read here is not computed in the layer around it
            own = arrays_of(dict(self.sources.get(path, module).named_parameters(recurse=False)), copy=False)
            own |= arrays_of(dict(module.named_buffers(recurse=False)))
        self.open.append((path, arrays_of(arguments(args, kwargs)), own, set()))

    def end(self, module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
        """A layer has returned."""
        path, inputs, parameters, dtypes = self.open.pop()
        kind, outputs = type(module).__name__, arrays_of(output)
        self._add(Call(path, kind, inputs, outputs, settings_of(module), parameters, _lowest(dtypes)))

    def tapped(self, name: str, value: Any) -> Any:
        """A named value of a function."""
        self._add(Call(name, "tap", {}, arrays_of(value)))
        return value

    def computed(self, result: Any) -> None:
        """An operation has returned: the innermost layer that is being called computes in its dtype."""
        for _, leaf in leaves(result):
            if import_torch().is_tensor(leaf) and leaf.is_floating_point():
                # between the layers of the whole, and within a function, there is no layer but the whole
                within = self.open[-1][3] if self.open and self.open[-1][0] else self.outside
                within.add(str(leaf.dtype).removeprefix("torch."))

    def _add(self, call: Call) -> None:
        path = call.name
        call.name = numbered(path, self.before)
        self.before[path] = self.before.get(path, 0) + 1
        self.calls.append(call)


def _lowest(dtypes: set[str]) -> str:
    order = ["float8_e5m2", "float8_e4m3fn", "bfloat16", "float16", "float32", "float64"]
    return min(dtypes, key=lambda dtype: order.index(dtype) if dtype in order else len(order), default="")


@contextmanager
def recorded(module: Any, source: Any = None) -> Iterator[Recorder]:
    """While entered, calls within a torch module (None: of taps alone) are recorded.

    source: the module that it is a copy of, whose parameters are recorded as its own, so that the copy need not be kept.
    """
    torch = import_torch()
    from torch.overrides import TorchFunctionMode

    modules = {} if module is None else {id(part): name for name, part in module.named_modules()}
    recorder = Recorder(module, modules, source)

    class Watch(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **kwargs or {})
            recorder.computed(result)
            return result

    handles = []
    token = taps.listener.set(recorder)
    fast = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)  # it goes past the layers within
        for part in module.modules() if module is not None else ():
            handles.append(part.register_forward_pre_hook(recorder.begin, with_kwargs=True))
            handles.append(part.register_forward_hook(recorder.end, with_kwargs=True))
        with Watch():
            yield recorder
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        taps.listener.reset(token)
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class Tensors:
    """The floating-point tensors of a torch module, by name."""

    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    computed: frozenset[str] = frozenset()
    """Buffers that are no running statistics, such as a table of positions: JAX may have them or compute them."""
    tied: Mapping[str, str] = field(default_factory=dict)
    """Another name of a tensor -> its first."""

    def __bool__(self) -> bool:
        return bool(self.arrays)


class TorchSide:
    """A torch module, a function of inputs, or a pair (function, parameters), ready to be called in a dtype."""

    def __init__(self, side: Any, options: Options):
        torch = import_torch()
        self.options, self.module, self.function, self.parameters = options, None, None, None
        self.backward: dict[str, Callable[[Collection[str]], MutableMapping[str, np.ndarray]]] = {}
        if isinstance(side, torch.nn.Module):
            self.module = side
        elif isinstance(side, tuple) and len(side) == 2 and callable(side[0]):
            self.function, self.parameters = side
        elif callable(side) and not isinstance(side, type):
            self.function = side
        else:
            raise UserError(
                f"torch_model must be a torch.nn.Module, a function, or a pair (function, parameters); got {kind_of(side)}."
            )

    @property
    def name(self) -> str:
        """What it is called in a report."""
        shown = self.module if self.module is not None else self.function
        return getattr(shown, "__name__", type(shown).__name__)

    @property
    def size(self) -> int:
        """Bytes of the module's parameters; 0 for a function."""
        return 0 if self.module is None else sum(parameter.nbytes for parameter in self.module.parameters())

    def skipped(self) -> dict[str, int]:
        """{embedding's weight: its row that PyTorch gives no gradient, by padding_idx}."""
        found = {} if self.module is None else dict(self.module.named_modules())
        return {
            f"{name}.weight".lstrip("."): part.padding_idx
            for name, part in found.items()
            if getattr(part, "padding_idx", None) is not None
        }

    def weights(self) -> Tensors:
        """The floating-point entries of the module's state dict; none for a function."""
        if self.module is None:
            return Tensors()
        tensors = {key: x for key, x in self.module.state_dict().items() if x.is_floating_point()}
        buffers = {key for key, _ in self.module.named_buffers() if "running" not in key}
        firsts = {id(x): key for key, x in self.module.named_parameters()}
        every = self.module.named_parameters(remove_duplicate=False)
        tied = {key: firsts[id(x)] for key, x in every if firsts[id(x)] != key}
        return Tensors({key: as_numpy(tensor, copy=False) for key, tensor in tensors.items()}, frozenset(buffers), tied)

    def run(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], dtype: str, *, gradients: bool) -> Recording:
        """Call it once, in evaluation or training mode; args, kwargs: NumPy arrays, and whatever else it takes."""
        torch, options = import_torch(), self.options
        module = self.copied(dtype)
        positional, named = self.tensors(args, kwargs, dtype)
        given = arguments(positional, named)
        parameters = None if self.parameters is None else self._tensor(self.parameters, dtype, gradients)
        floats = {place: x for place, x in leaves(given) if getattr(x, "requires_grad", False)}
        own = () if parameters is None else (parameters,)
        call = module if module is not None else self.function
        assert call is not None
        with recorded(module, self.module) as recorder, default_dtype(dtype), ExitStack() as stack:
            if not gradients:
                stack.enter_context(torch.no_grad())
            if not options.dropout:
                stack.enter_context(without_dropout(module))
            output = call(*own, *positional, **named)
        found = Recording(
            "PyTorch",
            [one for one in recorder.calls if one.path],
            arrays_of(arguments(args, kwargs)),
            arrays_of(output),
            environment={"dtype": dtype, "torch": str(torch.__version__), "precision": _lowest(recorder.outside)},
            layers=[] if module is None else [name for name, _ in module.named_modules() if name],
            arrays=[] if module is None else list(module.state_dict()),
        )
        if options.training and module is not None:
            buffers = {key: x for key, x in module.named_buffers() if x.is_floating_point()}
            found.statistics = {key: as_numpy(x).copy() for key, x in buffers.items() if "running" in key}
        self.backward[dtype] = partial(self._gradients, module, output, floats, found.calls)
        return found

    def gradients(self, dtype: str, places: Collection[str]) -> MutableMapping[str, np.ndarray]:
        """Of the loss of the run in a dtype; places: of the outputs that are compared, of which the loss is made unless given."""
        return self.backward.pop(dtype)(places)

    def tensors(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], dtype: str
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments with tensors in the place of their arrays."""
        return tuple(self._tensor(value, dtype) for value in args), {
            k: self._tensor(v, dtype) for k, v in kwargs.items()
        }

    def copied(self, dtype: str) -> Any:
        """A copy of the module in a dtype and mode; None for a function."""
        if self.module is None:
            return None
        give_back(self.size)
        module = copy.deepcopy(self.module).to(getattr(import_torch(), dtype)).cpu().train(self.options.training)
        module.zero_grad()
        for parameter in module.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
        return module

    def _tensor(self, value: Any, dtype: str, gradients: bool = True) -> Any:
        """A structure with tensors in the place of its arrays; floating-point ones take gradients."""
        torch = import_torch()
        if isinstance(value, Mapping):
            return {key: self._tensor(part, dtype, gradients) for key, part in value.items()}
        if isinstance(value, tuple | list):
            return type(value)(self._tensor(part, dtype, gradients) for part in value)
        if hasattr(value, "detach"):
            value = value.detach()
            tensor = value.to(getattr(torch, dtype)) if value.is_floating_point() else value
            return tensor.clone().requires_grad_(gradients and tensor.is_floating_point())
        if not hasattr(value, "shape"):
            return value
        array = np.asarray(value)
        kind = {"f": dtype, "i": "int64", "u": "int64"}.get(array.dtype.kind, str(array.dtype))
        return torch.from_numpy(array.astype(kind).copy()).requires_grad_(gradients and array.dtype.kind == "f")

    def _gradients(
        self, module: Any, output: Any, floats: Mapping[str, Any], calls: list[Call], places: Collection[str]
    ) -> MutableMapping[str, np.ndarray]:
        torch = import_torch()
        loss = self.options.loss
        of_torch = loss[1] if isinstance(loss, tuple) else loss
        value = of_torch(output) if of_torch else sum(x.square().mean() for x in floating(output, places))
        if not torch.is_tensor(value) or not value.requires_grad:
            return {}
        parameters = {} if module is None else dict(module.named_parameters())
        came = OnDisk()
        for key, parameter in parameters.items():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(partial(_taken, came, key, self.size))
        value.backward()
        came.update({f"input {key}": x.grad.numpy() for key, x in floats.items() if x.grad is not None})
        # in the order of the backward pass: parameters of the layer that was called last first, inputs at the end; what the output
        # does not depend on has no gradient in PyTorch, and zeros in JAX
        last = {call.path: index for index, call in enumerate(calls)}
        order = sorted(parameters, key=lambda key: -last.get(key.rpartition(".")[0], math.inf))
        came.order([key for key in [*order, *came] if key in came])
        return came


def _taken(into: MutableMapping[str, np.ndarray], key: str, size: int, parameter: Any) -> None:
    """Take a gradient away as soon as it is there."""
    into[key] = parameter.grad.numpy()
    parameter.grad = None
    if parameter.nbytes >= LARGE:
        give_back(size, collect=False)


def floating(output: Any, places: Collection[str]) -> list[Any]:
    """The floating-point arrays or tensors of an output at some places."""
    found = [leaf for place, leaf in leaves(output) if place in places]
    return [
        x for x in found if hasattr(x, "dtype") and str(x.dtype).removeprefix("torch.").startswith(("float", "bfloat"))
    ]


def as_numpy(tensor: Any, *, copy: bool = True) -> np.ndarray:
    """A NumPy array of a tensor; copy: or else a view of its numbers."""
    array = to_array(tensor, copy=copy)
    assert array is not None
    return array


@contextmanager
def default_dtype(dtype: str) -> Iterator[None]:
    """While entered, tensors that are made without a dtype, such as masks, have this one."""
    torch = import_torch()
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def without_dropout(module: Any) -> Iterator[None]:
    """While entered, dropout of modules and of functional.dropout lets everything through."""
    torch = import_torch()
    from torch.nn.modules.dropout import _DropoutNd
    from torch.overrides import TorchFunctionMode

    functional = torch.nn.functional
    names = ("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout")
    dropping = {getattr(functional, name) for name in names} | {torch.dropout}
    changed: list[tuple[Any, str, Any]] = []

    class Through(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            if func in dropping:
                return args[0] if args else kwargs["input"]
            if func is functional.scaled_dot_product_attention and len(args) > 4:
                args = (*args[:4], 0.0, *args[5:])
            elif func is functional.scaled_dot_product_attention:
                kwargs = {**kwargs, "dropout_p": 0.0}
            return func(*args, **kwargs)

    for part in module.modules() if module is not None else ():
        for name in ("p",) if isinstance(part, _DropoutNd) else ("dropout",):
            value = vars(part).get(name)
            if isinstance(value, float) and value:
                changed.append((part, name, value))
                setattr(part, name, 0.0)
    try:
        with Through():
            yield
    finally:
        for part, name, value in changed:
            setattr(part, name, value)
