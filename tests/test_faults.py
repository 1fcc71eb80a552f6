"""Nothing is lost: whole runs under signals, SIGKILL, full and read-only disks, damaged files and losses that are not finite."""

import itertools
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from run_checks import assert_same_bits, state_in

from ddpm_jax import cli, data, files, schedules
from ddpm_jax.errors import UserError
from ddpm_jax.presets import TrainConfig
from ddpm_jax.processes import GaussianDiffusion
from ddpm_jax.training import create_state, feeding, loop, make_optimizer, make_step, open_run, train
from ddpm_jax.training.checkpoints import Checkpoints
from ddpm_jax.training.metrics import Metrics, read_metrics
from ddpm_jax.training.optimizers import updates_done


def assert_same_runs(found, expected):
    """Parameters, average, optimiser, step, losses by step, and the samples drawn at the end."""
    assert_same_bits(state_in(found), state_in(expected))
    rows = [
        [(line["step"], line["loss"], line["grad_norm"], line["lr"]) for line in read_metrics(f)]
        for f in (found, expected)
    ]
    assert rows[0] == rows[1]
    with np.load(found / "samples.npz") as a, np.load(expected / "samples.npz") as b:
        assert a["images"].tobytes() == b["images"].tobytes()


# Signals ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def ddpm(tiny, tmp_path, capsys):
    """ddpm("--more", "options") -> (status, what it printed): trains the digits in tmp_path / "run"."""

    def run(*options):
        status = cli.main(["train", "digits", *tiny, "--out", str(tmp_path / "run"), *options])
        captured = capsys.readouterr()
        return status, captured.out + captured.err

    return run


PLACES = {
    "before the first step": (loop._Training, "announce", 1, 0),
    # while step 6 is logged the next one is decided on
    "amid the steps": (Metrics, "write", 3, 7),
    "while the last is written": (Checkpoints, "__exit__", 1, 12),
}


@pytest.mark.parametrize(
    "place", [pytest.param(place, marks=pytest.mark.slow if place.startswith("before") else ()) for place in PLACES]
)
def test_sigterm_saves_and_leaves(ddpm, finished_run, tmp_path, monkeypatch, place):
    """A second one changes nothing; no time is spent on pictures; the run goes on to the bits of the undisturbed one."""
    owner, name, call, step = PLACES[place]
    original, calls = getattr(owner, name), itertools.count(1)
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]  # a background job ignores Ctrl-C

    def signalled(*args, **kwargs):
        if next(calls) == call:
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, signalled)
        found, said = ddpm()
    assert found == 143 and f"interrupted; step {step} is saved. Go on with:" in said
    assert open_run(tmp_path / "run").load_variables()[1] == step
    assert not (tmp_path / "run" / "samples.npz").exists()
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
    assert ddpm("--resume")[0] == 0
    assert_same_bits(state_in(tmp_path / "run"), state_in(finished_run))


def test_the_same_command_twice_gives_the_same_bits(ddpm, finished_run, tmp_path):
    assert ddpm()[0] == 0
    assert_same_runs(tmp_path / "run", finished_run)


# SIGKILL ---------------------------------------------------------------------------------------------------------


def dying(folder, options, last, *, seconds=None):
    """Train in a process of its own until it dies or ends; returns its status and what it said."""
    arguments = ["train", "digits", *options, "--out", str(folder)]
    if (folder / "config.json").exists():
        arguments.append("--resume")
    command = [sys.executable, str(Path(__file__).with_name("dies.py")), str(last), str(folder), *arguments]
    root = Path(files.__file__).parents[1]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=root)
    if seconds is not None:  # from when the run says that it begins
        for line in process.stdout:
            if line.startswith("run: "):
                break
        time.sleep(seconds)
        process.kill()
    said = process.communicate(timeout=240)[0]
    return process.returncode, said


def check_death(status, said):
    assert status in (0, -signal.SIGKILL), said
    assert "Traceback" not in said, said
    return status != 0


