"""Depthwise convolutions as sums of shifted images, gradients included."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from ddpm_jax.cpu_forms.switch import in_use

Padding = tuple[tuple[int, int], tuple[int, int]]


def depthwise(
    x: Float[Array, "b h w c"], kernel: Float[Array, "kh kw 1 c"], strides: tuple[int, int], padding: Padding
) -> Float[Array, "b h_out w_out c"] | None:
    """Every channel alone, with a kernel of its own; None at another stride than 1."""
    return _depthwise(x, kernel, padding) if in_use("depthwise") and strides == (1, 1) else None


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _depthwise(x: Array, kernel: Array, padding: Padding) -> Array:
    return _shifted(x, kernel, padding)


def _forward(x: Array, kernel: Array, padding: Padding) -> tuple[Array, Any]:
    return _shifted(x, kernel, padding), (x, kernel)


def _backward(padding: Padding, kept: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, kernel = kept
    (top, bottom), (left, right) = padding
    height, width = kernel.shape[0] - 1, kernel.shape[1] - 1
    back = ((height - top, height - bottom), (width - left, width - right))
    kernel_gradient = _shifted_kernel_gradient(x, g, padding).astype(kernel.dtype)
    return _shifted(g, kernel[::-1, ::-1], back), kernel_gradient


_depthwise.defvjp(_forward, _backward)


def _padded(x: Array, padding: Padding) -> Array:
    """x between zeros, in float32 at least, for what is summed below; a real array, so that no sum pads it again."""
    exact = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return lax.optimization_barrier(jnp.pad(exact, ((0, 0), *padding, (0, 0))))


def _shifted(x: Array, kernel: Array, padding: Padding) -> Array:
    """A depthwise convolution as a sum of shifted images, each times a row of channels.

    A row of the kernel is written out and the rows are a loop: written out as well, they take much longer to compile.
    """
    rows, columns, _, channels = kernel.shape
    image = _padded(x, padding)
    shape = (x.shape[0], image.shape[1] - rows + 1, image.shape[2] - columns + 1, channels)

    def add(i: Array, total: Array) -> Array:
        # each slice is taken for one use alone, else it is copied before it is used
        def product(j: int) -> Array:
            return lax.dynamic_slice(image, (0, i, j, 0), shape) * lax.dynamic_slice(
                kernel, (i, j, 0, 0), (1, 1, 1, channels)
            )

        return total + sum(product(j) for j in range(columns))

    return lax.fori_loop(0, rows, add, jnp.zeros(shape, image.dtype)).astype(x.dtype)


def _shifted_kernel_gradient(x: Array, g: Array, padding: Padding) -> Array:
    """The kernel's gradient, one column of it after the other, in sums that run along rows of whole pixels.

    The sum over a group of examples is written out, and the groups and image rows are gone through in a loop: the compiler is
    slow at a reduction over leading axes.
    """
    batch, height, width, channels = g.shape
    image = _padded(x, padding)
    rows, columns = image.shape[1] - height + 1, image.shape[2] - width + 1
    group = math.gcd(batch, 4)

    def column(j: Array) -> Array:
        def add(step: Array, total: Array) -> Array:
            first, h = step // height * group, step % height

            def product(n: int) -> Array:
                pixels = lax.dynamic_slice(image, (first + n, h, j, 0), (1, rows, width, channels))
                return pixels[0] * lax.dynamic_slice(g, (first + n, h, 0, 0), (1, 1, width, channels))[0]

            return total + sum(product(n) for n in range(group))

        zeros = jnp.zeros((rows, width, channels), image.dtype)
        return lax.fori_loop(0, batch // group * height, add, zeros).sum(1)

    return lax.map(column, jnp.arange(columns)).swapaxes(0, 1)[:, :, None]
