"""ddpm_jax.training: the step in closed form, and whole runs: resumed, interrupted by errors, conditional and not."""

import dataclasses
import json
import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from data_builders import write_image
from flax import nnx
from PIL import Image

from ddpm_jax import cli, data, models, schedules
from ddpm_jax.errors import UserError
from ddpm_jax.presets import TrainConfig
from ddpm_jax.processes import GaussianDiffusion
from ddpm_jax.training import (
    create_state,
    learning_rate,
    make_optimizer,
    open_run,
    train,
    train_step,
    train_steps,
    update,
)
from ddpm_jax.training.checkpoints import Checkpoints
from ddpm_jax.training.metrics import read_metrics

# Closed forms on a network of one number ------------------------------------------------------------------------


class Scale(nnx.Module):
    """(x_t, t) -> a * dropout(x_t)."""

    def __init__(self, *, rate=0.0, a=2.0, rngs):
        self.a = nnx.Param(jnp.array(a))
        self.dropout = nnx.Dropout(rate)

    def __call__(self, x_t, t, labels=None, *, rngs=None):
        return self.a[...] * self.dropout(x_t, rngs=rngs)


@dataclasses.dataclass(frozen=True)
class Bare(GaussianDiffusion):
    """No noise and no target: the loss of an example is the mean of what the network makes of it."""

    def loss_per_example(self, predict, x_0, noise, t):
        return predict(x_0, t).mean(axis=tuple(range(1, x_0.ndim)))


BARE = Bare(schedules.create("linear", 10))


def run_scale(config, steps, *, x_0=3.0, rate=0.0):
    """States and metrics of so many steps of Scale on images that are x_0 everywhere; d loss / d a = x_0."""
    model = Scale(rate=rate, rngs=nnx.Rngs(0))
    state = create_state(model, make_optimizer(config))
    graphdef, _ = models.split(model, training=True)
    batch = {"x_0": np.full((4, 10, 10, 1), x_0, np.float32)}
    history = []
    for _ in range(steps):
        state, metrics = train_step(state, batch, jax.random.key(0), graphdef=graphdef, process=BARE, config=config)
        history.append(jax.tree.map(np.array, (state, metrics)))
    return history


def test_adam_loss_and_gradient():
    """The gradient is constant, so that every step of Adam is lr long; loss and norm are those before the step."""
    history = run_scale(TrainConfig(lr=0.25, grad_clip=None), 3)
    for k, (state, metrics) in enumerate(history):
        assert state.step == k + 1
        assert state.params["a"] == pytest.approx(2 - 0.25 * (k + 1), rel=1e-5)
        assert metrics["loss"] == pytest.approx(3 * (2 - 0.25 * k), rel=1e-5)
        assert metrics["grad_norm"] == pytest.approx(3, rel=1e-5)


@pytest.mark.parametrize(("clip", "seen"), [(None, 3.0), (0.5, 0.5), (100.0, 3.0)])
def test_gradients_are_clipped_before_adam(clip, seen):
    """Adam's first moment is a tenth of the clipped gradient; the metric shows the gradient as it was."""
    ((state, metrics),) = run_scale(TrainConfig(grad_clip=clip), 1)
    (adam,) = (part for part in jax.tree.leaves(state.opt_state, is_leaf=_is_adam) if _is_adam(part))
    assert adam.mu["a"] == pytest.approx(0.1 * seen, rel=1e-5)
    assert metrics["grad_norm"] == pytest.approx(3, rel=1e-5)


def _is_adam(node):
    return isinstance(node, optax.ScaleByAdamState)


