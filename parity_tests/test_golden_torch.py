"""The PyTorch twin against the golden records: every number that the originals left."""

import numpy as np
import pytest
import torch
from golden_records import PRECISIONS, RGB, assert_agrees, convnext_weights, draw, generator, numbers, record, weights

from ddpm_jax.weights.originals import from_original
from ddpm_torch_ref import denoisers, models, processes, samplers, schedules, training
from ddpm_torch_ref.models.layers import timestep_embedding
from ddpm_torch_ref.models.timesteps import convnext_table, timestep_table

DTYPES = {"f64": torch.float64, "f32": torch.float32}


def tensor(rec, tag, shape, precision):
    return torch.from_numpy(draw(rec, tag, shape)).to(DTYPES[precision])


def draws(rec, tag, count, shape, precision, start=0):
    return [tensor(rec, f"{tag}/{i}", shape, precision) for i in range(start, start + count)]


def network(name, checkpoint, precision, **options):
    """The twin with the weights of a checkpoint under its author's names."""
    model = models.create(name, **options).to(DTYPES[precision])
    model.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in from_original(name, checkpoint).items()})
    return model.eval()


def stand_in(x_t, t):
    """The records' own network of trajectories."""
    return x_t * (0.6 + 0.3 * torch.cos(t.to(x_t.dtype) / 7)).reshape(-1, 1, 1, 1)


# Networks


@PRECISIONS
@pytest.mark.parametrize(
    "name", ["tiny_unet", "double_conv_unet", "conv_net", "strided_unet", "strided_unet_conditional"]
)
def test_network(name, precision):
    rec = record(f"{name}_{precision}")
    model = network(name, weights(rec), precision)
    x_t = tensor(rec, "x", rec["eps_eval"].shape, precision)
    t = torch.from_numpy(rec["t"]) if "t" in rec else None
    labels = torch.from_numpy(rec["classes"]) if name == "strided_unet_conditional" else None
    with torch.no_grad():
        assert_agrees("call", model(x_t, t, labels), rec["eps_eval"], "eval")
        assert_agrees("call", model.train()(x_t, t, labels), rec["eps_train"], "train")
    statistics = from_original(name, {k: rec.get(f"after/{k}", v) for k, v in weights(rec).items()})
    changed = [k for k in statistics if "running" in k]
    assert len(changed) == sum(k.startswith("after/") for k in rec)
    for key in changed:
        assert_agrees("call", model.state_dict()[key], statistics[key], key)


@PRECISIONS
def test_convnext_unet(precision):
    rec = record(f"convnext_unet_{precision}")
    t, labels = torch.from_numpy(rec["t"]), torch.from_numpy(rec["classes"])
    x_t = tensor(rec, "x", rec["eps_m3"].shape, precision)
    for expansion in (1, 3):
        model = network("convnext_unet", convnext_weights(rec, expansion), precision, expansion=expansion)
        with torch.no_grad():
            assert_agrees("call", model(x_t, t, labels), rec[f"eps_m{expansion}"], "both")
            assert_agrees("call", model(x_t, t), rec[f"eps_m{expansion}_noclass"], "no class")
            # Without time, the original was called without class as well.
            assert_agrees("call", model(x_t), rec[f"eps_m{expansion}_notime"], "neither")


@pytest.mark.parametrize(("name", "options"), [("annotated_unet", {}), ("annotated_unet_rgb", RGB)])
def test_annotated_unet(name, options):
    rec = record(name)
    model = network("annotated_unet", weights(rec), "f32", **options)
    x_0, noise = (tensor(rec, tag, rec["x_t"].shape, "f32") for tag in ("x", "eps"))
    t = torch.from_numpy(rec["t"].astype(np.int64))
    process = processes.GaussianDiffusion(schedules.linear(200), loss="huber")
    with torch.no_grad():
        assert_agrees("call", model(x_0, t), rec["eps"], "eps")
        assert_agrees("call", process.add_noise(x_0, noise, t), rec["x_t"], "x_t")
        loss = process.loss_per_example(model, x_0, noise, t).mean()
    assert_agrees("call", loss, rec["p_loss"].astype(np.float32), "loss")


