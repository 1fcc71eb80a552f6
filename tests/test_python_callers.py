"""What people write at a Python prompt: obvious types are taken, and the rest is an error in the function's own terms."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import optax
import pytest
from flax import nnx

from ddpm_jax import denoisers, editing, models, noise, processes, samplers, schedules, training
from ddpm_jax.errors import UserError

CHAIN = processes.GaussianDiffusion(schedules.linear(20))
SHAPE = (2, 8, 8, 1)
HALF = denoisers.of(CHAIN, lambda x_t, t: x_t / 2)
OPTIONS = {"image_size": 8, "channels": 1, "dim": 4, "dim_mults": (1,), "num_blocks": 1, "norm_groups": 2}


@pytest.fixture(autouse=True)
def without_the_checker():
    """Nobody's program checks annotations but the tests'."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


@pytest.fixture(scope="module")
def network():
    return models.create("unet", rngs=nnx.Rngs(0), attention_resolutions=(), num_classes=3, **OPTIONS)


def test_samplers_keys_and_shapes_of_any_kind():
    wanted = samplers.sample(HALF, samplers.DDIM(), jax.random.key(3), SHAPE, 5)
    for sampler in ("ddim", samplers.DDIM, samplers.DDIM(eta=0.0)):
        for key in (3, np.int64(3), jax.random.PRNGKey(3), noise.sample_keys(3, 2)):
            for shape in (SHAPE, list(SHAPE), np.array(SHAPE)):
                np.testing.assert_array_equal(samplers.sample(HALF, sampler, key, shape, np.int32(5)), wanted)
    own = samplers.sample(HALF, "ddim", noise.sample_keys(3, 1, first=1), (1, 8, 8, 1), 5)
    np.testing.assert_allclose(own[0], wanted[1], rtol=0, atol=1e-5)


def test_labels_of_any_kind(network):
    wanted = denoisers.of_network(network, CHAIN, labels=jnp.array([2, 0]))(jnp.ones(SHAPE), 3)
    for labels in ([2, 0], (2, 0), np.array([2, 0]), np.array([2, 0], np.uint8), jnp.array([2, 0], jnp.int8)):
        found = denoisers.of_network(network, CHAIN, labels=labels)(jnp.ones(SHAPE), 3)
        np.testing.assert_array_equal(found.eps, wanted.eps)


def other_things(network):
    return {
        "a network": (network, "got a UNet: write denoisers.of_network"),
        "a state": (training.create_state(network, optax.sgd(1.0)), "got a TrainState: "),
        "parts": (models.split(network), "got a tuple: write denoisers.of_network"),
        "a function": (lambda x_t, t: x_t, "got a function: write denoisers.of"),
        "nothing": (None, "got a NoneType"),
    }


@pytest.mark.parametrize("what", ["a network", "a state", "parts", "a function", "nothing"])
def test_what_is_no_denoiser_is_told_how_to_be_one(what, network):
    other, says = other_things(network)[what]
    x_0, mask = np.zeros(SHAPE, np.float32), np.ones((8, 8), bool)
    for call in (
        lambda: samplers.sample(other, "ddim", 0, SHAPE),
        lambda: samplers.sample_with_frames(other, "ddim", 0, SHAPE),
        lambda: samplers.lower(other, "ddim", 0, SHAPE),
        lambda: samplers.walk(other, "ddim", x_0, lambda i: x_0, np.zeros((1, 2))),
        lambda: editing.vary(other, 0, x_0),
        lambda: editing.inpaint(other, 0, x_0, mask),
        lambda: editing.interpolate(other, x_0[0], x_0[1], 3),
        lambda: editing.invert(other, x_0),
        lambda: denoisers.clipped(other),
        lambda: denoisers.guided(other, 2.0),
        lambda: denoisers.self_conditioned(other),
    ):
        with pytest.raises(UserError, match=f"a denoiser is needed; {says}"):
            call()


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: samplers.sample(HALF, samplers.ddim_step, 0, SHAPE), "samplers.Sampler of your own; got <function"),
        (lambda: samplers.sample(HALF, "DDIM", 0, SHAPE), "must be one of .*ddim.*; got 'DDIM'"),
        (
            lambda: samplers.sample(HALF, "ddim", "zero", SHAPE),
            "key must be a key of jax.random, or a seed; got 'zero'",
        ),
        (lambda: samplers.sample(HALF, "ddim", 0.5, SHAPE), "or a seed; got 0.5"),
        (
            lambda: samplers.sample(HALF, "ddim", noise.sample_keys(0, 3), SHAPE),
            r"each of 2 samples; got keys of shape \(3,\)",
        ),
        (lambda: samplers.sample(HALF, "ddim", 0, 4), r"such as \(B, H, W, C\); got 4"),
        (lambda: samplers.sample(HALF, "ddim", 0, (0, 2)), "not empty"),
        (lambda: samplers.sample(HALF, "ddim", 0, (4,)), r"not empty; got \(4,\)"),
        (lambda: samplers.sample(HALF, "ddim", 0, SHAPE, 2.5), "steps must be a whole number; got 2.5"),
        (lambda: samplers.sample(HALF, "ddim", 0, SHAPE, "5"), "steps must be a whole number; got '5'"),
        (lambda: samplers.Ancestral("small"), "variance must be one of beta, posterior, learned; got 'small'"),
        (lambda: denoisers.of(lambda x, t: x, CHAIN), "function must be called as|process must be one of"),
        (lambda: denoisers.of_network(CHAIN, CHAIN), "model must be an nnx.Module.*got a GaussianDiffusion"),
        (lambda: denoisers.of(CHAIN, 3), "function must be called"),
        (lambda: HALF.with_labels([0.5, 1.0]), "labels must be whole numbers"),
        (lambda: HALF.with_labels("cat"), "labels must be whole numbers"),
        (lambda: denoisers.clipped(HALF, "one"), "bound must be a number; got 'one'"),
        (lambda: denoisers.clipped(HALF, None), "bound must be a number; got None"),
    ],
)
def test_what_else_is_refused(call, says):
    with pytest.raises(UserError, match=says):
        call()


