"""The networks: sizes, closed forms, precision, labels, and dropout."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ddpm_jax import models, presets
from ddpm_jax.compilation import jit
from ddpm_jax.errors import UserError
from ddpm_jax.models import layers, unet

SMALL = {"image_size": 8, "channels": 1, "dim": 8, "dim_mults": (1, 2), "num_blocks": 1, "norm_groups": 4}


def abstract(**options):
    """The network without numbers, at no cost."""
    return models.abstract(models.configure("unet", options))


@functools.cache
def fresh(**options):
    """The network as it starts."""
    return nnx.jit(lambda: models.create("unet", rngs=nnx.Rngs(0), **SMALL | options))()


@functools.cache
def trained(**options):
    """(structure, variables) of a network whose parameters are all drawn, none of them zero."""
    _, variables = models.split(abstract(**SMALL | options))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda a: jnp.asarray(rng.normal(scale=0.2, size=a.shape), a.dtype), variables["params"])
    return abstract(**SMALL | options), {"params": params, "batch_stats": {}}


@functools.partial(jit, static_argnames=("graphdef", "dtype"))
def forward(variables, x_t, t, labels, key, *, graphdef, dtype):
    return models.apply(graphdef, variables, x_t, t, labels, key=key, dtype=dtype)[0]


def call(model_and_variables, x_t, t, labels=None, training=False, key=None, dtype=None):
    model, variables = model_and_variables
    graphdef, _ = models.split(model, training=training)
    return forward(variables, x_t, t, labels, key, graphdef=graphdef, dtype=dtype)


X, T = jnp.asarray(np.random.default_rng(1).normal(size=(2, 8, 8, 1)), jnp.float32), jnp.array([3, 500])


def test_the_cifar10_network_has_its_known_size():
    assert models.num_params(abstract()) == 35_746_307  # Ho et al.'s, as diffusers' google/ddpm-cifar10-32 counts it


def test_time_embedding():
    embedding = layers.timestep_embedding(jnp.array([0, 7]), 6, jnp.dtype("float32"))
    angles = [7.0, 7 / 100, 7 / 10_000]
    wanted = [[0, 0, 0, 1, 1, 1], [*map(math.sin, angles), *map(math.cos, angles)]]
    np.testing.assert_allclose(embedding, wanted, rtol=1e-5)


def test_time_embedding_is_computed_in_float32_at_least():
    t = jnp.array([999, 1000])
    rough = layers.timestep_embedding(t, 16, jnp.dtype("bfloat16"))
    assert rough.dtype == jnp.bfloat16
    np.testing.assert_array_equal(rough, layers.timestep_embedding(t, 16, jnp.dtype("float32")).astype(jnp.bfloat16))


def test_a_fresh_network_says_zero_within_xavier_bounds():
    model = fresh(num_classes=3)
    assert not call((model, models.split(model)[1]), X, T, jnp.array([0, 1])).any()
    checked = 0
    for path, kernel in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        name, value = ".".join(map(str, path)), np.asarray(kernel[...])
        assert value.dtype == np.float32
        if name.endswith(("bias", "conv2.kernel", "proj.kernel", "conv_out.kernel")) and "time_proj" not in name:
            assert not value.any(), name
        elif name.endswith("kernel"):
            # the joint q, k, v map starts as three maps of dim -> dim
            fan_in, fan_out = math.prod(value.shape[:-1]), value[..., 0, :].size if value.ndim == 4 else value.shape[1]
            bound = math.sqrt(6 / (2 * fan_in if "qkv" in name else fan_in + fan_out))
            assert 0.85 * bound < np.abs(value).max() <= bound, name
            checked += 1
    assert checked > 10


def test_resampling_by_hand():
    image = jnp.arange(16.0).reshape(1, 4, 4, 1)
    np.testing.assert_array_equal(layers.halve_mean(image)[0, :, :, 0], [[2.5, 4.5], [10.5, 12.5]])
    doubled = layers.double_nearest(image[:, :2, :2])[0, :, :, 0]
    np.testing.assert_array_equal(doubled, [[0, 0, 1, 1], [0, 0, 1, 1], [4, 4, 5, 5], [4, 4, 5, 5]])


def test_downsampling_pads_at_the_bottom_and_right():
    down = unet.Downsample(1, rngs=nnx.Rngs(0))
    down.conv.kernel[...] = jnp.arange(9.0).reshape(3, 3, 1, 1)
    out = down(jnp.ones((1, 4, 4, 1)), jnp.ones((1, 8)))[0, :, :, 0]
    right, bottom = 0 + 1 + 3 + 4 + 6 + 7, 0 + 1 + 2 + 3 + 4 + 5  # what remains of the kernel's sum, 36, at the edges
    np.testing.assert_array_equal(out, [[36, right], [bottom, 0 + 1 + 3 + 4]])


@pytest.mark.parametrize("learn_variance", [False, True])
def test_each_example_is_treated_by_itself(learn_variance):
    network = trained(learn_variance=learn_variance)
    out = call(network, X, T)
    assert out.shape == (2, 8, 8, 2 if learn_variance else 1)
    np.testing.assert_allclose(out[1:], call(network, X[1:], T[1:]), rtol=0, atol=1e-4 * float(jnp.abs(out).max()))
    assert float(jnp.abs(out - call(network, X, T + 1)).max()) > 1e-3


@pytest.mark.slow
def test_tiny_unet_does_not_see_brightness():
    """Its first LayerNorm, over the whole map, takes it away; its samples are stretched for that."""
    model = nnx.jit(lambda: models.create("tiny_unet", rngs=nnx.Rngs(0), image_size=8, dim=2, time_dim=6))()
    answer = nnx.jit(lambda model, x_t: model(x_t, jnp.array([0, 900])))
    x_t = jax.random.normal(jax.random.key(1), (2, 8, 8, 1))
    expected = answer(model, x_t)
    np.testing.assert_allclose(answer(model, x_t + 5), expected, atol=1e-4 * float(jnp.abs(expected).max()))
    assert float(jnp.abs(answer(model, x_t * jnp.linspace(1, 5, 8)[:, None]) - expected).max()) > 0.01
    assert presets.system_of(models.configure("tiny_unet", {}))[1].stretch


def test_labels_are_heard():
    network = trained(num_classes=3)
    one, other = call(network, X, T, jnp.array([0, 1])), call(network, X, T, jnp.array([0, 2]))
    np.testing.assert_allclose(one[0], other[0], rtol=1e-5)
    assert float(jnp.abs(one[1] - other[1]).max()) > 1e-3


def test_bfloat16_computes_so_and_returns_float32():
    network = trained()
    exact, rough = (call(network, X, T, dtype=dtype) for dtype in (None, "bfloat16"))
    assert exact.dtype == rough.dtype == jnp.float32
    apart = float(jnp.abs(exact - rough).max() / jnp.abs(exact).max())
    assert 1e-4 < apart < 0.2  # float32 in disguise would lie within 1e-5
    graphdef, _ = models.split(network[0])

    def loss(variables):
        return models.apply(graphdef, variables, X, T, dtype="bfloat16")[0].sum()

    grads = jax.eval_shape(jax.grad(loss), network[1])
    assert {leaf.dtype for leaf in jax.tree.leaves(grads)} == {jnp.dtype("float32")}
    program = jax.jit(loss).lower(network[1]).as_text()
    convolutions = [line for line in program.splitlines() if "stablehlo.convolution" in line]
    assert convolutions
    assert all("bf16" in line and "f32" not in line for line in convolutions)


def test_dropout_is_active_only_in_training():
    network = trained(dropout=0.5)
    plain = call(trained(), X, T)
    np.testing.assert_array_equal(call(network, X, T), plain)
    np.testing.assert_array_equal(call(network, X, T, key=jax.random.key(0)), plain)
    one, same, other = (call(network, X, T, training=True, key=jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert float(jnp.abs(one - other).max()) > 1e-3
    assert float(jnp.abs(one - plain).max()) > 1e-3


def test_split_and_apply_are_the_model():
    model = fresh()
    _, variables = trained()
    filled = nnx.clone(model)
    nnx.update(filled, jax.tree.map(nnx.Param, variables["params"]))
    graphdef, again = models.split(filled)
    assert jax.tree.structure(again["params"]) == jax.tree.structure(variables["params"])
    assert again["batch_stats"] == {}
    assert hash(graphdef) == hash(models.split(filled)[0])
    output = nnx.jit(lambda network: network(X, T))(filled)
    np.testing.assert_allclose(output, call((filled, again), X, T), rtol=0, atol=1e-4)


def test_a_structure_finds_its_hash_once(monkeypatch):
    """jit asks for it in each call."""
    graphdef, variables = models.split(fresh())
    for _ in range(2):
        found = hash(graphdef)
        monkeypatch.setattr(nnx.GraphDef, "__hash__", lambda _: pytest.fail("found again"))
    monkeypatch.undo()
    assert found == hash(models.split(fresh())[0])
    assert found != hash(models.split(fresh(), training=True)[0])
    assert graphdef == models.split(models.merge(graphdef, variables))[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dims": 3}, "unet has no option 'dims'; it has image_size, channels"),
        ({"image_size": 30}, "image_size must be divisible by 8, because 4 dim_mults .* 3 times; got 30"),
        ({"image_size": 0}, "image_size must be at least 1; got 0"),
        ({"channels": 0}, "channels must be at least 1; got 0"),
        ({"num_blocks": 0}, "num_blocks must be at least 1; got 0"),
        ({"num_heads": 0}, "num_heads must be at least 1; got 0"),
        ({"norm_groups": 0}, "norm_groups must be at least 1; got 0"),
        ({"num_classes": 0}, "num_classes must be at least 1, or None; got 0"),
        ({"dim": 33, "norm_groups": 1}, "dim must be even and at least 4; got 33"),
        ({"dim": 2, "norm_groups": 1}, "dim must be even and at least 4; got 2"),
        ({"dim": 48}, "norm_groups must divide every width; got 32 for a width of 48"),
        ({"dim_mults": ()}, r"dim_mults must be positive integers.*got \(\)"),
        ({"dim_mults": (1, 0)}, r"dim_mults must be positive integers.*got \(1, 0\)"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\); got 1"),
        ({"num_heads": 3}, "num_heads = 3 must divide every width"),
        ({"head_dim": 96}, "head_dim = 96 must divide every width"),
    ],
)
def test_errors(options, message):
    with pytest.raises(UserError, match=message):
        models.create("unet", rngs=nnx.Rngs(0), **options)


def test_unknown_network():
    with pytest.raises(UserError, match=r"must be one of .*unet; got 'u_net'"):
        models.create("u_net", rngs=nnx.Rngs(0))


def test_labels_are_required_if_and_only_if_there_are_classes():
    with pytest.raises(UserError, match="num_classes = 3 needs labels"):
        call(trained(num_classes=3), X, T)
    with pytest.raises(UserError, match="num_classes = None takes no labels"):
        call(trained(), X, T, jnp.array([0, 1]))


def test_parameters_are_drawn_with_flaxs_keys():
    """One compiled program draws what flax does layer by layer."""
    config = models.configure("unet", {"image_size": 4, "dim": 4, "dim_mults": (1,), "num_blocks": 1, "norm_groups": 2})
    ours = models.build(config, rngs=nnx.Rngs(params=jax.random.key(3)))
    theirs = models.UNet(config, rngs=nnx.Rngs(params=nnx.Rngs(params=jax.random.key(3)).params()))
    drawn, wanted = (jax.tree.leaves(nnx.state(model, nnx.Param)) for model in (ours, theirs))
    for a, b in zip(drawn, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
