"""`strided_unet` and `strided_unet_conditional`: system 5's U-Net, without and with classes, which does not see the time."""

import itertools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Num

from ddpm_jax import model_configs as configs
from ddpm_jax.errors import UserError
from ddpm_jax.models.layers import Image, Resized
from ddpm_jax.models.normalization import BatchNorm
from ddpm_jax.models.torch_style import conv, conv_transpose


class Unit(nnx.Module):
    """A (transposed) 4x4 convolution of stride 2 without bias, BatchNorm, ReLU."""

    def __init__(self, in_dim: int, out_dim: int, *, up: bool, rngs: nnx.Rngs):
        make = conv_transpose if up else conv
        self.conv = make(in_dim, out_dim, 4, stride=2, padding=1, bias=False, rngs=rngs)
        self.norm = BatchNorm(out_dim, rngs=rngs)

    def __call__(self, x: Image) -> Resized:
        """(B, H, W, in) -> half or twice the size, out."""
        return nnx.relu(self.norm(self.conv(x)))


class StridedUNet(nnx.Module):
    """x_t -> eps; see `model_configs.StridedUNet`. With classes, their one-hot vector joins the first two concatenations."""

    def __init__(self, config: configs.StridedUNet, *, rngs: nnx.Rngs):
        self.config = config
        extra = config.num_classes or 0
        widths = [config.channels, 72, 96, 128, 196]
        self.down = nnx.List([Unit(a, b, up=False, rngs=rngs) for a, b in itertools.pairwise(widths)])
        self.middle = conv(196, 256, 3, bias=False, rngs=rngs)
        ins, outs = (256 + 196 + extra, 256 + 128 + extra, 196 + 96, 128 + 72), (256, 196, 128, 96)
        self.up = nnx.List([Unit(a, b, up=True, rngs=rngs) for a, b in zip(ins, outs, strict=True)])
        self.conv_out = conv(96 + config.channels, config.channels, 1, rngs=rngs)

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
        if (labels is None) != (self.config.num_classes is None):
            need = "needs" if labels is None else "takes no"
            raise UserError(f"a strided_unet with num_classes = {self.config.num_classes} {need} labels.")
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
