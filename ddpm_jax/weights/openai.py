"""Checkpoints of OpenAI's improved-diffusion and guided-diffusion (ADM): their structure and their names, in terms of `unet`.

Widths, blocks, attention, conditioning and resampling are read off the tensors; the size of the images and the attention heads
are not in them. Both libraries number the layers on the way down and up through, whatever their level.
"""

import functools
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from ddpm_jax import models
from ddpm_jax.errors import UserError
from ddpm_jax.weights import foreign
from ddpm_jax.weights.foreign import Source

GROUPS = 32
"""Groups of every GroupNorm there."""

RENAMED = [
    (r"^conv_in\.", "input_blocks.0.0."),
    (r"^time_mlp\.linear1\.", "time_embed.0."),
    (r"^time_mlp\.linear2\.", "time_embed.2."),
    (r"^class_embed\.", "label_emb."),
    (r"^middle\.block1\.", "middle_block.0."),
    (r"^middle\.attention\.", "middle_block.1."),
    (r"^middle\.block2\.", "middle_block.2."),
    (r"^norm_out\.", "out.0."),
    (r"^conv_out\.", "out.2."),
    (r"\.downsample\.conv\.", ".downsample.op."),
    (r"\.norm1\.", ".in_layers.0."),
    (r"\.conv1\.", ".in_layers.2."),
    (r"\.time_proj\.", ".emb_layers.1."),
    (r"\.norm2\.", ".out_layers.0."),
    (r"\.conv2\.", ".out_layers.3."),
    (r"\.shortcut\.", ".skip_connection."),
    (r"\.proj\.", ".proj_out."),
]
"""Parts of the twin's names that are called otherwise there; the places in its levels are numbered by `_place`."""

PLACE = re.compile(r"^(down|up)\.(\d+)\.(blocks|attentions|downsample|upsample)(?:\.(\d+))?")
"""A part of a level."""


def from_openai(
    tensors: Mapping[str, Any],
    *,
    image_size: int,
    num_heads: int | None = None,
    head_dim: int | None = None,
    new_attention_order: bool = False,
    time_scale: float = 1.0,
    dropout: float = 0.0,
) -> tuple[models.UNetConfig, dict[str, np.ndarray]]:
    """The options of `foreign_unet` and the twin's state dict of a checkpoint.

    image_size: in pixels. num_heads or head_dim: num_heads or num_head_channels there. new_attention_order:
    use_new_attention_order of guided-diffusion; improved-diffusion has the other. time_scale: 1000 / diffusion_steps where
    rescale_timesteps was set. dropout: the one it was trained with.

    Raises:
        UserError: it is no such checkpoint, or not that of a denoiser of images, alone or with a second one; tensors are missing,
            left over, or misshapen.
    """
    if (num_heads is None) == (head_dim is None):
        raise UserError("attention's heads are not in the checkpoint: pass num_heads or head_dim, one of the two.")
    options = read_options(tensors, image_size) | {"time_scale": time_scale, "dropout": dropout}
    heads = {"num_heads": num_heads} if head_dim is None else {"head_dim": head_dim}
    config = models.configure("foreign_unet", options | heads)
    source = functools.partial(_source, config, new_attention_order)
    return config, foreign.read(foreign.rows(config, source), tensors, "the checkpoint")


def to_openai(
    config: models.UNetConfig, tensors: Mapping[str, Any], *, new_attention_order: bool = False
) -> dict[str, np.ndarray]:
    """A state dict under their names of the twin's; the inverse of `from_openai`."""
    return foreign.write(foreign.rows(config, functools.partial(_source, config, new_attention_order)), tensors)


