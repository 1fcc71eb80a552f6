"""Posterior sampling of Gaussian data under a full covariance, where p(x_0 | x_t, y) and p(x_0 | y) are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import denoisers, operators, posterior, processes, samplers, schedules
from ddpm_jax.errors import UserError

DIMS = 4
MEAN = np.array([-0.8, 0.3, 0.9, -0.2])
ROOT = np.array([[0.9, 0, 0, 0], [0.6, 0.5, 0, 0], [-0.3, 0.4, 0.6, 0], [0.2, -0.5, 0.3, 0.4]])
COVARIANCE = ROOT @ ROOT.T
SEES = np.array([[1.0, 0.5, 0.0, -0.5], [0.0, 1.0, 1.0, 0.3]])
"""Two sums of the four values are measured."""
NOISE, Y = 0.3, np.array([0.4, 1.5])
FINE = processes.GaussianDiffusion(schedules.linear(40_000, 2.5e-6, 5e-4))
PROCESSES = {
    "chain": processes.GaussianDiffusion(schedules.cosine(1000), "v"),
    "flow": processes.FlowMatching(),
    "edm": processes.EDM(),
}
SHARES = [0.9, 0.5, 0.1]


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def exact(process, mean=MEAN, covariance=COVARIANCE):
    """The denoiser that is right of N(mean, covariance)."""
    values, vectors = np.linalg.eigh(covariance)

    def predict(seen, told):
        if isinstance(process, processes.EDM):
            t = jnp.exp(4 * told)
        elif isinstance(process, processes.FlowMatching):
            t = told / (process.num_steps - 1)
        else:
            t = told
        x_t = seen / process.network_input(jnp.ones_like(seen), t)
        alpha, sigma = process.level(t, x_t)
        along = (x_t - alpha * mean) @ vectors / (alpha**2 * values + sigma**2)
        return process.target(mean + (alpha * values * along) @ vectors.T, (sigma * along) @ vectors.T, t)

    return denoisers.of(process, predict)


def measurement(sees=SEES):
    return operators.of(lambda x: x @ jnp.asarray(sees.T, x.dtype), (sees.shape[1],))


def told(denoise, method=None, **options):
    options = {"noise": NOISE} | options
    return posterior.conditioned(denoise, measurement(), jnp.asarray(Y)[None], method=method, **options)


def of_x_0(mean=MEAN, covariance=COVARIANCE, noise=NOISE):
    """Mean and covariance of p(x_0 | y), by Bayes."""
    gain = covariance @ SEES.T @ np.linalg.inv(SEES @ covariance @ SEES.T + noise**2 * np.eye(len(SEES)))
    return mean + gain @ (Y - SEES @ mean), covariance - gain @ SEES @ covariance


def of_x_0_given(x_t, alpha, sigma, mean=MEAN, covariance=COVARIANCE):
    """E[x_0 | x_t, y] and V[x_0 | x_t], by Bayes in precisions."""
    before, prior = np.linalg.inv(covariance) + np.eye(len(mean)) * (alpha / sigma) ** 2, np.linalg.inv(covariance)
    precision = before + SEES.T @ SEES / NOISE**2
    right = (prior @ mean + SEES.T @ Y / NOISE**2) + x_t * alpha / sigma**2
    return np.linalg.solve(precision, right.T).T, np.linalg.inv(before)


def at(process, share):
    """A time, and some x_t there."""
    times = process.times(100)
    t = times[round((1 - share) * 100)]
    alpha, sigma = (np.asarray(part).item() for part in process.level(np.asarray([t]), jnp.ones((1, 1))))
    x_0 = np.random.default_rng(1).multivariate_normal(MEAN, COVARIANCE, 5)
    return t, alpha, sigma, jnp.asarray(alpha * x_0 + sigma * np.random.default_rng(2).standard_normal((5, DIMS)))


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("kind", PROCESSES)
def test_mmps_is_exact(kind, share):
    """As many iterations as there are measurements solve for y exactly; what is believed is then E[x_0 | x_t, y]."""
    process = PROCESSES[kind]
    t, alpha, sigma, x_t = at(process, share)
    hat = told(exact(process), posterior.MMPS(iterations=2))(x_t, t)
    expected, _ = of_x_0_given(np.asarray(x_t), alpha, sigma)
    np.testing.assert_allclose(hat.x_0, expected, atol=1e-8)
    np.testing.assert_allclose(alpha * hat.x_0 + sigma * hat.eps, x_t, atol=1e-9)
    once = told(exact(process), posterior.MMPS(iterations=1))(x_t, t)
    plain = exact(process)(x_t, t)
    errors = [np.abs(np.asarray(found.x_0) - expected).max() for found in (plain, once)]
    assert 1e-7 < errors[1] < errors[0]


@pytest.mark.parametrize("kind", PROCESSES)
def test_pigdm_is_exact_where_the_covariance_is_as_it_assumes(kind):
    process, sigma_data = PROCESSES[kind], 0.6
    covariance = sigma_data**2 * np.eye(DIMS)
    t, alpha, sigma, x_t = at(process, 0.5)
    expected, _ = of_x_0_given(np.asarray(x_t), alpha, sigma, covariance=covariance)
    right, wrong = (
        np.asarray(told(exact(process, covariance=covariance), posterior.PiGDM(s, iterations=2))(x_t, t).x_0)
        for s in (sigma_data, 1.0)
    )
    np.testing.assert_allclose(right, expected, atol=1e-8)
    assert np.abs(wrong - expected).max() > 1e-3


def test_dps_goes_down_the_slope_of_the_residual():
    """Its direction and size; and its limit: where x_0 is as good as known, a scale of |residual| / (2 noise^2) is exact."""
    process = PROCESSES["edm"]
    t, alpha, sigma, x_t = at(process, 0.5)
    plain = exact(process)(x_t, t)
    hat = told(exact(process), posterior.DPS(0.7))(x_t, t)

    def size(x):
        return jnp.sqrt(((jnp.asarray(Y) - exact(process)(x, t).x_0 @ SEES.T) ** 2).sum(-1))

    slope = jax.grad(lambda x: size(x).sum())(x_t)  # of |r|: that of |r|^2, over 2 |r|
    np.testing.assert_allclose(hat.x_0 - plain.x_0, -2 * 0.7 * sigma**2 / alpha * slope, rtol=1e-9)
    sigma = 1e-3
    x_t = jnp.asarray(np.random.default_rng(0).multivariate_normal(MEAN, COVARIANCE, 1))
    plain = exact(process)(x_t, sigma)
    scale = float(np.linalg.norm(Y - np.asarray(plain.x_0) @ SEES.T)) / (2 * NOISE**2)
    hat = told(exact(process), posterior.DPS(scale))(x_t, sigma)
    expected, _ = of_x_0_given(np.asarray(x_t), 1.0, sigma)
    shift = expected - np.asarray(plain.x_0)
    np.testing.assert_allclose(hat.x_0 - plain.x_0, shift, atol=1e-4 * np.abs(shift).max())


WALKS = {
    "edm heun": (processes.EDM(), samplers.Heun(), 60),
    "edm ancestral": (processes.EDM(), samplers.Ancestral("posterior"), 500),
    "chain ddim": (FINE, samplers.DDIM(), 150),
    "chain ancestral": (FINE, samplers.Ancestral(), 400),
    "chain dpmpp": (FINE, samplers.DPMSolver(), 40),
    "flow ddim": (processes.FlowMatching(), samplers.DDIM(), 150),
}


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[pytest.mark.slow] if "ancestral" in case else []) for case in WALKS]
)
def test_samples_are_of_the_posterior(case):
    process, sampler, num_steps = WALKS[case]
    spacing = "log_snr" if case == "chain dpmpp" else None
    denoise = told(exact(process), posterior.MMPS(iterations=2))
    x_0 = np.asarray(samplers.sample(denoise, sampler, 0, (20_000, DIMS), num_steps, spacing=spacing))
    mean, covariance = of_x_0()
    np.testing.assert_allclose(x_0.mean(0), mean, atol=0.03)
    np.testing.assert_allclose(np.cov(x_0.T), covariance, atol=0.03)
    assert np.abs(mean - MEAN).max() > 0.3 and np.abs(covariance - COVARIANCE).max() > 0.3


def test_methods_part_where_they_approximate():
    """With the wrong covariance the samples' own is wrong: what MMPS is for."""
    process, covariance = processes.EDM(), of_x_0()[1]
    errors = {}
    for method in (posterior.MMPS(2), posterior.PiGDM(), posterior.DPS(5.0)):
        x_0 = np.asarray(samplers.sample(told(exact(process), method), "heun", 0, (5_000, DIMS), 30))
        errors[method.name] = np.abs(np.cov(x_0.T) - covariance).max()
        assert np.abs(x_0.mean(0) - MEAN).max() > 0.1
    assert errors["mmps"] < 0.03 < min(errors["pigdm"], errors["dps"]), errors


