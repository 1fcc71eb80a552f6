"""Ctrl-C and SIGTERM at any moment of any command: one line, status 130 or 143, within seconds, and nothing half-written."""

import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from ddpm_jax.signals import GRACE_S
from ddpm_jax.training.checkpoints import damage

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="looks into /proc")
ROOT = Path(__file__).parents[1]
ENDS = 20.0
"""Seconds, on a machine with other work; alone it takes a few hundredths, where no steps are to be saved."""


class Command:
    """A command in a process and a session of its own, its caches and temporary files in a folder."""

    def __init__(self, folder, *arguments, code=None, cache=None, **environment):
        self.scratch = folder / "scratch"
        self.scratch.mkdir(exist_ok=True)
        self._files = [tempfile.TemporaryFile("w+"), tempfile.TemporaryFile("w+")]  # noqa: SIM115
        inherited = {
            k: v for k, v in os.environ.items() if not k.startswith(("JAX_COMP", "JAX_PERS", "GLIBC", "MALLOC_"))
        }
        inherited |= {
            "DDPM_CACHE": str(cache or folder / "cache"),
            "TMPDIR": str(self.scratch),
            "PYTHONUNBUFFERED": "1",
        }
        program = ["-m", "ddpm_jax"] if code is None else ["-c", code]
        self.process = subprocess.Popen(
            [sys.executable, *program, *map(str, arguments)],
            env=inherited | {"PYTHONPATH": str(ROOT)} | environment,
            stdout=self._files[0], stderr=self._files[1], start_new_session=True,
        )  # fmt: skip

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for pid in self.alive():
            os.kill(pid, signal.SIGKILL)
        self.process.wait()
        for file in self._files:
            file.close()

    def alive(self):
        """The processes of its session."""
        found = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                state, _, _, session = path.read_text().rpartition(")")[2].split()[:4]
            except OSError:
                continue
            if int(session) == self.process.pid and state != "Z":
                found.append(int(path.parent.name))
        return found

    def said(self, which=0):
        self._files[which].flush()
        return os.pread(self._files[which].fileno(), 2**20, 0).decode()

    def until(self, condition, seconds=240.0):
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, (self.said(), self.said(1))
            if self.process.poll() is not None:
                return False
            time.sleep(0.002)
        return True

    def begun(self):
        """Whether its first line was reached: nobody else catches SIGTERM."""
        caught = re.search(r"^SigCgt:\s*(\w+)", Path(f"/proc/{self.process.pid}/status").read_text(), re.M)
        return caught is not None and bool(int(caught[1], 16) >> (signal.SIGTERM - 1) & 1)

    def ends(self, number, text="interrupted"):
        """A signal ends it as it should; returns its line."""
        self.process.send_signal(number)
        return self.ended(number, text)

    def ended(self, number, text="interrupted"):
        assert self.process.wait(ENDS + GRACE_S) == 128 + number, (self.said(), self.said(1))
        err = self.said(1)
        assert "Traceback" not in err and "Exception ignored" not in err and "Error" not in err, err
        ours = [line for line in err.splitlines() if line.startswith(("ddpm:", "warning:"))]
        assert len(ours) == 1 and ours[0].startswith(f"ddpm: {text}"), err
        time.sleep(0.05)
        left = [
            path for path in self.scratch.iterdir() if not path.name.startswith("torchinductor")
        ]  # PyTorch's own cache
        assert not self.alive() and not left, (self.alive(), left)
        return ours[0]


