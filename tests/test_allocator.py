"""Memory that is freed stays with the process: counted in pages, which do not jitter."""

import os
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's settings")

FAULTS = """
import resource, sys
from ddpm_jax.allocator import keep_memory
kept = sys.argv[1] == "keep" and keep_memory()
import numpy as np
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
np.ones(2**22)
before = faults()
for _ in range(5):
    np.ones(2**22)
print(kept, faults() - before)
"""


def pages_in_five_rounds(how, **environment):
    """Whether keep_memory took effect, and the page faults of asking five times for 32 MiB."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", FAULTS, how]
    found = subprocess.run(command, env=inherited | environment, capture_output=True, text=True, check=True)
    kept, faults = found.stdout.split()
    return kept == "True", int(faults)


def test_memory_is_kept():
    assert pages_in_five_rounds("plain")[1] > 40  # or five times 8,192 where no huge pages are given out
    kept, faults = pages_in_five_rounds("keep")
    assert kept and faults < 10


@pytest.mark.parametrize("own", [{"MALLOC_ARENA_MAX": "4"}, {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=5"}])
def test_a_users_own_settings_are_left_alone(own):
    kept, faults = pages_in_five_rounds("keep", **own)
    assert not kept and faults > 40


def test_processes_that_are_started_do_the_same():
    script = """
import subprocess, sys
from ddpm_jax.allocator import keep_memory
keep_memory()
subprocess.run([sys.executable, "-c", sys.argv[1], "plain"], check=True)
"""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", script, FAULTS]
    found = subprocess.run(command, env=inherited, capture_output=True, text=True, check=True)
    assert int(found.stdout.split()[1]) < 10