# Conjugate gradients


def test_each_example_is_a_system_of_its_own():
    rng = np.random.default_rng(0)
    roots = rng.standard_normal((3, 5, 5)) * np.array([1e-3, 1.0, 1e3])[:, None, None]
    matrices, b = jnp.asarray(roots @ roots.transpose(0, 2, 1)), jnp.asarray(rng.standard_normal((3, 5)))

    def solve(matrices, b, iterations=5):
        return posterior.conjugate_gradients(lambda u: jnp.einsum("bij,bj->bi", matrices, u), b, iterations)

    expected = np.stack([np.linalg.solve(*pair) for pair in zip(matrices, b, strict=True)])
    for found, right in zip(solve(matrices, b, 8), expected, strict=True):
        np.testing.assert_allclose(found, right, rtol=1e-5)
    for n in range(3):
        np.testing.assert_allclose(solve(matrices[n : n + 1], b[n : n + 1])[0], solve(matrices, b)[n], rtol=1e-9)


def test_it_stops_where_there_is_no_way_down():
    b = jnp.asarray([[1.0, 2.0], [1.0, 2.0], [0.0, 0.0]])
    signs = jnp.asarray([[2.0], [-1.0], [1.0]])
    np.testing.assert_allclose(posterior.conjugate_gradients(lambda u: signs * u, b, 4), [[0.5, 1], [0, 0], [0, 0]])


