"""`convnext_unet`: system 1, class-conditional digits, and its large variant for 224x224 images."""

import functools

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Num

from ddpm_jax import model_configs as configs
from ddpm_jax.models.convnext import ConvNeXtBlock, Vector
from ddpm_jax.models.layers import Attention, Image, Resized
from ddpm_jax.models.network import Network
from ddpm_jax.models.timesteps import convnext_table, look_up
from ddpm_jax.models.torch_style import conv, conv_transpose, gelu, group_norm, linear


class Stage(nnx.Module):
    """A ConvNeXt block, then attention with one head."""

    def __init__(self, block: ConvNeXtBlock, dim: int, *, rngs: nnx.Rngs):
        self.block = block
        self.attention = Attention(
            group_norm(dim, rngs=rngs), linear(dim, 3 * dim, rngs=rngs), linear(dim, dim, rngs=rngs), num_heads=1
        )

    def __call__(self, x: Image, time: Vector | None, classes: Vector | None) -> Resized:
        """(B, H, W, in) -> (B, H, W, dim)."""
        return self.attention(self.block(x, time, classes))


class ConvNeXtUNet(Network):
    """(x_t, t, labels) -> eps; see `model_configs.ConvNeXtUNet`."""

    def __init__(self, config: configs.ConvNeXtUNet, *, rngs: nnx.Rngs):
        self.config = config
        dim = 4 * config.image_size
        block = functools.partial(
            ConvNeXtBlock,
            expansion=config.expansion,
            cond_dims={"time": dim, "class": dim},
            cond_act=nnx.silu,
            gelu=gelu,
            rngs=rngs,
        )

        def stage(in_dim: int, out_dim: int) -> Stage:
            return Stage(block(in_dim, out_dim), out_dim, rngs=rngs)

        widths, strides = config.widths, config.strides
        self.class_embed = nnx.Embed(config.num_classes, dim, embedding_init=nnx.initializers.normal(1.0), rngs=rngs)
        self.down = nnx.List([stage(config.channels, widths[0]), *(stage(w, w) for w in widths[1:-1])])
        self.downsamples = nnx.List(
            [
                conv(wide, wider, 3, stride=stride, padding=1, rngs=rngs)
                for wide, wider, stride in zip(widths[:-1], widths[1:], strides, strict=True)
            ]
        )
        self.middle = stage(widths[-1], widths[-1])
        # (in - 1) stride + 1 pixels come of it: of a stride of 2, one less than the skip has
        self.upsamples = nnx.List(
            [
                conv_transpose(
                    wider,
                    wide,
                    3,
                    stride=stride,
                    padding=1,
                    output_padding=int(stride == 2),
                    rngs=rngs,
                )
                for wide, wider, stride in reversed(list(zip(widths[:-1], widths[1:], strides, strict=True)))
            ]
        )
        ups = [*reversed(widths[1:-1]), config.out_width]
        self.up = nnx.List([stage(wider, wide) for wider, wide in zip(reversed(widths[1:]), ups, strict=True)])
        self.block_out = block(config.out_width, config.channels)

    def __call__(
        self,
        x_t: Image,
        t: Num[Array, "b"] | None = None,
        labels: Int[Array, "b"] | None = None,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b h w c"]:
        """Predict from x_t (B, H, W, C) at t (B,) in 0..num_steps, for classes labels (B,); None leaves that conditioning out."""
        table = convnext_table(self.config.num_steps, 4 * self.config.image_size)
        time = None if t is None else look_up(table, t, x_t.dtype)
        classes = None if labels is None else self.class_embed.embedding[labels].astype(x_t.dtype)
        x, skips = x_t, []
        for stage, downsample in zip(self.down, self.downsamples, strict=True):
            x = stage(x, time, classes)
            skips.append(x)
            x = downsample(x)
        x = self.middle(x, time, classes)
        for stage, upsample in zip(self.up, self.upsamples, strict=True):
            x = stage(jnp.concatenate([upsample(x), skips.pop()], axis=-1), time, classes)
        return self.block_out(x, time, classes)