def read_options(tensors: Mapping[str, Any], image_size: int) -> dict[str, Any]:
    """What a checkpoint's names and shapes say of the options of `foreign_unet`.

    Raises:
        UserError: the names are not theirs, or the network is none of images, with or without a second one beside.
    """

    def shape(name: str) -> tuple[int, ...]:
        if name not in tensors:
            raise UserError(
                f"this is no checkpoint of improved-diffusion or guided-diffusion's UNetModel: {name} is missing."
            )
        return tuple(tensors[name].shape)

    time_dim, dim = shape("time_embed.0.weight")
    width_in, channels = shape("input_blocks.0.0.weight")[:2]
    out_channels = shape("out.2.weight")[0]
    channels_in, channels = channels, _image_channels(channels, out_channels)
    found = _levels(tensors, image_size)
    widths = tuple(shape(f"input_blocks.{n}.0.out_layers.3.weight")[0] for n in found.first_down)
    scale_shift = shape("input_blocks.1.0.emb_layers.1.weight")[0] == 2 * widths[0]
    regular = width_in == dim and all(width % dim == 0 for width in widths)
    return {
        "image_size": image_size,
        "channels": channels,
        "num_classes": shape("label_emb.weight")[0] if "label_emb.weight" in tensors else None,
        "dim": dim,
        **({"dim_mults": tuple(width // dim for width in widths)} if regular else {"widths": widths}),
        "num_blocks": found.per_level - 1,
        "attention_resolutions": found.down,
        "up_attention_resolutions": None if found.up == found.down else found.up,
        "time_conditioning": "scale_shift" if scale_shift else "add",
        "resample": found.resample,
        "learn_variance": out_channels != channels,
        "condition_channels": channels_in - channels,
        "time_dim": None if time_dim == 4 * dim else time_dim,
        "norm_groups": GROUPS,
        "norm_eps": 1e-5,
        "cos_first": True,
        "freq_shift": 0,
        "pad_all_sides": True,
    }


def _image_channels(channels_in: int, channels_out: int) -> int:
    """Channels of the images, 1 or 3: the network takes them, or a second image behind them (SuperResModel)."""
    for channels in (1, 3):
        # one grey image in and two channels out: noise and variance
        if channels_in in (channels, 2 * channels) and channels_out in (channels, 2 * channels):
            return channels
    raise UserError(
        f"the network takes {channels_in} channels and gives {channels_out}: it is no denoiser of images, nor one that sees a "
        "second image of as many channels (a super-resolution model), and has no counterpart here."
    )


class _Levels(NamedTuple):
    """What the numbers of a checkpoint's blocks say."""

    per_level: int
    """Blocks on a level's way up, one more than on its way down."""
    first_down: list[int]
    """The number of each level's first block on the way down."""
    down: tuple[int, ...]
    up: tuple[int, ...]
    """Resolutions that attend on either way."""
    resample: str


def _levels(tensors: Mapping[str, Any], image_size: int) -> _Levels:
    numbers = [int(found[1]) for name in tensors if (found := re.match(r"output_blocks\.(\d+)\.", name))]
    ups = [name for name in tensors if re.match(r"output_blocks\.\d+\.[12]\.(conv|in_layers\.0)\.weight$", name)]
    down_numbers = {int(found[1]) for name in tensors if (found := re.match(r"input_blocks\.(\d+)\.", name))}
    # halving without parameters (conv_resample = False) leaves its number out
    gaps = {*range(max(down_numbers))} - down_numbers
    levels, blocks_up = len(ups or gaps) + 1, max(numbers, default=-1) + 1
    if blocks_up % levels or blocks_up // levels < 2:
        raise UserError(f"{blocks_up} output_blocks do not make {levels} levels.")
    per_level = blocks_up // levels
    first_down = [1 + level * per_level for level in range(levels)]
    sizes = [image_size // 2**level for level in range(levels)]
    down = tuple(size for size, n in zip(sizes, first_down, strict=True) if f"input_blocks.{n}.1.qkv.weight" in tensors)
    up = tuple(
        size
        for level, size in enumerate(sizes)
        if f"output_blocks.{(levels - 1 - level) * per_level}.1.qkv.weight" in tensors
    )
    if gaps and (ups or gaps != {level * per_level for level in range(1, levels)}):
        missing = ", ".join(f"input_blocks.{number}" for number in sorted(gaps))
        raise UserError(
            f"this is no whole checkpoint of improved-diffusion or guided-diffusion: {missing} are missing."
        )
    resample = "fixed" if gaps else "residual" if any("in_layers" in name for name in ups) else "conv"
    return _Levels(per_level, first_down, down, up, resample)


def _source(config: models.UNetConfig, new_attention_order: bool, ours: str) -> Source:
    name = ours
    for pattern, replacement in RENAMED:
        name = re.sub(pattern, replacement, name)
    name = PLACE.sub(functools.partial(_place, config), name)
    found = re.search(r"\.(qkv|proj_out)\.(weight|bias)$", name)
    if found is None:
        return Source((name,))
    one_pixel = (1,) if found[2] == "weight" else ()
    if found[1] == "proj_out" or new_attention_order:
        return Source((name,), one_pixel)
    return Source((name,), one_pixel, heads=config.heads(_width(config, ours)))


def _place(config: models.UNetConfig, found: re.Match[str]) -> str:
    """Where a part of a level stands: the number of its block, and its number within."""
    way, level, part, index = found[1], int(found[2]), found[3], found[4]
    per_level = config.num_blocks + 1
    if way == "down":
        number = 1 + level * per_level + (config.num_blocks if part == "downsample" else int(index))
        return f"input_blocks.{number}.{int(part == 'attentions')}"
    number = level * per_level + (config.num_blocks if part == "upsample" else int(index))
    size = config.image_size // 2 ** (len(config.level_widths) - 1 - level)
    within = {"blocks": 0, "attentions": 1, "upsample": 2 if size in config.attention_sizes[1] else 1}[part]
    return f"output_blocks.{number}.{within}"


def _width(config: models.UNetConfig, ours: str) -> int:
    """Width of the attention that a tensor of the twin belongs to."""
    way, level = ours.split(".")[:2]
    widths = config.level_widths
    return widths[-1] if way == "middle" else widths[int(level)] if way == "down" else widths[-1 - int(level)]
