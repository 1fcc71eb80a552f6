"""The command `ddpm` as a user meets it: help, resuming, Ctrl-C, and what `sample` writes."""

import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddpm_jax import cli
from ddpm_jax.training import open_run

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent


@pytest.fixture
def ddpm(capsys):
    """ddpm(*arguments) -> (exit status, stdout, stderr)."""

    def call(*arguments):
        capsys.readouterr()
        return cli.main([str(argument) for argument in arguments]), *capsys.readouterr()

    return call


# Help -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [["--help"], [], ["--version"], ["plot", "--help"], ["verify", "--help"], ["import", "--help-all"]],
)
def test_help_does_not_wait_for_jax(arguments):
    """In a process of its own: neither jax nor what brings it along is imported, but for options of a sampler or a network."""
    code = (
        "import sys; from ddpm_jax.cli import main\n"
        "status = main(sys.argv[1:])\n"
        "heavy = {'jax', 'flax', 'torch', 'grain', 'orbax', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'{status} {heavy}' if status or heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.skipif(os.name != "posix", reason="pipes that end a process")
def test_a_reader_that_has_seen_enough_is_no_traceback():
    process = subprocess.Popen(
        [sys.executable, "-m", "ddpm_jax", "train", "spiral", "--help"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() == 141  # as a shell tells of SIGPIPE


def test_help_names_everything(ddpm):
    status, out, _ = ddpm("--help")
    assert status == 0
    for name in ("train", "sample", "evaluate", "digits", "images"):
        assert f"  {name}" in out or f"ddpm {name}" in out


def test_help_is_grouped_by_what_people_come_for(ddpm):
    """Each command once, under the door that it is declared in, and the first steps at the end."""
    _, out, _ = ddpm("--help")
    shown, door = {}, ""
    for line in out.partition("Presets:")[0].splitlines():
        if line.endswith(":"):
            door = line.removesuffix(":")
        elif found := re.match(r"  ddpm ([a-z]+) +(.+?) +\S", line):
            assert found[1] not in shown
            shown[found[1]] = door
    assert shown == {name: door for door, commands in cli.DOORS.items() for name in commands}
    assert [shown[name] for name in ("train", "verify", "doctor")] == list(cli.DOORS)
    lines = out.partition("Begin with one of these:\n")[2].splitlines()
    assert [line.split()[1] for line in lines] == ["sample", "train", "verify", "doctor"]


def test_help_of_a_preset_names_its_options(ddpm):
    status, out, _ = ddpm("train", "digits", "--help-all")
    assert status == 0 and all(
        option in out for option in ("--out", "--train.lr", "--model.dim", "--data.source", "--resume")
    )
    assert "0.002" in out  # the preset's own learning rate


def refused(result, *shown):
    """Exit status 2, everything on stderr, no traceback, and the message holds every regular expression of `shown`."""
    status, out, err = result
    assert status == 2, (status, err)
    assert "Traceback" not in out + err
    for pattern in shown:
        assert re.search(pattern, err), (pattern, err)


# Resuming -------------------------------------------------------------------------------------------------------


def test_a_resumed_run_needs_no_options_again(ddpm, finished_run, killed_run):
    """Those of its config.json are the defaults, not the preset's; it ends with the bits of the run that was left alone."""
    folder = killed_run(8)
    status, out, err = ddpm("train", "digits", "--out", folder, "--resume")
    assert status == 0 and "step 8 to 12" in err, out
    assert open_run(folder).config == open_run(finished_run).config
    for name in ("samples.npz", "metrics.jsonl"):
        assert (folder / name).is_file()
    with np.load(folder / "samples.npz") as found, np.load(finished_run / "samples.npz") as expected:
        np.testing.assert_array_equal(found["images"], expected["images"])


def test_options_are_laid_over_those_of_the_run(ddpm, killed_run):
    folder = killed_run(12)
    status, out, err = ddpm("train", "digits", f"--out={folder}", "--resume", "--train.steps", 14, "--sample.num", 12)
    assert status == 0 and "step 12 to 14" in err, out
    config = open_run(folder).config
    assert (config.train.steps, config.sample.num, config.train.lr, config.model.dim) == (14, 12, 0.01, 4)


def test_data_that_has_grown_is_noticed(ddpm, killed_run):
    """By the length of an epoch, which is taken from the data unless it is given."""
    folder = killed_run(12)
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"epoch_steps": 225', '"epoch_steps": 7'))
    refused(ddpm("train", "digits", "--out", folder, "--resume"), r"train\.epoch_steps: 7 in the run, 225 now")
    assert ddpm("train", "digits", "--out", folder, "--resume", "--train.epoch-steps", 7)[0] == 0


# Sampling -------------------------------------------------------------------------------------------------------


def test_sample_writes_what_was_asked(ddpm, finished_run, tmp_path):
    """25 samples of 3 and 7 in turn, ten at a time: an archive, a grid and an animation."""
    arguments = ("sample", finished_run, "--labels", "3", "7", "--num", 25, "--batch-size", 10, "--out", tmp_path / "a")
    status, out, _ = ddpm(*arguments)
    assert status == 0 and "25 samples by ddim in 4 steps" in out and "each later call" in out
    for name in ("samples.npz", "samples.png", "denoising.gif"):
        assert str(tmp_path / "a" / name) in out
    with np.load(tmp_path / "a" / "samples.npz") as archive:
        images, labels = archive["images"], archive["labels"]
        assert list(archive["class_names"]) == [str(k) for k in range(10)]
    assert images.shape == (25, 8, 8, 1) and images.dtype == np.uint8 and labels.dtype == np.int32
    assert list(labels) == ([3, 7] * 13)[:25]
    assert len(np.unique(images.reshape(25, -1), axis=0)) == 25  # the batches differ, and within them the samples
    with Image.open(tmp_path / "a" / "samples.png") as picture:
        assert picture.size == (
            5 * 68 + 4,
            5 * (68 + 17) + 4 + 28,
        )  # 5 x 5 images of 64 pixels with titles, and a heading
    with Image.open(tmp_path / "a" / "denoising.gif") as gif:
        assert gif.n_frames == 5 and gif.size[0] >= 4 * 68  # the noise and 4 steps, of the first ten


def test_samples_are_a_function_of_the_seed(ddpm, finished_run, tmp_path):
    """The same seed gives the same images, however many follow; another seed gives others."""

    def images(name, *options):
        folder = tmp_path / name
        status, _, err = ddpm("sample", finished_run, "--batch-size", 10, "--out", folder, *options)
        assert status == 0, err
        with np.load(folder / "samples.npz") as archive:
            return archive["images"]

    first = images("first", "--num", 10, "--seed", 5)
    np.testing.assert_array_equal(first, images("again", "--num", 10, "--seed", 5))
    np.testing.assert_array_equal(first, images("more", "--num", 20, "--seed", 5)[:10])
    assert (first != images("other", "--num", 10, "--seed", 6)).any((1, 2, 3)).all()


def test_samples_go_to_the_run_unless_told_otherwise(ddpm, killed_run):
    folder = killed_run(12)
    assert ddpm("sample", folder)[0] == 0
    names = sorted(path.name for path in (folder / "samples").iterdir())
    assert names == ["denoising.gif", "samples.npz", "samples.png", "step_0000008.png"]
    with np.load(folder / "samples" / "samples.npz") as archive:
        assert len(archive["images"]) == 10  # the run's own number


# Real processes -------------------------------------------------------------------------------------------------

ENVIRONMENT = {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "PYTHONUNBUFFERED": "1"}


@pytest.mark.slow
def test_ctrl_c_saves_and_says_how_to_go_on(tiny, tmp_path, capsys):
    """SIGINT to a real `ddpm train`: status 130, and the command it prints goes on from the step it names."""
    folder = tmp_path / "my runs" / "first one"
    options = [*tiny, "--train.steps", "1000000", "--train.log-every", "1", "--train.checkpoint-every", "1000000"]
    process = subprocess.Popen(
        [BIN / "ddpm", "train", "digits", *options, "--out", str(folder)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | ENVIRONMENT,
    )  # fmt: skip
    deadline = threading.Timer(240, process.kill)
    deadline.start()
    try:
        for line in process.stderr:
            if line.startswith("step 3/"):
                process.send_signal(signal.SIGINT)
                break
        _, err = process.communicate()
    finally:
        deadline.cancel()
        process.kill()
    assert process.returncode == 130 and "Traceback" not in err, err
    found = re.search(r"^ddpm: interrupted; step (\d+) is saved\. Go on with: (ddpm train .* --resume)\n", err, re.M)
    assert found, err
    step, command = int(found[1]), found[2]
    assert command == f"ddpm train digits --out '{folder}' --resume"  # the rest is in config.json
    assert step >= 3 and open_run(folder).load_variables()[1] == step
    _, *again = shlex.split(command)
    assert cli.main([*again, "--train.steps", str(step + 2)]) == 0
    assert f"step {step} to {step + 2}" in capsys.readouterr().err
    assert open_run(folder).load_variables()[1] == step + 2


def test_programs_are_kept_between_commands(monkeypatch, tmp_path, capsys):
    """In $DDPM_CACHE, unless JAX was told where; a folder that cannot be made costs nothing but time."""
    names = [f"JAX_COMPILATION_CACHE_{name}" for name in ("DIR", "MAX_SIZE")]
    for name in names:
        monkeypatch.setenv(name, "mine")
    monkeypatch.setenv("DDPM_CACHE", str(tmp_path / "kept"))
    assert cli.main(["--version"]) == 0
    assert [os.environ[name] for name in names] == ["mine", "mine"] and not (tmp_path / "kept").exists()
    for name in names:
        monkeypatch.delenv(name)
    assert cli.main(["--version"]) == 0
    assert os.environ[names[0]] == str(tmp_path / "kept" / "programs") and int(os.environ[names[1]]) > 0
    assert (tmp_path / "kept" / "programs").is_dir()
    del os.environ[names[0]]
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DDPM_CACHE", str(tmp_path / "file"))
    assert cli.main(["--version"]) == 0 and names[0] not in os.environ


def test_scripts(finished_run, tmp_path):
    """scripts/train.py and scripts/sample.py take the arguments of the command and hand on its exit status."""

    def script(name, *arguments):
        return subprocess.run(
            [sys.executable, ROOT / "scripts" / name, *map(str, arguments)],
            capture_output=True, text=True, env=os.environ | ENVIRONMENT, cwd=tmp_path,
        )  # fmt: skip

    refused = script("train.py", "digits", "--train.lr", "-1", "--out", "run")
    assert refused.returncode == 2 and "train.lr must be positive" in refused.stderr
    assert "Traceback" not in refused.stderr
    sampled = script("sample.py", finished_run, "--num", 10, "--labels", 4, "--out", "drawn")
    assert sampled.returncode == 0, sampled.stderr
    with np.load(tmp_path / "drawn" / "samples.npz") as archive:
        assert list(archive["labels"]) == [4] * 10


def test_another_interruption_is_no_traceback(ddpm, monkeypatch):
    """Ctrl-C at any other moment: outside the steps nothing waits for it."""

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setitem(cli.COMMANDS, "train", (interrupted, "PRESET", ""))
    status, _, err = ddpm("train", "digits")
    assert status == 130 and "interrupted" in err
