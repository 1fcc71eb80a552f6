"""Compare any NNX module with any PyTorch module: outputs layer by layer, running statistics, gradients by parameter."""

import copy
import itertools
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ddpm_jax.compilation import compile_for
from ddpm_jax.errors import UserError
from ddpm_jax.verify.capture import Captured, align, recorded_nnx, recorded_torch
from ddpm_jax.verify.kinks import SAFE, relu_margin
from ddpm_jax.verify.report import KINK, LONELY, Report, Row
from ddpm_jax.verify.tolerances import relative_error, tolerance
from ddpm_jax.weights.bridge import Entry, as_array, at, from_torch, layout, renamed

Inputs = Sequence[np.ndarray | None]
"""What the modules are called with, in PyTorch's order of axes: images (B, C, H, W), times and labels (B,)."""

Side = dict[str, Captured]
"""What one framework computed: quantity -> {name: array}."""


def compare(
    jax_model: nnx.Module,
    torch_model: Any,
    inputs: Inputs,
    *,
    dtype: str = "float64",
    names: Mapping[str, str] | None = None,
    training: bool = False,
    gradients: bool = True,
    device: str = "cpu",
    title: str = "",
) -> Report:
    """Give both modules the torch module's weights and the same inputs, and compare all that they compute.

    jax_model, torch_model: called with the inputs, one output each; neither is changed, and the NNX module's own arrays are not
    used. names: {NNX path: torch path} for modules that are called differently in the two ("encoder.0": "enc").
    training: compare in training mode (statistics of the batch; dropout must be 0). gradients: of the mean square of the output,
    by input and by parameter. In float32 both sides are held against a float64 run of the torch module as well; where the input of
    a ReLU is zero but for rounding, one side may pass a gradient that the other does not: the report says so, and other inputs tell
    that from a fault.

    Raises:
        UserError: parameters that do not match by name or shape (both lists side by side), or weights that are not finite.
    """
    if not isinstance(jax_model, nnx.Module):
        raise UserError(f"jax_model must be an nnx.Module; got a {type(jax_model).__name__}.")
    if not isinstance(torch_model, import_torch().nn.Module):
        raise UserError(f"torch_model must be a torch.nn.Module; got a {type(torch_model).__name__}.")
    names = names or {}
    report = Report(title or type(torch_model).__name__, environment(dtype, device))
    with jax.enable_x64(True), jax.default_device(_device(device)):
        entries = layout(jax_model, names)
        check_pair(entries, torch_model)
        theirs = _run_torch(torch_model, entries, inputs, dtype, training, gradients)
        exact = _run_torch(torch_model, entries, inputs, "float64", training, gradients) if dtype != "float64" else None
        ours = _run_jax(jax_model, entries, torch_model, inputs, dtype, training, gradients)
    if gradients and exact is not None:
        tensors = [None if x is None else import_torch().from_numpy(_typed(x, "float64", np.int64)) for x in inputs]
        margin = relu_margin(copy.deepcopy(torch_model).double().cpu(), tensors, training=training)
        if margin < SAFE:
            report.environment[KINK] = f"{margin:.0e} of its largest: gradients may differ; try other inputs"
    theirs["layer"], unmatched = _match_layers(ours["layer"], theirs["layer"], names)
    if exact is not None:
        exact["layer"], _ = _match_layers(ours["layer"], exact["layer"], names)
    largest = max((float(np.abs(grad).max()) for grad in theirs["gradient"].values()), default=0.0)
    for quantity in ("layer", "output", "statistics", "gradient"):
        for name, array in theirs[quantity].items():
            report.rows.append(
                row(
                    quantity,
                    name,
                    ours[quantity][name],
                    array,
                    dtype=dtype,
                    device=device,
                    oracle=None if exact is None else exact[quantity][name],
                    # a gradient that is zero in exact arithmetic (a bias before a norm) holds nothing but rounding
                    floor=largest / 100 if quantity == "gradient" else 0.0,
                    images=quantity in ("layer", "output") or name.startswith("input "),
                )
            )
    if unmatched:
        report.environment[LONELY] = ", ".join(unmatched)
    return report


