"""Rematerialisation: less memory for more arithmetic, block by block, for every network (Chen et al. 2016)."""

import functools

from flax import nnx

from ddpm_jax.models import rms_unet
from ddpm_jax.models.annotated_unet import LinearAttention, ResNetBlock
from ddpm_jax.models.convnext import ConvNeXtBlock
from ddpm_jax.models.double_conv_unet import DoubleConv
from ddpm_jax.models.layers import Attention, ResBlock
from ddpm_jax.models.strided_unet import Unit
from ddpm_jax.models.tiny_unet import Stage

BLOCKS = (
    Attention,
    ConvNeXtBlock,
    DoubleConv,
    LinearAttention,
    ResBlock,
    ResNetBlock,
    Stage,
    Unit,
    rms_unet.MemoryAttention,
    rms_unet.ResBlock,
)
"""What keeps its input alone for the gradient; none of them is within another. `mlp` and `conv_net` are too small to have any."""


def rematerialise(model: nnx.Module) -> None:
    """Make the blocks of a network such that their activations are computed again when the gradient needs them; in place."""
    for _, module in nnx.iter_modules(model):
        if type(module) in BLOCKS:
            module.__class__ = _checkpointed(type(module))


@functools.cache  # one class for each block: two networks of the same structure stay equal
def _checkpointed(block: type[nnx.Module]) -> type[nnx.Module]:
    return type(block.__name__, (block,), {"__call__": nnx.remat(block.__call__), "__doc__": block.__doc__})
