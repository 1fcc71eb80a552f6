"""`rms_unet`: the U-Net of denoising-diffusion-pytorch 2.x, RMS norms and attention with a learned memory."""

import itertools
import math

import jax
import jax.numpy as jnp
from einops import rearrange, repeat
from flax import nnx
from jaxtyping import Array, Float, Num

from ddpm_jax import model_configs as configs
from ddpm_jax.models.annotated_unet import TimeMLP
from ddpm_jax.models.attention import attend, heads
from ddpm_jax.models.convnext import Vector
from ddpm_jax.models.layers import Image, Resized, double_nearest
from ddpm_jax.models.normalization import RMSNorm
from ddpm_jax.models.torch_style import conv, gelu, linear

MEMORY = 4
"""Learned keys and values that every pixel sees beside those of the image."""


class ResBlock(nnx.Module):
    """3x3 convolution, RMS norm, SiLU; twice, the first with the scale and shift of the time and dropout; added to the input."""

    def __init__(self, in_dim: int, out_dim: int, *, time_dim: int, dropout: float, rngs: nnx.Rngs):
        self.time_proj = linear(time_dim, 2 * out_dim, rngs=rngs)
        self.conv1 = conv(in_dim, out_dim, 3, rngs=rngs)
        self.norm1 = RMSNorm(out_dim)
        self.dropout = nnx.Dropout(dropout)
        self.conv2 = conv(out_dim, out_dim, 3, rngs=rngs)
        self.norm2 = RMSNorm(out_dim)
        self.shortcut = conv(in_dim, out_dim, 1, rngs=rngs) if in_dim != out_dim else None

    def __call__(self, x: Image, time: Vector, rngs: nnx.Rngs | None = None) -> Resized:
        """x (B, H, W, in_dim), time (B, d) -> (B, H, W, out_dim); rngs: dropout's."""
        scale, shift = jnp.split(self.time_proj(nnx.silu(time))[:, None, None, :], 2, axis=-1)
        h = nnx.silu(self.norm1(self.conv1(x)) * (scale + 1) + shift)
        h = nnx.silu(self.norm2(self.conv2(self.dropout(h, rngs=rngs))))
        return h + (x if self.shortcut is None else self.shortcut(x))


class MemoryAttention(nnx.Module):
    """Attention over the pixels and a learned memory, added to the image.

    full: softmax attention, the memory (2, heads, MEMORY, head_dim); otherwise attention of linear cost (Shen et al. 2021), the
    memory (2, heads, head_dim, MEMORY), and an RMS norm at the end.
    """

    def __init__(self, dim: int, *, full: bool, heads: int, head_dim: int, rngs: nnx.Rngs):
        self.full, self.heads = full, heads
        inner = heads * head_dim
        self.norm = RMSNorm(dim)
        shape = (2, heads, MEMORY, head_dim) if full else (2, heads, head_dim, MEMORY)
        self.memory = nnx.Param(jax.random.normal(rngs.params(), shape, jnp.float32))
        self.qkv = conv(dim, 3 * inner, 1, bias=False, rngs=rngs)
        self.proj = conv(inner, dim, 1, rngs=rngs)
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
        self, block1: ResBlock, block2: ResBlock, attention: MemoryAttention, resample: nnx.Conv, *, halves: bool
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
        self, block1: ResBlock, block2: ResBlock, attention: MemoryAttention, resample: nnx.Conv, *, doubles: bool
    ):
        self.block1, self.block2, self.attention, self.resample = block1, block2, attention, resample
        self.doubles = doubles

    def __call__(self, x: Image, skips: tuple[jax.Array, jax.Array], time: Vector, rngs: nnx.Rngs | None) -> Resized:
        """(B, H, W, C), the skips of the way down -> (B, H, W, next C), of twice the size where it is doubled."""
        first, second = skips
        x = self.block1(jnp.concatenate([x, second], axis=-1), time, rngs)
        x = self.attention(self.block2(jnp.concatenate([x, first], axis=-1), time, rngs))
        return self.resample(double_nearest(x) if self.doubles else x)


class Middle(nnx.Module):
    """Block, full attention, block."""

    def __init__(self, block1: ResBlock, block2: ResBlock, attention: MemoryAttention):
        self.block1, self.block2, self.attention = block1, block2, attention

    def __call__(self, x: Image, time: Vector, rngs: nnx.Rngs | None) -> Image:
        """(B, H, W, C) in and out."""
        return self.block2(self.attention(self.block1(x, time, rngs)), time, rngs)


class RMSUNet(nnx.Module):
    """(x_t, t) -> what the process predicts; see `model_configs.RMSUNet`."""

    def __init__(self, config: configs.RMSUNet, *, rngs: nnx.Rngs):
        self.config = config
        time_dim = 4 * config.dim
        widths = [config.width_in, *(config.dim * mult for mult in config.dim_mults)]
        pairs, last = list(itertools.pairwise(widths)), len(widths) - 2

        def block(in_dim: int, out_dim: int) -> ResBlock:
            return ResBlock(in_dim, out_dim, time_dim=time_dim, dropout=config.dropout, rngs=rngs)

        def attention(dim: int, full: bool) -> MemoryAttention:
            return MemoryAttention(dim, full=full, heads=config.num_heads, head_dim=config.head_dim, rngs=rngs)

        self.conv_in = conv(config.channels * (2 if config.self_conditioning else 1), config.width_in, 7, rngs=rngs)
        self.time_mlp = TimeMLP(config.dim, time_dim, gelu=gelu, rngs=rngs)
        down, up = [], []
        for level, (wide, wider) in enumerate(pairs):
            halve = conv(4 * wide, wider, 1, rngs=rngs) if level < last else conv(wide, wider, 3, rngs=rngs)
            blocks = block(wide, wide), block(wide, wide)
            down.append(DownStage(*blocks, attention(wide, config.full[level]), halve, halves=level < last))
        self.down = nnx.List(down)
        deepest = widths[-1]
        self.middle = Middle(block(deepest, deepest), block(deepest, deepest), attention(deepest, True))
        for level, (wide, wider) in reversed(list(enumerate(pairs))):
            blocks = block(wider + wide, wider), block(wider + wide, wider)
            between = attention(wider, config.full[level])
            up.append(UpStage(*blocks, between, conv(wider, wide, 3, rngs=rngs), doubles=level > 0))
        self.up = nnx.List(up)
        self.block_out = block(2 * config.width_in, config.width_in)
        self.conv_out = conv(config.width_in, config.channels * (2 if config.learn_variance else 1), 1, rngs=rngs)

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
