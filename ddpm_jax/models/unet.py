"""`unet`: the network of the DDPM paper (Ho et al. 2020) with the options of improved DDPM and guided diffusion (ADM)."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Num

from ddpm_jax import model_configs as configs
from ddpm_jax.errors import UserError
from ddpm_jax.models.layers import (
    Attention,
    Downsample,
    Image,
    ResBlock,
    Resize,
    Resized,
    TimeMLP,
    Upsample,
    conv,
    double_nearest,
    group_norm,
    halve_mean,
    zeros,
)
from ddpm_jax.models.network import Network

Resampling = Downsample | Upsample | Resize | ResBlock
"""What takes one level to the next."""


class DownLevel(nnx.Module):
    """Blocks at one image size, each with its attention if any, then the halving unless it is the smallest."""

    def __init__(self, blocks: list[ResBlock], attentions: list[Attention], downsample: Resampling | None):
        self.blocks = nnx.List(blocks)
        self.attentions = nnx.List(attentions)
        self.downsample = downsample

    def __call__(self, x: Image, time: Float[Array, "b d"], rngs: nnx.Rngs | None) -> list[jax.Array]:
        """All that later levels need, in order: what comes of each block, (B, H, W, C), and of the halving."""
        skips = []
        for index, block in enumerate(self.blocks):
            x = block(x, time, rngs)
            if self.attentions:
                x = self.attentions[index](x)
            skips.append(x)
        if self.downsample is not None:
            skips.append(self.downsample(x, time, rngs))
        return skips


class Middle(nnx.Module):
    """Block, attention (None: none), block at the smallest size."""

    def __init__(self, block1: ResBlock, attention: Attention | None, block2: ResBlock):
        self.block1, self.attention, self.block2 = block1, attention, block2

    def __call__(self, x: Image, time: Float[Array, "b d"], rngs: nnx.Rngs | None) -> Image:
        """(B, H, W, C) in and out."""
        x = self.block1(x, time, rngs)
        return self.block2(x if self.attention is None else self.attention(x), time, rngs)


class UpLevel(nnx.Module):
    """Blocks on [x, skip], each with its attention if any, then the doubling unless it is the largest."""

    def __init__(self, blocks: list[ResBlock], attentions: list[Attention], upsample: Resampling | None):
        self.blocks = nnx.List(blocks)
        self.attentions = nnx.List(attentions)
        self.upsample = upsample

    def __call__(self, x: Image, skips: list[jax.Array], time: Float[Array, "b d"], rngs: nnx.Rngs | None) -> Resized:
        """Takes one skip a block from the end of the list."""
        for index, block in enumerate(self.blocks):
            x = block(jnp.concatenate([x, skips.pop()], axis=-1), time, rngs)
            if self.attentions:
                x = self.attentions[index](x)
        return x if self.upsample is None else self.upsample(x, time, rngs)


class UNet(Network):
    """(x_t, t, labels) -> eps: convolutional encoder and decoder joined by skips; see `model_configs.UNet` for the options."""

    def __init__(self, config: configs.UNet, *, rngs: nnx.Rngs):
        self.config = config
        time_dim = config.time_dim or 4 * config.dim
        widths = config.level_widths
        sizes = [config.image_size // 2**level for level in range(len(widths))]
        last = len(widths) - 1

        def block(in_dim, out_dim, resample=None, scale=1.0):
            return ResBlock(
                in_dim,
                out_dim,
                time_dim,
                groups=config.norm_groups,
                dropout=config.dropout,
                conditioning=config.time_conditioning,
                epsilon=config.norm_eps,
                activation=config.activation,
                scale=scale,
                resample=resample,
                rngs=rngs,
            )

        def attention(dim, groups=config.norm_groups, scale=1.0):
            # three dim -> dim maps in one: fan_avg is 2 dim here, so scale 2 gives each the bound it would have alone
            qkv_init = nnx.initializers.variance_scaling(2.0, "fan_avg", "uniform")
            return Attention(
                group_norm(dim, groups, epsilon=config.norm_eps, rngs=rngs) if groups else None,
                nnx.Linear(dim, 3 * dim, kernel_init=qkv_init, rngs=rngs),
                nnx.Linear(dim, dim, kernel_init=zeros, rngs=rngs),
                num_heads=config.heads(dim),
                scale=scale,
            )

        def attentions(way, level, count):
            wanted = sizes[level] in config.attention_sizes[way]
            return [attention(widths[level]) for _ in range(count)] if wanted else []

        def downsample(dim, kind):
            if kind == "residual":
                return block(dim, dim, halve_mean)
            if kind == "fixed":
                return Resize(halve_mean)
            return Downsample(dim, pad_all_sides=config.pad_all_sides, rngs=rngs)

        def upsample(dim, kind):
            if kind == "residual":
                return block(dim, dim, double_nearest)
            return Resize(double_nearest) if kind == "fixed" else Upsample(dim, rngs=rngs)

        def time_mlp():
            options = {"freq_shift": config.freq_shift, "cos_first": config.cos_first}
            return TimeMLP(config.dim, time_dim, **options, rngs=rngs)

        def class_embed():
            if config.num_classes is None:
                return None
            if config.class_embedding == "sinusoidal":
                return time_mlp()
            return nnx.Embed(config.num_classes, time_dim, embedding_init=nnx.initializers.normal(1.0), rngs=rngs)

        in_channels = config.channels * (2 if config.self_conditioning else 1)
        self.conv_in = conv(in_channels, config.width_in, 3, rngs=rngs)
        self.time_mlp = time_mlp()
        self.class_embed = class_embed()

        dim, skips, down = config.width_in, [config.width_in], []
        for level, width in enumerate(widths):
            blocks = [block(dim if i == 0 else width, width) for i in range(config.num_blocks)]
            resample = downsample(width, config.resampling("down")[level]) if level < last else None
            down.append(DownLevel(blocks, attentions(0, level, config.num_blocks), resample))
            skips += [width] * (config.num_blocks + (level < last))
            dim = width
        self.down = nnx.List(down)

        def middle(dim, scale=config.middle_scale):
            if config.middle == "none":
                return None
            block1 = block(dim, dim, scale=scale)
            groups = config.norm_groups if config.middle_norm_groups is None else config.middle_norm_groups
            between = attention(dim, groups, scale) if config.middle == "attention" else None
            return Middle(block1, between, block(dim, dim, scale=scale))

        self.middle = middle(dim)

        up = []
        for level, width in reversed(list(enumerate(widths))):
            blocks = [block((dim if i == 0 else width) + skips.pop(), width) for i in range(config.num_blocks + 1)]
            resample = upsample(width, config.resampling("up")[level - 1]) if level > 0 else None
            up.append(UpLevel(blocks, attentions(1, level, config.num_blocks + 1), resample))
            dim = width
        self.up = nnx.List(up)

        out_channels = config.channels * (2 if config.learn_variance else 1)
        self.norm_out = group_norm(dim, config.norm_groups, epsilon=config.norm_eps, rngs=rngs)
        self.conv_out = conv(dim, out_channels, 3, init=zeros, rngs=rngs)

    def __call__(
        self,
        x_t: Image,
        t: Num[Array, "b"],
        labels: Int[Array, "b"] | None = None,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b h w out"]:
        """Predict from x_t (B, H, W, C) at timesteps t (B,), for classes labels (B,); rngs: dropout's, while training.

        With self-conditioning, x_t holds an estimate of x_0, or zeros, behind its own channels: (B, H, W, 2 C).

        Raises:
            UserError: labels missing for a class-conditional network, or given to another.
        """
        if (labels is None) != (self.class_embed is None):
            need = "needs" if labels is None else "takes no"
            raise UserError(f"a unet with num_classes = {self.config.num_classes} {need} labels.")
        if self.config.time_scale != 1:
            t = t * jnp.asarray(self.config.time_scale, jnp.promote_types(x_t.dtype, jnp.float32))
        time = self.time_mlp(t, x_t.dtype)
        if isinstance(self.class_embed, nnx.Embed):
            time = time + self.class_embed.embedding[labels]  # nnx.Embed itself casts to the dtype it was made with
        elif self.class_embed is not None:
            time = time + self.class_embed(labels, x_t.dtype)

        skips = [self.conv_in(2 * x_t - 1 if self.config.center_input else x_t)]
        for down in self.down:
            skips += down(skips[-1], time, rngs)
        x = skips[-1] if self.middle is None else self.middle(skips[-1], time, rngs)
        for up in self.up:
            x = up(x, skips, time, rngs)
        return self.conv_out(nnx.silu(self.norm_out(x)))
