"""`conv_net`: system 5's smallest network, two convolutions, which does not see the time."""

from flax import nnx
from jaxtyping import Array, Float, Num

from ddpm_jax import model_configs as configs
from ddpm_jax.models.layers import Image
from ddpm_jax.models.normalization import BatchNorm
from ddpm_jax.models.torch_style import conv


class ConvNet(nnx.Module):
    """x_t -> eps by two convolutions; see `model_configs.ConvNet`."""

    def __init__(self, config: configs.ConvNet, *, rngs: nnx.Rngs):
        self.config = config
        self.conv_in = conv(config.channels, config.dim, 3, rngs=rngs)
        self.norm = BatchNorm(config.dim, rngs=rngs)
        self.conv_out = conv(config.dim, config.channels, 3, rngs=rngs)

    def __call__(
        self,
        x_t: Image,
        t: Num[Array, "b"] | None = None,
        labels: None = None,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b h w c"]:
        """Predict from x_t (B, H, W, C); t is taken and not looked at."""
        return self.conv_out(nnx.relu(self.norm(self.conv_in(x_t))))
