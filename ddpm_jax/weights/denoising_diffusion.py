"""Checkpoints of denoising-diffusion-pytorch's Unet, version 2: its structure and its names, in terms of `rms_unet`.

All that the network is made of is read off the tensors, but for the size of the images and dropout.
"""

import functools
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from ddpm_jax import models
from ddpm_jax.errors import UserError
from ddpm_jax.weights import foreign
from ddpm_jax.weights.bridge import as_array
from ddpm_jax.weights.foreign import Source

RENAMED = [
    (r"^conv_in\.", "init_conv."),
    (r"^conv_out\.", "final_conv."),
    (r"^block_out\.", "final_res_block."),
    (r"^time_mlp\.linear1\.", "time_mlp.1."),
    (r"^time_mlp\.linear2\.", "time_mlp.3."),
    (r"^middle\.block", "mid_block"),
    (r"^middle\.attention\.", "mid_attn."),
    (r"^(down|up)\.(\d+)\.block1\.", r"\1s.\2.0."),
    (r"^(down|up)\.(\d+)\.block2\.", r"\1s.\2.1."),
    (r"^(down|up)\.(\d+)\.attention\.", r"\1s.\2.2."),
    (r"^(down|up)\.(\d+)\.resample\.", r"\1s.\2.3."),
    (r"\.time_proj\.", ".mlp.1."),
    (r"\.proj\.(\w+)$", r".to_out.\1"),
    (r"\.conv(\d)\.", r".block\1.proj."),
    (r"\.norm(\d)\.weight$", r".block\1.norm.g"),
    (r"\.norm\.weight$", ".norm.g"),
    (r"\.norm_out\.weight$", ".to_out.1.g"),
    (r"\.shortcut\.", ".res_conv."),
    (r"\.memory$", ".mem_kv"),
    (r"\.qkv\.", ".to_qkv."),
]
"""Parts of the twin's names that are called otherwise there, in this order: attention's proj first, as convolutions become one."""

OTHERS = {
    r"to_time_emb\.": "a KarrasUnet",
    r"(^|\.)classes_mlp\.|null_classes_emb": "the Unet of classifier_free_guidance",
    r"(^|\.)time_mlp\.0\.weights$": "a Unet with learned_sinusoidal_cond or random_fourier_features",
    r"\.fn\.fn\.|\.fn\.norm\.|block1\.norm\.weight$": "a Unet of an older version, with other norms or without a memory",
}
"""Names that give away what is no Unet of version 2, and what it is."""


def is_denoising_diffusion(names: Mapping[str, Any]) -> bool:
    """Whether a checkpoint with such names is of denoising-diffusion-pytorch, supported or not."""
    return any(re.search(r"(^|\.)init_conv\.weight$|to_time_emb\.", name) for name in names)


def from_denoising_diffusion(
    tensors: Mapping[str, Any], *, image_size: int, dropout: float = 0.0
) -> tuple[models.RMSUNetConfig, dict[str, np.ndarray]]:
    """The options of `rms_unet` and the twin's state dict of a Unet's.

    image_size: in pixels. dropout: the one it was trained with.

    Raises:
        UserError: it is another network (by name), or tensors are missing, left over, or misshapen.
    """
    config = models.configure("rms_unet", read_options(tensors) | {"image_size": image_size, "dropout": dropout})
    source = functools.partial(_source, config)
    ours = foreign.read(foreign.rows(config, source), tensors, "the checkpoint of denoising-diffusion-pytorch's Unet")
    return config, _turned(config, ours)


