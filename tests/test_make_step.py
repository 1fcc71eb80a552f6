"""ddpm_jax.training.make_step as the scripts of other people call it: any optimiser, any network, any batches."""

import itertools
import shutil
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from run_checks import assert_same_bits, state_in

from ddpm_jax import data, presets, processes, schedules, training
from ddpm_jax.errors import UserError
from ddpm_jax.training import create_state, forgetful, make_step

CHAIN = processes.GaussianDiffusion(schedules.linear(20))
X_0 = np.random.default_rng(0).uniform(-1, 1, (4, 8, 8, 1)).astype(np.float32)
LABELS = np.array([0, 2, 1, 2])

pytestmark = pytest.mark.usefixtures("without_the_checker")


class Scale(nnx.Module):
    """(x_t, t, labels) -> a * x_t: its gradient can be had by hand."""

    def __init__(self, a=0.5):
        self.a = nnx.Param(jnp.array(a))

    def __call__(self, x_t, t, labels=None):
        return self.a[...] * x_t


def gradient_of_scale(state, step, x_0, seed):
    """Of the mean of (a x_t - eps)^2, from the draws that the step makes."""
    examples, _ = step.update.draw(state, {"x_0": jnp.asarray(x_0)}, jax.random.key(seed))
    x_t = CHAIN.add_noise(examples.x_0, examples.noise, examples.t)
    return float((2 * (state.params["a"] * x_t - examples.noise) * x_t).mean())


# Optimisers --------------------------------------------------------------------------------------------------------


def test_the_optimiser_given_is_the_one_that_moves_the_parameters():
    """Adam at 1e-9 moves a parameter by 1e-9, plain descent by its rate times the gradient."""
    state, step = create_state(Scale(), optax.sgd(0.25)), make_step(CHAIN, optax.sgd(0.25))
    wanted = 0.5 - 0.25 * gradient_of_scale(state, step, X_0, 3)
    state, _ = step(state, X_0, 3)
    assert float(state.params["a"]) == pytest.approx(wanted, rel=1e-5)
    adam = optax.adam(1e-9)
    state, _ = make_step(CHAIN, adam)(create_state(Scale(0.0), adam), X_0, 3)
    assert abs(float(state.params["a"])) == pytest.approx(1e-9, rel=1e-3)


OPTIMIZERS = {
    "adam": lambda: optax.adam(1e-2),
    "adamw": lambda: optax.adamw(1e-2),
    "sgd": lambda: optax.sgd(1e-2, momentum=0.9),
    "lion": lambda: optax.lion(1e-2),
    "muon": lambda: optax.contrib.muon(1e-2),
    "adafactor": lambda: optax.adafactor(1e-2),
    "a schedule": lambda: optax.adam(optax.warmup_cosine_decay_schedule(0.0, 3e-2, 1, 80)),
    "apply_if_finite": lambda: optax.apply_if_finite(optax.adam(1e-2), 3),
    "multi_steps": lambda: optax.MultiSteps(optax.adam(1e-2), 2).gradient_transformation(),
    "hyperparameters": lambda: optax.inject_hyperparams(optax.adam)(1e-2),
    "on a plateau": lambda: optax.chain(optax.adam(1e-2), optax.contrib.reduce_on_plateau()),
    "clipped": lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.add_decayed_weights(1e-4), optax.adam(1e-2)),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_any_optimiser_learns(name):
    """To tell the noise from what it was added to: the loss of one batch falls."""
    optimizer = OPTIMIZERS[name]()
    model = nnx.Linear(2, 2, rngs=nnx.Rngs(0))

    class Network(nnx.Module):
        def __init__(self):
            self.linear = model

        def __call__(self, x_t, t, labels=None):
            return self.linear(x_t)

    state, step = create_state(Network(), optimizer), make_step(CHAIN, optimizer, ema=0.5)
    points = np.random.default_rng(0).normal(size=(64, 2)).astype(np.float32)
    losses = []
    for _ in range(40):
        state, metrics = step(state, points, 0)
        losses.append(float(metrics["loss"]))
    assert int(state.step) == 40 and np.mean(losses[-10:]) < np.mean(losses[:3])


