"""A user's program over the public API, which `mypy --strict` checks: what comes back has its type. Nothing runs it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, assert_type

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from PIL.Image import Image

from ddpm_jax import (
    compile as compiling,
)
from ddpm_jax import (
    data,
    denoisers,
    editing,
    errors,
    evaluation,
    figures,
    models,
    operators,
    posterior,
    presets,
    processes,
    samplers,
    schedules,
    training,
    verify,
    weights,
)


class Squares:
    """A source of data of one's own."""

    name = "squares"
    class_names = ("small", "large")

    def __len__(self) -> int:
        return 100

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        image = np.zeros((8, 8, 1), np.uint8)
        image[: 4 + 2 * (index % 2)] = 255
        return {"image": image, "label": np.int32(index % 2)}


@dataclass(frozen=True)
class Renoise(samplers.Sampler, name="typed_renoise"):
    """A sampler of one's own."""

    kept: float = 0.0

    def step(
        self, denoise: denoisers.Denoiser, x_t: jax.Array, times: Any, noise: Any, memory: Any
    ) -> samplers.Stepped:
        _, s = samplers.levels(denoise.process, times, x_t)
        hat = denoise(x_t, times[0])
        return samplers.Stepped(s.alpha * hat.x_0 + s.sigma * (self.kept * hat.eps + noise), hat)


class Losses(training.Tracker):
    """A tracker of one's own."""

    def log(self, step: int, numbers: dict[str, float]) -> None:
        print(step, numbers["loss"])


def train_by_hand(source: data.Source) -> training.TrainState:
    schedule = assert_type(schedules.create("cosine", 1000), schedules.Schedule)
    assert_type(schedule.betas, np.ndarray[tuple[Any, ...], np.dtype[Any]])
    process = processes.GaussianDiffusion(schedules.cosine(1000), prediction="v")
    model = assert_type(models.create("unet", rngs=nnx.Rngs(0), image_size=8, channels=1), nnx.Module)
    optimizer = optax.adam(2e-3)
    step = assert_type(training.make_step(process, optimizer, ema=0.99), training.Step)
    state = assert_type(training.create_state(model, optimizer), training.TrainState)
    batches = data.batches(source, shape=(8, 8, 1), batch_size=64, reading=data.Reading(num_threads=0))
    assert_type(batches, Iterator[dict[str, np.ndarray[tuple[Any, ...], np.dtype[Any]]]])
    for batch in batches:
        state, metrics = step(state, batch, 0)
        assert_type(metrics, dict[str, jax.Array])
    return assert_type(state, training.TrainState)


def draw(state: training.TrainState, process: processes.Process) -> Image:
    denoise = assert_type(state.denoiser(process, labels=jnp.arange(10)), denoisers.Denoiser)
    guided = assert_type(denoisers.guided(denoise, 2.0), denoisers.Denoiser)
    bounded = assert_type(denoisers.clipped(guided, 1.0), denoisers.Denoiser)
    images = samplers.sample(bounded, samplers.DDIM(eta=0.0), 0, (10, 8, 8, 1), num_steps=50)
    assert_type(images, jax.Array)
    walked = samplers.sample_with_frames(bounded, Renoise(), 0, (10, 8, 8, 1), num_steps=50, num_frames=8)
    assert_type(walked, tuple[jax.Array, jax.Array])
    assert_type(samplers.SAMPLERS["ddim"], type[samplers.Sampler])
    hat = assert_type(denoise(images, 3), processes.Estimate)
    assert_type(hat.x_0, jax.Array)
    assert_type(editing.invert(denoise, images), jax.Array)
    measured = operators.Downsample(2)
    assert_type(posterior.conditioned(denoise, measured, measured(images)), denoisers.Denoiser)
    return assert_type(figures.grid(data.to_images(images)), Image)


def train_a_preset(folder: Path) -> training.Run:
    config = assert_type(presets.preset("digits"), presets.Preset)
    config = replace(config, train=replace(config.train, steps=100))
    try:
        outcome = training.train(config, folder, source=Squares(), trackers=[Losses()])
    except errors.UserError as error:
        raise SystemExit(str(error)) from error
    assert_type(outcome, training.Outcome)
    return assert_type(outcome.run, training.Run)


def measure(folder: Path) -> float:
    run = assert_type(training.open_run(folder), training.Run)
    images = run.to_data(samplers.sample(run.denoiser(labels=jnp.arange(10)), "ddim", 0, (10, 8, 8, 1)))
    assert_type(images, np.ndarray[tuple[Any, ...], np.dtype[Any]])
    return evaluation.frechet_distance(images.reshape(10, -1), images.reshape(10, -1))


def hold(model: nnx.Module, twin: Any, x: np.ndarray[Any, np.dtype[Any]]) -> bool:
    report = assert_type(verify.compare(model, twin, {"x": x}, tolerance=1e-5), verify.Report)
    assert_type(report.faults, list[verify.Fault])
    assert_type(weights.load_torch(model, twin.state_dict()), nnx.Module)
    assert_type(verify.tap("x", jnp.zeros(3)), jax.Array)
    return assert_type(report.ok, bool)


def plan(preset: presets.Preset) -> compiling.Estimated:
    return assert_type(compiling.estimate(preset, "v5e:2x4"), compiling.Estimated)


SOURCES: list[Callable[[], data.Source]] = [Squares, lambda: data.open_source("digits")]
