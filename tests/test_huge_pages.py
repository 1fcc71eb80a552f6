"""The command starts itself anew with huge pages: counted in page faults, which do not jitter."""

import mmap
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from ddpm_jax import huge_pages

pytestmark = pytest.mark.skipif(
    not (huge_pages._has_glibc() and huge_pages._on_demand()), reason="needs glibc, and huge pages on demand"
)
SCRIPT = """
import os, resource, sys
from ddpm_jax.huge_pages import restart_with_huge_pages
BEFORE
if sys.argv[1] == "restart":
    restart_with_huge_pages()
import numpy as np
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
begun = faults()
for _ in range(5):
    np.ones(2**23).sum()
print(os.getpid(), faults() - begun, *sys.argv[1:])
"""
OWN = [{"GLIBC_TUNABLES": "glibc.malloc.tcache_count=7"}, {"MALLOC_ARENA_MAX": "4"}]


@pytest.fixture
def script(tmp_path):
    """script(*arguments, **environment) -> (whether it is the process that was started, page faults, its arguments)."""
    file = tmp_path / "a script.py"
    # numpy asks for huge pages by itself unless told otherwise
    text = SCRIPT.replace("import numpy", "os.environ['NUMPY_MADVISE_HUGEPAGE'] = '0'\nimport numpy")

    def run(*arguments, before="pass", **environment):
        file.write_text(text.replace("BEFORE", before))
        inherited = {name: text for name, text in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
        process = subprocess.Popen(
            [sys.executable, str(file), *arguments],
            env=inherited | {"PYTHONPATH": str(Path(__file__).parents[1])} | environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        pid, faults, *rest = process.communicate()[0].split()
        assert process.returncode == 0
        return int(pid) == process.pid, int(faults), rest

    return run


def given_when_asked():
    """Whether the system has huge pages to give at present: where memory is short or in pieces, it gives small ones."""
    with mmap.mmap(-1, 2**26, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory.madvise(mmap.MADV_HUGEPAGE)
        begun = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for place in range(0, len(memory), mmap.PAGESIZE):
            memory[place] = 1
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - begun < 2_000


FEW, MANY = 5_000, 50_000
"""Page faults of 64 MiB five times: 16,384 each as they come."""


def fewest(script, *arguments, **environment):
    """Page faults at best of three tries, and the rest of what the script says: memory may be in pieces for a moment."""
    tries = []
    while not tries or (min(tries)[0] >= FEW and len(tries) < 3):
        same, faults, rest = script(*arguments, **environment)
        assert same
        tries.append((faults, rest))
    if min(tries)[0] >= FEW and not given_when_asked():
        pytest.skip("the system has no huge pages to give at present")
    return min(tries)


def test_a_restart_costs_few_pages(script):
    same, before, _ = script("plain")
    assert same and before > MANY
    after, arguments = fewest(script, "restart", "1", "two")
    assert after < FEW and arguments == ["restart", "1", "two"]


@pytest.mark.parametrize("own", OWN, ids=lambda own: next(iter(own)))
def test_a_users_own_settings_are_left_alone(script, own):
    assert script("restart", **own)[1] > MANY


def test_processes_that_are_started_do_the_same(script):
    assert fewest(script, "plain", GLIBC_TUNABLES=huge_pages.TUNABLE)[0] < FEW


BROKEN = [
    "sys.executable = ''",
    "sys.executable = None",
    "sys.executable = __file__",  # may not be executed
    "del sys.orig_argv",
    "sys.orig_argv = []",
    "sys.modules['__main__'].__file__ = '/nowhere'",
    "del sys.modules['__main__'].__file__",
]


@pytest.mark.parametrize("broken", BROKEN)
def test_whatever_fails_the_command_goes_on(script, broken):
    """It is an optimisation. A program that cannot be read again, as another user or from a pipe, is not started again."""
    assert script("restart", before=broken)[1] > MANY


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become another user")
def test_as_another_user(script, tmp_path):
    """The program was readable to the user that started it, and is not to the one that it became."""
    tmp_path.chmod(0o700)
    assert (
        script("restart", before="os.environ['NUMPY_MADVISE_HUGEPAGE'] = '0'; import numpy; os.setuid(65534)")[1] > MANY
    )


def test_a_program_from_a_pipe_is_not_read_twice():
    code = "from ddpm_jax.huge_pages import restart_with_huge_pages; restart_with_huge_pages(); print('went on')"
    inherited = {name: text for name, text in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    environment = inherited | {"PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([sys.executable], input=code, env=environment, capture_output=True, text=True)
    assert done.stdout == "went on\n" and not done.stderr
