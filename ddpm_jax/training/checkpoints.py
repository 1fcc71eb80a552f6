"""Checkpoints of the training state: written in the background, whole or not there, the newest n kept."""

from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from ddpm_jax.errors import UserError
from ddpm_jax.training.state import TrainState


class Checkpoints:
    """The checkpoints of one run, by step. Use as a context manager: leaving it waits for what is being written."""

    def __init__(self, folder: Path, keep: int | None = None):
        self.folder = folder
        policy = ocp.training.preservation_policies.LatestN(keep)
        self._orbax = ocp.training.Checkpointer(
            folder.absolute(), preservation_policy=policy, cleanup_tmp_directories=keep is not None
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self._orbax.close()

    @property
    def latest_step(self) -> int | None:
        """The newest checkpoint's step; None: there is none."""
        latest = self._orbax.latest
        return None if latest is None else int(latest.step)

    def save(self, state: TrainState) -> None:
        """Write the state in the background; waits only for the write before. A step that is already there stays as it is."""
        step = int(state.step)
        if self.latest_step != step:
            self._orbax.save_async(step, state, force=True)

    def restore(self, like: TrainState, step: int | None = None) -> TrainState:
        """The newest state, or that of `step`; like: a state of the same shapes, arrays or jax.ShapeDtypeStruct, which lies where
        those do, whatever devices it was saved from.

        Raises:
            UserError: there is no checkpoint, or it does not hold such a state.
        """
        if step is None:
            step = self.latest_step
        if step is None:
            raise UserError(f"{self.folder} holds no checkpoint; train the run first.")
        try:
            return self._orbax.load(step, jax.tree.map(_placed, like))
        except (ValueError, KeyError, FileNotFoundError) as error:
            raise UserError(f"the checkpoint of step {step} in {self.folder} cannot be loaded: {error}") from error


def _placed(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
