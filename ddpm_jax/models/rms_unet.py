"""`rms_unet`: the U-Net of denoising-diffusion-pytorch 2.x, RMS norms and attention with a learned memory."""

import itertools
import math
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from einops import rearrange, repeat
from flax import nnx
from jaxtyping import Array, Float, Num

from ddpm_jax.errors import UserError
from ddpm_jax.models.attention import attend, heads
from ddpm_jax.models.config import ModelConfig
from ddpm_jax.models.convolution import Image, Resized
from ddpm_jax.models.layers import Conv, Middle, ResNetBlock, TimeMLP, Vector, double_nearest, gelu
from ddpm_jax.models.network import Network
from ddpm_jax.models.normalization import RMSNorm
from ddpm_jax.models.remat import Block


@dataclass(frozen=True)
class RMSUNetConfig(ModelConfig, network="rms_unet"):
    """The `Unet` of denoising-diffusion-pytorch 2.x: RMS norms, attention with a learned memory, two skips a level.

    Raises:
        UserError: widths or an image size that do not fit, or a number out of range.
    """

    channels: int = 3
    """Channels of the images."""
    image_size: int = 128
    """Height and width of the images, in pixels."""
    dim: int = 64
    """Base width, in channels: that of the sinusoids of t."""
    dim_mults: tuple[int, ...] = (1, 2, 4, 8)
    """Width that each level leads to, as a multiple of dim; every level but the last halves the image."""
    init_dim: int | None = None
    """Width of the first convolution, in channels; None: dim."""
    num_heads: int = 4
    """Attention heads."""
    head_dim: int = 32
    """Width of one attention head, in channels."""
    full_attention: tuple[bool, ...] | None = None
    """For each level, whether its attention is full or of linear cost; None: the last alone. That of the middle is full."""
    dropout: float = 0.0
    """Share of activations dropped in each residual block while training, in [0, 1)."""
    learn_variance: bool = False
    """Twice the output channels: the second half says where the variance lies (improved DDPM)."""
    self_conditioning: bool = False
    """Twice the input channels: the second half is the network's last estimate of x_0 (Chen et al. 2023)."""

    @property
    def width_in(self) -> int:
        """Width of the first convolution, in channels."""
        return self.dim if self.init_dim is None else self.init_dim

    @property
    def full(self) -> tuple[bool, ...]:
        """For each level, whether its attention is full."""
        if self.full_attention is None:
            return (False,) * (len(self.dim_mults) - 1) + (True,)
        return self.full_attention

    def __post_init__(self) -> None:
        self._at_least_1("channels", "image_size", "num_heads", "head_dim")
        self._even_dim()
        if self.width_in < 1:
            raise UserError(f"init_dim must be at least 1, or None; got {self.init_dim}.")
        self._for_each_level("dim_mults")
        if len(self.full) != len(self.dim_mults):
            raise UserError(
                f"full_attention must say True or False for each of {len(self.dim_mults)} levels; got {self.full_attention}."
            )
        self._droppable()
        self._divides("image_size", 2 ** (len(self.dim_mults) - 1))

    def module(self, rngs: nnx.Rngs) -> "RMSUNet":
        """The network of these options."""
        return RMSUNet(self, rngs=rngs)


MEMORY = 4
"""Learned keys and values that every pixel sees beside those of the image."""


class MemoryAttention(Block):
    """Attention over the pixels and a learned memory, added to the image.

    full: softmax attention, the memory (2, heads, MEMORY, head_dim); otherwise attention of linear cost (Shen et al. 2021), the
    memory (2, heads, head_dim, MEMORY), and an RMS norm at the end.
    """

    TORCH_NAMES: ClassVar = {"memory": ("memory", (0, 1, 2, 3))}

    def __init__(self, dim: int, *, full: bool, heads: int, head_dim: int, rngs: nnx.Rngs):
        self.full, self.heads = full, heads
        inner = heads * head_dim
        self.norm = RMSNorm(dim)
        shape = (2, heads, MEMORY, head_dim) if full else (2, heads, head_dim, MEMORY)
        self.memory = nnx.Param(jax.random.normal(rngs.params(), shape, jnp.float32))
        self.qkv = Conv(dim, 3 * inner, 1, bias=False, rngs=rngs)
        self.proj = Conv(inner, dim, 1, rngs=rngs)
        self.norm_out = None if full else RMSNorm(dim)

    def __call__(self, x: Image) -> Image:
        """(B, H, W, C) in and out."""
        batch, height = x.shape[:2]
        axes = "(h w) d" if self.full else "d (h w)"
        q, k, v = heads(self.qkv(self.norm(x)), self.heads, axes)
        memory = repeat(self.memory[...].astype(k.dtype), "two heads m n -> two b heads m n", b=batch)
        k, v = (jnp.concatenate(both, axis=-2 if self.full else -1) for both in zip(memory, (k, v), strict=True))
        out = attend(q, k, v) if self.full else _attend_linearly(q, k, v)
        out = self.proj(rearrange(out, f"b heads {axes} -> b h w (heads d)", h=height))
        return x + (out if self.norm_out is None else self.norm_out(out))


