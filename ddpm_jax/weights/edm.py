"""Checkpoints of Karras et al. (2022), NVlabs/edm: pickled networks, in terms of `edm_unet`, whose names are theirs."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_jax import models
from ddpm_jax.errors import UserError
from ddpm_jax.models.edm_unet import EDMUNetConfig
from ddpm_jax.weights.pickles import Module, read_pickle

FILTERS = {2: "box", 4: "fir"}
"""Taps of the filter that images are resampled with: what that is called here."""


def read_edm(path: Path) -> tuple[EDMUNetConfig, dict[str, np.ndarray], float]:
    """The options of `edm_unet`, the twin's state dict and sigma_data of a pickled network, the averaged one.

    Raises:
        UserError: the file cannot be read, holds more than tensors, plain data and modules, or no such network.
    """
    found = read_pickle(path)
    network = found.get("ema") if isinstance(found, dict) else found
    if not isinstance(network, Module):
        raise UserError(
            f"{path} holds no network: it has to be that of a training run of NVlabs/edm, under the key 'ema'."
        )
    if network.name != "EDMPrecond":
        raise UserError(
            f"{path} holds a {network.name}, which has no counterpart here; a network trained as EDM is an EDMPrecond."
        )
    inner = (network.attributes.get("_modules") or {}).get("model")
    if not isinstance(inner, Module) or inner.name != "SongUNet":
        kind = inner.name if isinstance(inner, Module) else "missing one"
        raise UserError(f"{path} holds a {kind}, which has no counterpart here; DDPM++ and NCSN++ are a SongUNet.")
    config, tensors = from_edm(inner.tensors(), dropout=_dropout(inner))
    return config, tensors, float(network.attributes.get("sigma_data", 0.5))


def from_edm(tensors: Mapping[str, Any], *, dropout: float = 0.13) -> tuple[EDMUNetConfig, dict[str, np.ndarray]]:
    """The options of `edm_unet` and the twin's state dict of a SongUNet's tensors: all but the filters, which are constants.

    dropout: the one it was trained with, which no tensor tells.

    Raises:
        UserError: it is no such network, or tensors are missing, left over or misshapen.
    """
    kept = {name: np.asarray(tensor) for name, tensor in tensors.items() if not name.endswith(".resample_filter")}
    filters = {len(np.asarray(t)[0, 0]) for name, t in tensors.items() if name.endswith(".resample_filter")} or {2}
    if len(filters) != 1 or not filters <= FILTERS.keys():
        raise UserError(f"images must be resampled by a filter of 2 or 4 taps throughout; got {sorted(filters)}.")
    config = models.configure("edm_unet", read_options(kept) | {"resample": FILTERS[filters.pop()], "dropout": dropout})
    expected = _expected(config)
    for wrong, words in ((expected.keys() - kept.keys(), "lacks"), (kept.keys() - expected.keys(), "has beyond it")):
        if wrong:
            raise UserError(f"the checkpoint is no edm_unet: it {words} {', '.join(sorted(wrong)[:5])}.")
    odd = [f"{name} {kept[name].shape}" for name, shape in expected.items() if kept[name].shape != shape]
    if odd:
        raise UserError(f"the checkpoint is no edm_unet: other shapes are needed of {', '.join(odd[:5])}.")
    return config, kept


def read_options(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """What a checkpoint's names and shapes say of the options of `edm_unet`.

    Raises:
        UserError: it is no such checkpoint.
    """
    named = {re.match(r"enc\.(\d+)x\1_(conv|block(\d+))\.", name) for name in tensors} - {None}
    sizes = sorted({int(found[1]) for found in named if found}, reverse=True)
    first = tensors.get(f"enc.{sizes[0]}x{sizes[0]}_conv.weight") if sizes else None
    if first is None or first.ndim != 4:
        raise UserError("the checkpoint is no edm_unet: it has no convolution called enc.SIZExSIZE_conv.")
    dim = first.shape[0]

    def of(size: int, rest: str) -> np.ndarray | None:
        return tensors.get(f"enc.{size}x{size}_{rest}")

    widths = [of(size, "block0.conv0.weight") for size in sizes]
    if any(width is None for width in widths):
        raise UserError("the checkpoint is no edm_unet: a level has no block0.")
    count = max((int(found[3]) for found in named if found and found[3]), default=-1) + 1
    label, augment = tensors.get("map_label.weight"), tensors.get("map_augment.weight")
    return {
        "image_size": sizes[0],
        "channels": first.shape[1],
        "num_classes": None if label is None else label.shape[1],
        "dim": dim,
        "dim_mults": tuple(width.shape[0] // dim for width in widths if width is not None),
        "num_blocks": count,
        "attention_resolutions": tuple(size for size in sizes if of(size, "block0.qkv.weight") is not None),
        "embedding": "fourier" if "map_noise.freqs" in tensors else "positional",
        "residual_input": any("_aux_residual." in name for name in tensors),
        "augment_dim": None if augment is None else augment.shape[1],
    }


def _expected(config: EDMUNetConfig) -> dict[str, tuple[int, ...]]:
    from ddpm_jax.weights.bridge import layout

    return {entry.key: entry.shape for entry in layout(models.abstract(config))}


def _dropout(network: Module) -> float:
    """The dropout of its first block."""
    enc = (network.attributes.get("_modules") or {}).get("enc")
    blocks = enc.attributes.get("_modules", {}).values() if isinstance(enc, Module) else []
    found = [
        block.attributes["dropout"] for block in blocks if isinstance(block, Module) and "dropout" in block.attributes
    ]
    return float(found[0]) if found and isinstance(found[0], int | float) else 0.0
