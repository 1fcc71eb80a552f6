"""The U-Net: outputs, and gradients with respect to the image and to every parameter by its name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import assert_close, relative_error
from twins import SMALL, compiled, forward_and_back, indices, make_pair, normal, to_nchw, to_nhwc

from ddpm_jax import models, weights
from ddpm_jax.models import layers
from ddpm_torch_ref.models import layers as twin_layers

CONFIGS = {
    "cifar10 at a quarter of its width": {"dim": 32, "norm_groups": 16},
    "small": SMALL,
    "attention at every size": SMALL | {"attention_resolutions": (8, 4), "num_heads": 2},
    "no attention but in the middle": SMALL | {"attention_resolutions": ()},
    "head_dim": SMALL | {"attention_resolutions": (8, 4), "head_dim": 4},
    "scale_shift": SMALL | {"time_conditioning": "scale_shift"},
    "residual": SMALL | {"resample": "residual"},
    "fixed": SMALL | {"resample": "fixed"},
    "classes": SMALL | {"num_classes": 5},
    "learn_variance": SMALL | {"learn_variance": True, "channels": 1},
    "widths and odd sizes": SMALL | {"image_size": 12, "dim_mults": (1, 3, 2), "attention_resolutions": (6, 3)},
    "one level, three blocks": SMALL | {"dim_mults": (2,), "num_blocks": 3, "attention_resolutions": (8,)},
    "adm": SMALL
    | {
        "time_conditioning": "scale_shift",
        "resample": "residual",
        "attention_resolutions": (4,),
        "head_dim": 8,
        "num_classes": 3,
        "learn_variance": True,
        "num_blocks": 2,
    },
}


QUICK = {"small", "scale_shift", "residual", "fixed", "classes", "learn_variance", "adm"}
QUICK_IN_FLOAT32 = {"small"}
"""The others are slow; those in float64 have the sharper tolerance."""


@pytest.mark.parametrize(
    ("dtype", "config"),
    [
        pytest.param(dtype, name, marks=() if name in quick else pytest.mark.slow)
        for dtype, quick in (("float64", QUICK), ("float32", QUICK_IN_FLOAT32))
        for name in CONFIGS
    ],
    indirect=["dtype"],
    scope="module",
)
def test_outputs_and_gradients(pair, dtype, config):
    options = CONFIGS[config]
    model, twin = pair("foreign_unet" if options.get("resample") == "fixed" else "unet", dtype, **options)
    size, channels = options.get("image_size", 32), options.get("channels", 3)
    x = normal(dtype, 2, size, size, channels)
    t, tt = indices([3, 971])
    classes = options.get("num_classes")
    labels, tlabels = indices([classes - 1, 0]) if classes else (None, None)
    pull = normal(dtype, 2, size, size, channels * (2 if options.get("learn_variance") else 1), seed=1)

    output, grads, x_grad = forward_and_back(model, x, t, labels, pull)

    tx = to_nchw(x).requires_grad_()
    toutput = twin(tx, tt, tlabels)
    toutput.backward(to_nchw(pull))
    assert_close("output", output, to_nhwc(toutput), config)
    assert_close("gradient", x_grad, to_nhwc(tx.grad), f"{config}: x_t")
    ours, reference = weights.to_torch(model, {"params": grads}), dict(twin.named_parameters())
    assert ours.keys() == reference.keys()
    for name, parameter in reference.items():
        assert parameter.grad.any(), f"{name} plays no part: this comparison says nothing of it"
        assert_close("gradient", ours[name], parameter.grad, f"{config}: {name}")


@settings(max_examples=3, deadline=None)
@given(batch=st.integers(1, 4), first=st.integers(0, 5000), seed=st.integers(0, 99))
def test_any_batch_and_times(batch, first, seed):
    model, twin = make_pair("unet", "float64", **SMALL, seed=seed)
    graphdef, variables = models.split(model)
    x = normal("float64", batch, 8, 8, 3, seed=seed)
    t, tt = indices([(first + 977 * i) % 5001 for i in range(batch)])
    output, _ = compiled(lambda v, x, t: models.apply(graphdef, v, x, t))(variables, jnp.asarray(x), t)
    assert_close("output", output, to_nhwc(twin(to_nchw(x), tt)), "any batch")


@settings(max_examples=20, deadline=None)
@given(t=st.lists(st.integers(0, 100_000), min_size=1, max_size=4), half=st.integers(2, 64))
def test_time_embedding(t, half):
    ours, theirs = indices(t)
    embedding = layers.timestep_embedding(ours, 2 * half, jnp.dtype("float64"))
    assert_close("output", embedding, twin_layers.timestep_embedding(theirs, 2 * half, torch.float64), "embedding")


def test_dropout_changes_the_output_only_while_training(pair):
    model, twin = pair("unet", "float64", **SMALL, dropout=0.5)
    x = normal("float64", 2, 8, 8, 3)
    t, tt = indices([3, 971])

    def ours(training):
        graphdef, variables = models.split(model, training=training)
        forward = compiled(lambda v, x, key: models.apply(graphdef, v, x, t, key=key)[0])
        return np.asarray(forward(variables, jnp.asarray(x), jax.random.key(0)))

    def theirs(training):
        torch.manual_seed(0)
        with torch.no_grad():
            return to_nhwc(twin.train(training)(to_nchw(x), tt))

    assert_close("output", ours(False), theirs(False), "with dropout, evaluating")
    assert relative_error(ours(True), ours(False)) > 1e-2
    assert relative_error(theirs(True), theirs(False)) > 1e-2
