"""A run's network as ONNX: its PyTorch twin through PyTorch's own exporter, held to JAX by ONNX Runtime before it is kept."""

import contextlib
import importlib.util
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ddpm_jax import models
from ddpm_jax.benchmark.torch_side import twin_process
from ddpm_jax.compilation import compile_for
from ddpm_jax.denoisers import Denoiser
from ddpm_jax.errors import UserError
from ddpm_jax.export.description import describe, load, output
from ddpm_jax.export.description import inputs as told
from ddpm_jax.files import write_atomically
from ddpm_jax.training.run import Run
from ddpm_jax.verify.tolerances import relative_error, tolerance
from ddpm_jax.weights import Which, to_torch

PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime")
"""What exporting needs, all of it in the extra `onnx`."""
BATCHES = (1, 2, 5)
"""Sizes of batch at which a file is held to JAX; it is exported at the last."""
MOST_BYTES = 2**31 - 2**24
"""Of weights in one file: a protobuf message ends at 2 GiB, and the graph needs some."""


def to_onnx(run: Run, path: Path, which: Which = "ema") -> float:
    """Write a run's network as ONNX, for any size of batch; returns its largest relative difference from JAX.

    Inputs, channels first: x_t float32 (B, C, H, W), or (B, D) of points; t (B,), the process's own times, int64 timesteps or
    float32; guess as x_t, an earlier estimate of x_0 or zeros, where the network is self-conditioned; labels int64 (B,) where it
    has classes. Output: what the network says, float32 (B, C, H, W), of twice the channels where it learns the variance. The
    file's metadata say the rest, each value as JSON. It computes in float32, whatever the run was trained in.

    which: the averaged weights of the newest checkpoint, or those being trained.

    Raises:
        UserError: a package is missing; there is no checkpoint; the network or the process has no PyTorch twin; more weights than
            one file can hold; or ONNX Runtime and JAX differ by more than the tolerance of an output. Nothing is written then.
    """
    torch = _needed(path)
    import ddpm_torch_ref as twins

    _check_twins(run, twins)
    variables, step = load(run, which)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(variables))
    if size > MOST_BYTES:
        raise UserError(
            f"one .onnx file holds weights of {MOST_BYTES / 1e9:.1f} GB at most; those of {run.folder} have {size / 1e9:.1f} GB."
        )
    config = run.config.model
    twin = twins.models.create(config.network, **vars(config))
    twin.load_state_dict(to_torch(models.abstract(config), variables))
    inputs = _inputs(run)
    said = _by_jax(run, variables, inputs)
    about = describe(run, which, step) | {
        "layout": "NCHW" if run.holds_images else "NC",
        "inputs": told(run.process, inputs),
        "output": output(run),
    }
    with _quiet():
        program = _exported(torch, twin.eval(), twin_process(twins, run.process), inputs)
    _forget_where_made(program.model)
    program.model.metadata_props.update({name: json.dumps(value) for name, value in about.items()})
    error, allowed = 0.0, tolerance("output", "float32")

    def write(temporary: Path) -> None:
        nonlocal error
        program.save(str(temporary), external_data=False)
        error = _difference(temporary, inputs, said)
        if not error <= allowed:
            raise UserError(
                f"{path} is not kept: ONNX Runtime and JAX differ by {error:.1e} of the largest output; allowed is {allowed:.0e}."
            )

    write_atomically(path, write)
    return error


def _needed(path: Path) -> Any:
    """PyTorch, where all that exporting needs is there."""
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise UserError(
            f'{path} needs {" and ".join(missing)}: pip install "ddpm-jax[onnx]". .stablehlo needs neither.'
        )
    import torch

    return torch


def _check_twins(run: Run, twins: Any) -> None:
    network, process = run.config.model.network, run.process
    if network not in twins.models.MODELS:
        raise UserError(
            f"ONNX is made of a network's PyTorch twin, and {network} has none. These have: {', '.join(twins.models.MODELS)}. "
            "A .stablehlo needs none."
        )
    if process.of_intervals:
        raise UserError(f"ONNX is told one time, and {process.name} is of two. A .stablehlo holds its walks.")
    if not hasattr(twins.processes, type(process).__name__):
        raise UserError(
            f"ONNX is told the times of a process that has a PyTorch twin, and {process.name} has none. A .stablehlo needs none."
        )


def _inputs(run: Run) -> dict[str, np.ndarray]:
    """An example of each input by name, for the largest of BATCHES."""
    rng, num = np.random.default_rng(0), BATCHES[-1]
    *size, channels = run.shape
    shape = (num, channels, *size)
    found = {"x_t": rng.standard_normal(shape, np.float32)}
    if run.process.continuous:
        found["t"] = run.process.times(num)[:num].astype(np.float32)  # without the clean end
    else:
        every = run.process.times(None)[:-1]
        found["t"] = every[np.linspace(0, len(every) - 1, num).round().astype(int)].astype(np.int64)
    if getattr(run.config.model, "self_conditioning", False):
        found["guess"] = rng.standard_normal(shape, np.float32)
    if run.class_names:
        count = len(run.class_names) + (run.null_label is not None)
        found["labels"] = np.linspace(0, count - 1, num).round().astype(np.int64)
    return found


def _by_jax(run: Run, variables: models.Variables, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """What the network says in JAX, in float32 at full precision; channels first."""
    given = {name: np.moveaxis(array, 1, -1) if array.ndim > 1 else array for name, array in inputs.items()}

    def say(denoise: Denoiser, x_t: jax.Array, t: jax.Array, guess: Any) -> jax.Array:
        return denoise.given(guess).output(x_t, t)

    denoise = run.denoiser(given.get("labels"), variables=variables)
    arguments = denoise, given["x_t"], jax.numpy.asarray(given["t"]), given.get("guess")
    with jax.default_matmul_precision("highest"):
        found = np.asarray(compile_for(1, say, *arguments)(*arguments))
    return np.moveaxis(found, -1, 1)


def _exported(torch: Any, twin: Any, process: Any, inputs: dict[str, np.ndarray]) -> Any:
    """torch.onnx.ONNXProgram of the twin, told the process's own times, for any size of batch."""

    class Told(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = twin

        def forward(self, x_t: Any, t: Any, guess: Any = None, labels: Any = None) -> Any:
            x = process.network_input(x_t, t)
            x = x if guess is None else torch.cat([x, guess], dim=1)
            return self.network(x, process.network_time(t), labels)

    batch = torch.export.Dim("batch")
    return torch.onnx.export(
        Told(),
        kwargs={name: torch.from_numpy(array) for name, array in inputs.items()},
        input_names=list(inputs),
        output_names=["output"],
        dynamic_shapes={name: {0: batch} for name in inputs},
        dynamo=True,
        verbose=False,
    )


def _forget_where_made(model: Any) -> None:
    """Take the exporter's notes off every node: stack traces with the paths of this machine among them."""
    from onnx_ir.passes import common

    common.ClearMetadataAndDocStringPass()(model)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """PyTorch's exporter speaks of torchvision, which is not needed, and of its own deprecations."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _difference(path: Path, inputs: dict[str, np.ndarray], said: np.ndarray) -> float:
    """The largest relative difference of a file's output from what JAX said, for each of BATCHES."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    outputs = {num: session.run(None, {name: array[:num] for name, array in inputs.items()})[0] for num in BATCHES}
    return max(relative_error(ours, said[:num]) for num, ours in outputs.items())
