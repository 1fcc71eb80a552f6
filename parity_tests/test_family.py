"""Samplers, paths, weightings, the bound, guidance and drawn times against the twin, whole walks with the same noise."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import assert_close
from twins import SMALL, compiled, indices, normal, to_nchw, to_nhwc

from ddpm_jax import denoisers, processes, samplers, schedules
from ddpm_jax.evaluation import variational_bound
from ddpm_jax.presets import TrainConfig
from ddpm_jax.training import Chance, Examples, Update, create_state, loss_aware, make_optimizer
from ddpm_torch_ref import denoisers as twin_denoisers
from ddpm_torch_ref import likelihood as twin_likelihood
from ddpm_torch_ref import processes as twin_processes
from ddpm_torch_ref import samplers as twin_samplers
from ddpm_torch_ref import schedules as twin_schedules
from ddpm_torch_ref import training as twin_training
from ddpm_torch_ref.training import loss_aware as twin_loss_aware

SHAPE = (2, 4, 4, 3)
NUM_STEPS = 12


def chain(schedule="linear", num_steps=1000, zero_terminal_snr=False, **options):
    made = []
    for module, process in ((schedules, processes), (twin_schedules, twin_processes)):
        table = getattr(module, schedule)(num_steps)
        if zero_terminal_snr:
            table = module.zero_terminal_snr(table)
        made.append(process.GaussianDiffusion(table, **options))
    return made


PATHS = {
    "linear": lambda: chain(),
    "cosine, v": lambda: chain("cosine", prediction="v"),
    "system 1": lambda: chain("cosine_unclipped", 500, prediction="x0"),
    "system 5": lambda: chain("linear_inclusive", 400),
    "no signal": lambda: chain(prediction="v", zero_terminal_snr=True),
    "flow": lambda: (processes.FlowMatching(), twin_processes.FlowMatching()),
    "blending": lambda: (processes.AlphaBlending(), twin_processes.AlphaBlending()),
    "edm": lambda: (processes.EDM(), twin_processes.EDM()),
}


def networks(dtype, channels=1):
    """The same function of (x_t, t) on both sides, linear in neither: nothing agrees by accident."""
    wild = normal(dtype, *SHAPE, seed=9)

    def ours(x_t, t):
        time = t.astype(dtype).reshape(-1, 1, 1, 1) / 2000
        out = jnp.sin(2 * x_t + wild) * (0.6 + time) + 0.3 * x_t
        return jnp.concatenate([out] + [jnp.cos(x_t + wild)] * (channels - 1), axis=-1)

    def theirs(x_t, t):
        time = t.to(x_t.dtype).reshape(-1, 1, 1, 1) / 2000
        out = torch.sin(2 * x_t + to_nchw(wild)) * (0.6 + time) + 0.3 * x_t
        return torch.cat([out] + [torch.cos(x_t + to_nchw(wild))] * (channels - 1), dim=1)

    return ours, theirs


SOLVERS = {
    "dpmpp_2m": samplers.DPMSolver(),
    "dpmpp_3m": samplers.DPMSolver(order=3),
    "dpmpp_2m_sde": samplers.DPMSolver(sde=True),
    "unipc": samplers.UniPC(),
    "euler": samplers.Euler(),
    "euler_ancestral": samplers.Euler(eta=1.0),
    "heun": samplers.Heun(),
    "midpoint": samplers.Midpoint(),
}
"""The twin's name: our sampler."""


def twin_of(sampler):
    """The twin's sampler of the same name and options."""
    return getattr(twin_samplers, type(sampler).__name__)(**vars(sampler))


BY_RATIO = ("euler", "euler_ancestral", "heun")
"""The twin walks these in sigma / alpha, which system 1 takes to 1e16: nothing is left of the data in x / alpha."""


def fits(solver, path):
    if path == "system 1" and solver in BY_RATIO:
        return False
    if path in ("flow", "blending"):
        return solver != "euler_ancestral"  # sigma / alpha is infinite at its start
    return (solver != "midpoint" or path == "edm") and (path != "no signal" or solver.startswith(("dpmpp", "unipc")))


