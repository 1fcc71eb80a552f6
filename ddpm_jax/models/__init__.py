"""Networks by name: `create("unet", rngs=nnx.Rngs(0), dim=64)`; every one is called as model(x_t, t, labels)."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ddpm_jax.checks import whole
from ddpm_jax.compilation import once
from ddpm_jax.models.annotated_unet import AnnotatedUNetConfig
from ddpm_jax.models.config import NETWORKS, ModelConfig, configure, kind_of
from ddpm_jax.models.conv_net import ConvNetConfig
from ddpm_jax.models.convnext_unet import ConvNeXtUNet224Config, ConvNeXtUNetConfig
from ddpm_jax.models.dit import DiTConfig
from ddpm_jax.models.double_conv_unet import DoubleConvUNetConfig
from ddpm_jax.models.edm_unet import EDMUNetConfig
from ddpm_jax.models.foreign_unet import ForeignUNetConfig, simplest, unet_of
from ddpm_jax.models.functional import Model, Variables, apply, fact, for_training, merge, parts, split
from ddpm_jax.models.mlp import MLPConfig
from ddpm_jax.models.remat import rematerialised
from ddpm_jax.models.rms_unet import RMSUNetConfig
from ddpm_jax.models.strided_unet import StridedUNetConditionalConfig, StridedUNetConfig
from ddpm_jax.models.tiny_unet import TinyUNetConfig
from ddpm_jax.models.unet import UNet, UNetConfig

__all__ = [
    "NETWORKS",
    "AnnotatedUNetConfig",
    "ConvNeXtUNet224Config",
    "ConvNeXtUNetConfig",
    "ConvNetConfig",
    "DiTConfig",
    "DoubleConvUNetConfig",
    "EDMUNetConfig",
    "ForeignUNetConfig",
    "MLPConfig",
    "Model",
    "ModelConfig",
    "RMSUNetConfig",
    "StridedUNetConditionalConfig",
    "StridedUNetConfig",
    "TinyUNetConfig",
    "UNet",
    "UNetConfig",
    "Variables",
    "abstract",
    "apply",
    "build",
    "configure",
    "create",
    "fact",
    "for_training",
    "kind_of",
    "merge",
    "num_params",
    "parts",
    "rematerialised",
    "simplest",
    "split",
    "unet_of",
]


def create(name: str, *, rngs: Any, **options: Any) -> nnx.Module:
    """The named network with fresh float32 parameters; without options, exactly as its author built it.

    rngs: flax's nnx.Rngs, a seed, or a key of jax.random.

    Raises:
        UserError: an unknown name or option (lists what exists), or options that do not fit together.
    """
    return build(configure(name, options), rngs=rngs)


def build(config: ModelConfig, *, rngs: Any) -> nnx.Module:
    """The network that a config describes, its parameters drawn by one compiled program."""
    key = as_rngs(rngs).params()
    if isinstance(key, jax.core.Tracer):  # within somebody else's program: eval_shape's, for one
        return config.module(_counted(key))
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


def abstract(config: ModelConfig) -> nnx.Module:
    """The network that a config describes, without numbers: jax.ShapeDtypeStruct in the place of each array."""
    return nnx.merge(*_structure(config))


@functools.cache  # to build a network layer by layer takes about half a second
def _structure(config: ModelConfig) -> tuple[nnx.GraphDef[Any], nnx.State[Any, Any]]:
    return nnx.split(nnx.eval_shape(lambda: config.module(_counted(jax.random.key(0)))))


@functools.cache
def _draw() -> Callable[[jax.Array, ModelConfig], nnx.State[Any, Any]]:
    def draw(key: jax.Array, config: ModelConfig) -> nnx.State[Any, Any]:
        return nnx.state(config.module(_counted(key)))

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