def hidden(folder):
    """Whatever was not finished."""
    return [path for path in folder.rglob("*") if path.name.startswith(".") or ".partial" in path.name]


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """A cache of their own: other tests' is not written under a lock."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def start(tmp_path, programs):
    """start(*arguments, code=None) -> a running Command, which is killed at the end of the test."""
    commands = []

    def begin(*arguments, **options):
        commands.append(Command(tmp_path, *arguments, **{"cache": programs, **options}))
        return commands[-1]

    yield begin
    for command in commands:
        command.__exit__()


# While it starts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("delay", [0.0, 0.1, 0.4])
def test_during_imports(start, tiny, tmp_path, delay, number):
    command = start("train", "digits", *tiny, "--out", tmp_path / "run")
    assert command.until(command.begun)
    time.sleep(delay)
    assert command.ends(number) == "ddpm: interrupted."
    assert not (tmp_path / "run").exists()


def test_while_it_compiles(start, tiny, tmp_path):
    """Python's own handlers would wait for XLA. Nothing is saved yet, so there is nothing to go on with."""
    command = start("train", "digits", *tiny, "--out", tmp_path / "run", cache=tmp_path / "cache")
    assert command.until(lambda: "run: " in command.said(1))
    assert command.ends(signal.SIGTERM) == "ddpm: interrupted."
    assert not [path for path in hidden(tmp_path / "run") if path.parent.name != "checkpoints"]


FAKE = """
import gc, os, signal, sys, threading, time
from pathlib import Path
from ddpm_jax import __main__ as program, cli, files, signals
train = cli.COMMANDS["train"][0]
def work(name, rest):
{body}
cli.COMMANDS["train"] = (work, "PRESET", "")
sys.exit(program.main())
"""
"""The command `train`, made of something else."""


def fake(body):
    return FAKE.format(body="\n".join(f"    {line}" for line in body.strip().splitlines()))


def test_an_interrupt_that_a_callback_would_swallow(start):
    """JAX is told of garbage collections, and what is raised there is printed and lost."""
    command = start("train", "x", code=fake("""
        gc.callbacks.append(lambda phase, info: time.sleep(0.05))
        print("ready")
        while True: gc.collect()
    """.replace("        ", "")))  # fmt: skip
    assert command.until(lambda: "ready" in command.said())
    command.ends(signal.SIGINT)


def test_what_keeps_the_interpreter_is_not_waited_for(start):
    """Handlers of Python's run between instructions; here there is none for ten minutes, as within a compilation."""
    command = start("train", "x", code=fake("print('ready')\nthreading.Lock().acquire() and time.sleep(600)"))
    assert command.until(lambda: "ready" in command.said())
    command.ends(signal.SIGINT)


def test_one_that_came_before_the_restart_for_huge_pages(start):
    """Signals wait across execve, and through the interpreter's start."""
    code = (
        "import os, signal, sys; from ddpm_jax import __main__ as program, huge_pages\n"
        "os.environ['AGAIN'] = '1'\n"
        "again = [sys.executable, '-c', 'import sys, time; from ddpm_jax import __main__ as p, cli; '\n"
        '         \'cli.COMMANDS["train"] = (lambda *_: time.sleep(600), "", ""); sys.exit(p.main())\', *sys.argv[1:]]\n'
        "def restart():\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    os.execve(sys.executable, again, os.environ)\n"
        "huge_pages.restart_with_huge_pages = restart\n"
        "program.main()"
    )
    start("train", "x", code=code).ended(signal.SIGTERM)


# What it writes --------------------------------------------------------------------------------------------------

WRITERS = {
    "a file": "files.write_atomically(out / 'a.txt', slow)",
    "a file that was there": "(out / 'old.txt').write_text('old'); files.write_atomically(out / 'old.txt', slow)",
    "files together": "with files.together(): [files.write_atomically(out / n, w) for n, w in zip('ab', [quick, slow])]",
    "a folder": "with files.new_folder(out / 'a') as made: quick(made / 'x'), slow(made / 'y')",
    "a folder for a while": "with files.scratch_folder() as made: slow(made / 'y')",
}


@pytest.mark.parametrize("writer", WRITERS)
def test_nothing_is_half_written(start, tmp_path, writer):
    out = tmp_path / "out"
    out.mkdir()
    command = start("train", "x", code=fake(f"""
out = Path({str(out)!r})
def quick(path): path.write_text("quick")
def slow(path): path.write_text("half"); print("ready"); time.sleep(600)
{WRITERS[writer]}
    """))  # fmt: skip
    assert command.until(lambda: "ready" in command.said())
    command.ends(signal.SIGINT)
    assert {path.name: path.read_text() for path in out.iterdir()} == ({"old.txt": "old"} if "there" in writer else {})


