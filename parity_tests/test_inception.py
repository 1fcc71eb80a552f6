"""The Inception-v3 of FID against its twin, and both against what torch-fidelity's network computes of the same weights.

The record holds the names and shapes of that network's state dict, which are those of the published file, its features and its
logits; it was computed in float64, and beyond the resize, which the record's image does not need.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden_records import assert_agrees, generator, record
from golden_records import weights as recorded_weights
from precisions import FLOAT32_SLOWLY
from tolerances import assert_close
from twins import compiled, normal, to_nchw, to_nhwc

from ddpm_jax import models, weights
from ddpm_jax.compilation import compiler_options
from ddpm_jax.evaluation import inception
from ddpm_torch_ref import inception as twin_inception

GAIN = 1.5
"""Of the record's convolutions: keeps 48 layers of ReLUs from forgetting the image."""


@pytest.fixture(scope="module")
def state():
    """Weights of the record, statistics included, by the published names."""
    drawn = recorded_weights(record("inception_f64"))
    return {name: GAIN * w if w.ndim == 4 else w for name, w in drawn.items()}


@pytest.fixture(scope="module")
def image():
    """uint8 (1, 139, 139, 3): the last maps are 3x3, so that averages at corners, edges and in the middle differ."""
    return generator(record("inception_f64"), "image").integers(0, 256, (1, 139, 139, 3)).astype(np.uint8)


def as_twin(state, dtype):
    twin = twin_inception.Inception().to(getattr(torch, dtype)).eval()
    twin.load_state_dict({name: torch.from_numpy(np.asarray(w)) for name, w in state.items()})  # strictly
    return twin


def as_model(state, dtype):
    model = inception.abstract()
    weights.load_torch(model, {name: w.astype(dtype) for name, w in state.items()})  # strictly
    return models.split(model)


@FLOAT32_SLOWLY
def test_features_and_logits(state, image, dtype):
    twin, (graphdef, variables) = as_twin(state, dtype), as_model(state, dtype)
    x = ((image.astype(dtype) - 128) / 128).astype(dtype)  # as the record's network does
    call = jax.jit(lambda variables, x: models.merge(graphdef, variables)(x), compiler_options=compiler_options())
    with torch.no_grad():
        pairs = zip(("features", "logits"), call(variables, x), twin(to_nchw(x)), strict=True)
    for name, ours, theirs in pairs:
        assert_close("output", ours, theirs, f"inception {name}")
        if dtype == "float64":
            recorded = record("inception_f64")[name]
            assert_agrees("call", theirs, recorded, f"the twin's {name}")
            assert_agrees("call", ours, recorded, name)


@pytest.mark.parametrize("sides", [(8, 8), (32, 32), (75, 299), (299, 299), (320, 512)])
def test_resize(sides, dtype):
    """Also to fewer pixels, where other conventions would smooth; float32 rounds the position among 512 pixels by 3e-5 of one."""
    x = normal(dtype, 2, *sides, 3)
    theirs = F.interpolate(to_nchw(x), (299, 299), mode="bilinear", align_corners=False)
    assert_close("layer", compiled(inception.resize)(jnp.asarray(x)), to_nhwc(theirs), f"resize from {sides}")


def test_from_pixels(state, monkeypatch):
    """Grey images of a few pixels, of which a batch is not full: all that stands between a sample and its features."""
    monkeypatch.setattr(inception, "BATCH", 2)
    images = np.random.default_rng(0).integers(0, 256, (3, 28, 28, 1)).astype(np.uint8)
    extractor = inception.Extractor(*as_model(state, "float32"), "of the record")
    twin = as_twin(state, "float32")
    with torch.no_grad():
        theirs, _ = twin(twin_inception.prepare(to_nchw(np.repeat(images, 3, axis=-1)).float()))
    assert_close("output", extractor(images), theirs, "inception features of pixels")
