"""Layers in the forms that XLA's CPU compiler is fast at, behind one hook; `with cpu_forms.off():` for none of them."""

import functools
from collections.abc import Callable
from typing import Any

from ddpm_jax.cpu_forms.attention import attention
from ddpm_jax.cpu_forms.convolution import convolution, transposed
from ddpm_jax.cpu_forms.depthwise import depthwise
from ddpm_jax.cpu_forms.normalization import normalize, normalize_vectors, statistics
from ddpm_jax.cpu_forms.switch import FORMS, forwards, fused, off
from ddpm_jax.cpu_forms.vectors import vectors

__all__ = [
    "FORMS",
    "attention",
    "convolution",
    "depthwise",
    "forwards",
    "fused",
    "normalize",
    "normalize_vectors",
    "off",
    "on_cpu",
    "statistics",
    "transposed",
    "vectors",
]


def on_cpu(form: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator for a layer's mathematics: on CPU the layer is `form`, where that fits and is not switched off.

    form: takes the layer's arguments by position; None: the layer's own mathematics is as good.
    """

    def decorate(layer: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(layer)
        def call(*args: Any) -> Any:
            found = form(*args)
            return layer(*args) if found is None else found

        return call

    return decorate
