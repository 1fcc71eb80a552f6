"""Normalisation as it stands and in its form for CPU, against flax's and the textbook's, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ddpm_jax import cpu_forms
from ddpm_jax.models.normalization import GroupNorm, normalize, normalize_vectors, statistics

pytestmark = pytest.mark.cpu_forms

SHAPE = (3, 5, 4, 12)


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


def draws():
    """An image far from zero, a scale, a bias, and weights of a loss."""
    rng = np.random.default_rng(0)
    return (
        jnp.asarray(3 + 2 * rng.standard_normal(SHAPE)),
        *(jnp.asarray(rng.standard_normal(12)) for _ in range(2)),
        jnp.asarray(rng.standard_normal(SHAPE)),
    )


def by_flax(x, scale, bias, groups):
    norm = nnx.GroupNorm(12, groups, epsilon=1e-5, use_fast_variance=False, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    norm.scale[...], norm.bias[...] = scale, bias
    return norm(x)


def by_textbook(x, scale, bias, groups):
    """Of the batch."""
    assert groups is None
    mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
    return (x - mean) / jnp.sqrt(var + 1e-5) * scale + bias


@pytest.mark.parametrize("groups", [1, 3, 12, None])
def test_values_and_gradients(groups):
    x, scale, bias, weights = draws()
    reference = by_textbook if groups is None else by_flax

    def loss(function):
        return lambda *args: (jnp.sin(function(*args)) * weights).sum()

    ours = jax.value_and_grad(loss(lambda *args: normalize(*args, groups, 1e-5)), (0, 1, 2))(x, scale, bias)
    with cpu_forms.off():
        plain = jax.value_and_grad(loss(lambda *args: normalize(*args, groups, 1e-5)), (0, 1, 2))(x, scale, bias)
    theirs = jax.value_and_grad(loss(lambda *args: reference(*args, groups)), (0, 1, 2))(x, scale, bias)
    for a, b, c in zip(*map(jax.tree.leaves, (ours, plain, theirs)), strict=True):
        assert np.abs(a - c).max() <= 1e-12 * np.abs(c).max()
        assert np.abs(b - c).max() <= 1e-12 * np.abs(c).max()


def test_gradients_in_a_second_call_inside_a_loop():
    x, scale, bias, weights = draws()

    def grad(x):
        return jax.grad(lambda x: (normalize(x, scale, bias, 3, 1e-5) * weights).sum())(x)

    def body(x, _):
        return x + grad(x), grad(x)

    _, found = jax.jit(lambda x: jax.lax.scan(body, x, length=2))(x)
    expected = [grad(x), grad(x + grad(x))]
    assert np.abs(found - jnp.stack(expected)).max() <= 1e-12 * np.abs(found).max()


@pytest.mark.parametrize("groups", [2, None])
def test_statistics(groups):
    x, *_ = draws()
    mean, var = statistics(x, groups)
    if groups is None:
        expected = np.mean(x, (0, 1, 2))[None], np.var(x, (0, 1, 2))[None]
    else:
        parts = np.asarray(x).reshape(3, 20, 2, 6)
        expected = (np.repeat(f(parts, axis=(1, 3)), 6, axis=-1) for f in (np.mean, np.var))
    with cpu_forms.off():
        plain = statistics(x, groups)
    for ours, again, theirs in zip((mean, var), plain, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12)
        np.testing.assert_allclose(again, theirs, rtol=1e-12)


def test_without_the_form_nothing_of_it_is_in_the_program():
    x, scale, bias, _ = draws()

    def text():
        return jax.jit(jax.grad(lambda x: normalize(x, scale, bias, 3, 1e-5).sum())).lower(x).as_text()

    assert "dot_general" in text() and "optimization_barrier" in text()
    with cpu_forms.off("normalization"):
        assert "dot_general" not in text() and "optimization_barrier" not in text()


def test_vectors():
    """Against their definition, with and without the form, gradients too; in 16 bits with statistics in 32."""
    with jax.enable_x64(True):
        x, g = (jnp.asarray(np.random.default_rng(seed).normal(1.0, 2.0, (3, 5, 12))) for seed in range(2))

        def both(x):
            return jax.value_and_grad(lambda x: (normalize_vectors(x, 0.1) * g).sum())(x)

        def defined(x):
            return (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 0.1)

        wanted = jax.value_and_grad(lambda x: (defined(x) * g).sum())(x)
        for how in (cpu_forms.off("few"), cpu_forms.off()):
            with how:
                np.testing.assert_allclose(normalize_vectors(x, 0.1), defined(x), rtol=1e-12, atol=1e-12)
                for one, two in zip(both(x), wanted, strict=True):
                    np.testing.assert_allclose(one, two, rtol=1e-11, atol=1e-11)
        with cpu_forms.forwards():
            one, two = (jax.jvp(f, (x,), (g,))[1] for f in (lambda x: normalize_vectors(x, 0.1), defined))
            np.testing.assert_allclose(one, two, rtol=1e-11, atol=1e-11)
    brief = (100 + 0.5 * np.random.default_rng(0).standard_normal((4, 64))).astype(jnp.bfloat16)
    exact = defined_of(np.asarray(brief, np.float64))
    assert np.abs(np.asarray(normalize_vectors(jnp.asarray(brief), 1e-6), np.float64) - exact).max() < 0.02


def defined_of(x):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)


def test_low_precision_has_exact_statistics():
    """A mean that bfloat16 cannot hold to a deviation's accuracy."""
    norm = GroupNorm(12, 3, epsilon=1e-6, rngs=nnx.Rngs(0))
    x = (1 + 0.01 * draws()[0]).astype(jnp.bfloat16)
    y = norm(x)
    assert y.dtype == jnp.bfloat16
    exact = norm(x.astype(jnp.float32))
    assert np.abs(y.astype(jnp.float32) - exact).max() < 0.02
