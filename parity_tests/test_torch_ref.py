"""The PyTorch twin, against closed forms and against diffusers' U-Net."""

from functools import partial
from math import cos, log, pi, sqrt

import numpy as np
import pytest
import torch
from torch import nn

from ddpm_torch_ref import models, processes, samplers, schedules, training

MAKERS = [schedules.linear, schedules.cosine, schedules.quadratic, schedules.sigmoid]


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def max_relative(got, wanted):
    return float(np.max(np.abs(np.asarray(got) - np.asarray(wanted))) / np.max(np.abs(np.asarray(wanted))))


# Schedules


def test_linear_ends():
    schedule = schedules.linear(1000)
    assert schedule.num_steps == 1000 and schedule.first == 0
    assert (schedule.timesteps == np.arange(1000)).all()
    assert schedule.betas[[0, 999]] == pytest.approx([1e-4, 0.02], rel=1e-15)
    assert schedule.betas[500] == pytest.approx(1e-4 + (0.02 - 1e-4) * 500 / 999, rel=1e-14)


def test_quadratic_and_sigmoid_ends():
    quadratic, sigmoid = schedules.quadratic(11), schedules.sigmoid(11)
    assert quadratic.betas[[0, 10]] == pytest.approx([1e-4, 0.02], rel=1e-14)
    assert quadratic.betas[5] == pytest.approx((0.01 / 2 + sqrt(0.02) / 2) ** 2, rel=1e-14)
    assert sigmoid.betas[5] == pytest.approx((1e-4 + 0.02) / 2, rel=1e-14)
    assert sigmoid.betas[10] == pytest.approx(1e-4 + (0.02 - 1e-4) / (1 + np.exp(-6)), rel=1e-14)


def test_cosine_is_the_squared_cosine_until_it_is_clipped():
    schedule = schedules.cosine(100)

    def f(t):
        return cos((t / 100 + 0.008) / 1.008 * pi / 2) ** 2

    for t in (0, 40, 98):
        assert schedule.alphas_cumprod[t] == pytest.approx(f(t + 1) / f(0), rel=1e-12)
    assert schedule.betas[99] == 0.999


@pytest.mark.parametrize("make", MAKERS)
def test_tables_agree_with_plain_loops(make):
    schedule = make(7)
    product = 1.0
    for t in range(7):
        before, product = product, product * (1 - schedule.betas[t])
        variance = schedule.betas[t] * (1 - before) / (1 - product)
        assert schedule.alphas_cumprod_prev[t] == pytest.approx(before, rel=1e-13)
        assert schedule.alphas_cumprod[t] == pytest.approx(product, rel=1e-13)
        assert schedule.posterior_variance[t] == pytest.approx(variance, rel=1e-12)
        assert schedule.posterior_log_variance_clipped[max(t, 1)] == pytest.approx(
            log(schedule.posterior_variance[max(t, 1)]), rel=1e-12
        )
        assert schedule.sqrt_alphas_cumprod[t] ** 2 == pytest.approx(product, rel=1e-13)
        assert schedule.sqrt_one_minus_alphas_cumprod[t] ** 2 == pytest.approx(1 - product, rel=1e-13)
        assert schedule.sqrt_recip_alphas[t] ** -2 == pytest.approx(1 - schedule.betas[t], rel=1e-13)
        assert schedule.sqrt_recip_alphas_cumprod[t] ** -2 == pytest.approx(product, rel=1e-13)
        assert schedule.sqrt_recipm1_alphas_cumprod[t] ** 2 == pytest.approx(1 / product - 1, rel=1e-12)
        assert schedule.snr[t] == pytest.approx(product / (1 - product), rel=1e-12)
    assert schedule.posterior_variance[0] == 0
    assert schedule.posterior_log_variance_clipped[0] == schedule.posterior_log_variance_clipped[1]
    with pytest.raises(ValueError, match="read-only"):
        schedule.alphas_cumprod[0] = 1


