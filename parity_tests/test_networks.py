"""Every network against its twin: outputs, layers, gradients by input and by parameter, running statistics."""

import copy
import dataclasses
import inspect

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import WORST
from twins import make_pair

from ddpm_jax import models, verify
from ddpm_jax.verify.kinks import relu_margin
from ddpm_jax.verify.stages import SMALL
from ddpm_jax.weights import layout
from ddpm_torch_ref.models import MODELS

BOTH, NO_LABELS, NEITHER = (True, True), (True, False), (False, False)
"""Which of t and labels a network is called with."""

CASES = {
    # name: (network, options, what it is called with, image size)
    "unet": ("unet", SMALL["unet"] | {"dim": 8, "norm_groups": 4}, NO_LABELS, 16),
    "foreign_unet": ("foreign_unet", SMALL["foreign_unet"], NO_LABELS, 16),
    "convnext_unet": ("convnext_unet", SMALL["convnext_unet"] | {"expansion": 2}, BOTH, 16),
    "convnext_unet, no class": ("convnext_unet", SMALL["convnext_unet"] | {"expansion": 1}, NO_LABELS, 16),
    "convnext_unet, no time": ("convnext_unet", SMALL["convnext_unet"] | {"expansion": 1}, NEITHER, 16),
    "convnext_unet_224": ("convnext_unet_224", {"image_size": 32, "num_classes": 5, "expansion": 1}, BOTH, 32),
    "tiny_unet": ("tiny_unet", {"image_size": 16}, NO_LABELS, 16),
    "tiny_unet, sinusoidal": ("tiny_unet", {"image_size": 8, "timestep_table": "sinusoidal"}, NO_LABELS, 8),
    "double_conv_unet": ("double_conv_unet", {"dim": 4}, NO_LABELS, 32),
    "double_conv_unet, odd": ("double_conv_unet", {"dim": 4, "timestep_table": "sinusoidal"}, NO_LABELS, 38),
    "annotated_unet": ("annotated_unet", {"dim": 8, "image_size": 8, "dim_mults": (1, 2)}, NO_LABELS, 8),
    "annotated_unet, deep": ("annotated_unet", {"dim": 16, "image_size": 16, "dim_mults": (1, 2, 4)}, NO_LABELS, 16),
    "annotated_unet, ancestor": (
        "annotated_unet",
        {"dim": 8, "image_size": 8, "dim_mults": (1, 2), "gelu": "exact", "conv_bias": True},
        NO_LABELS,
        8,
    ),
    "annotated_unet, resnet": (
        "annotated_unet",
        {"dim": 16, "image_size": 8, "dim_mults": (1, 2), "block": "resnet"},
        NO_LABELS,
        8,
    ),
    "rms_unet": ("rms_unet", SMALL["rms_unet"], NO_LABELS, 8),
    "dit": ("dit", SMALL["dit"] | {"num_classes": 5}, BOTH, 8),
    "dit, learned variance": (
        "dit",
        SMALL["dit"] | {"learn_variance": True, "mlp_ratio": 1.7, "channels": 1},
        NO_LABELS,
        8,
    ),
    "dit, long skips": ("dit", SMALL["dit"] | {"long_skips": True, "patch_size": 4, "depth": 5}, NO_LABELS, 8),
    "edm_unet": ("edm_unet", SMALL["edm_unet"], NO_LABELS, 8),
    "edm_unet, NCSN++ with classes": (
        "edm_unet",
        SMALL["edm_unet"] | {"embedding": "fourier", "resample": "fir", "residual_input": True, "num_classes": 3},
        BOTH,
        8,
    ),
    "mlp": ("mlp", {}, NO_LABELS, None),
    "conv_net": ("conv_net", {"dim": 16}, NEITHER, 16),
    "strided_unet": ("strided_unet", {}, NEITHER, 16),
    "strided_unet_conditional": ("strided_unet_conditional", {}, BOTH, 16),
}


def inputs(config, called_with, size, times, seed=0):
    """x_t, t and labels in PyTorch's order of axes."""
    rng = np.random.default_rng(seed)
    shape = (config.data_dim,) if size is None else (config.channels, size, size)
    has_t, has_labels = called_with
    t = np.array(times) if has_t else None
    labels = np.arange(len(times)) % config.num_classes if has_labels else None
    return rng.standard_normal((len(times), *shape)), t, labels


