"""jax-ml/bonsai's NNX models held to transformers' and diffusers' PyTorch ones. Two of them differ, and the tool names where."""

import numpy as np
import pytest
import torch
from flax import nnx

from ddpm_jax import verify

transformers = pytest.importorskip("transformers")
diffusers = pytest.importorskip("diffusers")
pytest.importorskip("bonsai.models.resnet.modeling", reason="bonsai's source is not on the path")
pytestmark = pytest.mark.slow

IMAGES = np.random.default_rng(0).standard_normal((2, 3, 32, 32))

RESNET = {
    "stem": "resnet.embedder",
    "stem.conv": "resnet.embedder.embedder.convolution",
    "stem.bn": "resnet.embedder.embedder.normalization",
    r"layer(\d)\.blocks\.(\d+)\.conv(\d)": r"resnet.encoder.stages.\1.layers.\2.layer.\3.convolution",
    r"layer(\d)\.blocks\.(\d+)\.bn(\d)": r"resnet.encoder.stages.\1.layers.\2.layer.\3.normalization",
    r"layer(\d)\.blocks\.(\d+)\.downsample": r"resnet.encoder.stages.\1.layers.\2.shortcut",
    r"layer(\d)\.blocks\.(\d+)\.downsample\.conv": r"resnet.encoder.stages.\1.layers.\2.shortcut.convolution",
    r"layer(\d)\.blocks\.(\d+)\.downsample\.bn": r"resnet.encoder.stages.\1.layers.\2.shortcut.normalization",
    r"layer(\d)(?:\.blocks)?": r"resnet.encoder.stages.\1.layers",
    "fc": "classifier.1",
}
CONVNEXT = {
    "embedding_layer.layers.0": "convnext.embeddings.patch_embeddings",
    "embedding_layer.layers.1": "convnext.embeddings.layernorm",
    "stages": "convnext.encoder.stages",
    r"stages\.(\d)\.downsample_layers": r"convnext.encoder.stages.\1.downsampling_layer",
    r"stages\.(\d)\.layers\.(\d+)\.norm": r"convnext.encoder.stages.\1.layers.\2.layernorm",
    r"stages\.(\d)\.layers\.(\d+)\.gamma": r"convnext.encoder.stages.\1.layers.\2.layer_scale_parameter",
    "norm": "convnext.layernorm",
    "head": "classifier",
}
VIT = {
    "pos_embeddings": "vit.embeddings",
    "pos_embeddings.pos_embeddings": "vit.embeddings.position_embeddings",
    "pos_embeddings.projection": "vit.embeddings.patch_embeddings.projection",
    "layers": "vit.encoder.layer",
    r"layers\.(\d+)\.attention\.(query|key|value)": r"vit.encoder.layer.\1.attention.attention.\2",
    r"layers\.(\d+)\.attention\.out": r"vit.encoder.layer.\1.attention.output.dense",
    r"layers\.(\d+)\.linear1": r"vit.encoder.layer.\1.intermediate.dense",
    r"layers\.(\d+)\.linear2": r"vit.encoder.layer.\1.output.dense",
    "ln": "vit.layernorm",
}
VAE = {
    r"(.*)\.to_out": r"\1.to_out.0",
    r"(.*)\.downsamplers": r"\1.downsamplers.0.conv",
    r"(.*)\.upsamplers": r"\1.upsamplers.0",
}


def resnets():
    from bonsai.models.resnet.modeling import ModelConfig, ResNet

    torch.manual_seed(0)
    theirs = transformers.ResNetForImageClassification(transformers.ResNetConfig(depths=[1, 1, 1, 1], num_labels=5))
    return ResNet(ModelConfig([1, 1, 1, 1], num_classes=5), rngs=nnx.Rngs(0)), theirs


def convnexts(epsilon=1e-12):
    from bonsai.models.convnext.modeling import ConvNeXt, ModelConfig

    torch.manual_seed(0)
    config = transformers.ConvNextConfig(
        hidden_sizes=[8, 16, 24, 32],
        depths=[1, 1, 2, 1],
        num_labels=5,
        layer_scale_init_value=0.5,
        layer_norm_eps=epsilon,
    )
    ours = ConvNeXt(ModelConfig((1, 1, 2, 1), (8, 16, 24, 32), 0.0, 5, layernorm_eps=epsilon), rngs=nnx.Rngs(0))
    return (lambda model, x: model(x, rngs=None), ours), transformers.ConvNextForImageClassification(config)