def test_one_step_and_a_table_that_starts_at_one():
    assert schedules.linear(1).posterior_log_variance_clipped[0] == pytest.approx(log(1e-4), rel=1e-14)
    schedule = schedules.Schedule(np.array([0.0, 0.1, 0.2]), first=1)
    assert schedule.num_steps == 2 and schedule.timesteps.tolist() == [1, 2]
    assert schedule.alphas_cumprod_prev[1:] == pytest.approx([1, 0.9])
    assert schedule.posterior_variance[1:] == pytest.approx([0, 0.2 * 0.1 / 0.28])
    assert schedule.posterior_log_variance_clipped[1] == schedule.posterior_log_variance_clipped[2]
    assert samplers.times(schedule, 2).tolist() == [2, 1, 0]


def test_linear_inclusive_starts_from_an_end_that_is_not_quite_clean():
    schedule = schedules.linear_inclusive(4, 0.1, 0.5)
    assert schedule.num_steps == 4 and schedule.timesteps.tolist() == [1, 2, 3, 4]
    assert schedule.betas == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
    assert schedule.alphas == pytest.approx([0.9, 0.8, 0.7, 0.6, 0.5])
    assert schedule.alphas_cumprod == pytest.approx([0.9, 0.72, 0.504, 0.3024, 0.1512])
    assert schedule.alphas_cumprod_prev == pytest.approx([1, 0.9, 0.72, 0.504, 0.3024])
    assert schedule.posterior_variance[1] == pytest.approx(0.2 * 0.1 / 0.28)
    assert schedule.posterior_log_variance_clipped[1] == pytest.approx(log(0.2 * 0.1 / 0.28))
    x_t, eps = normal(1, 1, 2, 2), normal(1, 1, 2, 2, seed=1)
    x_0 = (x_t - sqrt(0.28) * eps) / sqrt(0.72)
    step = samplers.ddim_step(schedule, x_t, eps, 1, 0, torch.zeros_like(x_t))
    assert max_relative(step, sqrt(0.9) * x_0 + sqrt(0.1) * eps) < 1e-14


def test_cosine_unclipped_reaches_pure_noise():
    schedule = schedules.cosine_unclipped(500)
    assert schedule.num_steps == 500 and schedule.first == 1
    assert schedule.alphas_cumprod[0] == 1 and schedule.posterior_variance[1] == 0
    f = [cos((t / 500 + 0.008) / 1.008 * pi / 2) ** 2 for t in range(501)]
    assert schedule.alphas_cumprod[1:500] == pytest.approx([f_t / f[0] for f_t in f[1:500]], rel=1e-12)
    assert schedule.betas[1:500] == pytest.approx([1 - f[t] / f[t - 1] for t in range(1, 500)], rel=1e-9)
    assert 0 < schedule.alphas_cumprod[500] < 1e-30
    assert all(np.isfinite(getattr(schedule, table)[1:]).all() for table in ("sqrt_recip_alphas", "snr"))
    with pytest.raises(ValueError, match=r"s must be at least 0; got -1"):
        schedules.cosine_unclipped(10, s=-1)
    with pytest.raises(ValueError, match=r"products must lie in \(0, 1\); products\[2\] = 1.5"):
        schedules.Schedule(np.array([0, 0.1, 0.1]), first=1, _products=np.array([1, 0.9, 1.5]))


# Processes


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_the_target_is_converted_back_to_the_pair(prediction):
    process = processes.GaussianDiffusion(schedules.linear(1000), prediction)
    x_0, noise, t = normal(4, 3, 2, 2), normal(4, 3, 2, 2, seed=1), torch.tensor([0, 10, 500, 999])
    x_t = process.add_noise(x_0, noise, t)
    abar = process.schedule.alphas_cumprod[500]
    assert max_relative(x_t[2], sqrt(abar) * x_0[2] + sqrt(1 - abar) * noise[2]) < 1e-14
    estimate = process.estimate(x_t, process.target(x_0, noise, t), t)
    assert max_relative(estimate.x_0, x_0) < 1e-12
    assert max_relative(estimate.eps, noise) < 1e-12


