"""The command `ddpm` as a user meets it: help, mistakes, Ctrl-C, and what `sample` writes."""

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
from data_builders import write_image
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
        try:
            status = cli.main([str(argument) for argument in arguments])
        except SystemExit as exit:
            status = exit.code
        return status, *capsys.readouterr()

    return call


def plain(text):
    """Text without tyro's box around it and without line breaks."""
    return " ".join(re.sub(r"[│╭╮╰╯─]", " ", text).split())


# Help -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [["--help"], [], ["--version"], ["train", "--help"], ["train", "digits", "--help"], ["sample", "--help"]],
)
def test_help_does_not_wait_for_jax(arguments):
    """In a process of its own: neither jax nor what brings it along is imported."""
    code = (
        "import sys; from ddpm_jax.cli import main\n"
        "try: status = main(sys.argv[1:])\n"
        "except SystemExit as exit: status = exit.code\n"
        "heavy = {'jax', 'flax', 'torch', 'grain', 'orbax', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'{status} {heavy}' if status or heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.skipif(os.name != "posix", reason="pipes that end a process")
def test_a_reader_that_has_seen_enough_is_no_traceback():
    process = subprocess.Popen(
        [sys.executable, "-m", "ddpm_jax.cli", "train", "spiral", "--help"],
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
    status, out, _ = ddpm("train", "digits", "--help")
    assert status == 0 and all(
        option in out for option in ("--out", "--train.lr", "--model.dim", "--data.source", "--resume")
    )
    assert "0.002" in out  # the preset's own learning rate


# Mistakes -------------------------------------------------------------------------------------------------------


def refused(result, *shown):
    """Exit status 2, everything on stderr, no traceback, and the message holds every regular expression of `shown`."""
    status, out, err = result
    assert status == 2, (status, err)
    assert "Traceback" not in out + err
    for pattern in shown:
        assert re.search(pattern, plain(err)), (pattern, plain(err))


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        ("fly", ["'fly'", "train, finetune, sample, evaluate, edit, plot"]),
        ("train", ["needs a PRESET first"]),
        ("sample", ["needs a RUN first"]),
        ("train --out OUT", ["needs a PRESET first"]),
        ("train digit --out OUT", ["'digit'", "digits, digits-flow, images"]),
        ("train digits", ["--out"]),
        ("train digits --out OUT --train.learning-rate 1", ["--train.learning-rate"]),
        ("train digits --out OUT --train.steps many", ["--train.steps", "many"]),
        ("train digits --out OUT --train.dtype float16", ["--train.dtype", "float32", "bfloat16", "float16"]),
        ("train digits --out OUT --process.schedule square", ["--process.schedule", "linear", "cosine", "square"]),
        ("train digits --out OUT --train.lr -1", [r"train\.lr must be positive"]),
        ("train digits --out OUT --train.steps 0", [r"train\.steps must be at least 1, or None; got 0"]),
        ("train digits --out OUT --model.image-size 9", ["image_size must be divisible by 2", "got 9"]),
        ("train digits --out OUT --model.dim 6", ["norm_groups must divide every width"]),
        ("train digits --out OUT --sample.steps 1001", [r"at most process\.num_steps \(1000\); got 1001"]),
        ("train digits --out OUT --train.batch-size 2000", [r"batch_size must lie in 1\.\.1797", "2000"]),
        ("train digits --out OUT --model.num-classes 9", [r"labels must lie in 0\.\.8", "label 9"]),
        ("train digits --out OUT --model.num-classes 10 --data.no-labels", [r"model\.num_classes = 10 needs labels"]),
        ("train digits --out OUT --resume", ["OUT does not exist", "ddpm train PRESET --out"]),
        ("train digits --out OUT --resume --overwrite", ["exclude each other"]),
        ("train images --out OUT", [r"--data\.source"]),
        ("train images --out OUT --data.source nowhere", ["'nowhere'", "digits", "npz:PATH"]),
        ("train images --out OUT --data.source folder:nowhere", ["nowhere: no such folder"]),
        ("train images --out OUT --data.source npz:nowhere.npz", ["nowhere.npz: no such file"]),
        ("train images --out OUT --data.source EMPTY", ["EMPTY: no images there", "jpg"]),
        ("train images --out OUT --data.source MIXED", ["MIXED: holds both images"]),
        ("train images --out OUT --data.source NPZ --model.channels 2", [r"channels must be 1 \(grey\) or 3"]),
        ("train digits --out FILE/run", ["FILE/run", "cannot be written"]),
        ("sample OUT", ["OUT does not exist", "ddpm train PRESET --out"]),
        ("sample EMPTY", [r"EMPTY holds no config\.json"]),
        ("evaluate OUT", ["OUT does not exist"]),
    ],
)
def test_mistakes_before_training(ddpm, tmp_path, monkeypatch, arguments, shown):
    """Nothing is left behind by any of them."""
    monkeypatch.chdir(tmp_path)
    Path("EMPTY").mkdir()
    Path("FILE").write_text("a file")
    write_image(Path("MIXED/a.png"), np.zeros((8, 8), np.uint8))
    write_image(Path("MIXED/cats/b.png"), np.zeros((8, 8), np.uint8))
    np.savez("NPZ.npz", images=np.zeros((100, 32, 32, 3), np.uint8))
    before = sorted(map(str, Path().rglob("*")))
    refused(ddpm(*arguments.replace("NPZ", "npz:NPZ.npz").split()), *shown)
    assert sorted(map(str, Path().rglob("*"))) == before


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ("--labels 3 ten", ["'ten'", "10 classes: 0, 1, 2"]),
        ("--labels 10", ["'10'", r"0\.\.9"]),
        ("--labels -1", ["-1"]),
        ("--num 0", [r"num must be at least 1"]),
        ("--batch-size 0", ["batch_size must be at least 1; got 0"]),
        ("--sampler eulers", ["--sampler", "ancestral", "ddim", "eulers"]),
        ("--steps 0", ["steps must be at least 1"]),
        ("--steps 21", [r"steps must lie in 1\.\.20", "21"]),
        ("--eta 2", [r"eta must lie in \[0, 1\]; got 2"]),
        ("--variance gamma", ["--variance", "beta", "posterior"]),
        ("--out FILE", ["FILE", "cannot be written"]),
    ],
)
def test_mistakes_in_sampling(ddpm, finished_run, tmp_path, monkeypatch, options, shown):
    monkeypatch.chdir(tmp_path)
    Path("FILE").write_text("a file")
    refused(ddpm("sample", finished_run, *options.split()), *shown)
    assert Path("FILE").read_text() == "a file" and not (finished_run / "samples" / "samples.npz").exists()