def test_forgetting_is_a_wrapper_of_an_optimiser():
    """Momentum that is forgotten after every second update is that of two updates at most."""
    inner = optax.scale_by_adam(b1=0.5)
    optimizer = forgetful(inner, 2)
    grads, state = {"a": jnp.array(1.0)}, optimizer.init({"a": jnp.array(0.0)})
    counts = []
    for _ in range(5):
        _, state = optimizer.update(grads, state, grads)
        counts.append((int(state.count), float(state.mu["a"])))
    assert counts == [(1, 0.5), (2, 0.75), (1, 0.5), (2, 0.75), (1, 0.5)]


def test_an_average_of_the_parameters():
    """Decay 1/10, then 2/11: the closed form of the warm-up."""
    optimizer = optax.sgd(0.1)
    state, step, average = create_state(Scale(), optimizer), make_step(CHAIN, optimizer, ema=0.999), 0.5
    for k in range(3):
        state, _ = step(state, X_0, 0)
        decay = (1 + k) / (10 + k)
        average = decay * average + (1 - decay) * float(state.params["a"])
        assert float(state.ema_params["a"]) == pytest.approx(average, rel=1e-6)


# Networks ----------------------------------------------------------------------------------------------------------


class Constant(nnx.Variable):
    """Kept, not trained."""


