"""`annotated_unet`: system 3, a ConvNeXt (or ResNet) U-Net with linear attention."""

import functools
import itertools
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float, Num

from ddpm_jax.errors import UserError
from ddpm_jax.models.attention import heads
from ddpm_jax.models.config import ModelConfig
from ddpm_jax.models.convnext import ConvNeXtBlock
from ddpm_jax.models.convolution import Image, Resized
from ddpm_jax.models.layers import Attention, Conv, ConvTranspose, Middle, ResNetBlock, TimeMLP, Vector
from ddpm_jax.models.layers import gelu as exact_gelu
from ddpm_jax.models.network import Network
from ddpm_jax.models.normalization import GroupNorm
from ddpm_jax.models.remat import Block


@dataclass(frozen=True)
class AnnotatedUNetConfig(ModelConfig, network="annotated_unet"):
    """System 3's network.

    Raises:
        UserError: widths or an image size that do not fit the blocks, or a number below 1.
    """

    channels: int = 1
    """Channels of the images."""
    image_size: int = 28
    """Height and width of the images, in pixels."""
    dim: int = 28
    """Base width, in channels."""
    dim_mults: tuple[int, ...] = (1, 2, 4)
    """Width of each level, as a multiple of dim; every level but the last halves the image."""
    gelu: Literal["tanh", "exact"] = "tanh"
    """GELU's tanh approximation, as in the original's framework, or the exact one."""
    conv_bias: bool = False
    """Give the convolutions of blocks and resampling a bias, as the original's PyTorch ancestor does."""
    block: Literal["convnext", "resnet"] = "convnext"
    """What each level is made of."""
    expansion: int = 2
    """Width within a ConvNeXt block, as a multiple of the block's output width."""

    def __post_init__(self) -> None:
        self._at_least_1("channels", "image_size", "expansion")
        self._even_dim()
        self._for_each_level("dim_mults")
        self._divides("image_size", 2 ** (len(self.dim_mults) - 1))
        if self.block == "resnet" and self.dim % 8:
            raise UserError(f"dim must be divisible by 8, the groups of a resnet block's norms; got {self.dim}.")

    def module(self, rngs: nnx.Rngs) -> "AnnotatedUNet":
        """The network of these options."""
        return AnnotatedUNet(self, rngs=rngs)


HEADS, HEAD_DIM = 4, 32


class LinearAttention(Block):
    """Attention whose cost grows with the number of pixels, not its square (Shen et al. 2021), added to the image."""

    def __init__(self, dim: int, *, rngs: nnx.Rngs):
        inner = HEADS * HEAD_DIM
        self.norm = GroupNorm(dim, rngs=rngs)
        self.qkv = Conv(dim, 3 * inner, 1, bias=False, rngs=rngs)
        self.proj = Conv(inner, dim, 1, rngs=rngs)
        self.norm_out = nnx.LayerNorm(dim, epsilon=1e-5, use_bias=False, use_fast_variance=False, rngs=rngs)

    def __call__(self, x: Image) -> Image:
        """(B, H, W, C) in and out."""
        height, width = x.shape[1:3]
        q, k, v = heads(self.qkv(self.norm(x)), HEADS, "d (h w)")
        q = jax.nn.softmax(q, axis=-2) * HEAD_DIM**-0.5
        k = jax.nn.softmax(k, axis=-1)
        context = jnp.einsum("bndp,bnep->bnde", k, v / (height * width))
        out = jnp.einsum("bnde,bndp->bnep", context, q)
        return x + self.norm_out(self.proj(rearrange(out, "b heads d (h w) -> b h w (heads d)", h=height)))


class Stage(nnx.Module):
    """Two blocks, then attention."""

    def __init__(self, block1: nnx.Module, block2: nnx.Module, attention: nnx.Module):
        self.block1, self.block2, self.attention = block1, block2, attention

    def __call__(self, x: Image, time: Vector) -> Resized:
        """(B, H, W, in) -> (B, H, W, out)."""
        return self.attention(self.block2(self.block1(x, time), time))


class AnnotatedUNet(Network):
    """(x_t, t) -> eps; see `AnnotatedUNetConfig`."""

    def __init__(self, config: AnnotatedUNetConfig, *, rngs: nnx.Rngs):
        self.config = config
        bias, time_dim = config.conv_bias, 4 * config.dim
        gelu = jax.nn.gelu if config.gelu == "tanh" else exact_gelu

        norm = functools.partial(GroupNorm, groups=8, rngs=rngs)

        def block(in_dim: int, out_dim: int, timed: bool = True) -> nnx.Module:
            if config.block == "resnet":
                return ResNetBlock(
                    in_dim, out_dim, norm=norm, time_dim=time_dim if timed else None, bias=bias, rngs=rngs
                )
            cond_dims = {"time": time_dim} if timed else {}
            return ConvNeXtBlock(
                in_dim,
                out_dim,
                expansion=config.expansion,
                cond_dims=cond_dims,
                cond_act=gelu,
                gelu=gelu,
                bias=bias,
                rngs=rngs,
            )

        def stage(in_dim: int, out_dim: int) -> Stage:
            return Stage(block(in_dim, out_dim), block(out_dim, out_dim), LinearAttention(out_dim, rngs=rngs))

        widths = [config.dim // 3 * 2, *(config.dim * mult for mult in config.dim_mults)]
        pairs = list(itertools.pairwise(widths))
        deepest, inner = widths[-1], HEADS * HEAD_DIM
        self.conv_in = Conv(config.channels, widths[0], 7, rngs=rngs)
        self.time_mlp = TimeMLP(config.dim, time_dim, activation=gelu, rngs=rngs)
        self.down = nnx.List([stage(wide, wider) for wide, wider in pairs])
        self.downsamples = nnx.List(
            [Conv(wide, wide, 4, stride=2, padding=1, bias=bias, rngs=rngs) for _, wide in pairs[:-1]]
        )
        attention = Attention(
            GroupNorm(deepest, rngs=rngs),
            Conv(deepest, 3 * inner, 1, bias=False, rngs=rngs),
            Conv(inner, deepest, 1, rngs=rngs),
            num_heads=HEADS,
        )
        self.middle = Middle(block(deepest, deepest), attention, block(deepest, deepest))
        self.up = nnx.List([stage(2 * wider, wide) for wide, wider in reversed(pairs[1:])])
        self.upsamples = nnx.List(
            [ConvTranspose(wide, wide, 4, stride=2, padding=1, bias=bias, rngs=rngs) for wide, _ in reversed(pairs[1:])]
        )
        self.block_out = block(config.dim, config.dim, timed=False)
        self.conv_out = Conv(config.dim, config.channels, 1, bias=bias, rngs=rngs)

    def __call__(
        self,
        x_t: Image,
        t: Num[Array, "b"],
        labels: None = None,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b h w c"]:
        """Predict from x_t (B, H, W, C) at timesteps t (B,). It knows no classes."""
        time = self.time_mlp(t, x_t.dtype)
        x, skips = self.conv_in(x_t), []
        for index, stage in enumerate(self.down):
            x = stage(x, time)
            skips.append(x)
            if index < len(self.downsamples):
                x = self.downsamples[index](x)
        x = self.middle(x, time)
        for stage, upsample in zip(self.up, self.upsamples, strict=True):
            x = upsample(stage(jnp.concatenate([x, skips.pop()], axis=-1), time))
        return self.conv_out(self.block_out(x))
