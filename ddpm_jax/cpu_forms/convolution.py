"""Dense and transposed convolutions whose gradients are fast within `lax.scan` as well.

XLA's CPU compiler is slow at convolutions to few channels, kernels larger than the image, transposed convolutions and their
gradients, turning a kernel around that has more channels than the image has pixels, and every gradient of a convolution within
`lax.scan`, whose body keeps layouts that its fast convolution does not take. Here all of them are made of what it is fast at:
ordinary forward convolutions, matrix products and sums of shifted images.

Images are NHWC, kernels HWIO; a padding is ((top, bottom), (left, right)), in pixels.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
from jax import lax
from jaxtyping import Array, Float

from ddpm_jax.cpu_forms.products import Padding, Strides, patches, product, spread, summed_products
from ddpm_jax.cpu_forms.switch import in_use

_LAYOUT = ("NHWC", "HWIO", "NHWC")
_FEW = 4
"""Channels out up to which products for each pixel beat a convolution in every respect: three times at 3 of them."""
_NARROW = 20
"""Channels out up to which they are faster forward, where no gradient is asked for: 1.3 to 2 times."""


def convolution(
    x: Float[Array, "b h w c_in"], kernel: Float[Array, "kh kw c_in c_out"], strides: Strides, padding: Padding
) -> Float[Array, "b h_out w_out c_out"] | None:
    """Every output channel sees every input channel."""
    return (
        _dense(x, kernel, strides, padding)
        if in_use("few", "narrow", "small", "gradients", "deep", "strided")
        else None
    )


def transposed(
    x: Float[Array, "b h w c_in"], kernel: Float[Array, "kh kw c_out c_in"], strides: Strides, padding: Padding
) -> Float[Array, "b h_out w_out c_out"] | None:
    """The transpose of the dense convolution with this kernel; padding: of the image between whose pixels zeros stand."""
    return _transposed(x, kernel, strides, padding) if in_use("strided") and strides != (1, 1) else None


def _plain(x: Array, kernel: Array, strides: Strides, padding: Padding) -> Array:
    return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=_LAYOUT)


def _transpose(function: Callable[..., Array], x: Array, g: Array) -> Array:
    """The derivative of a linear function of x, applied backwards to g."""
    return jax.linear_transpose(function, x)(g)[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _dense(x: Array, kernel: Array, strides: Strides, padding: Padding) -> Array:
    if in_use("narrow") and strides == (1, 1) and _to_few(kernel, kernel.shape[3], _NARROW):
        return summed_products(x, kernel, padding)
    return _convolved(x, kernel, strides, padding)


def _dense_forward(x: Array, kernel: Array, strides: Strides, padding: Padding) -> tuple[Array, Any]:
    return _convolved(x, kernel, strides, padding), (x, kernel)


def _dense_backward(strides: Strides, padding: Padding, kept: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, kernel = kept
    return _image_gradient(x, g, kernel, strides, padding), _kernel_gradient(x, g, kernel, strides, padding)


_dense.defvjp(_dense_forward, _dense_backward)


def _convolved(x: Array, kernel: Array, strides: Strides, padding: Padding) -> Array:
    if in_use("few") and strides == (1, 1) and _to_few(kernel, kernel.shape[3], _FEW):
        return summed_products(x, kernel, padding)
    if in_use("small") and _small(
        x, kernel
    ):  # XLA's fast convolution does not take it; others read it for each example
        under = patches(x, kernel.shape, strides, padding)
        return product("bhwc,cn->bhwn", under, kernel.reshape(-1, kernel.shape[3])).astype(x.dtype)
    return _plain(x, kernel, strides, padding)


def _image_gradient(x: Array, g: Array, kernel: Array, strides: Strides, padding: Padding) -> Array:
    # so padded, the image comes back in its size, the pixels included that the last stride did not reach
    back = [
        (size - 1 - before, n - (m - 1) * stride - 1 + before)
        for size, (before, _), stride, n, m in zip(
            kernel.shape, padding, strides, x.shape[1:3], g.shape[1:3], strict=False
        )
    ]
    if strides != (1, 1):
        by_products = in_use("strided")
    else:
        by_products = (
            (in_use("few") and _to_few(kernel, kernel.shape[2], _FEW))
            or (in_use("deep") and _deep(g, kernel))
            or (in_use("small") and _small(g, kernel))
        )
    if by_products:
        return spread(g, kernel, strides, (back[0], back[1]))
    if in_use("gradients") and strides == (1, 1):
        flipped = lax.optimization_barrier(
            kernel[::-1, ::-1].swapaxes(2, 3)
        )  # else a loop's body convolves strided views
        return _plain(g, flipped, (1, 1), (back[0], back[1]))
    return _transpose(lambda x: _plain(x, kernel, strides, padding), x, g)


def _kernel_gradient(x: Array, g: Array, kernel: Array, strides: Strides, padding: Padding) -> Array:
    if in_use("few") and strides == (1, 1) and _to_few(kernel, kernel.shape[3], _FEW):
        rows, columns, c_in, c_out = kernel.shape
        (top, bottom), (left, right) = padding
        back = ((rows - 1 - top, rows - 1 - bottom), (columns - 1 - left, columns - 1 - right))
        gradient = product("bhwc,bhwn->cn", x, patches(g, kernel.shape, strides, back))
        return gradient.reshape(c_in, rows, columns, c_out)[:, ::-1, ::-1].transpose(1, 2, 0, 3).astype(kernel.dtype)
    if in_use("small") and _small(x, kernel):
        gradient = product("bhwc,bhwn->cn", patches(x, kernel.shape, strides, padding), g)
        return gradient.reshape(kernel.shape).astype(kernel.dtype)
    if in_use("gradients"):
        return _exchanged(x, g, kernel, strides, padding)
    return _transpose(lambda kernel: _plain(x, kernel, strides, padding), kernel, g)


def _exchanged(x: Array, g: Array, kernel: Array, strides: Strides, padding: Padding) -> Array:
    """x convolved with g, strides apart, channels and examples in each other's place: the gradient of the kernel."""
    sides = [
        (before, size + (m - 1) * stride - n - before)
        for size, (before, _), stride, n, m in zip(
            kernel.shape, padding, strides, x.shape[1:3], g.shape[1:3], strict=False
        )
    ]
    # the barriers make the compiler transpose for good, which its fast convolution needs
    x, g = lax.optimization_barrier((x.transpose(3, 1, 2, 0), g.transpose(1, 2, 0, 3)))
    gradient = lax.conv_general_dilated(x, g, (1, 1), sides, rhs_dilation=strides, dimension_numbers=_LAYOUT)
    return lax.optimization_barrier(gradient).transpose(1, 2, 0, 3)


