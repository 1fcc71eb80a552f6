"""Samplers of the family against data whose every marginal is known: they converge, each at its order, to the exact answer."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import bound, denoisers, processes, samplers, schedules
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation import sliced_wasserstein, variational_bound
from ddpm_jax.samplers import GRIDS

MEAN, STD = np.array([-1.5, 0.0, 0.7]), np.array([0.3, 1.0, 2.0])
FINE = processes.GaussianDiffusion(schedules.linear(40_000, 2.5e-6, 5e-4))
"""So fine that rounding to timesteps stays out of the way."""
FLOW = processes.FlowMatching()
BLEND = processes.AlphaBlending()
EDM = processes.EDM()


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def gaussian(process, mean=MEAN, std=STD):
    """The network that is exactly right for x_0 ~ N(mean, std^2), as a denoiser."""
    return denoisers.of(process, exact_network(process, mean, std))


def exact_network(process, mean=MEAN, std=STD):

    def predict(seen, network_time):
        t = time_of(process, network_time)
        x_t = seen / process.network_input(jnp.ones_like(seen), t)
        alpha, sigma = process.level(t, x_t)
        variance = alpha**2 * std**2 + sigma**2
        eps = sigma * (x_t - alpha * mean) / variance
        x_0 = mean + alpha * std**2 * (x_t - alpha * mean) / variance
        return process.target(x_0, eps, t)

    return predict


def time_of(process, network_time):
    if isinstance(process, processes.GaussianDiffusion):
        return network_time
    if isinstance(process, processes.EDM):
        return jnp.exp(4 * network_time)
    share = network_time / (process.num_steps - 1)
    return 1 - share if isinstance(process, processes.AlphaBlending) else share


def exact_flow(process, noise):
    """Where the probability flow takes what is made of this noise: a Gaussian's quantiles are kept."""
    start = process.times(1)[:1]
    x_T = np.asarray(process.prior(jnp.asarray(noise), start[0]))
    alpha, sigma = map(np.asarray, process.level(start, jnp.asarray(x_T)))
    return MEAN + STD * (x_T - alpha * MEAN) / np.sqrt(alpha**2 * STD**2 + sigma**2)


def walk(denoise, x_T, sampler, num_steps, *, spacing=None, seed=None):
    grid = samplers.as_sampler(sampler).grid(denoise.process, num_steps, spacing)

    @jax.jit
    def run(x_T):
        def noise(index):
            if seed is None:
                return jnp.zeros_like(x_T)
            return jax.random.normal(jax.random.fold_in(jax.random.key(seed), index), x_T.shape)

        return samplers.walk(denoise, sampler, denoise.process.prior(x_T, grid[0, 0]), noise, grid).x_0

    return np.asarray(run(jnp.asarray(x_T)))


ORDERS = {
    # case: (process, sampler, spacing, order)
    "ddim": (FINE, "ddim", "log_snr", 1),
    "euler": (FINE, "euler", None, 1),
    "dpmpp_2m": (FINE, "dpmpp", "log_snr", 2),
    "dpmpp_3m": (FINE, samplers.DPMSolver(order=3), "log_snr", 3),
    "unipc": (FINE, "unipc", "log_snr", 2),
    "heun": (FINE, "heun", None, 2),
    "flow euler": (FLOW, "euler", None, 1),
    "flow heun": (FLOW, "heun", None, 2),
    "flow midpoint": (FLOW, "midpoint", None, 2),
    "blend euler": (BLEND, "euler", None, 1),
    "blend heun": (BLEND, "heun", None, 2),
    "edm euler": (EDM, "euler", None, 1),
    "edm heun": (EDM, "heun", None, 2),
    "edm midpoint": (EDM, "midpoint", None, 2),
    "edm dpmpp_2m": (EDM, "dpmpp", "log_snr", 2),
}


@pytest.mark.parametrize("case", ORDERS)
def test_order_of_convergence(case):
    """The error falls with the steps' size to the power that theory says, or faster."""
    process, sampler, spacing, order = ORDERS[case]
    x_T = np.random.default_rng(0).standard_normal((50, 3))
    exact = exact_flow(process, x_T)
    counts = [40, 80, 160]
    errors = [np.abs(walk(gaussian(process), x_T, sampler, n, spacing=spacing) - exact).max() for n in counts]
    slopes = -np.diff(np.log(errors)) / np.log(2)
    assert (slopes > order - 0.25).all(), (errors, slopes)
    assert errors[-1] < 0.25 / 3**order