def test_a_failure_that_the_end_causes_is_not_told(start, tmp_path):
    """The other threads meet files that are gone while it ends, and one of them may be about to end the process itself."""
    command = start("train", "x", code=fake(f"""
out = Path({str(tmp_path / "out")!r})
def grumble(path):
    print("ready")
    while path.exists(): time.sleep(0.001)
    raise OSError("gone")
threading.Thread(target=lambda: files.write_atomically(out / "b", grumble)).start()
files.write_atomically(out / "a", grumble)
    """))  # fmt: skip
    assert command.until(lambda: command.said().count("ready") == 2)
    command.ends(signal.SIGINT)
    assert not list((tmp_path / "out").iterdir())


# While it trains -------------------------------------------------------------------------------------------------

STUCK = """
signals.GRACE_S = {grace}
from ddpm_jax.training.metrics import Metrics
write = Metrics.write
def stuck(self, step, **numbers):
    write(self, step, **numbers)
    if step == 6:
        print("stuck")
        time.sleep(600)
Metrics.write = stuck
return train(name, rest)
"""
"""Training that hangs while step 6 is logged; steps 4 and 5 are done, 4 is saved."""


def go_on(step, folder):
    return f"ddpm: interrupted; step {step} is saved. Go on with: ddpm train digits --out {folder} --resume"


def test_training_saves_and_a_resumed_run_that_has_nothing_new_does_not_wait(start, tiny, tmp_path):
    folder = tmp_path / "run"
    options = [*tiny, "--train.steps", 100_000, "--train.sample-every", 0, "--train.checkpoint-every", 100_000]
    command = start("train", "digits", *options, "--out", folder)
    assert command.until(lambda: "step 4/" in command.said(1))
    line = command.ends(signal.SIGTERM, "interrupted; step ")
    (step,) = map(int, os.listdir(folder / "checkpoints"))
    assert step >= 4 and line == go_on(step, folder)
    assert damage(folder / "checkpoints" / str(step)) == (None, True)
    assert json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["step"] == step
    command = start("train", "digits", "--out", folder, "--resume")
    assert command.until(lambda: "run: " in command.said(1))
    assert command.ends(signal.SIGINT, "interrupted; step ") == line
    assert os.listdir(folder / "checkpoints") == [str(step)] and not hidden(folder)


@pytest.mark.slow
def test_a_second_ctrl_c_and_the_end_of_patience(start, tiny, tmp_path):
    """Both name the last checkpoint that is whole; a second SIGTERM changes nothing."""
    for grace, *numbers in ((600, signal.SIGTERM, signal.SIGTERM, signal.SIGINT), (1, signal.SIGTERM)):
        folder = tmp_path / f"run{grace}"
        command = start("train", "digits", *tiny, "--out", folder, code=fake(STUCK.format(grace=grace)))
        assert command.until(lambda command=command: "stuck" in command.said())
        assert command.until((folder / "checkpoints" / "4").is_dir)
        for number in numbers:
            assert command.process.poll() is None
            command.process.send_signal(number)
            time.sleep(0.3)
        assert command.ended(signal.SIGTERM) == go_on(4, folder)


# Anywhere --------------------------------------------------------------------------------------------------------

TRIES = 20
FOREVER = ["--train.steps", "1000000", "--train.checkpoint-every", "10", "--train.sample-every", "30"]
COMMANDS = {
    # the arguments, and what is there once the command is done; None: it goes on for ever
    "train": (["digits", "TINY", *FOREVER], None),
    "finetune": (["RUN", *FOREVER], None),
    "sample": (["RUN", "--num", "40", "--batch-size", "10"], {"samples.npz", "samples.png", "denoising.gif"}),
    "evaluate": (["RUN", "--num", "60", "--num-real", "300"], {"evaluation.json"}),
    "edit": (["RUN", "vary"], {"edit.npz", "edit.png"}),
    "plot": (["RUN", "loss", "samples", "noising"], {"loss.png", "samples.png", "noising.png"}),
    "convert": (["RUN", "OUT", "--to", "diffusers"], {"model_index.json", "scheduler", "unet"}),
    "import": (["PIPELINE"], {"config.json", "checkpoints"}),
    "verify": (["mlp"], {"report.json", "report.html", "report.md"}),
    "benchmark": (["mlp", "--seconds", "0.2"], {"benchmark.json", "benchmark.png"}),
}


