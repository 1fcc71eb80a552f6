"""ddpm_jax against the golden records: every number that the originals left."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from golden_records import (
    PRECISIONS,
    RGB,
    assert_agrees,
    convnext_weights,
    draw,
    dtype_of,
    generator,
    numbers,
    record,
    weights,
)
from twins import abstract, compiled

from ddpm_jax import denoisers, models, processes, samplers, schedules
from ddpm_jax import weights as bridge
from ddpm_jax.data import toy
from ddpm_jax.models.layers import timestep_embedding
from ddpm_jax.models.timesteps import convnext_table, timestep_table
from ddpm_jax.presets import TrainConfig, system_of
from ddpm_jax.training import Examples, Update, create_state, learning_rate, make_optimizer
from ddpm_jax.weights.originals import from_original


def array(rec, tag, shape, precision):
    """A record's draw of that shape, channels first, as a JAX array of the record's precision, channels last."""
    drawn = draw(rec, tag, shape)
    return jnp.asarray(numbers(np.moveaxis(drawn, 1, -1) if drawn.ndim == 4 else drawn, precision))


def draws(rec, tag, count, shape, precision):
    return jnp.stack([array(rec, f"{tag}/{i}", shape, precision) for i in range(count)])


def channels_first(images):
    """(..., H, W, C) -> (..., C, H, W)."""
    return np.moveaxis(np.asarray(images), -1, -3)


def integers(values):
    return jnp.asarray(np.asarray(values), jnp.int32)


def network(name, checkpoint, precision, **options):
    """The network with the weights of a checkpoint under its author's names."""
    model = abstract(name, **options)
    tensors = {key: numbers(value, precision) for key, value in from_original(name, checkpoint).items()}
    bridge.load_torch(model, tensors)
    return model


def program(function, x_t):
    """XLA leaves double-precision convolutions to its own loops, which take minutes unless they are optimised."""
    return jax.jit(function) if x_t.dtype == jnp.float64 else compiled(function)


def call(model, x_t, t, labels=None, *, training=False):
    """(output, running statistics afterwards) by one compiled program."""
    graphdef, variables = models.split(model, training=training)
    return program(lambda variables, x: models.apply(graphdef, variables, x, t, labels), x_t)(variables, x_t)


def stand_in(x_t, t):
    """The records' own network of trajectories."""
    return x_t * (0.6 + 0.3 * jnp.cos(t.astype(x_t.dtype) / 7)).reshape(-1, 1, 1, 1)


def walk(schedule, predict, noises, sampler, num_steps=None, num_frames=0):
    """(samples, frames) of a walk from the first draw, each step with the next; a step without a draw of its own takes none."""
    process = processes.GaussianDiffusion(schedule)
    denoise, grid = denoisers.of(process, predict), sampler.grid(process, num_steps)

    def run(noises):
        return samplers.walk(denoise, sampler, noises[0], lambda i: noises[1 + i], grid, num_frames)[:2]

    return compiled(run)(noises)


# Networks


LARGE = ("tiny_unet", "double_conv_unet")
"""Slow in float32; the twin is held to their records in both."""


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        pytest.param(name, precision, marks=pytest.mark.slow if name in LARGE and precision == "f32" else ())
        for name in (*LARGE, "conv_net", "strided_unet", "strided_unet_conditional")
        for precision in ("f64", "f32")
    ],
)
def test_network(name, precision):
    rec = record(f"{name}_{precision}")
    model = network(name, weights(rec), precision)
    x_t = array(rec, "x", rec["eps_eval"].shape, precision)
    t = integers(rec["t"]) if "t" in rec else jnp.zeros(len(x_t), jnp.int32)
    labels = integers(rec["classes"]) if name == "strided_unet_conditional" else None
    output, before = call(model, x_t, t, labels)
    assert_agrees("call", channels_first(output), rec["eps_eval"], "eval")
    output, after = call(model, x_t, t, labels, training=True)
    assert_agrees("call", channels_first(output), rec["eps_train"], "train")

    checkpoint = from_original(name, weights(rec))
    for key, kept in bridge.to_numpy(model, {"batch_stats": before}).items():
        np.testing.assert_array_equal(kept, numbers(checkpoint[key], precision), key)
    statistics = from_original(name, {key: rec.get(f"after/{key}", value) for key, value in weights(rec).items()})
    moved = bridge.to_numpy(model, {"batch_stats": after})
    assert len(moved) == sum(key.startswith("after/") and "num_batches" not in key for key in rec)
    for key, ours in moved.items():
        assert_agrees("call", ours, statistics[key], key)


