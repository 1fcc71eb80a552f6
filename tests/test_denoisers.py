"""Denoisers: any function is one, whatever wraps one is one, and all that takes one takes any."""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ddpm_jax import denoisers, editing, processes, samplers, schedules
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation import variational_bound

CHAIN = processes.GaussianDiffusion(schedules.linear(20))
LEARNED = processes.GaussianDiffusion(schedules.linear(20), loss="hybrid", learned_variance=True)
FLOW = processes.FlowMatching()
PROCESSES = {
    "eps": CHAIN,
    "v": processes.GaussianDiffusion(schedules.cosine(20), "v"),
    "learned": LEARNED,
    "flow": FLOW,
    "blending": processes.AlphaBlending(),
}
SHAPE = (2, 4, 4, 1)
X_T = jax.random.normal(jax.random.key(0), SHAPE)


def any_function(process):
    def function(x_t, t):
        out = jnp.sin(x_t) + 1e-3 * t.astype(float)[:, None, None, None]
        return jnp.concatenate([out, jnp.cos(x_t)], axis=-1) if process is LEARNED else out

    return denoisers.of(process, function)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Scaled:
    """A callable pytree: factor times x_t, moved by the label."""

    factor: jax.Array

    def __call__(self, x_t, t, labels=None):
        moved = 0 if labels is None else labels[:, None, None, None]
        return self.factor * x_t + moved


@pytest.mark.parametrize("name", samplers.SAMPLERS)
@pytest.mark.parametrize("process", PROCESSES)
def test_any_function_in_every_sampler(name, process):
    """Within bounds of its own, too."""
    process, sampler = PROCESSES[process], samplers.as_sampler(name)
    if sampler.misfit(process):
        with pytest.raises(UserError, match=r"Samplers that fit: .*ddim"):
            samplers.sample(any_function(process), name, 0, SHAPE, 5)
        return
    x_0 = samplers.sample(denoisers.clipped(any_function(process), 0.5), name, 0, SHAPE, 5)
    assert x_0.shape == SHAPE and np.isfinite(x_0).all()
    assert name == "strided" or np.abs(x_0).max() < 0.7


@pytest.mark.parametrize("process", PROCESSES)
def test_any_function_in_editing_and_inversion(process):
    denoise, x_0 = denoisers.clipped(any_function(PROCESSES[process])), np.linspace(-1, 1, 32).reshape(SHAPE)
    hidden = np.arange(4) < 2
    edited = editing.inpaint(denoise, 0, x_0, np.broadcast_to(hidden, (4, 4)), num_steps=5, resample=2, jump=2)
    np.testing.assert_allclose(
        edited[:, :, ~hidden], x_0[:, :, ~hidden], atol=2e-2 if process in ("eps", "v") else 1e-5
    )
    assert np.abs(edited[:, :, hidden] - x_0[:, :, hidden]).max() > 0.1
    assert editing.vary(denoise, 0, x_0, num_steps=5).shape == SHAPE
    assert editing.interpolate(denoise, x_0[0], x_0[1], 3, num_steps=5).shape == (3, *SHAPE[1:])
    assert editing.invert(denoise, x_0, num_steps=5).shape == SHAPE


def test_a_variation_walks_the_grid_that_is_asked_for():
    """The last estimate of x_0 is what DDIM ends with: here the time that the network was told last."""
    process = processes.GaussianDiffusion(schedules.linear(20), "x0")
    denoise = denoisers.of(process, lambda x, t: jnp.broadcast_to(t[:, None], x.shape).astype(x.dtype))
    for spacing, last in ((None, 3), ("leading", 0), ("linspace", 0), ("trailing", 3), ((11, 7, -1), 7)):
        steps = None if isinstance(spacing, tuple) else 5
        varied = editing.vary(denoise, 0, np.zeros((2, 3)), num_steps=steps, spacing=spacing)
        assert (np.asarray(varied) == last).all(), spacing


