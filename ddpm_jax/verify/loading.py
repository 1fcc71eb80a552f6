"""The two sides and the inputs of `ddpm verify jax_net:Model torch_net:Model --input x=2,3,32,32`."""

import importlib
import inspect
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_jax.errors import UserError, kind_of, meant
from ddpm_jax.verify.torch_side import import_torch


def load(spec: str, seed: int) -> Any:
    """What MODULE:NAME names: an object as it is; a class, or a function that makes a side, called without arguments.

    The module is looked for in the current folder as well. Its numbers are drawn from the seed: PyTorch's generator starts
    there, and so does nnx.Rngs where `rngs` is asked for.

    Raises:
        UserError: there is no such module or name, or it needs arguments; PyTorch is not installed.
    """
    import_torch()
    name, _, attribute = spec.partition(":")
    if not name or not attribute:
        raise UserError(f"a side must be MODULE:NAME, such as jax_net:Model; got {spec!r}.")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        raise UserError(f"there is no module to import for {spec!r} ({error}).") from error
    if not hasattr(module, attribute):
        raise UserError(f"{name} has no {attribute!r}.{meant(attribute, vars(module))}")
    found = getattr(module, attribute)
    return made(found, spec, seed) if inspect.isclass(found) or inspect.isfunction(found) else found


def made(maker: Any, spec: str, seed: int) -> Any:
    """What a class or function makes without arguments, but for rngs."""
    given: dict[str, Any] = {}
    # of a class its own constructor: nnx.Module's metaclass takes anything
    found = inspect.signature(maker.__init__ if inspect.isclass(maker) else maker).parameters
    parameters = {name: parameter for name, parameter in found.items() if name != "self"}
    needed = [
        name
        for name, parameter in parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    if "rngs" in needed:
        from flax import nnx

        given["rngs"] = nnx.Rngs(seed)
    missing = [name for name in needed if name not in given]
    if missing:
        raise UserError(
            f"{spec} needs {', '.join(missing)}: name a function without arguments that makes it, "
            f"such as `def model(): return {getattr(maker, '__name__', 'Model')}(...)`."
        )
    torch = import_torch()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return maker(**given)


def inputs_of(texts: Iterable[str], seed: int) -> dict[str, np.ndarray]:
    """NAME=SHAPE as normally distributed numbers, NAME=SHAPE:N as integers below N, NAME=FILE.npy as what the file holds.

    Raises:
        UserError: a text that is none of these, or a file that cannot be read.
    """
    rng = np.random.default_rng(seed)
    found: dict[str, np.ndarray] = {}
    for text in texts:
        name, _, rest = text.partition("=")
        if not name or not rest:
            raise UserError(
                f"an input must be NAME=SHAPE, NAME=SHAPE:N or NAME=FILE.npy, such as x=2,3,32,32; got {text!r}."
            )
        found[name] = _read(rest) if rest.endswith(".npy") else _drawn(rest, text, rng)
    if not found:
        raise UserError("a pair needs inputs: --input x=2,3,32,32, one for each argument in turn.")
    return found


def _read(path: str) -> np.ndarray:
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is no array of NumPy's that can be read: {error}") from error
    if not isinstance(array, np.ndarray):
        raise UserError(f"{path} must hold one array; it holds {kind_of(array)}.")
    return array


def _drawn(rest: str, text: str, rng: np.random.Generator) -> np.ndarray:
    shape_text, _, below = rest.partition(":")
    try:
        shape = tuple(int(size) for size in shape_text.split(",") if size)
        if any(size < 1 for size in shape) or (below and int(below) < 1):
            raise ValueError
    except ValueError:
        raise UserError(f"an input's shape must be whole numbers above 0, such as x=2,3,32,32; got {text!r}.") from None
    return rng.integers(0, int(below), shape) if below else rng.standard_normal(shape)