# Tables


def test_tables():
    convnext, tiny, annotated = (record(f"{name}_tables") for name in ("convnext", "tiny", "annotated"))
    # These two records are sines of angles that had been rounded to float32: no better than a unit in the angle's last place.
    for ours, recorded, angle in [
        (convnext_table(500, 112), convnext["position_embeddings"], 501),
        (timestep_table("original", 1000, 100), tiny["sinusoidal_1000_100"], 999),
    ]:
        assert ours.shape == recorded.shape
        assert np.abs(ours - recorded).max() < np.spacing(np.float32(angle))
    assert_agrees("call", timestep_embedding(torch.arange(200), 28), annotated["sinusoidal_28"], "sinusoidal")
    for num_steps in (500, 1000):
        cosine = convnext[f"cosine_{num_steps}"]
        ours = schedules.cosine_unclipped(num_steps).alphas_cumprod
        assert_agrees("call", numbers(ours, "f32"), cosine / cosine[0], "cosine")
    rate = training.learning_rate(1e-4, 0, 1000, end=1e-7, epoch_steps=100)
    rates = [rate(epoch * 100 + 99) for epoch in range(10)]
    assert_agrees("call", np.array(rates), annotated["cosine_decay_lr"], "learning rates")
    linear = schedules.linear(200)
    for table in ("betas", "alphas_cumprod", "posterior_variance"):
        assert_agrees("call", numbers(getattr(linear, table), "f32"), annotated[table], table)
    assert (annotated["p2_loss_weight"] == 1).all()


@PRECISIONS
@pytest.mark.parametrize(
    ("name", "schedule", "tables", "tags"),
    [
        ("convnext_sampler", schedules.cosine_unclipped(500), {"abar": "alphas_cumprod"}, ("x0", "forward/0")),
        ("ddpm_linear", schedules.linear(1000), {n: n for n in ("betas", "alphas_cumprod")}, ("x0", "eps")),
        (
            "strided_ddpm",
            schedules.linear_inclusive(400),
            {"beta": "betas", "alpha_bar": "alphas_cumprod"},
            ("x", "eps"),
        ),
        ("toy2d", schedules.linear(1000), {"alpha_bar": "alphas_cumprod"}, None),
    ],
)
def test_schedule_and_noised_images(name, schedule, tables, tags, precision):
    rec = record(f"{name}_{precision}")
    for theirs, ours in tables.items():
        assert_agrees("call", numbers(getattr(schedule, ours), precision), rec[theirs], theirs)
    if tags is not None:
        x_0, noise = (tensor(rec, tag, rec["x_t"].shape, precision) for tag in tags)
        t = torch.from_numpy((rec if "t" in rec else record(f"convnext_unet_{precision}"))["t"])
        assert_agrees("call", processes.GaussianDiffusion(schedule).add_noise(x_0, noise, t), rec["x_t"], "x_t")


# Samplers


def walk(sampler, process, network, noises, num_steps=None):
    """The whole walk from the first of the noises on."""
    grid = sampler.grid(process, num_steps)
    denoise = denoisers.of(process, network)
    return samplers.walk(denoise, sampler, noises[0], noises[1:].__getitem__, grid, len(grid) + 1)


@PRECISIONS
@pytest.mark.parametrize(("eta", "num_steps"), [(0.0, 35), (0.1, 35), (1.0, 50), (1.0, 7)])
def test_strided_sampler(eta, num_steps, precision):
    rec = record(f"convnext_sampler_{precision}")
    process = processes.GaussianDiffusion(schedules.cosine_unclipped(500))
    noises = draws(rec, "loop", num_steps + 1, (2, 1, 4, 4), precision)
    if num_steps == 35:
        assert samplers.strided_times(process, 35).tolist() == [*rec["tau"][:35][::-1], rec["tau"][-1]]
    _, frames = walk(samplers.Strided(eta), process, stand_in, noises, num_steps)
    assert_agrees("trajectory", frames, rec[f"loop_eta{eta}_n{num_steps}"], "frames")


