"""MeanFlow against closed forms: a Gaussian's mean velocity is known, and so is where one step of any length leads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import cpu_forms, denoisers, models, presets, processes, samplers, training
from ddpm_jax.errors import UserError

pytestmark = pytest.mark.cpu_forms

MEAN, STD = 0.4, 0.5
FLOW = processes.MeanFlow()


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def spread(t):
    return jnp.sqrt((1 - t) ** 2 * STD**2 + t**2)


def moved(x, t, s):
    """Where the flow of data N(MEAN, STD^2) takes x from t to s: as many deviations from the mean as before."""
    return (1 - s) * MEAN + spread(s) / spread(t) * (x - (1 - t) * MEAN)


def velocity(x, t):
    return jax.jvp(lambda t: moved(x, jax.lax.stop_gradient(t), t), (t,), (jnp.ones_like(t),))[1]


def exact(x_t, told):
    """The mean velocity, as a network is asked for it: told t and t - s."""
    t, s = told[:, 0], told[:, 0] - told[:, 1]
    t, s = (time.reshape(-1, *[1] * (x_t.ndim - 1)) for time in (t, s))
    apart = jnp.where(t - s > 1e-9, t - s, 1.0)
    return jnp.where(t - s > 1e-9, (x_t - moved(x_t, t, s)) / apart, velocity(x_t, t))


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


def test_the_exact_mean_velocity_solves_the_identity():
    """Given the marginal velocity for the conditional one, the target of eq. 9 is the exact network's own output."""
    t = jnp.array([[0.9, 0.2], [0.7, 0.6], [0.5, 0.5], [1.0, 0.0], [0.3, 0.1]])
    x_t = normal(5, 3)
    v = velocity(x_t, t[:, :1])
    x_0, noise = x_t - t[:, :1] * v, x_t + (1 - t[:, :1]) * v
    np.testing.assert_allclose(FLOW.loss_per_example(exact, x_0, noise, t), 0, atol=1e-20)
    # a network that is told nothing of s says the velocity, which is wrong wherever the way is long
    wrong = FLOW.loss_per_example(lambda x, told: velocity(x, told[:, :1]), x_0, noise, t)
    assert (wrong[jnp.array([0, 3])] > 1e-4).all() and wrong[2] < 1e-20


def test_one_step_is_as_good_as_many():
    denoise = denoisers.of(FLOW, exact)
    x_T = normal(50, 3)
    for name in ("euler", "ddim"):
        for num_steps in (1, 2, 7):
            grid = samplers.as_sampler(name).grid(FLOW, num_steps)
            x_0 = samplers.walk(denoise, name, x_T, lambda i: jnp.zeros_like(x_T), grid).x_0
            np.testing.assert_allclose(x_0, MEAN + STD * x_T, rtol=0, atol=1e-12)
    # other methods follow the velocity itself
    grid = samplers.Heun().grid(FLOW, 50)
    x_0 = samplers.walk(denoise, "heun", x_T, lambda i: jnp.zeros_like(x_T), grid).x_0
    np.testing.assert_allclose(x_0, MEAN + STD * x_T, rtol=0, atol=2e-3)
    guided = denoisers.guided(denoise, 1.0, other=denoisers.of(FLOW, exact))
    grid = samplers.DDIM().grid(FLOW, 1)
    x_0 = samplers.walk(guided, "ddim", x_T, lambda i: jnp.zeros_like(x_T), grid).x_0
    np.testing.assert_allclose(x_0, MEAN + STD * x_T, rtol=0, atol=1e-12)


def test_times_are_pairs_in_order():
    drawn = np.asarray(processes.MeanFlow(apart=0.4).draw_times(jax.random.key(0), 20_000))
    t, s = drawn.T
    assert drawn.shape == (20_000, 2) and (s > 0).all() and (s <= t).all() and (t < 1).all()
    assert abs((s < t).mean() - 0.4) < 0.02
    together = np.sort(np.random.default_rng(0).standard_normal((200_000, 2)) - 0.4)
    logit = np.log(t / (1 - t))
    assert abs(logit.mean() - together[:, 1].mean()) < 0.03 and abs(logit.std() - together[:, 1].std()) < 0.03


