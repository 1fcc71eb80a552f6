"""Convolutions as matrix products: each pixel times the whole kernel, then shifted and summed; or one product with patches.

Images are NHWC, kernels HWIO; a padding is ((top, bottom), (left, right)), in pixels.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

Strides = tuple[int, int]
Padding = tuple[tuple[int, int], tuple[int, int]]


def summed_products(x: Array, kernel: Array, padding: Padding) -> Array:
    """A dense convolution at stride 1."""
    products, offsets, sizes = _products(x, kernel, (1, 1), padding)
    # a loop of one turn that the compiler cannot see through, else the sum is computed again for whatever it is used in
    once = lax.optimization_barrier(jnp.int32(1))
    zeros = jnp.zeros((len(x), *sizes, kernel.shape[3]), products.dtype)
    return lax.fori_loop(0, once, lambda *_: _summed(products, (1, 1), offsets, sizes), zeros).astype(x.dtype)


def spread(g: Array, kernel: Array, strides: Strides, padding: Padding) -> Array:
    """The transpose of a dense convolution: g with strides - 1 zeros between its pixels, convolved with the flipped kernel."""
    products, offsets, sizes = _products(g, kernel, strides, padding, turned=True)
    return _summed(products, strides, offsets, sizes).astype(g.dtype)


def patches(x: Array, kernel: Sequence[int], strides: Strides, padding: Padding) -> Array:
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
    products = product("bhwc,ijnc->bhwijn" if turned else "bhwc,ijcn->bhwijn", x, kernel)
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


def product(form: str, a: Array, b: Array) -> Array:
    """In float32 at least, for what is summed up."""
    return jnp.einsum(form, a, b, preferred_element_type=jnp.promote_types(a.dtype, jnp.float32))


def _with_sides(x: Array, padding: Padding) -> Array:
    sides = [(before, after, 0) for before, after in padding]
    return lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *sides, (0, 0, 0)))
