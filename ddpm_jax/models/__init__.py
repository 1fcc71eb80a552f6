"""Networks by name: `create("unet", rngs=nnx.Rngs(0), dim=64)`; every one is called as model(x_t, t, labels)."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ddpm_jax import model_configs as configs
from ddpm_jax.checks import whole
from ddpm_jax.compilation import once
from ddpm_jax.models.annotated_unet import AnnotatedUNet
from ddpm_jax.models.conv_net import ConvNet
from ddpm_jax.models.convnext_unet import ConvNeXtUNet
from ddpm_jax.models.double_conv_unet import DoubleConvUNet
from ddpm_jax.models.functional import Model, Variables, apply, fact, for_training, merge, parts, split
from ddpm_jax.models.mlp import MLP
from ddpm_jax.models.remat import rematerialised
from ddpm_jax.models.rms_unet import RMSUNet
from ddpm_jax.models.strided_unet import StridedUNet
from ddpm_jax.models.tiny_unet import TinyUNet
from ddpm_jax.models.unet import UNet

__all__ = [
    "MODELS",
    "Model",
    "UNet",
    "Variables",
    "abstract",
    "apply",
    "build",
    "configs",
    "create",
    "fact",
    "for_training",
    "merge",
    "num_params",
    "parts",
    "rematerialised",
    "split",
]

MODELS: dict[type, Callable[..., nnx.Module]] = {
    configs.AnnotatedUNet: AnnotatedUNet,
    configs.ConvNet: ConvNet,
    configs.ConvNeXtUNet: ConvNeXtUNet,
    configs.ConvNeXtUNet224: ConvNeXtUNet,
    configs.DoubleConvUNet: DoubleConvUNet,
    configs.MLP: MLP,
    configs.RMSUNet: RMSUNet,
    configs.StridedUNet: StridedUNet,
    configs.StridedUNetConditional: StridedUNet,
    configs.TinyUNet: TinyUNet,
    configs.UNet: UNet,
}
"""options -> the module that is built of them; the names are in `model_configs.NETWORKS`."""


def create(name: str, *, rngs: Any, **options: Any) -> nnx.Module:
    """The named network with fresh float32 parameters; without options, exactly as its author built it.

    rngs: flax's nnx.Rngs, a seed, or a key of jax.random.

    Raises:
        UserError: an unknown name or option (lists what exists), or options that do not fit together.
    """
    return build(configs.create(name, options), rngs=rngs)


def build(config: Any, *, rngs: Any) -> nnx.Module:
    """The network that a config of `model_configs` describes, its parameters drawn by one compiled program."""
    key = as_rngs(rngs).params()
    if isinstance(key, jax.core.Tracer):  # within somebody else's program: eval_shape's, for one
        return MODELS[type(config)](config, rngs=_counted(key))
    model = abstract(config)
    nnx.update(model, _draw()(key, config))
    return model


def as_rngs(found: Any) -> nnx.Rngs:
    """What parameters are drawn from: flax's streams, or those of a seed or a key."""
    if isinstance(found, nnx.Rngs):
        return found
    if isinstance(found, jax.Array) and jnp.issubdtype(found.dtype, jax.dtypes.prng_key):
        return nnx.Rngs(found)
    return nnx.Rngs(whole("rngs, where it is neither nnx.Rngs nor a key,", found))


def abstract(config: Any) -> nnx.Module:
    """The network that a config of `model_configs` describes, without numbers: jax.ShapeDtypeStruct in the place of each array."""
    return nnx.merge(*_structure(config))


@functools.cache  # to build a network layer by layer takes about half a second
def _structure(config: Any) -> tuple[nnx.GraphDef, nnx.State]:
    return nnx.split(nnx.eval_shape(lambda: MODELS[type(config)](config, rngs=_counted(jax.random.key(0)))))


@functools.cache
def _draw() -> Callable[[jax.Array, Any], nnx.State]:
    def draw(key: jax.Array, config: Any) -> nnx.State:
        return nnx.state(MODELS[type(config)](config, rngs=_counted(key)))

    return jax.jit(draw, static_argnums=1, compiler_options=once())


class _Stream(nnx.RngStream):
    """The same keys as flax's, counted in Python: where the count is traced, flax goes through the whole program at every draw."""

    drawn = 0

    def __call__(self) -> jax.Array:
        key = jax.random.fold_in(self.key[...], np.uint32(self.drawn))
        self.drawn += 1
        return key


def _counted(key: jax.Array) -> nnx.Rngs:
    rngs = nnx.Rngs(params=key)
    rngs.params = _Stream(key, tag="params")  # type: ignore[attr-defined]
    return rngs


def num_params(model: nnx.Module) -> int:
    """How many trained numbers the network holds."""
    return sum(p.size for p in nnx.state(model, nnx.Param).flat_state().leaves)