@pytest.mark.parametrize("make", [schedules.cosine, schedules.linear_inclusive])
@pytest.mark.parametrize("variance", ["beta", "posterior"])
def test_the_posterior_is_the_ancestral_step(variance, make):
    process = processes.GaussianDiffusion(make(20))
    x_0, eps = normal(1, 1, 3, 3), normal(1, 1, 3, 3, seed=1)
    for t in process.schedule.timesteps.tolist():
        times = torch.tensor([t])
        x_t = process.add_noise(x_0, eps, times)
        mean, spread = process.posterior(x_0, x_t, times, variance)
        for noise in (torch.zeros_like(x_t), torch.ones_like(x_t)):
            step = samplers.ancestral_step(process.schedule, x_t, eps, t, t - 1, noise, variance)
            assert max_relative(mean + spread.sqrt() * noise, step) < 1e-10


@pytest.mark.parametrize(("loss", "wanted"), [("mse", (0.25, 9.0)), ("l1", (0.5, 3.0)), ("huber", (0.125, 2.5))])
def test_losses(loss, wanted):
    process = processes.GaussianDiffusion(schedules.linear(10), loss=loss)
    noise, t = normal(2, 1, 4, 4), torch.tensor([3, 7])
    off = torch.tensor([0.5, -3.0], dtype=torch.float64).reshape(2, 1, 1, 1)
    got = process.loss_per_example(lambda x_t, t: noise + off, normal(2, 1, 4, 4, seed=1), noise, t)
    assert got.tolist() == pytest.approx(wanted, rel=1e-13)


def test_the_p2_weight():
    plain, weighted = (
        processes.GaussianDiffusion(schedules.linear(10, 0.1, 0.5), weighting=weighting, p2_gamma=1.5, p2_k=2.0)
        for weighting in ("none", "p2")
    )
    x_0, noise, t = normal(2, 1, 4, 4), normal(2, 1, 4, 4, seed=1), torch.tensor([0, 9])
    loss, got = (process.loss_per_example(lambda x_t, t: x_t, x_0, noise, t) for process in (plain, weighted))
    abar = plain.schedule.alphas_cumprod[[0, 9]]
    assert (got / loss).tolist() == pytest.approx((2 + abar / (1 - abar)) ** -1.5, rel=1e-12)
    for option in ({"p2_gamma": -1}, {"p2_k": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(option))} must be"):
            processes.GaussianDiffusion(schedules.linear(10), **option)


# Samplers


@pytest.mark.parametrize(
    "step",
    [
        samplers.ancestral_step,
        partial(samplers.ancestral_step, variance="posterior"),
        samplers.ddim_step,
        partial(samplers.ddim_step, eta=1.0),
    ],
)
def test_a_gaussian_is_recovered(step):
    """Data N(mean, std^2), each pixel by itself, with the exact eps of the marginal of x_t."""
    mean, std, num_steps, side = -0.7, 0.4, 1000, 128
    process = processes.GaussianDiffusion(schedules.linear(num_steps))
    abar = torch.from_numpy(process.schedule.alphas_cumprod.copy())

    def predict(x_t, t):
        a = abar[t].reshape(-1, 1, 1, 1)
        return (1 - a).sqrt() * (x_t - a.sqrt() * mean) / (a * std**2 + 1 - a)

    generator = torch.Generator().manual_seed(0)

    class Noises:
        def __getitem__(self, i):
            return torch.randn(1, 1, side, side, generator=generator, dtype=torch.float64)

    times = samplers.times(process.schedule, num_steps)
    x_0, states = samplers.sample(process, predict, normal(1, 1, side, side), times, step, Noises())
    assert len(states) == num_steps + 1
    # Six standard errors, and what 1,000 steps leave of the error of discretisation.
    assert float(x_0.mean()) == pytest.approx(mean, abs=6 * std / side + 2e-3)
    assert float(x_0.std()) == pytest.approx(std, rel=6 / (sqrt(2) * side) + 1e-2)