@pytest.mark.parametrize(
    ("solver", "path", "clip"),
    [
        (solver, path, clip)
        for path in PATHS
        for solver in SOLVERS
        for clip in (None, 1.0)
        if fits(solver, path) and (clip is None or path in ("linear", "flow", "edm"))
    ],
)
def test_whole_walks(dtype, solver, path, clip):
    if dtype == "float32" and path == "cosine, v" and solver in BY_RATIO:
        pytest.skip("sigma / alpha reaches 1e4, too far for float32")
    process, twin = PATHS[path]()
    predict, twin_predict = networks(dtype)
    start, noises = normal(dtype, *SHAPE, seed=1), normal(dtype, 2 * NUM_STEPS, *SHAPE, seed=2)
    denoise, sampler = denoisers.of(process, predict), SOLVERS[solver]
    denoise = denoise if clip is None else denoisers.clipped(denoise, clip)
    grid = sampler.grid(process, NUM_STEPS, "even")
    walk = jax.jit(lambda x_T, noises: samplers.walk(denoise, sampler, x_T, lambda i: noises[i], grid, NUM_STEPS + 1))
    frames = np.asarray(walk(process.prior(jnp.asarray(start), grid[0, 0]), noises).frames)
    twin_denoise = twin_denoisers.of(twin, twin_predict)
    twin_denoise = twin_denoise if clip is None else twin_denoisers.clipped(twin_denoise, clip)
    twin_sampler = twin_of(sampler)
    twin_grid = twin_sampler.grid(twin, NUM_STEPS, "even")
    drawn = list(map(to_nchw, noises)).__getitem__
    x_T = twin.prior(to_nchw(start), twin_grid[0][0])
    states = twin_samplers.walk(twin_denoise, twin_sampler, x_T, drawn, twin_grid, NUM_STEPS + 1).frames
    assert len(frames) == len(states) == NUM_STEPS + 1
    for index, (ours, theirs) in enumerate(zip(frames, states, strict=True)):
        assert_close("trajectory", ours, to_nhwc(theirs), f"{solver} {path} clip {clip} after {index} steps")


CHURNS = {"bounded": {"churn": 3.0, "churn_min": 0.05, "churn_max": 50.0, "churn_noise": 1.003}, "all": {"churn": 3.0}}


@pytest.mark.parametrize("churn", CHURNS)
@pytest.mark.parametrize("path", ["linear", "edm"])
def test_heun_with_churn(dtype, path, churn):
    process, twin = PATHS[path]()
    predict, twin_predict = networks(dtype)
    x_T, noises = normal(dtype, *SHAPE, seed=1), normal(dtype, 2 * NUM_STEPS, *SHAPE, seed=2)
    sampler = samplers.Heun(**CHURNS[churn])
    grid, denoise = sampler.grid(process, NUM_STEPS), denoisers.of(process, predict)
    assert (grid[:, 2] > grid[:, 1]).any()
    ours = samplers.walk(denoise, sampler, jnp.asarray(x_T), lambda i: jnp.asarray(noises)[i], grid).x_0
    twin_sampler, drawn = twin_of(sampler), list(map(to_nchw, noises)).__getitem__
    twin_grid = twin_sampler.grid(twin, NUM_STEPS)
    np.testing.assert_allclose(grid, twin_grid, rtol=1e-13)
    denoise = twin_denoisers.of(twin, twin_predict)
    theirs = twin_samplers.walk(denoise, twin_sampler, to_nchw(x_T), drawn, twin_grid).x_0
    assert_close("trajectory", np.asarray(ours), to_nhwc(theirs), "heun with churn")


@pytest.mark.parametrize("path", ["linear", "cosine, v", "system 5", "flow", "edm"])
def test_inversion(dtype, path):
    process, twin = PATHS[path]()
    predict, twin_predict = networks(dtype)
    x_0, times = normal(dtype, *SHAPE, seed=3), process.times(NUM_STEPS)
    ours = samplers.ddim_inversion(denoisers.of(process, predict), jnp.asarray(x_0), times[::-1]).x_0
    theirs = twin_samplers.ddim_inversion(twin_denoisers.of(twin, twin_predict), to_nchw(x_0), times[::-1]).x_0
    assert_close("trajectory", np.asarray(ours), to_nhwc(theirs), f"inversion {path}")


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_grids(data):
    schedule = data.draw(st.sampled_from(["linear", "cosine", "sigmoid", "linear_inclusive", "cosine_unclipped"]))
    num_steps = data.draw(st.integers(2, 300))
    n = data.draw(st.integers(1, num_steps))
    process, twin = chain(schedule, num_steps, prediction="v")
    assert samplers.GRIDS.keys() == twin_samplers.GRIDS.keys()
    for name, grid in samplers.GRIDS.items():
        np.testing.assert_array_equal(grid(process, n), twin_samplers.GRIDS[name](twin, n))