@pytest.mark.parametrize(
    ("process", "sampler"),
    [
        (FINE, samplers.DPMSolver(sde=True)),
        (FINE, samplers.Euler(eta=1.0)),
        (FINE, samplers.Heun(churn=20.0)),
        (FLOW, samplers.Ancestral()),
        (FLOW, samplers.DDIM(eta=1.0)),
        (FLOW, samplers.DPMSolver()),
        (FLOW, samplers.DPMSolver(sde=True)),
        (FLOW, samplers.UniPC()),
        (BLEND, samplers.DPMSolver(order=3)),
        (EDM, samplers.Ancestral()),
        (EDM, samplers.Ancestral("posterior")),
        (EDM, samplers.Heun(churn=30.0, churn_min=0.05, churn_max=50.0)),
        (EDM, samplers.DPMSolver()),
        (EDM, samplers.DPMSolver(sde=True)),
        (EDM, samplers.UniPC()),
    ],
)
def test_mean_and_deviation(process, sampler):
    """With fresh noise too, and on paths that begin at pure noise, samples have the data's moments."""
    x_T = np.random.default_rng(0).standard_normal((20_000, 3))
    x_0 = walk(gaussian(process), x_T, sampler, 100, seed=1)
    error = STD / np.sqrt(len(x_0))
    assert (np.abs(x_0.mean(0) - MEAN) < 5 * error + 0.03 * STD).all()
    assert (np.abs(x_0.std(0) - STD) < 4 * error + 0.04 * STD).all()


@pytest.mark.parametrize("process", [*(pytest.param(path, marks=pytest.mark.slow) for path in (FLOW, BLEND)), EDM])
def test_an_adaptive_solver_keeps_its_tolerance(process):
    noise = jnp.asarray(np.random.default_rng(0).standard_normal((50, 3)))
    x_T = process.prior(noise, process.times(1)[0])
    errors, counts = [], []
    for tolerance in (1e-3, 1e-5, 1e-7):
        walked = samplers.solve(gaussian(process), jnp.asarray(x_T), tolerance, num_frames=3)
        x_0, frames, steps, broke = walked
        errors.append(np.abs(np.asarray(x_0) - exact_flow(process, noise)).max())
        counts.append(int(steps.max()))
        assert frames.shape == (3, 50, 3) and (broke == -1).all()
        np.testing.assert_allclose(frames[0], x_T)
    assert counts[0] < counts[2] < 200
    # the last step is Euler's, from as far away as the cleanest time
    assert (np.array(errors) < 20 * np.array([1e-3, 1e-5, 1e-7]) + 5 * process.cleanest**2).all(), errors


@pytest.mark.parametrize("process", [pytest.param(FLOW, marks=pytest.mark.slow), BLEND])
def test_a_clipped_adaptive_walk_ends(process):
    """Its velocity has no value at t = 0. A bound that nothing reaches changes nothing; of a clipped network's samples none lies
    beyond it."""
    x_T = np.random.default_rng(0).standard_normal((50, 3))
    clipped = denoisers.clipped(gaussian(process), 100.0)
    walk = samplers.solve(clipped, jnp.asarray(x_T), 1e-5, num_frames=3)
    np.testing.assert_allclose(walk.x_0, exact_flow(process, x_T), rtol=0, atol=2e-4)
    np.testing.assert_array_equal(walk.frames[-1], walk.x_0)
    assert (walk.broke == -1).all() and walk.num_steps.max() < 200
    x_0 = samplers.solve(denoisers.clipped(gaussian(process)), jnp.asarray(x_T)).x_0
    assert np.abs(x_0).max() == 1 and np.isfinite(x_0).all()