def test_the_average_warms_up():
    """Decay (1 + k) / (10 + k) after k updates, until it reaches the config's: 1/10, 2/11, 3/12, then 0.3."""
    expected = 2.0
    decays = [1 / 10, 2 / 11, 3 / 12, 0.3, 0.3, 0.3]
    history = run_scale(TrainConfig(lr=0.25, ema_decay=0.3), len(decays))
    for (state, _), decay in zip(history, decays, strict=True):
        expected = decay * expected + (1 - decay) * float(state.params["a"])
        assert state.ema_params["a"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("config", "rates"),
    [
        (TrainConfig(lr=0.5), {0: 0.5, 7: 0.5, 10**6: 0.5}),
        (TrainConfig(lr=0.5, warmup_steps=10), {0: 0, 1: 0.05, 5: 0.25, 10: 0.5, 10**6: 0.5}),
        (
            TrainConfig(lr=0.5, steps=100, lr_decay="cosine"),
            {0: 0.5, 25: 0.25 * (1 + math.sqrt(0.5)), 50: 0.25, 100: 0},
        ),
        (
            TrainConfig(lr=0.5, steps=110, warmup_steps=10, lr_decay="cosine"),
            {0: 0, 5: 0.25, 10: 0.5, 60: 0.25, 85: 0.25 * (1 - math.sqrt(0.5)), 110: 0},
        ),
        (TrainConfig(lr=0.5, steps=100, lr_decay="cosine", lr_end=0.1), {0: 0.5, 50: 0.3, 100: 0.1, 10**6: 0.1}),
        (
            TrainConfig(lr=0.5, steps=None, epochs=4, epoch_steps=25, lr_decay="cosine_by_epoch", lr_end=0.1),
            {
                0: 0.5,
                24: 0.5,
                25: 0.3 + 0.2 * math.sqrt(0.5),
                49: 0.3 + 0.2 * math.sqrt(0.5),
                50: 0.3,
                74: 0.3,
                100: 0.1,
            },
        ),
    ],
)
def test_learning_rates(config, rates):
    rate = learning_rate(config)
    for step, expected in rates.items():
        assert float(rate(step)) == pytest.approx(expected, rel=1e-5, abs=1e-8)


def test_the_learning_rate_reaches_the_parameters():
    """The first step of a warm-up is 0 long, the next lr / 4, lr / 2, ..."""
    history = run_scale(TrainConfig(lr=0.4, warmup_steps=4), 6)
    moved = -np.diff([2.0, *(float(state.params["a"]) for state, _ in history)])
    np.testing.assert_allclose(moved, [0, 0.1, 0.2, 0.3, 0.4, 0.4], atol=1e-5)


@pytest.mark.parametrize("x_0", [3.0, -0.2])
def test_adam_is_forgotten_at_every_epoch(x_0):
    """With gradients that rise by a half in each step Adam's step differs by age; every second one is a first step again."""
    config = TrainConfig(lr=0.1, grad_clip=None, reset_optimizer=True, epoch_steps=2)
    sizes = {}
    for reset in (True, False):
        model = Scale(rngs=nnx.Rngs(0))
        graphdef, _ = models.split(model, training=True)
        options = {"graphdef": graphdef, "process": BARE, "config": replace(config, reset_optimizer=reset)}
        state, before, sizes[reset] = create_state(model, make_optimizer(config)), 2.0, []
        for k in range(6):
            x = jnp.full((4, 10, 10, 1), x_0 * 1.5**k)
            state, _ = update(state, x, x, jnp.zeros(4, int), None, None, **options)
            sizes[reset].append(before - float(state.params["a"]))
            before = float(state.params["a"])
    np.testing.assert_allclose(sizes[True][::2], 0.1 * np.sign(x_0), rtol=1e-4)  # a first step is as long as the rate
    np.testing.assert_allclose(sizes[True][1::2], sizes[True][1], rtol=1e-4)
    assert abs(sizes[False][2] / 0.1) != pytest.approx(1, rel=1e-2)


def test_several_steps_in_one_call_are_the_same_steps():
    config = TrainConfig(lr=0.1, ema_decay=0.5)

    def fresh():
        return create_state(Scale(rate=0.3, rngs=nnx.Rngs(0)), make_optimizer(config))

    graphdef, _ = models.split(Scale(rate=0.3, rngs=nnx.Rngs(0)), training=True)
    options = {"graphdef": graphdef, "process": BARE, "config": config}
    batches = {"x_0": np.random.default_rng(0).normal(size=(5, 4, 3, 3, 1)).astype(np.float32)}
    together, metrics = train_steps(fresh(), batches, jax.random.key(1), **options)
    state, losses = fresh(), []
    for k in range(5):
        batch = {"x_0": batches["x_0"][k]}
        state, found = train_step(state, batch, jax.random.key(1), **options)
        losses.append(float(found["loss"]))
    assert int(together.step) == 5
    np.testing.assert_allclose(metrics["loss"], losses, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), together, state)


