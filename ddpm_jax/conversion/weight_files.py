"""The files that a folder of diffusers keeps a network's weights in: in one piece or in shards, plain or of a variant."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_jax.conversion.json_files import read_json
from ddpm_jax.errors import UserError
from ddpm_jax.weights import Which, read_tensors

STEM = "diffusion_pytorch_model"
WEIGHTS = (f"{STEM}.safetensors", f"{STEM}.bin")
"""Names of weights in one piece, without a variant."""
NOT_AVERAGED = "non_ema"
"""The variant that holds the weights being trained, where the others are their average."""

_ENTRY = re.compile(rf"{STEM}(?:\.(\w+))?\.(safetensors|bin)(?:(\.index)(?:\.(\w+))?\.json)?")
"""A file that all weights can be read by: its variant, format, whether it is the index of shards, and its variant again."""
_OTHERS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".msgpack", ".h5", ".onnx")


@dataclass(frozen=True)
class WeightFiles:
    """Weights that were found."""

    path: Path
    """The file that holds them, or the index of their shards."""
    shards: tuple[Path, ...]
    """Files that the index names; none: the path holds all."""
    where: Mapping[str, str]
    """Where there are shards: name of a tensor -> name of its file."""
    which: Which | None
    """What the variants say: averaged, or those being trained; None: nothing."""

    @property
    def files(self) -> tuple[Path, ...]:
        """All that is read."""
        return (self.path, *self.shards)

    def read(self) -> dict[str, np.ndarray]:
        """The tensors by name.

        Raises:
            UserError: a file is damaged or no file of weights, or the index does not agree with its shards.
        """
        if not self.shards:
            return read_tensors(self.path)
        tensors: dict[str, np.ndarray] = {}
        for shard in self.shards:
            found = read_tensors(shard)
            wanted = {name for name, file in self.where.items() if file == shard.name}
            if wanted != found.keys():
                differing = ", ".join(sorted(wanted ^ found.keys())[:5])
                raise UserError(
                    f"{self.path} does not agree with {shard.name} on which tensors lie there: {differing}."
                )
            tensors |= found
        return tensors


def find_weights(folder: Path, *, variant: str | None = None, which: Which | None = None) -> WeightFiles:
    """The weights in a folder; safetensors before PyTorch's pickles, and one file before shards.

    variant: fp16, for one, of diffusion_pytorch_model.fp16.safetensors; None: the plain one, or the only one that is there. which:
    `params` prefers the variant non_ema.

    Raises:
        UserError: there are none of that variant, or of several variants and none is plain; what is there is named.
    """
    variants: dict[str | None, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        found = _ENTRY.fullmatch(path.name)
        if found and path.is_file():
            variants.setdefault(found[1] or found[4], []).append(path)
    named = sorted(name for name in variants if name)
    if not variants:
        others = sorted(path.name for path in folder.iterdir() if path.suffix in _OTHERS)
        there = f" There are {', '.join(others[:10])}." if others else ""
        raise UserError(f"{folder} holds no weights: {' or '.join(WEIGHTS)}, or an index of shards, is needed.{there}")
    if variant is None and which == "params" and NOT_AVERAGED in variants:
        variant = NOT_AVERAGED
    if variant is None and None not in variants:
        if len(named) > 1:
            raise UserError(f"{folder} holds weights of the variants {', '.join(named)}: pass --variant, one of them.")
        variant = named[0]
    if variant not in variants:
        there = f"of the variants {', '.join(named)}" if named else "without a variant alone"
        raise UserError(f"{folder} holds no weights of the variant {variant}; there are weights {there}.")
    says: Which | None = "params" if variant == NOT_AVERAGED else "ema" if NOT_AVERAGED in variants else None
    path = min(variants[variant], key=lambda path: (".safetensors" not in path.name, path.suffix == ".json"))
    if path.suffix != ".json":
        return WeightFiles(path, (), {}, says)
    where = _where(path)
    return WeightFiles(path, tuple(folder / name for name in sorted({*where.values()})), where, says)


def _where(index: Path) -> dict[str, str]:
    """Name of a tensor -> name of its shard, of an index whose shards are all there."""
    where: Any = read_json(index).get("weight_map")
    if not isinstance(where, dict) or not where or not all(isinstance(name, str) for name in where.values()):
        raise UserError(f"{index} cannot be read: it has no weight_map from tensors to files.")
    names = sorted({*where.values()})
    outside = [name for name in names if Path(name).name != name]
    if outside:
        raise UserError(f"{index} names files outside its folder: {', '.join(outside)}.")
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise UserError(f"{index} needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not there.")
    return where