@pytest.mark.parametrize(
    ("expansion", "precision"),
    [(3, "f64"), *(pytest.param(*case, marks=pytest.mark.slow) for case in ((3, "f32"), (1, "f64"), (1, "f32")))],
)
def test_convnext_unet(expansion, precision):
    rec = record(f"convnext_unet_{precision}")
    t, labels = integers(rec["t"]), integers(rec["classes"])
    x_t = array(rec, "x", rec["eps_m3"].shape, precision)
    model = network("convnext_unet", convnext_weights(rec, expansion), precision, expansion=expansion)
    assert_agrees("call", channels_first(call(model, x_t, t, labels)[0]), rec[f"eps_m{expansion}"], "both")
    graphdef, state = nnx.split(model)
    for ending, inputs in {"noclass": (t,), "notime": ()}.items():
        output = program(lambda state, x, inputs=inputs: nnx.merge(graphdef, state)(x, *inputs), x_t)(state, x_t)
        assert_agrees("call", channels_first(output), rec[f"eps_m{expansion}_{ending}"], ending)


@pytest.mark.parametrize(
    ("name", "options"), [("annotated_unet", {}), pytest.param("annotated_unet_rgb", RGB, marks=pytest.mark.slow)]
)
def test_annotated_unet(name, options):
    rec = record(name)
    model = network("annotated_unet", weights(rec), "f32", **options)
    x_0, noise = (array(rec, tag, rec["x_t"].shape, "f32") for tag in ("x", "eps"))
    t = integers(rec["t"])
    process = processes.GaussianDiffusion(schedules.linear(200), loss="huber")
    assert_agrees("call", channels_first(call(model, x_0, t)[0]), rec["eps"], "eps")
    assert_agrees("call", channels_first(process.add_noise(x_0, noise, t)), rec["x_t"], "x_t")
    graphdef, variables = models.split(model)

    @compiled
    def loss(variables):
        def predict(x_t, t):
            return models.apply(graphdef, variables, x_t, t)[0]

        return process.loss_per_example(predict, x_0, noise, t).mean()

    assert_agrees("call", loss(variables), rec["p_loss"].astype(np.float32), "loss")


# Tables


def test_tables():
    convnext, tiny, annotated = (record(f"{name}_tables") for name in ("convnext", "tiny", "annotated"))
    # These two records are sines of angles that had been rounded to float32: no better than a unit in the angle's last place.
    for ours, recorded, angle in [
        (convnext_table(500, 112), convnext["position_embeddings"], 501),
        (timestep_table(1000, 100, "original"), tiny["sinusoidal_1000_100"], 999),
    ]:
        assert ours.shape == recorded.shape
        assert np.abs(ours - recorded).max() < np.spacing(np.float32(angle))
    ours = timestep_embedding(jnp.arange(200), 28, jnp.dtype("float32"))
    assert_agrees("call", ours, annotated["sinusoidal_28"], "sinusoidal")
    for num_steps in (500, 1000):
        cosine = convnext[f"cosine_{num_steps}"]
        ours = schedules.cosine_unclipped(num_steps).alphas_cumprod
        assert_agrees("call", numbers(ours, "f32"), cosine / cosine[0], "cosine")
    config = TrainConfig(1000, epoch_steps=100, lr=1e-4, lr_end=1e-7, lr_decay="cosine_by_epoch")
    rates = np.array([learning_rate(config)(epoch * 100 + 99) for epoch in range(10)])
    assert_agrees("call", numbers(rates, "f64"), annotated["cosine_decay_lr"], "learning rates")
    linear = schedules.linear(200)
    for table in ("betas", "alphas_cumprod", "posterior_variance"):
        assert_agrees("call", numbers(getattr(linear, table), "f32"), annotated[table], table)
    process = processes.GaussianDiffusion(linear, weighting="p2", p2_gamma=0.0)
    assert_agrees("call", numbers(process.loss_weights(), "f32"), annotated["p2_loss_weight"], "P2 weight")