def test_dropout_is_drawn_anew_at_every_step():
    """The loss is a times the share of pixels kept, over 1 - rate; that share changes and its mean is right."""
    config = TrainConfig(lr=1e-30)
    losses = np.array([metrics["loss"] for _, metrics in run_scale(config, 20, x_0=1.0, rate=0.25)])
    kept = losses / 2 * 0.75 * 400
    np.testing.assert_allclose(kept, np.rint(kept), atol=0.01)  # whole pixels
    assert len(set(np.rint(kept))) > 10
    assert abs(losses.mean() / 2 - 1) < 4 * math.sqrt(0.25 / 0.75 / 400 / 20)
    again = [metrics["loss"] for _, metrics in run_scale(config, 20, x_0=1.0, rate=0.25)]
    np.testing.assert_array_equal(losses, again)


def test_noise_and_times_differ_by_step_and_by_seed():
    """With the network at 0 the loss is the mean square of the noise itself."""
    config, process = TrainConfig(lr=1e-30), GaussianDiffusion(schedules.create("linear", 10))
    batch = {"x_0": np.zeros((4, 10, 10, 1), np.float32)}
    losses = []
    for seed in (0, 1):
        model = Scale(a=0.0, rngs=nnx.Rngs(0))
        graphdef, _ = models.split(model, training=True)
        state, key = create_state(model, make_optimizer(config)), jax.random.key(seed)
        for _ in range(3):
            state, metrics = train_step(state, batch, key, graphdef=graphdef, process=process, config=config)
            losses.append(float(metrics["loss"]))
    assert len(set(losses)) == 6
    np.testing.assert_allclose(losses, 1, atol=5 * math.sqrt(2 / 400))


def test_compute_dtype_leaves_the_state_alone():
    """Everything kept stays in float32; in bfloat16 the product 3 * 1.001 falls on the grid of 2^-6 numbers between 2 and 4."""
    config = TrainConfig(lr=1e-30, dtype="bfloat16")
    model = Scale(a=1.001, rngs=nnx.Rngs(0))
    graphdef, _ = models.split(model, training=True)
    state = create_state(model, make_optimizer(config))
    x_0 = jnp.full((4, 2, 2, 1), 3.0)
    state, metrics = update(
        state, x_0, x_0, jnp.zeros(4, jnp.int32), None, None, graphdef=graphdef, process=BARE, config=config
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype("float32"), jnp.dtype("int32")}
    assert metrics["loss"] == 3.0 and metrics["loss"].dtype == jnp.float32
    assert state.params["a"] == np.float32(1.001)


# The real network -----------------------------------------------------------------------------------------------


def step_of(run):
    """The compiled step of a run: (state, batch) -> (state, metrics)."""
    graphdef, _ = models.split(models.abstract(run.config.model), training=True)
    key = jax.random.key(run.config.train.seed)
    return lambda state, batch: train_step(
        state, batch, key, graphdef=graphdef, process=run.process, config=run.config.train
    )


def test_the_loss_falls_and_the_state_is_donated(finished_run):
    """90 steps on the digits take the loss well below its start; each step consumes the state before it."""
    run = open_run(finished_run)
    step, state = step_of(run), run.fresh_state()
    given = state
    batches = data.batches(data.open_source("digits"), shape=(8, 8, 1), batch_size=8, num_threads=1)
    losses = []
    for _ in range(90):
        state, metrics = step(state, next(batches))
        losses.append(float(metrics["loss"]))
    assert np.mean(losses[-30:]) < 0.75 * np.mean(losses[:5])
    donated = [leaf.is_deleted() for leaf in jax.tree.leaves((given.params, given.ema_params, given.opt_state))]
    assert all(donated)