@pytest.fixture(scope="module")
def pipeline(finished_run, tmp_path_factory):
    from ddpm_jax.cli import main

    folder = tmp_path_factory.mktemp("pipeline") / "digits"
    assert main(["convert", str(finished_run), str(folder), "--to", "diffusers"]) == 0
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_at_random_moments(finished_run, pipeline, tiny, tmp_path, name):
    """TRIES of each command: none is lost, none leaves more or less than the whole."""
    import shutil

    given, whole = COMMANDS[name]
    rng = random.Random(name)
    run = tmp_path / "digits"
    shutil.copytree(finished_run, run)
    before = set(run.rglob("*"))

    def command(out):
        places = {"RUN": [run], "OUT": [out], "PIPELINE": [pipeline], "TINY": tiny}
        arguments = [part for text in given for part in places.get(text, [text])]
        where = [] if "OUT" in given or name == "evaluate" else ["--out", out]
        return Command(tmp_path, name, *arguments, *where)

    def left(out):
        found = out if name != "evaluate" else run
        return {path.name for path in found.iterdir()} if found.exists() else set()

    for first in (True, False):  # the second time, programs are kept
        begun = time.monotonic()
        with command(tmp_path / f"undisturbed{first}") as undisturbed:
            if whole is None:
                assert undisturbed.until(lambda command=undisturbed: "step 40/" in command.said(1))
            else:
                assert undisturbed.process.wait(300) == 0, undisturbed.said(1)
                lines = undisturbed.said().count("\n")
        took = (time.monotonic() - begun) * (1 if whole is not None else 2)
    (run / "evaluation.json").unlink(missing_ok=True)
    counts = {"ended": 0, "was done": 0, "can go on": 0}
    slowest = 0.0
    for count in itertools.count():
        if counts["ended"] == TRIES:
            break
        out = tmp_path / f"try{count}"
        number = rng.choice([signal.SIGINT, signal.SIGTERM])
        with command(out) as tried:
            assert tried.until(tried.begun)
            time.sleep(rng.uniform(0, took))
            if whole is not None and (tried.process.poll() is not None or tried.said().count("\n") >= lines):
                assert tried.process.wait(ENDS) == 0
                counts["was done"] += 1
                (run / "evaluation.json").unlink(missing_ok=True)
                continue
            begun = time.monotonic()
            line = tried.ends(number)
            slowest = max(slowest, time.monotonic() - begun)
            assert ("--resume" in line) == (whole is None and any(map(str.isdecimal, checkpoints(out)))), line
        counts["ended"] += 1
        counts["can go on"] += "--resume" in line
        assert not [
            path for path in hidden(tmp_path) if ".lockfile" not in path.name and "checkpoints" not in path.parts
        ]
        if whole is None:
            assert all(damage(out / "checkpoints" / step)[0] is None for step in checkpoints(out) if step.isdecimal())
        elif name == "evaluate":
            assert set(run.rglob("*")) - before <= {run / "evaluation.json"}
        elif name == "plot":
            assert left(out) <= whole
        else:
            assert left(out) in (set(), whole)
    print(f"{name}: {counts}, the slowest after {slowest:.2f} s")
    programs = {path.name[:-6] for path in (tmp_path / "cache" / "programs").glob("*-cache")}
    assert programs == {path.name[:-6] for path in (tmp_path / "cache" / "programs").glob("*-atime")}


def checkpoints(folder):
    return os.listdir(folder / "checkpoints") if (folder / "checkpoints").exists() else []