@pytest.mark.slow
def test_killed_amid_its_files(finished_run, tiny, tmp_path):
    """SIGKILL between the writes of config, metrics and checkpoints: the bits are those of the undisturbed run."""
    folder = tmp_path / "run"
    assert check_death(*dying(folder, tiny, 100))
    status, said = dying(folder, tiny, 0)
    assert status == 0, said
    assert_same_runs(folder, finished_run)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_chaos(finished_run, tiny, tmp_path, seed):
    """Killed 5 times for each seed: at drawn operations on files, and every third time after a drawn time, amid any write."""
    draw = random.Random(seed)
    folder, deaths = tmp_path / "run", 0
    for attempt in itertools.count():
        assert attempt < 20
        if attempt % 3 == 2 and (folder / "config.json").exists():
            died = check_death(*dying(folder, tiny, 0, seconds=draw.uniform(0, 3)))
        else:
            died = check_death(*dying(folder, tiny, 0 if deaths == 5 else draw.randint(1, 200)))
        deaths += died
        if not died:
            assert_same_runs(folder, finished_run)
            if deaths >= 5:
                break
            shutil.rmtree(folder / "checkpoints")  # once more, from nothing


# Damage ----------------------------------------------------------------------------------------------------------


def test_a_run_whose_newest_checkpoint_is_damaged(finished_run, killed_run, recwarn):
    """Its name is told, the run goes on from the one before to the same bits, and the damaged one is replaced."""
    folder = killed_run(12)
    (path,) = (folder / "checkpoints" / "12" / "state" / "ocdbt.process_0" / "d").iterdir()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)
    outcome = train(open_run(folder).config, folder, resume=True)
    told = [str(warning.message) for warning in recwarn if "step 12" in str(warning.message)]
    assert len(told) == 1 and path.name in told[0] and "Going back to step 8" in told[0]
    assert outcome.step == 12
    assert_same_runs(folder, finished_run)


def test_a_run_of_before_manifests(finished_run, killed_run):
    """Format 2, as the version before left it: it loads, is resumed to the same bits, and is of format 4 from then on."""
    folder = killed_run(8)
    for checkpoint in (folder / "checkpoints").iterdir():
        (checkpoint / "manifest.json").unlink()
        path = checkpoint / "_CHECKPOINT_METADATA"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"custom_metadata": {}}))
    tree = json.loads((folder / "config.json").read_text())
    tree["format"] = 2
    for name in ("keep_every", "on_nonfinite"):
        del tree["config"]["train"][name]
    (folder / "config.json").write_text(json.dumps(tree))
    assert open_run(folder).load_variables()[1] == 8
    train(open_run(folder).config, folder, resume=True)
    assert_same_runs(folder, finished_run)
    assert json.loads((folder / "config.json").read_text())["format"] == 4
    assert (folder / "checkpoints" / "12" / "manifest.json").is_file()


@pytest.mark.parametrize("version", [1, 5, "3", None, [3]])
def test_a_run_of_another_format_says_so(killed_run, version):
    folder = killed_run(12)
    tree = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(tree | {"format": version}))
    with pytest.raises(UserError, match=rf"has format {re.escape(repr(version))}; .* reads the formats 2 to 4"):
        open_run(folder)