@pytest.mark.parametrize("process", ["eps", "v", "learned"])
def test_any_function_has_a_bound(process):
    denoise, x_0 = any_function(PROCESSES[process]), jnp.rint(X_T.clip(-1, 1) * 127.5 + 127.5) / 127.5 - 1
    found = variational_bound(denoise, x_0, lambda i: jax.random.normal(jax.random.key(i), SHAPE)).total
    assert found.shape == (2,) and np.isfinite(found).all()
    with pytest.raises(UserError, match="denoiser of a FlowMatching"):
        variational_bound(any_function(FLOW), x_0, lambda i: x_0)


WRAPPERS = {
    "clipped": lambda d: denoisers.clipped(d, 0.3),
    "thresholded": lambda d: denoisers.thresholded(d, 0.8, 0.5),
    "classifier": lambda d: denoisers.classifier_guided(d, lambda x, t: -(x**2).sum((1, 2, 3)), 0.1),
    "guided": lambda d: denoisers.guided(d, 2.0, other=denoisers.of(d.process, any_function(d.process).function)),
}


@pytest.mark.parametrize("process", ["eps", "v", "learned"])
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_the_output_of_what_wraps_one_stands_for_its_estimate(wrapper, process):
    """Read by the process as a network's output, it is the estimate; so each may be wrapped in any other."""
    process = PROCESSES[process]
    denoise, t = WRAPPERS[wrapper](any_function(process)), jnp.array([3, 17])
    hat, again = denoise(X_T, t), process.estimate(X_T, denoise.output(X_T, t), t)
    for ours, theirs in zip(hat, again, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            np.testing.assert_allclose(ours, theirs, atol=2e-5)
    for other in WRAPPERS.values():
        assert np.isfinite(other(denoise)(X_T, t).x_0).all()


# Guidance


def test_guidance_asks_once():
    """Both sides in one batch of twice the size; another denoiser is asked by itself, and with its own labels."""
    seen = []

    def function(x_t, t, labels):
        seen.append((x_t.shape[0], labels.tolist()))
        return x_t * (1 + labels[:, None, None, None])

    denoise = denoisers.of(CHAIN, function, labels=[3, 4], null_label=9)
    together = denoisers.guided(denoise, 2.0).output(X_T, 5)
    assert seen == [(4, [3, 9, 4, 9])]
    other = denoisers.guided(denoise, 2.0, other=denoise.with_labels(9))
    np.testing.assert_allclose(other.output(X_T, 5), together, rtol=1e-6)
    assert seen[1:] == [(2, [3, 4]), (2, [9, 9])]
    free = denoisers.of(CHAIN, lambda x_t, t: x_t)
    assert denoisers.guided(denoise, 2.0, other=free).with_labels([1, 2]).other.labels is None


def test_a_label_for_all():
    denoise = denoisers.of(CHAIN, Scaled(jnp.array(0.5)), labels=2, null_label=0)
    np.testing.assert_array_equal(denoise(X_T, 3).eps, denoise.with_labels([2, 2])(X_T, 3).eps)
    np.testing.assert_allclose(denoisers.guided(denoise, 3.0).output(X_T, 3), 0.5 * X_T + 6, rtol=1e-5)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda d: denoisers.guided(d, 2.0), "needs labels to guide to; got labels = None"),
        (lambda d: denoisers.guided(d.with_labels([0, 1]), 2.0), "which class stood for none by null_label"),
        (lambda d: denoisers.guided(d, 2.0, other=any_function(FLOW)), "other must be a denoiser of the same process"),
        (lambda d: denoisers.guided(d, 2.0, other=d, rescale=2.0), r"rescale must lie in \[0, 1\]; got 2"),
        (lambda d: denoisers.guided(d, 2.0, other=d, interval=(5.0, 1.0)), "two times in order; got 5 and 1"),
        (lambda d: denoisers.clipped(d, 0.0), "bound must be positive; got 0"),
        (lambda d: denoisers.thresholded(d, 1.5), r"quantile must lie in \(0, 1\]; got 1.5"),
        (lambda d: denoisers.classifier_guided(any_function(FLOW), lambda x, t: x), "begins at noise alone"),
        (lambda d: d(X_T, 3.5), "t must be a timestep, a whole number"),
        (lambda d: d(X_T, jnp.array([1, 2, 3])), r"one for each example \(2,\); got the shape \(3,\)"),
        (lambda d: d.with_labels([1, 2, 3])(X_T, 3), r"labels must have shape \(2,\).*got \(3,\)"),
        (
            lambda d: denoisers.of(CHAIN, lambda x_t, t: x_t[..., 0])(X_T, 3),
            r"output must have the shape \(2, 4, 4, 1\) for x_t \(2, 4, 4, 1\); got float32\[2,4,4\]",
        ),
        (lambda d: denoisers.of(LEARNED, lambda x_t, t: x_t)(X_T, 3), r"must have the shape \(2, 4, 4, 2\)"),
    ],
)
def test_what_does_not_fit_is_refused(call, says):
    with pytest.raises(UserError, match=says):
        call(any_function(CHAIN))