def test_what_an_adaptive_solver_needs(monkeypatch):
    with pytest.raises(UserError, match="continuous time"):
        samplers.sample(gaussian(FINE), "adaptive", 0, (2, 3))
    with pytest.raises(UserError, match="tolerance must be positive"):
        samplers.Adaptive(tolerance=0.0)
    monkeypatch.setitem(sys.modules, "diffrax", None)
    with pytest.raises(UserError, match=r"ddpm-jax\[ode\]"):
        samplers.sample(gaussian(FLOW), "adaptive", 0, (2, 3))


# A mixture: three clusters in the plane


CENTRES, WIDTH = np.array([[-1.0, -0.6], [1.0, -0.6], [0.0, 1.1]]), 0.15


def mixture(process):
    """The denoiser that is exactly right for three equally likely round clusters."""

    def predict(x_t, network_time):
        t = time_of(process, network_time)
        alpha, sigma = process.level(t, x_t)
        variance = alpha**2 * WIDTH**2 + sigma**2
        away = x_t[:, None, :] - alpha[..., None] * CENTRES  # (B, 3, 2)
        share = jax.nn.softmax(-0.5 * (away**2).sum(-1) / variance, axis=1)[..., None]
        eps = (share * sigma[..., None] * away / variance[..., None]).sum(1)
        x_0 = (share * (CENTRES + alpha[..., None] * WIDTH**2 * away / variance[..., None])).sum(1)
        return process.target(x_0, eps, t)

    return denoisers.of(process, predict)


def draw_mixture(n, seed):
    rng = np.random.default_rng(seed)
    return CENTRES[rng.integers(3, size=n)] + WIDTH * rng.standard_normal((n, 2))


def test_15_steps_of_dpm_solver_are_worth_250_ancestral_ones():
    process = processes.GaussianDiffusion(schedules.linear(1000))
    x_T = np.random.default_rng(0).standard_normal((4000, 2))
    real = draw_mixture(4000, 1).astype(np.float32)

    def distance(sampler, steps, **options):
        return sliced_wasserstein(
            walk(mixture(process), x_T, sampler, steps, seed=2, **options).astype(np.float32), real
        )

    quick, slow = distance("dpmpp", 15, spacing="log_snr"), distance("ancestral", 250)
    apart = sliced_wasserstein(draw_mixture(4000, 3).astype(np.float32), real)
    assert quick <= max(slow, 1.5 * apart), (quick, slow, apart)


# There and back


def test_inversion_comes_back():
    """Data -> noise -> data by deterministic DDIM: the error is of first order in the steps."""
    process = processes.GaussianDiffusion(schedules.cosine(1000))
    x_0 = np.random.default_rng(0).standard_normal((50, 3)) * STD + MEAN
    errors = []
    for num_steps in (100, 200, 400):
        times = process.times(num_steps)
        x_T = samplers.ddim_inversion(gaussian(process), jnp.asarray(x_0), times[::-1]).x_0
        back = walk(gaussian(process), x_T, "ddim", num_steps)
        errors.append(np.abs(back - x_0).max())
    assert errors[2] < 0.7 * errors[1] < 0.49 * errors[0] and errors[2] < 0.05
    assert (np.abs(np.asarray(x_T).mean(0)) < 0.6).all()


# Guidance


def test_guidance_of_gaussians_has_a_closed_form():
    """u + w (c - u) of two Gaussians with one variance is the score of a third, whose mean lies at w on the line through theirs."""
    process = FINE
    means = np.array([[-1.0, 0.0, 0.5], [0.0, 0.0, 0.0]])  # of the class, and of the unconditional network
    labels = jnp.zeros(20_000, jnp.int32)

    def predict(x_t, t, labels):
        return exact_network(process, mean=jnp.asarray(means)[labels], std=0.5)(x_t, t)

    denoise = denoisers.of(process, predict, labels=labels, null_label=1)
    x_T = np.random.default_rng(0).standard_normal((20_000, 3))
    for scale in (0.0, 1.0, 3.0):
        x_0 = walk(denoisers.guided(denoise, scale), x_T, "dpmpp", 50, spacing="log_snr")
        np.testing.assert_allclose(x_0.mean(0), scale * means[0], atol=0.02)
        np.testing.assert_allclose(x_0.std(0), 0.5, atol=0.02)


