"""What accelerators are given of every preset, lowered on this host without their compilers: the layers' own mathematics."""

import dataclasses
import functools
import re

import pytest

from ddpm_jax import compile as compiling
from ddpm_jax import presets
from ddpm_jax.errors import UserError

pytestmark = pytest.mark.usefixtures("without_the_checker")  # shapes stand for arrays
PLATFORMS = ("tpu", "cuda")
LOOPS = {"imagenet-convnext": {"train": 8, "sample": 4}}
"""Loops beside the sampler's: attention over 50,176 pixels goes through its queries part by part, forward and back."""


SAME = {
    "mnist-convnext",
    "digits-flow",
    "digits-dit",
    "digits-edm",
    "digits-meanflow",
    "digits-averages",
    "digits-upscale",
    "images",
    "cifar10-flow",
    "disc-grid",
    "spiral-flow",
    "spiral-iadb",
    "mnist-strided",
    "mnist-strided-conditional",
}
"""Presets whose network, or a larger one of its kind, is another one's as well."""
PRESETS = [pytest.param(name, marks=[pytest.mark.slow] if name in SAME else []) for name in presets.RECIPES]


@functools.cache
def texts(name, what):
    """StableHLO by platform; training in bfloat16, sampling in float32."""
    preset = presets.preset(name)
    if what == "train":
        preset = dataclasses.replace(preset, train=dataclasses.replace(preset.train, dtype="bfloat16"))
    program = compiling.trace(preset, what)
    return {platform: program.lower(platform).as_text() for platform in PLATFORMS}


def convolutions(text):
    """The dtypes of each one's image and result."""
    found = re.findall(r"stablehlo\.convolution\(.*: \(tensor<\S*x(\w+)>, .*\) -> tensor<\S*x(\w+)>", text)
    assert len(found) == text.count("stablehlo.convolution(")
    return found


def products(text):
    """The dtypes of each one's factors."""
    found = re.findall(r"stablehlo\.dot_general .*: \(tensor<\S*x(\w+)>, tensor<\S*x(\w+)>\) ->", text)
    assert len(found) == text.count("stablehlo.dot_general")
    return found


def loops(text):
    return text.count("stablehlo.while")


@pytest.mark.parametrize("name", PRESETS)
def test_a_training_step_is_plain_and_in_bfloat16(name):
    """No form of the CPU's: none of its barriers, loops or platforms to choose from; every convolution in what was asked for."""
    for text in texts(name, "train").values():
        assert loops(text) == LOOPS.get(name, {}).get("train", 0)
        assert "optimization_barrier" not in text and "stablehlo.case" not in text
        assert set(convolutions(text)) <= {("bf16", "bf16")}
        assert len(convolutions(text)) > 5 or presets.preset(name).model.network in ("mlp", "dit")


@pytest.mark.parametrize("name", PRESETS)
def test_a_walk_is_one_loop(name):
    """Methods of two evaluations have one more, of both, in which the last step leaves the second out."""
    twice = presets.preset(name).sample.sampler.name in ("heun", "midpoint")
    for text in texts(name, "sample").values():
        assert loops(text) == 1 + twice + LOOPS.get(name, {}).get("sample", 0)
        assert "optimization_barrier" not in text and (twice or "stablehlo.case" not in text)
        assert set(convolutions(text)) <= {("f32", "f32")}


@pytest.mark.parametrize("name", ["cifar10-ddpm", "cifar10-strided"])
def test_an_update_has_two_gradients_for_each_convolution(name):
    """But for the image's, of the first; `unet` has 52 convolutions forward."""
    forward, updates = (
        {platform: len(convolutions(text)) for platform, text in texts(name, what).items()}
        for what in ("sample", "train")
    )
    assert forward["tpu"] == forward["cuda"] and updates["tpu"] == updates["cuda"] == 3 * forward["tpu"] - 1
    if name == "cifar10-ddpm":
        assert updates["tpu"] == 155


def test_a_transformer_is_products():
    """Seven of each block (qkv, two of attention, proj, two of the perceptron, modulation), five of the rest (patches, two of t,
    two of the last layer). In an update each has two gradients, but for that by the image and that by the sinusoids."""
    model = presets.preset("cifar10-dit").model
    forward = 7 * model.depth + 5
    for platform in PLATFORMS:
        walk, update = (products(texts("cifar10-dit", what)[platform]) for what in ("sample", "train"))
        assert walk == [("f32", "f32")] * forward
        assert update == [("bf16", "bf16")] * (3 * forward - 2)
        assert not convolutions(texts("cifar10-dit", "train")[platform])


def test_the_network_of_fid():
    """54 convolutions of its 94, in float32 throughout; the others are 1x1, and products."""
    program = compiling.trace(presets.preset("cifar10-ddpm"), "fid")
    for platform in PLATFORMS:
        text = program.lower(platform).as_text()
        assert convolutions(text) == [("f32", "f32")] * 54 and loops(text) == 0
        assert "HIGHEST" in text and "optimization_barrier" not in text


def test_what_cannot_be_traced():
    with pytest.raises(UserError, match="what must be one of train, sample, fid; got 'walk'"):
        compiling.trace(presets.preset("digits"), "walk")
    with pytest.raises(UserError, match="FID is of images; mlp makes points"):
        compiling.trace(presets.preset("spiral"), "fid")
