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


def rematerialised(model: nnx.Module) -> nnx.Module:
    """The same network with the same arrays, whose gradients compute the activations within each block anew instead of keeping
    them."""
    copy = nnx.merge(*nnx.split(model))
    for _, module in nnx.iter_modules(copy):
        if type(module) in BLOCKS:
            module.__class__ = _checkpointed(type(module))
    return copy


@functools.cache  # one class for each block: two networks of the same structure stay equal
def _checkpointed(block: type[nnx.Module]) -> type[nnx.Module]:
    return type(block.__name__, (block,), {"__call__": nnx.remat(block.__call__), "__doc__": block.__doc__})
