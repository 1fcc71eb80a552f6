"""Speed guarded by counts that do not jitter: operations, memory, compilations, calls."""

import logging

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from ddpm_jax import cpu_forms, denoisers, models, processes, samplers, schedules, training
from ddpm_jax.presets import TrainConfig

pytestmark = pytest.mark.cpu_forms

SMALL = {"image_size": 8, "channels": 1, "dim": 8, "dim_mults": (1, 2), "num_blocks": 1, "norm_groups": 4}
PROCESS = processes.GaussianDiffusion(schedules.linear(1000))
CONFIG = TrainConfig(batch_size=4)
WALK = "jit(_from_noise)"


def abstract_step(model, batch_size=4):
    """The step's program, and its arguments as shapes."""
    optimizer = training.make_optimizer(CONFIG)
    graphdef, variables = models.split(model)
    state = jax.eval_shape(lambda v: training.state.state_of(graphdef, v, optimizer), variables)
    config = model.config
    x_0 = jax.ShapeDtypeStruct((batch_size, config.image_size, config.image_size, config.channels), jnp.float32)
    key = jax.eval_shape(jax.random.key, 0)
    return training.make_step(PROCESS, optimizer).program(), (state, {"x_0": x_0}, key)


def operations(function, *args):
    """As XLA counts them for a GPU, without the forms of a CPU."""
    with cpu_forms.off():
        return function.trace(*args).lower(lowering_platforms=("cuda",)).cost_analysis()["flops"]


def compilations(caplog):
    """Names of the programs that were compiled."""
    messages = (record.getMessage() for record in caplog.records)
    return [text.split("compilation of ")[1].split(" ")[0] for text in messages if "XLA compilation of" in text]


@pytest.fixture
def log_of_compilations(caplog):
    with jax.log_compiles(), caplog.at_level(logging.DEBUG, logger="jax"):
        yield caplog


def test_operations_of_the_cifar10_network():
    """11.7 GFLOP an image forward (12.1 with products of the padding), three times that and a little for an update."""
    step, (state, batch, key) = abstract_step(models.abstract(models.UNetConfig()), batch_size=2)
    graphdef, variables = models.split(models.abstract(models.UNetConfig()))
    t = jax.ShapeDtypeStruct((2,), jnp.int32)
    forward = jax.jit(lambda v, x, t: models.apply(graphdef, v, x, t)[0])
    assert operations(forward, variables, batch["x_0"], t) / 2 == pytest.approx(11.66e9, rel=0.01)
    assert operations(step, state, batch, key) / 2 == pytest.approx(35.2e9, rel=0.02)


def test_memory_of_a_step():
    """What a step needs beside its state and batch, which it must not copy."""
    model = models.create("unet", rngs=nnx.Rngs(0), **SMALL)
    step, args = abstract_step(model, batch_size=32)
    found = step.lower(*args).compile().memory_analysis()
    state = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(args[0]))
    assert found.alias_size_in_bytes == pytest.approx(state, rel=0.01)  # the state is donated
    assert found.temp_size_in_bytes < 5.5e6


def test_memory_of_a_walk_does_not_grow_with_its_steps():
    def walk(num_steps):
        def run(x_T):
            denoise, grid = denoisers.of(PROCESS, lambda x, t: 0.1 * x), samplers.DDIM().grid(PROCESS, num_steps)
            return samplers.walk(denoise, "ddim", x_T, lambda index: jnp.zeros_like(x_T), grid).x_0

        return jax.jit(run).lower(jnp.zeros((16, 8, 8, 1))).compile().memory_analysis().temp_size_in_bytes

    assert walk(1000) < walk(10) + 50_000  # the grids themselves


def test_one_compilation_for_all_steps(log_of_compilations):
    model = models.create("unet", rngs=nnx.Rngs(0), **SMALL)
    optimizer = training.make_optimizer(CONFIG)
    step, state = training.make_step(PROCESS, optimizer), training.create_state(model, optimizer)
    log_of_compilations.clear()
    for seed in range(3):
        state, _ = step(state, {"x_0": jax.random.uniform(jax.random.key(seed), (4, 8, 8, 1))}, seed)
    assert compilations(log_of_compilations).count("jit(train_step)") == 1


def test_one_compilation_for_all_walks_of_one_shape(log_of_compilations):
    model = models.create("unet", rngs=nnx.Rngs(0), **SMALL)
    for seed in range(2):  # another network of the same kind is the same program
        samplers.sample(denoisers.of_network(model, PROCESS), "ddim", seed, (2, 8, 8, 1), 5)
        model = models.create("unet", rngs=nnx.Rngs(1), **SMALL)
    assert compilations(log_of_compilations).count(WALK) == 1


def test_numbers_of_a_denoiser_compile_nothing(log_of_compilations):
    """Scale, interval, rescaling, bound and quantile of one kind of denoiser, and the grid of one length: one program."""
    network = denoisers.of(PROCESS, lambda x, t, labels: x / (2 + labels[:, None]), labels=[0, 1], null_label=2)
    for number in (0.2, 0.5):
        guided = denoisers.guided(network, 3 + number, interval=(100 * number, 900 + number), rescale=number)
        bounded = denoisers.thresholded(denoisers.clipped(guided, 1 + number), number, 1 + number)
        samplers.sample(bounded.with_labels([1, int(10 * number)]), "ddim", 0, (2, 3), 5)
    samplers.sample(bounded, "ddim", 1, (2, 3), spacing=[900, 700, 400, 300, 7, -1])
    assert compilations(log_of_compilations).count(WALK) == 1


def test_many_steps_in_one_call(monkeypatch, tmp_path, tiny):
    """Points go a hundred steps a call at most, and as many as fit what is to be logged and kept."""
    from ddpm_jax.cli import main

    calls, many = [], training.Step.many

    def counted(step, state, batches, key):
        calls.append(len(batches["x_0"]))
        return many(step, state, batches, key)

    monkeypatch.setattr(training.Step, "many", counted)
    options = "--train.steps 60 --train.log-every 20 --train.checkpoint-every 60 --sample.num 4 --sample.steps 2"
    assert main(["train", "spiral", "--out", str(tmp_path / "run"), *options.split()]) == 0
    assert calls == [20] * 3
