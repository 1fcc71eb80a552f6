"""Progress: on standard error alone, as bars where somebody watches and as lines where nobody does."""

import os
import pty
import re
import subprocess
import sys
import termios
import threading
import time
from contextlib import contextmanager, suppress
from types import SimpleNamespace

import pytest

from ddpm_jax import progress
from ddpm_jax.cli import main
from ddpm_jax.training.metrics import Metrics
from ddpm_jax.verify.stages import Verification


@contextmanager
def terminal():
    """Standard error as a terminal, and the list of what it was shown, whole at the end."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (40, 150))  # on none of a size of zero tqdm draws anything
    shown = []

    def read():
        with suppress(OSError):  # what a terminal says whose other end is closed
            while part := os.read(ours, 4096):
                shown.append(part.decode())

    reader = threading.Thread(target=read)
    reader.start()
    with pytest.MonkeyPatch.context() as patch, open(theirs, "w") as stream:
        patch.setattr(sys, "stderr", stream)
        yield shown
    reader.join()
    os.close(ours)


def ddpm(*arguments):
    return main([str(part) for part in arguments])


def test_training_and_sampling_on_a_terminal(tiny, tmp_path, capsys):
    """The header, the bar with the time that is left, the bar of samples; of all that nothing on standard output."""
    with terminal() as shown:
        assert ddpm("train", "digits", *tiny, "--train.sample-every", 0, "--out", tmp_path / "run") == 0
    text, out = "".join(shown), capsys.readouterr().out
    assert "network: " in text and "step 0 to 12" in text and "the first step, compilation included" in text
    assert "training: 100%" in text and "12/12 [" in text and re.search(r" 8/12 \[\d\d:\d\d<\d\d:\d\d, ", text)
    assert "sampling, to be compiled first:   0%" in text and "0/10 [" in text
    assert (
        "network: " not in out
        and "sampling:" not in out
        and "sampling, " not in out
        and "12/12" not in out
        and "samples.png" in out
    )

    with terminal() as shown:
        options = ["--num", 6, "--batch-size", 2, "--steps", 2, "--sampler", "ddim"]
        assert ddpm("sample", tmp_path / "run", *options) == 0
    text, out = "".join(shown), capsys.readouterr().out
    assert "sampling:  33%" in text and "2/6 [" in text and "sampling:  67%" in text and "4/6 [" in text
    assert "6 samples by ddim" in out and "samples.npz" in out and "33%" not in out


def test_training_and_sampling_without_one(tiny, tmp_path, capsys):
    """A header and a line at every interval, all of them on standard error; no bar."""
    assert ddpm("train", "digits", *tiny, "--train.sample-every", 0, "--out", tmp_path / "run") == 0
    out, said = capsys.readouterr()
    lines = [line for line in said.splitlines() if line.startswith("step ")]
    assert [line.split()[1] for line in lines] == [f"{step}/12" for step in range(2, 13, 2)]
    assert lines[-1].startswith("step 12/12  loss ") and lines[-1].endswith("steps/s  00:00 left")
    assert (
        "network: " in said
        and "%|" not in said
        and "it/s" not in said
        and "sampling:" not in said
        and "sampling, " not in said
    )
    assert out.startswith("trained to step 12")

    assert ddpm("sample", tmp_path / "run", "--num", 2, "--steps", 2, "--sampler", "ddim") == 0
    out, said = capsys.readouterr()
    assert said == "" and out.startswith("2 samples by ddim")


@pytest.mark.parametrize(
    ("command", "what"),
    [
        (["evaluate", "--num", 20, "--steps", 2, "--sampler", "ddim"], "sampling:"),
        (["evaluate", "--likelihood", "--num", 4], "the bound: "),
        (["edit", "interpolate", "--num", 2, "--steps", 2], "interpolating, to be compiled first: "),
        (["edit", "vary", "--num", 2, "--steps", 2], "varying, to be compiled first: "),
        (["edit", "inpaint", "--num", 2, "--steps", 2], "inpainting, to be compiled first: "),
    ],
    ids=lambda value: " ".join(map(str, value[:2])) if isinstance(value, list) else "",
)
def test_what_takes_long_has_a_bar(command, what, run):
    name, *rest = command
    with terminal() as shown:
        assert ddpm(name, run.folder, *rest) == 0
    assert what in "".join(shown)


def test_verification_has_a_bar():
    with terminal() as shown:
        Verification("mlp").run(["schedule", "noising"])
    assert "mlp, float64: " in "".join(shown) and "0/2 [" in "".join(shown)


def test_a_bar_that_stands_still_shows_the_time(monkeypatch, capsys):
    monkeypatch.setattr(progress, "wanted", lambda: True)
    monkeypatch.setattr(progress, "TICK_S", 0.05)
    seen = []
    with progress.bar(3, "walking", unit="sample") as bar:
        monkeypatch.setattr(bar, "refresh", lambda *args, **kwargs: seen.append(bar.n))
        time.sleep(0.3)
    assert len(seen) >= 2 and set(seen) == {0}


def test_the_time_left(monkeypatch, tmp_path, capsys):
    """40 of 100 steps took 8 s: 60 take 12 more."""
    clock = iter([0.0, 8.0, 8.0])
    monkeypatch.setattr("ddpm_jax.training.metrics.time.perf_counter", lambda: next(clock))
    with Metrics(tmp_path, start=0, total=100, batch_size=10) as metrics:
        metrics.write(40, loss=1.0)
    assert capsys.readouterr().err == "step 40/100  loss 1.0000  50 images/s  5.0 steps/s  00:12 left\n"


def test_hushed(monkeypatch, capsys):
    monkeypatch.setattr(progress, "_hushed", False)
    progress.say("one")
    progress.hush()
    progress.say("two")
    assert capsys.readouterr().err == "one\n" and not progress.wanted()


@pytest.mark.parametrize("config, wanted", [({"IPKernelApp": {}}, True), ({}, False)])
def test_notebooks(monkeypatch, config, wanted):
    shell = SimpleNamespace(config=config)
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    assert progress.wanted() is wanted


def test_no_warning_that_widgets_are_missing():
    """In a kernel without ipywidgets tqdm's own choice warns, and the bar of a terminal is taken."""
    code = (
        "import sys, types, warnings; warnings.simplefilter('error');"
        "sys.modules['ipykernel.zmqshell'] = types.ModuleType('ipykernel.zmqshell');"
        "shell = types.SimpleNamespace(config={'IPKernelApp': {}});"
        "fake = types.ModuleType('IPython'); fake.get_ipython = lambda: shell; sys.modules['IPython'] = fake;"
        "sys.modules['ipywidgets'] = None;"
        "from ddpm_jax import progress\n"
        "with progress.bar(1, 'walking', unit='sample') as bar: bar.update()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "walking:   0%" in done.stderr and "IProgress" not in done.stderr, done.stderr
