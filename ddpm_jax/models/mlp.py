"""`mlp`: system 4's network for points in the plane."""

import itertools
from dataclasses import dataclass

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Num

from ddpm_jax.errors import UserError
from ddpm_jax.models.config import ModelConfig
from ddpm_jax.models.layers import linear
from ddpm_jax.models.network import Network


@dataclass(frozen=True)
class MLPConfig(ModelConfig, network="mlp"):
    """System 4's network for points.

    Raises:
        UserError: a number out of range.
    """

    data_dim: int = 2
    """Coordinates of a point."""
    dim: int = 256
    """Width of the three hidden layers."""
    num_steps: int = 1000
    """T of the schedule: t lies in 0..T-1."""

    def __post_init__(self) -> None:
        self._at_least_1("data_dim", "dim")
        if self.num_steps < 2:
            raise UserError(f"num_steps must be at least 2; got {self.num_steps}.")

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one point: (data_dim,)."""
        return (self.data_dim,)

    def module(self, rngs: nnx.Rngs) -> "MLP":
        """The network of these options."""
        return MLP(self, rngs=rngs)


class MLP(Network):
    """(x_t, t) -> eps: three hidden layers with ReLU; see `MLPConfig`."""

    def __init__(self, config: MLPConfig, *, rngs: nnx.Rngs):
        self.config = config
        widths = [config.data_dim + 1, config.dim, config.dim, config.dim, config.data_dim]
        self.layers = nnx.List([linear(a, b, rngs=rngs) for a, b in itertools.pairwise(widths)])

    def __call__(
        self,
        x_t: Float[Array, "b d"],
        t: Num[Array, "b"],
        labels: None = None,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b d"]:
        """Predict from points x_t (B, data_dim) at t (B,) in 0..num_steps - 1, which enters as t / (T - 1) - 1/2."""
        exact = jnp.promote_types(x_t.dtype, jnp.float32)
        time = t.astype(exact) / (self.config.num_steps - 1) - 0.5
        x = jnp.concatenate([x_t, time[:, None].astype(x_t.dtype)], axis=-1)
        for layer in self.layers[:-1]:
            x = nnx.relu(layer(x))
        return self.layers[-1](x)
