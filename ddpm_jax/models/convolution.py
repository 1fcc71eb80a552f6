"""Convolutions of images NHWC with kernels HWIO; a padding is ((top, bottom), (left, right)), in pixels."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from ddpm_jax import cpu_forms

Image = Float[Array, "b h w c"]
Resized = Float[Array, "b h_out w_out c_out"]
"""An image of another size or width than the one that came in."""
Strides = tuple[int, int]
Padding = tuple[tuple[int, int], tuple[int, int]]

_LAYOUT = ("NHWC", "HWIO", "NHWC")


def convolve(
    x: Image,
    kernel: Array,
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    *,
    feature_group_count: int = 1,
    **_: Any,
) -> Resized:
    """What `nnx.Conv` takes as `conv_general_dilated`, without dilation."""
    (top, bottom), (left, right) = padding
    step, sides = (strides[0], strides[1]), ((top, bottom), (left, right))
    if feature_group_count == 1:
        if kernel.shape[:2] == step == (1, 1) and sides == ((0, 0), (0, 0)):
            return jnp.einsum(
                "bhwc,cn->bhwn", x, kernel[0, 0]
            )  # its kernel's gradient needs no transposes of the image
        return dense(x, kernel, step, sides)
    if kernel.shape[2:] == (1, x.shape[-1]):
        return depthwise(x, kernel, step, sides)
    return _grouped(x, kernel, step, sides)


@cpu_forms.on_cpu(cpu_forms.convolution)
def dense(x: Image, kernel: Float[Array, "kh kw c n"], strides: Strides, padding: Padding) -> Resized:
    """Every output channel sees every input channel."""
    return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=_LAYOUT)


@cpu_forms.on_cpu(cpu_forms.depthwise)
def depthwise(x: Image, kernel: Float[Array, "kh kw 1 c"], strides: Strides, padding: Padding) -> Resized:
    """Every channel alone, with a kernel of its own."""
    return _grouped(x, kernel, strides, padding)


@cpu_forms.on_cpu(cpu_forms.transposed)
def transposed(x: Image, kernel: Float[Array, "kh kw n c"], strides: Strides, padding: Padding) -> Resized:
    """The transpose of the dense convolution with this kernel; padding: of the image between whose pixels zeros stand."""
    return lax.conv_transpose(x, kernel, strides, padding, dimension_numbers=_LAYOUT, transpose_kernel=True)


def _grouped(x: Array, kernel: Array, strides: Strides, padding: Padding) -> Array:
    groups = x.shape[-1] // kernel.shape[2]
    return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=_LAYOUT, feature_group_count=groups)