@PRECISIONS
def test_ddpm_linear(precision):
    rec = record(f"ddpm_linear_{precision}")
    process = processes.GaussianDiffusion(schedules.linear(1000))
    shape = rec["x_t"].shape
    x_t, eps = (tensor(rec, tag, shape, precision) for tag in ("x0", "eps"))
    for t in (0, 1, 500, 999):
        noise = tensor(rec, f"step{t}/0", shape, precision) if t else torch.zeros_like(x_t)
        hat = process.estimate(x_t, eps, torch.full(shape[:1], t))
        x_s = samplers.ancestral_step(x_t, hat, process.level(t), process.level(t - 1), noise)
        assert_agrees("call", x_s, rec[f"step_{t}"], f"step {t}")
    noises = draws(rec, "traj", 1000, rec["traj_final"].shape, precision)
    x_0, _ = walk(samplers.Ancestral(), process, stand_in, noises)
    assert_agrees("long", x_0, rec["traj_final"], "trajectory")


@PRECISIONS
def test_strided_ddpm(precision):
    rec = record(f"strided_ddpm_{precision}")
    process = processes.GaussianDiffusion(schedules.linear_inclusive(400))
    noises = draws(rec, "sample", 400, rec["sample"].shape, precision)
    x_0, _ = walk(samplers.Ancestral(), process, stand_in, noises)
    assert_agrees("trajectory", x_0, rec["sample"], "sample")


def test_annotated_sampler():
    rec = record("annotated_sampler")
    process = processes.GaussianDiffusion(schedules.linear(200))
    noises = draws(rec, "traj", 201, rec["final"].shape, "f32")
    x_0, states = walk(samplers.Ancestral("posterior"), process, stand_in, noises)
    # Their list of frames leaves the starting noise out.
    assert_agrees("call", states[1], rec["first"], "first")
    assert_agrees("trajectory", states[101], rec["middle"], "middle")
    assert_agrees("trajectory", x_0, rec["final"], "final")


# The points in the plane


@PRECISIONS
def test_toy2d(precision):
    rec = record(f"toy2d_{precision}")
    model = network("mlp", weights(rec), precision)
    x_t, t = tensor(rec, "x", (16, 2), precision), torch.from_numpy(rec["t"][:, 0])
    process = processes.GaussianDiffusion(schedules.linear(1000))
    noises = draws(rec, "gen", 1000, (64, 2), precision)
    with torch.no_grad():
        assert_agrees("call", model(x_t, t), rec["eps"], "eps")
    points, _ = walk(samplers.Ancestral(), process, model, noises)
    mean, std = (rec[f"train_{statistic}"].item() for statistic in ("mean", "std"))
    assert_agrees("long", points * std + mean, rec["generate"], "generate")

    data = torch.from_numpy((rec["spiral"] - mean) / std).to(DTYPES[precision])
    state = training.create_state(model, torch.optim.Adam(model.parameters(), lr=1e-3))
    update = training.Update(process, ema=0.999)
    losses = []
    for k in range(40):
        rows = generator(rec, 11, k).integers(0, 256, 25)
        t_train = torch.from_numpy(generator(rec, 12, k).integers(0, 1000, (25, 1))[:, 0])
        noise = tensor(rec, f"train{k}", (25, 2), precision)
        _, metrics = update.with_draws(state, training.Examples(data[rows], noise, t_train))
        losses.append(float(metrics["loss"]))
    # Python's floats, whatever they were computed in.
    assert_agrees("long", numbers(losses, precision), numbers(rec["train_losses"], precision), "losses")
    with torch.no_grad():
        assert_agrees("long", state.model.eval()(x_t, t), rec["eps_after_training"], "eps after training")
