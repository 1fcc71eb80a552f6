"""`conv_net`: system 5's smallest network, two convolutions, which does not see the time."""

from dataclasses import dataclass

from flax import nnx
from jaxtyping import Array, Float, Num

from ddpm_jax.models.config import ModelConfig
from ddpm_jax.models.convolution import Image
from ddpm_jax.models.layers import Conv
from ddpm_jax.models.network import Network
from ddpm_jax.models.normalization import BatchNorm


@dataclass(frozen=True)
class ConvNetConfig(ModelConfig, network="conv_net"):
    """System 5's smallest network.

    Raises:
        UserError: a number below 1.
    """

    channels: int = 3
    """Channels of the images."""
    image_size: int = 32
    """Height and width of the images, in pixels; the network takes any size."""
    dim: int = 64
    """Width of the hidden layer, in channels."""

    def __post_init__(self) -> None:
        self._at_least_1("channels", "image_size", "dim")

    def module(self, rngs: nnx.Rngs) -> "ConvNet":
        """The network of these options."""
        return ConvNet(self, rngs=rngs)


class ConvNet(Network):
    """x_t -> eps by two convolutions; see `ConvNetConfig`."""

    def __init__(self, config: ConvNetConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.conv_in = Conv(config.channels, config.dim, 3, rngs=rngs)
        self.norm = BatchNorm(config.dim, rngs=rngs)
        self.conv_out = Conv(config.dim, config.channels, 3, rngs=rngs)

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