def row(
    quantity: str,
    name: str,
    ours: Any,
    theirs: Any,
    *,
    dtype: str,
    device: str = "cpu",
    oracle: Any = None,
    stage: str | None = None,
    floor: float = 0.0,
    images: bool = False,
) -> Row:
    """The row of one array; floor: least size of the reference that errors are relative to.

    images: theirs and the oracle are brought into the order of axes of ours first.
    """
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    allowed = tolerance(quantity, dtype, device)
    stage = stage or quantity
    exact = None if oracle is None else np.asarray(oracle)
    if images:
        theirs = align(theirs, ours.shape)
        exact = None if exact is None else align(exact, ours.shape)
    if theirs.shape != ours.shape:
        note = f"shapes differ: JAX {ours.shape}, PyTorch {theirs.shape}"
        return Row(stage, name, ours.shape, float("inf"), allowed, note=note)
    return Row(
        stage,
        name,
        ours.shape,
        relative_error(ours, theirs, floor),
        allowed,
        jax_error=None if exact is None else relative_error(ours, exact, floor),
        torch_error=None if exact is None else relative_error(theirs, exact, floor),
    )


def environment(dtype: str, device: str) -> dict[str, Any]:
    """Precision, device and versions of both sides."""
    return {
        "dtype": dtype,
        "device": f"JAX on {device} ({_device(device).device_kind}), PyTorch on cpu",
        "matmul_precision": jax.config.values["jax_default_matmul_precision"] or "default",
        "jax": jax.__version__,
        "torch": str(import_torch().__version__),
    }


def check_pair(entries: list[Entry], torch_model: Any) -> None:
    """Check that a network's arrays and a torch module's correspond, and that the weights are finite.

    Raises:
        UserError: names or shapes that do not match (both lists side by side), or tensors with NaN or infinity, by name.
    """
    state = torch_state(torch_model)
    bad = [key for key, array in state.items() if not np.isfinite(array).all()]
    if bad:
        raise UserError(f"weights must be finite; these hold NaN or infinity: {', '.join(bad)}.")
    ours = {entry.key: tuple(entry.shape) for entry in entries}
    theirs = {key: array.shape for key, array in state.items()}
    if ours == theirs:
        return
    left = [f"{key} {shape}" for key, shape in sorted(ours.items()) if theirs.get(key) != shape]
    right = [f"{key} {shape}" for key, shape in sorted(theirs.items()) if ours.get(key) != shape]
    width = max(map(len, [*left, "JAX"]))
    lines = [
        f"  {a:<{width}}  |  {b}" for a, b in itertools.zip_longest(["JAX", *left], ["PyTorch", *right], fillvalue="")
    ]
    raise UserError(
        f"the modules' arrays do not correspond ({len(left)} of JAX's and {len(right)} of PyTorch's stand alone):\n"
        + "\n".join(lines)
        + "\nRename attributes, or pass names={'path in JAX': 'path in PyTorch'}."
    )


def torch_state(torch_model: Any) -> dict[str, np.ndarray]:
    """The floating-point entries of a torch module's state dict, as NumPy arrays."""
    tensors = torch_model.state_dict().items()
    return {key: as_array(tensor) for key, tensor in tensors if tensor.is_floating_point()}


def _run_torch(
    torch_model: Any, entries: list[Entry], inputs: Inputs, dtype: str, training: bool, gradients: bool
) -> Side:
    torch = import_torch()
    model = copy.deepcopy(torch_model).to(getattr(torch, dtype)).cpu().train(training)
    model.zero_grad()
    leaves = [None if x is None else torch.from_numpy(_typed(x, dtype, np.int64)) for x in inputs]
    floats = {f"input {i}": x.requires_grad_() for i, x in enumerate(leaves) if x is not None and x.is_floating_point()}
    with recorded_torch(model) as layers, nullcontext() if gradients else torch.no_grad():
        output = model(*leaves)
    layers.pop("", None)
    buffers = dict(model.named_buffers())
    side: Side = {
        "layer": layers,
        "output": {"output": output.detach().numpy()},
        "statistics": {e.key: buffers[e.key].numpy() for e in entries if training and e.path[0] == "batch_stats"},
        "gradient": {},
    }
    if gradients:
        output.square().mean().backward()
        parameters = dict(model.named_parameters())
        grads = {name: x.grad for name, x in floats.items()}
        grads |= {entry.key: parameters[entry.key].grad for entry in entries if entry.path[0] == "params"}
        # what the output does not depend on has no gradient in PyTorch, and zeros in JAX
        side["gradient"] = {
            name: np.zeros(0) if grad is None else grad.numpy() for name, grad in grads.items() if grad is not None
        }
    return side


