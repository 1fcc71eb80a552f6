"""EDM against the paper's own formulas, written out, and against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import denoisers, editing, presets, processes, samplers, schedules
from ddpm_jax.errors import UserError

EDM = processes.EDM(sigma_data=0.6)
SIGMAS = np.array([0.002, 0.1, 0.6, 5.0, 80.0])
MEAN, STD = 0.3, 0.6


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def coefficients(sigma, sigma_data):
    """Table 1, last column: c_skip, c_out, c_in, c_noise."""
    total = sigma**2 + sigma_data**2
    return sigma_data**2 / total, sigma * sigma_data / np.sqrt(total), 1 / np.sqrt(total), np.log(sigma) / 4


def test_preconditioning_is_that_of_table_1():
    x, t = normal(5, 4, 4, 1), jnp.asarray(SIGMAS)
    c_skip, c_out, c_in, c_noise = (c.reshape(5, 1, 1, 1) for c in coefficients(SIGMAS, 0.6))
    output = normal(5, 4, 4, 1, seed=1)
    hat = EDM.estimate(x, output, t)
    np.testing.assert_allclose(hat.x_0, c_skip * x + c_out * output, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(hat.x_0 + SIGMAS.reshape(5, 1, 1, 1) * hat.eps, x, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(EDM.network_input(x, t), c_in * x, rtol=1e-12)
    np.testing.assert_allclose(EDM.network_time(t), c_noise.reshape(5), rtol=1e-12)


def test_the_loss_is_the_weighted_error_of_x_0():
    """lambda(sigma) |D(x_t) - x_0|^2 with lambda = (sigma^2 + sigma_data^2) / (sigma sigma_data)^2 (eq. 2 and 8)."""
    x_0, noise, t = normal(5, 4, 4, 1), normal(5, 4, 4, 1, seed=1), jnp.asarray(SIGMAS)
    said = normal(5, 4, 4, 1, seed=2)
    seen = []

    def network(x, c_noise):
        seen.append((x, c_noise))
        return said

    found = EDM.loss_per_example(network, x_0, noise, t)
    c_skip, c_out, c_in, c_noise = (c.reshape(5, 1, 1, 1) for c in coefficients(SIGMAS, 0.6))
    x_t = x_0 + SIGMAS.reshape(5, 1, 1, 1) * noise
    weight = (SIGMAS**2 + 0.36) / (SIGMAS * 0.6) ** 2
    wanted = weight * ((c_skip * x_t + c_out * said - x_0) ** 2).mean((1, 2, 3))
    np.testing.assert_allclose(found, wanted, rtol=1e-9)
    np.testing.assert_allclose(seen[0][0], c_in * x_t, rtol=1e-12)
    np.testing.assert_allclose(seen[0][1], c_noise.reshape(5), rtol=1e-12)


def test_the_output_has_unit_variance_wherever_it_is_asked():
    """What the preconditioning is for (appendix B.6): the input and the target of unit variance at every sigma."""
    x_0, noise = 0.6 * normal(5, 40_000), normal(5, 40_000, seed=1)
    t = jnp.asarray(SIGMAS)
    target = EDM.target(x_0, noise, t)
    seen = EDM.network_input(EDM.add_noise(x_0, noise, t), t)
    np.testing.assert_allclose(target.std(1), 1, atol=0.02)
    np.testing.assert_allclose(seen.std(1), 1, atol=0.02)


def test_sigmas_in_training_are_log_normal():
    drawn = np.log(np.asarray(processes.EDM(P_mean=-0.4, P_std=1.5).draw_times(jax.random.key(0), 100_000)))
    assert abs(drawn.mean() + 0.4) < 0.02 and abs(drawn.std() - 1.5) < 0.02
    assert abs(((drawn + 0.4) ** 3).mean()) < 0.1 and abs((((drawn + 0.4) / 1.5) ** 4).mean() - 3) < 0.1


def test_times_are_those_of_eq_5():
    process = processes.EDM(sigma_min=0.01, sigma_max=50.0, rho=5.0)
    n = 6
    wanted = [(50 ** (1 / 5) + i / (n - 1) * (0.01 ** (1 / 5) - 50 ** (1 / 5))) ** 5 for i in range(n)]
    np.testing.assert_allclose(process.times(n), [*wanted, 0], rtol=1e-12, atol=0)
    np.testing.assert_allclose(samplers.Heun().grid(process, n)[:, 0], wanted, rtol=1e-12)
    assert len(process.times()) == 19 and process.times(1).tolist() == [50, 0]


# Algorithm 2


def algorithm_2(D, x, times, noises, S_churn, S_tmin, S_tmax, S_noise):
    """Stochastic sampling as the paper prints it, line by line; noises[i] is that of step i."""
    N = len(times) - 1
    x = times[0] * x
    for i in range(N):
        t_i, t_next = times[i], times[i + 1]
        gamma = min(S_churn / N, np.sqrt(2) - 1) if S_tmin <= t_i <= S_tmax else 0
        t_hat = t_i + gamma * t_i
        x_hat = x + np.sqrt(t_hat**2 - t_i**2) * S_noise * noises[i]
        d = (x_hat - D(x_hat, t_hat)) / t_hat
        x = x_hat + (t_next - t_hat) * d
        if t_next != 0:
            d_next = (x - D(x, t_next)) / t_next
            x = x_hat + (t_next - t_hat) * (d + d_next) / 2
    return x


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"churn": 3.0},
        {"churn": 100.0},
        {"churn": 4.0, "churn_min": 0.05, "churn_max": 50.0, "churn_noise": 1.003},
        {"churn": 4.0, "churn_min": 0.5, "churn_max": 5.0},
    ],
)
def test_heun_is_algorithm_2(options):
    """Given the same noise: with churn the first step's goes into what the walk starts from."""

    def D(x, sigma):  # of no data in particular
        return np.tanh(np.asarray(x) / (1 + sigma)) * 0.7

    def network(seen, c_noise):
        sigma = jnp.exp(4 * c_noise)[:, None, None, None]
        x = seen * jnp.sqrt(sigma**2 + 0.36)
        c_skip, c_out = 0.36 / (sigma**2 + 0.36), 0.6 * sigma / jnp.sqrt(sigma**2 + 0.36)
        return (jnp.tanh(x / (1 + sigma)) * 0.7 - c_skip * x) / c_out

    noise, fresh = normal(2, 4, 4, 1), normal(10, 2, 4, 4, 1, seed=1)
    churn, least = options.get("churn", 0), options.get("churn_min", 0)
    most, strength = options.get("churn_max", np.inf), options.get("churn_noise", 1)
    wanted = algorithm_2(D, np.asarray(noise), EDM.times(10), np.asarray(fresh), churn, least, most, strength)
    sampler = samplers.Heun(**options)
    grid = sampler.grid(EDM, 10)
    first = EDM.times(10)[0]
    start = first * noise + strength * np.sqrt(grid[0, 0] ** 2 - first**2) * fresh[0]
    walked = samplers.walk(denoisers.of(EDM, network), sampler, start, lambda i: fresh[i + 1], grid, 3)
    # the last step's own noise is none of the walk's: where it churns, it begins with that of the row before
    np.testing.assert_allclose(walked.x_0, wanted, rtol=1e-8, atol=1e-9)


