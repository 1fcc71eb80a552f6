"""The options of every network: one frozen dataclass each, free of jax so that the command line can list them quickly."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from ddpm_jax.errors import UserError, meant
from ddpm_jax.model_configs.rms_unet import RMSUNet
from ddpm_jax.model_configs.systems import (
    MLP,
    AnnotatedUNet,
    ConvNet,
    ConvNeXtUNet,
    ConvNeXtUNet224,
    DoubleConvUNet,
    StridedUNet,
    StridedUNetConditional,
    TinyUNet,
)
from ddpm_jax.model_configs.unet import UNet
from ddpm_jax.typed import build

__all__ = [
    "MLP",
    "NETWORKS",
    "AnnotatedUNet",
    "ConvNeXtUNet",
    "ConvNeXtUNet224",
    "ConvNet",
    "DoubleConvUNet",
    "ModelConfig",
    "RMSUNet",
    "StridedUNet",
    "StridedUNetConditional",
    "TinyUNet",
    "UNet",
    "create",
    "kind_of",
    "name_of",
    "shape",
]

NETWORKS: dict[str, type] = {
    "annotated_unet": AnnotatedUNet,
    "conv_net": ConvNet,
    "convnext_unet": ConvNeXtUNet,
    "convnext_unet_224": ConvNeXtUNet224,
    "double_conv_unet": DoubleConvUNet,
    "mlp": MLP,
    "rms_unet": RMSUNet,
    "strided_unet": StridedUNet,
    "strided_unet_conditional": StridedUNetConditional,
    "tiny_unet": TinyUNet,
    "unet": UNet,
}
"""name -> the options of that network; without any, exactly what its author built."""

ModelConfig = (
    UNet
    | AnnotatedUNet
    | ConvNet
    | ConvNeXtUNet
    | ConvNeXtUNet224
    | DoubleConvUNet
    | MLP
    | RMSUNet
    | StridedUNet
    | StridedUNetConditional
    | TinyUNet
)
"""The options of any network."""


def create(name: str, options: Mapping[str, Any]) -> Any:
    """The config of a network by name.

    Raises:
        UserError: an unknown name or option (lists what exists), or options that do not fit together.
    """
    kind = kind_of(name)
    known = [option.name for option in fields(kind)]
    for option in options:
        if option not in known:
            raise UserError(f"{name} has no option {option!r}; it has {', '.join(known)}.{meant(option, known)}")
    return build(kind, {key: _plain(value) for key, value in options.items()}, name)


def _plain(value: Any) -> Any:
    """A value as JSON has it: lists for tuples, Python's numbers for NumPy's."""
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value.item() if hasattr(value, "item") and getattr(value, "shape", None) == () else value


def kind_of(name: str) -> type:
    """The class of the options of a network.

    Raises:
        UserError: an unknown name (lists what exists).
    """
    if not isinstance(name, str) or name not in NETWORKS:
        raise UserError(f"the network must be one of {', '.join(NETWORKS)}; got {name!r}.{meant(name, NETWORKS)}")
    return NETWORKS[name]


def name_of(config: Any) -> str:
    """The name of the network that a config describes."""
    return next(name for name, kind in NETWORKS.items() if kind is type(config))


def shape(config: Any) -> tuple[int, ...]:
    """The shape of one example that the network takes: (H, W, C) of an image, (data_dim,) of a point."""
    if isinstance(config, MLP):
        return (config.data_dim,)
    return (config.image_size, config.image_size, config.channels)
