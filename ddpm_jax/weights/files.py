"""Files of named tensors: safetensors, npz and PyTorch's pt, read without ever unpickling code."""

import argparse
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from ddpm_jax.archives import BROKEN, check_unpacked, read_npz
from ddpm_jax.checks import path as as_path
from ddpm_jax.errors import UserError
from ddpm_jax.files import write_atomically

SUFFIXES = (".safetensors", ".npz", ".pt", ".pth", ".bin")

Which = Literal["ema", "params"]
"""Averaged weights, or those being trained."""
AVERAGED = ("ema", "model_ema", "state_dict_ema")
"""Keys under which a pt file may hold averaged weights, beside those being trained."""
WRAPPERS = ("state_dict", "model")
"""Keys under which a pt file may hold its one state dict, or that being trained; each looked for in turn."""


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a file by name, as NumPy arrays: of averaged weights and those being trained, the averaged ones.

    Raises:
        UserError: the file is missing, damaged or of another kind, holds anything but plain tensors, or NaN or infinity (named).
    """
    return read_weights(path)[0]


def read_weights(path: Path, which: Which | None = None) -> tuple[dict[str, np.ndarray], Which | None]:
    """`read_tensors`, with a choice where a file holds both; and which they are, None: the file has no keys that say.

    which: the average, or the weights being trained; None: the average where there is one. Numbers of bfloat16, which NumPy does
    not know, come as float32.

    Raises:
        UserError: as `read_tensors`; or those being trained are asked of a file that says it holds their average alone.
    """
    path = as_path("path", path)
    if not path.is_file():
        raise UserError(f"{path} does not exist, or is no file.")
    readers: dict[str, Callable[[Path], dict[str, np.ndarray]]] = {".safetensors": _read_safetensors, ".npz": read_npz}
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path}: weights must be one of {', '.join(SUFFIXES)}.")
    found: Which | None = None
    if path.suffix in readers:
        tensors = readers[path.suffix](path)
    else:
        tensors, found = _read_pt(path, which)
    if not tensors:
        raise UserError(f"{path} holds no tensors.")
    bad = [key for key, array in tensors.items() if array.dtype.kind == "f" and not np.isfinite(array).all()]
    if bad:
        raise UserError(f"{path}: weights must be finite; these hold NaN or infinity: {', '.join(bad)}.")
    return tensors, found


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray], *, metadata: Mapping[str, str] | None = None) -> Path:
    """Write tensors by name, in the format of the suffix; metadata: what a safetensors file says of itself.

    Raises:
        UserError: the suffix is none of SUFFIXES, or the file cannot be written.
    """
    arrays = {key: np.asarray(array, order="C") for key, array in tensors.items()}
    if path.suffix == ".safetensors":
        save_file = _safetensors(path).numpy.save_file
        return write_atomically(path, lambda temporary: save_file(arrays, str(temporary), dict(metadata or {}) or None))
    if path.suffix == ".npz":
        return write_atomically(path, lambda temporary: np.savez(temporary, allow_pickle=False, **arrays))
    if path.suffix in (".pt", ".pth", ".bin"):
        torch = _torch(path)
        state = {key: torch.from_numpy(array.copy()) for key, array in arrays.items()}
        return write_atomically(path, lambda temporary: torch.save(state, temporary))
    raise UserError(f"{path}: weights must be one of {', '.join(SUFFIXES)}.")


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    safetensors = _safetensors(path)
    try:
        tensors = safetensors.numpy.load_file(path)
    except (safetensors.SafetensorError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not a readable safetensors file: {error}.") from error
    brief = jnp.dtype("bfloat16")
    return {key: array.astype(np.float32) if array.dtype == brief else array for key, array in tensors.items()}


def _read_pt(path: Path, which: Which | None) -> tuple[dict[str, np.ndarray], Which | None]:
    torch = _torch(path)
    try:
        size = path.stat().st_size
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                for entry in archive.infolist():
                    what = f"{path}: {entry.filename}"
                    check_unpacked(what, packed=min(entry.compress_size, size), unpacked=entry.file_size)
        with torch.serialization.safe_globals(
            [argparse.Namespace]
        ):  # a script's options, of plain values, as DiT's beside weights
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} is refused: it holds more than plain tensors, and loading it would run code that came with it "
            f"({_first_line(error)}). Save model.state_dict() instead of the model."
        ) from error
    except UserError:
        raise
    except (OSError, AttributeError, *BROKEN) as error:
        raise UserError(f"{path} is not a readable PyTorch file: {_first_line(error)}.") from error
    state, found = _chosen(path, state, which)
    if not isinstance(state, Mapping):
        raise UserError(f"{path} holds a {type(state).__name__}, where a state dict is needed.")
    strangers = [f"{key} ({type(value).__name__})" for key, value in state.items() if not hasattr(value, "detach")]
    if strangers:
        raise UserError(
            f"{path} holds other things than tensors: {', '.join(strangers[:10])}. Save model.state_dict()."
        )
    for key, tensor in state.items():  # one number may stand for all of a tensor
        check_unpacked(f"{path}: {key}", packed=size, unpacked=tensor.numel() * tensor.element_size())
    state = {key: tensor.float() if tensor.dtype == torch.bfloat16 else tensor for key, tensor in state.items()}
    return {key: tensor.detach().cpu().numpy() for key, tensor in state.items()}, found


def _chosen(path: Path, state: Any, which: Which | None) -> tuple[Any, Which | None]:
    """The state dict within what a pt file holds, and which of two it is."""
    if not isinstance(state, Mapping):
        return state, None
    averaged = [key for key in AVERAGED if isinstance(state.get(key), Mapping)]
    trained = [key for key in WRAPPERS if isinstance(state.get(key), Mapping)]
    found: Which | None = None
    if averaged:
        found = "params" if which == "params" else "ema"
        if found == "params" and not trained:
            raise UserError(
                f"{path} holds averaged weights alone ({averaged[0]!r}); those being trained were asked for."
            )
        state = state[(trained if found == "params" else averaged)[0]]
    for wrapper in WRAPPERS:
        if isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    return state, found


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _safetensors(path: Path) -> Any:
    try:
        import safetensors
        import safetensors.numpy
    except ImportError as error:
        raise UserError(f'{path} needs the package safetensors: pip install "ddpm-jax[hub]".') from error
    return safetensors


def _torch(path: Path) -> Any:
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f'{path}: PyTorch files need PyTorch: pip install "ddpm-jax[torch]"; safetensors do not.'
        ) from error
    return torch