def test_the_walk_starts_at_the_grid_s_own_sigma():
    """sample() of a network that believes in no data at all: Euler's first step ends at (s / t) x_T."""
    nothing = denoisers.of(EDM, lambda seen, c_noise: jnp.zeros_like(seen))
    for sampler in (samplers.Euler(), samplers.Heun(churn=5.0)):
        _, frames = samplers.sample_with_frames(nothing, sampler, 0, (4000, 2), 8, num_frames=2)
        assert float(frames[0].std()) == pytest.approx(sampler.grid(EDM, 8)[0, 0], rel=0.03)


# The change of variables


def exact(process):
    """The network that is exactly right for x_0 ~ N(MEAN, STD^2), as a denoiser."""

    def network(seen, told):
        t = jnp.exp(4 * told) if isinstance(process, processes.EDM) else told
        t = told / (process.num_steps - 1) if isinstance(process, processes.LinearPath) else t
        x_t = seen / process.network_input(jnp.ones_like(seen), t)
        alpha, sigma = process.level(t, x_t)
        away = (x_t - alpha * MEAN) / (alpha**2 * STD**2 + sigma**2)
        return process.target(MEAN + alpha * STD**2 * away, sigma * away, t)

    return denoisers.of(process, network)


CHAIN = processes.GaussianDiffusion(schedules.linear(1000), "v")
FROM_1 = processes.GaussianDiffusion(schedules.linear_inclusive(400))
FLOW = processes.FlowMatching()


