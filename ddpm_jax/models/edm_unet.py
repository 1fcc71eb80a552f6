"""`edm_unet`: the networks of Karras et al. (2022) for CIFAR-10, DDPM++ and NCSN++ of Song et al. (2021).

Its parts are called as in the original, so that published weights fit by name.
"""

import math
from dataclasses import dataclass
from itertools import product
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float, Int, Num

from ddpm_jax.errors import UserError
from ddpm_jax.models.attention import attend
from ddpm_jax.models.config import ModelConfig
from ddpm_jax.models.convolution import Image, Resized
from ddpm_jax.models.layers import Conv, Vector, double_nearest, halve_mean, linear, timestep_embedding
from ddpm_jax.models.network import Network
from ddpm_jax.models.normalization import GroupNorm
from ddpm_jax.models.remat import Block


@dataclass(frozen=True)
class EDMUNetConfig(ModelConfig, network="edm_unet"):
    """The U-Net of Karras et al. 2022: by default DDPM++ for CIFAR-10; with embedding fourier, resample fir and
    residual_input, NCSN++.

    Raises:
        UserError: an image size the levels cannot halve, or widths that groups do not divide.
    """

    image_size: int = 32
    """Height and width of the images, in pixels."""
    channels: int = 3
    """Channels of the images: 1 or 3."""
    num_classes: int | None = None
    """Number of classes the network is told about; None: unconditional."""
    dim: int = 128
    """Base width, in channels."""
    dim_mults: tuple[int, ...] = (2, 2, 2)
    """Width of each level, as a multiple of dim; every level but the last halves the image."""
    num_blocks: int = 4
    """Residual blocks in each level on the way down (one more on the way up)."""
    attention_resolutions: tuple[int, ...] = (16,)
    """Image sizes, in pixels, at which blocks attend: all on the way down, the last on the way up."""
    dropout: float = 0.13
    """Share of activations dropped in each residual block while training, in [0, 1)."""
    embedding: Literal["positional", "fourier"] = "positional"
    """How time is embedded: as sinusoids at fixed frequencies (DDPM++), or at twice as many random ones (NCSN++)."""
    resample: Literal["box", "fir"] = "box"
    """How images are halved and doubled: by 2x2 means and nearest neighbours (DDPM++), or filtered by [1, 3, 3, 1] (NCSN++)."""
    residual_input: bool = False
    """The image itself, halved by convolutions of its own, is added at every level on the way down (NCSN++)."""
    skip_scale: float = math.sqrt(0.5)
    """What the sum of a block and its input is multiplied by, so that its variance stays."""
    augment_dim: int | None = None
    """Numbers that tell how an image was augmented, 9 in the original; None: it is told none."""

    def module(self, rngs: nnx.Rngs) -> "EDMUNet":
        """The network of these options."""
        return EDMUNet(self, rngs=rngs)

    @property
    def noise_width(self) -> int:
        """Width of the time's embedding before the layers that follow."""
        return self.dim * (2 if self.embedding == "fourier" else 1)

    def __post_init__(self) -> None:
        self._at_least_1("image_size", "channels", "num_blocks")
        self._at_least_1_or_none("num_classes", "augment_dim")
        self._for_each_level("dim_mults")
        self._droppable()
        self._even_dim()
        if not self.skip_scale > 0:
            raise UserError(f"skip_scale must be positive; got {self.skip_scale:g}.")
        halvings = len(self.dim_mults) - 1
        if self.image_size % 2**halvings:
            raise UserError(
                f"image_size must be divisible by {2**halvings}, because {halvings + 1} dim_mults halve the image "
                f"{halvings} times; got {self.image_size}."
            )
        widths = [self.dim, *(self.dim * mult for mult in self.dim_mults)]
        for width in {*widths, *(a + b for a, b in product(widths, widths))}:
            if width % groups_of(width):
                raise UserError(
                    f"every width must be a multiple of 4, and from 128 on of 32; dim = {self.dim} gives {width}."
                )


