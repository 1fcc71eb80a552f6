"""The twin's U-Net against diffusers' and by hand."""

from math import sqrt

import pytest
import torch
from gaussian_data import max_relative, normal
from torch import nn

from ddpm_torch_ref import models, processes, schedules, training

SMALL = {"image_size": 8, "dim": 16, "dim_mults": (1, 2), "num_blocks": 1, "norm_groups": 4}


def randomised(model):
    """Every parameter drawn anew, so that the zero layers take part."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 1 / sqrt(max(1, parameter[0].numel()))
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


def diffusers_names(state):
    """Our names and joint qkv -> those of diffusers.UNet2DModel."""
    out = {}
    for name, value in state.items():
        for ours, theirs in [
            ("time_mlp.linear", "time_embedding.linear_"),
            ("time_proj", "time_emb_proj"),
            ("shortcut", "conv_shortcut"),
            ("norm_out", "conv_norm_out"),
            ("middle.block1", "mid_block.resnets.0"),
            ("middle.block2", "mid_block.resnets.1"),
            ("middle.attention", "mid_block.attentions.0"),
            ("blocks", "resnets"),
            ("downsample", "downsamplers.0"),
            ("upsample", "upsamplers.0"),
        ]:
            name = name.replace(ours, theirs) if theirs not in name else name
        for direction in ("down", "up"):
            if name.startswith(f"{direction}."):
                name = f"{direction}_blocks" + name.removeprefix(direction)
        if "attentions" in name:
            name = name.replace(".norm.", ".group_norm.").replace(".proj.", ".to_out.0.")
        if ".qkv." in name:
            for part, third in zip("qkv", value.chunk(3), strict=True):
                out[name.replace("qkv", f"to_{part}")] = third
        else:
            out[name] = value
    return out


def diffusers_unet(dim):
    """google/ddpm-cifar10-32's configuration, at another width."""
    diffusers = pytest.importorskip("diffusers")
    return diffusers.UNet2DModel(
        sample_size=32,
        block_out_channels=(dim, 2 * dim, 2 * dim, 2 * dim),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        norm_eps=1e-6,
        attention_head_dim=None,
        act_fn="silu",
    )


class Float64Sinusoid(nn.Module):
    """diffusers computes its own in float32, too coarse to compare with at 1e-10."""

    def forward(self, t):
        rows = [[float(time) / 10000 ** (i / 15) for i in range(16)] for time in t]
        angles = torch.tensor(rows, dtype=torch.float64)
        return torch.cat([angles.sin(), angles.cos()], dim=1)


def test_unet_is_the_ddpm_network_of_diffusers():
    reference = diffusers_unet(32).double().eval()
    ours = randomised(models.create("unet", dim=32).double()).eval()
    reference.load_state_dict(diffusers_names(ours.state_dict()))
    x, t = normal(2, 3, 32, 32), torch.tensor([0, 737])
    with torch.no_grad():
        exact_embedding = reference.time_proj
        reference.time_proj = Float64Sinusoid()
        wanted = reference(x, t).sample
        got = ours(x, t)
        assert max_relative(got, wanted) < 1e-10
        reference.time_proj = exact_embedding
        assert max_relative(got, reference(x, t).sample) < 1e-3


def test_the_cifar10_network_has_its_known_size():
    with torch.device("meta"):
        ours, reference = models.create("unet"), diffusers_unet(128)
    wanted = {name: value.shape for name, value in reference.state_dict().items()}
    assert sum(parameter.numel() for parameter in ours.parameters()) == 35_746_307
    assert {name: value.shape for name, value in diffusers_names(ours.state_dict()).items()} == wanted


def test_unet_starts_at_zero_within_xavier_bounds():
    torch.manual_seed(0)
    model = models.create("unet", **SMALL, num_classes=3)
    assert not model(torch.randn(2, 3, 8, 8), torch.tensor([0, 5]), torch.tensor([0, 2])).any()
    zero = ("bias", ".conv2.weight", ".proj.weight", "conv_out.weight")
    for name, parameter in model.named_parameters():
        if name.endswith(zero):
            assert not parameter.any(), name
        elif parameter.ndim > 1 and name != "class_embed.weight":
            fan_out, fan_in = parameter.shape[0], parameter[0].numel()
            fan_out = fan_in if "qkv" in name else fan_out * parameter[0, 0].numel()
            bound = sqrt(6 / (fan_in + fan_out))
            assert 0.9 * bound < float(parameter.detach().abs().max()) <= bound, name


@pytest.mark.parametrize("resample", ["conv", "residual", "fixed"])
@pytest.mark.parametrize("time_conditioning", ["add", "scale_shift"])
def test_unet_options(resample, time_conditioning):
    options = SMALL | {
        "attention_resolutions": (8, 4),
        "head_dim": 8,
        "num_classes": 3,
        "learn_variance": True,
    }
    name = "foreign_unet" if resample == "fixed" else "unet"
    model = models.create(name, **options, resample=resample, time_conditioning=time_conditioning)
    model = randomised(model.double()).eval()
    assert model.up[0].attentions[1].heads == 4 and model.up[1].attentions[0].heads == 2
    x, t, labels = normal(2, 3, 8, 8), torch.tensor([3, 3]), torch.tensor([0, 1])
    with torch.no_grad():
        out = model(x, t, labels)
        assert out.shape == (2, 6, 8, 8)
        alone = torch.cat([model(x[i : i + 1], t[i : i + 1], labels[i : i + 1]) for i in range(2)])
        assert max_relative(out, alone) < 1e-12
        assert max_relative(out, model(x, t, labels.flip(0))) > 1e-3
        assert max_relative(out, model(x, t + 1, labels)) > 1e-3


