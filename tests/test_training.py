"""Whole runs of ddpm_jax.training: resumed, interrupted by errors, conditional and not, of folders of images."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from data_builders import write_image
from PIL import Image
from run_checks import assert_same_bits, state_in

from ddpm_jax import cli, data, schedules
from ddpm_jax.errors import UserError
from ddpm_jax.training import objective, open_run, train
from ddpm_jax.training.metrics import read_metrics

# The real network -----------------------------------------------------------------------------------------------


def step_of(run):
    """The compiled step of a run: (state, batch) -> (state, metrics)."""
    step, key = objective.step_of(run.config), jax.random.key(run.config.train.seed)
    return lambda state, batch: step(state, batch, key)


def test_the_loss_falls_and_the_state_is_donated(finished_run):
    """90 steps on the digits take the loss well below its start; each step consumes the state before it."""
    run = open_run(finished_run)
    step, state = step_of(run), run.fresh_state()
    given = state
    batches = data.batches(data.open_source("digits"), shape=(8, 8, 1), batch_size=8)
    losses = []
    for _ in range(90):
        state, metrics = step(state, next(batches))
        losses.append(float(metrics["loss"]))
    assert np.mean(losses[-30:]) < 0.75 * np.mean(losses[:5])
    donated = [leaf.is_deleted() for leaf in jax.tree.leaves((given.params, given.ema_params, given.opt_state))]
    assert all(donated)


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
    variables, step = open_run(finished_run).load_variables()
    state = state_in(finished_run)
    assert step == 12
    assert_same_bits(variables["params"], state.ema_params)
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
    assert outcome.step == 12 and outcome.stopped_by is None
    assert_same_bits(state_in(folder), state_in(finished_run))
    assert losses_of(folder) == losses_of(finished_run)
    with np.load(folder / "samples.npz") as found, np.load(finished_run / "samples.npz") as expected:
        np.testing.assert_array_equal(found["images"], expected["images"])


def test_flips_are_part_of_the_run(finished_run):
    """The bit-for-bit tests above would prove less if the option did nothing."""
    source = data.open_source("digits")
    options = {"shape": (8, 8, 1), "batch_size": 8}
    plain, flipped = (next(data.batches(source, flip=flip, **options))["x_0"] for flip in (False, True))
    mirrored = [np.array_equal(a[:, ::-1], b) for a, b in zip(plain, flipped, strict=True)]
    same = [np.array_equal(a, b) for a, b in zip(plain, flipped, strict=True)]
    assert any(mirrored) and any(same) and all(map(any, zip(mirrored, same, strict=True)))
    assert open_run(finished_run).config.data.flip and open_run(finished_run).config.model.dropout == 0.1


def test_a_finished_run_resumed_is_left_as_it_is(finished_run, killed_run, capsys):
    """Nothing is trained; the pictures, if somebody deleted them, are drawn again."""
    folder = killed_run(12)
    outcome = train(open_run(folder).config, folder, resume=True)
    assert outcome.step == 12 and outcome.stopped_by is None
    assert "step 12 to 12" in capsys.readouterr().err
    assert losses_of(folder) == losses_of(finished_run)
    assert_same_bits(state_in(folder), state_in(finished_run))
    assert (folder / "samples.png").is_file() and (folder / "denoising.gif").is_file()


def with_train(config, **options):
    return replace(config, train=replace(config.train, **options))


@pytest.mark.usefixtures("without_samples")
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
        ("process", {"schedule": schedules.linear(20)}, r"process\.schedule: 'cosine' in the run, 'linear' now"),
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


@pytest.mark.usefixtures("without_samples")
def test_overwrite_starts_anew(finished_run, killed_run):
    """The old run is gone, all of it, and the new one is the same as the first was."""
    folder = killed_run(12)
    (folder / "old.txt").write_text("left behind")
    train(open_run(folder).config, folder, overwrite=True)
    assert not (folder / "old.txt").exists()
    assert_same_bits(state_in(folder), state_in(finished_run))


def test_a_mistake_with_overwrite_costs_nothing(finished_run, killed_run):
    """What is wrong with data and config is found before the old run is deleted."""
    folder = killed_run(12)
    config = open_run(folder).config
    for change in ({"batch_size": 5000}, {"seed": 2**32}):
        with pytest.raises(UserError, match=r"(batch_size|seed) must lie in"):
            train(with_train(config, **change), folder, overwrite=True)
    with pytest.raises(UserError, match="labels must lie in"):
        train(replace(config, model=replace(config.model, num_classes=9)), folder, overwrite=True)
    assert_same_bits(state_in(folder), state_in(finished_run))


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
    variables, step = open_run(folder).load_variables()
    assert step == 1 and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(variables))


def test_bfloat16_computes_and_float32_remembers(exploded, finished_run):
    """Every leaf is kept in float32; the loss of a trained state is float32's up to bfloat16's digits, not to the last one."""
    folder, _ = exploded
    assert {leaf.dtype for leaf in jax.tree.leaves(state_in(folder))} == {np.dtype("float32"), np.dtype("int32")}
    batch = next(data.batches(data.open_source("digits"), shape=(8, 8, 1), batch_size=8))
    trained, losses = state_in(finished_run), []
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


@pytest.mark.usefixtures("without_samples")
def test_an_unreadable_image_stops_the_run_where_it_can_go_on(finished_run, flat_folder, tmp_path):
    """At step 4 of 5: the file is named and step 3 is saved; once mended, the run ends as if nothing had been."""
    config = unconditional(open_run(finished_run).config, flat_folder)
    train(config, tmp_path / "undisturbed")
    path, whole = damage(flat_folder, config, step=4)
    with pytest.raises(UserError, match=f"{path.name}: not a readable image.*--data.on-bad-image skip"):
        train(config, tmp_path / "run")
    assert int(state_in(tmp_path / "run").step) == 3
    path.write_bytes(whole)
    assert train(config, tmp_path / "run", resume=True).step == 5
    assert_same_bits(state_in(tmp_path / "run"), state_in(tmp_path / "undisturbed"))


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


@pytest.mark.usefixtures("without_samples")
def test_no_labels_on_data_with_classes(finished_run, tmp_path, tiny):
    """--data.no-labels, as a user types it."""
    folder = tmp_path / "run"
    assert cli.main(["train", "digits", *tiny, "--data.no-labels", "--train.steps", "5", "--out", str(folder)]) == 0
    assert open_run(folder).class_names == ()
    assert not any("class_embed" in str(path) for path, _ in jax.tree.leaves_with_path(state_in(folder).params))


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
    assert "12 images, as 8x8x3, 4 classes" in capsys.readouterr().err
    assert open_run(folder).class_names == ("cat", "dog", "eel", "fox")
    with np.load(folder / "samples.npz") as archive:
        assert archive["images"].shape == (10, 8, 8, 3) and archive["images"].dtype == np.uint8
        assert list(archive["labels"]) == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]
        assert list(archive["class_names"]) == ["cat", "dog", "eel", "fox"]
    with Image.open(folder / "samples.png") as picture:
        assert picture.mode == "RGB"