def _to_few(kernel: Array, channels: int, most: int) -> bool:
    """Whether there are so few channels to come, and places in the kernel, that all products for a pixel are fewer than what a
    convolution would gather.
    """
    return channels <= most and kernel.shape[0] * kernel.shape[1] <= 9


def _small(image: Array, kernel: Array) -> bool:
    return image.shape[1] < kernel.shape[0] or image.shape[2] < kernel.shape[1]


def _deep(image: Array, kernel: Array) -> bool:
    """Whether the kernel has twice as many channels as the images have pixels: turning it around costs more than the products."""
    return 2 * math.prod(image.shape[:3]) <= kernel.shape[3]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _transposed(x: Array, kernel: Array, strides: Strides, padding: Padding) -> Array:
    return spread(x, kernel, strides, padding)


def _transposed_forward(x: Array, kernel: Array, strides: Strides, padding: Padding) -> tuple[Array, Any]:
    return spread(x, kernel, strides, padding), (x, kernel)


def _transposed_backward(
    strides: Strides, padding: Padding, kept: tuple[Array, Array], g: Array
) -> tuple[Array, Array]:
    x, kernel = kept
    (top, bottom), (left, right) = padding
    height, width = kernel.shape[0] - 1, kernel.shape[1] - 1
    # the padding of the convolution that this is the transpose of
    original = ((height - top, height - bottom), (width - left, width - right))
    return _dense(g, kernel, strides, original), _kernel_gradient(g, x, kernel, strides, original)


_transposed.defvjp(_transposed_forward, _transposed_backward)
