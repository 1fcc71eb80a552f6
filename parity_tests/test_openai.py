"""Checkpoints of OpenAI's two libraries: against a restatement of their network, the twin always, ours in the widest cases."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from openai_layout import OpenAIUNet
from tolerances import assert_close
from twins import compiled, indices, normal, randomise, to_nchw, to_nhwc

from ddpm_jax import models, weights
from ddpm_jax.condition import Downsample
from ddpm_jax.errors import UserError
from ddpm_torch_ref import models as twin_models

IMPROVED = {"num_heads": 2}
ADM = {
    "use_scale_shift_norm": True,
    "resblock_updown": True,
    "num_classes": 5,
    "out_channels": 6,
    "num_head_channels": 4,
    "num_heads": 1,
}
CONFIGS = {
    "improved-diffusion": IMPROVED,
    "improved-diffusion, scale and shift": IMPROVED | {"use_scale_shift_norm": True, "num_res_blocks": 2},
    "three levels of odd widths": IMPROVED | {"channel_mult": (1, 3, 2), "attention_ds": (2, 4), "num_res_blocks": 2},
    "attention in the middle alone": IMPROVED | {"attention_ds": ()},
    "attention at every level": IMPROVED | {"attention_ds": (1, 2), "in_channels": 1, "out_channels": 2},
    "64 px": ADM | {"use_new_attention_order": True, "num_res_blocks": 3},
    "128 px: heads by number": ADM | {"num_head_channels": None, "num_heads": 2},
    "256 px": ADM | {"attention_ds": (2, 4), "channel_mult": (1, 1, 2)},
    "512 px: half the width first": ADM | {"channel_mult": (0.5, 1, 1), "model_channels": 16},
    "64 to 256 px": ADM | {"in_channels": 6, "num_head_channels": None, "num_heads": 2, "channel_mult": (1, 1, 2)},
    "128 to 512 px, variance not learned": ADM | {"in_channels": 6, "out_channels": 3},
    "grey, to a larger size": IMPROVED | {"in_channels": 2, "out_channels": 1},
    "lsun": ADM | {"num_classes": None, "num_res_blocks": 2},
    "without convolutions that resample": ADM | {"resblock_updown": False, "conv_resample": False},
    "without them, three levels": IMPROVED
    | {"conv_resample": False, "channel_mult": (1, 3, 2), "attention_ds": (2, 4), "num_res_blocks": 2},
    "residual blocks, whatever conv_resample says": ADM | {"conv_resample": False},
    "one level": ADM | {"channel_mult": (1,), "attention_ds": (1,)},
}
WITH_JAX = ("improved-diffusion", "64 to 256 px", "512 px: half the width first", "without them, three levels")
"""The maps are the same for the twin and for ours, whose tensors are its; these are proof of the network's options."""


def checkpoint(name, seed=0):
    options = CONFIGS[name]
    theirs = OpenAIUNet(**options).double().eval()
    randomise(theirs, seed)
    by_width = options.get("num_head_channels")
    told = {
        "image_size": 2 ** len(options.get("channel_mult", (1, 2))),
        "num_heads": None if by_width else options["num_heads"],
        "head_dim": by_width,
        "new_attention_order": options.get("use_new_attention_order", False),
    }
    return theirs, told