# Disks -----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("without_samples")
def test_a_full_disk_ends_the_run_and_costs_no_checkpoint(ddpm, finished_run, tmp_path):
    """No file may grow beyond what is left: status 2, one line, and with room again the run ends as if nothing had been."""
    assert ddpm("--train.steps", "4")[0] == 0
    folder = tmp_path / "run"
    sizes = [path.stat().st_size for path in (folder / "checkpoints" / "4").rglob("*") if path.is_file()]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (max(sizes) // 2, limits[1]))
    try:
        status, said = ddpm("--resume")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert status == 2 and "Traceback" not in said
    assert re.search(r"\nddpm: the checkpoint of step 8 in .* cannot be written: File too large", said)
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["4"]
    assert ddpm("--resume")[0] == 0
    assert_same_bits(state_in(folder), state_in(finished_run))


def read_only(monkeypatch, *folders):
    """No file can be made there, root or not: what a file system that is mounted read-only says."""
    original = os.open

    def refused(path, flags, *args, **kwargs):
        if flags & (os.O_WRONLY | os.O_RDWR) and any(Path(path).is_relative_to(folder) for folder in folders):
            raise OSError(30, os.strerror(30), path)
        return original(path, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", refused)


@pytest.mark.parametrize("below", [".", "checkpoints", "samples", "tensorboard"])
@pytest.mark.parametrize("option", ["--resume", "--overwrite"])
def test_a_read_only_run_folder_is_found_before_anything_is_done(
    finished_run, tiny, monkeypatch, capsys, below, option
):
    folder = finished_run / below
    read_only(monkeypatch, folder)
    monkeypatch.setattr(loop._Training, "steps", None)
    before = (finished_run / "config.json").read_bytes()
    more = ["--train.steps", "20"]  # without more to do, a finished run has nothing to write
    assert cli.main(["train", "digits", *tiny, *more, "--out", str(finished_run), option]) == 2
    assert f"{folder} cannot be written to: Read-only file system" in capsys.readouterr().err
    assert (finished_run / "config.json").read_bytes() == before and (finished_run / "samples.npz").is_file()


@pytest.mark.parametrize("command", ["sample", "plot", "evaluate", "evaluate --likelihood", "evaluate --fid", "edit"])
def test_what_reads_a_read_only_run_needs_another_place_to_write(finished_run, monkeypatch, capsys, command):
    """Said before samples are drawn."""
    read_only(monkeypatch, finished_run)
    monkeypatch.setattr("ddpm_jax.training.run.Run.load_variables", None)
    name, *options = command.split()
    what = ["vary"] if name == "edit" else []
    assert cli.main([name, str(finished_run), *what, *options]) == 2
    assert "cannot be written to: Read-only file system" in capsys.readouterr().err


def test_a_read_only_run_can_be_read(finished_run, monkeypatch):
    read_only(monkeypatch, finished_run)
    assert open_run(finished_run).load_variables()[1] == 12


def test_a_place_that_is_no_folder(finished_run, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/run cannot be written to: .*file is a file, not a folder"):
        train(open_run(finished_run).config, tmp_path / "file" / "run")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own of a megabyte and a half; where none may be mounted, the test is skipped."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1536k", "tmpfs", folder], capture_output=True, check=False
    )
    if mount.returncode:
        pytest.skip("no file system may be mounted here")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.slow
def test_a_disk_that_is_really_full(small_disk, tiny, finished_run, capsys):
    """No room for the third checkpoint, then for nothing at all, then read-only, then room again."""
    folder = small_disk / "run"
    command = ["train", "digits", *tiny, "--out", str(folder), "--train.keep-checkpoints", "9"]
    assert cli.main([*command, "--train.steps", "4"]) == 0
    size = sum(path.stat().st_size for path in (folder / "checkpoints" / "4").rglob("*"))
    filler = small_disk / "filler"
    for left, message in ((size // 2, "step 8 in .* cannot be written: No space left"), (0, "cannot be written")):
        filler.unlink(missing_ok=True)
        filler.write_bytes(bytes(shutil.disk_usage(small_disk).free - left))
        capsys.readouterr()
        assert cli.main([*command, "--resume"]) == 2
        assert re.search(message, said := capsys.readouterr().err) and "Traceback" not in said
        assert [path.name for path in (folder / "checkpoints").iterdir()] == ["4"]
    filler.unlink()
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    assert cli.main([*command, "--resume"]) == 2
    assert "cannot be written to: Read-only file system" in capsys.readouterr().err
    assert cli.main(["sample", str(folder)]) == 2
    assert "cannot be written to: Read-only file system" in capsys.readouterr().err
    assert open_run(folder).load_variables()[1] == 4
    subprocess.run(["mount", "-o", "remount,rw,size=9m", small_disk], check=True)
    assert cli.main([*command, "--resume"]) == 0
    assert_same_bits(state_in(folder), state_in(finished_run))


# Losses that are not finite --------------------------------------------------------------------------------------


class Gain(nnx.Module):
    """(x_t, t) -> a * normalised x_t: one parameter, one running statistic."""

    def __init__(self, *, rngs):
        self.a = nnx.Param(jnp.array(2.0))
        self.norm = nnx.BatchNorm(1, rngs=rngs)

    def __call__(self, x_t, t, labels=None, *, rngs=None):
        return self.a[...] * self.norm(x_t)


def steps_of(config, batches, *, together=False):
    """The states after each batch, and the metrics."""
    model = Gain(rngs=nnx.Rngs(0))
    state = create_state(model, make_optimizer(config))
    options = {"ema": config.ema_decay, "skip_nonfinite": config.on_nonfinite == "skip", "bounded": False}
    step = make_step(GaussianDiffusion(schedules.create("linear", 10)), make_optimizer(config), **options)
    if together:
        return jax.tree.map(np.array, step.many(state, {"x_0": np.stack(batches)}, jax.random.key(0)))
    history = []
    for batch in batches:
        state, metrics = step(state, {"x_0": batch}, jax.random.key(0))
        history.append(jax.tree.map(np.array, (state, metrics)))
    return history


def test_a_step_that_is_skipped_changes_nothing_but_its_number():
    """NaN, infinity and a loss that overflows in turn; the step after a skipped one sees the state before it, and its own noise."""
    config = TrainConfig(lr=0.1, on_nonfinite="skip", grad_clip=None)
    rng = np.random.default_rng(0)
    good = [rng.normal(size=(4, 4, 4, 1)).astype(np.float32) for _ in range(3)]
    bad = [np.full_like(good[0], value) for value in (np.nan, np.inf, 1e30)]
    history = steps_of(config, [good[0], bad[0], good[1], bad[1], bad[2], good[2]])
    for k in (1, 3, 4):
        (before, _), (after, metrics) = history[k - 1], history[k]
        assert not np.isfinite(metrics["loss"] + metrics["grad_norm"])
        assert after.step == before.step + 1
        assert_same_bits(replace(after, step=before.step), before)
    for k in (2, 5):
        (before, _), (after, metrics) = history[k - 1], history[k]
        assert np.isfinite(metrics["loss"]) and after.params["a"] != before.params["a"]
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after))
    assert updates_done(history[-1][0].opt_state) == 3 and history[-1][0].step == 6
    together, metrics = steps_of(config, [good[0], bad[0], good[1], bad[1], bad[2], good[2]], together=True)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), together, history[-1][0])
    assert np.isfinite(metrics["loss"] + metrics["grad_norm"]).tolist() == [True, False, True, False, False, True]