def test_guidance_within_an_interval_and_rescaled():
    """Of examples told apart by their first value; with a learned variance, which stays the conditional one's."""
    rng = np.random.default_rng(0)
    c, u = rng.standard_normal((2, 3, 4, 4, 2))
    t = jnp.array([1, 5, 9])

    def predict(x_t, t, labels):
        own = x_t[:, 0, 0, 0].astype(int)
        return jnp.where((labels == 7)[:, None, None, None], jnp.asarray(u)[own], jnp.asarray(c)[own])

    def guided(channels, process=FINE, **options):
        x_t = jnp.broadcast_to(jnp.arange(3.0)[:, None, None, None], (3, 4, 4, channels))
        denoise = denoisers.of(process, predict, labels=[0, 0, 0], null_label=7)
        return np.asarray(denoisers.guided(denoise, 2.0, interval=(2.0, 9.0), **options).output(x_t, t))

    out = guided(2)
    np.testing.assert_allclose(out[0], c[0])
    np.testing.assert_allclose(out[1:], (u + 2 * (c - u))[1:])
    np.testing.assert_allclose(guided(2, rescale=1.0).std((1, 2, 3)), c.std((1, 2, 3)))
    learned = processes.GaussianDiffusion(FINE.schedule, loss="hybrid", learned_variance=True)
    half = guided(1, learned)
    np.testing.assert_allclose(half[..., 1], c[..., 1])
    np.testing.assert_allclose(half[1:, ..., 0], (u + 2 * (c - u))[1:, ..., 0])


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_classifier_guidance_finds_the_posterior(prediction):
    """Given y = x_0 + noise, the exact log p(y | x_t) turns samples of the prior into samples of p(x_0 | y)."""
    process = processes.GaussianDiffusion(schedules.cosine(4000), prediction)
    y, spread = np.array([0.5, -1.0, 2.0]), 0.8

    def log_prob(x_t, t):
        alpha, sigma = process.level(t, x_t)
        variance = alpha**2 * STD**2 + sigma**2
        mean = MEAN + alpha * STD**2 * (x_t - alpha * MEAN) / variance
        of_y = STD**2 * sigma**2 / variance + spread**2
        return (-0.5 * (y - mean) ** 2 / of_y).sum(-1)

    guided = denoisers.classifier_guided(gaussian(process), log_prob)
    x_T = np.random.default_rng(0).standard_normal((20_000, 3))
    x_0 = walk(guided, x_T, "dpmpp", 60, spacing="log_snr")
    precision = 1 / STD**2 + 1 / spread**2
    np.testing.assert_allclose(x_0.mean(0), (MEAN / STD**2 + y / spread**2) / precision, atol=0.03)
    np.testing.assert_allclose(x_0.std(0), precision**-0.5, atol=0.03)


# The bound


def exactly(process, mean, std):
    """`gaussian` that knows the variance of the reverse step as well."""
    table, plain = process.schedule, exact_network(process, mean, std)

    def predict(x_t, t):
        alpha, sigma = process.level(t, x_t)
        of_x_0 = std**2 * sigma**2 / (alpha**2 * std**2 + sigma**2)
        coef1, lower, upper, known = (
            jnp.asarray(values)[t][:, None]
            for values in (
                table.posterior_mean_coef1,
                table.posterior_log_variance_clipped,
                np.log(table.betas),
                table.posterior_variance,
            )
        )
        wanted = jnp.log(known + coef1**2 * of_x_0)
        logit = 2 * (wanted - lower) / (upper - lower) - 1
        return jnp.concatenate([plain(x_t, t), jnp.broadcast_to(logit, x_t.shape)], axis=-1)

    return denoisers.of(process, predict)