def to_denoising_diffusion(config: models.RMSUNetConfig, tensors: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """A state dict under their names of the twin's; the inverse of `from_denoising_diffusion`."""
    return foreign.write(foreign.rows(config, functools.partial(_source, config)), _turned(config, tensors))


def read_options(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint's names and shapes say of the options of `rms_unet`.

    Raises:
        UserError: it is another network than the Unet of version 2, or one without a counterpart; it is named.
    """
    for pattern, what in OTHERS.items():
        if any(re.search(pattern, name) for name in tensors):
            raise _unsupported(what)

    def shape(name: str, axes: int) -> tuple[int, ...]:
        if name not in tensors:
            raise _unsupported(f"no Unet of version 2 ({name} is missing)")
        found = tuple(tensors[name].shape)
        if len(found) != axes:
            raise _unsupported(f"no Unet of images ({name} has {len(found)} axes instead of {axes})")
        return found

    levels = len({found[1] for name in tensors if (found := re.match(r"downs\.(\d+)\.", name))})
    init_dim, channels_in = shape("init_conv.weight", 4)[:2]
    dim = shape("time_mlp.1.weight", 2)[1]
    widths = [shape(f"downs.{i}.3.{'' if i == levels - 1 else '1.'}weight", 4)[0] for i in range(levels)]
    if not widths or any(width % dim for width in widths):
        raise _unsupported(f"a Unet whose levels, of widths {widths}, are no multiples of dim = {dim}")
    full = tuple(f"downs.{i}.2.to_out.0.weight" not in tensors for i in range(levels))
    memories = [(shape(f"downs.{i}.2.mem_kv", 4), full[i]) for i in range(levels)] + [
        (shape("mid_attn.mem_kv", 4), True)
    ]
    heads = {(found[1], found[3] if is_full else found[2]) for found, is_full in memories}
    if len(heads) > 1:
        raise _unsupported("a Unet whose levels differ in attn_heads or attn_dim_head")
    num_heads, head_dim = heads.pop()
    channels_out = shape("final_conv.weight", 4)[0]
    # (in, out) as multiples of the channels of an image: twice of both looks like once of twice as many
    self_conditioning = channels_in == 2 * channels_out or (channels_in == channels_out and channels_in in (2, 6))
    channels = channels_in // 2 if self_conditioning else channels_in
    if channels_out not in (channels, 2 * channels):
        raise _unsupported(f"a Unet with {channels_in} channels in and {channels_out} out")
    return {
        "channels": channels,
        "dim": dim,
        "dim_mults": tuple(width // dim for width in widths),
        "init_dim": None if init_dim == dim else init_dim,
        "num_heads": num_heads,
        "head_dim": head_dim,
        "full_attention": None if full == (False,) * (levels - 1) + (True,) else full,
        "learn_variance": channels_out != channels,
        "self_conditioning": self_conditioning,
    }


def _unsupported(what: str) -> UserError:
    return UserError(
        f"the checkpoint is of {what}, which has no counterpart here. Of denoising-diffusion-pytorch, the Unet of images of "
        "version 2 has one (rms_unet), alone, in a GaussianDiffusion or in a Trainer's file."
    )


def _source(config: models.RMSUNetConfig, ours: str) -> Source:
    name = ours
    for pattern, replacement in RENAMED:
        name = re.sub(pattern, replacement, name)
    found = re.match(r"(down|up)s\.(\d+)\.([23])\.", name)
    if found:
        way, level = found[1], int(found[2])
        last = level == len(config.dim_mults) - 1
        if found[3] == "3" and not last:  # behind a resampling without parameters
            name = name.replace(f"{found[0]}", f"{found[0]}1.")
        if found[3] == "2" and not config.full[level if way == "down" else -1 - level]:
            name = re.sub(r"to_out\.(weight|bias)$", r"to_out.0.\1", name)
    return Source((name,), trailing=(1, 1), leading=(1,)) if name.endswith(".g") else Source((name,))


def _turned(config: models.RMSUNetConfig, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The estimate of x_0 comes before x_t there, and after it here; either way the halves change places."""
    if not config.self_conditioning:
        return dict(tensors)
    kernel = as_array(tensors["conv_in.weight"])
    return {**tensors, "conv_in.weight": np.roll(kernel, config.channels, axis=1)}