def test_residual_block_with_scale_shift_and_resampling_by_hand():
    block = models.layers.ResBlock(4, 4, 6, norm_groups=2, dropout=0.0, scale_shift=True, resample="down").double()
    randomised(block)
    x, emb = normal(2, 4, 6, 6), normal(2, 6, seed=1)

    def silu(h):
        return h / (1 + torch.exp(-h))

    def norm(h, layer):
        groups = h.reshape(2, 2, -1)
        spread = groups.var(2, keepdim=True, unbiased=False)
        h = ((groups - groups.mean(2, keepdim=True)) / (spread + 1e-6).sqrt()).reshape(h.shape)
        return h * layer.weight[:, None, None] + layer.bias[:, None, None]

    def halve(h):
        return (h[..., ::2, ::2] + h[..., 1::2, ::2] + h[..., ::2, 1::2] + h[..., 1::2, 1::2]) / 4

    with torch.no_grad():
        e = (silu(emb) @ block.time_proj.weight.T + block.time_proj.bias)[:, :, None, None]
        h = norm(block.conv1(halve(silu(norm(x, block.norm1)))), block.norm2) * (1 + e[:, :4]) + e[:, 4:]
        assert max_relative(block(x, emb), halve(x) + block.conv2(silu(h))) < 1e-12
        up = models.layers.resample_map(halve(x), "up")
        assert (up[..., ::2, ::2] == halve(x)).all() and (up[..., 1::2, 1::2] == halve(x)).all()


def test_attention_heads_by_hand():
    attention = randomised(models.layers.Attention(8, heads=2, norm_groups=2).double())
    x = normal(1, 8, 2, 3)
    with torch.no_grad():
        tokens = attention.norm(x).reshape(8, 6).T
        q, k, v = (tokens @ attention.qkv.weight[i : i + 8].T + attention.qkv.bias[i : i + 8] for i in (0, 8, 16))
        heads = []
        for part in (slice(0, 4), slice(4, 8)):
            scores = torch.exp(q[:, part] @ k[:, part].T / 2)
            heads.append(scores / scores.sum(1, keepdim=True) @ v[:, part])
        wanted = torch.cat(heads, 1) @ attention.proj.weight.T + attention.proj.bias
        assert max_relative(attention(x), x + wanted.T.reshape(1, 8, 2, 3)) < 1e-12


def test_the_unet_trains():
    torch.manual_seed(0)
    process = processes.GaussianDiffusion(schedules.linear(100), prediction="v")
    model = models.create("unet", **SMALL, num_classes=2)
    state = training.create_state(model, torch.optim.Adam(model.parameters(), lr=2e-3))
    update = training.Update(process, ema=0.9, grad_clip=1.0)
    x_0, noise = normal(8, 3, 8, 8).float() * 0.1, normal(8, 3, 8, 8, seed=1).float()
    t, labels = torch.arange(8) * 12, torch.arange(8) % 2
    examples = training.Examples(x_0, noise, t, labels)
    losses = [update.with_draws(state, examples)[1]["loss"] for _ in range(20)]
    assert losses[-1] < 0.5 * losses[0]


# Errors


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: models.create("u_net"), r"name must be one of annotated_unet, .*, unet; got 'u_net'"),
        (lambda: models.create("unet", dims=3), r"unet has no option dims; its options are image_size"),
        (lambda: models.create("unet", image_size=30), r"image_size must be a multiple of 8.*got 30"),
        (lambda: models.create("unet", dim=48), r"norm_groups must divide every width.*48.*got 32"),
        (lambda: models.create("unet", num_heads=3), r"num_heads must divide every width.*got 3"),
        (lambda: models.create("unet", head_dim=96), r"head_dim must divide every width.*got 96"),
        (lambda: models.create("unet", dim=5, norm_groups=5), r"dim must be even.*got 5"),
        (lambda: models.create("unet", dim_mults=()), r"dim_mults must be one or more"),
        (lambda: models.create("unet", num_blocks=0), r"num_blocks must be at least 1; got 0"),
        (lambda: models.create("unet", num_classes=0), r"num_classes must be at least 1; got 0"),
        (lambda: models.create("unet", dropout=1.0), r"dropout must lie in \[0, 1\); got 1.0"),
        (lambda: models.create("unet", time_conditioning="film"), r"add, scale_shift; got 'film'"),
        (lambda: models.create("unet", resample="pool"), r"conv, residual; got 'pool'"),
    ],
)
def test_errors_name_the_argument_its_value_and_what_is_allowed(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_labels_are_required_if_and_only_if_there_are_classes():
    x, t, labels = torch.zeros(1, 3, 8, 8), torch.tensor([0]), torch.tensor([0])
    with pytest.raises(ValueError, match="labels are required"):
        models.create("unet", **SMALL, num_classes=2)(x, t)
    with pytest.raises(ValueError, match="labels must be None"):
        models.create("unet", **SMALL)(x, t, labels)
