"""Networks by name: `create("unet", rngs=nnx.Rngs(0), dim=64)`; every one is called as model(x_t, t, labels)."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from ddpm_jax import model_configs as configs
from ddpm_jax.compilation import once
from ddpm_jax.models.annotated_unet import AnnotatedUNet
from ddpm_jax.models.convnext_unet import ConvNeXtUNet
from ddpm_jax.models.double_conv_unet import DoubleConvUNet
from ddpm_jax.models.functional import Variables, apply, split
from ddpm_jax.models.mlp import MLP
from ddpm_jax.models.strided_unet import ConvNet, StridedUNet
from ddpm_jax.models.tiny_unet import TinyUNet
from ddpm_jax.models.unet import UNet

__all__ = ["MODELS", "UNet", "Variables", "apply", "build", "configs", "create", "num_params", "split"]

MODELS: dict[type, Callable[..., nnx.Module]] = {
    configs.AnnotatedUNet: AnnotatedUNet,
    configs.ConvNet: ConvNet,
    configs.ConvNeXtUNet: ConvNeXtUNet,
    configs.ConvNeXtUNet224: ConvNeXtUNet,
    configs.DoubleConvUNet: DoubleConvUNet,
    configs.MLP: MLP,
    configs.StridedUNet: StridedUNet,
    configs.StridedUNetConditional: StridedUNet,
    configs.TinyUNet: TinyUNet,
    configs.UNet: UNet,
}
"""options -> the module that is built of them; the names are in `model_configs.NETWORKS`."""


def create(name: str, *, rngs: nnx.Rngs, **options: Any) -> nnx.Module:
    """The named network with fresh float32 parameters; without options, exactly as its author built it.

    Raises:
        UserError: an unknown name or option (lists what exists), or options that do not fit together.
    """
    return build(configs.create(name, options), rngs=rngs)


def build(config: Any, *, rngs: nnx.Rngs) -> nnx.Module:
    """The network that a config of `model_configs` describes, its parameters drawn by one compiled program."""
    module, key = MODELS[type(config)], rngs.params()

    def draw(key: jax.Array) -> nnx.State:
        return nnx.state(module(config, rngs=nnx.Rngs(params=key)))

    if isinstance(key, jax.core.Tracer):  # within somebody else's program: eval_shape's, for one
        return module(config, rngs=nnx.Rngs(params=key))
    model = nnx.eval_shape(lambda: module(config, rngs=nnx.Rngs(0)))
    nnx.update(model, jax.jit(draw, compiler_options=once())(key))
    return model


def num_params(model: nnx.Module) -> int:
    """How many trained numbers the network holds."""
    return sum(p.size for p in nnx.state(model, nnx.Param).flat_state().leaves)
