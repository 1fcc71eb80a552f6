"""`ddpm average`: an average of any length, made afterwards of those that a run's checkpoints hold (Karras et al. 2024)."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.errors import UserError
from ddpm_jax.files import new_folder
from ddpm_jax.training import averages
from ddpm_jax.training.checkpoints import Checkpoints
from ddpm_jax.training.run import Run, create_folder


def average(run: Run, length: float, out: Path, *, step: int | None = None) -> float:
    """Make a run folder `out` whose weights are the average of that length at a step, of all averages in the run's checkpoints.

    length: as a share of the training, in (0, 0.28]. step: None for that of the newest checkpoint; running statistics are those of
    the checkpoint that is nearest to it.

    Returns:
        How far the averages' profiles, put together, are from the one asked for, as a share of its norm; 0 where it was kept.

    Raises:
        UserError: the run keeps no averages of lengths, has no checkpoint, or none up to the step; `out` exists; a length out of
            range.
    """
    lengths = run.config.train.ema_lengths
    averages.exponent(length)
    if not lengths:
        raise UserError(
            f"{run.folder} keeps one average by a decay, of which no other can be made: train with "
            "--train.ema-lengths 0.05 0.1 --train.keep-every STEPS."
        )
    if out.exists():
        raise UserError(f"{out} exists; choose another --out.")
    with Checkpoints(run.checkpoint_folder) as checkpoints:
        steps = [found for found in checkpoints.steps if found and (step is None or found <= step)]
        if not steps:
            raise UserError(f"{run.checkpoint_folder} has no checkpoint of a step from 1 to {step or 'the newest'}.")
        wanted = step or steps[-1]
        shares, apart = averages.shares([(found, one) for found in steps for one in lengths], wanted, length)
        summed: Any = None
        like = run.abstract_state()
        for index, found in enumerate(steps):
            state = checkpoints.restore(like, found)
            trees = [state.ema_params, *(state.averages or ())]
            for tree, share in zip(trees, shares[index * len(lengths) :], strict=False):
                part = jax.tree.map(lambda a, share=share: share * np.asarray(a, np.float64), tree)
                summed = part if summed is None else jax.tree.map(np.add, summed, part)
    params = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), summed)
    origin = {"source": str(run.folder.absolute()), "weights": "ema", "length": length, "step": wanted, "of": steps}
    new = run.state_of({"params": params, "batch_stats": state.batch_stats})
    with new_folder(out) as made:
        averaged = dataclasses.replace(run, folder=made, origin=origin)
        create_folder(averaged)
        with Checkpoints(averaged.checkpoint_folder, keep=1) as checkpoints:
            checkpoints.save(new)
    return apart
