"""Scripts that start several processes: when a Slurm job is sent again, and what Kubernetes tells a process.

Slurm's commands are replaced here; on a real one of a single machine the script was run by hand: docs/scaling.md.
"""

import os
import re
import subprocess
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parents[1] / "scripts" / "launch"


@pytest.fixture
def slurm(tmp_path):
    """Runs slurm.sh with an srun that saves steps and ends with a status; returns the status and the calls made."""

    def run(*arguments, status, saves=()):
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        calls = tmp_path / "calls"
        calls.unlink(missing_ok=True)
        made = "\n".join(f"mkdir -p {tmp_path}/run/checkpoints/{step}" for step in saves)
        for name, end in {
            "srun": f"{made}\ntouch {tmp_path}/run/config.json\nexit {status}",
            "scontrol": "exit 0",
        }.items():
            (folder / name).write_text(f'#!/usr/bin/env bash\necho "{name} $*" >> {calls}\n{end}\n')
            (folder / name).chmod(0o755)
        environment = os.environ | {"PATH": f"{folder}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
        (tmp_path / "run").mkdir(exist_ok=True)
        command = ["bash", str(LAUNCH / "slurm.sh"), *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        return done.returncode, calls.read_text().splitlines() if calls.exists() else [done.stderr.strip()]

    return run


def test_a_job_whose_time_is_over_is_sent_again_while_it_gets_on(slurm, tmp_path):
    out = f"--out={tmp_path}/run"
    train = f"srun --kill-on-bad-exit=1 ddpm train digits {out}"
    assert slurm("digits", out, status=130, saves=[90]) == (0, [train, "scontrol requeue 7"])
    assert slurm("digits", out, status=130, saves=[100]) == (0, [f"{train} --resume", "scontrol requeue 7"])
    assert slurm("digits", out, status=130) == (130, [f"{train} --resume"])  # it would for ever
    assert slurm("digits", out, status=2, saves=[200]) == (2, [f"{train} --resume"])
    assert slurm("digits", out, status=0, saves=[300]) == (0, [f"{train} --resume"])


def test_a_job_needs_a_place(slurm):
    assert slurm("digits", status=0) == (2, ["slurm.sh needs --out RUN among the arguments of ddpm train"])


def test_kubernetes_tells_a_process_what_it_has_to_know():
    text = (LAUNCH / "jobset.yaml").read_text()
    launch = (LAUNCH.parents[1] / "ddpm_jax" / "launch.py").read_text()
    told, known = (set(re.findall(pattern, of)) for pattern, of in ((r"name: (JAX_\w+)", text), (r"JAX_\w+", launch)))
    assert told == {"JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"} <= known
    script = text.partition("- |\n")[2].partition("volumeMounts")[0]
    assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0
