"""Convolutions with gradients that are fast on CPU as well.

XLA's CPU compiler is slow at five things: a depthwise convolution; one to very few channels; a kernel larger than the image; the
gradients of a transposed convolution; and every gradient of a convolution within `lax.scan`, whose body keeps layouts that its
fast convolution does not take. Here all of them are made of what it is fast at, ordinary forward convolutions, matrix products
and sums of shifted images. The form is chosen when a program is lowered; other platforms get lax's own convolution and its
derivative.

Images are NHWC, kernels HWIO; a padding is ((top, bottom), (left, right)), in pixels.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

Image = Float[Array, "b h w c"]
Resized = Float[Array, "b h_out w_out c_out"]
"""An image of another size or width than the one that came in."""
Strides = tuple[int, int]
Padding = tuple[tuple[int, int], tuple[int, int]]

_LAYOUT = ("NHWC", "HWIO", "NHWC")
_FEW = 4
"""Channels out up to which a product for each pixel, and shifted sums, beat a convolution: three times at 3 of them."""


def convolve(
    x: Image,
    kernel: Array,
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    *,
    feature_group_count: int = 1,
    **_: Any,
) -> Resized:
    """What `nnx.Conv` takes as `conv_general_dilated`, without dilation: dense, depthwise at stride 1, or else lax's own."""
    (top, bottom), (left, right) = padding
    step, sides = (strides[0], strides[1]), ((top, bottom), (left, right))
    if feature_group_count == 1:
        return dense(x, kernel, step, sides)
    if kernel.shape[2:] == (1, x.shape[-1]) and step == (1, 1):
        return depthwise(x, kernel, sides)
    return _plain(x, kernel, step, sides)


def _plain(x: Array, kernel: Array, strides: Strides, padding: Padding) -> Array:
    groups = x.shape[-1] // kernel.shape[2]
    return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=_LAYOUT, feature_group_count=groups)


def _transpose(function: Callable[..., Array], x: Array, g: Array) -> Array:
    """The derivative of a linear function of x, applied backwards to g."""
    return jax.linear_transpose(function, x)(g)[0]


# --- dense


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def dense(
    x: Float[Array, "b h w c_in"], kernel: Float[Array, "kh kw c_in c_out"], strides: Strides, padding: Padding
) -> Float[Array, "b h_out w_out c_out"]:
    """Every output channel sees every input channel."""
    return lax.platform_dependent(
        x,
        kernel,
        cpu=lambda x, kernel: _roomy(x, kernel, padding, strides=strides),
        default=lambda x, kernel: _plain(x, kernel, strides, padding),
    )


def _dense_forward(x: Array, kernel: Array, strides: Strides, padding: Padding) -> tuple[Array, Any]:
    return dense(x, kernel, strides, padding), (x, kernel)


def _dense_backward(strides: Strides, padding: Padding, kept: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, kernel = kept
    # so padded, the image comes back in its size, the pixels included that the last stride did not reach
    back = [
        (size - 1 - before, n - (m - 1) * stride - 1 + before)
        for size, (before, _), stride, n, m in zip(
            kernel.shape, padding, strides, x.shape[1:3], g.shape[1:3], strict=False
        )
    ]
    x_gradient = lax.platform_dependent(
        g,
        kernel,
        cpu=lambda g, kernel: _spread(g, kernel, strides, (back[0], back[1])),
        default=lambda g, kernel: _transpose(lambda x: _plain(x, kernel, strides, padding), x, g),
    )
    return x_gradient, _kernel_gradient(x, g, kernel, strides, padding)


dense.defvjp(_dense_forward, _dense_backward)


def _roomy(x: Array, kernel: Array, padding: Padding, *, strides: Strides = (1, 1), spread: Strides = (1, 1)) -> Array:
    """A dense convolution of x, with spread - 1 zeros between its pixels.

    An image smaller than the kernel is padded beforehand, since XLA's fast convolution does not take it: a hundred times slower.
    """
    if strides == spread == (1, 1) and _to_few(kernel):
        return _summed_products(x, kernel, padding)
    if x.shape[1] < kernel.shape[0] or x.shape[2] < kernel.shape[1]:
        sides = [(before, after, zeros - 1) for (before, after), zeros in zip(padding, spread, strict=True)]
        x = lax.optimization_barrier(lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *sides, (0, 0, 0))))
        padding, spread = ((0, 0), (0, 0)), (1, 1)
    return lax.conv_general_dilated(x, kernel, strides, padding, lhs_dilation=spread, dimension_numbers=_LAYOUT)


def _spread(g: Array, kernel: Array, strides: Strides, padding: Padding) -> Array:
    """The transpose of a dense convolution: g with strides - 1 zeros between its pixels, convolved with the flipped kernel."""
    flipped = lax.optimization_barrier(kernel[::-1, ::-1].swapaxes(2, 3))  # else a loop's body convolves strided views
    return _roomy(g, flipped, padding, spread=strides)


def _to_few(kernel: Array) -> bool:
    return kernel.shape[3] <= _FEW and 1 < kernel.shape[0] * kernel.shape[1] <= 9