def test_grids_of_edm():
    options = {"sigma_min": 0.01, "sigma_max": 20.0, "rho": 5.0}
    process, twin = processes.EDM(**options), twin_processes.EDM(**options)
    for name in ("even", "karras", "log_snr", "quadratic"):
        for n in (1, 2, 18):
            found = samplers.GRIDS[name](process, n)
            np.testing.assert_allclose(found, twin_samplers.GRIDS[name](twin, n), rtol=1e-13, err_msg=name)


@pytest.mark.parametrize("sigma", [0.002, 0.1, 0.5, 3.0, 80.0])
def test_edm_s_target_and_estimate(dtype, sigma):
    process, twin = PATHS["edm"]()
    x_0, noise = normal(dtype, *SHAPE, seed=4), normal(dtype, *SHAPE, seed=5)
    t = np.full(2, sigma, dtype)
    one, two = (
        (jnp.asarray(x_0), jnp.asarray(noise), jnp.asarray(t)),
        (to_nchw(x_0), to_nchw(noise), torch.as_tensor(t)),
    )
    for name in ("add_noise", "target"):
        # the twin subtracts c_skip x_t from x_0, which a small c_out makes large
        quantity = "gradient" if sigma == 0.002 and name == "target" else "process"
        assert_close(quantity, getattr(process, name)(*one), to_nhwc(getattr(twin, name)(*two)), f"{name} at {sigma}")
    hat, theirs = process.estimate(*one), twin.estimate(*two)
    assert_close("process", hat.x_0, to_nhwc(theirs.x_0), f"x_0 at {sigma}")
    # the twin divides a difference by sigma
    lost = "gradient" if sigma == 0.002 else "process"
    assert_close(lost, hat.eps, to_nhwc(theirs.eps), f"eps at {sigma}")
    assert_close("process", process.network_time(one[2]), twin.network_time(two[2]), f"c_noise at {sigma}")
    assert_close("process", process.network_input(one[0], one[2]), to_nhwc(twin.network_input(two[0], two[2])), "c_in")


@pytest.mark.parametrize("path", ["linear", "system 5", "flow", "edm"])
@pytest.mark.parametrize("other", ["cosine, v", "flow", "edm"])
def test_one_process_as_another(dtype, path, other):
    (process, twin), (aim, twin_aim) = PATHS[path](), PATHS[other]()
    predict, twin_predict = networks(dtype)
    ratios, x_t = np.array([0.05, 3.0], dtype), normal(dtype, *SHAPE, seed=7)
    t, twin_t = aim.time_at(jnp.asarray(ratios)), twin_aim.time_at(torch.as_tensor(ratios))
    np.testing.assert_allclose(t, twin_t, rtol=1e-6)
    ours = denoisers.reparameterized(denoisers.of(process, predict), aim)(jnp.asarray(x_t), t)
    theirs = twin_denoisers.reparameterized(twin_denoisers.of(twin, twin_predict), twin_aim)(to_nchw(x_t), twin_t)
    for name in ("x_0", "eps"):
        # in float32 a straight path's t near 0 keeps fewer digits of sigma / alpha
        assert_close("trajectory", getattr(ours, name), to_nhwc(getattr(theirs, name)), f"{name} of {path} as {other}")


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
@pytest.mark.parametrize("weighting", ["none", "p2", "snr", "truncated_snr", "min_snr"])
@pytest.mark.parametrize("loss", ["mse", "huber"])
def test_weighted_losses(dtype, weighting, prediction, loss):
    options = {"prediction": prediction, "weighting": weighting, "loss": loss, "p2_gamma": 0.7, "p2_k": 1.3}
    _same_losses(dtype, *chain("cosine", **options), t=[0, 640], name=f"{weighting} {prediction}")


