"""What is kept between commands: a folder that cannot be written to is said once, and processes that share one are not told."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from ddpm_jax import cache, cli

ROOT = Path(__file__).parents[1]
COMPILES = """
import sys
from ddpm_jax import cli
def work(name, rest):
    import jax, jax.numpy as jnp
    for number in range(12):
        jax.jit(lambda x: x * (number + 1000 * int(name)) + jnp.sin(x))(jnp.ones(3)).block_until_ready()
    return 0
cli.COMMANDS["train"] = (work, "PRESET", "")
sys.exit(cli.main())
"""
"""A command of twelve programs of 2 to 3 kB."""


def start(number, **environment):
    inherited = {name: text for name, text in os.environ.items() if not name.startswith(("JAX_COMP", "JAX_PERS"))}
    environment = inherited | {"PYTHONPATH": str(ROOT), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"} | environment
    command = [sys.executable, "-c", COMPILES, "train", str(number)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def test_a_folder_that_cannot_be_written_to_is_said_once(tmp_path):
    """Our own when the command starts; one of the user's when JAX fails at it, for the first program."""
    (tmp_path / "file").write_text("")
    (tmp_path / "theirs" / ".lockfile").mkdir(parents=True)
    own = start(1, DDPM_CACHE=str(tmp_path / "file"))
    theirs = start(2, JAX_COMPILATION_CACHE_DIR=str(tmp_path / "theirs"), JAX_COMPILATION_CACHE_MAX_SIZE="10000")
    for process, shown in ((own, "compiled programs are not kept"), (theirs, "persistent compilation cache")):
        _, err = process.communicate(timeout=240)
        assert process.returncode == 0 and err.count("warning: ") == 1 and shown in err, err


def test_processes_that_drop_programs_at_once(tmp_path):
    """There is room for three or four programs, and a process that was killed has left half of one: nobody is told."""
    folder = tmp_path / "programs"
    folder.mkdir()
    (folder / "jit_x-cache").write_bytes(b"half")
    options = {"DDPM_CACHE": str(tmp_path), "JAX_COMPILATION_CACHE_MAX_SIZE": "10000"}
    for process in [start(number, **options) for number in range(2)]:
        _, err = process.communicate(timeout=240)
        assert process.returncode == 0 and not err
    left = [path.name for path in folder.iterdir()]
    assert "jit_x-cache" not in left and 1 <= sum(name.endswith("-cache") for name in left) <= 4


def test_which_warnings_are_said(monkeypatch, tmp_path, capsys):
    """The first of the programs that tells of the folder, anew in every command; none that tells of other processes; all others."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))

    def warn(*_):
        for error in ("FileNotFoundError", "Timeout", "PermissionError", "PermissionError"):
            warnings.warn(f"Error writing persistent compilation cache entry for 'jit_x': {error}: text", stacklevel=1)
            warnings.warn("another", stacklevel=1)
        return 0

    monkeypatch.setitem(cli.COMMANDS, "train", (warn, "PRESET", ""))
    for _ in range(2):
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            assert cli.main(["train", "x"]) == 0
        err = capsys.readouterr().err
        assert err.count("jit_x") == err.count("PermissionError") == 1 and err.count("another") == 4
    assert cache.is_worth_saying("anything else")


@pytest.mark.parametrize("name", ["x-cache", "x-atime"])
def test_halves_of_programs_are_removed_unless_they_are_being_written(monkeypatch, tmp_path, name):
    from filelock import FileLock

    for variable in ("JAX_COMPILATION_CACHE_DIR", "JAX_COMPILATION_CACHE_MAX_SIZE"):
        monkeypatch.setenv(variable, "")  # undone at the end
        monkeypatch.delenv(variable)
    monkeypatch.setenv("DDPM_CACHE", str(tmp_path))
    folder = tmp_path / "programs"
    folder.mkdir()
    for whole in ("y-cache", "y-atime"):
        (folder / whole).touch()
    (folder / name).touch()
    with FileLock(folder / ".lockfile"):
        assert cache.keep_programs() is None and (folder / name).exists()
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    assert cache.keep_programs() is None and not (folder / name).exists()
    assert {path.name for path in folder.iterdir()} - {".lockfile"} == {"y-cache", "y-atime"}
