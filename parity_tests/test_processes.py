"""Noising, targets, estimates, posteriors and losses."""

from typing import get_args

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import assert_close
from twins import indices, normal, to_nchw, to_nhwc

from ddpm_jax import processes, schedules
from ddpm_torch_ref import processes as twin_processes
from ddpm_torch_ref import schedules as twin_schedules

PREDICTIONS = get_args(processes.Prediction)
LOSSES = get_args(processes.Loss)
TIMES = [0, 1, 2, 250, 500, 998, 999]
SHAPE = (len(TIMES), 4, 5, 3)


def make(schedule="linear", num_steps=1000, **options):
    ours = processes.GaussianDiffusion(getattr(schedules, schedule)(num_steps), **options)
    return ours, twin_processes.GaussianDiffusion(getattr(twin_schedules, schedule)(num_steps), **options)


def images(dtype, *seeds, shape=SHAPE):
    """(JAX array, tensor) for every seed."""
    arrays = [normal(dtype, *shape, seed=seed) for seed in seeds]
    return [(jnp.asarray(array), to_nchw(array)) for array in arrays]


def test_both_sides_know_the_same_choices():
    assert set(PREDICTIONS) == set(twin_processes.PREDICTIONS)
    assert set(get_args(processes.DiffusionLoss)) == {*twin_processes.LOSSES, *twin_processes.BOUND_LOSSES}
    assert set(get_args(processes.Weighting)) == set(twin_processes.WEIGHTINGS)


@pytest.mark.parametrize("loss", ["vlb", "hybrid"])
def test_both_sides_refuse_the_bound_where_a_chain_does_not_end_at_clean_data(loss):
    for module, tables in ((processes, schedules), (twin_processes, twin_schedules)):
        module.GaussianDiffusion(tables.cosine_unclipped(10), loss=loss, learned_variance=True)
        with pytest.raises(ValueError, match=r"alphas_cumprod\[0\] .* got 0.9999"):
            module.GaussianDiffusion(tables.linear_inclusive(10), loss=loss, learned_variance=True)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "quadratic", "sigmoid"])
def test_add_noise(dtype, schedule):
    ours, twin = make(schedule)
    (x_0, tx_0), (noise, tnoise) = images(dtype, 0, 1)
    t, tt = indices(TIMES)
    assert_close("process", ours.add_noise(x_0, noise, t), to_nhwc(twin.add_noise(tx_0, tnoise, tt)), "x_t")


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_target_and_estimate(dtype, prediction, schedule):
    ours, twin = make(schedule, prediction=prediction)
    (x_0, tx_0), (noise, tnoise) = images(dtype, 0, 1)
    for i, time in enumerate(TIMES):  # one by one: x_0 at the last time is thousands of times as large as at the first
        t, tt = indices([time])
        one, tone = (x_0[i : i + 1], noise[i : i + 1], t), (tx_0[i : i + 1], tnoise[i : i + 1], tt)
        assert_close("process", ours.target(*one), to_nhwc(twin.target(*tone)), f"target at {time}")
        hat, that = ours.estimate(*one), twin.estimate(*tone)
        assert_close("process", hat.x_0, to_nhwc(that.x_0), f"x_0 at {time}")
        assert_close("process", hat.eps, to_nhwc(that.eps), f"eps at {time}")
        implied = to_nhwc(twin.eps_given_x_0(*tone))
        assert_close("process", ours.eps_given_x_0(*one), implied, f"implied eps at {time}")


@pytest.mark.parametrize("variance", get_args(processes.FixedVariance))
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_posterior(dtype, schedule, variance):
    ours, twin = make(schedule)
    (x_0, tx_0), (x_t, tx_t) = images(dtype, 0, 1)
    for i, time in enumerate(TIMES):
        t, tt = indices([time])
        mean, var = ours.posterior(x_0[i : i + 1], x_t[i : i + 1], t, variance)
        tmean, tvar = twin.posterior(tx_0[i : i + 1], tx_t[i : i + 1], tt, variance)
        assert_close("process", mean, to_nhwc(tmean), f"posterior mean at {time}")
        assert_close("process", var, to_nhwc(tvar), f"posterior variance at {time}")


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("loss", LOSSES)
def test_losses(dtype, loss, prediction):
    ours, twin = make("cosine", prediction=prediction, loss=loss)
    (x_0, tx_0), (noise, tnoise), (output, toutput) = images(dtype, 0, 1, 2)
    t, tt = indices(TIMES)
    seen = {}

    def predict(x_t, t):
        seen["x_t"], seen["t"] = x_t, t
        return output

    got = ours.loss_per_example(predict, x_0, noise, t)
    assert_close("process", got, twin.loss_per_example(lambda x_t, t: toutput, tx_0, tnoise, tt), loss)
    assert_close("process", seen["x_t"], to_nhwc(twin.add_noise(tx_0, tnoise, tt)), "what the network sees")
    np.testing.assert_array_equal(seen["t"], TIMES)


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_any_shape_and_times(data):
    num_steps = data.draw(st.integers(1, 300))
    shape = tuple(data.draw(st.lists(st.integers(1, 4), min_size=4, max_size=4)))
    times = data.draw(st.lists(st.integers(0, num_steps - 1), min_size=shape[0], max_size=shape[0]))
    prediction, loss = data.draw(st.sampled_from(PREDICTIONS)), data.draw(st.sampled_from(LOSSES))
    ours, twin = make("sigmoid", num_steps, prediction=prediction, loss=loss)
    (x_0, tx_0), (noise, tnoise), (output, toutput) = images("float64", 0, 1, 2, shape=shape)
    t, tt = indices(times)
    x_t, tx_t = ours.add_noise(x_0, noise, t), twin.add_noise(tx_0, tnoise, tt)
    assert_close("process", x_t, to_nhwc(tx_t), "x_t")
    for a, b in zip(ours.estimate(x_t, output, t)[:2], twin.estimate(tx_t, toutput, tt)[:2], strict=True):
        assert_close("process", a, to_nhwc(b), "estimate")
    got = ours.loss_per_example(lambda x_t, t: output, x_0, noise, t)
    assert_close("process", got, twin.loss_per_example(lambda x_t, t: toutput, tx_0, tnoise, tt), loss)
