"""`strided_unet` and `strided_unet_conditional`: system 5's U-Net, without and with classes, which does not see the time."""

import itertools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Num

from ddpm_jax.models.config import ModelConfig
from ddpm_jax.models.convolution import Image, Resized
from ddpm_jax.models.layers import Conv, ConvTranspose
from ddpm_jax.models.network import Network
from ddpm_jax.models.normalization import BatchNorm
from ddpm_jax.models.remat import Block


@dataclass(frozen=True)
class StridedUNetConfig(ModelConfig, network="strided_unet"):
    """System 5's U-Net.

    Raises:
        UserError: an image size that cannot be halved four times, or a number below 1.
    """

    channels: int = 3
    """Channels of the images."""
    image_size: int = 32
    """Height and width of the images, in pixels."""
    num_classes: int | None = None
    """Number of classes the network is told about; None: unconditional."""

    def __post_init__(self) -> None:
        self._at_least_1("channels", "image_size", *(["num_classes"] if self.num_classes is not None else []))
        self._divides("image_size", 16)

    def module(self, rngs: nnx.Rngs) -> "StridedUNet":
        """The network of these options."""
        return StridedUNet(self, rngs=rngs)


@dataclass(frozen=True)
class StridedUNetConditionalConfig(StridedUNetConfig, network="strided_unet_conditional"):
    """System 5's U-Net with classes."""

    num_classes: int | None = 10
    """Number of classes the network is told about."""


class Unit(Block):
    """A (transposed) 4x4 convolution of stride 2 without bias, BatchNorm, ReLU."""

    def __init__(self, in_dim: int, out_dim: int, *, up: bool, rngs: nnx.Rngs):
        make = ConvTranspose if up else Conv
        self.conv = make(in_dim, out_dim, 4, stride=2, padding=1, bias=False, rngs=rngs)
        self.norm = BatchNorm(out_dim, rngs=rngs)

    def __call__(self, x: Image) -> Resized:
        """(B, H, W, in) -> half or twice the size, out."""
        return nnx.relu(self.norm(self.conv(x)))


class StridedUNet(Network):
    """x_t -> eps; see `StridedUNetConfig`. With classes, their one-hot vector joins the first two concatenations."""

    def __init__(self, config: StridedUNetConfig, *, rngs: nnx.Rngs):
        self.config = config
        extra = config.num_classes or 0
        widths = [config.channels, 72, 96, 128, 196]
        self.down = nnx.List([Unit(a, b, up=False, rngs=rngs) for a, b in itertools.pairwise(widths)])
        self.middle = Conv(196, 256, 3, bias=False, rngs=rngs)
        ins, outs = (256 + 196 + extra, 256 + 128 + extra, 196 + 96, 128 + 72), (256, 196, 128, 96)
        self.up = nnx.List([Unit(a, b, up=True, rngs=rngs) for a, b in zip(ins, outs, strict=True)])
        self.conv_out = Conv(96 + config.channels, config.channels, 1, rngs=rngs)

    def __call__(
        self,
        x_t: Image,
        t: Num[Array, "b"] | None = None,
        labels: Int[Array, "b"] | None = None,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b h w c"]:
        """Predict from x_t (B, H, W, C), for classes labels (B,) if it is conditional; t is taken and not looked at.

        Raises:
            UserError: labels missing for a conditional network, or given to another.
        """
        self._check_labels(labels)
        x, skips = x_t, [x_t]
        for unit in self.down:
            x = unit(x)
            skips.append(x)
        x = self.middle(x)
        for index, unit in enumerate(self.up):
            parts = [x, skips.pop()]
            if self.config.num_classes is not None and index < 2:
                one_hot = jax.nn.one_hot(labels, self.config.num_classes, dtype=x.dtype)
                parts.append(jnp.broadcast_to(one_hot[:, None, None, :], (*x.shape[:3], one_hot.shape[-1])))
            x = unit(jnp.concatenate(parts, axis=-1))
        return self.conv_out(jnp.concatenate([x, skips.pop()], axis=-1))
