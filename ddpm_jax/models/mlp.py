"""`mlp`: system 4's network for points in the plane."""

import itertools

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Num

from ddpm_jax import model_configs as configs
from ddpm_jax.models.network import Network
from ddpm_jax.models.torch_style import linear


class MLP(Network):
    """(x_t, t) -> eps: three hidden layers with ReLU; see `model_configs.MLP`."""

    def __init__(self, config: configs.MLP, *, rngs: nnx.Rngs):
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