def vits(activation):
    from bonsai.models.vit.modeling import ModelConfig, ViTClassificationModel

    torch.manual_seed(0)
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = transformers.ViTConfig(image_size=32, patch_size=8, num_labels=5, hidden_act=activation, **size)
    ours = ViTClassificationModel(ModelConfig((32, 32), (8, 8), 3, 32, 0.0, 0.0, 4, 64, 1e-12, 2, 5), rngs=nnx.Rngs(0))
    return (lambda model, x: model(x, rngs=None), ours), transformers.ViTForImageClassification(config)


def vaes():
    from bonsai.models.vae.modeling import VAE as Ours
    from bonsai.models.vae.modeling import ModelConfig

    torch.manual_seed(0)
    theirs = diffusers.AutoencoderKL(
        block_out_channels=(32, 64),
        layers_per_block=2,
        latent_channels=4,
        norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )
    return Ours(ModelConfig((32, 64), 4, 8), rngs=nnx.Rngs(0)), theirs


def test_the_resnet():
    report = verify.compare(*resnets(), IMAGES, names=RESNET)
    assert report.ok and report.coverage.compared == 44, report.table()


def test_a_batch_norms_epsilon_is_located():
    ours, theirs = resnets()
    theirs.resnet.encoder.stages[1].layers[0].layer[1].normalization.eps = 1e-3
    report = verify.compare(ours, theirs, IMAGES, names=RESNET)
    assert [fault.name for fault in report.faults] == ["layer1.blocks.0.bn1"], report.table()
    assert report.faults[0].cause == "epsilon 1e-05 in JAX, 0.001 in PyTorch"


def test_the_vae():
    report = verify.compare(*vaes(), IMAGES[:, :, :16, :16], names=VAE)
    assert report.ok and report.coverage.compared == 103, report.table()


def test_a_strided_padding_is_located():
    ours, theirs = vaes()
    down = theirs.encoder.down_blocks[0].downsamplers[0]
    down.padding, down.conv.padding = 1, (1, 1)
    report = verify.compare(ours, theirs, IMAGES[:, :, :16, :16], names=VAE)
    assert [fault.name for fault in report.faults] == ["encoder.down_blocks.0.downsamplers"], report.table()
    assert "puts (0, 1) at either end in JAX" in report.faults[0].cause


def test_the_convnext_as_it_comes():
    """Its norms add 1e-12, as the configuration says; in PyTorch only the last does, the others 1e-6."""
    report = verify.compare(*convnexts(), IMAGES, names=CONVNEXT)
    assert {fault.cause for fault in report.faults} == {"epsilon 1e-12 in JAX, 1e-06 in PyTorch"}
    named = {fault.name for fault in report.faults}
    blocks = {"0.layers.0", "1.layers.0", "2.layers.0", "2.layers.1", "3.layers.0"}
    assert {"embedding_layer.layers.1", *(f"stages.{block}.norm" for block in blocks)} <= named, report.table()
    assert "norm" not in named


def test_the_convnext_with_one_epsilon():
    report = verify.compare(*convnexts(1e-6), IMAGES, names=CONVNEXT)
    assert report.ok and not report.faults, report.table()


def test_the_vit_as_it_comes():
    """Its GELU is the tanh form, PyTorch's the exact one."""
    report = verify.compare(*vits("gelu"), IMAGES, names=VIT)
    assert [fault.name for fault in report.faults] == ["layers.0.linear2", "layers.1.linear2"], report.table()
    assert all(fault.cause.startswith("tanh GELU in JAX, exact GELU in PyTorch") for fault in report.faults)


def test_the_vit_with_one_gelu():
    report = verify.compare(*vits("gelu_pytorch_tanh"), IMAGES, names=VIT)
    assert report.ok and not report.faults, report.table()