def read(theirs, told, **options):
    """The groups are 32 in every checkpoint; these networks are narrower."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weights.openai, "GROUPS", 4)
        return weights.from_openai(theirs.state_dict(), **told, **options)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if "three levels" in name else ()) for name in CONFIGS]
)
def test_checkpoints(name):
    theirs, told = checkpoint(name)
    config, tensors = read(theirs, told)
    twin = twin_models.create(config.network, **dataclasses.asdict(config)).double().eval()
    twin.load_state_dict({key: torch.from_numpy(array) for key, array in tensors.items()})
    size, channels = told["image_size"], config.channels
    x = normal("float64", 2, size, size, channels)
    t, tt = indices([3, 971])
    labels, tlabels = indices([4, 0]) if config.num_classes else (None, None)
    low_res = None
    if config.condition_channels:
        assert config.condition_channels == channels == CONFIGS[name]["in_channels"] // 2
        low_res = normal("float64", 2, size // 2, size // 2, channels, seed=1)
        x_t, x = x, np.concatenate([x, Downsample(2).raised(low_res)], axis=-1)
    with torch.no_grad():
        alone = (to_nchw(x), tt, tlabels) if low_res is None else (to_nchw(x_t), tt, tlabels, to_nchw(low_res))
        wanted = theirs(*alone)
        assert_close("output", twin(to_nchw(x), tt, tlabels), wanted, name)
    back = weights.to_openai(config, tensors, new_attention_order=told["new_attention_order"])
    assert back.keys() == theirs.state_dict().keys()
    for key, tensor in theirs.state_dict().items():
        np.testing.assert_array_equal(back[key], tensor.numpy(), key, strict=True)
    if name in WITH_JAX:
        model = models.abstract(config)
        weights.load_torch(model, tensors)
        graphdef, variables = models.split(model)
        ours = compiled(lambda v, x: models.apply(graphdef, v, x, t, labels)[0])(variables, jnp.asarray(x))
        assert_close("output", ours, to_nhwc(wanted), name)


def test_resampling_is_read_off_the_tensors():
    kinds = {name: read(*checkpoint(name))[0].resample for name in CONFIGS}
    fixed = {"without convolutions that resample", "without them, three levels"}
    assert {name for name, kind in kinds.items() if kind == "fixed"} == fixed
    assert kinds["residual blocks, whatever conv_resample says"] == kinds["64 px"] == "residual"


def test_the_order_of_heads_matters():
    theirs, told = checkpoint("64 px")
    right, wrong = (read(theirs, told | {"new_attention_order": new})[1] for new in (True, False))
    different = {key for key in right if (right[key] != wrong[key]).any()}
    assert different and all(".qkv." in key for key in different)


def test_scaled_times():
    theirs, told = checkpoint("improved-diffusion")
    config, tensors = read(theirs, told, time_scale=0.25)
    twin = twin_models.create(config.network, **dataclasses.asdict(config)).double().eval()
    twin.load_state_dict({key: torch.from_numpy(array) for key, array in tensors.items()})
    x = to_nchw(normal("float64", 2, 4, 4, 3))
    with torch.no_grad():
        t = torch.tensor([3, 3999])
        assert_close("output", twin(x, t), theirs(x, t / 4), "scaled times")
    model = models.abstract(config)
    weights.load_torch(model, tensors)
    graphdef, variables = models.split(model)
    forward = compiled(lambda v, x, t: models.apply(graphdef, v, x, t)[0])
    ours = forward(variables, jnp.asarray(to_nhwc(x)), jnp.asarray([3, 3999]))
    assert_close("output", ours, to_nhwc(twin(x, t)), "scaled times")


@pytest.mark.parametrize(
    ("change", "told", "message"),
    [
        (lambda state: state.pop("out.2.bias"), {}, r"missing: out.2.bias \(3,\)"),
        (lambda state: state.update(extra=torch.zeros(2)), {}, r"not of this network: extra \(2,\)"),
        (lambda state: state.pop("time_embed.0.weight"), {}, "time_embed.0.weight is missing"),
        (
            lambda state: [state.pop(f"input_blocks.2.0.op.{part}") for part in ("weight", "bias")],
            {},
            "no whole checkpoint.*input_blocks.2 are missing",
        ),
        (
            lambda state: state.update({"input_blocks.0.0.weight": torch.zeros(8, 4, 3, 3)}),
            {},
            "takes 4 channels and gives 3.*super-resolution",
        ),
        (lambda state: None, {"num_heads": None}, "pass num_heads or head_dim"),
        (lambda state: None, {"num_heads": 3}, "num_heads = 3 must divide"),
    ],
)
def test_refusals(change, told, message):
    theirs, known = checkpoint("improved-diffusion")
    state = dict(theirs.state_dict())
    change(state)
    theirs.state_dict = lambda: state
    with pytest.raises(UserError, match=message):
        read(theirs, known | told)