RECORDED = {
    # record: (network, {their table: ours}, tags of x_0 and the noise)
    "convnext_sampler": ("convnext_unet", {"abar": "alphas_cumprod"}, ("x0", "forward/0")),
    "ddpm_linear": ("tiny_unet", {name: name for name in ("betas", "alphas_cumprod")}, ("x0", "eps")),
    "strided_ddpm": ("strided_unet", {"beta": "betas", "alpha_bar": "alphas_cumprod"}, ("x", "eps")),
    "toy2d": ("mlp", {"alpha_bar": "alphas_cumprod"}, None),
}


def schedule_of(name):
    """The schedule that the package gives a network of its author's."""
    return system_of(models.configure(name, {}))[0].schedule


@PRECISIONS
@pytest.mark.parametrize("name", RECORDED)
def test_schedule_and_noised_images(name, precision):
    rec = record(f"{name}_{precision}")
    network_name, tables, tags = RECORDED[name]
    schedule = schedule_of(network_name)
    for theirs, ours in tables.items():
        assert_agrees("call", numbers(getattr(schedule, ours), precision), rec[theirs], theirs)
    if tags is not None:
        x_0, noise = (array(rec, tag, rec["x_t"].shape, precision) for tag in tags)
        t = integers((rec if "t" in rec else record(f"convnext_unet_{precision}"))["t"])
        x_t = processes.GaussianDiffusion(schedule).add_noise(x_0, noise, t)
        assert_agrees("call", channels_first(x_t), rec["x_t"], "x_t")


# Samplers


@PRECISIONS
@pytest.mark.parametrize(("eta", "num_steps"), [(0.0, 35), (0.1, 35), (1.0, 50), (1.0, 7)])
def test_strided_sampler(eta, num_steps, precision):
    rec = record(f"convnext_sampler_{precision}")
    schedule = schedule_of("convnext_unet")
    noises = draws(rec, "loop", num_steps + 1, (2, 1, 4, 4), precision)
    times = samplers.strided_times(processes.GaussianDiffusion(schedule), num_steps)
    if num_steps == 35:
        assert times.tolist() == [*rec["tau"][:35][::-1], rec["tau"][-1]]
    x_0, frames = walk(schedule, stand_in, noises, samplers.Strided(eta), num_steps, num_frames=num_steps + 1)
    assert_agrees("trajectory", channels_first(frames), rec[f"loop_eta{eta}_n{num_steps}"], "frames")
    np.testing.assert_array_equal(frames[-1], x_0)  # no noise at the last step


@PRECISIONS
@pytest.mark.parametrize("t", [0, 1, 500, 999])
def test_ancestral_step(t, precision):
    rec = record(f"ddpm_linear_{precision}")
    process, shape = processes.GaussianDiffusion(schedule_of("tiny_unet")), rec["x_t"].shape
    x_t, eps = (array(rec, tag, shape, precision) for tag in ("x0", "eps"))
    noise = array(rec, f"step{t}/0", shape, precision) if t else jnp.zeros_like(x_t)
    denoise = denoisers.of(process, lambda x, time: eps)
    x_s = samplers.Ancestral().step(denoise, x_t, jnp.array([t, t - 1]), noise, ()).x
    assert_agrees("call", channels_first(x_s), rec[f"step_{t}"], f"step {t}")


@PRECISIONS
@pytest.mark.parametrize(
    ("name", "key", "tag", "system", "quantity"),
    [
        ("ddpm_linear", "traj_final", "traj", "tiny_unet", "long"),
        ("strided_ddpm", "sample", "sample", "strided_unet", "trajectory"),
    ],
)
def test_whole_chain(name, key, tag, system, quantity, precision):
    rec = record(f"{name}_{precision}")
    schedule = schedule_of(system)
    noises = draws(rec, tag, schedule.num_steps, rec[key].shape, precision)
    x_0, _ = walk(schedule, stand_in, noises, samplers.Ancestral())
    assert_agrees(quantity, channels_first(x_0), rec[key], key)