@pytest.mark.parametrize("chain", [CHAIN, FROM_1], ids=["from 0", "from 1"])
def test_a_chain_as_edm_walks_the_same_way(chain):
    """DDIM down a chain is Euler's method down the same sigma / alpha, step by step."""
    times = chain.times(10)[:-1]
    x_T = normal(3, 4, 4, 1)
    level = chain.level(times, jnp.zeros(()))
    sigmas = np.append(np.asarray(level.sigma / level.alpha).reshape(-1), 0.0)
    clean = chain.times(1)[-1]
    below = samplers.walk(exact(chain), "ddim", x_T, None_noise(x_T), samplers.rows(np.append(times, clean)), 11)
    edm = processes.EDM(sigma_max=float(sigmas[0]) + 1)
    as_edm = denoisers.reparameterized(exact(chain), edm)
    scale = np.append(np.asarray(level.alpha).reshape(-1), 1.0)
    above = samplers.walk(as_edm, "euler", x_T / scale[0], None_noise(x_T), samplers.rows(sigmas), 11)
    np.testing.assert_allclose(
        scale.reshape(-1, 1, 1, 1, 1)[:-1] * above.frames[:-1], below.frames[:-1], rtol=1e-9, atol=1e-9
    )
    np.testing.assert_allclose(above.x_0, below.x_0, rtol=1e-6, atol=1e-6 if chain is CHAIN else 0.05)


def None_noise(like):
    return lambda index: jnp.zeros_like(like)