def groups_of(width: int) -> int:
    """Groups of a norm: 32, or fewer, of four channels at least."""
    return max(1, min(32, width // 4))


def halve_fir(x: Image, padded: bool = False) -> Float[Array, "b h_out w_out c"]:
    """The image filtered by [1, 3, 3, 1] / 8 along both axes, every other pixel of it; padded: the border is there already."""
    for axis in (1, 2):
        sides = [(1, 1) if axis == each and not padded else (0, 0) for each in range(4)]
        wide = jnp.pad(x, sides)
        size = wide.shape[axis] - 2
        a, b, c, d = (jax.lax.slice_in_dim(wide, start, start + size - 1, 2, axis) for start in range(4))
        x = (a + d + 3 * (b + c)) / 8
    return x


def double_fir(x: Image) -> Float[Array, "b 2*h 2*w c"]:
    """Zeros between the pixels, and that filtered by [1, 3, 3, 1] / 4 along both axes."""
    for axis in (1, 2):
        wide = jnp.pad(x, [(1, 1) if axis == each else (0, 0) for each in range(4)])
        size = x.shape[axis]
        before, after = (jax.lax.slice_in_dim(wide, start, start + size, 1, axis) for start in (0, 2))
        both = jnp.stack([before + 3 * x, 3 * x + after], axis=axis + 1) / 4
        x = both.reshape(*x.shape[:axis], 2 * size, *x.shape[axis + 1 :])
    return x


RESAMPLE = {"box": {"down": halve_mean, "up": double_nearest}, "fir": {"down": halve_fir, "up": double_fir}}
"""How images are halved and doubled, by resample."""


def xavier(scale: float = 1.0) -> nnx.Initializer:
    """Uniform, of a variance that keeps that of the signal in both directions, times scale squared (Glorot & Bengio 2010)."""
    return nnx.initializers.variance_scaling(scale**2, "fan_avg", "uniform")


class UNetBlock(Block):
    """Two convolutions, each after a norm and SiLU, the time added between them; added to the input, and the same of attention.

    resample: `down` or `up`, before the first convolution and the skip. attention: whether the pixels attend to each other.
    """

    def __init__(
        self,
        config: EDMUNetConfig,
        in_dim: int,
        out_dim: int,
        *,
        resample: Literal["down", "up"] | None = None,
        attention: bool = False,
        rngs: nnx.Rngs,
    ):
        self.skip_scale = config.skip_scale
        self.resample = RESAMPLE[config.resample][resample] if resample else None
        self.norm0 = norm(in_dim, rngs)
        self.conv0 = Conv(in_dim, out_dim, 3, init=xavier(), rngs=rngs)
        self.affine = linear(4 * config.dim, out_dim, init=xavier(), rngs=rngs)
        self.norm1 = norm(out_dim, rngs)
        self.dropout = nnx.Dropout(config.dropout)
        self.conv1 = Conv(out_dim, out_dim, 3, init=xavier(1e-5), rngs=rngs)
        self.skip = Conv(in_dim, out_dim, 1, init=xavier(), rngs=rngs) if resample or in_dim != out_dim else None
        self.attention = attention
        if attention:
            self.norm2 = norm(out_dim, rngs)
            self.qkv = Conv(out_dim, 3 * out_dim, 1, init=xavier(math.sqrt(0.2)), rngs=rngs)
            self.proj = Conv(out_dim, out_dim, 1, init=xavier(1e-5), rngs=rngs)

    def __call__(self, x: Image, time: Vector, rngs: nnx.Rngs | None = None) -> Resized:
        """x (B, H, W, in_dim), time (B, 4 dim) -> (B, H, W, out_dim), resampled; rngs: dropout's."""
        h = nnx.silu(self.norm0(x))
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = self.conv0(h) + self.affine(time)[:, None, None, :]
        h = self.conv1(self.dropout(nnx.silu(self.norm1(h)), rngs=rngs))
        x = (h + (x if self.skip is None else self.skip(x))) * self.skip_scale
        return (self._attended(x) + x) * self.skip_scale if self.attention else x

    def _attended(self, x: Image) -> Image:
        # queries, keys and values of a channel lie side by side
        q, k, v = rearrange(self.qkv(self.norm2(x)), "b h w (d three) -> three b 1 (h w) d", three=3)
        return self.proj(rearrange(attend(q, k, v), "b 1 (h w) d -> b h w d", h=x.shape[1]))


class FourierEmbedding(nnx.Module):
    """Sines, then cosines, of t at random frequencies that stay as they were drawn (Tancik et al. 2020)."""

    TORCH_NAMES: ClassVar = {"freqs": ("freqs", (0,))}

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        # kept with the weights and never trained, which is what BatchStat stands for here
        self.freqs = nnx.BatchStat(16 * jax.random.normal(rngs.params(), (width // 2,)))

    def __call__(self, t: Num[Array, "b"], dtype: jnp.dtype) -> Vector:
        """t (B,) -> (B, width) in the given dtype; computed in float32 at least."""
        exact = jnp.promote_types(dtype, jnp.float32)
        angles = t.astype(exact)[:, None] * (2 * jnp.pi * self.freqs[...].astype(exact))
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1).astype(dtype)


class EDMUNet(Network):
    """(x_t, t, labels) -> F, of x_t at unit variance and t = ln(sigma) / 4; see `EDMUNetConfig` for the options."""

    def __init__(self, config: EDMUNetConfig, *, rngs: nnx.Rngs):
        self.config = config
        noise_width, time_width = config.noise_width, 4 * config.dim
        self.map_noise = FourierEmbedding(noise_width, rngs=rngs) if config.embedding == "fourier" else None
        self.map_label = (
            linear(config.num_classes, noise_width, init=xavier(), rngs=rngs) if config.num_classes else None
        )
        self.map_augment = (
            nnx.Linear(config.augment_dim, noise_width, use_bias=False, kernel_init=xavier(), rngs=rngs)
            if config.augment_dim
            else None
        )
        self.map_layer0 = linear(noise_width, time_width, init=xavier(), rngs=rngs)
        self.map_layer1 = linear(time_width, time_width, init=xavier(), rngs=rngs)
        enc, skips = self._encoder(rngs)
        self.enc, self.dec = nnx.Dict(enc), nnx.Dict(self._decoder(skips, rngs))

    def _sizes(self) -> list[tuple[str, int, int]]:
        """Of each level: what its parts are called after, its image size and its width."""
        c = self.config
        sizes = [c.image_size // 2**level for level in range(len(c.dim_mults))]
        return [(f"{size}x{size}", size, c.dim * mult) for size, mult in zip(sizes, c.dim_mults, strict=True)]

    def _encoder(self, rngs: nnx.Rngs) -> tuple[dict[str, nnx.Module], list[int]]:
        """The parts of the way down by name, and the widths of the skips."""
        c = self.config
        enc: dict[str, nnx.Module] = {}
        width, shown, skips = c.dim, c.channels, []
        for level, (at, size, wide) in enumerate(self._sizes()):
            if level == 0:
                enc[f"{at}_conv"] = Conv(c.channels, width, 3, init=xavier(), rngs=rngs)
            else:
                enc[f"{at}_down"] = UNetBlock(c, width, width, resample="down", rngs=rngs)
            if level and c.residual_input:
                border = 2 if c.resample == "fir" else 1
                enc[f"{at}_aux_residual"] = Conv(shown, width, 3, padding=border, init=xavier(), rngs=rngs)
                shown = width
            skips.append(width)
            for index in range(c.num_blocks):
                attention = size in c.attention_resolutions
                enc[f"{at}_block{index}"] = UNetBlock(c, width, wide, attention=attention, rngs=rngs)
                width = wide
                skips.append(width)
        return enc, skips

    def _decoder(self, skips: list[int], rngs: nnx.Rngs) -> dict[str, nnx.Module]:
        """The parts of the way up by name."""
        c = self.config
        dec: dict[str, nnx.Module] = {}
        width = skips[-1]
        for level, (at, size, wide) in reversed(list(enumerate(self._sizes()))):
            if level == len(c.dim_mults) - 1:
                dec[f"{at}_in0"] = UNetBlock(c, width, width, attention=True, rngs=rngs)
                dec[f"{at}_in1"] = UNetBlock(c, width, width, rngs=rngs)
            else:
                dec[f"{at}_up"] = UNetBlock(c, width, width, resample="up", rngs=rngs)
            for index in range(c.num_blocks + 1):
                attention = index == c.num_blocks and size in c.attention_resolutions
                dec[f"{at}_block{index}"] = UNetBlock(c, width + skips.pop(), wide, attention=attention, rngs=rngs)
                width = wide
            if level == 0:
                dec[f"{at}_aux_norm"] = norm(width, rngs)
                dec[f"{at}_aux_conv"] = Conv(width, c.channels, 3, init=xavier(1e-5), rngs=rngs)
        return dec

    def __call__(
        self,
        x_t: Image,
        t: Num[Array, "b"],
        labels: Int[Array, "b"] | None = None,
        *,
        augment: Float[Array, "b a"] | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> Image:
        """Predict from x_t (B, H, W, C) at t (B,), for classes labels (B,); rngs: dropout's, while training.

        augment: (B, augment_dim), how each image was augmented; None, as in sampling: not at all.

        Raises:
            UserError: labels missing for a class-conditional network, or given to another.
        """
        time = self._embedded(t, labels, augment, x_t.dtype)
        sizes = self._sizes()
        x, shown, skips = x_t, x_t, []
        for level, (at, _, _) in enumerate(sizes):
            x = self.enc[f"{at}_down"](x, time, rngs) if level else self.enc[f"{at}_conv"](x)
            if level and self.config.residual_input:
                x = shown = (x + self._halved(self.enc[f"{at}_aux_residual"](shown))) / math.sqrt(2)
            skips.append(x)
            for index in range(self.config.num_blocks):
                x = self.enc[f"{at}_block{index}"](x, time, rngs)
                skips.append(x)
        for level, (at, _, _) in reversed(list(enumerate(sizes))):
            for name in ("in0", "in1") if level == len(sizes) - 1 else ("up",):
                x = self.dec[f"{at}_{name}"](x, time, rngs)
            for index in range(self.config.num_blocks + 1):
                x = self.dec[f"{at}_block{index}"](jnp.concatenate([x, skips.pop()], axis=-1), time, rngs)
        at = sizes[0][0]
        return self.dec[f"{at}_aux_conv"](nnx.silu(self.dec[f"{at}_aux_norm"](x)))

    def _halved(self, x: Image) -> Resized:
        return halve_fir(x, padded=True) if self.config.resample == "fir" else halve_mean(x)

    def _embedded(
        self, t: Num[Array, "b"], labels: Int[Array, "b"] | None, augment: Float[Array, "b a"] | None, dtype: jnp.dtype
    ) -> Vector:
        """Time, class and augmentation -> (B, 4 dim)."""
        self._check_labels(labels)
        if augment is not None and self.map_augment is None:
            raise UserError("augment needs a network with augment_dim; got None.")
        width = self.config.noise_width
        time = timestep_embedding(t, width, dtype) if self.map_noise is None else self.map_noise(t, dtype)
        if labels is not None and self.map_label is not None:
            classes = self.config.num_classes or 0
            time = time + self.map_label(jax.nn.one_hot(labels, classes, dtype=dtype) * math.sqrt(classes))
        if augment is not None and self.map_augment is not None:
            time = time + self.map_augment(augment.astype(dtype))
        return nnx.silu(self.map_layer1(nnx.silu(self.map_layer0(time))))


def norm(dim: int, rngs: nnx.Rngs) -> GroupNorm:
    """GroupNorm with the groups and the epsilon of these networks."""
    return GroupNorm(dim, groups_of(dim), epsilon=1e-6, rngs=rngs)
