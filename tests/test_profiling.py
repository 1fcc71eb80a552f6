"""`ddpm train --profile`, and what is said where a batch does not fit into memory."""

import subprocess
import sys

import pytest

from ddpm_jax import training
from ddpm_jax.cli import main


@pytest.mark.slow
def test_a_profile(tmp_path, tiny):
    """Of calls after the first ones; opened by TensorBoard and by Perfetto.

    In a process of its own: the profiler takes half a minute to begin in one that pytest has been in.
    """
    folder, options = tmp_path / "run", ["--profile", "--train.sample-every", "0"]
    command = [sys.executable, "-m", "ddpm_jax", "train", "digits", *tiny, *options, "--out", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    (session,) = (folder / "profile" / "plugins" / "profile").iterdir()
    names = [path.name for path in session.iterdir()]
    assert any(name.endswith(".xplane.pb") for name in names)
    assert "perfetto_trace.json.gz" in names
    assert "perfetto" in done.stdout


def test_a_batch_that_does_not_fit_into_memory(tmp_path, tiny, monkeypatch, capsys):
    def fail(*_, **__):
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 1 bytes.")

    monkeypatch.setattr(training.Step, "__call__", fail)
    assert main(["train", "digits", *tiny, "--out", str(tmp_path / "run")]) == 2
    assert "a batch of 8 examples does not fit into memory. Try --train.batch-size 4" in capsys.readouterr().err
