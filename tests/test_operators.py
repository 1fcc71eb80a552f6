"""Linear operators against what they are by hand, and their transposes against <A x, y> = <x, A^T y>."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from ddpm_jax import operators
from ddpm_jax.errors import UserError

SHAPE = (2, 8, 12, 3)
HIDDEN = np.random.default_rng(3).random((8, 12, 1)) < 0.4


def x_of(seed=0, shape=SHAPE):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


OPERATORS = {
    "mask": operators.Mask(HIDDEN),
    "blur": operators.Blur(1.5),
    "downsample": operators.Downsample(4),
    "gray": operators.Gray(),
    "function": operators.of(lambda x: jnp.diff(x, axis=1).sum(-1), SHAPE[1:]),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_transposes(name):
    operator, x = OPERATORS[name], x_of()
    y = operator(x)
    assert y.shape == operator.measured(x.shape) and y.dtype == x.dtype
    other = x_of(1, y.shape)
    back = operator.transposed(other, x.shape)
    assert back.shape == x.shape
    np.testing.assert_allclose((y * other).sum(), (x * back).sum(), rtol=1e-12)
    np.testing.assert_allclose(operator(2 * x - 3 * back), 2 * y - 3 * operator(back), atol=1e-12)


def test_what_they_compute():
    x = x_of()
    np.testing.assert_array_equal(operators.Mask(HIDDEN)(x), np.where(HIDDEN, 0, x))
    weights = np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(operators.Gray()(x)[..., 0], np.asarray(x) @ weights, atol=1e-12)
    small = operators.Downsample(4)(x)
    np.testing.assert_allclose(small[1, 1, 2, 0], x[1, 4:8, 8:12, 0].mean(), atol=1e-12)
    # far from the edges it is SciPy's, and a flat image stays as it is up to them
    wide = x_of(shape=(1, 64, 64, 1))
    smooth = ndimage.gaussian_filter(wide, (0, 1.5, 1.5, 0), truncate=12)
    np.testing.assert_allclose(operators.Blur(1.5)(wide)[:, 20:44, 20:44], smooth[:, 20:44, 20:44], atol=1e-10)
    np.testing.assert_allclose(operators.Blur(3.0)(jnp.full(SHAPE, -1.0)), -1, atol=1e-12)


def test_another_mask_or_width_compiles_nothing():
    compiled = jax.jit(lambda operator, x: operator(x))
    for hidden in (HIDDEN, ~HIDDEN):
        np.testing.assert_array_equal(compiled(operators.Mask(hidden), x_of()), np.where(hidden, 0, x_of()))
    for sigma in (0.5, 2.0):
        np.testing.assert_allclose(compiled(operators.Blur(sigma), x_of()), operators.Blur(sigma)(x_of()), atol=1e-12)
    assert compiled._cache_size() == 2


@pytest.mark.usefixtures("without_the_checker")
def test_mistakes():
    with pytest.raises(UserError, match=r"factor must divide the size of the image, 8 x 12; got 5"):
        operators.Downsample(5)(x_of())
    with pytest.raises(
        UserError, match=r"weights must be one for each channel, of which x \(2, 8, 12, 1\) has 1; got 3"
    ):
        operators.Gray()(x_of()[..., :1])
    with pytest.raises(UserError, match=r"hidden must broadcast against x \(2, 8, 12, 3\); got the shape \(8, 11, 1\)"):
        operators.Mask(HIDDEN[:, 1:])(x_of())
    for make, message in (
        (lambda: operators.Blur(0.0), "sigma must be positive and finite; got 0"),
        (lambda: operators.Blur("wide"), "sigma must be a number; got 'wide'"),
        (lambda: operators.Downsample(0), "factor must be at least 1; got 0"),
        (lambda: operators.Gray((1.0, float("nan"))), "weights must be finite; got nan"),
        (lambda: operators.Gray(()), "weights must be a tuple"),
        (lambda: operators.Blur(1.0)(x_of()[0]), r"x must be images \(B, H, W, C\)"),
        (lambda: operators.of(3, (4,)), "function must be called as"),
        (lambda: operators.of(lambda x: x + 1, (4,)), "function must be linear"),
        (lambda: operators.of(lambda x: x * jnp.abs(x), (4,)), "function must be linear"),
        (lambda: operators.of(lambda x: x.sum(), (4,)), "a y for each of 2 examples"),
        (
            lambda: operators.Operator.member("blurr"),
            "operator must be one of mask, blur, downsample, gray.*mean 'blur'",
        ),
    ):
        with pytest.raises(UserError, match=message):
            make()
