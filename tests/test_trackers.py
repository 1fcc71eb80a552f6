"""ddpm_jax.training.trackers: what a tracker is told by a run, that none can end one, and Weights & Biases without a network."""

import importlib.util
import json
import struct
from dataclasses import replace

import pytest
from PIL import Image

from ddpm_jax import cli, figures, presets, training
from ddpm_jax.errors import UserError
from ddpm_jax.training import TRACKERS, Tracker, samples
from ddpm_jax.training.metrics import read_metrics
from ddpm_jax.training.trackers import Trackers


class Told(Tracker):
    """Remembers all that it is told; raises where it is asked to."""

    def __init__(self, raises=""):
        self.heard, self.raises = [], raises

    def _hear(self, *what):
        self.heard.append(what)
        if what[0] == self.raises:
            raise RuntimeError("no network")

    def start(self, folder, config, step):
        self._hear("start", folder, config["train"]["batch_size"], step)

    def log(self, step, numbers):
        self._hear("log", step, numbers)

    def picture(self, step, path):
        self._hear("picture", step, path, path.read_bytes()[:4])

    def close(self, failed):
        self._hear("close", failed)


class Losses(Tracker):
    """Ten lines would do."""

    def __init__(self):
        self.losses = {}

    def log(self, step, numbers):
        self.losses[step] = numbers["loss"]


@pytest.fixture(scope="module")
def config():
    """A few steps on points, with a picture on the way."""
    spiral = presets.preset("spiral")
    return replace(
        spiral,
        data=replace(spiral.data, source="spiral:64"),
        train=replace(spiral.train, steps=6, epochs=None, steps_per_call=1, batch_size=16, log_every=2, checkpoint_every=2,
                      sample_every=4, warmup_steps=0, trackers=()),
        sample=replace(spiral.sample, num=4, steps=2),
    )  # fmt: skip


@pytest.fixture
def quick(monkeypatch):
    """Pictures that nobody draws: one grey pixel each."""

    def save(path, *_):
        path.parent.mkdir(exist_ok=True)
        Image.new("L", (1, 1)).save(path)

    monkeypatch.setattr(samples.Drawing, "draw", lambda *_: None)
    monkeypatch.setattr(samples, "save_picture", save)
    monkeypatch.setattr(samples, "draw_and_save", lambda folder, *_, **__: save(folder / "samples.png"))
    monkeypatch.setattr(figures, "save_loss_curve", lambda *_: None)


def with_train(config, **changed):
    return replace(config, train=replace(config.train, **changed))


def test_what_a_run_tells(config, tmp_path):
    """Numbers as in metrics.jsonl, pictures that are there, and the end; from the checkpoint on where it is resumed."""
    told, losses, folder = Told(), Losses(), tmp_path / "run"
    training.train(with_train(config, steps=4), folder, trackers=[told, losses])
    lines = read_metrics(folder)
    assert [what[0] for what in told.heard] == ["start", "log", "log", "picture", "close"]
    assert told.heard[0] == ("start", folder, 16, 0) and told.heard[-1] == ("close", False)
    assert [{"step": step, **numbers} for _, step, numbers in told.heard[1:3]] == lines
    assert told.heard[3] == ("picture", 4, folder / "samples.png", b"\x89PNG")
    assert losses.losses == {line["step"]: line["loss"] for line in lines}
    assert not (folder / "tensorboard").exists()


def test_a_resumed_run(config, tmp_path, quick):
    """From the checkpoint on."""
    folder, again = tmp_path / "run", Told()
    training.train(with_train(config, steps=4), folder)
    training.train(config, folder, resume=True, trackers=(again,))
    assert again.heard[0] == ("start", folder, 16, 4) and [what[1] for what in again.heard if what[0] == "log"] == [6]


def test_pictures_on_the_way_go_to_tensorboard_as_well(config, tmp_path, quick):
    from test_metrics import summaries

    told = Told()
    training.train(with_train(config, trackers=("tensorboard",)), tmp_path / "run", trackers=[told])
    assert [what[1:3] for what in told.heard if what[0] == "picture"] == [
        (4, tmp_path / "run" / "samples" / "step_0000004.png"),
        (6, tmp_path / "run" / "samples.png"),
    ]
    shown = [(step, value.image) for step, value in summaries(tmp_path / "run") if value.tag == "samples"]
    assert [step for step, _ in shown] == [4, 6]
    assert shown[1][1].encoded_image_string == (tmp_path / "run" / "samples.png").read_bytes()
    width, height = struct.unpack(">2I", shown[1][1].encoded_image_string[16:24])
    assert (shown[1][1].width, shown[1][1].height) == (width, height)