# Pytrees


def test_leaves_are_of_no_consequence_to_the_program():
    """A callable pytree keeps its leaves: other numbers, the same program. A function is told by its identity."""
    traced = []

    @jax.jit
    def run(denoise):
        traced.append(1)
        return denoise(X_T, 3).x_0

    for factor in (0.5, 0.7):
        run(denoisers.of(CHAIN, Scaled(jnp.array(factor)), labels=[0, 1]))
    assert len(traced) == 1
    plain = functools.partial(lambda x_t, t, scale: scale * x_t, scale=2.0)
    for _ in range(2):
        run(denoisers.of(CHAIN, plain))
    assert len(traced) == 2


def test_a_scalar_time_is_that_of_all():
    for name, t in (("eps", 7), ("flow", 0.5)):
        denoise = any_function(PROCESSES[name])
        one, each = denoise(X_T, t), denoise(X_T, jnp.full(2, t))
        np.testing.assert_array_equal(one.x_0, each.x_0)
    ends = any_function(FLOW)(X_T, 1)  # whole numbers are times of a straight path too
    np.testing.assert_allclose(ends.eps, X_T, atol=1e-6)


# Self-conditioning


class Opposed(nnx.Module):
    """x_0 is 0.9 less what it was believed to be before."""

    def __call__(self, x_t, t, labels=None, *, rngs=None):
        return 0.9 - x_t[..., 1:]


@pytest.mark.parametrize(
    ("sampler", "num_steps", "last"),
    [
        (samplers.DDIM(), 1, 0.5),
        (samplers.DDIM(), 2, 0.4),
        (samplers.DDIM(), 3, 0.5),
        (samplers.DPMSolver(), 2, 0.4),
        (samplers.Heun(), 1, 0.5),
        (samplers.Heun(), 2, 0.5),  # of three evaluations
    ],
)
def test_a_walk_hands_on_the_outermost_estimate(sampler, num_steps, last):
    """The guess is the bounded x_0 of the evaluation before, whichever step that was in; zeros at first."""
    process = processes.GaussianDiffusion(schedules.linear(20), "x0")
    network = denoisers.of_network(Opposed(), process)
    denoise = denoisers.clipped(denoisers.self_conditioned(network), 0.5)
    assert denoise.self_conditioned and not network.self_conditioned
    np.testing.assert_allclose(denoise.given(jnp.full(SHAPE, 0.7))(X_T, 3).x_0, 0.2, rtol=1e-6)
    np.testing.assert_allclose(samplers.sample(denoise, sampler, 0, SHAPE, num_steps), last, rtol=1e-5)


def test_guidance_around_self_conditioning():
    """The guess stands twice in the doubled batch, beside its own example."""
    process = processes.GaussianDiffusion(schedules.linear(20), "x0")

    def function(x_t, t, labels):
        return x_t[..., 1:] * (1 + labels[:, None, None, None])

    network = denoisers.of(process, function, labels=[1, 2], null_label=0)
    guess = jnp.ones(SHAPE) * jnp.array([0.1, 0.2])[:, None, None, None]
    guided = denoisers.guided(denoisers.self_conditioned(network), 2.0).given(guess)
    np.testing.assert_allclose(guided.output(X_T, 3)[:, 0, 0, 0], [0.3, 1.0], rtol=1e-5)