@pytest.mark.parametrize("process", [CHAIN, FROM_1, FLOW, EDM], ids=lambda p: p.name)
@pytest.mark.parametrize("other", [CHAIN, FLOW, EDM], ids=lambda p: p.name)
def test_the_same_belief_on_every_path(process, other):
    """The exact denoiser of one process, asked as that of another, says what the other's own exact denoiser says."""
    ratios = jnp.array([0.02, 0.3, 1.0, 4.0, 7.0])
    t = other.time_at(ratios)
    level = other.level(t, ratios)
    chain = isinstance(process, processes.GaussianDiffusion) and process is not other
    x_t = normal(5, 3)
    moved = denoisers.reparameterized(exact(process), other)(x_t, t)
    own = exact(other)(x_t, t)
    # a chain has its own levels alone
    near = {"rtol": 0, "atol": 0.05} if chain else {"rtol": 1e-9, "atol": 1e-9}
    np.testing.assert_allclose(moved.x_0, own.x_0, **near)
    alpha, sigma = level.alpha[:, None], level.sigma[:, None]
    np.testing.assert_allclose(alpha * moved.x_0 + sigma * moved.eps, x_t, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("chain", [CHAIN, FROM_1], ids=["from 0", "from 1"])
def test_there_and_back_is_the_same_denoiser(chain):
    there = denoisers.reparameterized(exact(chain), EDM)
    back = denoisers.reparameterized(there, chain)
    x_t, t = normal(5, 3), jnp.asarray(chain.schedule.timesteps[[0, 1, 50, 200, -1]])
    for one, two in zip(back(x_t, t)[:2], exact(chain)(x_t, t)[:2], strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-8, atol=1e-8)


def test_the_nearest_timestep_in_log_sigma():
    for chain in (CHAIN, FROM_1):
        level = chain.level(chain.schedule.timesteps, jnp.zeros(()))
        ratios = np.asarray(level.sigma / level.alpha).reshape(-1)
        np.testing.assert_array_equal(chain.time_at(jnp.asarray(ratios)), chain.schedule.timesteps)
        wanted = np.exp(np.random.default_rng(0).uniform(np.log(ratios[0] / 2), np.log(2 * ratios[-1]), 200))
        nearest = np.abs(np.log(ratios) - np.log(wanted)[:, None]).argmin(1) + chain.schedule.first
        np.testing.assert_array_equal(chain.time_at(jnp.asarray(wanted)), nearest)


# All that stands on a process


def test_editing_and_inversion():
    """Gaussian data: its noise is found again, and what is hidden is drawn like the rest."""
    denoise = exact(EDM)
    x_0 = jnp.clip(MEAN + STD * normal(40, 4, 4, 1), -1, 1)
    x_T = editing.invert(denoise, x_0, num_steps=400)
    back = samplers.walk(denoise, "ddim", x_T, None_noise(x_T), samplers.rows(EDM.times(400))).x_0
    np.testing.assert_allclose(back, x_0, atol=0.05)
    assert float(x_T.std()) == pytest.approx(80, rel=0.2)
    bounded = np.asarray(x_0)
    mask = np.zeros((4, 4), bool)
    mask[:, 2:] = True
    filled = np.asarray(editing.inpaint(denoise, 0, bounded, mask, num_steps=100, resample=2, jump=5))
    np.testing.assert_allclose(filled[:, :, :2], bounded[:, :, :2], atol=1e-9)
    assert abs(filled[:, :, 2:].mean() - MEAN) < 0.1 and abs(filled[:, :, 2:].std() - STD) < 0.1
    varied = np.asarray(editing.vary(denoise, 0, bounded, strength=0.5, num_steps=30))
    assert abs(varied.mean() - MEAN) < 0.1 and abs(varied.std() - STD) < 0.1


def test_a_self_conditioned_network_sees_its_guess_as_it_is():
    """c_in is for x_t; the guess is clean data already."""
    seen = []

    def network(x, c_noise):
        seen.append(x)
        return x[..., :1]

    x_t, guess, t = normal(2, 3, 3, 1), normal(2, 3, 3, 1, seed=1), jnp.array([0.5, 20.0])
    denoise = denoisers.self_conditioned(denoisers.of(EDM, network)).given(guess)
    denoise(x_t, t)
    np.testing.assert_allclose(seen[0], jnp.concatenate([EDM.network_input(x_t, t), guess], axis=-1))


@pytest.mark.parametrize(
    ("call", "shown"),
    [
        (lambda: processes.EDM(sigma_data=0.0), "sigma_data must be positive and finite; got 0"),
        (lambda: processes.EDM(P_std=-1.0), "P_std must be positive"),
        (lambda: processes.EDM(P_mean=float("nan")), "P_mean must be finite"),
        (
            lambda: processes.EDM(sigma_min=1.0, sigma_max=0.5),
            "sigma_max must be finite and above sigma_min = 1; got 0.5",
        ),
        (lambda: processes.EDM(rho=0.0), "rho must be positive"),
        (lambda: processes.EDM(num_steps=0), "num_steps must be at least 1"),
        (lambda: EDM.times(0), "steps must be at least 1"),
        (lambda: EDM.level(np.array([-0.1]), jnp.zeros(1)), r"t must lie in 0..inf; got -0.1"),
        (lambda: samplers.DDIM().grid(EDM, 5, "leading"), "process.kind = edm has none"),
        (lambda: samplers.Strided().grid(EDM), "process.kind = edm has not.*fit:"),
        (lambda: samplers.Heun(churn_min=3.0, churn_max=1.0), "two numbers in order, from 0; got 3 and 1"),
        (lambda: samplers.Heun(churn_min=-1.0), "two numbers in order"),
        (
            lambda: denoisers.reparameterized(
                exact(EDM), processes.GaussianDiffusion(schedules.linear(10), loss="hybrid", learned_variance=True)
            ),
            "must not learn the variance",
        ),
        (
            lambda: presets.preset("spiral-flow").__class__(
                model=presets.preset("spiral").model, process=EDM, data=presets.preset("spiral").data
            ),
            "mlp counts timesteps",
        ),
    ],
)
def test_what_does_not_fit_is_refused(call, shown):
    with pytest.raises(UserError, match=shown):
        call()
