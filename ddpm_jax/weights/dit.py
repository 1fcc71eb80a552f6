"""Checkpoints of facebookresearch/DiT: its names are those of `dit`, but for the table of positions, which is fixed.

All that the network is made of is read off the tensors, but for the attention heads, which are known for the widths of the paper.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from ddpm_jax import models
from ddpm_jax.errors import UserError
from ddpm_jax.models.dit import FREQUENCIES, position_table
from ddpm_jax.weights import foreign
from ddpm_jax.weights.bridge import as_array
from ddpm_jax.weights.foreign import Source

HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16}
"""Width -> attention heads of the paper's S, B, L and XL (table 1)."""

POSITIONS = "pos_embed"
"""The table of positions there, (1, N, dim)."""
AGREEMENT = 1e-5
"""Absolute, of the table: it is kept in float32, sines and cosines of angles up to the side of the grid; 1e-2 in 16 bits."""


def is_dit(names: Mapping[str, Any]) -> bool:
    """Whether a checkpoint with such names is of DiT."""
    return "x_embedder.proj.weight" in names and "final_layer.adaLN_modulation.1.weight" in names


def from_dit(
    tensors: Mapping[str, Any], *, num_heads: int | None = None
) -> tuple[models.DiTConfig, dict[str, np.ndarray]]:
    """The options of `dit` and the twin's state dict of a checkpoint.

    num_heads: attention heads; None for those of the paper at its widths (384, 768, 1024, 1152).

    Raises:
        UserError: it is no such checkpoint, num_heads is missing or does not divide the width, the positions are other ones than
            the sines and cosines of the paper, or tensors are missing, left over, or misshapen.
    """
    options = read_options(tensors)
    if num_heads is None and options["dim"] not in HEADS:
        known = ", ".join(map(str, HEADS))
        raise UserError(
            f"attention's heads are not in the checkpoint: pass num_heads; they are known for widths of {known}, and this one's is "
            f"{options['dim']}."
        )
    config = models.configure("dit", options | {"num_heads": HEADS[options["dim"]] if num_heads is None else num_heads})
    _check_positions(config, as_array(tensors[POSITIONS]))
    others = {name: tensor for name, tensor in tensors.items() if name != POSITIONS}
    return config, foreign.read(foreign.rows(config, _same), others, "the checkpoint of DiT")


def to_dit(config: models.DiTConfig, tensors: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """A state dict under their names of the twin's, with the table of positions; the inverse of `from_dit`.

    Raises:
        UserError: a network that they have not got: without classes, or with long skips.
    """
    for option, lacks in (("num_classes", config.num_classes is None), ("long_skips", config.long_skips)):
        if lacks:
            raise UserError(f"facebookresearch/DiT has no network with {option} = {getattr(config, option)}.")
    written = foreign.write(foreign.rows(config, _same), tensors)
    table = position_table(config.image_size // config.patch_size, config.dim)
    return {POSITIONS: table[None].astype(next(iter(written.values())).dtype), **written}


def read_options(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint's names and shapes say of the options of `dit`: all but num_heads.

    Raises:
        UserError: the names are not theirs, or the shapes do not fit each other.
    """

    def shape(name: str, axes: int) -> tuple[int, ...]:
        if name not in tensors:
            raise UserError(f"this is no checkpoint of facebookresearch/DiT: {name} is missing.")
        found = tuple(tensors[name].shape)
        if len(found) != axes:
            raise UserError(
                f"this is no checkpoint of facebookresearch/DiT: {name} has {len(found)} axes instead of {axes}."
            )
        return found

    dim, channels, patch_size, _ = shape("x_embedder.proj.weight", 4)
    num_patches, hidden = shape(POSITIONS, 3)[1], shape("blocks.0.mlp.fc1.weight", 2)[0]
    side, outputs = math.isqrt(num_patches), shape("final_layer.linear.weight", 2)[0]
    if side**2 != num_patches:
        raise UserError(f"{POSITIONS} must be of a square of patches; got {num_patches}.")
    if outputs not in (patch_size**2 * channels, 2 * patch_size**2 * channels):
        raise UserError(
            f"final_layer.linear must have {patch_size**2 * channels} outputs for a patch, or twice as many with learned "
            f"variance; got {outputs}."
        )
    if shape("t_embedder.mlp.0.weight", 2)[1] != FREQUENCIES:
        raise UserError(
            f"t_embedder must see sinusoids of width {FREQUENCIES}; got {shape('t_embedder.mlp.0.weight', 2)[1]}."
        )
    ratio = hidden / dim
    return {
        "image_size": side * patch_size,
        "channels": channels,
        "num_classes": shape("y_embedder.embedding_table.weight", 2)[0],
        "dim": dim,
        "patch_size": patch_size,
        "depth": len({found[1] for name in tensors if (found := re.match(r"blocks\.(\d+)\.", name))}),
        "mlp_ratio": ratio if int(dim * ratio) == hidden else math.nextafter(ratio, math.inf),
        "learn_variance": outputs != patch_size**2 * channels,
    }


def _same(ours: str) -> Source:
    return Source((ours,))


def _check_positions(config: models.DiTConfig, found: np.ndarray) -> None:
    expected = position_table(config.image_size // config.patch_size, config.dim)
    if found.shape != (1, *expected.shape):
        raise UserError(f"{POSITIONS} must be {(1, *expected.shape)}; got {found.shape}.")
    error = np.abs(found[0].astype(np.float64) - expected).max()
    if error > (AGREEMENT if found.dtype.itemsize >= 4 else 1e-2):
        raise UserError(
            f"{POSITIONS} must be the paper's sines and cosines, which are not trained; it differs from them by {error:.2g}."
        )
