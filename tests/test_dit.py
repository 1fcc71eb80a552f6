"""`dit`: its known size, how it begins, its table of positions, its patches, and what of it a device is given."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ddpm_jax import models
from ddpm_jax.compilation import jit
from ddpm_jax.errors import UserError
from ddpm_jax.models import dit

SMALL = {"image_size": 8, "channels": 1, "dim": 16, "depth": 3, "num_heads": 2, "num_classes": 4}
X, T = jnp.asarray(np.random.default_rng(1).normal(size=(2, 8, 8, 1)), jnp.float32), jnp.array([3, 500])
LABELS = jnp.array([3, 0])


@functools.cache
def abstract(**options):
    return models.abstract(models.configure("dit", SMALL | options))


@functools.cache
def trained(**options):
    """(structure, variables) of a network whose parameters are all drawn, none of them zero."""
    graphdef, variables = models.split(abstract(**options))
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda a: jnp.asarray(rng.normal(scale=a.shape[0] ** -0.5, size=a.shape), a.dtype), variables["params"]
    )
    return graphdef, {"params": params, "batch_stats": {}}


@functools.partial(jit, static_argnames=("graphdef", "dtype"))
def forward(variables, x_t, t, labels, *, graphdef, dtype=None):
    return models.apply(graphdef, variables, x_t, t, labels, dtype=dtype)[0]


def call(made, x_t=X, t=T, labels=LABELS, dtype=None):
    graphdef, variables = made
    return forward(variables, x_t, t, labels, graphdef=graphdef, dtype=dtype)


def test_the_papers_largest_has_its_known_size():
    """DiT-XL/2 at 256x256, as its authors count it, the fixed positions of 256 tokens among them."""
    options = {"image_size": 32, "channels": 4, "dim": 1152, "depth": 28, "num_heads": 16, "num_classes": 1001}
    assert models.num_params(abstract(**options, learn_variance=True)) + 256 * 1152 == 675_129_632


@pytest.mark.parametrize("options", [{}, {"long_skips": True, "learn_variance": True}], ids=["plain", "options"])
def test_a_fresh_network_says_zero_within_xavier_bounds(options):
    model = models.create("dit", rngs=nnx.Rngs(0), **SMALL | options)
    output = call(models.split(model))
    assert output.shape == (2, 8, 8, 2 if "learn_variance" in options else 1) and not output.any()
    checked = set()
    for path, kernel in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        name, value = ".".join(map(str, path)), np.asarray(kernel[...])
        if name.endswith("bias") or "adaLN" in name or name == "final_layer.linear.kernel":
            assert not value.any(), name
        elif name.startswith(("t_embedder", "y_embedder")):
            assert value.std() == pytest.approx(0.02, rel=0.3), name
        else:
            matrix = value.reshape(-1, value.shape[-1])
            bound = math.sqrt(6 / sum(matrix.shape))
            assert 0.8 * bound < np.abs(matrix).max() <= bound, name
            checked.add(name.rpartition(".")[0].rpartition(".")[2])
    assert checked == {"proj", "qkv", "fc1", "fc2"} | ({"skip_linear"} if options else set())


def test_each_block_is_the_identity_at_first():
    """Gates are zero: the tokens go through as they are."""
    model = models.create("dit", rngs=nnx.Rngs(0), **SMALL)
    x = jnp.asarray(np.random.default_rng(2).normal(size=(2, 16, 16)), jnp.float32)
    np.testing.assert_array_equal(model.blocks[0](x, jnp.ones((2, 16))), x)


def test_the_table_of_positions_is_the_formula():
    """Row y S + x: sin and cos of x w_k, then of y w_k, w_k = 10000^(-k / (dim / 4)), by hand."""
    table = dit.position_table(3, 8)
    assert table.dtype == np.float64 and table.shape == (9, 8)
    for y in range(3):
        for x in range(3):
            expected = [f(p * w) for p in (x, y) for f in (math.sin, math.cos) for w in (1.0, 0.01)]
            np.testing.assert_allclose(table[3 * y + x], expected, rtol=1e-15)


def patches_of(image, size):
    """Row by row, each pixel by pixel, by plain loops."""
    height, width, _ = image.shape
    return np.stack(
        [image[y : y + size, x : x + size].ravel() for y in range(0, height, size) for x in range(0, width, size)]
    )


@pytest.mark.parametrize("size", [1, 2, 4])
def test_unpatchify_puts_patches_back(size):
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
    patches = np.stack([patches_of(image, size) for image in images])
    np.testing.assert_array_equal(dit.unpatchify(jnp.asarray(patches), size), images)


def test_tokens_are_maps_of_patches():
    model = models.create("dit", rngs=nnx.Rngs(0), **SMALL | {"channels": 3, "patch_size": 4})
    proj = model.x_embedder.proj
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
    kernel = np.asarray(proj.kernel[...], np.float64).reshape(-1, 16)
    expected = np.stack([patches_of(image, 4) for image in images]) @ kernel
    np.testing.assert_allclose(model.x_embedder(jnp.asarray(images)), expected, rtol=1e-4, atol=1e-5)


def test_classes_and_times_and_places_are_heard():
    made = trained()
    assert (call(made) != call(made, labels=jnp.array([2, 0]))).any(axis=(1, 2, 3)).tolist() == [True, False]
    assert (call(made) != call(made, t=jnp.array([3, 501]))).any(axis=(1, 2, 3)).tolist() == [False, True]
    moved = call(made, x_t=jnp.roll(X, 2, axis=1))
    assert (
        float(jnp.abs(moved - jnp.roll(call(made), 2, axis=1)).max()) > 0.01
    )  # without positions they would be the same


def test_long_skips_are_linear_maps_of_the_second_half():
    plain, skipping = (trained(long_skips=option)[1]["params"] for option in (False, True))
    assert "skip_linear" in skipping["blocks"][2] and not any(
        "skip_linear" in block for block in plain["blocks"].values()
    )
    assert skipping["blocks"][2]["skip_linear"]["kernel"].shape == (32, 16)
    assert all("skip_linear" not in skipping["blocks"][index] for index in (0, 1))


def test_bfloat16_computes_so_and_returns_float32():
    made = trained()
    exact, rough = call(made), call(made, dtype=jnp.bfloat16)
    assert rough.dtype == jnp.float32
    error = float(jnp.abs(rough - exact).max() / jnp.abs(exact).max())
    assert 1e-4 < error < 0.05


def test_rematerialised_gradients_are_the_same():
    def gradient(model):
        graphdef, _ = models.split(model)

        @jit
        def of(params):
            def loss(params):
                return (models.apply(graphdef, {"params": params, "batch_stats": {}}, X, T, LABELS)[0] ** 2).sum()

            return jax.grad(loss)(params)

        return of(trained(long_skips=True)[1]["params"])

    model = abstract(long_skips=True)
    pairs = zip(*(jax.tree.leaves(gradient(m)) for m in (model, models.rematerialised(model))), strict=True)
    for kept, anew in pairs:
        np.testing.assert_allclose(anew, kept, rtol=1e-4, atol=1e-4 * float(jnp.abs(kept).max()))


def test_labels_are_required_if_and_only_if_there_are_classes():
    with pytest.raises(UserError, match="dit with num_classes = 4 needs labels"):
        call(trained(), labels=None)
    with pytest.raises(UserError, match="dit with num_classes = None takes no labels"):
        call(trained(num_classes=None))
