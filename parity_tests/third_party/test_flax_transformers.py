"""transformers' Flax models held to its PyTorch ones, as a user would: random weights carried over, no name mapped."""

import numpy as np
import pytest
import torch

from ddpm_jax import verify
from ddpm_jax.weights import Rule

transformers = pytest.importorskip("transformers", "4.46")
if not hasattr(transformers, "FlaxBertModel"):
    pytest.skip("transformers 5 has no Flax models", allow_module_level=True)
pytestmark = pytest.mark.slow

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
RNG = np.random.default_rng(0)
MASK = np.ones((2, 7), int)
MASK[1, 5:] = 0
TEXT = {"input_ids": RNG.integers(0, 50, (2, 7)), "attention_mask": MASK}
IMAGES = {"pixel_values": RNG.standard_normal((2, 3, 16, 16))}


def bert(**options):
    config = transformers.BertConfig(vocab_size=50, **SMALL, **options)
    return transformers.FlaxBertModel(config), transformers.BertModel(config)


def vit(**options):
    config = transformers.ViTConfig(image_size=16, patch_size=4, **SMALL, **options)
    return transformers.FlaxViTModel(config), transformers.ViTModel(config)


def gpt2(**options):
    config = transformers.GPT2Config(vocab_size=50, n_positions=16, n_embd=32, n_layer=2, n_head=4, **options)
    return transformers.FlaxGPT2LMHeadModel(config), transformers.GPT2LMHeadModel(config)


def compared(ours, theirs, inputs, **options):
    """A Flax model is called as it is, with its parameters given."""
    side = (lambda params, **given: ours(**given, params=params), ours.params)
    return verify.compare(side, theirs, inputs, weights="carried", **options)


@pytest.mark.parametrize(
    ("make", "inputs", "layers", "gradients"), [(bert, TEXT, 41, 39), (vit, IMAGES, 40, 40), (gpt2, TEXT, 26, 28)]
)
def test_a_right_pair_agrees(make, inputs, layers, gradients):
    torch.manual_seed(0)
    report = compared(*make(), inputs)
    assert report.ok and not report.faults, report.table()
    assert report.coverage.compared == layers
    parameters = [row for row in report.rows if row.stage == "gradient" and not row.name.startswith("input ")]
    assert len(parameters) == gradients, report.table(every_row=True)


def test_an_epsilon_is_located():
    ours, theirs = bert()
    theirs.encoder.layer[1].output.LayerNorm.eps = 1e-5
    report = compared(ours, theirs, TEXT)
    assert [fault.name for fault in report.faults] == ["encoder.layer.1.output.LayerNorm"]
    assert report.faults[0].cause == "epsilon 1e-12 in JAX, 1e-05 in PyTorch"


def test_a_kernel_that_is_not_turned_is_located():
    ours, theirs = vit()
    where = "encoder.layer.0.attention.attention.query"
    report = compared(ours, theirs, IMAGES, rules={rf"{where}\.kernel": Rule(f"{where}.weight")})
    assert [fault.name for fault in report.faults] == [where], report.table()
    assert "transposed" in report.faults[0].cause


def test_another_gelu_is_located():
    ours, theirs = gpt2()
    theirs.transformer.h[1].mlp.act = torch.nn.GELU()
    report = compared(ours, theirs, TEXT)
    assert [fault.name for fault in report.faults] == ["transformer.h.1.mlp.c_proj"], report.table()
    assert report.faults[0].cause.startswith("tanh GELU in JAX, exact GELU in PyTorch")
