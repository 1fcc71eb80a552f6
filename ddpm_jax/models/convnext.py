"""The ConvNeXt block that systems 1 and 3 are made of."""

from collections.abc import Callable

import jax
from flax import nnx

from ddpm_jax.models.convolution import Image, Resized
from ddpm_jax.models.layers import Conv, Vector, linear
from ddpm_jax.models.normalization import GroupNorm
from ddpm_jax.models.remat import Block


class ConvNeXtBlock(Block):
    """Depthwise 7x7 plus conditioning, then two normalised 3x3 convolutions around a GELU, added to the (projected) input.

    cond_dims: {"time": width, "class": width} of the conditioning it can take. cond_act: what that goes through first.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        expansion: int,
        cond_dims: dict[str, int],
        cond_act: Callable[[jax.Array], jax.Array],
        gelu: Callable[[jax.Array], jax.Array],
        bias: bool = True,
        rngs: nnx.Rngs,
    ):
        self.cond_act, self.gelu = cond_act, gelu
        self.time_proj = linear(cond_dims["time"], in_dim, rngs=rngs) if "time" in cond_dims else None
        self.class_proj = linear(cond_dims["class"], in_dim, rngs=rngs) if "class" in cond_dims else None
        self.depthwise = Conv(in_dim, in_dim, 7, groups=in_dim, bias=bias, rngs=rngs)
        self.norm1 = GroupNorm(in_dim, rngs=rngs)
        self.conv1 = Conv(in_dim, out_dim * expansion, 3, bias=bias, rngs=rngs)
        self.norm2 = GroupNorm(out_dim * expansion, rngs=rngs)
        self.conv2 = Conv(out_dim * expansion, out_dim, 3, bias=bias, rngs=rngs)
        self.shortcut = Conv(in_dim, out_dim, 1, bias=bias, rngs=rngs) if in_dim != out_dim else None

    def __call__(self, x: Image, time: Vector | None = None, classes: Vector | None = None) -> Resized:
        """x (B, H, W, in_dim), conditioning (B, d) or None to leave it out -> (B, H, W, out_dim)."""
        h = self.depthwise(x)
        for proj, cond in ((self.time_proj, time), (self.class_proj, classes)):
            if proj is not None and cond is not None:
                h = h + proj(self.cond_act(cond))[:, None, None, :]
        h = self.conv2(self.norm2(self.gelu(self.conv1(self.norm1(h)))))
        return h + (x if self.shortcut is None else self.shortcut(x))