def test_annotated_sampler():
    rec = record("annotated_sampler")
    schedule = schedule_of("annotated_unet")
    num_frames = schedule.num_steps + 1
    noises = draws(rec, "traj", num_frames, rec["final"].shape, "f32")
    sampler = system_of(models.configure("annotated_unet", {}))[1].sampler
    x_0, states = walk(schedule, stand_in, noises, sampler, num_frames=num_frames)
    # Their list of frames leaves the starting noise out.
    assert_agrees("call", channels_first(states[1]), rec["first"], "first")
    assert_agrees("trajectory", channels_first(states[101]), rec["middle"], "middle")
    assert_agrees("trajectory", channels_first(x_0), rec["final"], "final")


# The points in the plane


@PRECISIONS
def test_toy_points(precision):
    rec = record(f"toy2d_{precision}")
    u, v = (numbers(generator(rec, n).random(256), precision) for n in (1, 2))
    q, r = (generator(rec, 77, n).integers(0, 4, (256,)) for n in (0, 1))
    shapes = {"spiral": toy.spiral(u, v), "disc_grid": toy.disc_grid(u, v, q, r)}
    for name, points in shapes.items():
        # made in double precision of rounded numbers, on either side
        assert_agrees("call", numbers(points, precision), numbers(rec[name], precision), name)
    mean, std = toy.statistics(rec["spiral"].astype(np.float64))
    for name, ours in {"train_mean": mean, "train_std": std}.items():
        assert_agrees("call", numbers(ours, precision), numbers(rec[name], precision), name)


@PRECISIONS
def test_mlp_and_its_samples(precision):
    rec = record(f"toy2d_{precision}")
    model = network("mlp", weights(rec), precision)
    x_t, t = array(rec, "x", (16, 2), precision), integers(rec["t"][:, 0])
    assert_agrees("call", call(model, x_t, t)[0], rec["eps"], "eps")
    graphdef, variables = models.split(model)
    schedule = schedule_of("mlp")
    noises = draws(rec, "gen", 1000, (64, 2), precision)
    predict = partial(_predict, graphdef, variables)
    points, _ = walk(schedule, predict, noises, samplers.Ancestral())
    mean, std = (rec[f"train_{statistic}"].item() for statistic in ("mean", "std"))
    assert_agrees("long", points * std + mean, rec["generate"], "generate")


def _predict(graphdef, variables, x_t, t):
    return models.apply(graphdef, variables, x_t, t)[0]


@PRECISIONS
def test_mlp_training(precision):
    rec = record(f"toy2d_{precision}")
    model = network("mlp", weights(rec), precision)
    config = TrainConfig(lr=1e-3, grad_clip=None)
    update = Update(processes.GaussianDiffusion(schedule_of("mlp")), make_optimizer(config))
    state, step = create_state(model, update.optimizer), compiled(update.with_draws)
    data = numbers((rec["spiral"] - rec["train_mean"].item()) / rec["train_std"].item(), precision)
    losses = []
    for k in range(40):
        rows = generator(rec, 11, k).integers(0, 256, 25)
        t = integers(generator(rec, 12, k).integers(0, 1000, (25, 1))[:, 0])
        noise = array(rec, f"train{k}", (25, 2), precision)
        state, metrics = step(state, Examples(jnp.asarray(data[rows]), noise, t))
        losses.append(float(metrics["loss"]))
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {dtype_of(f"toy2d_{precision}")}
    assert_agrees("long", numbers(losses, precision), numbers(rec["train_losses"], precision), "losses")
    output, _ = compiled(partial(models.apply, state.graphdef))(
        state.variables(ema=False), array(rec, "x", (16, 2), precision), integers(rec["t"][:, 0])
    )
    assert_agrees("long", output, rec["eps_after_training"], "eps after training")