class Own(nnx.Module):
    """What a user's network may hold: dropout with its own stream, statistics, constants, bare arrays."""

    def __init__(self, rngs):
        self.linear = nnx.Linear(1, 1, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.norm = nnx.BatchNorm(1, rngs=rngs)
        self.kept = Constant(jnp.ones(1))
        self.bare = nnx.data(jnp.full(1, 2.0))

    def __call__(self, x_t, t, labels=None):
        return self.norm(self.linear(self.dropout(x_t))) * self.kept[...] + 0 * self.bare


def test_a_network_of_ones_own():
    """Its dropout differs from step to step and is off in the denoiser; statistics move, constants stay."""
    optimizer = optax.sgd(0.0)
    state, step = create_state(Own(nnx.Rngs(0)), optimizer), make_step(CHAIN, optimizer)
    before = np.array(state.batch_stats["norm"]["mean"])
    losses = []
    for seed in (0, 0, 1):
        examples, chance = step.update.draw(state, {"x_0": X_0}, jax.random.key(seed))
        losses.append(float(jax.jit(step.update.gradients)(state, examples, chance).losses.mean()))
    assert losses[0] == losses[1] != losses[2]
    dropped = {
        float(jax.jit(step.update.gradients)(state, examples, training.Chance(jax.random.key(k))).losses.mean())
        for k in range(3)
    }
    assert len(dropped) == 3  # by dropout alone
    state, _ = step(state, X_0, 0)
    assert not np.allclose(state.batch_stats["norm"]["mean"], before)
    np.testing.assert_array_equal(state.batch_stats["kept"], 1)
    np.testing.assert_array_equal(state.batch_stats["bare"], 2)
    denoise = state.denoiser(CHAIN)
    np.testing.assert_array_equal(denoise(X_0, 3).eps, denoise(X_0, 3).eps)


def test_a_network_that_is_told_of_no_labels():
    class Short(nnx.Module):
        def __init__(self):
            self.a = nnx.Param(jnp.array(0.5))

        def __call__(self, x_t, t):
            return self.a[...] * x_t

    optimizer = optax.sgd(0.1)
    step = make_step(CHAIN, optimizer)
    state, metrics = step(create_state(Short(), optimizer), X_0, 0)
    other, expected = step(create_state(Scale(), optimizer), X_0, 0)
    assert metrics["loss"] == expected["loss"] and state.params["a"] == other.params["a"]
    with pytest.raises(UserError, match=r"Short is called as model\(x_t, t\) and takes none"):
        step(create_state(Short(), optimizer), (X_0, LABELS), 0)


# Batches -----------------------------------------------------------------------------------------------------------


class Classes(nnx.Module):
    """(x_t, t, labels) -> a weight for each class."""

    num_classes = 4

    def __init__(self):
        self.weights = nnx.Param(jnp.arange(4.0))

    def __call__(self, x_t, t, labels):
        return self.weights[...][labels][:, None, None, None] * x_t


def test_batches_in_every_form():
    optimizer = optax.sgd(0.1)
    step, found = make_step(CHAIN, optimizer), []
    for batch in (
        {"x_0": X_0, "label": LABELS},
        {"image": jnp.asarray(X_0), "label": LABELS.astype(np.uint8)},
        (X_0, LABELS),
        [X_0, LABELS.tolist()],
    ):
        _, metrics = step(create_state(Classes(), optimizer), batch, jax.random.key(2))
        found.append(metrics["loss"])
    assert len(set(map(float, found))) == 1
    alone = [
        step(create_state(Scale(), optimizer), batch, np.int64(2))[1]["loss"] for batch in (X_0, (X_0,), {"x_0": X_0})
    ]
    assert len(set(map(float, alone))) == 1


def test_bytes_are_scaled_as_the_pipeline_scales():
    pixels = np.random.default_rng(0).integers(0, 256, X_0.shape).astype(np.uint8)
    optimizer = optax.sgd(0.1)
    step = make_step(CHAIN, optimizer)
    _, found = step(create_state(Scale(), optimizer), pixels, 0)
    _, wanted = step(create_state(Scale(), optimizer), (pixels / np.float32(127.5) - 1), 0)
    assert float(found["loss"]) == pytest.approx(float(wanted["loss"]), rel=1e-5)


def test_labels_are_dropped_for_the_last_class():
    """All of them: the loss is that of the last class, whatever the labels say."""
    optimizer = optax.sgd(0.1)
    update = make_step(CHAIN, optimizer, label_dropout=0.5).update
    state, hidden = create_state(Classes(), optimizer), 0
    for seed in range(50):
        labels = np.asarray(update.draw(state, {"x_0": X_0, "label": LABELS}, jax.random.key(seed))[0].labels)
        assert set(labels[labels != LABELS]) <= {3}
        hidden += (labels == 3).sum()
    assert 70 <= hidden <= 130  # of 200


REFUSED = {
    "an optimiser that was not called": (lambda: make_step(CHAIN, optax.adam), "got the function adam"),
    "a rate for an optimiser": (lambda: make_step(CHAIN, 1e-3), "must be an optax optimiser, .*; got a float"),
    "a schedule for a process": (lambda: make_step(schedules.linear(10), optax.sgd(1)), "process must be a process"),
    "an average of 1": (lambda: make_step(CHAIN, optax.sgd(1), ema=1.0), r"ema must lie in \[0, 1\).*; got 1.0"),
    "a dropout of 2": (lambda: make_step(CHAIN, optax.sgd(1), label_dropout=2), "label_dropout must lie in"),
    "no parts": (lambda: make_step(CHAIN, optax.sgd(1), accumulate=0), "accumulate must be at least 1; got 0"),
    "a dtype that is none": (lambda: make_step(CHAIN, optax.sgd(1), dtype="bfloat"), "dtype must be .*got 'bfloat'"),
    "a class for a network": (
        lambda: create_state(Scale, optax.sgd(1)),
        "model must be an nnx.Module; got the class Scale",
    ),
    "a function for a network": (lambda: create_state(lambda x, t: x, optax.sgd(1)), "got the function <lambda>"),
    "a network and no optimiser": (lambda: create_state(Scale(), None), "got a NoneType"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused_when_made(what):
    call, says = REFUSED[what]
    with pytest.raises(UserError, match=says):
        call()


def called(batch=X_0, *, model=Scale, state_of=None, key=0, **options):
    optimizer = optax.adam(0.1)
    state = create_state(model(), optimizer) if state_of is None else state_of()
    return make_step(CHAIN, optimizer, **options)(state, batch, key)


CALLS = {
    "another optimiser's state": (
        lambda: called(state_of=lambda: create_state(Scale(), optax.sgd(0.1))),
        "made for another optimiser than this step's",
    ),
    "a network for a state": (lambda: called(state_of=Scale), "state must be a TrainState, .*; got a Scale"),
    "no labels": (lambda: called(model=Classes), "the network has 4 classes, so that a batch needs labels"),
    "labels as numbers": (lambda: called((X_0, np.ones(4))), "labels must be whole numbers .* got float"),
    "three labels": (lambda: called((X_0, LABELS[:3])), r"of the shape \(4,\), one for each.* the shape \(3,\)"),
    "labels to drop from none": (lambda: called(label_dropout=0.1), "label_dropout = 0.1 needs a batch with labels"),
    "labels to drop of no number": (
        lambda: called((X_0, LABELS), label_dropout=0.1),
        "label_dropout needs a network that says how many classes it has",
    ),
    "bytes as floats": (lambda: called(X_0 * 127.5 + 127.5), r"floats in \[-1, 1\] .* got floats in \[0"),
    "bytes as integers": (lambda: called((X_0 * 100).astype(int)), "must be uint8 pixels .* got int"),
    "one image": (lambda: called(X_0[0, 0, 0]), r"a batch of examples, \(B, ...\); got the shape \(1,\)"),
    "no images": (lambda: called(X_0[:0]), r"a batch of examples.*got the shape \(0, 8, 8, 1\)"),
    "parts that do not fit": (lambda: called(accumulate=3), "accumulate = 3 must divide the batch; got 4 examples"),
    "another key in a dict": (lambda: called({"images": X_0}), r"a batch must be .*; got \['images'\]"),
    "a path": (lambda: called("images/"), "a batch must be .* as arrays.*; got str"),
    "nothing": (lambda: called(None), "a batch must be .* got NoneType"),
    "a list of images": (lambda: called([X_0, LABELS, LABELS]), "a batch must be .* got list"),
    "a key in words": (lambda: called(key="zero"), "key must be a key of jax.random, or a seed; got 'zero'"),
    "half a seed": (lambda: called(key=0.5), "or a seed; got 0.5"),
}


@pytest.mark.parametrize("what", CALLS)
def test_refused_when_called(what):
    call, says = CALLS[what]
    with pytest.raises(UserError, match=says):
        call()


def test_a_state_that_was_consumed():
    optimizer = optax.sgd(0.1)
    state, step = create_state(Scale(), optimizer), make_step(CHAIN, optimizer)
    step(state, X_0, 0)
    with pytest.raises(UserError, match="consumed by an earlier step: go on with the state which that step returned"):
        step(state, X_0, 0)


def test_data_of_any_range_where_it_is_asked_for():
    state, metrics = called(100 * X_0, bounded=False)
    assert int(state.step) == 1 and np.isfinite(metrics["loss"])


class Guessing(Scale):
    """Looks at x_t and at an earlier estimate of x_0, in turn along the channels."""

    self_conditioning = True

    def __call__(self, x_t, t, labels=None):
        return self.a[...] * x_t[..., :1] + x_t[..., 1:]


def test_a_network_that_is_shown_its_own_guess():
    """Zeros half of the time, and in the denoiser whatever the walk carries; arrays of its own outlive the state."""
    optimizer = optax.sgd(0.1)
    state, step = create_state(Guessing(), optimizer), make_step(CHAIN, optimizer)
    shown = [bool(step.update.draw(state, {"x_0": X_0}, jax.random.key(seed))[1].guess) for seed in range(40)]
    assert 10 <= sum(shown) <= 30
    denoise = state.denoiser(CHAIN)
    assert denoise.self_conditioned
    before = np.asarray(denoise(X_0, 3).eps)
    np.testing.assert_allclose(before, 0.5 * X_0, rtol=1e-6)
    state, _ = step(state, X_0, 0)
    np.testing.assert_array_equal(denoise(X_0, 3).eps, before)
    assert float(state.params["a"]) != 0.5


def test_another_optimisers_state_is_refused_later_too():
    """A step that has seen batches of this form with its own state knows one of another optimiser's all the same."""
    step = make_step(CHAIN, optax.adam(1e-3))
    step(create_state(Scale(), optax.adam(1e-3)), X_0, 0)
    with pytest.raises(UserError, match="the state was made for another optimiser"):
        step(create_state(Scale(), optax.sgd(1e-3)), X_0, 0)


# Whole runs --------------------------------------------------------------------------------------------------------


class Stripes:
    """Eight images of one's own: a length, items, a name and class names."""

    name = "stripes"
    class_names = ("flat", "upright")

    def __len__(self):
        return 8

    def __getitem__(self, index):
        image = np.zeros((8, 8, 1), np.uint8)
        label = range(8)[index] % 2
        image[:: 1 + label, :: 2 - label] = 255
        return {"image": image, "label": np.int32(label)}


def few_steps(steps=2):
    """The digits preset, small and short."""
    config = presets.preset("digits")
    small = replace(config.model, dim=8, dim_mults=(1,), norm_groups=4, attention_resolutions=())
    few = replace(config.train, steps=steps, batch_size=4, warmup_steps=0, lr_decay="constant", checkpoint_every=1)
    return replace(config, model=small, train=few, sample=replace(config.sample, num=2, steps=2))


def loader(start_step):
    """Batches of one's own that begin anywhere, as bytes with labels."""
    for step in itertools.count(start_step):
        rng = np.random.default_rng(step)
        yield rng.integers(0, 256, (4, 8, 8, 1), np.uint8), rng.integers(0, 2, 4)


def test_a_run_of_batches_of_ones_own(tmp_path):
    """A run that is resumed goes on with the batch of its step: it ends where the uninterrupted one does."""
    source = data.Batches(loader, ("off", "on"))
    whole = training.train(few_steps(3), tmp_path / "whole", source=source)
    assert (
        whole.step == 3 and whole.run.class_names == ("off", "on") and whole.run.config.data.source == "python:batches"
    )
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    shutil.rmtree(tmp_path / "parts" / "checkpoints" / "3")
    training.train(few_steps(3), tmp_path / "parts", source=source, resume=True)
    assert_same_bits(state_in(tmp_path / "parts"), state_in(tmp_path / "whole"))


@pytest.mark.usefixtures("without_samples")
def test_a_run_of_batches_without_labels(tmp_path):
    plain = ({"x_0": x_0 / np.float32(127.5) - 1} for x_0, _ in loader(0))
    assert training.train(few_steps(1), tmp_path / "plain", source=plain).run.class_names == ()


@pytest.mark.parametrize(
    ("batches", "says"),
    [
        (lambda start: iter([]), r"'batches' ended before the batch of step 0"),
        (
            lambda start: iter([np.zeros((4, 9, 9, 1), np.float32)]),
            r"shape \(4, 8, 8, 1\); got \(4, 9, 9, 1\) at step 0",
        ),
        (lambda start: iter([np.full((4, 8, 8, 1), 3.0)]), r"floats in \[-1, 1\]"),
        (lambda start: iter([{"picture": 3}]), r"a batch must be"),
    ],
)
def test_batches_that_do_not_fit(batches, says, tmp_path):
    with pytest.raises(UserError, match=says):
        training.train(few_steps(), tmp_path / "run", source=batches)


@pytest.mark.parametrize(
    ("part", "changes", "says"),
    [
        ("data", {"flip": True}, r"data\.flip is for a source; 'batches' are batches"),
        ("train", {"steps": None, "epochs": 1}, r"train\.epoch_steps is needed"),
    ],
)
def test_options_that_batches_cannot_follow(part, changes, says, tmp_path):
    config = few_steps()
    with pytest.raises(UserError, match=says):
        training.train(
            replace(config, **{part: replace(getattr(config, part), **changes)}), tmp_path / "run", source=loader
        )
    assert not (tmp_path / "run").exists()


def test_a_run_of_data_of_ones_own(tmp_path, tiny):
    """A path as a string, a source as an object; resumed with the same object, refused where there is none."""
    config = few_steps()
    outcome = training.train(config, str(tmp_path / "run"), source=Stripes())
    assert outcome.step == 2 and outcome.run.class_names == ("flat", "upright")
    assert training.train(few_steps(3), str(tmp_path / "run"), source=Stripes(), resume=True).step == 3
    with pytest.raises(UserError, match=r"'stripes' was given to training\.train as an object in Python"):
        training.open_run(tmp_path / "run").open_source()
    with pytest.raises(UserError, match=r"source must have a length, .*; a list has no name, class_names"):
        training.train(config, tmp_path / "other", source=[1, 2])