@pytest.mark.parametrize("step", [samplers.ancestral_step, partial(samplers.ddim_step, eta=0.5)])
def test_a_known_image_is_reached_exactly_in_few_steps(step):
    process = processes.GaussianDiffusion(schedules.linear(1000))
    image = normal(1, 1, 4, 4)
    times = samplers.times(process.schedule, 7)
    noises = normal(6, 1, 1, 4, 4, seed=2)

    def predict(x_t, t):
        return process.eps_given_x_0(x_t, image, t)

    x_0, _ = samplers.sample(process, predict, normal(1, 1, 4, 4, seed=1), times, step, noises)
    assert max_relative(x_0, image) < 1e-10
    x_0, _ = samplers.sample(process, predict, normal(1, 1, 4, 4, seed=1), times, step, noises, clip=0.5)
    assert max_relative(x_0, image.clamp(-0.5, 0.5)) < 1e-10


def test_ddim_with_eta_one_is_the_ancestral_step_with_the_posterior_variance():
    schedule = schedules.linear(1000)
    x_t, eps, noise = normal(2, 1, 3, 3), normal(2, 1, 3, 3, seed=1), normal(2, 1, 3, 3, seed=2)
    for t, s in [(999, 998), (999, 500), (500, 3), (1, 0), (0, -1), (10, -1)]:
        ddim = samplers.ddim_step(schedule, x_t, eps, t, s, noise, eta=1.0)
        ancestral = samplers.ancestral_step(schedule, x_t, eps, t, s, noise, variance="posterior")
        assert max_relative(ddim, ancestral) < 1e-9


def test_times():
    schedule = schedules.linear(1000)
    assert samplers.times(schedule, 1000).tolist() == list(range(999, -2, -1))
    assert samplers.times(schedule, 4).tolist() == [999, 749, 499, 249, -1]
    assert samplers.times(schedule, 1).tolist() == [999, -1]
    assert all((np.diff(samplers.times(schedule, n)) < 0).all() for n in range(1, 1001, 7))


def test_strided_times_and_steps():
    schedule = schedules.cosine_unclipped(10)
    assert samplers.strided_times(schedule, 3).tolist() == [7, 4, 1, 10]
    assert samplers.strided_times(schedule, 10).tolist() == [*range(10, 0, -1), 10]
    assert samplers.strided_times(schedule, 1).tolist() == [1, 1]
    with pytest.raises(ValueError, match=r"num_steps must lie in 1..10"):
        samplers.strided_times(schedule, 11)

    x_t, eps, noise = normal(1, 1, 2, 2), normal(1, 1, 2, 2, seed=1), normal(1, 1, 2, 2, seed=2)
    assert torch.equal(samplers.strided_step(schedule, x_t, eps, 1, 10, noise, eta=1.0), x_t)
    abar_t, abar_s = schedule.alphas_cumprod[[7, 4]]
    variance = (1 - abar_t / abar_s) * (1 - abar_s) / (1 - abar_t)
    mean = (x_t - variance * eps / sqrt(1 - abar_t)) / sqrt(1 - variance)
    step = samplers.strided_step(schedule, x_t, eps, 7, 4, noise, eta=0.3)
    assert max_relative(step, mean + 0.3 * sqrt(variance) * noise) < 1e-14
    with pytest.raises(ValueError, match="eta must be at least 0"):
        samplers.strided_step(schedule, x_t, eps, 7, 4, noise, eta=-0.1)


# Training


def test_learning_rate():
    assert [training.learning_rate(step, 2.0, 4) for step in (0, 1, 4, 100)] == [0, 0.5, 2, 2]
    assert training.learning_rate(0, 2.0, 0) == 2
    rates = [training.learning_rate(step, 2.0, 4, 12) for step in (2, 4, 6, 8, 12, 20)]
    assert rates == pytest.approx([1, 2, 1 + sqrt(0.5), 1, 0, 0], abs=1e-15)


def test_ema_decay_warms_up():
    assert [training.ema_decay(step, 0.999) for step in (0, 8, 90)] == pytest.approx([0.1, 0.5, 0.91])
    assert training.ema_decay(10**6, 0.999) == 0.999