@pytest.mark.parametrize("power", [0.0, 1.0, 0.5])
def test_the_weight_is_of_the_gradient_alone(power):
    flow = processes.MeanFlow(power=power)
    x_0, noise, t = normal(4, 3), normal(4, 3, seed=1), jnp.array([[0.9, 0.2], [0.7, 0.6], [0.5, 0.5], [0.4, 0.1]])

    def loss(a):
        return flow.loss_per_example(lambda x, told: a * x, x_0, noise, t)

    plain = ((0.7 * flow.add_noise(x_0, noise, t[:, 0]) - target(0.7, x_0, noise, t)) ** 2).mean(1)
    np.testing.assert_allclose(loss(0.7), plain, rtol=1e-12)
    x_t = flow.add_noise(x_0, noise, t[:, 0])
    error = 0.7 * x_t - target(0.7, x_0, noise, t)
    wanted = ((error**2).sum(1) + 1e-3) ** -power * (2 * error * x_t).mean(1)
    np.testing.assert_allclose(jax.jacobian(loss)(0.7), wanted, rtol=1e-10)


def target(a, x_0, noise, t):
    """v - (t - s) (v d/dx + d/dt) a x."""
    v = noise - x_0
    return v - (t[:, :1] - t[:, 1:]) * a * v


OPTIONS = {"image_size": 4, "channels": 1, "dim": 8, "dim_mults": (1,), "num_blocks": 1, "norm_groups": 4}


def test_networks_can_be_differentiated_forwards_where_it_is_asked_for():
    model = models.create("unet", rngs=0, **OPTIONS, interval=True)
    x, t = normal(2, 4, 4, 1).astype("float32"), jnp.array([[0.9, 0.4], [0.5, 0.0]], jnp.float32)
    graphdef, variables = models.split(model)

    def network(t):
        return models.apply(graphdef, variables, x, t)[0]

    with cpu_forms.forwards():
        assert not cpu_forms.fused()
        jax.jvp(network, (t,), (jnp.ones_like(t),))
    assert cpu_forms.fused()
    if jax.default_backend() == "cpu":
        with pytest.raises(TypeError, match="forward-mode"):
            jax.jvp(network, (t,), (jnp.ones_like(t),))


def test_a_training_step_goes_down():
    """With dropout, hidden labels and accumulation, by the step that every process has."""
    import optax

    model = models.create("unet", rngs=0, **OPTIONS, interval=True, num_classes=3, dropout=0.1)
    optimizer = optax.adam(3e-3)
    step = training.make_step(FLOW, optimizer, ema=0.9, accumulate=2, label_dropout=0.2)
    state = training.create_state(model, optimizer)
    rng = np.random.default_rng(0)
    losses = []
    for _ in range(25):
        x_0 = np.sign(rng.standard_normal((8, 1, 1, 1))).astype("float32") * np.ones((8, 4, 4, 1), "float32") * 0.8
        state, metrics = step(state, {"x_0": x_0, "label": rng.integers(0, 2, 8)}, jax.random.key(0))
        losses.append(float(metrics["loss"]))
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])


@pytest.mark.parametrize(
    ("call", "shown"),
    [
        (lambda: processes.MeanFlow(apart=0.0), r"apart must lie in \(0, 1\]; got 0"),
        (lambda: processes.MeanFlow(time_std=0.0), "time_std must be positive; got 0"),
        (lambda: processes.MeanFlow(power=-1.0), "power must be 0 or more; got -1"),
        (lambda: processes.MeanFlow(num_steps=0), "num_steps must be at least 1; got 0"),
        (lambda: presets.Preset(process=processes.MeanFlow()), "meanflow needs .*model.interval must be True"),
        (
            lambda: presets.Preset(model=models.configure("unet", {"interval": True})),
            "diffusion knows one time alone: model.interval must be False",
        ),
        (
            lambda: models.create("unet", rngs=0, **OPTIONS, interval=True)(jnp.ones((1, 4, 4, 1)), jnp.ones(1)),
            r"t must be \(B, 2\), t and the way to go for a unet with interval = True; got \(1,\)",
        ),
        (
            lambda: models.create("unet", rngs=0, **OPTIONS)(jnp.ones((1, 4, 4, 1)), jnp.ones((1, 2))),
            r"t must be \(B,\) for a unet with interval = False; got \(1, 2\)",
        ),
    ],
)
def test_what_does_not_fit_is_refused(call, shown):
    with pytest.raises(UserError, match=shown):
        call()
