"""Rematerialisation: less memory for more arithmetic, block by block, for every network (Chen et al. 2016)."""

import functools

from flax import nnx


class Block(nnx.Module):
    """A module that can keep its input alone for the gradient; none is within another. Small networks have no need of any."""


def rematerialised(model: nnx.Module) -> nnx.Module:
    """The same network with the same arrays, whose gradients compute the activations within each block anew instead of keeping
    them."""
    copy = nnx.merge(*nnx.split(model))
    for _, module in nnx.iter_modules(copy):
        if isinstance(module, Block):
            module.__class__ = _checkpointed(type(module))  # type: ignore[assignment]
    return copy


@functools.cache  # one class for each block: two networks of the same structure stay equal
def _checkpointed(block: type[nnx.Module]) -> type[nnx.Module]:
    return type(block.__name__, (block,), {"__call__": nnx.remat(block.__call__), "__doc__": block.__doc__})
