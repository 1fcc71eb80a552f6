"""What is asked of runs in many tests: the state of a checkpoint, equality to the last bit, and what a refused command says."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from ddpm_jax import cli
from ddpm_jax.training import TrainState, open_run
from ddpm_jax.training.checkpoints import Checkpoints


def state_in(folder: Path, step: int | None = None) -> TrainState:
    """The state of a run's newest checkpoint, or of that of `step`."""
    run = open_run(folder)
    with Checkpoints(run.checkpoint_folder) as checkpoints:
        return checkpoints.restore(run.abstract_state(), step)


def assert_same_bits(found: Any, expected: Any) -> None:
    """Of two trees of arrays: the same structure, dtypes and bits."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        a, b = np.array(a), np.array(b)
        assert a.dtype == b.dtype
        assert a.tobytes() == b.tobytes()


def refusal(capsys: Any, *arguments: object) -> str:
    """What the command says, in one line, when it ends with status 2."""
    capsys.readouterr()
    assert cli.main([str(argument) for argument in arguments]) == 2
    return " ".join(capsys.readouterr().err.split())
