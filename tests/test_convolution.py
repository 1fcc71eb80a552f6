"""Convolutions of either form against lax's own, in float64: outputs and gradients, also within a scan, where they run twice."""

import re
from collections import Counter
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from ddpm_jax import cpu_forms
from ddpm_jax.compilation import once
from ddpm_jax.errors import UserError
from ddpm_jax.models.convolution import Padding, convolve, transposed

pytestmark = pytest.mark.cpu_forms

LAYOUT = ("NHWC", "HWIO", "NHWC")


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def sides(*pads: int) -> Padding:
    """One number for all sides, two for before and after, four for each."""
    top, bottom, left, right = pads * (4 // len(pads))
    return (top, bottom), (left, right)


DENSE = {
    "3x3": ((3, 6, 5, 4), (3, 3, 4, 5), 1, sides(1)),
    "3x3, to one channel": ((3, 6, 5, 7), (3, 3, 7, 1), 1, sides(1)),
    "2x3, to three channels, all sides different": ((2, 7, 6, 5), (2, 3, 5, 3), 1, sides(0, 1, 2, 1)),
    "3x3, to two channels, far beyond the image": ((2, 3, 4, 5), (3, 3, 5, 2), 1, sides(4)),
    "3x3, to more": ((3, 6, 5, 7), (3, 3, 7, 6), 1, sides(1)),
    "3x3, wide": ((3, 6, 5, 22), (3, 3, 22, 21), 1, sides(1)),
    "2x3, wide, all sides different": ((3, 6, 5, 22), (2, 3, 22, 21), 1, sides(0, 1, 2, 1)),
    "3x3, more channels than pixels": ((1, 4, 3, 21), (3, 3, 21, 24), 1, sides(1)),
    "3x3, wide, larger than the image": ((2, 2, 2, 22), (3, 3, 22, 21), 1, sides(1)),
    "1x1": ((2, 4, 5, 3), (1, 1, 3, 6), 1, sides(0)),
    "1x1, stride 2": ((2, 4, 5, 3), (1, 1, 3, 6), 2, sides(0)),
    "1x1, padded": ((2, 4, 5, 3), (1, 1, 3, 6), 1, sides(1)),
    "7x7, larger than the image": ((2, 5, 4, 2), (7, 7, 2, 3), 1, sides(3)),
    "4x4, stride 2": ((2, 8, 6, 3), (4, 4, 3, 2), 2, sides(1)),
    "4x4, stride 2, larger than the image": ((2, 4, 2, 3), (4, 4, 3, 2), 2, sides(1)),
    "3x3, stride 2, pixels left over": ((2, 8, 6, 3), (3, 3, 3, 2), 2, sides(1)),
    "3x3, stride 2, padded on one side": ((2, 8, 6, 3), (3, 3, 3, 2), 2, sides(0, 1)),
    "3x3, stride 3": ((2, 7, 10, 3), (3, 3, 3, 2), 3, sides(1)),
    "2x2, stride 3, pixels never seen": ((2, 7, 9, 3), (2, 2, 3, 2), 3, sides(0)),
    "2x3, all sides different": ((2, 7, 6, 3), (2, 3, 3, 2), 2, sides(0, 1, 2, 1)),
}
GROUPED = {
    "depthwise 7x7": ((8, 6, 5, 3), (7, 7, 1, 3), 1, sides(3)),
    "depthwise 7x7, odd batch": ((3, 7, 9, 2), (7, 7, 1, 2), 1, sides(3)),
    "depthwise 3x5, all sides different": ((2, 5, 6, 3), (3, 5, 1, 3), 1, sides(1, 0, 2, 3)),
    "depthwise 3x3, stride 2": ((2, 5, 6, 3), (3, 3, 1, 3), 2, sides(1)),
    "two groups": ((2, 5, 6, 4), (3, 3, 2, 6), 1, sides(1)),
}
TRANSPOSED = {  # padding is lax's: size - 1 less PyTorch's
    "2x2, stride 2": ((2, 3, 4, 5), (2, 2, 3, 5), 2, sides(1)),
    "4x4, stride 2": ((2, 3, 4, 5), (4, 4, 3, 5), 2, sides(2)),
    "3x3, stride 2, a pixel more": ((2, 3, 4, 5), (3, 3, 2, 5), 2, sides(1, 2)),
    "3x3, stride 3": ((2, 3, 4, 5), (3, 3, 2, 5), 3, sides(1)),
    "3x3, stride 1": ((2, 3, 4, 5), (3, 3, 2, 5), 1, sides(1)),
    "2x3, all sides different": ((2, 3, 4, 5), (2, 3, 2, 5), 2, sides(1, 0, 2, 1)),
}
Case = tuple[Callable, Callable, tuple[int, ...], tuple[int, ...]]


def dense_case(x: tuple[int, ...], kernel: tuple[int, ...], stride: int, padding: Padding) -> Case:
    return (
        lambda x, k: convolve(x, k, (stride, stride), padding),
        lambda x, k: lax.conv_general_dilated(x, k, (stride, stride), padding, dimension_numbers=LAYOUT),
        x,
        kernel,
    )


def grouped_case(x: tuple[int, ...], kernel: tuple[int, ...], stride: int, padding: Padding) -> Case:
    groups = x[-1] // kernel[2]
    return (
        lambda x, k: convolve(x, k, (stride, stride), padding, feature_group_count=groups),
        lambda x, k: lax.conv_general_dilated(
            x, k, (stride, stride), padding, dimension_numbers=LAYOUT, feature_group_count=groups
        ),
        x,
        kernel,
    )


def transposed_case(x: tuple[int, ...], kernel: tuple[int, ...], stride: int, padding: Padding) -> Case:
    return (
        lambda x, k: transposed(x, k, (stride, stride), padding),
        lambda x, k: lax.conv_transpose(
            x, k, (stride, stride), padding, dimension_numbers=LAYOUT, transpose_kernel=True
        ),
        x,
        kernel,
    )


CASES = (
    {f"dense {name}": dense_case(*case) for name, case in DENSE.items()}
    | {name: grouped_case(*case) for name, case in GROUPED.items()}
    | {f"transposed {name}": transposed_case(*case) for name, case in TRANSPOSED.items()}
)


@pytest.fixture(params=CASES, ids=str)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def normal(*shapes: tuple[int, ...], dtype: str = "float64") -> list[jax.Array]:
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


def all_of(function: Callable) -> Callable:
    """x, kernel, g -> output and the two gradients."""

    def run(x: jax.Array, kernel: jax.Array, g: jax.Array) -> tuple[jax.Array, ...]:
        y, pull = jax.vjp(function, x, kernel)
        return y, *pull(g)

    return run


def scanned(function: Callable) -> Callable:
    """The same with two pairs (x, g) in a loop."""
    run = all_of(function)
    return lambda xs, kernel, gs: lax.scan(lambda _, xg: (None, run(xg[0], kernel, xg[1])), None, (xs, gs))[1]


def compiled(function: Callable, *args: jax.Array) -> tuple[jax.Array, ...]:
    return jax.jit(function, compiler_options=once())(*args)


def assert_close(ours: tuple[jax.Array, ...], theirs: tuple[jax.Array, ...], tolerance: float = 1e-12) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        exact = b.astype("float64")
        assert jnp.abs(a - exact).max() <= tolerance * jnp.abs(exact).max()


def test_equal_to_lax(case: Case) -> None:
    ours, plain, x_shape, kernel_shape = case
    out = jax.eval_shape(plain, *(jax.ShapeDtypeStruct(s, "float64") for s in (x_shape, kernel_shape))).shape
    xs, kernel, gs = normal((2, *x_shape), kernel_shape, (2, *out))
    expected = compiled(scanned(plain), xs, kernel, gs)
    first = tuple(a[0] for a in expected)
    assert_close(compiled(all_of(ours), xs[0], kernel, gs[0]), first)
    assert_close(compiled(scanned(ours), xs, kernel, gs), expected)
    with cpu_forms.off():
        assert_close(compiled(all_of(ours), xs[0], kernel, gs[0]), first)


@pytest.mark.parametrize("name", ["dense 3x3", "depthwise 7x7", "transposed 4x4, stride 2"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("bfloat16", 2e-2)])
def test_lower_precision(name: str, dtype: str, tolerance: float) -> None:
    ours, plain, x_shape, kernel_shape = CASES[name]
    x, kernel = normal(x_shape, kernel_shape, dtype=dtype)
    (g,) = normal(jax.eval_shape(plain, x, kernel).shape, dtype=dtype)
    outputs = compiled(all_of(ours), x, kernel, g)
    assert [a.dtype for a in outputs] == [jnp.dtype(dtype)] * 3
    exact = compiled(all_of(plain), *(a.astype("float64") for a in (x, kernel, g)))
    assert_close(tuple(a.astype("float64") for a in outputs), exact, tolerance)


def operations(function: Callable, *args: jax.Array) -> Counter[str]:
    lowered = jax.jit(all_of(function)).lower(*args).as_text()
    return Counter(re.findall(r"stablehlo\.(convolution|optimization_barrier|while|add|dot_general|pad)\b", lowered))


@pytest.mark.parametrize("name", ["dense 4x4, stride 2", "depthwise 7x7", "transposed 4x4, stride 2"])
def test_other_platforms_get_what_lax_gives_them(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, plain, x_shape, kernel_shape = CASES[name]
    x, kernel = normal(x_shape, kernel_shape)
    (g,) = normal(jax.eval_shape(plain, x, kernel).shape)
    assert operations(ours, x, kernel, g) != {"convolution": 3}
    with cpu_forms.off():
        assert operations(ours, x, kernel, g) == operations(plain, x, kernel, g) == {"convolution": 3}
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert operations(lambda *args: ours(*args), x, kernel, g) == {"convolution": 3}


@pytest.mark.parametrize(
    ("form", "name"),
    [
        ("few", "dense 3x3, to two channels, far beyond the image"),
        ("small", "dense 7x7, larger than the image"),
        ("gradients", "dense 3x3, wide"),
        ("deep", "dense 3x3, more channels than pixels"),
        ("strided", "transposed 4x4, stride 2"),
        ("strided", "dense 4x4, stride 2"),
        ("depthwise", "depthwise 7x7"),
    ],
)
def test_each_form_can_be_switched_off_alone(form: str, name: str) -> None:
    """The program is another one, and its numbers are the same."""
    ours, plain, x_shape, kernel_shape = CASES[name]
    x, kernel = normal(x_shape, kernel_shape)
    (g,) = normal(jax.eval_shape(plain, x, kernel).shape)
    with_it = operations(ours, x, kernel, g)
    with cpu_forms.off(form):
        assert operations(ours, x, kernel, g) != with_it
        assert_close(compiled(all_of(ours), x, kernel, g), compiled(all_of(plain), x, kernel, g))


def test_narrow_convolutions_are_products_where_no_gradient_is_asked_for() -> None:
    x, kernel = normal((3, 6, 5, 22), (3, 3, 22, 7))

    def text() -> str:
        return jax.jit(lambda x: convolve(x, kernel, (1, 1), sides(1))).lower(x).as_text()

    assert "stablehlo.convolution" not in text()
    with cpu_forms.off("narrow"):
        assert "stablehlo.convolution" in text()


def test_a_form_that_is_none() -> None:
    with pytest.raises(UserError, match=r"a form must be one of few, narrow, .*; got 'many'"):
        cpu_forms.off("many")
