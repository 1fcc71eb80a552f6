"""What people write at a Python prompt: obvious types are taken, and the rest is an error in the function's own terms."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from ddpm_jax import (
    data,
    denoisers,
    editing,
    evaluation,
    figures,
    models,
    noise,
    presets,
    processes,
    samplers,
    schedules,
    training,
    verify,
    weights,
)
from ddpm_jax.errors import UserError

CHAIN = processes.GaussianDiffusion(schedules.linear(20))
SHAPE = (2, 8, 8, 1)
HALF = denoisers.of(CHAIN, lambda x_t, t: x_t / 2)
OPTIONS = {"image_size": 8, "channels": 1, "dim": 4, "dim_mults": (1,), "num_blocks": 1, "norm_groups": 2}

pytestmark = pytest.mark.usefixtures("without_the_checker")


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


# Mistakes by the table: each is refused in one line that names the argument and what is allowed


FLOW = processes.FlowMatching(20)
STRAIGHT = denoisers.of(FLOW, lambda x_t, t: x_t / 2)
X = np.zeros(SHAPE, np.float32)
PIXELS = np.zeros(SHAPE, np.uint8)
MASK = np.ones((8, 8), bool)
DIGITS = data.open_source("digits")
BATCHES = {"shape": (8, 8, 1), "batch_size": 4}


def created(name="unet", **options):
    return models.create(name, rngs=nnx.Rngs(0), **{**OPTIONS, "attention_resolutions": (), **options})


def conditional(**options):
    return denoisers.of_network(created(num_classes=3), CHAIN, **options)


MISTAKES = {
    "no steps": (lambda: schedules.linear(0), "num_steps must be at least 1; got 0"),
    "steps that are no whole number": (lambda: schedules.linear(10.0), r"num_steps must be a whole number; got 10\.0"),
    "steps in a list": (lambda: schedules.cosine([10]), r"num_steps must be a whole number; got \[10\]"),
    "betas that fall": (
        lambda: schedules.linear(10, 0.02, 1e-4),
        "beta_start must be at most beta_end; got 0.02 and 0.0001",
    ),
    "a beta of text": (lambda: schedules.sigmoid(10, "0.1"), "beta_start must be a number; got '0.1'"),
    "a beta above 1": (lambda: schedules.from_betas([0.1, 2.0]), r"betas must lie in \(0, 1\]; betas\[1\] = 2"),
    "betas in rows": (
        lambda: schedules.from_betas(np.full((2, 2), 0.1)),
        r"betas must be one number .* got the shape \(2, 2\)",
    ),
    "betas of text": (lambda: schedules.from_betas("linear"), "betas must be numbers, .* got 'linear'"),
    "no betas": (lambda: schedules.from_betas([]), "num_steps must be at least 1; got 0"),
    "tables of two lengths": (lambda: schedules.Schedule([0.1], [0.9, 0.8]), "must have one length; got 1 and 2"),
    "products above 1": (lambda: schedules.Schedule([0.1], [1.5]), r"alphas_cumprod must lie in \[0, 1\]; .* = 1.5"),
    "a clip of betas above 1": (lambda: schedules.cosine(10, max_beta=2.0), r"max_beta must lie in \(0, 1\]; got 2"),
    "a number for a schedule": (lambda: schedules.zero_terminal_snr(10), "schedule must be a Schedule, .* got 10"),
    "an unknown schedule": (lambda: schedules.create("cosin", 10), "must be one of linear, cosine, .* got 'cosin'"),
    "a schedule by name": (
        lambda: processes.GaussianDiffusion("linear"),
        "schedule must be a Schedule, .* got 'linear'",
    ),
    "an unknown prediction": (
        lambda: processes.GaussianDiffusion(CHAIN.schedule, "epsilon"),
        "prediction must be one of eps, x0, v; got 'epsilon'",
    ),
    "an exponent of text": (
        lambda: processes.GaussianDiffusion(CHAIN.schedule, p2_gamma="1"),
        "p2_gamma must be a number; got '1'",
    ),
    "half a step of a flow": (lambda: processes.FlowMatching(10.5), "num_steps must be a whole number; got 10.5"),
    "bytes to be noised": (
        lambda: CHAIN.add_noise(PIXELS, X, np.array([1, 2])),
        r"x_0 must be an array of floats, .* got uint8\[2,8,8,1\]",
    ),
    "a list to be noised": (lambda: CHAIN.add_noise([[1.0]], X, 1), "x_0 must be an array of floats"),
    "noise of whole numbers": (lambda: CHAIN.add_noise(X, PIXELS, 1), "noise must be an array of floats"),
    "noise of another shape": (
        lambda: CHAIN.add_noise(X, X[:1], 1),
        r"noise must have the shape of x_0, \(2, 8, 8, 1\); got \(1, 8, 8, 1\)",
    ),
    "a timestep too late": (lambda: CHAIN.add_noise(X, X, np.array([1, 20])), r"t must lie in -1\.\.19; got 1\.\.20"),
    "a timestep too early": (lambda: CHAIN.add_noise(X, X, np.array([-2, 3])), r"t must lie in -1\.\.19; got -2\.\.3"),
    "half a timestep": (lambda: CHAIN.add_noise(X, X, np.array([0.5, 1.0])), "t must be a timestep, a whole number"),
    "too many times": (
        lambda: CHAIN.add_noise(X, X, np.array([1, 2, 3])),
        r"one for each example \(2,\); got the shape \(3,\)",
    ),
    "no time": (lambda: CHAIN.add_noise(X, X, None), "t must be a time, or one for each example; got None"),
    "a timestep of a flow": (lambda: FLOW.add_noise(X, X, np.array([5.0, 1.0])), r"t must lie in 0\.\.1; got 1\.\.5"),
    "more steps than there are": (lambda: CHAIN.times(21), r"steps must lie in 1\.\.20"),
    "an output of another shape": (
        lambda: denoisers.of(CHAIN, lambda x, t: x[:, :4])(X, 3),
        r"must have the shape \(2, 8, 8, 1\) for x_t \(2, 8, 8, 1\); got float32\[2,4,8,1\]",
    ),
    "no output": (lambda: denoisers.of(CHAIN, lambda x, t: None)(X, 3), "must have the shape .* got None"),
    "bytes to be denoised": (lambda: HALF(PIXELS, 3), "x_t must be an array of floats"),
    "a list to be denoised": (lambda: HALF([[1.0]], 3), "x_t must be an array of floats"),
    "a time beyond the chain": (lambda: HALF(X, 20), r"t must lie in -1\.\.19; got 20\.\.20"),
    "guidance without labels": (
        lambda: denoisers.guided(HALF, 2.0),
        "guidance needs labels to guide to; got labels = None",
    ),
    "guidance of text": (
        lambda: denoisers.guided(conditional(labels=1, null_label=2), "2"),
        "scale must be a number; got '2'",
    ),
    "one end of an interval": (
        lambda: denoisers.guided(conditional(labels=1, null_label=2), 2.0, interval=5),
        "interval must be two times, .* got 5",
    ),
    "a bound below zero": (lambda: denoisers.clipped(HALF, -1), "bound must be positive; got -1"),
    "a quantile in per cent": (lambda: denoisers.thresholded(HALF, 99), r"quantile must lie in \(0, 1\]; got 99"),
    "a class that there is not": (
        lambda: conditional(labels=[1, 3]),
        r"labels must lie in 0\.\.2, the network's classes",
    ),
    "a class below the first": (lambda: conditional(labels=1).with_labels(-1), r"labels must lie in 0\.\.2"),
    "no class that is not there": (
        lambda: conditional(labels=1, null_label=7),
        r"null_label must lie in 0\.\.2, .* got 7",
    ),
    "an unknown precision": (lambda: conditional(dtype="float31"), "dtype must be a type of numbers, .* got 'float31'"),
    "eta beyond 1": (lambda: samplers.DDIM(2.0), r"eta must lie in \[0, 1\]; got 2"),
    "eta of text": (lambda: samplers.DDIM("0"), "eta must be a number; got '0'"),
    "churn of text": (lambda: samplers.Heun("1"), "churn must be a number; got '1'"),
    "an order too high": (lambda: samplers.DPMSolver(order=4), "order must be"),
    "more steps than the chain": (lambda: samplers.sample(HALF, "ddim", 0, SHAPE, 21), r"steps must lie in 1\.\.20"),
    "a sampler that does not fit": (
        lambda: samplers.sample(STRAIGHT, "strided", 0, SHAPE, 2),
        "process.kind = flow has not. Samplers that fit: .*ancestral, ddim",
    ),
    "an unknown spacing": (
        lambda: samplers.sample(HALF, "ddim", 0, SHAPE, 2, spacing="karas"),
        "spacing must be one of even, .* got 'karas'",
    ),
    "times of text": (
        lambda: samplers.sample(HALF, "ddim", 0, SHAPE, spacing=["a", "b"]),
        "times must be 2 or more and descend",
    ),
    "times that rise": (
        lambda: samplers.sample(HALF, "ddim", 0, SHAPE, spacing=[3, 5, -1]),
        "must be 2 or more and descend",
    ),
    "frames of text": (
        lambda: samplers.sample_with_frames(HALF, "ddim", 0, SHAPE, 2, num_frames="3"),
        "num_frames must be a whole number; got '3'",
    ),
    "a seed that is too large": (
        lambda: samplers.sample(HALF, "ddim", 2**70, SHAPE, 2),
        "key must be a key of jax.random, or a seed",
    ),
    "an unknown network": (
        lambda: created("unett"),
        "must be one of annotated_unet, .* got 'unett'. Did you mean 'unet'?",
    ),
    "no name": (lambda: created(None), "the network must be one of .* got None"),
    "an unknown option": (
        lambda: created(dim_mult=(1,)),
        "unet has no option 'dim_mult'; it has .* Did you mean 'dim_mults'?",
    ),
    "a size that cannot be halved": (
        lambda: created(image_size=9, dim_mults=(1, 2)),
        "image_size must be divisible by 2, .* got 9",
    ),
    "a width of text": (lambda: created(dim="4"), "unet.dim must be a whole number; got '4'"),
    "a width of 4.0": (lambda: created(dim=4.0), "unet.dim must be a whole number; got 4.0"),
    "one multiple alone": (lambda: created(dim_mults=2), "unet.dim_mults must be a list of a whole number; got 2"),
    "groups that do not divide": (lambda: created(norm_groups=3), "norm_groups"),
    "no width": (lambda: created(dim=0), "dim must be"),
    "a seed of text": (lambda: models.create("mlp", rngs="0"), "rngs, .* must be a whole number; got '0'"),
    "data that is not there": (lambda: data.open_source("/nowhere"), "the data source '/nowhere' is not known"),
    "a path that is not there": (lambda: data.open_source(Path("/nowhere")), "the data source '/nowhere' is not known"),
    "no source": (lambda: data.open_source(None), "the data source must be text or a path; got None"),
    "an unknown class": (lambda: data.open_source("digits", classes="x"), "class 'x' is none of digits's 10 classes: 0, 1"),
    "batches of a name": (
        lambda: data.batches("digits", **BATCHES),
        "source must be one that data.open_source opened, .* got 'digits'",
    ),
    "a shape without channels": (lambda: data.batches(DIGITS, **BATCHES | {"shape": (8, 8)}), r"its shape is \(8, 8\)"),
    "a batch beyond the data": (
        lambda: data.batches(DIGITS, **BATCHES | {"batch_size": 9999}),
        r"batch_size must lie in 1\.\.1797",
    ),
    "a batch of 4.0": (
        lambda: data.batches(DIGITS, **BATCHES | {"batch_size": 4.0}),
        "batch_size must be a whole number; got 4.0",
    ),
    "a seed of one half": (lambda: data.batches(DIGITS, **BATCHES, seed=0.5), "seed must be a whole number; got 0.5"),
    "floats for images": (lambda: data.ArraySource("mine", X), "images must be uint8 .* got float32"),
    "too many labels": (
        lambda: data.ArraySource("mine", PIXELS, [0, 1, 2], "ab"),
        r"labels must be integers of shape \(2,\)",
    ),
    "half a point": (lambda: data.PointSource("spiral", 10.5), "num must be a whole number; got 10.5"),
    "pixels that are no numbers": (lambda: data.to_images(X * np.nan), "images must be finite"),
    "a strength beyond 1": (lambda: editing.vary(HALF, 0, X, strength=2.0), r"strength must lie in \(0, 1\]; got 2"),
    "a strength of text": (lambda: editing.vary(HALF, 0, X, strength="1"), "strength must be a number; got '1'"),
    "a mask of another size": (
        lambda: editing.inpaint(HALF, 0, X, MASK[:4]),
        r"mask must have the shape \(8, 8\) .* got \(4, 8\)",
    ),
    "a mask by name": (
        lambda: editing.inpaint(HALF, 0, X, "left"),
        "mask must be an array, True where to draw; got 'left'",
    ),
    "a mask of NaN": (
        lambda: editing.inpaint(HALF, 0, X, np.full((8, 8), np.nan)),
        "mask must be an array, True where to draw",
    ),
    "a mask that hides nothing": (lambda: editing.inpaint(HALF, 0, X, ~MASK), "mask hides nothing"),
    "half a resampling": (
        lambda: editing.inpaint(HALF, 0, X, MASK, resample=2.5),
        "resample must be a whole number; got 2.5",
    ),
    "one end of a way": (lambda: editing.interpolate(HALF, X[0], X[0], 1), "num must be at least 2"),
    "a file for an image": (lambda: editing.vary(HALF, 0, "cat.png"), "x_0 must be uint8 pixels"),
    "features of two widths": (
        lambda: evaluation.frechet_distance(np.eye(3), np.ones((3, 2))),
        "the same second dimension",
    ),
    "too many neighbours": (
        lambda: evaluation.precision_recall(np.eye(3), np.eye(3), neighbours=3),
        r"neighbours must lie in 1\.\.2",
    ),
    "a run's name for a drawing": (
        lambda: evaluation.evaluate_run("runs/mine"),
        "drawing must be a training.Drawing; got 'runs/mine'",
    ),
    "a classifier of floats": (lambda: evaluation.train_classifier(X, [0, 1], 2), "images must be uint8"),
    "the bound of a flow": (
        lambda: evaluation.variational_bound(STRAIGHT, X, lambda i: X),
        "the variational bound belongs to a chain",
    ),
    "no state dict": (
        lambda: weights.load_torch(created(), None),
        "state_dict must map names to tensors, .* got a NoneType",
    ),
    "weights of a name": (lambda: weights.load_torch("unet", {}), "model must be an nnx.Module, an equinox module or a tree of arrays; got a str"),
    "weights that are not there": (lambda: weights.read_tensors("/nowhere.npz"), "/nowhere.npz does not exist"),
    "a run that is not there": (lambda: training.open_run("runs/nowhere"), "runs/nowhere does not exist"),
    "an unknown twin": (lambda: verify.verify("unett"), "the network must be one of"),
    "no module of PyTorch": (
        lambda: verify.compare(created(), "unet", [X]),
        "torch_model must be a torch.nn.Module, .*; got a str",
    ),
    "a picture of floats": (lambda: figures.grid(X), "images must be uint8"),
    "a picture of a list": (lambda: figures.grid([[1]]), "images must be uint8"),
    "a picture of nothing": (lambda: figures.grid(PIXELS[:0]), "images must be uint8"),
    "too few titles": (lambda: figures.grid(PIXELS, ["one"]), "titles must be 2, one for each image, or none; got 1"),
    "no columns": (lambda: figures.grid(PIXELS, columns=-1), "columns must be at least 1, or None; got -1"),
    "no frames": (
        lambda: figures.save_animation("x.gif", PIXELS[None][:0]),
        "frames must be one grid of images or more",
    ),
    "a scatter of images": (lambda: figures.save_scatter("x.png", X, X), r"must be points \(N, 2\); got the shape"),
    "an unknown preset": (lambda: presets.preset("digit"), "digits"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_in_a_line(mistake):
    call, says = MISTAKES[mistake]
    with pytest.raises(UserError, match=says) as raised:
        call()
    assert mistake in ("a path that is not there", "data that is not there", "no source") or "\n" not in str(
        raised.value
    )


def test_weights_of_another_network_are_listed():
    """Missing and left over, by name: the one message of many lines."""
    with pytest.raises(UserError, match=r"missing: conv_in.bias \(4,\)(.|\n)*not of this network: conv_inn.bias"):
        state = weights.to_numpy(created())
        weights.load_torch(created(), {("conv_inn.bias" if k == "conv_in.bias" else k): v for k, v in state.items()})


# What is taken as it is meant


def test_times_of_any_kind():
    noised = CHAIN.add_noise(X + 1, X, np.array([3, 3]))
    for t in (3, [3, 3], (3, 3), np.int64(3), jnp.array([3, 3])):
        np.testing.assert_array_equal(CHAIN.add_noise(X + 1, X, t), noised)


def test_options_of_any_kind():
    wanted = weights.to_numpy(created(dim_mults=(1, 2)))
    for rngs in (0, np.int32(0), jax.random.key(0)):
        made = models.create(
            "unet", rngs=rngs, **OPTIONS | {"attention_resolutions": [], "dim_mults": [1, np.int64(2)]}
        )
        for name, array in weights.to_numpy(made).items():
            np.testing.assert_array_equal(array, wanted[name])


def test_paths_and_classes_as_text(tmp_path):
    path = figures.save_grid(str(tmp_path / "grid.png"), PIXELS)
    assert path.is_file() and len(data.open_source(tmp_path)) == 1
    one, other = (data.open_source("digits", classes=classes) for classes in ("3", ["3"]))
    np.testing.assert_array_equal(one.indices, other.indices)
    first, second = (next(data.batches(DIGITS, **BATCHES | {"shape": shape})) for shape in ([8, 8, 1], (8, 8, 1)))
    np.testing.assert_array_equal(first["x_0"], second["x_0"])
    rows = np.random.default_rng(0).normal(size=(5, 2))
    assert evaluation.frechet_distance(rows.tolist(), rows + 1) == evaluation.frechet_distance(rows, rows + 1)


def test_a_callers_table_stays_writable():
    betas = np.full(4, 0.1)
    schedules.Schedule(betas, np.cumprod(1 - betas))
    betas[0] = 0.2