@pytest.mark.parametrize("path", ["flow", "blending", "edm"])
@pytest.mark.parametrize("loss", ["mse", "l1", "huber"])
def test_losses_in_continuous_time(dtype, path, loss):
    kind = {"flow": "FlowMatching", "blending": "AlphaBlending", "edm": "EDM"}[path]
    made = (getattr(module, kind)(loss=loss) for module in (processes, twin_processes))
    _same_losses(dtype, *made, t=np.array([0.2, 0.9], dtype), name=path)


@pytest.mark.parametrize(("loss", "learned"), [("vlb", False), ("vlb", True), ("hybrid", True)])
def test_losses_of_the_bound(dtype, loss, learned):
    made = chain("cosine", loss=loss, learned_variance=learned)
    _same_losses(dtype, *made, t=[0, 640], name=loss, channels=1 + learned)


def _same_losses(dtype, process, twin, *, t, name, channels=1):
    predict, twin_predict = networks(dtype, channels)
    x_0, noise = np.clip(normal(dtype, *SHAPE, seed=4) / 2, -1, 1), normal(dtype, *SHAPE, seed=5)
    t, twin_t = (jnp.asarray(t), torch.as_tensor(t)) if isinstance(t, np.ndarray) else indices(t)
    ours = process.loss_per_example(predict, jnp.asarray(x_0), jnp.asarray(noise), t)
    theirs = twin.loss_per_example(twin_predict, to_nchw(x_0), to_nchw(noise), twin_t)
    # in float32 the decoder's difference of two probabilities leaves few digits
    quantity = "gradient" if process.loss in ("vlb", "hybrid") else "loss"
    for index in range(2):
        assert_close(quantity, ours[index], theirs[index], name)


@pytest.mark.parametrize(("variance", "clip"), [("posterior", None), ("beta", 1.0), ("learned", 1.0)])
def test_every_term_of_the_bound(variance, clip):
    learned = variance == "learned"
    process, twin = chain("linear", 30, loss="hybrid" if learned else "mse", learned_variance=learned)
    predict, twin_predict = networks("float64", 1 + learned)
    x_0 = np.rint(np.clip(normal("float64", *SHAPE, seed=4) / 2, -1, 1) * 127.5 + 127.5) / 127.5 - 1
    noises = normal("float64", 30, *SHAPE, seed=6)
    denoise = denoisers.of(process, predict)
    denoise = denoise if clip is None else denoisers.clipped(denoise, clip)
    ours = variational_bound(denoise, jnp.asarray(x_0), lambda i: jnp.asarray(noises)[i], variance=variance)
    twin_denoise = twin_denoisers.of(twin, twin_predict)
    twin_denoise = twin_denoise if clip is None else twin_denoisers.clipped(twin_denoise, clip)
    drawn = list(map(to_nchw, noises)).__getitem__
    theirs = twin_likelihood.variational_bound(twin_denoise, to_nchw(x_0), drawn, variance=variance)
    assert_close("loss", ours.prior, theirs.prior, "prior")
    assert_close("trajectory", ours.terms, theirs.terms, "terms")
    assert_close("trajectory", ours.total, theirs.total, "total")


def test_ancestral_sampling_with_a_learned_variance(dtype):
    process, twin = chain("linear", loss="hybrid", learned_variance=True)
    predict, twin_predict = networks(dtype, 2)
    x_T, noises = normal(dtype, *SHAPE, seed=1), normal(dtype, NUM_STEPS, *SHAPE, seed=2)
    sampler, denoise = samplers.Ancestral("learned"), denoisers.clipped(denoisers.of(process, predict))
    grid = sampler.grid(process, NUM_STEPS)
    ours = samplers.walk(denoise, sampler, jnp.asarray(x_T), lambda i: jnp.asarray(noises)[i], grid).x_0
    twin_sampler = twin_of(sampler)
    denoise = twin_denoisers.clipped(twin_denoisers.of(twin, twin_predict), 1.0)
    rows = twin_sampler.grid(twin, NUM_STEPS)
    drawn = list(map(to_nchw, noises)).__getitem__
    theirs = twin_samplers.walk(denoise, twin_sampler, to_nchw(x_T), drawn, rows).x_0
    assert_close("trajectory", np.asarray(ours), to_nhwc(theirs), "learned variance")