def test_where_nothing_is_wrong_skipping_changes_nothing():
    rng = np.random.default_rng(0)
    batches = [rng.normal(size=(4, 4, 4, 1)).astype(np.float32) for _ in range(4)]
    stop, skip = (steps_of(TrainConfig(lr=0.1, on_nonfinite=choice), batches) for choice in ("stop", "skip"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), skip, stop)


@pytest.fixture
def poisoned(monkeypatch):
    """poisoned(*numbers): batches of these numbers (from 1) hold NaN."""

    def poison(*numbers):
        original = data.batches

        def batches(*args, **options):
            first = options["reading"].start_step + 1 if "reading" in options else 1
            for k, batch in enumerate(original(*args, **options), first):
                yield batch | ({"x_0": batch["x_0"] * np.nan} if k in numbers else {})

        monkeypatch.setattr(data, "batches", batches)
        monkeypatch.setattr(feeding, "fits", lambda *_: False)  # batches are read, not looked up on the device

    return poison


@pytest.mark.slow
def test_a_run_skips_and_counts_and_may_be_killed_meanwhile(ddpm, tmp_path, poisoned):
    """Lines 6 and 10 tell so far; the count of a resumed run is that of the whole run, and so are its bits."""
    poisoned(5, 6, 9)
    status, said = ddpm("--train.on-nonfinite", "skip")
    assert status == 0 and "3 steps were skipped, because their loss or gradient was not finite" in said
    folder = tmp_path / "run"
    lines = {line["step"]: line for line in read_metrics(folder)}
    assert [lines[step]["skipped"] for step in (2, 4, 6, 8, 10, 12)] == [0, 0, 2, 2, 3, 3]
    assert lines[6]["loss"] is None and lines[6]["grad_norm"] is None and lines[10]["loss"] > 0
    assert "NaN" not in (folder / "metrics.jsonl").read_text()
    whole = tmp_path / "whole"
    shutil.copytree(folder, whole)
    for step in (8, 12):
        shutil.rmtree(folder / "checkpoints" / str(step))
    status, said = ddpm("--train.on-nonfinite", "skip", "--resume")
    assert status == 0 and "3 steps were skipped" in said
    assert_same_runs(folder, whole)


@pytest.mark.slow
def test_a_run_that_stopped_goes_on_skipping(ddpm, tmp_path, poisoned):
    poisoned(5)
    status, said = ddpm()
    assert status == 2 and re.search("training stopped at step 5: .*loss = nan", said)
    status, said = ddpm("--resume", "--train.on-nonfinite", "skip")
    assert status == 0 and "1 steps were skipped" in said


def test_too_many_in_a_row_stop_the_run(ddpm, tmp_path, poisoned, monkeypatch):
    """Two, and then three that are one too many; what is saved is sound."""
    monkeypatch.setattr(loop, "MOST_SKIPPED", 3)
    poisoned(3, 4, 7, 8, 9)
    status, said = ddpm("--train.on-nonfinite", "skip")
    assert status == 2 and re.search(r"training stopped at step 9: .*, and 3 steps in a row were skipped\.", said)
    state = state_in(tmp_path / "run")
    assert int(state.step) == 8 and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
