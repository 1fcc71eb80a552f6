"""Convolutions with gradients that are fast on CPU as well.

XLA's CPU compiler is slow at six things: a depthwise convolution; one to few channels; a kernel larger than the image; a
transposed convolution and its gradients; turning a kernel around that has more channels than the image has pixels; and every
gradient of a convolution within `lax.scan`, whose body keeps layouts that its fast convolution does not take. Here all of them
are made of what it is fast at, ordinary forward convolutions, matrix products and sums of shifted images. The form is chosen
when a program is lowered; other platforms get lax's own convolution and its derivative.

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
"""Channels out up to which products for each pixel beat a convolution in every respect: three times at 3 of them."""
_NARROW = 20
"""Channels out up to which they are faster forward, where no gradient is asked for: 1.3 to 2 times."""


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
    if kernel.shape[:2] == step == (1, 1) and feature_group_count == 1 and sides == ((0, 0), (0, 0)):
        return jnp.einsum("bhwc,cn->bhwn", x, kernel[0, 0])
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
    return _dense(x, kernel, strides, padding, _NARROW)


def _dense(x: Array, kernel: Array, strides: Strides, padding: Padding, most: int) -> Array:
    form = _summed_products if strides == (1, 1) and _to_few(kernel, kernel.shape[3], most) else _convolved
    return lax.platform_dependent(
        x,
        kernel,
        cpu=lambda x, kernel: form(x, kernel, strides, padding),
        default=lambda x, kernel: _plain(x, kernel, strides, padding),
    )


def _dense_forward(x: Array, kernel: Array, strides: Strides, padding: Padding) -> tuple[Array, Any]:
    return _dense(x, kernel, strides, padding, _FEW), (x, kernel)


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


def _convolved(x: Array, kernel: Array, strides: Strides, padding: Padding) -> Array:
    """By lax, but for an image smaller than the kernel: XLA's fast convolution does not take it, and others read the kernel for
    each example.
    """
    if _small(x, kernel):
        patches = _patches(x, kernel.shape, strides, padding)
        return _product("bhwc,cn->bhwn", patches, kernel.reshape(-1, kernel.shape[3])).astype(x.dtype)
    return _plain(x, kernel, strides, padding)


def _summed_products(x: Array, kernel: Array, strides: Strides, padding: Padding) -> Array:
    products, offsets, sizes = _products(x, kernel, strides, padding)
    # a loop of one turn that the compiler cannot see through, else the sum is computed again for whatever it is used in
    once = lax.optimization_barrier(jnp.int32(1))
    zeros = jnp.zeros((len(x), *sizes, kernel.shape[3]), products.dtype)
    return lax.fori_loop(0, once, lambda *_: _summed(products, strides, offsets, sizes), zeros).astype(x.dtype)


def _spread(g: Array, kernel: Array, strides: Strides, padding: Padding) -> Array:
    """The transpose of a dense convolution: g with strides - 1 zeros between its pixels, convolved with the flipped kernel."""
    if strides != (1, 1) or _to_few(kernel, kernel.shape[2], _FEW) or _deep(g, kernel) or _small(g, kernel):
        products, offsets, sizes = _products(g, kernel, strides, padding, turned=True)
        return _summed(products, strides, offsets, sizes).astype(g.dtype)
    flipped = lax.optimization_barrier(kernel[::-1, ::-1].swapaxes(2, 3))  # else a loop's body convolves strided views
    return _plain(g, flipped, (1, 1), padding)


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


def _patches(x: Array, kernel: Sequence[int], strides: Strides, padding: Padding) -> Array:
    """(b, h_out, w_out, i j c): what lies under a kernel of this shape at each of its places."""
    around = _with_sides(x, padding)
    high, wide = ((n - size) // stride + 1 for n, size, stride in zip(around.shape[1:3], kernel, strides, strict=False))
    under = [
        around[:, i : i + (high - 1) * strides[0] + 1 : strides[0], j : j + (wide - 1) * strides[1] + 1 : strides[1]]
        for i in range(kernel[0])
        for j in range(kernel[1])
    ]
    return lax.optimization_barrier(jnp.concatenate(under, axis=-1))


def _products(
    x: Array, kernel: Array, strides: Strides, padding: Padding, *, turned: bool = False
) -> tuple[Array, list[list[int]], list[int]]:
    """Each pixel times the whole kernel, (b, h, w, i, j, n), and the offsets and sizes with which `_summed` makes of them the
    convolution of x, strides - 1 zeros between its pixels, with the kernel or, turned, with the flipped one, ends exchanged.
    """
    products = _product("bhwc,ijnc->bhwijn" if turned else "bhwc,ijcn->bhwijn", x, kernel)
    offsets, sizes = [], []
    for n, stride, (before, after), size in zip(x.shape[1:], strides, padding, kernel.shape, strict=False):
        places = range(before - size + 1, before + 1)
        offsets.append(list(places if turned else reversed(places)))
        sizes.append((n - 1) * stride + 1 + before + after - size + 1)
    return products, offsets, sizes


def _summed(products: Array, strides: Strides, offsets: Sequence[Sequence[int]], sizes: Sequence[int]) -> Array:
    """The sum of products (b, h, w, i, j, n), each at the pixel (strides[0] h + offsets[0][i], strides[1] w + offsets[1][j]) of an
    image (b, *sizes, n). A convolution would gather the pixels around each instead, with all their channels.

    Pixels with the same remainders by the strides get the same (i, j), and are summed together.
    """
    b, h, w, _, _, n = products.shape
    products = lax.optimization_barrier(products)  # else they are computed again for each place
    high, wide = (-(-size // stride) for size, stride in zip(sizes, strides, strict=True))

    def shifts(axis: int, remainder: int) -> list[tuple[int, int]]:
        apart = ((k, divmod(offset - remainder, strides[axis])) for k, offset in enumerate(offsets[axis]))
        return [(k, shift) for k, (shift, rest) in apart if rest == 0]

    def sum_of(row: int, column: int) -> Array:
        total = jnp.zeros((b, high, wide, n), products.dtype)
        for i, down in shifts(0, row):
            for j, right in shifts(1, column):
                sides = ((0, 0, 0), (down, high - h - down, 0), (right, wide - w - right, 0), (0, 0, 0))
                total = total + lax.pad(products[:, :, :, i, j], jnp.zeros((), products.dtype), sides)
        return total

    if strides == (1, 1):
        return sum_of(0, 0)
    rows = [jnp.stack([sum_of(i, j) for j in range(strides[1])], axis=3) for i in range(strides[0])]
    whole = jnp.stack(rows, axis=2).reshape(b, high * strides[0], wide * strides[1], n)
    return whole[:, : sizes[0], : sizes[1]]


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
        (top, bottom), (left, right) = padding
        back = ((rows - 1 - top, rows - 1 - bottom), (columns - 1 - left, columns - 1 - right))
        gradient = _product("bhwc,bhwn->cn", x, _patches(g, kernel.shape, strides, back))
        return gradient.reshape(c_in, rows, columns, c_out)[:, ::-1, ::-1].transpose(1, 2, 0, 3).astype(kernel.dtype)

    def of_patches(x: Array, g: Array) -> Array:
        gradient = _product("bhwc,bhwn->cn", _patches(x, kernel.shape, strides, padding), g)
        return gradient.reshape(kernel.shape).astype(kernel.dtype)

    few = strides == (1, 1) and _to_few(kernel, kernel.shape[3], _FEW)
    return lax.platform_dependent(
        x,
        g,
        cpu=of_few if few else of_patches if _small(x, kernel) else convolved,
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