def test_a_tracker_that_fails_ends_no_run(config, tmp_path, quick, capsys):
    """It is said at once and at the end, the others go on, and every step is saved."""
    all_of_it = ["start", "log", "log", "picture", "log", "picture", "close"]
    bad, good, folder = [Told("log"), Told("picture"), Told("close")], Told(), tmp_path / "run"
    outcome = training.train(config, folder, trackers=[*bad, good])
    assert outcome.step == 6 and [line["step"] for line in read_metrics(folder)] == [2, 4, 6]
    assert training.open_run(folder).load_variables()[1] == 6
    heard = [[what[0] for what in tracker.heard] for tracker in (*bad, good)]
    assert heard == [all_of_it[:2], all_of_it[:4], all_of_it, all_of_it]
    out, error = capsys.readouterr()
    for what in ("step 2", "the picture of step 4", "end"):
        message = f"the tracker Told failed at {what} and was told nothing more: RuntimeError: no network."
        assert error.count(f"warning: {message} Training goes on") == 1 and message in out


@pytest.mark.parametrize("raises", ["start", "close"])
def test_a_tracker_that_cannot_be_started_costs_nothing(config, tmp_path, raises):
    """Those that were are closed, also where that fails."""
    first, bad = Told(raises if raises == "close" else ""), Told("start")
    with pytest.raises(UserError, match="the tracker Told cannot be started: RuntimeError: no network"):
        training.train(config, tmp_path / "run", trackers=[first, bad])
    assert first.heard[-1] == ("close", True) and bad.heard == [bad.heard[0]] and not read_metrics(tmp_path / "run")


def test_a_run_that_fails_tells_so(config, tmp_path):
    told = Told()
    with pytest.raises(UserError, match="training stopped at step"):
        training.train(with_train(config, lr=1e30), tmp_path / "run", trackers=[told])
    assert told.heard[-1] == ("close", True)


def test_mistakes(config, tmp_path):
    for names, own, message in [
        (("wadnb",), (), r"train\.trackers must be among tensorboard, wandb; got 'wadnb'\. Did you mean 'wandb'"),
        ((), [Told], "must be objects with start, log, picture, close.*got the class Told"),
        ((), ["wandb"], "a str has no start, log, picture, close"),
        ((), Told(), "must be a list of objects; got a Told"),
    ]:
        with pytest.raises(UserError, match=message):
            training.train(with_train(config, trackers=names), tmp_path / "run", trackers=own)
    assert not (tmp_path / "run").exists()


def test_one_of_ones_own_by_name(config, tmp_path, quick, monkeypatch):
    """For the command line: each run has its own, however often it is named."""
    made = []
    monkeypatch.setitem(TRACKERS, "told", lambda: made.append(Told()) or made[-1])
    training.train(with_train(config, trackers=("told", "told"), steps=2), tmp_path / "run")
    assert len(made) == 1 and [what[0] for what in made[0].heard] == ["start", "log", "picture", "close"]
    assert json.loads((tmp_path / "run" / "config.json").read_text())["config"]["train"]["trackers"] == ["told", "told"]


def test_a_config_of_before_has_tensorboard(config):
    tree = json.loads(presets.to_json(config))
    del tree["train"]["trackers"], tree["data"]["label"]
    old = presets.from_json(json.dumps(tree))
    assert old.train.trackers == ("tensorboard",) and old.data.label is None


# Weights & Biases -------------------------------------------------------------------------------------------


