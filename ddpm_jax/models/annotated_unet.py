"""`annotated_unet`: system 3, a ConvNeXt (or ResNet) U-Net with linear attention."""

import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float, Num

from ddpm_jax import model_configs as configs
from ddpm_jax.models.attention import heads
from ddpm_jax.models.convnext import ConvNeXtBlock, Vector
from ddpm_jax.models.layers import Attention, Image, Resized, timestep_embedding
from ddpm_jax.models.network import Network
from ddpm_jax.models.torch_style import conv, conv_transpose, group_norm, linear
from ddpm_jax.models.torch_style import gelu as exact_gelu

HEADS, HEAD_DIM = 4, 32


class LinearAttention(nnx.Module):
    """Attention whose cost grows with the number of pixels, not its square (Shen et al. 2021), added to the image."""

    def __init__(self, dim: int, *, rngs: nnx.Rngs):
        inner = HEADS * HEAD_DIM
        self.norm = group_norm(dim, rngs=rngs)
        self.qkv = conv(dim, 3 * inner, 1, bias=False, rngs=rngs)
        self.proj = conv(inner, dim, 1, rngs=rngs)
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


class ResNetBlock(nnx.Module):
    """3x3 convolution, GroupNorm(8), SiLU; twice, the first with the scale and shift of the time; added to the input."""

    def __init__(self, in_dim: int, out_dim: int, *, time_dim: int | None, bias: bool, rngs: nnx.Rngs):
        self.time_proj = None if time_dim is None else linear(time_dim, 2 * out_dim, rngs=rngs)
        self.conv1 = conv(in_dim, out_dim, 3, bias=bias, rngs=rngs)
        self.norm1 = group_norm(out_dim, 8, rngs=rngs)
        self.conv2 = conv(out_dim, out_dim, 3, bias=bias, rngs=rngs)
        self.norm2 = group_norm(out_dim, 8, rngs=rngs)
        self.shortcut = conv(in_dim, out_dim, 1, bias=bias, rngs=rngs) if in_dim != out_dim else None

    def __call__(self, x: Image, time: Vector | None = None) -> Resized:
        """x (B, H, W, in_dim), time (B, d) -> (B, H, W, out_dim)."""
        h = self.norm1(self.conv1(x))
        if self.time_proj is not None and time is not None:
            scale, shift = jnp.split(self.time_proj(nnx.silu(time))[:, None, None, :], 2, axis=-1)
            h = h * (scale + 1) + shift
        h = nnx.silu(self.norm2(self.conv2(nnx.silu(h))))
        return h + (x if self.shortcut is None else self.shortcut(x))


class Stage(nnx.Module):
    """Two blocks, then attention."""

    def __init__(self, block1: nnx.Module, block2: nnx.Module, attention: nnx.Module):
        self.block1, self.block2, self.attention = block1, block2, attention

    def __call__(self, x: Image, time: Vector) -> Resized:
        """(B, H, W, in) -> (B, H, W, out)."""
        return self.attention(self.block2(self.block1(x, time), time))


class Middle(nnx.Module):
    """Block, full attention, block."""

    def __init__(self, block1: nnx.Module, block2: nnx.Module, attention: nnx.Module):
        self.block1, self.block2, self.attention = block1, block2, attention

    def __call__(self, x: Image, time: Vector) -> Image:
        """(B, H, W, C) in and out."""
        return self.block2(self.attention(self.block1(x, time)), time)


class TimeMLP(nnx.Module):
    """Timesteps -> embedding: sinusoids, linear, GELU, linear."""

    def __init__(self, dim: int, out_dim: int, *, gelu: Callable[[jax.Array], jax.Array], rngs: nnx.Rngs):
        self.dim, self.gelu = dim, gelu
        self.linear1 = linear(dim, out_dim, rngs=rngs)
        self.linear2 = linear(out_dim, out_dim, rngs=rngs)

    def __call__(self, t: Num[Array, "b"], dtype: jnp.dtype) -> Vector:
        """t (B,) -> (B, out_dim)."""
        h = self.linear1(timestep_embedding(t, self.dim, dtype))
        return self.linear2(self.gelu(h))


class AnnotatedUNet(Network):
    """(x_t, t) -> eps; see `model_configs.AnnotatedUNet`."""

    def __init__(self, config: configs.AnnotatedUNet, *, rngs: nnx.Rngs):
        self.config = config
        bias, time_dim = config.conv_bias, 4 * config.dim
        gelu = jax.nn.gelu if config.gelu == "tanh" else exact_gelu

        def block(in_dim: int, out_dim: int, timed: bool = True) -> nnx.Module:
            if config.block == "resnet":
                return ResNetBlock(in_dim, out_dim, time_dim=time_dim if timed else None, bias=bias, rngs=rngs)
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
        self.conv_in = conv(config.channels, widths[0], 7, rngs=rngs)
        self.time_mlp = TimeMLP(config.dim, time_dim, gelu=gelu, rngs=rngs)
        self.down = nnx.List([stage(wide, wider) for wide, wider in pairs])
        self.downsamples = nnx.List(
            [conv(wide, wide, 4, stride=2, padding=1, bias=bias, rngs=rngs) for _, wide in pairs[:-1]]
        )
        attention = Attention(
            group_norm(deepest, rngs=rngs),
            conv(deepest, 3 * inner, 1, bias=False, rngs=rngs),
            conv(inner, deepest, 1, rngs=rngs),
            num_heads=HEADS,
        )
        self.middle = Middle(block(deepest, deepest), block(deepest, deepest), attention)
        self.up = nnx.List([stage(2 * wider, wide) for wide, wider in reversed(pairs[1:])])
        self.upsamples = nnx.List(
            [
                conv_transpose(wide, wide, 4, stride=2, padding=1, bias=bias, rngs=rngs)
                for wide, _ in reversed(pairs[1:])
            ]
        )
        self.block_out = block(config.dim, config.dim, timed=False)
        self.conv_out = conv(config.dim, config.channels, 1, bias=bias, rngs=rngs)

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