def _summed_products(x: Array, kernel: Array, padding: Padding) -> Array:
    """A dense convolution to few channels: each pixel times the whole kernel, a row of few numbers for each of its places, which
    are summed where they belong. A convolution would gather as many times x's channels first.
    """
    rows, columns, c_in, c_out = kernel.shape
    products = _product("bhwc,cn->bhwn", x, kernel.transpose(2, 0, 1, 3).reshape(c_in, -1))
    around = lax.optimization_barrier(_with_sides(products, padding))
    height, width = around.shape[1] - rows + 1, around.shape[2] - columns + 1
    places = [(i, j) for i in range(rows) for j in range(columns)]
    shifted = (around[:, i : i + height, j : j + width, n * c_out : (n + 1) * c_out] for n, (i, j) in enumerate(places))
    return sum(shifted, jnp.zeros((), around.dtype)).astype(x.dtype)


def _product(form: str, a: Array, b: Array) -> Array:
    """In float32 at least, for what is summed up."""
    return jnp.einsum(form, a, b, preferred_element_type=jnp.promote_types(a.dtype, jnp.float32))


def _with_sides(x: Array, padding: Padding) -> Array:
    sides = [(before, after, 0) for before, after in padding]
    return lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *sides, (0, 0, 0)))


def _kernel_gradient(x: Array, g: Array, kernel: Array, strides: Strides, padding: Padding) -> Array:
    """Of a dense convolution: x convolved with g, strides apart, channels and examples in each other's place."""

    def convolved(x: Array, g: Array) -> Array:
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

    def of_few(x: Array, g: Array) -> Array:
        rows, columns, c_in, c_out = kernel.shape
        height, width = x.shape[1:3]
        (top, bottom), (left, right) = padding
        around = _with_sides(g, ((rows - 1 - top, rows - 1 - bottom), (columns - 1 - left, columns - 1 - right)))
        places = [(i, j) for i in reversed(range(rows)) for j in reversed(range(columns))]
        shifted = jnp.concatenate([around[:, i : i + height, j : j + width] for i, j in places], axis=-1)
        gradient = _product("bhwc,bhwn->cn", x, lax.optimization_barrier(shifted))
        return gradient.reshape(c_in, rows, columns, c_out).transpose(1, 2, 0, 3).astype(kernel.dtype)

    return lax.platform_dependent(
        x,
        g,
        cpu=of_few if strides == (1, 1) and _to_few(kernel) else convolved,
        default=lambda x, g: _transpose(lambda kernel: _plain(x, kernel, strides, padding), kernel, g),
    )


# --- transposed


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def transposed(
    x: Float[Array, "b h w c_in"], kernel: Float[Array, "kh kw c_out c_in"], strides: Strides, padding: Padding
) -> Float[Array, "b h_out w_out c_out"]:
    """The transpose of the dense convolution with this kernel; padding: of the image between whose pixels zeros stand."""
    return lax.platform_dependent(
        x,
        kernel,
        cpu=lambda x, kernel: _spread(x, kernel, strides, padding),
        default=lambda x, kernel: lax.conv_transpose(
            x, kernel, strides, padding, dimension_numbers=_LAYOUT, transpose_kernel=True
        ),
    )


def _transposed_forward(x: Array, kernel: Array, strides: Strides, padding: Padding) -> tuple[Array, Any]:
    return transposed(x, kernel, strides, padding), (x, kernel)


def _transposed_backward(
    strides: Strides, padding: Padding, kept: tuple[Array, Array], g: Array
) -> tuple[Array, Array]:
    x, kernel = kept
    (top, bottom), (left, right) = padding
    height, width = kernel.shape[0] - 1, kernel.shape[1] - 1
    # the padding of the convolution that this is the transpose of
    original = ((height - top, height - bottom), (width - left, width - right))
    return dense(g, kernel, strides, original), _kernel_gradient(g, x, kernel, strides, original)


transposed.defvjp(_transposed_forward, _transposed_backward)


# --- depthwise


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def depthwise(
    x: Float[Array, "b h w c"], kernel: Float[Array, "kh kw 1 c"], padding: Padding
) -> Float[Array, "b h_out w_out c"]:
    """Every channel alone, with a kernel of its own, at stride 1."""
    return lax.platform_dependent(
        x,
        kernel,
        cpu=functools.partial(_shifted, padding=padding),
        default=lambda x, kernel: _plain(x, kernel, (1, 1), padding),
    )


def _depthwise_forward(x: Array, kernel: Array, padding: Padding) -> tuple[Array, Any]:
    return depthwise(x, kernel, padding), (x, kernel)


def _depthwise_backward(padding: Padding, kept: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, kernel = kept
    (top, bottom), (left, right) = padding
    height, width = kernel.shape[0] - 1, kernel.shape[1] - 1
    back = ((height - top, height - bottom), (width - left, width - right))
    x_gradient = lax.platform_dependent(
        g,
        kernel,
        cpu=lambda g, kernel: _shifted(g, kernel[::-1, ::-1], back),
        default=lambda g, kernel: _transpose(lambda x: _plain(x, kernel, (1, 1), padding), x, g),
    )
    kernel_gradient = lax.platform_dependent(
        x,
        g,
        cpu=lambda x, g: _shifted_kernel_gradient(x, g, padding).astype(kernel.dtype),
        default=lambda x, g: _transpose(lambda kernel: _plain(x, kernel, (1, 1), padding), kernel, g),
    )
    return x_gradient, kernel_gradient


depthwise.defvjp(_depthwise_forward, _depthwise_backward)


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
