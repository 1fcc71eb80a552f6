"""The table of networks: create(name, **options)."""

import inspect
from typing import Any

from torch import nn

from ddpm_torch_ref.models.annotated_unet import AnnotatedUNet
from ddpm_torch_ref.models.conv_net import ConvNet
from ddpm_torch_ref.models.convnext_unet import ConvNeXtUNet, ConvNeXtUNet224
from ddpm_torch_ref.models.dit import DiT
from ddpm_torch_ref.models.double_conv_unet import DoubleConvUNet
from ddpm_torch_ref.models.edm_unet import EDMUNet
from ddpm_torch_ref.models.mlp import MLP
from ddpm_torch_ref.models.rms_unet import RMSUNet
from ddpm_torch_ref.models.strided_unet import StridedUNet, StridedUNetConditional
from ddpm_torch_ref.models.tiny_unet import TinyUNet
from ddpm_torch_ref.models.unet import ForeignUNet, UNet

MODELS: dict[str, type[nn.Module]] = {
    "unet": UNet,
    "foreign_unet": ForeignUNet,
    "edm_unet": EDMUNet,
    "convnext_unet": ConvNeXtUNet,
    "convnext_unet_224": ConvNeXtUNet224,
    "tiny_unet": TinyUNet,
    "double_conv_unet": DoubleConvUNet,
    "annotated_unet": AnnotatedUNet,
    "rms_unet": RMSUNet,
    "dit": DiT,
    "mlp": MLP,
    "conv_net": ConvNet,
    "strided_unet": StridedUNet,
    "strided_unet_conditional": StridedUNetConditional,
}
"""Every network by name."""

__all__ = ["MODELS", "create"]


def create(name: str, **options: Any) -> nn.Module:
    """Build a network by its registered name.

    Args:
        name: one of MODELS.
        **options: keyword arguments of the network; those left out keep its defaults.

    Returns:
        The network, called as (x_t, t, labels=None).

    Raises:
        ValueError: an unknown name or option, or a value that the network refuses.
    """
    if name not in MODELS:
        raise ValueError(f"name must be one of {', '.join(sorted(MODELS))}; got {name!r}.")
    known = [option for option in inspect.signature(MODELS[name].__init__).parameters if option != "self"]
    unknown = [option for option in options if option not in known]
    if unknown:
        raise ValueError(f"{name} has no option {', '.join(unknown)}; its options are {', '.join(known)}.")
    return MODELS[name](**options)