class Scale(nn.Module):
    """Predicts w x_t, and counts its calls in a buffer."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))
        self.register_buffer("calls", torch.tensor(0))

    def forward(self, x_t, t, labels=None):
        self.calls += 1
        return self.w * x_t


@pytest.mark.parametrize(("grad_clip", "kept"), [(None, 1.0), (1e9, 1.0), (0.1, None)])
def test_train_step_by_hand(grad_clip, kept):
    process = processes.GaussianDiffusion(schedules.linear(10))
    state = training.TrainState.create(Scale(), lr=1.0)
    x_0, noise, t = normal(5, 1, 2, 2), normal(5, 1, 2, 2, seed=1), torch.tensor([0, 2, 4, 6, 9])
    x_t = process.add_noise(x_0, noise, t)
    w, average, m, v = 2.0, 2.0, 0.0, 0.0
    for k in range(3):
        metrics = training.train_step(state, process, x_0, noise, t, ema=0.2, grad_clip=grad_clip, lr=0.1)
        gradient = float((2 * (w * x_t - noise) * x_t).mean())
        assert metrics["loss"] == pytest.approx(float(((w * x_t - noise) ** 2).mean()), rel=1e-12)
        assert metrics["grad_norm"] == pytest.approx(abs(gradient), rel=1e-12)
        gradient *= kept or min(1, 0.1 / abs(gradient))
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        w -= 0.1 * (m / (1 - 0.9 ** (k + 1))) / (sqrt(v / (1 - 0.999 ** (k + 1))) + 1e-8)
        decay = min(0.2, (1 + k) / (10 + k))
        average = decay * average + (1 - decay) * w
        assert float(state.model.w.detach()) == pytest.approx(w, rel=1e-12)
        assert float(state.ema_model.w) == pytest.approx(average, rel=1e-12)
    assert state.step == 3 and int(state.ema_model.calls) == 3


# The U-Net


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


@pytest.mark.parametrize("resample", ["conv", "residual"])
@pytest.mark.parametrize("time_conditioning", ["add", "scale_shift"])
def test_unet_options(resample, time_conditioning):
    options = SMALL | {
        "attention_resolutions": (8, 4),
        "head_dim": 8,
        "num_classes": 3,
        "learn_variance": True,
    }
    model = models.create("unet", **options, resample=resample, time_conditioning=time_conditioning)
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
    state = training.TrainState.create(models.create("unet", **SMALL, num_classes=2), lr=2e-3)
    x_0, noise = normal(8, 3, 8, 8).float() * 0.1, normal(8, 3, 8, 8, seed=1).float()
    t, labels = torch.arange(8) * 12, torch.arange(8) % 2
    losses = [
        training.train_step(state, process, x_0, noise, t, labels, ema=0.9, grad_clip=1.0)["loss"] for _ in range(20)
    ]
    assert losses[-1] < 0.5 * losses[0]


# Errors


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: schedules.linear(0), r"num_steps must be at least 1; got 0"),
        (lambda: schedules.linear(10, beta_end=1.2), r"beta_end must lie in \(0, 1\); got 1.2"),
        (lambda: schedules.quadratic(10, beta_start=0.0), r"beta_start must lie in \(0, 1\); got 0.0"),
        (lambda: schedules.cosine(10, s=-1.0), r"s must be at least 0; got -1.0"),
        (lambda: schedules.cosine(10, max_beta=1.0), r"max_beta must lie in \(0, 1\); got 1.0"),
        (lambda: schedules.Schedule(np.array([0.1, 1.2])), r"betas\[1\] = 1.2"),
        (lambda: processes.GaussianDiffusion(schedules.linear(2), "epsilon"), r"eps, x0, v; got 'epsilon'"),
        (lambda: processes.GaussianDiffusion(schedules.linear(2), loss="l2"), r"mse, l1, huber, hybrid, vlb; got 'l2'"),
        (lambda: samplers.times(schedules.linear(10), 11), r"num_steps must lie in 1..10.*got 11"),
        (
            lambda: samplers.ddim_step(schedules.linear(2), normal(1), normal(1), 1, 0, normal(1), eta=2.0),
            r"eta must lie in \[0, 1\]; got 2.0",
        ),
        (
            lambda: samplers.ancestral_step(schedules.linear(2), normal(1), normal(1), 1, 0, normal(1), "small"),
            r"variance must be one of beta, posterior, learned; got 'small'",
        ),
        (lambda: training.learning_rate(0, 1.0, 5, 5), r"decay_steps must exceed warmup_steps = 5; got 5"),
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
