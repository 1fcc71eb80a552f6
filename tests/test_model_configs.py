"""The networks' options: their errors, their names, and their way through a run's config.json."""

import dataclasses
import json

import jax.numpy as jnp
import pytest
from flax import nnx

from ddpm_jax import models, presets
from ddpm_jax.errors import UserError

ODD = {
    # options that are all unlike the defaults
    "annotated_unet": {"dim": 16, "dim_mults": (1, 3), "gelu": "exact", "conv_bias": True, "block": "resnet"},
    "conv_net": {"channels": 1, "dim": 7},
    "convnext_unet": {"image_size": 16, "num_classes": 3, "num_steps": 50, "expansion": 1},
    "convnext_unet_224": {"image_size": 64, "num_classes": 3},
    "double_conv_unet": {"dim": 4, "image_size": 17, "timestep_table": "sinusoidal", "num_steps": 99},
    "dit": {"image_size": 12, "dim": 24, "patch_size": 3, "num_heads": 2, "mlp_ratio": 1.5, "long_skips": True},
    "edm_unet": {
        "dim": 8,
        "dim_mults": (1, 2),
        "num_blocks": 1,
        "attention_resolutions": (4,),
        "embedding": "fourier",
        "resample": "fir",
        "residual_input": True,
        "num_classes": 3,
        "augment_dim": 9,
    },
    "mlp": {"data_dim": 3, "dim": 5, "num_steps": 2},
    "rms_unet": {"dim": 8, "dim_mults": (1, 3), "init_dim": 6, "full_attention": (True, False), "dropout": 0.1},
    "strided_unet": {"channels": 1, "image_size": 48},
    "strided_unet_conditional": {"num_classes": 4},
    "tiny_unet": {"image_size": 8, "time_dim": 6, "dim": 2},
    "unet": {"dim": 32, "dim_mults": (1, 2), "head_dim": 8, "resample": "residual", "learn_variance": True},
    "foreign_unet": {
        "dim": 32,
        "head_dim": 8,
        "widths": (32, 64),
        "up_attention_resolutions": (32, 16),
        "halving": ("residual",),
        "doubling": ("residual",),
        "middle": "plain",
        "activation": "mish",
        "class_embedding": "sinusoidal",
    },
}


def test_every_network_has_its_module_and_its_system():
    assert set(ODD) == set(models.NETWORKS) == {*presets.SYSTEMS, "foreign_unet"}


@pytest.mark.parametrize("name", models.NETWORKS)
def test_name_and_config_are_one(name):
    config = models.configure(name, ODD[name])
    assert config.network == name
    assert models.configure(name, {}).network == name
    assert config == models.configure(name, dataclasses.asdict(config))
    assert hash(config) == hash(models.configure(name, ODD[name]))
    assert config != models.configure(name, {})
    for option, value in ODD[name].items():
        assert getattr(config, option) == value
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.channels = 2