def test_mistakes_with_a_run_that_exists(ddpm, finished_run, tiny):
    """Training into it again is refused three ways; the one line that differs is shown."""
    refused(
        ddpm("train", "digits", *tiny, "--out", finished_run), "exists. Pass --resume", "--overwrite", "another --out"
    )
    resumed = ddpm("train", "digits", *tiny, "--train.lr", "0.5", "--out", finished_run, "--resume")
    refused(resumed, r"train\.lr: 0\.01 in the run, 0\.5 now")
    assert "train.batch_size" not in resumed[2]
    refused(ddpm("evaluate", finished_run, "--num", "5"), "at least 10, one sample for each class; got 5")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("{", r"config\.json cannot be read"),
        ("{}", r"config\.json cannot be read"),
        (
            '{"format": 99, "class_names": [], "config": {}}',
            "format 99; this version of ddpm-jax reads the formats 2 and 3",
        ),
        ('{"format": 2, "class_names": [], "config": {}}', "cannot be read"),
    ],
)
def test_a_damaged_run_folder(ddpm, tmp_path, text, shown):
    (tmp_path / "config.json").write_text(text)
    refused(ddpm("sample", tmp_path), shown)


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


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ("digits --train.lr 0.5", r"train\.lr: 0\.01 in the run, 0\.5 now"),
        ("digits --data.source spiral", r"holds points|data\.source: 'digits' in the run, 'spiral' now"),
        ("digits --train.label-dropout 0.1", r"train\.label_dropout: 0\.0 in the run, 0\.1 now"),
        ("digits --data.no-labels", r"data\.labels: True in the run, False now"),
        ("digits --train.learning-rate 1", "--train.learning-rate"),
        ("spiral", "is a run of the network unet, and the preset spiral is of mlp"),
    ],
)
def test_what_a_resumed_run_refuses(ddpm, finished_run, options, shown):
    before = (finished_run / "config.json").read_bytes()
    refused(ddpm("train", *options.split(), "--out", finished_run, "--resume"), shown)
    assert (finished_run / "config.json").read_bytes() == before


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
        out, err = process.communicate()
    finally:
        deadline.cancel()
        process.kill()
    assert process.returncode == 130 and "Traceback" not in err, err
    found = re.search(r"interrupted; step (\d+) is saved\. Go on with:\n  (ddpm train .* --resume)\n", out)
    assert found, out
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