def test_guidance(dtype):
    predict, twin_predict = networks(dtype, 2)
    x_t, t, labels = normal(dtype, *SHAPE, seed=7), [30, 800], [0, 1]
    jax_t, twin_t = indices(t)
    twin_labels = indices(labels)[1]
    learned, twin = chain(loss="hybrid", learned_variance=True)

    def with_labels(x, t, labels):  # the network is one of two examples, of which each stands twice
        wide = jnp.stack([predict(x[i::2], t[i::2]) for i in range(2)], axis=1).reshape(len(x), *x.shape[1:-1], -1)
        return wide * (1 + labels.astype(dtype).reshape(-1, 1, 1, 1) / 3)

    def twin_with_labels(x, t, labels):
        return twin_predict(x, t) * (1 + labels.to(x.dtype).reshape(-1, 1, 1, 1) / 3)

    for rescale in (0.0, 0.7):
        denoise = denoisers.of(learned, with_labels, labels=labels, null_label=2)
        ours = denoisers.guided(denoise, 3.0, interval=(100.0, 900.0), rescale=rescale)
        twin_denoise = twin_denoisers.of(twin, twin_with_labels, labels=twin_labels, null_label=2)
        theirs = twin_denoisers.guided(twin_denoise, 3.0, interval=(100.0, 900.0), rescale=rescale).output
        out = ours.output(jnp.asarray(x_t), jax_t)
        # torch's standard deviation is the unbiased one, whose factor cancels in the quotient
        assert_close("step", np.asarray(out), to_nhwc(theirs(to_nchw(x_t), twin_t)), f"rescale {rescale}")


@pytest.mark.parametrize("value", [0.0, 0.1])
def test_guidance_of_an_output_of_one_value(dtype, value):
    """Where there is no deviation to bring back, both leave the output alone, of one example and not of the other."""
    x_t, t, labels = normal(dtype, *SHAPE, seed=7), [30, 800], [0, 1]
    jax_t, twin_t = indices(t)
    twin_labels = indices(labels)[1]

    def flat(x, t, labels):  # the first example, which stands there twice
        return jnp.where((jnp.arange(len(x)) < 2).reshape(-1, 1, 1, 1), jnp.asarray(value, x.dtype), x)

    def twin_flat(x, t, labels):
        return torch.cat([torch.full_like(x[:1], value), x[1:]])

    process, twin = chain()
    denoise = denoisers.of(process, flat, labels=labels, null_label=2)
    ours = denoisers.guided(denoise, 3.0, rescale=0.7).output(jnp.asarray(x_t), jax_t)
    twin_denoise = twin_denoisers.of(twin, twin_flat, labels=twin_labels, null_label=2)
    theirs = to_nhwc(twin_denoisers.guided(twin_denoise, 3.0, rescale=0.7).output(to_nchw(x_t), twin_t))
    assert np.isfinite(theirs).all()
    assert_close("step", np.asarray(ours), theirs, f"value {value}")
    np.testing.assert_allclose(np.asarray(ours)[0], value, rtol=1e-6)


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_classifier_guidance(dtype, prediction):
    process, twin = chain("cosine", prediction=prediction)
    predict, twin_predict = networks(dtype)
    x_t, t = normal(dtype, *SHAPE, seed=7), [30, 800]
    jax_t, twin_t = indices(t)
    denoise = denoisers.of(process, predict)
    ours = denoisers.classifier_guided(denoise, lambda x, t: -jnp.cos(x).sum((1, 2, 3)), 2.0)
    twin_denoise = twin_denoisers.of(twin, twin_predict)
    theirs = twin_denoisers.classifier_guided(twin_denoise, lambda x, t: -torch.cos(x).sum((1, 2, 3)), 2.0).output
    assert_close(
        "gradient", np.asarray(ours.output(jnp.asarray(x_t), jax_t)), to_nhwc(theirs(to_nchw(x_t), twin_t)), prediction
    )


def test_both_sides_refuse_a_classifier_where_there_is_only_noise():
    process, twin = chain(prediction="v", zero_terminal_snr=True)
    denoise = denoisers.of(process, lambda x_t, t: x_t)
    for call in (
        lambda: denoisers.classifier_guided(denoise, lambda x_t, t: x_t),
        lambda: twin_denoisers.classifier_guided(twin_denoisers.of(twin, lambda x_t, t: x_t), lambda x_t, t: x_t),
    ):
        with pytest.raises(ValueError, match=r"last alphas_cumprod .*above 0.*; got 0"):
            call()


