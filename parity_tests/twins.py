"""The two sides of a comparison: networks with the same weights, arrays with the same numbers."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from ddpm_jax import models, weights
from ddpm_jax.compilation import once
from ddpm_torch_ref import models as twin_models

SMALL: dict[str, Any] = {"image_size": 8, "dim": 8, "dim_mults": (1, 2), "num_blocks": 1, "norm_groups": 4}
"""Options of a U-Net that compiles quickly; two channels in every group, so that no bias is lost in a norm."""


def normal(dtype: str, *shape: int, seed: int = 0) -> np.ndarray:
    """Standard normal numbers; float32 ones are the float64 ones, rounded."""
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def to_nchw(array: np.ndarray) -> torch.Tensor:
    """(..., H, W, C) -> tensor (..., C, H, W)."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(np.asarray(array), -1, -3)))


def to_nhwc(tensor: torch.Tensor) -> np.ndarray:
    """tensor (..., C, H, W) -> (..., H, W, C)."""
    return np.moveaxis(tensor.detach().numpy(), -3, -1)


def indices(values: Any) -> tuple[jax.Array, torch.Tensor]:
    """Times or labels for either side: int32 in JAX, int64 in PyTorch."""
    return jnp.asarray(np.asarray(values), jnp.int32), torch.as_tensor(np.asarray(values), dtype=torch.int64)


def randomise(model: torch.nn.Module, seed: int = 0) -> None:
    """Draw every parameter anew, none of them zero, so that layers which start at zero take part as well."""
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            draw = rng.normal(size=parameter.shape)
            if "norm" in name and name.endswith("weight"):  # that of a whole map has three axes
                draw = 1 + 0.3 * draw
            elif parameter.ndim > 1:
                draw /= np.sqrt(parameter[0].numel())
            else:
                draw *= 0.3
            parameter.copy_(torch.from_numpy(draw))
            assert parameter.all(), name


def abstract(name: str, **options: Any) -> nnx.Module:
    """The JAX network without numbers, at no cost: initialising one layer after the other takes long."""
    return models.abstract(models.configure(name, options))


def make_pair(name: str, dtype: str, *, seed: int = 0, **options: Any) -> tuple[nnx.Module, torch.nn.Module]:
    """The named network and its twin with the same random weights, in the given dtype, the twin ready to evaluate."""
    twin = twin_models.create(name, **options).to(getattr(torch, dtype)).eval()
    randomise(twin, seed)
    model = abstract(name, **options)
    weights.load_torch(model, twin.state_dict())
    return model, twin


def forward_and_back(
    model: nnx.Module, x: np.ndarray, t: jax.Array, labels: jax.Array | None, pull: np.ndarray
) -> tuple[jax.Array, Any, jax.Array]:
    """A network's output, and what `pull` of it pulls back to the parameters and to the image."""
    graphdef, variables = models.split(model)

    @compiled
    def run(params: Any, x: jax.Array, pull: jax.Array) -> tuple[jax.Array, Any, jax.Array]:
        def forward(params: Any, x: jax.Array) -> jax.Array:
            return models.apply(graphdef, {"params": params, "batch_stats": {}}, x, t, labels)[0]

        output, back = jax.vjp(forward, params, x)
        return output, *back(pull)

    return run(variables["params"], jnp.asarray(x), jnp.asarray(pull))


def compiled(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """jax.jit for the many programs that run only a few times: what takes long is to optimise them."""
    return jax.jit(function, compiler_options=once(), **options)