def test_a_network_where_a_function_goes(network):
    with pytest.raises(UserError, match=r"write denoisers\.of_network"):
        denoisers.of(CHAIN, network)


# Images


def test_one_image_alone():
    image = np.random.default_rng(0).uniform(-1, 1, SHAPE[1:]).astype(np.float32)
    both = editing.vary(HALF, 0, np.stack([image, image]), num_steps=5)
    np.testing.assert_allclose(editing.vary(HALF, 0, image, num_steps=5), both[0], rtol=1e-6)
    assert editing.invert(HALF, image, num_steps=5).shape == image.shape
    assert editing.inpaint(HALF, 0, image, np.eye(8), num_steps=5, resample=1).shape == image.shape
    assert editing.vary(denoisers.of(CHAIN, lambda x, t: x), 0, [3.0, -2.0]).shape == (2,)


def test_bytes_are_scaled_as_the_pipeline_scales():
    """Unscaled they became 1,354,882 (inpaint)."""
    pixels = np.random.default_rng(0).integers(0, 256, SHAPE).astype(np.uint8)
    scaled, mask = pixels / np.float32(127.5) - 1, np.ones((8, 8), bool)
    denoise = denoisers.clipped(HALF)
    for edit in (
        lambda x: editing.vary(denoise, 0, x, num_steps=5),
        lambda x: editing.inpaint(denoise, 0, x, mask, num_steps=5, resample=1),
        lambda x: editing.invert(denoise, x, num_steps=5),
        lambda x: editing.interpolate(denoise, x[0], x[1], 3, num_steps=5),
    ):
        found = edit(pixels)
        np.testing.assert_allclose(found, edit(scaled), atol=1e-5)
        assert np.abs(found).max() < 10


@pytest.mark.parametrize(
    ("images", "says"),
    [
        (np.full(SHAPE, 200.0), r"floats in \[-1, 1\] as the network sees them; got floats in \[200, 200\]"),
        (np.linspace(0, 1.1, 128).reshape(SHAPE), r"got floats in \[0(.5543)?, 1.1\]"),
        (np.full(SHAPE, np.nan), "got floats in .nan, nan."),
        (np.full(SHAPE, 200), "must be uint8 pixels 0..255 or floats in .* got int64"),
        (np.zeros((2, 1, 1, 8, 8, 1), np.float32), r"or one of them; got the shape \((2, )?1, 1, 8, 8, 1\)"),
    ],
)
def test_what_no_network_has_seen_is_refused(images, says):
    mask = np.ones((8, 8), bool)
    for edit in (
        lambda: editing.vary(HALF, 0, images),
        lambda: editing.inpaint(HALF, 0, images, mask),
        lambda: editing.invert(HALF, images),
        lambda: editing.interpolate(HALF, images[-1], images[-1], 3),
    ):
        with pytest.raises(UserError, match=says):
            edit()


def test_rounding_is_no_other_range():
    x_0 = np.full(SHAPE, 1 + 1e-4, np.float32)
    assert np.isfinite(editing.vary(HALF, 0, x_0, num_steps=5)).all()
    assert np.isfinite(editing.vary(HALF, 0, jnp.ones(SHAPE, jnp.bfloat16), num_steps=5)).all()


def test_two_images_where_one_goes():
    x_0 = np.zeros(SHAPE, np.float32)
    with pytest.raises(UserError, match=r"one example each, of one shape; got \(2, 8, 8, 1\) and \(8, 8, 1\)"):
        editing.interpolate(HALF, x_0, x_0[0], 3)