@pytest.mark.parametrize("variance", ["posterior", "beta", "learned"])
def test_the_bound_brackets_the_exact_likelihood(variance):
    """8-bit data of a known distribution, and the network that is exactly right for it.

    The bound lies above the exact likelihood, and touches it where the variance is right as well.
    """
    learned = variance == "learned"
    options = {"loss": "hybrid", "learned_variance": True} if learned else {}
    process = processes.GaussianDiffusion(schedules.linear(1000), **options)
    mean, std = 0.1, 0.3
    x_0 = np.random.default_rng(0).normal(mean, std, (400, 8))
    x_0 = np.clip(np.rint(x_0 * 127.5 + 127.5), 0, 255) / 127.5 - 1
    exact = np.asarray(bound.decoder(jnp.asarray(x_0), jnp.full_like(x_0, mean), jnp.log(jnp.full_like(x_0, std**2))))
    key = jax.random.key(0)

    @jax.jit
    def total(x_0):
        def noise(i):
            return jax.random.normal(jax.random.fold_in(key, i), x_0.shape)

        denoise = (exactly if learned else gaussian)(process, mean, std)
        return variational_bound(denoise, x_0, noise, variance=variance).total

    found = float(total(jnp.asarray(x_0)).mean())
    gap = found - exact.mean()
    assert abs(gap) < 0.04 if learned else 0.01 < gap < 1, gap


def test_the_decoder_is_a_distribution():
    """Probabilities of the 256 pixel values add up to one, also where the mean lies outside."""
    pixels = jnp.asarray(np.arange(256) / 127.5 - 1)[:, None]
    for mean, std in ((0.0, 0.1), (0.9, 0.5), (-1.3, 0.2), (0.2, 0.003)):
        bits = bound.decoder(pixels, jnp.full_like(pixels, mean), jnp.full((1, 1), 2 * np.log(std)))
        assert float((2.0**-bits).sum()) == pytest.approx(1, abs=1e-9)


def test_kl_of_normals():
    x = jnp.zeros((2, 3))
    np.testing.assert_allclose(bound.normal_kl(x, jnp.zeros(()), x, jnp.zeros(())), 0)
    found = bound.normal_kl(x + 1.0, jnp.log(4.0), x, jnp.zeros(()))
    np.testing.assert_allclose(found, (np.log(0.5) + (4 + 1) / 2 - 0.5) / np.log(2))


# Grids