@pytest.mark.parametrize("name", models.NETWORKS)
def test_json_round_trip(name):
    model = models.configure(name, ODD[name])
    process, sampling = presets.system_of(model)
    preset = presets.Preset(model=model, process=process, sample=sampling)
    text = presets.to_json(preset)
    assert json.loads(text)["model"]["network"] == name
    again = presets.from_json(text)
    assert again == preset
    assert type(again.model) is models.NETWORKS[name]
    assert presets.differences(preset, again) == {}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("convnext_unet", {"image_size": 30}, r"strides \(2, 2, 3\) and back unchanged, as 28 and 224 do; got 30"),
        ("convnext_unet", {"image_size": 24}, r"image_size must go through strides .*; got 24"),
        ("convnext_unet", {"image_size": 0}, "image_size must be at least 1; got 0"),
        ("convnext_unet", {"num_classes": 0}, "num_classes must be at least 1; got 0"),
        ("convnext_unet", {"expansion": 0}, "expansion must be at least 1; got 0"),
        ("convnext_unet_224", {"image_size": 28}, r"strides \(2, 2, 2, 2, 2\)"),
        ("tiny_unet", {"image_size": 28}, "image_size must be divisible by 8; got 28"),
        ("tiny_unet", {"time_dim": 0}, "time_dim must be at least 1; got 0"),
        ("tiny_unet", {"num_steps": 501}, "num_steps must be even with the original timestep table; got 501"),
        ("double_conv_unet", {"num_steps": 501}, "num_steps must be even with the original timestep table; got 501"),
        ("double_conv_unet", {"image_size": 15}, "image_size must be at least 16, to be halved four times; got 15"),
        ("double_conv_unet", {"dim": 0}, "dim must be at least 1; got 0"),
        ("annotated_unet", {"dim": 15}, "dim must be even and at least 4; got 15"),
        ("annotated_unet", {"dim": 2}, "dim must be even and at least 4; got 2"),
        ("annotated_unet", {"dim_mults": ()}, r"dim_mults must be positive integers.*got \(\)"),
        ("annotated_unet", {"dim_mults": (1, 0)}, r"dim_mults must be positive integers.*got \(1, 0\)"),
        ("annotated_unet", {"image_size": 30}, "image_size must be divisible by 4; got 30"),
        ("annotated_unet", {"block": "resnet"}, "dim must be divisible by 8, .*resnet.*; got 28"),
        ("edm_unet", {"dim": 7}, "dim must be even and at least 4; got 7"),
        ("edm_unet", {"dim": 66}, "every width must be a multiple of 4, .*dim = 66 gives"),
        ("edm_unet", {"image_size": 18}, "image_size must be divisible by 4, .*; got 18"),
        ("edm_unet", {"skip_scale": 0.0}, "skip_scale must be positive; got 0"),
        ("rms_unet", {"dim": 7}, "dim must be even and at least 4; got 7"),
        ("rms_unet", {"init_dim": 0}, "init_dim must be at least 1, or None; got 0"),
        ("rms_unet", {"full_attention": (True,)}, r"full_attention must say .* each of 4 levels; got \(True,\)"),
        ("rms_unet", {"image_size": 12}, "image_size must be divisible by 8; got 12"),
        ("rms_unet", {"dropout": 1.0}, r"dropout must lie in \[0, 1\); got 1"),
        ("dit", {"image_size": 30, "patch_size": 4}, "image_size must be divisible by patch_size = 4; got 30"),
        ("dit", {"num_heads": 5}, "num_heads must divide dim = 384; got 5"),
        ("dit", {"num_heads": 0}, "num_heads must be at least 1; got 0"),
        ("dit", {"patch_size": 0}, "patch_size must be at least 1; got 0"),
        ("dit", {"depth": 0}, "depth must be at least 1; got 0"),
        ("dit", {"dim": 30}, "dim must be divisible by 4; got 30"),
        ("dit", {"num_classes": 0}, "num_classes must be at least 1, or None; got 0"),
        ("dit", {"mlp_ratio": 0.001}, "mlp_ratio must be finite and at least 1 / dim = 0.00260417; got 0.001"),
        ("dit", {"mlp_ratio": float("inf")}, "mlp_ratio must be finite .*; got inf"),
        ("annotated_unet", {"expansion": 0}, "expansion must be at least 1; got 0"),
        ("mlp", {"num_steps": 1}, "num_steps must be at least 2; got 1"),
        ("mlp", {"data_dim": 0}, "data_dim must be at least 1; got 0"),
        ("conv_net", {"channels": 0}, "channels must be at least 1; got 0"),
        ("conv_net", {"dim": 0}, "dim must be at least 1; got 0"),
        ("strided_unet", {"image_size": 28}, "image_size must be divisible by 16; got 28"),
        ("strided_unet", {"num_classes": 0}, "num_classes must be at least 1; got 0"),
        ("strided_unet_conditional", {"num_classes": 0}, "num_classes must be at least 1; got 0"),
        ("foreign_unet", {"widths": ()}, r"widths must be positive integers, one for each level; got \(\)"),
        ("foreign_unet", {"widths": (32, 0)}, r"widths must be positive integers, one for each level; got \(32, 0\)"),
        ("foreign_unet", {"widths": (32, 48)}, "norm_groups must divide every width; got 32 for a width of 48"),
        ("foreign_unet", {"time_dim": 0}, "time_dim must be at least 1, or None; got 0"),
        ("foreign_unet", {"freq_shift": 2}, "freq_shift must be 0 or 1; got 2"),
        ("foreign_unet", {"time_scale": 0.0}, r"time_scale must be positive; got 0\.0"),
        (
            "foreign_unet",
            {"halving": ("conv",)},
            "halving must be one of conv, residual, fixed for each of 3 levels; got",
        ),
        (
            "foreign_unet",
            {"doubling": ("conv",) * 4},
            "doubling must be one of conv, residual, fixed for each of 3 levels; got",
        ),
        (
            "foreign_unet",
            {"middle_norm_groups": 48},
            "middle_norm_groups must divide the last width, 256, or be 0; got 48",
        ),
        ("unet", {"widths": (32, 64)}, "unet has no option 'widths'; it has image_size"),
        ("mlp", {"channels": 1}, "mlp has no option 'channels'; it has data_dim, dim, num_steps"),
        ("mlpp", {}, r"the network must be one of annotated_unet, .*, unet; got 'mlpp'"),
    ],
)
def test_errors(name, options, message):
    with pytest.raises(UserError, match=message):
        models.configure(name, options)


def test_runs_from_before_foreign_unet_had_options_of_its_own():
    """Their config.json has all of them under the name unet; those that are as they always were make a `unet`."""
    for options, network in (({"head_dim": 8}, "unet"), (ODD["foreign_unet"], "foreign_unet")):
        config = models.ForeignUNetConfig(**options)
        tree = json.loads(presets.to_json(presets.Preset(model=config)))
        tree["model"]["network"] = "unet"
        read = presets.from_json(json.dumps(tree)).model
        assert read == models.unet_of(**options) and read.network == network
        assert all(value == getattr(config, name) for name, value in vars(read).items())


def test_a_network_of_ones_own():
    """A config beside its module is all that it takes."""

    @dataclasses.dataclass(frozen=True)
    class ScaleConfig(models.ModelConfig, network="scale_for_a_test"):
        channels: int = 1
        image_size: int = 2

        def module(self, rngs):
            return Scale(self)

    class Scale(nnx.Module):
        def __init__(self, config):
            self.config = config
            self.factor = nnx.Param(jnp.full((), 2.0))

        def __call__(self, x_t, t, labels=None, *, rngs=None):
            return self.factor[...] * x_t

    try:
        model = models.create("scale_for_a_test", rngs=nnx.Rngs(0), channels=3)
        assert model(jnp.ones((1, 2, 2, 3)), jnp.zeros(1)).sum() == 24
        preset = presets.Preset(model=model.config)
        assert presets.from_json(presets.to_json(preset)).model == model.config and model.config.shape == (2, 2, 3)
    finally:
        del models.NETWORKS["scale_for_a_test"]
