"""Denoising diffusion in JAX and Flax NNX; submodules load on first use, so that importing this is cheap."""

import importlib
from typing import Any

__version__ = "0.1.0"

_SUBMODULES = (
    "condition",
    "data",
    "denoisers",
    "editing",
    "errors",
    "evaluation",
    "export",
    "figures",
    "models",
    "operators",
    "posterior",
    "presets",
    "processes",
    "samplers",
    "schedules",
    "training",
    "verify",
    "weights",
)
__all__ = [*_SUBMODULES, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