def away_from_kinks(twin, candidates):
    """The candidate whose ReLUs' inputs keep the largest distance from zero, where two sides may switch differently."""
    exact = copy.deepcopy(twin).double()

    def margin(candidate):
        tensors = [None if x is None else torch.as_tensor(x) for x in candidate]
        return min(relu_margin(exact, tensors, training=training) for training in (False, True))

    found = margin(candidates[0])
    return candidates[0] if found == float("inf") else max(candidates, key=margin)


def assert_agreement(report, dtype):
    for stage, row in report.worst().items():
        WORST[stage, dtype] = max(WORST.get((stage, dtype), (0.0, "")), (row.error, f"{report.title}: {row.name}"))
    assert report.ok, report.table()


@pytest.mark.parametrize("name", MODELS)
def test_both_sides_have_the_same_options(name):
    """Names and defaults: whatever a run's config.json says of its network, the twin can be made of."""
    ours = {option.name: option.default for option in dataclasses.fields(models.NETWORKS[name])}
    _, *theirs = inspect.signature(MODELS[name].__init__).parameters.values()
    assert ours == {option.name: option.default for option in theirs}


def test_every_network_is_here():
    assert {network for network, *_ in CASES.values()} == set(MODELS)


QUICK = ["mlp", "conv_net"]


def is_slow(case, dtype):
    """Other options of networks that are here without a comma, and in float32 all but the quick ones.

    Outputs of either are held to the originals' records besides, and those in float64 have the sharper tolerance.
    """
    # strided_unet_conditional is strided_unet and its classes
    return (
        "," in case
        or case in ("convnext_unet_224", "strided_unet", "foreign_unet")
        or (dtype == "float32" and case not in QUICK)
    )


@pytest.mark.parametrize(
    ("dtype", "case"),
    [
        pytest.param(dtype, case, marks=pytest.mark.slow if is_slow(case, dtype) else ())
        for dtype in ("float64", "float32")
        for case in CASES
    ],
    indirect=["dtype"],
    scope="module",
)
def test_all_that_it_computes(dtype, case):
    name, options, called_with, size = CASES[case]
    model, twin = make_pair(name, dtype, **options)
    normalised = any(entry.path[0] == "batch_stats" and entry.path[-1] != "freqs" for entry in layout(model))
    # random frequencies leave float32 no digits of timesteps: they are for ln(sigma) / 4
    times = [-1.2, 0.1, 0.9] if "embedding" in options else [3, 188, 94]
    given_inputs = away_from_kinks(twin, [inputs(model.config, called_with, size, times, i) for i in range(24)])
    for training in (False, True) if normalised else (False,):
        title = f"{case}, {'training' if training else 'evaluating'}"
        gradients = training or not normalised  # who needs gradients has statistics of the batch
        report = verify.compare(
            model, twin, given_inputs, dtype=dtype, training=training, gradients=gradients, title=title
        )
        stages = {"layer", "output"} | ({"gradient"} if gradients else set()) | ({"statistics"} if training else set())
        assert {row.stage for row in report.rows} == stages
        parameters = {key for key, parameter in twin.named_parameters()}
        found = {row.name for row in report.rows if row.stage == "gradient"}
        if gradients and (
            called_with == BOTH or not hasattr(model.config, "num_steps") or name in ("tiny_unet", "mlp")
        ):
            assert found - {"input 1"} == parameters | {"input 0"}
        assert_agreement(report, dtype)


@pytest.mark.parametrize("name", ["mlp", "conv_net", pytest.param("tiny_unet", marks=pytest.mark.slow)])
@settings(max_examples=2, deadline=None)
@given(
    times=st.lists(st.integers(0, 999), min_size=1, max_size=4),
    size=st.sampled_from([8, 16, 24]),
    seed=st.integers(0, 99),
)
def test_any_batch_times_and_size(name, times, size, seed):
    options = {
        "mlp": {"dim": 16, "data_dim": size},
        "conv_net": {"dim": 5},
        "tiny_unet": {"image_size": size, "dim": 4, "time_dim": 10},
    }
    model, twin = make_pair(name, "float64", seed=seed, **options[name])
    given_inputs = inputs(model.config, NO_LABELS, None if name == "mlp" else size, times, seed)
    gradients = name != "tiny_unet"
    assert_agreement(verify.compare(model, twin, given_inputs, gradients=gradients, title=f"any {name}"), "float64")
