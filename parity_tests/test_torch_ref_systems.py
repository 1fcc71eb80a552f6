"""The twin's networks of the five systems: what the golden records leave untold."""

import numpy as np
import pytest
import torch

from ddpm_torch_ref import models
from ddpm_torch_ref.models.annotated_unet import ChannelNorm, LinearAttention
from ddpm_torch_ref.models.timesteps import convnext_table, timestep_table

SMALL = {
    "convnext_unet": {"image_size": 16},
    "convnext_unet_224": {"image_size": 32, "num_classes": 3},
    "tiny_unet": {"image_size": 16, "timestep_table": "sinusoidal", "dim": 5},
    "double_conv_unet": {"dim": 4, "timestep_table": "sinusoidal"},
    "annotated_unet": {"dim": 8, "block": "resnet", "gelu": "exact", "conv_bias": True},
    "conv_net": {"dim": 4},
    "strided_unet": {},
    "strided_unet_conditional": {"num_classes": 3},
}
SIZES = {"annotated_unet": 28, "double_conv_unet": 19, "convnext_unet_224": 32}


def images(name, model, batch=2):
    channels = {"convnext_unet": 1, "tiny_unet": 1, "annotated_unet": 1}.get(name, 3)
    size = SIZES.get(name, 16)
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("name", SMALL)
def test_every_option_and_the_conditions_that_a_network_takes(name):
    torch.manual_seed(0)
    model = models.create(name, **SMALL[name]).double().eval()
    x_t = images(name, model)
    t, labels = torch.tensor([3, 400]), torch.tensor([0, 2])
    takes_labels = "convnext" in name or "conditional" in name
    with torch.no_grad():
        output = model(x_t, t, labels if takes_labels else None)
        later = model(x_t, t - 2, labels if takes_labels else None)
    assert output.shape == x_t.shape and output.dtype == torch.float64
    assert torch.equal(output, later) == (name in ("conv_net", "strided_unet", "strided_unet_conditional"))
    if takes_labels:
        assert not torch.equal(output, model(x_t, t, 2 - labels))
    else:
        with pytest.raises(ValueError, match="labels must be None"):
            model(x_t, t, labels)
    assert not any("table" in key for key in model.state_dict())


def test_labels_are_required_where_the_network_needs_them():
    model = models.create("strided_unet_conditional")
    with pytest.raises(ValueError, match="labels are required"):
        model(torch.zeros(1, 3, 16, 16))


@pytest.mark.parametrize("name", ["convnext_unet", "tiny_unet"])
def test_the_timestep_table_keeps_double_precision(name):
    model = models.create(name)
    assert model.time_table.values.dtype == torch.float64
    assert model.time_table(torch.tensor([7]), torch.float32).dtype == torch.float32


def test_timestep_tables():
    original, sinusoidal, shifted = (
        timestep_table("original", 8, 4),
        timestep_table("sinusoidal", 8, 4),
        convnext_table(8, 4),
    )
    angles = np.array([[i / 10000 ** (2 * j / 4) for j in range(4)] for i in range(8)])
    assert original[6] == pytest.approx(np.sin(angles[6]), rel=1e-14)
    assert original[3] == pytest.approx(np.cos(np.sin(angles[6])), rel=1e-14)  # 1 - 3 = 6 mod 8
    assert original[1] == pytest.approx(np.ones(4))
    assert sinusoidal[5] == pytest.approx([np.sin(5), np.cos(5), np.sin(0.05), np.cos(0.05)], rel=1e-14)
    assert shifted.shape == (9, 4)
    assert shifted[4] == pytest.approx([np.sin(0.05), np.cos(0.05), np.sin(5e-4), np.cos(5e-4)], rel=1e-12)