def _attend_linearly(
    q: Float[Array, "b heads d q"], k: Float[Array, "b heads d k"], v: Float[Array, "b heads d k"]
) -> Float[Array, "b heads d q"]:
    q = jax.nn.softmax(q, axis=-2) / math.sqrt(q.shape[-2])
    context = jnp.einsum("bndp,bnep->bnde", jax.nn.softmax(k, axis=-1), v)
    return jnp.einsum("bnde,bndp->bnep", context, q)


class DownStage(nnx.Module):
    """Two blocks, attention, and the convolution that leads on; after pixel-unshuffling where it `halves`."""

    def __init__(
        self,
        block1: ResNetBlock,
        block2: ResNetBlock,
        attention: MemoryAttention,
        resample: nnx.Module,
        *,
        halves: bool,
    ):
        self.block1, self.block2, self.attention, self.resample = block1, block2, attention, resample
        self.halves = halves

    def __call__(self, x: Image, time: Vector, rngs: nnx.Rngs | None) -> tuple[Image, Image, Resized]:
        """(B, H, W, C) -> both skips, of the same shape, and what leads on, of half the size where it is halved."""
        first = self.block1(x, time, rngs)
        second = self.attention(self.block2(first, time, rngs))
        on = rearrange(second, "b (h p) (w q) c -> b h w (c p q)", p=2, q=2) if self.halves else second
        return first, second, self.resample(on)


class UpStage(nnx.Module):
    """Two blocks, each with a skip, attention, and the convolution that leads on; after doubling, nearest, where it `doubles`."""

    def __init__(
        self,
        block1: ResNetBlock,
        block2: ResNetBlock,
        attention: MemoryAttention,
        resample: nnx.Module,
        *,
        doubles: bool,
    ):
        self.block1, self.block2, self.attention, self.resample = block1, block2, attention, resample
        self.doubles = doubles

    def __call__(self, x: Image, skips: tuple[jax.Array, jax.Array], time: Vector, rngs: nnx.Rngs | None) -> Resized:
        """(B, H, W, C), the skips of the way down -> (B, H, W, next C), of twice the size where it is doubled."""
        first, second = skips
        x = self.block1(jnp.concatenate([x, second], axis=-1), time, rngs)
        x = self.attention(self.block2(jnp.concatenate([x, first], axis=-1), time, rngs))
        return self.resample(double_nearest(x) if self.doubles else x)


class RMSUNet(Network):
    """(x_t, t) -> what the process predicts; see `RMSUNetConfig`."""

    def __init__(self, config: RMSUNetConfig, *, rngs: nnx.Rngs):
        self.config = config
        time_dim = 4 * config.dim
        widths = [config.width_in, *(config.dim * mult for mult in config.dim_mults)]
        pairs, last = list(itertools.pairwise(widths)), len(widths) - 2

        def block(in_dim: int, out_dim: int) -> ResNetBlock:
            return ResNetBlock(in_dim, out_dim, norm=RMSNorm, time_dim=time_dim, dropout=config.dropout, rngs=rngs)

        def attention(dim: int, full: bool) -> MemoryAttention:
            return MemoryAttention(dim, full=full, heads=config.num_heads, head_dim=config.head_dim, rngs=rngs)

        self.conv_in = Conv(config.channels * (2 if config.self_conditioning else 1), config.width_in, 7, rngs=rngs)
        self.time_mlp = TimeMLP(config.dim, time_dim, activation=gelu, rngs=rngs)
        down, up = [], []
        for level, (wide, wider) in enumerate(pairs):
            halve = Conv(4 * wide, wider, 1, rngs=rngs) if level < last else Conv(wide, wider, 3, rngs=rngs)
            blocks = block(wide, wide), block(wide, wide)
            down.append(DownStage(*blocks, attention(wide, config.full[level]), halve, halves=level < last))
        self.down = nnx.List(down)
        deepest = widths[-1]
        block1, block2 = block(deepest, deepest), block(deepest, deepest)
        self.middle = Middle(block1, attention(deepest, True), block2)
        for level, (wide, wider) in reversed(list(enumerate(pairs))):
            blocks = block(wider + wide, wider), block(wider + wide, wider)
            between = attention(wider, config.full[level])
            up.append(UpStage(*blocks, between, Conv(wider, wide, 3, rngs=rngs), doubles=level > 0))
        self.up = nnx.List(up)
        self.block_out = block(2 * config.width_in, config.width_in)
        self.conv_out = Conv(config.width_in, config.channels * (2 if config.learn_variance else 1), 1, rngs=rngs)

    def __call__(
        self,
        x_t: Image,
        t: Num[Array, "b"],
        labels: None = None,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b h w out"]:
        """Predict from x_t (B, H, W, C) at timesteps t (B,); rngs: dropout's, while training. It knows no classes.

        With self-conditioning, x_t holds an estimate of x_0, or zeros, behind its own channels: (B, H, W, 2 C).
        """
        time = self.time_mlp(t, x_t.dtype)
        x = start = self.conv_in(x_t)
        skips = []
        for down in self.down:
            first, second, x = down(x, time, rngs)
            skips.append((first, second))
        x = self.middle(x, time, rngs)
        for up in self.up:
            x = up(x, skips.pop(), time, rngs)
        return self.conv_out(self.block_out(jnp.concatenate([x, start], axis=-1), time, rngs))