def _run_jax(
    jax_model: nnx.Module,
    entries: list[Entry],
    torch_model: Any,
    inputs: Inputs,
    dtype: str,
    training: bool,
    gradients: bool,
) -> Side:
    view = nnx.view(jax_model, deterministic=not training, use_running_average=not training, raise_if_not_found=False)
    graphdef, _, _, rest = nnx.split(view, nnx.Param, nnx.BatchStat, ...)  # type: ignore[misc]
    weights = from_torch(entries, {key: array.astype(dtype) for key, array in torch_state(torch_model).items()})
    arrays = [None if x is None else jnp.asarray(_channels_last(_typed(x, dtype, np.int32))) for x in inputs]
    floats = {i: x for i, x in enumerate(arrays) if x is not None and jnp.issubdtype(x.dtype, jnp.floating)}

    def call(params: Any, floats: dict[int, jax.Array]) -> tuple[jax.Array, Any]:
        states = (
            nnx.State(jax.tree.map(kind, tree))
            for kind, tree in ((nnx.Param, params), (nnx.BatchStat, weights["batch_stats"]))
        )
        module = nnx.merge(graphdef, *states, rest)
        with recorded_nnx(module) as layers:
            output = module(*(floats.get(i, x) for i, x in enumerate(arrays)))
        layers.pop("", None)
        # lists, since a dict would come out of jit in alphabetical order
        recorded = list(layers), list(layers.values())
        order.append(recorded[0])
        return jnp.square(output).mean(), (output, recorded[1], nnx.to_pure_dict(nnx.state(module, nnx.BatchStat)))

    order: list[list[str]] = []
    program: Callable[..., Any] = jax.value_and_grad(call, argnums=(0, 1), has_aux=True) if gradients else call
    args = weights["params"], floats
    found = compile_for(1, program, *args)(*args)
    (_, (output, layers, after)), grads = found if gradients else (found, None)
    after = {"batch_stats": after}
    side: Side = {
        "layer": dict(zip(order[-1], layers, strict=True)),
        "output": {"output": output},
        "statistics": {e.key: e.to_torch(at(after, e.path)) for e in entries if e.path[0] == "batch_stats"},
        "gradient": {},
    }
    if grads is not None:
        side["gradient"] = {f"input {i}": grad for i, grad in grads[1].items()}
        by_parameter = {"params": grads[0]}
        side["gradient"] |= {e.key: e.to_torch(at(by_parameter, e.path)) for e in entries if e.path[0] == "params"}
    return side


def _match_layers(ours: Captured, theirs: Captured, names: Mapping[str, str]) -> tuple[Captured, list[str]]:
    """Their layers under our names, in their order; and the names of layers that only one side has, such as activations."""
    by_their_name = {}
    for name in ours:
        path, _, call = name.partition("#")
        by_their_name[renamed(path, names) + (f"#{call}" if call else "")] = name
    matched = {by_their_name[name]: array for name, array in theirs.items() if name in by_their_name}
    alone = [name for name in theirs if name not in by_their_name] + [name for name in ours if name not in matched]
    return matched, alone


def _typed(array: np.ndarray, dtype: str, integer: type) -> np.ndarray:
    array = np.asarray(array)
    return array.astype(dtype if np.issubdtype(array.dtype, np.floating) else integer)


def _channels_last(array: np.ndarray) -> np.ndarray:
    return np.moveaxis(array, 1, -1) if array.ndim == 4 else array


def _device(device: str) -> jax.Device:
    try:
        return jax.devices(device)[0]
    except RuntimeError as error:
        raise UserError(f"device must be one that JAX finds here ({jax.default_backend()}); got {device!r}.") from error


def import_torch() -> Any:
    """PyTorch. Raises UserError where it is not installed."""
    try:
        import torch
    except ImportError as error:
        raise UserError('verifying needs PyTorch: pip install "ddpm-jax[torch]"') from error
    return torch
