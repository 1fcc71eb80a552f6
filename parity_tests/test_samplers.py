"""Single steps between all kinds of times, and whole walks through a network with the same noise on both sides."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from precisions import FLOAT32_SLOWLY
from tolerances import assert_close
from twins import SMALL, indices, normal, to_nchw, to_nhwc

from ddpm_jax import denoisers, processes, samplers, schedules
from ddpm_jax.compilation import jit
from ddpm_torch_ref import denoisers as twin_denoisers
from ddpm_torch_ref import processes as twin_processes
from ddpm_torch_ref import samplers as twin_samplers
from ddpm_torch_ref import schedules as twin_schedules

STEPS = [
    ("ancestral", {"variance": "beta"}),
    ("ancestral", {"variance": "posterior"}),
    ("ddim", {"eta": 0.0}),
    ("ddim", {"eta": 0.3}),
    ("ddim", {"eta": 1.0}),
]
STEP_NAMES = [f"{name}-{next(iter(options.values()))}" for name, options in STEPS]
TWINS = {"ancestral": twin_samplers.Ancestral, "ddim": twin_samplers.DDIM}
# neighbours and jumps; from the last time, to the first, to the clean end (-1)
WALKS = [(999, 998), (999, 979), (999, 0), (999, -1), (500, 499), (500, 3), (20, 0), (2, 1), (1, 0), (1, -1), (0, -1)]


def make(schedule, num_steps=1000, **options):
    ours = processes.GaussianDiffusion(getattr(schedules, schedule)(num_steps), **options)
    return ours, twin_processes.GaussianDiffusion(getattr(twin_schedules, schedule)(num_steps), **options)


def assert_same_step(dtype, schedule, name, options, t, s, num_steps=1000, batch=2):
    process, twin = make(schedule, num_steps)
    x_t, eps, noise = (normal(dtype, batch, 4, 4, 3, seed=seed) for seed in range(3))
    noise = noise if s >= 0 else np.zeros_like(noise)  # a walk's last step takes none
    denoise = denoisers.of(process, lambda x, time: jnp.asarray(eps))
    sampler = samplers.SAMPLERS[name](**options)
    ours = sampler.step(denoise, jnp.asarray(x_t), jnp.array([t, s], jnp.int32), jnp.asarray(noise), ()).x
    twin_denoise = twin_denoisers.of(twin, lambda x, time: to_nchw(eps))
    reference = TWINS[name](**options).step(twin_denoise, to_nchw(x_t), (t, s), to_nchw(noise), ()).x
    assert_close("step", ours, to_nhwc(reference), f"{name} {options} {schedule} {t} -> {s}")


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize(("name", "options"), STEPS, ids=STEP_NAMES)
def test_one_step(dtype, name, options, schedule):
    for t, s in WALKS:
        assert_same_step(dtype, schedule, name, options, t, s)


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_any_step(data):
    schedule = data.draw(st.sampled_from(["linear", "cosine", "quadratic", "sigmoid"]))
    num_steps = data.draw(st.integers(1, 1000))
    t = data.draw(st.integers(0, num_steps - 1))
    s = data.draw(st.integers(-1, t - 1))
    ddim = st.tuples(st.just("ddim"), st.fixed_dictionaries({"eta": st.floats(0, 1)}))
    variance = st.fixed_dictionaries({"variance": st.sampled_from(["beta", "posterior"])})
    name, options = data.draw(st.one_of(ddim, st.tuples(st.just("ancestral"), variance)))
    batch = data.draw(st.integers(1, 3))
    assert_same_step("float64", schedule, name, options, t, s, num_steps, batch)


@pytest.mark.parametrize("num_steps", [1, 2, 3, 50, 250, 999, 1000])
def test_grids_of_times(num_steps):
    process, twin = make("linear")
    np.testing.assert_array_equal(process.times(num_steps), twin.times(num_steps))


@FLOAT32_SLOWLY
@pytest.mark.parametrize(
    ("step", "schedule", "prediction", "clip"),
    [
        (("ancestral", {"variance": "beta"}), "linear", "eps", 1.0),
        (("ancestral", {"variance": "posterior"}), "linear", "v", None),
        (("ddim", {"eta": 0.0}), "linear", "eps", None),
        (("ddim", {"eta": 0.3}), "cosine", "v", 1.0),
        (("ddim", {"eta": 1.0}), "cosine", "x0", None),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else str(value),
)
def test_a_walk_of_50_steps_through_a_network(pair, dtype, step, schedule, prediction, clip):
    (name, options), num_steps, shape = step, 50, (2, 8, 8, 3)
    process, twin_process = make(schedule, prediction=prediction)
    model, twin = pair("unet", dtype, **SMALL, num_classes=3)
    denoise = denoisers.of_network(model, process, labels=[2, 0])
    denoise = denoise if clip is None else denoisers.clipped(denoise, clip)
    sampler, tlabels = samplers.SAMPLERS[name](**options), indices([2, 0])[1]
    grid = sampler.grid(process, num_steps)
    x_T, noises = normal(dtype, *shape, seed=1), normal(dtype, num_steps, *shape, seed=2)

    @jit
    def walk(denoise, x_T, noises):
        return samplers.walk(denoise, sampler, x_T, lambda i: noises[i], grid, num_frames=num_steps + 1)

    samples, frames, *_ = walk(denoise, jnp.asarray(x_T), jnp.asarray(noises))
    twin_denoise = twin_denoisers.of(twin_process, twin, labels=tlabels)
    twin_denoise = twin_denoise if clip is None else twin_denoisers.clipped(twin_denoise, clip)
    twin_sampler = TWINS[name](**options)
    twin_grid = twin_sampler.grid(twin_process, num_steps)
    drawn = to_nchw(noises).__getitem__
    tsamples, states = twin_samplers.walk(twin_denoise, twin_sampler, to_nchw(x_T), drawn, twin_grid, num_steps + 1)
    assert len(frames) == len(states) == num_steps + 1
    for i, (ours, reference) in enumerate(zip(frames, states, strict=True)):
        assert_close("trajectory", ours, to_nhwc(reference), f"{name} {options} {schedule} {prediction} frame {i}")
    assert_close("trajectory", samples, to_nhwc(tsamples), "samples")
    if clip:
        assert float(tsamples.abs().max()) <= clip * (1 + 1e-6)
        assert sum(float(state.abs().max()) > clip for state in states) > 5  # or clipping was not put to the test


def test_the_last_step_takes_no_noise(dtype):
    """Noise that is not finite in the last place must not reach the samples, on either side."""
    process, twin = make("linear", 4)
    x_T, noises = normal(dtype, 1, 2, 2, 3), normal(dtype, 4, 1, 2, 2, 3, seed=1)
    noises[-1] = np.nan
    denoise = denoisers.of(process, lambda x_t, t: x_t / 2)
    grid = samplers.Ancestral().grid(process)
    ours = samplers.walk(denoise, "ancestral", jnp.asarray(x_T), lambda i: jnp.asarray(noises)[i], grid).x_0
    sampler = twin_samplers.Ancestral()
    twin_denoise = twin_denoisers.of(twin, lambda x_t, t: x_t / 2)
    drawn = to_nchw(noises).__getitem__
    reference = twin_samplers.walk(twin_denoise, sampler, to_nchw(x_T), drawn, sampler.grid(twin)).x_0
    assert torch.isfinite(reference).all()
    assert_close("trajectory", ours, to_nhwc(reference), "last noise")
    assert jax.numpy.isfinite(ours).all()
