"""The table of networks: create(name, **options)."""

import inspect
from typing import Any

from torch import nn

from ddpm_torch_ref.models.unet import UNet

MODELS: dict[str, type[nn.Module]] = {"unet": UNet}

__all__ = ["MODELS", "UNet", "create"]


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
