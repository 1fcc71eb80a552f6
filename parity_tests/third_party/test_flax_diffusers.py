"""diffusers' Flax networks held to its PyTorch ones. The Flax U-Net differs in two places, and the tool names both."""

import types

import jax
import numpy as np
import pytest
import torch

from ddpm_jax import verify

diffusers = pytest.importorskip("diffusers")
if not hasattr(diffusers, "FlaxUNet2DConditionModel"):
    pytest.skip("this diffusers has no Flax networks; 0.32 has", allow_module_level=True)
pytestmark = pytest.mark.slow

RNG = np.random.default_rng(0)
SMALL = {"block_out_channels": (32, 64), "layers_per_block": 1}
BLOCKS = {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
NOISED = (RNG.standard_normal((2, 4, 8, 8)), np.array([3, 500]), RNG.standard_normal((2, 5, 16)))
ATTENTION = {
    r"(.*)\.query": r"\1.to_q",
    r"(.*)\.key": r"\1.to_k",
    r"(.*)\.value": r"\1.to_v",
    r"(.*)\.proj_attn": r"\1.to_out.0",
}


def unets():
    torch.manual_seed(0)
    options = {"sample_size": 8, "cross_attention_dim": 16, "attention_head_dim": 4, **SMALL, **BLOCKS}
    ours = diffusers.FlaxUNet2DConditionModel(**options)
    return (ours, {"params": ours.init_weights(jax.random.key(0))}), diffusers.UNet2DConditionModel(**options)


def autoencoders():
    torch.manual_seed(0)
    options = {
        "latent_channels": 4,
        "sample_size": 16,
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        **SMALL,
    }
    ours = diffusers.FlaxAutoencoderKL(**options)
    return (ours, {"params": ours.init_weights(jax.random.key(0))}), diffusers.AutoencoderKL(**options)


def mended(theirs):
    """PyTorch's U-Net with what Flax's has otherwise: the epsilon before the transformers, and the GELU within."""
    for part in theirs.modules():
        if type(part).__name__ == "Transformer2DModel":
            part.norm.eps = 1e-5
        if type(part).__name__ == "GEGLU":
            part.gelu = types.MethodType(lambda self, gate: torch.nn.functional.gelu(gate, approximate="tanh"), part)
    return theirs


def test_the_unet_as_it_comes():
    report = verify.compare(*unets(), NOISED, weights="carried")
    assert len(report.faults) == 8, report.table()
    for fault in report.faults:
        if fault.name.endswith(".norm"):
            assert fault.cause == "epsilon 1e-05 in JAX, 1e-06 in PyTorch"
        else:
            assert "ff.net" in fault.name and "tanh GELU" in fault.cause and "exact GELU" in fault.cause, fault


def test_the_unet_mended():
    ours, theirs = unets()
    report = verify.compare(ours, mended(theirs), NOISED, weights="carried")
    assert report.ok and not report.faults, report.table()
    assert report.coverage.compared > 160


def test_the_autoencoder():
    report = verify.compare(
        *autoencoders(), NOISED[0][:, :3].repeat(2, 2).repeat(2, 3), weights="carried", names=ATTENTION
    )
    assert report.ok and not report.faults, report.table()
    assert report.coverage.compared > 80


def test_a_stride_that_is_padded_at_both_sides_is_located():
    ours, theirs = autoencoders()
    down = theirs.encoder.down_blocks[0].downsamplers[0]
    down.padding, down.conv.padding = 1, (1, 1)
    images = RNG.standard_normal((2, 3, 16, 16))
    report = verify.compare(ours, theirs, images, weights="carried", names=ATTENTION)
    assert [fault.name for fault in report.faults] == ["encoder.down_blocks_0.downsamplers_0.conv"], report.table()