def test_without_wandb(config, tmp_path, monkeypatch):
    original = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "wandb" else original(name, *rest)
    )
    with pytest.raises(UserError, match=r'pip install "ddpm-jax\[wandb\]"'):
        training.train(with_train(config, trackers=("wandb",)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.fixture
def offline(monkeypatch):
    wandb = pytest.importorskip("wandb")
    for name in ("WANDB_RUN_ID", "WANDB_NAME", "WANDB_PROJECT", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    yield wandb
    wandb.teardown()  # it remembers the mode


def records(file):
    """What a .wandb file holds: after 7 bytes LevelDB's log, blocks of 32 KiB of records of checksum, length and type."""
    from wandb.proto.wandb_internal_pb2 import Record

    raw, place, parts = file.read_bytes(), 7, b""
    while place + 7 <= len(raw):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        _, length, kind = struct.unpack("<IHB", raw[place : place + 7])
        parts += raw[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(parts)
            parts = b""


def history(folder):
    """Runs, and the rows of their history, in the files of a run folder in the order of their writing."""
    runs, rows = [], []
    for file in sorted((folder / "wandb").glob("offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime_ns):
        for record in records(file):
            if record.HasField("run"):
                runs.append(record.run)
            if record.HasField("history"):
                rows.append(row := {})
                for item in record.history.item:
                    *above, name = item.nested_key or [item.key]
                    inner = row
                    for key in above:
                        inner = inner.setdefault(key, {})
                    inner[name] = json.loads(item.value_json)
    return runs, rows


def test_weights_and_biases_offline(tmp_path, offline):
    """Numbers, pictures and config reach its file; a resumed run goes on under the same id."""
    folder = tmp_path / "mine"
    folder.mkdir()
    Image.new("L", (3, 2)).save(folder / "samples.png")
    for start in (0, 4):
        with Trackers(["wandb"]) as trackers:
            trackers.start(folder, {"train": {"batch_size": 16}}, start)
            trackers.log(start + 2, {"loss": 1 / (start + 2), "lr": 0.25})
            trackers.log(start + 4, {"loss": 1 / (start + 4), "lr": 0.25})
            trackers.picture(start + 4, folder / "samples.png")
    offline.teardown()  # what is left is written after the end of a run
    assert not trackers.failures
    runs, rows = history(folder)
    numbers = [(row["step"], row["loss"], row["lr"]) for row in rows if "loss" in row]
    assert numbers == [(step, 1 / step, 0.25) for step in (2, 4, 6, 8)]
    pictures = [(row["step"], row["samples"]["_type"], row["samples"]["width"]) for row in rows if "samples" in row]
    assert pictures == [(4, "image-file", 3), (8, "image-file", 3)]
    assert {run.run_id for run in runs} == {(folder / "wandb" / "id").read_text().strip()} and len(runs) == 2
    assert runs[0].project == "ddpm-jax" and runs[0].display_name == "mine"
    assert {item.key: json.loads(item.value_json) for item in runs[0].config.update}["train"] == {"batch_size": 16}


@pytest.mark.slow
def test_a_run_with_weights_and_biases(tmp_path, offline, monkeypatch):
    """By the command line, beside TensorBoard; resumed; under the names that its variables say."""
    monkeypatch.setenv("WANDB_PROJECT", "points")
    folder = tmp_path / "run"
    options = f"--data.source spiral:64 --train.batch-size 16 --train.log-every 2 --train.trackers tensorboard wandb --out {folder}"
    assert cli.main(f"train spiral {options} --train.epochs None --train.steps 4".split()) == 0
    assert cli.main(f"train spiral --train.steps 6 --out {folder} --resume".split()) == 0
    offline.teardown()
    runs, rows = history(folder)
    lines = read_metrics(folder)
    numbers = [row for row in rows if "loss" in row]
    assert [{name: row[name] for name in line} for row, line in zip(numbers, lines, strict=True)] == lines
    assert [row["step"] for row in rows if "samples" in row] == [4, 6]
    assert {run.project for run in runs} == {"points"} and len({run.run_id for run in runs}) == 1
    kept = {item.key: json.loads(item.value_json) for item in runs[0].config.update}
    assert kept["train"]["batch_size"] == 16 and kept["model"]["network"] == "mlp"
    assert (folder / "tensorboard").is_dir()


def test_nobody_is_logged_in(config, tmp_path, offline, monkeypatch):
    """One line, before any step."""
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with (
        pytest.raises(UserError, match=r"cannot begin a run: .*Log in with `wandb login`, or set WANDB_MODE=offline"),
        Trackers(["wandb"]) as trackers,
    ):
        trackers.start(tmp_path, {}, 0)
