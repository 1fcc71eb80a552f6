"""Networks by name: `create("unet", rngs=nnx.Rngs(0), dim=64)`; every one is called as model(x_t, t, labels)."""

from collections.abc import Callable
from dataclasses import fields
from typing import Any

from flax import nnx

from ddpm_jax import model_configs as configs
from ddpm_jax.errors import UserError
from ddpm_jax.models.functional import Variables, apply, split
from ddpm_jax.models.unet import UNet

__all__ = ["MODELS", "UNet", "Variables", "apply", "build", "configs", "create", "num_params", "split"]

MODELS: dict[str, tuple[type[Any], Callable[..., nnx.Module]]] = {"unet": (configs.UNet, UNet)}
"""name -> (its options, its module)."""


def create(name: str, *, rngs: nnx.Rngs, **options: Any) -> nnx.Module:
    """The named network with fresh float32 parameters; without options, exactly as its author built it.

    Raises:
        UserError: an unknown name or option (lists what exists), or options that do not fit together.
    """
    if name not in MODELS:
        raise UserError(f"the network must be one of {', '.join(MODELS)}; got {name!r}.")
    config = MODELS[name][0]
    known = [field.name for field in fields(config)]
    for option in options:
        if option not in known:
            raise UserError(f"{name} has no option {option!r}; it has {', '.join(known)}.")
    return build(config(**options), rngs=rngs)


def build(config: Any, *, rngs: nnx.Rngs) -> nnx.Module:
    """The network that a config of `model_configs` describes."""
    (module,) = (module for kind, module in MODELS.values() if kind is type(config))
    return module(config, rngs=rngs)


def num_params(model: nnx.Module) -> int:
    """How many trained numbers the network holds."""
    return sum(p.size for p in nnx.state(model, nnx.Param).flat_state().leaves)
