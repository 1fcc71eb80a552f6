"""The form that attention takes on CPU is the plain one, gradients included."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import cpu_forms
from ddpm_jax.models import attention

pytestmark = pytest.mark.cpu_forms

FORM = importlib.import_module("ddpm_jax.cpu_forms.attention")  # whose function bears its name


@pytest.mark.parametrize("shape", [(2, 3, 7, 4), (1, 1, 5, 8), (5, 2, 6, 3)])
@pytest.mark.parametrize("block", [1, 100, 10**6])
def test_blocks_are_the_plain_form(shape, block, monkeypatch):
    """Also within a scan; the blocks hold one head, a few, or all of them."""
    monkeypatch.setattr(FORM, "_BLOCK", block)
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        q, k, v, pull = (jnp.asarray(rng.standard_normal(shape)) for _ in range(4))

        def both(form, q, k, v):
            out, back = jax.vjp(form, q, k, v)
            return out, *back(pull)

        plain = both(attention._plain, q, k, v)
        blocks = jax.jit(lambda *a: both(FORM._in_blocks, *a))(q, k, v)
        _, scanned = jax.lax.scan(lambda c, _: (c, both(FORM._in_blocks, *c)), (q, k, v), length=2)
        for ours, again, expected in zip(blocks, scanned, plain, strict=True):
            np.testing.assert_allclose(ours, expected, rtol=1e-12, atol=1e-12)
            np.testing.assert_allclose(again[1], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("part", [1, 25, 10**6])
def test_parts_of_the_queries_are_the_plain_form(part, monkeypatch):
    """One query at a time, a few (a divisor of their number), or all of them; on large images it is what `attend` takes."""
    monkeypatch.setattr(attention, "_PART", part)
    monkeypatch.setattr(FORM, "_MANY", 1)
    monkeypatch.setattr(attention, "_HUGE", 40)
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        q, k, v, pull = (jnp.asarray(rng.standard_normal((2, 3, 8, 4))) for _ in range(4))
        for ours, expected in zip(
            *(jax.vjp(form, q, k, v)[1](pull) for form in (attention.attend, attention._plain)), strict=True
        ):
            np.testing.assert_allclose(ours, expected, rtol=1e-12, atol=1e-12)
        assert str(jax.make_jaxpr(attention.attend)(q, k, v)).count("scan[") == 1  # of the queries' parts
        np.testing.assert_allclose(attention.attend(q, k, v), attention._plain(q, k, v), rtol=1e-12, atol=1e-12)


def test_the_form_is_chosen_by_size():
    def loops(pixels):
        q = jnp.ones((1, 2, pixels, 4))
        return str(jax.make_jaxpr(lambda q: attention.attend(q, q, q))(q)).count("scan[")

    assert loops(300) == 1 and loops(200) == 0
    with cpu_forms.off():
        assert loops(300) == 0


def test_large_logits_do_not_overflow():
    q = jnp.full((1, 1, 4, 2), 60.0)
    np.testing.assert_allclose(FORM._in_blocks(q, q, q), 60.0, rtol=1e-6)


def test_fused_attention_is_the_same_function():
    """The heads and pixels are where it expects them."""
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.standard_normal((2, 3, n, 8)), jnp.float32) for n in (5, 7, 7))
    np.testing.assert_allclose(attention._fused(q, k, v, "xla"), attention._plain(q, k, v), atol=1e-6)
    assert not attention._cudnn_takes(5, 7, 8, jnp.dtype("float32"))
    assert not attention._cudnn_takes(5, 7, 9, jnp.dtype("bfloat16"))  # no multiple of 8, with cuDNN or without


def test_a_gpu_gets_the_fused_form_where_cudnn_takes_the_head(monkeypatch):
    """Wherever its program is lowered: this host has none."""
    asked = []
    monkeypatch.setattr(attention, "_cudnn_takes", lambda *head: asked.append(head) or head[2] == 8)
    monkeypatch.setattr(attention, "_fused", lambda q, k, v: jnp.tanh(q))  # what the text of a program shows

    def text(width, platform):
        q = jax.ShapeDtypeStruct((1, 1, 4, width), jnp.bfloat16)
        return jax.jit(lambda *a: attention.attend(*a)).trace(q, q, q).lower(lowering_platforms=(platform,)).as_text()

    assert "tanh" in text(8, "cuda")
    assert "tanh" not in text(8, "cpu") and "tanh" not in text(6, "cuda")
    assert asked == [(4, 4, 8, jnp.bfloat16)] * 2 + [(4, 4, 6, jnp.bfloat16)]