def final_state(folder, step=None):
    run = open_run(folder)
    with Checkpoints(run.checkpoint_folder) as checkpoints:
        return checkpoints.restore(run.abstract_state(), step)


def assert_same_states(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(np.array(a), np.array(b))


def losses_of(folder):
    return [(line["step"], line["loss"], line["grad_norm"]) for line in read_metrics(folder)]


def test_what_a_run_leaves(finished_run):
    """Checkpoints, metrics, pictures, and the config that made them."""
    names = {path.name for path in finished_run.iterdir()}
    assert names == {
        "config.json", "checkpoints", "metrics.jsonl", "tensorboard",
        "samples", "samples.png", "samples.npz", "denoising.gif", "loss.png",
    }  # fmt: skip
    assert [path.name for path in (finished_run / "samples").iterdir()] == ["step_0000008.png"]
    assert sorted(int(path.name) for path in (finished_run / "checkpoints").iterdir()) == [4, 8, 12]
    assert [line["step"] for line in read_metrics(finished_run)] == [2, 4, 6, 8, 10, 12]
    tree = json.loads((finished_run / "config.json").read_text())
    assert tree["class_names"] == [str(k) for k in range(10)] and tree["config"]["model"]["num_classes"] == 10
    assert tree["environment"]["jax"] == jax.__version__ and tree["environment"]["compute_dtype"] == "float32"
    with np.load(finished_run / "samples.npz") as archive:
        assert archive["images"].shape == (10, 8, 8, 1) and list(archive["labels"]) == list(range(10))


def test_samples_come_from_the_average(finished_run):
    _, variables, step = open_run(finished_run).load()
    state = final_state(finished_run)
    assert step == 12
    assert_same_states(variables["params"], state.ema_params)
    different = [
        np.any(np.array(a) != b) for a, b in zip(*map(jax.tree.leaves, (state.params, state.ema_params)), strict=True)
    ]
    assert any(different)


@pytest.mark.parametrize("step", [8, 0])
def test_a_resumed_run_ends_as_the_uninterrupted_one(finished_run, killed_run, step):
    """Bit for bit: parameters, average, moments and losses, with flips and dropout on; also without any checkpoint yet."""
    folder = killed_run(step)
    assert losses_of(folder) == losses_of(finished_run)  # what the killed run had written is there to be forgotten
    outcome = train(open_run(folder).config, folder, resume=True)
    assert outcome.step == 12 and not outcome.interrupted
    assert_same_states(final_state(folder), final_state(finished_run))
    assert losses_of(folder) == losses_of(finished_run)
    with np.load(folder / "samples.npz") as found, np.load(finished_run / "samples.npz") as expected:
        np.testing.assert_array_equal(found["images"], expected["images"])


def test_flips_are_part_of_the_run(finished_run):
    """The bit-for-bit tests above would prove less if the option did nothing."""
    source = data.open_source("digits")
    options = {"shape": (8, 8, 1), "batch_size": 8, "num_threads": 0}
    plain, flipped = (next(data.batches(source, flip=flip, **options))["x_0"] for flip in (False, True))
    mirrored = [np.array_equal(a[:, ::-1], b) for a, b in zip(plain, flipped, strict=True)]
    same = [np.array_equal(a, b) for a, b in zip(plain, flipped, strict=True)]
    assert any(mirrored) and any(same) and all(map(any, zip(mirrored, same, strict=True)))
    assert open_run(finished_run).config.data.flip and open_run(finished_run).config.model.dropout == 0.1


def test_a_finished_run_resumed_is_left_as_it_is(finished_run, killed_run, capsys):
    """Nothing is trained; the pictures, if somebody deleted them, are drawn again."""
    folder = killed_run(12)
    outcome = train(open_run(folder).config, folder, resume=True)
    assert outcome.step == 12 and not outcome.interrupted
    assert "step 12 to 12" in capsys.readouterr().out
    assert losses_of(folder) == losses_of(finished_run)
    assert_same_states(final_state(folder), final_state(finished_run))
    assert (folder / "samples.png").is_file() and (folder / "denoising.gif").is_file()


def with_train(config, **options):
    return replace(config, train=replace(config.train, **options))


def test_more_steps_and_other_logging_are_accepted(killed_run):
    """More steps at a constant rate, and whatever only concerns the log, the reading and the sampling, may change."""
    folder = killed_run(12)
    config = with_train(open_run(folder).config, steps=14, log_every=1, checkpoint_every=100, keep_checkpoints=2)
    config = replace(config, data=replace(config.data, threads=1), sample=replace(config.sample, clip=2.0))
    outcome = train(config, folder, resume=True)
    assert outcome.step == 14
    assert [line["step"] for line in read_metrics(folder)] == [2, 4, 6, 8, 10, 12, 13, 14]
    assert open_run(folder).config.train.steps == 14
    assert sorted(int(path.name) for path in (folder / "checkpoints").iterdir()) == [12, 14]


@pytest.mark.parametrize(
    ("part", "change", "shown"),
    [
        ("train", {"lr": 0.5}, r"train\.lr: 0\.01 in the run, 0\.5 now"),
        ("train", {"batch_size": 4}, r"train\.batch_size: 8 in the run, 4 now"),
        ("train", {"seed": 3}, r"train\.seed"),
        ("train", {"lr_decay": "cosine"}, r"train\.lr_decay"),
        ("train", {"dtype": "bfloat16"}, r"train\.dtype"),
        ("model", {"dim": 8}, r"model\.dim: 4 in the run, 8 now"),
        ("data", {"flip": False}, r"data\.flip: True in the run, False now"),
        ("process", {"schedule": "linear"}, r"process\.schedule: 'cosine' in the run, 'linear' now"),
        ("data", {"labels": False}, r"data\.labels: True in the run, False now"),
    ],
)
def test_another_config_is_not_resumed(finished_run, part, change, shown):
    config = open_run(finished_run).config
    if change == {"labels": False}:
        config = replace(config, model=replace(config.model, num_classes=None))
    before = (finished_run / "config.json").read_bytes()
    with pytest.raises(UserError, match=shown):
        train(replace(config, **{part: replace(getattr(config, part), **change)}), finished_run, resume=True)
    assert (finished_run / "config.json").read_bytes() == before


def test_steps_are_fixed_where_the_learning_rate_depends_on_them(killed_run):
    folder = killed_run(4)
    config = with_train(open_run(folder).config, lr_decay="cosine")
    tree = json.loads((folder / "config.json").read_text())
    tree["config"]["train"]["lr_decay"] = "cosine"
    (folder / "config.json").write_text(json.dumps(tree))
    with pytest.raises(UserError, match=r"train\.steps: 12 in the run, 20 now"):
        train(with_train(config, steps=20), folder, resume=True)


# The run folder -------------------------------------------------------------------------------------------------


def test_a_folder_that_is_no_run_is_never_touched(finished_run, tmp_path):
    config = open_run(finished_run).config
    thesis = tmp_path / "precious" / "thesis.txt"
    thesis.parent.mkdir()
    thesis.write_text("all of it")
    for options in ({}, {"overwrite": True}):
        with pytest.raises(UserError, match="precious exists and is no run folder"):
            train(config, thesis.parent, **options)
    with pytest.raises(UserError, match=r"precious holds no config\.json"):
        train(config, thesis.parent, resume=True)
    with pytest.raises(UserError, match=r"thesis\.txt exists and is no run folder"):
        train(config, thesis, overwrite=True)
    assert [path.name for path in thesis.parent.iterdir()] == ["thesis.txt"] and thesis.read_text() == "all of it"


def test_an_existing_run_is_kept_unless_told_otherwise(finished_run):
    config = open_run(finished_run).config
    with pytest.raises(UserError, match="Pass --resume to go on with it, --overwrite to start anew"):
        train(config, finished_run)
    with pytest.raises(UserError, match="exclude each other"):
        train(config, finished_run, resume=True, overwrite=True)
    assert (finished_run / "samples.npz").is_file()


def test_overwrite_starts_anew(finished_run, killed_run):
    """The old run is gone, all of it, and the new one is the same as the first was."""
    folder = killed_run(12)
    (folder / "old.txt").write_text("left behind")
    train(open_run(folder).config, folder, overwrite=True)
    assert not (folder / "old.txt").exists()
    assert_same_states(final_state(folder), final_state(finished_run))


def test_a_mistake_with_overwrite_costs_nothing(finished_run, killed_run):
    """What is wrong with data and config is found before the old run is deleted."""
    folder = killed_run(12)
    config = open_run(folder).config
    for change in ({"batch_size": 5000}, {"seed": 2**32}):
        with pytest.raises(UserError, match=r"(batch_size|seed) must lie in"):
            train(with_train(config, **change), folder, overwrite=True)
    with pytest.raises(UserError, match="labels must lie in"):
        train(replace(config, model=replace(config.model, num_classes=9)), folder, overwrite=True)
    assert_same_states(final_state(folder), final_state(finished_run))


def test_nothing_to_resume(finished_run, tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        train(open_run(finished_run).config, tmp_path / "new", resume=True)
    assert not (tmp_path / "new").exists()


# Precision, and losses that explode -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exploded(finished_run, tmp_path_factory):
    """A run in bfloat16 with an absurd learning rate, a checkpoint and a line of metrics at every step: (folder, message)."""
    folder = tmp_path_factory.mktemp("runs") / "exploded"
    config = with_train(
        open_run(finished_run).config, dtype="bfloat16", lr=1e30, log_every=1, checkpoint_every=1, grad_clip=None
    )
    with pytest.raises(UserError) as caught:
        train(config, folder)
    return folder, str(caught.value)


def test_a_loss_that_is_not_finite_stops_the_run(exploded):
    """The step is named, nothing of it is recorded, and the checkpoint before it loads and is finite."""
    folder, message = exploded
    assert "training stopped at step 2: " in message and ("nan" in message or "inf" in message)
    assert "--train.lr" in message
    assert [line["step"] for line in read_metrics(folder)] == [1]
    _, variables, step = open_run(folder).load()
    assert step == 1 and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(variables))


def test_bfloat16_computes_and_float32_remembers(exploded, finished_run):
    """Every leaf is kept in float32; the loss of a trained state is float32's up to bfloat16's digits, not to the last one."""
    folder, _ = exploded
    assert {leaf.dtype for leaf in jax.tree.leaves(final_state(folder))} == {np.dtype("float32"), np.dtype("int32")}
    batch = next(data.batches(data.open_source("digits"), shape=(8, 8, 1), batch_size=8))
    trained, losses = final_state(finished_run), []
    for run in (open_run(folder), open_run(finished_run)):
        state = jax.tree.map(lambda leaf: jnp.array(np.array(leaf)), trained)  # a copy, for it is consumed
        state, metrics = step_of(run)(state, batch)
        losses.append(float(metrics["loss"]))
        assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {np.dtype("float32"), np.dtype("int32")}
    in_bfloat16, in_float32 = losses
    assert in_bfloat16 == pytest.approx(in_float32, rel=0.02) and in_bfloat16 != in_float32


# Folders of images ----------------------------------------------------------------------------------------------


@pytest.fixture
def flat_folder(tmp_path):
    """40 grey pictures 8 x 8; number i is i everywhere."""
    for i in range(40):
        write_image(tmp_path / "pictures" / f"{i:02}.png", np.full((8, 8), i, np.uint8))
    return tmp_path / "pictures"


def unconditional(config, folder, **options):
    """The config of the digits for a folder of pictures without classes, one epoch long."""
    return replace(
        with_train(config, steps=5),
        data=replace(config.data, source=str(folder), labels=False, **options),
        model=replace(config.model, num_classes=None),
    )


def damage(folder, config, step):
    """Cuts short a picture that the batch of this step (from 1) holds; returns its path and its whole content."""
    batches = data.batches(
        data.open_source(str(folder)),
        shape=(8, 8, 1),
        batch_size=8,
        flip=config.data.flip,
        seed=config.train.seed,
    )
    numbers = [data.to_images(next(batches)["x_0"])[:, 0, 0, 0] for _ in range(step)][-1]
    path = folder / f"{numbers[0]:02}.png"
    whole = path.read_bytes()
    path.write_bytes(whole[:40])
    return path, whole


def test_an_unreadable_image_stops_the_run_where_it_can_go_on(finished_run, flat_folder, tmp_path):
    """At step 4 of 5: the file is named and step 3 is saved; once mended, the run ends as if nothing had been."""
    config = unconditional(open_run(finished_run).config, flat_folder)
    train(config, tmp_path / "undisturbed")
    path, whole = damage(flat_folder, config, step=4)
    with pytest.raises(UserError, match=f"{path.name}: not a readable image.*--data.on-bad-image skip"):
        train(config, tmp_path / "run")
    assert int(final_state(tmp_path / "run").step) == 3
    path.write_bytes(whole)
    assert train(config, tmp_path / "run", resume=True).step == 5
    assert_same_states(final_state(tmp_path / "run"), final_state(tmp_path / "undisturbed"))


def test_unreadable_images_are_skipped_when_asked(finished_run, flat_folder, tmp_path, capsys):
    """Training goes on, each file is warned of once and counted; the samples carry no labels."""
    config = unconditional(open_run(finished_run).config, flat_folder, on_bad_image="skip")
    path, _ = damage(flat_folder, config, step=2)
    with pytest.warns(UserWarning, match=path.name):
        outcome = train(config, tmp_path / "run")
    assert outcome.step == 5 and "1 unreadable images were skipped" in capsys.readouterr().out
    run = open_run(tmp_path / "run")
    assert run.class_names == () and run.config.model.num_classes is None
    with np.load(tmp_path / "run" / "samples.npz") as archive:
        assert archive.files == ["images"] and archive["images"].shape == (10, 8, 8, 1)
    with pytest.raises(UserError, match="trained without classes"):
        run.labels(4, ("0",))


def test_no_labels_on_data_with_classes(finished_run, tmp_path, tiny):
    """--data.no-labels, as a user types it."""
    folder = tmp_path / "run"
    assert cli.main(["train", "digits", *tiny, "--data.no-labels", "--train.steps", "5", "--out", str(folder)]) == 0
    assert open_run(folder).class_names == ()
    assert not any("class_embed" in str(path) for path, _ in jax.tree.leaves_with_path(final_state(folder).params))


def test_own_images_of_any_size_and_kind(tmp_path, tiny, capsys):
    """`ddpm train images --data.source PATH`: folders of classes, tall and wide, grey and coloured, big and small."""
    rng = np.random.default_rng(0)
    kinds = {"cat": ("png", (30, 50, 3)), "dog": ("jpg", (90, 40, 3)), "eel": ("bmp", (5, 7)), "fox": ("gif", (8, 8))}
    for name, (suffix, shape) in kinds.items():
        for i in range(3):
            write_image(tmp_path / "pets" / name / f"{i}.{suffix}", rng.integers(0, 256, shape, np.uint8))
    folder = tmp_path / "run"
    options = [*tiny, "--model.image-size", "8", "--train.steps", "3", "--data.source", str(tmp_path / "pets")]
    assert cli.main(["train", "images", *options, "--out", str(folder)]) == 0
    assert "12 images, as 8x8x3, 4 classes" in capsys.readouterr().out
    assert open_run(folder).class_names == ("cat", "dog", "eel", "fox")
    with np.load(folder / "samples.npz") as archive:
        assert archive["images"].shape == (10, 8, 8, 3) and archive["images"].dtype == np.uint8
        assert list(archive["labels"]) == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]
        assert list(archive["class_names"]) == ["cat", "dog", "eel", "fox"]
    with Image.open(folder / "samples.png") as picture:
        assert picture.mode == "RGB"
