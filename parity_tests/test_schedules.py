"""Every table of every schedule, entry by entry."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import assert_close, tolerance

from ddpm_jax import schedules
from ddpm_torch_ref import schedules as twin_schedules

NAMES = ("linear", "cosine", "quadratic", "sigmoid", "sigmoid_cumprod")
TABLES = (
    "betas",
    "alphas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "sqrt_recip_alphas",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "posterior_variance",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
    "snr",
)


def assert_same_tables(ours, reference):
    assert ours.num_steps == reference.num_steps and ours.first == reference.first
    np.testing.assert_array_equal(ours.timesteps, reference.timesteps)
    for name in TABLES:
        table, wanted = getattr(ours, name), getattr(reference, name)
        assert_close("schedule", table, wanted, name)
        # entry by entry too: a table spans orders of magnitude, and its small entries matter as much
        np.testing.assert_allclose(table, wanted, rtol=tolerance("schedule", "float64"), atol=0, err_msg=name)


@pytest.mark.parametrize("num_steps", [1, 2, 7, 250, 1000, 4000])
@pytest.mark.parametrize("name", NAMES)
def test_tables(name, num_steps):
    assert_same_tables(getattr(schedules, name)(num_steps), getattr(twin_schedules, name)(num_steps))


def test_tables_in_float32():
    for name in NAMES:
        ours, reference = getattr(schedules, name)(1000), getattr(twin_schedules, name)(1000)
        for table in TABLES:
            wanted = getattr(reference, table).astype(np.float32)
            assert_close("schedule", jnp.asarray(getattr(ours, table), jnp.float32), wanted, f"{name}.{table}")


def test_no_table_is_forgotten():
    """Every public table of either side is in TABLES."""
    for module in (schedules, twin_schedules):
        schedule = module.linear(3)
        public = {name for name in dir(schedule) if isinstance(getattr(schedule, name), np.ndarray)}
        assert public - {"timesteps"} == set(TABLES)


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(["linear", "quadratic", "sigmoid"]),
    num_steps=st.integers(1, 500),
    ends=st.tuples(st.floats(1e-5, 0.5), st.floats(1e-5, 0.5)).map(sorted),
)
def test_any_ends(name, num_steps, ends):
    assert_same_tables(getattr(schedules, name)(num_steps, *ends), getattr(twin_schedules, name)(num_steps, *ends))


@settings(max_examples=25, deadline=None)
@given(num_steps=st.integers(1, 500), s=st.floats(1e-3, 0.5), max_beta=st.floats(0.1, 0.9999))
def test_any_cosine(num_steps, s, max_beta):
    assert_same_tables(schedules.cosine(num_steps, s, max_beta), twin_schedules.cosine(num_steps, s, max_beta))


def test_a_table_that_starts_at_one():
    betas = np.array([0.0, 0.1, 0.2, 0.3])
    ours = schedules.Schedule(betas.copy(), np.cumprod(1 - betas), first=1)
    reference = twin_schedules.Schedule(betas, np.cumprod(1 - betas), first=1)
    np.testing.assert_array_equal(ours.timesteps, reference.timesteps)
    for name in TABLES:
        assert_close("schedule", getattr(ours, name)[1:], getattr(reference, name)[1:], name)
