"""A whole training state in PyTorch's terms and back: parameters, their average, and the moments of Adam."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from ddpm_jax.errors import UserError
from ddpm_jax.weights.bridge import from_torch, layout, to_numpy

MOMENTS = {"exp_avg": "mu", "exp_avg_sq": "nu"}
"""What PyTorch calls Adam's moments: what optax does."""


def state_to_numpy(model: nnx.Module, state: Any) -> dict[str, np.ndarray]:
    """A TrainState as arrays by name: step, and model., ema., exp_avg. and exp_avg_sq. before the twin's names; further averages
    are ema2., ema3. and so on.

    model: the network that the state belongs to, arrays or shapes alone. The running statistics stand with the model.
    """
    trees = {
        "model": {"params": state.params, "batch_stats": state.batch_stats},
        "ema": {"params": state.ema_params},
        **{f"ema{index}": {"params": tree} for index, tree in enumerate(state.averages or (), start=2)},
        **{theirs: {"params": optax.tree.get(state.opt_state, ours)} for theirs, ours in MOMENTS.items()},
    }
    arrays = {f"{part}.{key}": array for part, tree in trees.items() for key, array in to_numpy(model, tree).items()}
    return {"step": np.asarray(state.step), **arrays}


def state_from_numpy(model: nnx.Module, state: Any, arrays: Mapping[str, Any]) -> Any:
    """The TrainState that `state_to_numpy` wrote; state: one of the same network and optimiser, arrays or shapes alone.

    Raises:
        UserError: arrays are missing, left over, or misshapen; those of the first part that does not fit are listed.
    """
    further = [f"ema{index}" for index in range(2, 2 + len(state.averages or ()))]
    parts: dict[str, dict[str, Any]] = {name: {} for name in ("model", "ema", *further, *MOMENTS)}
    for key, array in arrays.items():
        part, _, name = key.partition(".")
        if key != "step":
            if part not in parts:
                raise UserError(f"{key!r} belongs to no training state; names begin with {', '.join(parts)}.")
            parts[part][name] = array
    if "step" not in arrays:
        raise UserError("a training state needs its 'step'.")
    entries = layout(model)
    trained = [entry for entry in entries if entry.path[0] == "params"]
    variables = from_torch(entries, parts["model"])
    step = jnp.asarray(arrays["step"], jnp.int32)
    moments = {ours: from_torch(trained, parts[theirs])["params"] for theirs, ours in MOMENTS.items()}
    return dataclasses.replace(
        state,
        step=step,
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        ema_params=from_torch(trained, parts["ema"])["params"],
        averages=tuple(from_torch(trained, parts[name])["params"] for name in further) or None,
        # both Adam and the learning rate count steps
        opt_state=optax.tree.set(state.opt_state, count=step, **moments),
    )