def test_losses_decide_on_times():
    """The same draws and losses on both sides: histories, probabilities and weights."""
    rng = np.random.default_rng(0)
    history, twin = loss_aware.empty(5, 3), twin_loss_aware.empty(5, 3)
    for round_of in range(12):
        index, losses = rng.integers(5, size=8), rng.uniform(0.1, 2, 8)
        history = loss_aware.record(history, jnp.asarray(index), jnp.asarray(losses, jnp.float32))
        twin = twin_loss_aware.record(twin, torch.as_tensor(index), torch.as_tensor(losses))
        p = twin_loss_aware.probabilities(twin)
        np.testing.assert_allclose(loss_aware.probabilities(history), p, rtol=1e-5)
        assert (round_of < 2) == bool(np.allclose(p, 0.2)) or round_of < 4
    drawn, weights = loss_aware.draw(history, jax.random.key(0), 1000)
    twin_drawn, twin_weights = twin_loss_aware.draw(twin, torch.Generator().manual_seed(0), 1000)
    for index, weight in ((np.asarray(drawn), weights), (twin_drawn.numpy(), twin_weights)):
        np.testing.assert_allclose(weight, 1 / (5 * p[index]), rtol=1e-5)
        assert np.abs(np.bincount(index, minlength=5) / 1000 - p.numpy()).max() < 0.06


def test_a_self_conditioned_update(pair):
    """The network sees its own estimate, found without gradient, or zeros."""
    options = SMALL | {"channels": 1, "dim_mults": (1,), "attention_resolutions": ()}
    model, twin = pair("unet", "float64", **options, self_conditioning=True)
    process, twin_process = chain("cosine", prediction="v")
    update = Update(process, make_optimizer(TrainConfig(steps=1, lr=1e-3)), ema=0.5)
    x_0, noise = normal("float64", 2, 8, 8, 1, seed=1), normal("float64", 2, 8, 8, 1, seed=2)
    t, twin_t = indices([200, 700])

    ours = compiled(update.with_draws)
    for guess in (False, True):
        _, metrics = ours(create_state(model, update.optimizer), Examples(x_0, noise, t), Chance(guess=guess))
        other = copy.deepcopy(twin)
        twin_state = twin_training.create_state(other, torch.optim.Adam(other.parameters(), lr=1e-3))
        twin_update = twin_training.Update(twin_process, ema=0.5, grad_clip=1.0)
        twin_examples = twin_training.Examples(to_nchw(x_0), to_nchw(noise), twin_t)
        _, theirs = twin_update.with_draws(twin_state, twin_examples, twin_training.Chance(guess))
        for name in ("loss", "grad_norm"):
            assert float(metrics[name]) == pytest.approx(float(theirs[name]), rel=1e-9)


def test_bits_per_dimension_of_a_network(pair):
    """The whole bound through a real network in float32: to 1e-6 of the twin's."""
    options = SMALL | {"channels": 1, "dim_mults": (1,), "attention_resolutions": (), "learn_variance": True}
    model, twin = pair("unet", "float32", **options)
    process, twin_process = chain("linear", 20, loss="hybrid", learned_variance=True)
    denoise = denoisers.clipped(denoisers.of_network(model, process))
    x_0 = (
        np.rint(np.clip(normal("float32", 2, 8, 8, 1, seed=1) / 2, -1, 1) * 127.5 + 127.5).astype("float32") / 127.5 - 1
    )
    noises = normal("float32", 20, 2, 8, 8, 1, seed=2)

    @compiled
    def ours(denoise, x_0, noises):
        return variational_bound(denoise, x_0, lambda i: noises[i], variance="learned").total

    twin_denoise = twin_denoisers.clipped(twin_denoisers.of(twin_process, twin.eval()), 1.0)
    drawn = list(map(to_nchw, noises)).__getitem__
    theirs = twin_likelihood.variational_bound(twin_denoise, to_nchw(x_0), drawn, variance="learned")
    total = np.asarray(ours(denoise, x_0, noises))
    np.testing.assert_allclose(total, theirs.total.detach().numpy(), rtol=1e-6)