@pytest.mark.parametrize("schedule", ["cosine", "linear_inclusive", "cosine_unclipped"])
@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("num_steps", [1, 7, 100, 400])
def test_every_grid_descends(name, schedule, num_steps):
    process = processes.GaussianDiffusion(schedules.create(schedule, 400))
    grid = GRIDS[name](process, num_steps)
    first = process.schedule.first
    assert grid.dtype == np.int32 and len(grid) == num_steps + 1
    assert (np.diff(grid) < 0).all() and grid[-1] == first - 1
    short = {"leading": (num_steps - 1) * (400 // num_steps), "linspace": 399 if num_steps > 1 else 0}
    assert grid[0] == first + short.get(name, 399)
    if num_steps == 400:
        assert (grid == np.arange(first + 399, first - 2, -1)).all()


def test_churn_goes_up_again():
    """After each step but the last, by a factor in sigma / alpha; the next row begins there."""
    process = processes.GaussianDiffusion(schedules.linear(1000))
    plain = samplers.Heun().grid(process, 5, "even")
    assert plain.tolist() == [[999, 799], [799, 599], [599, 399], [399, 199], [199, -1]]
    churned = samplers.Heun(churn=1.0).grid(process, 5, "even")
    assert churned.shape == (5, 3) and churned[:, 1].tolist() == plain[:, 1].tolist()
    assert churned[0, 0] == 999 and (churned[1:, 0] == churned[:-1, 2]).all() and churned[-1, 2] == -1
    ratio = process.schedule.sqrt_recipm1_alphas_cumprod
    np.testing.assert_allclose(ratio[churned[:-1, 2]] / ratio[plain[:-1, 1]], 1.2, rtol=0.02)


def test_times_of_ones_own():
    given = samplers.DDIM().grid(FINE, spacing=[39_999, 500, -1])
    assert given.tolist() == [[39_999, 500], [500, -1]]
    assert samplers.Midpoint().grid(FLOW, spacing=(1.0, 0.3, 0.0)).tolist() == [[1.0, 0.3], [0.3, 0.0]]


@pytest.mark.parametrize(
    ("call", "shown"),
    [
        (
            lambda: samplers.Midpoint().grid(FINE),
            "which process.kind = diffusion has not.*fit: ancestral, ddim, euler, dpmpp, heun, strided, unipc",
        ),
        (lambda: samplers.Strided().grid(FLOW), "chain of timesteps.*fit: adaptive, ancestral.*midpoint"),
        (lambda: samplers.Ancestral("learned").grid(FINE), "learn_variance must be True"),
        (lambda: samplers.Ancestral("learned").grid(FLOW), "flow matching does not"),
        (lambda: samplers.DDIM(eta=1.5), "eta must lie in"),
        (lambda: samplers.Strided(eta=-0.1), "eta must lie in"),
        (lambda: samplers.DPMSolver(order=4), "order must be 2 or 3; got 4"),
        (lambda: samplers.DPMSolver(order=3, sde=True), "of order 2"),
        (lambda: samplers.DDIM().grid(FINE, 50_000), "1..40000"),
        (lambda: samplers.DDIM().grid(FLOW, 0), "at least 1"),
        (lambda: samplers.DDIM().grid(FLOW, 5, "karras"), "process.kind = flow has none"),
        (lambda: samplers.DDIM().grid(FINE, 5, "odd"), "spacing must be one of"),
        (lambda: samplers.DDIM().grid(FINE, spacing=[5, 9, 1]), "descend within 39999..-1"),
        (lambda: samplers.DDIM().grid(FINE, spacing=[5.5, 1.0]), "whole numbers"),
        (lambda: samplers.DDIM().grid(FINE, 3, [5, 1]), "steps must be None; got 3"),
        (lambda: samplers.Strided().grid(FINE, 5, "even"), "times of its own"),
        (lambda: samplers.Heun(churn=-1.0), "must not be negative"),
        (lambda: samplers.Heun(churn=1.0).grid(FLOW), "begins at infinity"),
    ],
)
def test_what_does_not_fit_is_refused(call, shown):
    with pytest.raises(UserError, match=shown):
        call()


def test_a_zero_terminal_snr():
    """The last timestep holds no data; v and x0 work there, eps and grids in sigma / alpha say that they do not."""
    schedule = schedules.zero_terminal_snr(schedules.linear(1000))
    plain = schedules.linear(1000)
    assert schedule.alphas_cumprod[-1] == 0 and schedule.alphas_cumprod[0] == pytest.approx(plain.alphas_cumprod[0])
    assert (np.diff(schedule.alphas_cumprod) < 0).all()
    np.testing.assert_allclose(np.cumprod(1 - schedule.betas), schedule.alphas_cumprod, atol=1e-12)
    with pytest.raises(UserError, match="eps says nothing"):
        processes.GaussianDiffusion(schedule)
    process = processes.GaussianDiffusion(schedule, "v")
    for name in ("heun", "euler"):
        with pytest.raises(UserError, match=r"pure noise|infinite"):
            samplers.as_sampler(name).grid(process, 10)
    x_T = np.random.default_rng(0).standard_normal((20_000, 3))
    for name in ("ancestral", "ddim", "dpmpp", "unipc"):
        x_0 = walk(gaussian(process), x_T, name, 250, seed=1)
        np.testing.assert_allclose(x_0.mean(0), MEAN, atol=0.1)
        np.testing.assert_allclose(x_0.std(0), STD, rtol=0.05)


def test_dynamic_thresholding():
    """The bound of each example is a quantile of its own |x_0|, at least clip; what exceeds it is cut, then all is scaled to
    clip.
    """
    process = processes.GaussianDiffusion(schedules.linear(10), "x0")
    x_0 = np.stack([np.linspace(-0.5, 0.5, 101), np.linspace(-4, 4, 101)])
    denoise = denoisers.of(process, lambda x_t, t: jnp.asarray(x_0))
    hat = denoisers.thresholded(denoise, 0.9)(jnp.zeros((2, 101)), 5)
    np.testing.assert_allclose(hat.x_0[0], x_0[0])
    largest = np.quantile(np.abs(x_0[1]), 0.9)
    np.testing.assert_allclose(hat.x_0[1], np.clip(x_0[1], -largest, largest) / largest)
    np.testing.assert_allclose(process.add_noise(hat.x_0, hat.eps, jnp.array([5, 5])), 0, atol=1e-12)