def test_linear_attention_by_plain_sums():
    torch.manual_seed(0)
    attention = LinearAttention(3).double()
    q, k, v = torch.randn(3, 1, 4, 32, 6, dtype=torch.float64)
    got = attention.mix(q, k, v)[0, 2]
    for e, n in [(0, 0), (5, 3), (31, 5)]:
        wanted = 0.0
        for d in range(32):
            share = [k[0, 2, d, m].exp() / k[0, 2, d].exp().sum() for m in range(6)]
            context = sum(share[m] * v[0, 2, e, m] / 6 for m in range(6))
            wanted += q[0, 2, d, n].exp() / q[0, 2, :, n].exp().sum() * 32**-0.5 * context
        assert float(got[e, n]) == pytest.approx(float(wanted), rel=1e-12)


def test_channel_norm():
    norm = ChannelNorm(5).double()
    x = torch.randn(2, 5, 3, 4, dtype=torch.float64)
    torch.nn.init.uniform_(norm.weight, 1, 2)
    centred = x - x.mean(1, keepdim=True)
    wanted = centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt() * norm.weight[:, None, None]
    assert torch.allclose(norm(x), wanted, rtol=1e-12)


def test_biases_of_the_annotated_unet():
    def biased(**options):
        model = models.create("annotated_unet", **options)
        convs = (torch.nn.Conv2d, torch.nn.ConvTranspose2d)
        return {k for k, m in model.named_modules() if isinstance(m, convs) and m.bias is not None}, model

    few, _ = biased()
    assert few == {
        "conv_in",
        *(f"{level}.attention.proj" for level in ("down.0", "down.1", "down.2", "middle", "up.0", "up.1")),
    }
    many, model = biased(conv_bias=True)
    convs = {k for k, m in model.named_modules() if isinstance(m, torch.nn.Conv2d | torch.nn.ConvTranspose2d)}
    assert {k for k in convs - many} == {k for k in convs if k.endswith("qkv")}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("convnext_unet", {"image_size": 32}, r"image_size must come back from the strides \(2, 2, 3\).*got 32"),
        ("convnext_unet", {"num_classes": 0}, "num_classes must be at least 1; got 0"),
        (
            "convnext_unet_224",
            {"image_size": 28},
            r"image_size must come back from the strides \(2, 2, 2, 2, 2\).*got 28",
        ),
        ("tiny_unet", {"image_size": 28}, "image_size must be a multiple of 8.*got 28"),
        ("tiny_unet", {"dim": 0}, "dim must be at least 1; got 0"),
        ("tiny_unet", {"num_steps": 99}, "num_steps must be even.*got 99"),
        (
            "tiny_unet",
            {"timestep_table": "learned"},
            "timestep_table must be one of original, sinusoidal; got 'learned'",
        ),
        ("double_conv_unet", {"channels": 0}, "channels must be at least 1; got 0"),
        ("annotated_unet", {"image_size": 30}, "image_size must be a multiple of 4, for 3 levels; got 30"),
        ("annotated_unet", {"block": "resnet"}, "dim must be a multiple of 8.*got 28"),
        ("annotated_unet", {"block": "vit"}, "block must be one of convnext, resnet; got 'vit'"),
        ("annotated_unet", {"gelu": "relu"}, "gelu must be one of tanh, exact; got 'relu'"),
        ("annotated_unet", {"dim": 5}, "dim must be even and at least 4.*got 5"),
        ("annotated_unet", {"dim_mults": ()}, "dim_mults must be one or more"),
        ("mlp", {"num_steps": 1}, "num_steps must be at least 2.*got 1"),
        ("mlp", {"channels": 1}, "mlp has no option channels; its options are data_dim, dim, num_steps"),
        ("conv_net", {"dim": 0}, "dim must be at least 1; got 0"),
        (
            "strided_unet",
            {"dim": 3},
            "strided_unet has no option dim; its options are channels, image_size, num_classes",
        ),
        ("strided_unet", {"image_size": 28}, "image_size must be a multiple of 16, for four halvings; got 28"),
        ("double_conv_unet", {"image_size": 15}, "image_size must be at least 16, for four halvings; got 15"),
        ("strided_unet_conditional", {"num_classes": 0}, "num_classes must be at least 1; got 0"),
    ],
)
def test_errors_say_what_is_allowed(name, options, message):
    with pytest.raises(ValueError, match=message):
        models.create(name, **options)
