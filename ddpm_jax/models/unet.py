"""`unet`: the network of the DDPM paper (Ho et al. 2020) with the options of improved DDPM and guided diffusion (ADM)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Num

from ddpm_jax.errors import UserError
from ddpm_jax.models.config import ModelConfig
from ddpm_jax.models.convolution import Image, Resized
from ddpm_jax.models.layers import Attention, Conv, Middle, TimeMLP, Vector, double_nearest, halve_mean, linear, scaled
from ddpm_jax.models.network import Network
from ddpm_jax.models.normalization import GroupNorm
from ddpm_jax.models.remat import Block

xavier = nnx.initializers.variance_scaling(1.0, "fan_avg", "uniform")
zeros = nnx.initializers.zeros_init()


@dataclass(frozen=True)
class UNetConfig(ModelConfig, network="unet"):
    """The U-Net of Ho et al. 2020 (the defaults: their CIFAR-10 network) and of its successors.

    Raises:
        UserError: an image size the levels cannot halve, or widths that groups or heads do not divide.
    """

    image_size: int = 32
    """Height and width of the images, in pixels."""
    channels: int = 3
    """Channels of the images: 1 or 3."""
    num_classes: int | None = None
    """Number of classes the network is told about; None: unconditional."""
    dim: int = 128
    """Base width, in channels: that of the first convolution and of the sinusoids of t."""
    dim_mults: tuple[int, ...] = (1, 2, 2, 2)
    """Width of each level, as a multiple of dim; every level but the last halves the image."""
    num_blocks: int = 2
    """Residual blocks in each level on the way down (one more on the way up)."""
    attention_resolutions: tuple[int, ...] = (16,)
    """Image sizes, in pixels, at which every block is followed by self-attention."""
    num_heads: int = 1
    """Attention heads, unless head_dim is given."""
    head_dim: int | None = None
    """Width of one attention head, in channels."""
    dropout: float = 0.0
    """Share of activations dropped in each residual block while training, in [0, 1)."""
    norm_groups: int = 32
    """Groups of every GroupNorm."""
    time_conditioning: Literal["add", "scale_shift"] = "add"
    """How time enters a block: added (DDPM), or as scale and shift of its second norm (ADM)."""
    resample: Literal["conv", "residual"] = "conv"
    """How levels halve and double: a convolution (DDPM), or a resampling residual block (ADM)."""
    learn_variance: bool = False
    """Twice the output channels: the second half says where the variance lies (improved DDPM)."""
    self_conditioning: bool = False
    """Twice the input channels: the second half is the network's last estimate of x_0 (Chen et al. 2023)."""
    interval: bool = False
    """The network is told two numbers for the time, t and how far it is to an earlier one (MeanFlow)."""
    condition_channels: int = 0
    """Further input channels behind those of x_t, for what the network is shown of an image; 0: it is shown none."""

    def module(self, rngs: nnx.Rngs) -> "UNet":
        """The network of these options."""
        return UNet(self, rngs=rngs)

    @property
    def input_channels(self) -> int:
        """Channels of the input: x_t, what it is shown of an image, and an estimate of x_0, in this order."""
        return self.channels * (2 if self.self_conditioning else 1) + self.condition_channels

    @property
    def level_widths(self) -> tuple[int, ...]:
        """Width of each level, in channels."""
        return tuple(self.dim * mult for mult in self.dim_mults)

    @property
    def width_in(self) -> int:
        """Width of the first convolution, in channels."""
        return self.dim

    @property
    def embedding_width(self) -> int:
        """Width of the embedding of time and class."""
        return 4 * self.dim

    @property
    def attention_widths(self) -> tuple[int, ...]:
        """Width of each level with attention, and of the middle."""
        sizes = self.attention_sizes[0] | self.attention_sizes[1]
        widths = [w for level, w in enumerate(self.level_widths) if self.image_size // 2**level in sizes]
        return (*widths, self.level_widths[-1])

    @property
    def attention_sizes(self) -> tuple[frozenset[int], frozenset[int]]:
        """The image sizes of levels with attention, on the way down and on the way up."""
        return (self._sizes_among(self.attention_resolutions),) * 2

    def _sizes_among(self, resolutions: tuple[int, ...]) -> frozenset[int]:
        return frozenset(self.image_size // 2**level for level in range(len(self.level_widths))).intersection(
            resolutions
        )

    def heads(self, width: int) -> int:
        """Attention heads at a width."""
        return self.num_heads if self.head_dim is None else width // self.head_dim

    def __post_init__(self) -> None:
        self._at_least_1("image_size", "channels", "dim", "num_blocks", "num_heads", "norm_groups")
        self._for_each_level("dim_mults")
        self._at_least_1_or_none("num_classes", "head_dim")
        self._droppable()
        self._even_dim()
        if self.condition_channels < 0:
            raise UserError(f"condition_channels must not be negative; got {self.condition_channels}.")
        halvings = len(self.level_widths) - 1
        if self.image_size % 2**halvings:
            raise UserError(
                f"image_size must be divisible by {2**halvings}, because {halvings + 1} dim_mults halve the image "
                f"{halvings} times; got {self.image_size}."
            )
        for width in {self.width_in, *self.level_widths}:
            if width % self.norm_groups:
                raise UserError(f"norm_groups must divide every width; got {self.norm_groups} for a width of {width}.")
        divisor, option = (self.num_heads, "num_heads") if self.head_dim is None else (self.head_dim, "head_dim")
        for width in self.attention_widths:
            if width % divisor:
                raise UserError(
                    f"{option} = {divisor} must divide every width with attention; {width} is not a multiple of it."
                )


class ResBlock(Block):
    """Two convolutions, each after a norm and an activation, with time between them, added to the input.

    `resample` is applied to both branches before the first convolution (ADM's up- and downsampling block). The sum is divided by
    `scale`.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        time_dim: int,
        *,
        norm: Callable[[int], nnx.Module],
        dropout: float,
        conditioning: Literal["add", "scale_shift"],
        activation: Callable[[jax.Array], jax.Array] = nnx.silu,
        scale: float = 1.0,
        resample: Callable[[Image], Resized] | None = None,
        rngs: nnx.Rngs,
    ):
        self.scale_shift = conditioning == "scale_shift"
        self.activation = activation
        self.scale = scale
        self.resample = resample
        self.norm1 = norm(in_dim)
        self.conv1 = Conv(in_dim, out_dim, 3, init=xavier, rngs=rngs)
        self.time_proj = linear(time_dim, out_dim * (2 if self.scale_shift else 1), init=xavier, rngs=rngs)
        self.norm2 = norm(out_dim)
        self.dropout = nnx.Dropout(dropout)
        self.conv2 = Conv(out_dim, out_dim, 3, init=zeros, rngs=rngs)
        self.shortcut = Conv(in_dim, out_dim, 1, init=xavier, rngs=rngs) if in_dim != out_dim else None

    def __call__(self, x: Image, time: Vector, rngs: nnx.Rngs | None = None) -> Resized:
        """x (B, H, W, in_dim), time (B, time_dim) -> (B, H, W, out_dim), resampled; rngs: dropout's."""
        h = self.activation(self.norm1(x))
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = self.conv1(h)
        time = self.time_proj(self.activation(time))[:, None, None, :]
        if self.scale_shift:
            scale, shift = jnp.split(time, 2, axis=-1)
            h = self.norm2(h) * (1 + scale) + shift
        else:
            h = self.norm2(h + time)
        h = self.conv2(self.dropout(self.activation(h), rngs=rngs))
        return scaled(h + (x if self.shortcut is None else self.shortcut(x)), self.scale)


class Downsample(nnx.Module):
    """Halve the image: 3x3 convolution of stride 2, padded at the bottom and right only, as TensorFlow's SAME does.

    padding: (1, 1): padded all around, as improved DDPM does. A ResBlock may stand in: time and rngs are not used.
    """

    def __init__(self, dim: int, *, padding: tuple[int, int] = (0, 1), rngs: nnx.Rngs):
        self.conv = Conv(dim, dim, 3, stride=2, padding=padding, init=xavier, rngs=rngs)

    def __call__(self, x: Image, time: Vector, rngs: nnx.Rngs | None = None) -> Float[Array, "b h//2 w//2 c"]:
        """(B, H, W, C) -> (B, H / 2, W / 2, C)."""
        return self.conv(x)


class Upsample(nnx.Module):
    """Double the image: nearest neighbour, then a 3x3 convolution; time and rngs are not used (a ResBlock may stand in)."""

    def __init__(self, dim: int, *, rngs: nnx.Rngs):
        self.conv = Conv(dim, dim, 3, init=xavier, rngs=rngs)

    def __call__(self, x: Image, time: Vector, rngs: nnx.Rngs | None = None) -> Float[Array, "b 2*h 2*w c"]:
        """(B, H, W, C) -> (B, 2 H, 2 W, C)."""
        return self.conv(double_nearest(x))


class DownLevel(nnx.Module):
    """Blocks at one image size, each with its attention if any, then the halving unless it is the smallest."""

    def __init__(self, blocks: list[ResBlock], attentions: list[Attention], downsample: nnx.Module | None):
        self.blocks = nnx.List(blocks)
        self.attentions = nnx.List(attentions)
        self.downsample = downsample

    def __call__(self, x: Image, time: Vector, rngs: nnx.Rngs | None) -> list[jax.Array]:
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


class UpLevel(nnx.Module):
    """Blocks on [x, skip], each with its attention if any, then the doubling unless it is the largest."""

    def __init__(self, blocks: list[ResBlock], attentions: list[Attention], upsample: nnx.Module | None):
        self.blocks = nnx.List(blocks)
        self.attentions = nnx.List(attentions)
        self.upsample = upsample

    def __call__(self, x: Image, skips: list[jax.Array], time: Vector, rngs: nnx.Rngs | None) -> Resized:
        """Takes one skip a block from the end of the list."""
        for index, block in enumerate(self.blocks):
            x = block(jnp.concatenate([x, skips.pop()], axis=-1), time, rngs)
            if self.attentions:
                x = self.attentions[index](x)
        return x if self.upsample is None else self.upsample(x, time, rngs)


class UNet(Network):
    """(x_t, t, labels) -> eps: convolutional encoder and decoder joined by skips; see `UNetConfig` for the options."""

    def __init__(self, config: UNetConfig, *, rngs: nnx.Rngs):
        self.config = config
        widths, num_blocks = config.level_widths, config.num_blocks
        last = len(widths) - 1
        self.conv_in = Conv(config.input_channels, config.width_in, 3, init=xavier, rngs=rngs)
        self.time_mlp = self._time_mlp(rngs)
        self.interval_mlp = self._time_mlp(rngs) if config.interval else None
        self.class_embed = None if config.num_classes is None else self._class_embed(rngs)

        width, skips, down = config.width_in, [config.width_in], []
        for level, wide in enumerate(widths):
            blocks = [self._block(width if i == 0 else wide, wide, rngs) for i in range(num_blocks)]
            downsample = self._downsample(level, rngs) if level < last else None
            down.append(DownLevel(blocks, self._attentions("down", level, num_blocks, rngs), downsample))
            skips += [wide] * (num_blocks + (level < last))
            width = wide
        self.down = nnx.List(down)

        self.middle = self._middle(width, rngs)

        up = []
        for level, wide in reversed(list(enumerate(widths))):
            ins = [(width if i == 0 else wide) + skips.pop() for i in range(num_blocks + 1)]
            blocks = [self._block(in_dim, wide, rngs) for in_dim in ins]
            upsample = self._upsample(level, rngs) if level > 0 else None
            up.append(UpLevel(blocks, self._attentions("up", level, num_blocks + 1, rngs), upsample))
            width = wide
        self.up = nnx.List(up)

        self.norm_out = self._norm(width, rngs=rngs)
        self.conv_out = Conv(width, config.channels * (2 if config.learn_variance else 1), 3, init=zeros, rngs=rngs)

    def _time_mlp(self, rngs: nnx.Rngs) -> TimeMLP:
        return TimeMLP(self.config.dim, self.config.embedding_width, activation=nnx.silu, init=xavier, rngs=rngs)

    def _class_embed(self, rngs: nnx.Rngs) -> nnx.Module:
        assert self.config.num_classes is not None
        init = nnx.initializers.normal(1.0)
        return nnx.Embed(self.config.num_classes, self.config.embedding_width, embedding_init=init, rngs=rngs)

    def _norm(self, dim: int, *, rngs: nnx.Rngs) -> GroupNorm:
        return GroupNorm(dim, self.config.norm_groups, epsilon=1e-6, rngs=rngs)

    def _block(self, in_dim: int, out_dim: int, rngs: nnx.Rngs, **options: Any) -> ResBlock:
        return ResBlock(
            in_dim,
            out_dim,
            self.config.embedding_width,
            norm=lambda dim: self._norm(dim, rngs=rngs),
            dropout=self.config.dropout,
            conditioning=self.config.time_conditioning,
            **options,
            rngs=rngs,
        )

    def _attention(self, dim: int, rngs: nnx.Rngs, **options: Any) -> Attention:
        norm = self._norm(dim, rngs=rngs)
        # three dim -> dim maps in one: fan_avg is 2 dim here, so scale 2 gives each the bound it would have alone
        qkv_init = nnx.initializers.variance_scaling(2.0, "fan_avg", "uniform")
        qkv, proj = linear(dim, 3 * dim, init=qkv_init, rngs=rngs), linear(dim, dim, init=zeros, rngs=rngs)
        return Attention(norm, qkv, proj, num_heads=self.config.heads(dim))

    def _attentions(self, way: Literal["down", "up"], level: int, count: int, rngs: nnx.Rngs) -> list[Attention]:
        sizes = self.config.attention_sizes[way == "up"]
        wanted = self.config.image_size // 2**level in sizes
        return [self._attention(self.config.level_widths[level], rngs) for _ in range(count)] if wanted else []

    def _middle(self, dim: int, rngs: nnx.Rngs) -> Middle | None:
        block1 = self._block(dim, dim, rngs)
        return Middle(block1, self._attention(dim, rngs), self._block(dim, dim, rngs))

    def _downsample(self, level: int, rngs: nnx.Rngs) -> nnx.Module:
        width = self.config.level_widths[level]
        if self.config.resample == "residual":
            return self._block(width, width, rngs, resample=halve_mean)
        return Downsample(width, rngs=rngs)

    def _upsample(self, level: int, rngs: nnx.Rngs) -> nnx.Module:
        width = self.config.level_widths[level]
        if self.config.resample == "residual":
            return self._block(width, width, rngs, resample=double_nearest)
        return Upsample(width, rngs=rngs)

    def __call__(
        self,
        x_t: Image,
        t: Num[Array, "b"] | Num[Array, "b 2"],
        labels: Int[Array, "b"] | None = None,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b h w out"]:
        """Predict from x_t (B, H, W, C) at timesteps t (B,), for classes labels (B,); rngs: dropout's, while training.

        With interval, t is (B, 2): the time, and how far it is to an earlier one. Behind its own channels x_t holds the
        condition_channels, and behind them, with self-conditioning, an estimate of x_0, or zeros: (B, H, W, input_channels).

        Raises:
            UserError: labels missing for a class-conditional network, or given to another; x_t of another number of channels.
        """
        if x_t.shape[-1] != self.config.input_channels:
            raise UserError(self._other_channels(x_t.shape[-1]))
        self._check_labels(labels)
        time = self._told(t, x_t.dtype)
        if labels is not None:
            time = time + self._embedded(labels, x_t.dtype)
        skips = [self.conv_in(x_t)]
        for down in self.down:
            skips += down(skips[-1], time, rngs)
        x = skips[-1] if self.middle is None else self.middle(skips[-1], time, rngs)
        for up in self.up:
            x = up(x, skips, time, rngs)
        return self.conv_out(nnx.silu(self.norm_out(x)))

    def _other_channels(self, got: int) -> str:
        c = self.config
        how = ""
        if c.condition_channels and got == c.input_channels - c.condition_channels:
            how = " Show it the image: denoise.beside(condition), or a batch with 'condition'."
        guess = " and a guess" if c.self_conditioning else ""
        return (
            f"a unet with condition_channels = {c.condition_channels} takes {c.input_channels} channels, those of x_t{guess} "
            f"included; got {got}.{how}"
        )

    def _told(self, t: Num[Array, "b"] | Num[Array, "b 2"], dtype: jnp.dtype) -> Vector:
        if (t.ndim == 2) != self.config.interval:
            need = "(B, 2), t and the way to go" if self.config.interval else "(B,)"
            raise UserError(f"t must be {need} for a unet with interval = {self.config.interval}; got {t.shape}.")
        if self.interval_mlp is None:
            return self.time_mlp(t, dtype)
        return self.time_mlp(t[:, 0], dtype) + self.interval_mlp(t[:, 1], dtype)

    def _embedded(self, labels: Int[Array, "b"], dtype: jnp.dtype) -> Vector:
        assert isinstance(self.class_embed, nnx.Embed)
        return self.class_embed.embedding[labels]  # nnx.Embed itself casts to the dtype it was made with
