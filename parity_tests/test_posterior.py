"""Operators and posterior sampling on both sides: what they measure, what is believed at several levels, and whole walks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from test_family import NUM_STEPS, PATHS, networks
from tolerances import assert_close
from twins import normal, to_nchw, to_nhwc

from ddpm_jax import denoisers, operators, posterior, samplers
from ddpm_torch_ref import denoisers as twin_denoisers
from ddpm_torch_ref import operators as twin_operators
from ddpm_torch_ref import posterior as twin_posterior
from ddpm_torch_ref import samplers as twin_samplers

SHAPE = (2, 4, 4, 3)
HIDDEN = np.arange(16).reshape(1, 4, 4, 1) % 3 == 0
OPERATORS = {
    "mask": (operators.Mask(HIDDEN), twin_operators.Mask(to_nchw(HIDDEN))),
    "blur": (operators.Blur(0.8), twin_operators.Blur(0.8)),
    "downsample": (operators.Downsample(2), twin_operators.Downsample(2)),
    "gray": (operators.Gray(), twin_operators.Gray()),
    "function": (
        operators.of(lambda x: x[:, ::2] - x[:, 1::2], SHAPE[1:]),
        twin_operators.of(lambda x: x[:, :, ::2] - x[:, :, 1::2], (3, 4, 4)),
    ),
}
METHODS = {
    "mmps": (posterior.MMPS(iterations=2), twin_posterior.MMPS(iterations=2)),
    "pigdm": (posterior.PiGDM(0.7, iterations=4), twin_posterior.PiGDM(0.7, iterations=4)),
    "dps": (posterior.DPS(0.6), twin_posterior.DPS(0.6)),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_operators(dtype, name):
    ours, theirs = OPERATORS[name]
    x = normal(dtype, *SHAPE)
    y = ours(jnp.asarray(x))
    assert_close("layer", y, to_nhwc(theirs(to_nchw(x))), name)
    back = normal(dtype, *y.shape, seed=1)
    twin_shape = tuple(to_nchw(x).shape)
    assert_close(
        "layer", ours.transposed(jnp.asarray(back), SHAPE), to_nhwc(theirs.transposed(to_nchw(back), twin_shape)), name
    )
    assert theirs.measured(twin_shape) == tuple(to_nchw(y).shape) and ours.measured(SHAPE) == y.shape


def both(path, operator, method, dtype, noise=0.5):
    process, twin = PATHS[path]()
    predict, twin_predict = networks(dtype)
    ours, theirs = OPERATORS[operator]
    y = normal(dtype, *ours.measured(SHAPE), seed=7)
    method, twin_method = METHODS[method]
    return (
        posterior.conditioned(denoisers.of(process, predict), ours, jnp.asarray(y), noise=noise, method=method),
        twin_posterior.conditioned(
            twin_denoisers.of(twin, twin_predict), theirs, to_nchw(y), noise=noise, method=twin_method
        ),
    )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("path", ["linear", "cosine, v", "flow", "edm"])
def test_what_is_believed(dtype, path, method):
    """Noise of which the system is well conditioned, so that float32 tells the two sides' formulas, not their rounding."""
    for operator in ("mask", "blur") if path == "linear" else ("downsample",):
        ours, theirs = both(path, operator, method, dtype)
        times, believed = ours.process.times(10), jax.jit(lambda denoise, x_t, t: denoise(x_t, t))
        for t in (times[2], times[5], times[8]):
            x_t, told = normal(dtype, *SHAPE, seed=4), np.full(2, t, dtype if ours.process.continuous else np.int64)
            hat = believed(ours, jnp.asarray(x_t), jnp.asarray(told))
            twin_hat = theirs(to_nchw(x_t), torch.as_tensor(told))
            for name, one, two in zip(("x_0", "eps"), hat, twin_hat, strict=False):
                assert_close("gradient", one, to_nhwc(two), f"{name} of {method}, {path}, {operator}, t = {t:g}")


@pytest.mark.parametrize("sampler", ["DDIM", "Ancestral", "Heun"])
def test_walks(dtype, sampler):
    ours, theirs = both("edm" if sampler == "Heun" else "linear", "downsample", "pigdm", dtype)
    ours, theirs = denoisers.clipped(ours), twin_denoisers.clipped(theirs)
    sampler, twin_sampler = getattr(samplers, sampler)(), getattr(twin_samplers, sampler)()
    grid, twin_grid = sampler.grid(ours.process, NUM_STEPS), twin_sampler.grid(theirs.process, NUM_STEPS)
    start, noises = normal(dtype, *SHAPE, seed=1), normal(dtype, 2 * NUM_STEPS, *SHAPE, seed=2)
    x_T = ours.process.prior(jnp.asarray(start), grid[0, 0])
    walk = jax.jit(lambda x_T: samplers.walk(ours, sampler, x_T, lambda i: jnp.asarray(noises)[i], grid).x_0)
    drawn = list(map(to_nchw, noises)).__getitem__
    twin_start = theirs.process.prior(to_nchw(start), twin_grid[0][0])
    twin_x_0 = twin_samplers.walk(theirs, twin_sampler, twin_start, drawn, twin_grid).x_0
    assert_close("trajectory", walk(x_T), to_nhwc(twin_x_0), f"{type(sampler).__name__}")