# Around and within others


def test_it_goes_with_other_wrappers():
    chain, edm = PROCESSES["chain"], PROCESSES["edm"]
    t, alpha, sigma, x_t = at(chain, 0.5)
    # told before or after a change of process: the same, at the chain's own levels
    outside = told(denoisers.reparameterized(exact(chain), edm))
    inside = denoisers.reparameterized(told(exact(chain)), edm)
    np.testing.assert_allclose(
        outside(x_t / alpha, sigma / alpha).x_0, inside(x_t / alpha, sigma / alpha).x_0, atol=1e-9
    )
    hat = denoisers.clipped(told(exact(chain)), 0.5)(x_t, t)
    assert np.abs(hat.x_0).max() == 0.5
    np.testing.assert_allclose(alpha * hat.x_0 + sigma * hat.eps, x_t, atol=1e-9)

    def predict(x_t, told, labels):
        return exact(chain).function(x_t, told) + labels[:, None].astype(x_t.dtype)

    labelled = denoisers.of(chain, predict, labels=jnp.ones(5, jnp.int32), null_label=0)
    assert told(denoisers.guided(labelled, 2.0))(x_t, t).x_0.shape == x_t.shape
    assert (told(labelled).with_labels(jnp.zeros(5, jnp.int32)).labels == 0).all()
    with pytest.raises(UserError, match=r"conditioned\(guided"):
        denoisers.guided(told(labelled), 2.0)(x_t, t)


def test_where_x_t_holds_no_data_it_is_left_as_it_is():
    process = processes.FlowMatching()
    x_t = jnp.asarray(np.random.default_rng(0).standard_normal((3, DIMS)))
    for method in (posterior.MMPS(), posterior.PiGDM(), posterior.DPS()):
        hat, plain = told(exact(process), method)(x_t, 1.0), exact(process)(x_t, 1.0)
        np.testing.assert_array_equal(hat.x_0, plain.x_0)
        np.testing.assert_array_equal(hat.eps, plain.eps)


def test_numbers_and_measurements_are_leaves():
    """Another y, noise, scale or mask compiles nothing."""
    process, x_t = PROCESSES["edm"], jnp.ones((2, 4, 4, 1))
    denoise, calls = denoisers.of(process, lambda x, t: 0.5 * x), []

    @jax.jit
    def compiled(denoise, x_t):
        calls.append(None)
        return denoise(x_t, 1.0).x_0

    found = []
    for k in (1, 2):
        mask = operators.Mask(np.arange(16).reshape(1, 4, 4, 1) < 4 * k)
        method = posterior.DPS(0.1 * k)
        found.append(compiled(posterior.conditioned(denoise, mask, k * x_t, noise=0.1 * k, method=method), x_t))
    assert len(calls) == 1 and not np.allclose(*found)


@pytest.mark.usefixtures("without_the_checker")
def test_mistakes():
    denoise, operator, y = exact(PROCESSES["edm"]), measurement(), jnp.ones((1, 2))
    for make, message in (
        (lambda: posterior.conditioned(3, operator, y), "a denoiser is needed"),
        (lambda: posterior.conditioned(denoise, jnp.sin, y), r"operator must be one of .*operators\.of"),
        (lambda: posterior.conditioned(denoise, operator, [1.0]), r"y must be an array of floats"),
        (lambda: posterior.conditioned(denoise, operator, y.astype(int)), r"y must be an array of floats"),
        (lambda: posterior.conditioned(denoise, operator, y, noise=-1), "noise must be 0 or more, and finite; got -1"),
        (lambda: posterior.conditioned(denoise, operator, y, method="mmps"), r"method must be one of mmps, pigdm, dps"),
        (
            lambda: posterior.conditioned(denoise, operator, jnp.ones((1, 3)))(jnp.ones((5, 4)), 1.0),
            r"y must have the shape \(5, 2\)",
        ),
        (lambda: posterior.MMPS(0), "iterations must be at least 1; got 0"),
        (lambda: posterior.PiGDM(0.0), "sigma_data must be positive and finite; got 0"),
        (lambda: posterior.DPS(-1.0), "scale must be 0 or more, and finite; got -1"),
    ):
        with pytest.raises(UserError, match=message):
            make()
