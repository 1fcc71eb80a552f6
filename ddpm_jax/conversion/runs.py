"""Weights out of a run folder, and run folders of weights."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from ddpm_jax import models
from ddpm_jax.data.scaling import IMAGE_SCALINGS, Scaling
from ddpm_jax.errors import UserError
from ddpm_jax.files import new_folder
from ddpm_jax.presets import RECIPES, DataConfig, Preset, SampleConfig, TrainConfig, system_of
from ddpm_jax.processes import Process
from ddpm_jax.training import packed
from ddpm_jax.training.checkpoints import Checkpoints
from ddpm_jax.training.objective import check
from ddpm_jax.training.run import Run, create_folder
from ddpm_jax.weights import from_torch, layout, to_numpy
from ddpm_jax.weights.states import state_from_numpy, state_to_numpy

Which = Literal["ema", "params", "state"]


def from_run(run: Run, which: Which = "ema") -> dict[str, np.ndarray]:
    """The twin's state dict of a run's newest checkpoint, or for `state` everything that training needs.

    Raises:
        UserError: there is no checkpoint; of a packed run, which has averaged weights alone, others are asked for.
    """
    model = models.abstract(run.config.model)
    if which != "state":
        return to_numpy(model, run.load_variables(ema=which == "ema")[0])
    if packed.is_packed(run.folder):
        raise UserError(f"{run.folder} is packed: it holds averaged weights alone; take --weights ema.")
    with Checkpoints(run.checkpoint_folder) as checkpoints:
        return state_to_numpy(model, checkpoints.restore(run.abstract_state()))


NO_DATA = DataConfig("")
"""Of a file that says nothing of what its network was trained on."""


def to_run(
    folder: Path,
    model: Any,
    arrays: Mapping[str, np.ndarray],
    *,
    process: Process | None = None,
    sampling: SampleConfig | None = None,
    data: DataConfig = NO_DATA,
    label_dropout: float = 0.0,
    origin: dict[str, Any] | None = None,
) -> Path:
    """A run at step 0 (or at the state's step) whose parameters and average are the given ones.

    process, sampling: how the network was trained and is sampled; None: as its author did. data: what it was trained on, as
    far as it is known; its labels and scale follow from the model. label_dropout: share of the labels that were hidden from it, in
    [0, 1): above 0 the last class of the network stands for none. origin: where the weights come from, for the run's config.json.

    Raises:
        UserError: process and sampling do not fit each other, or the network; labels were hidden of less than two classes.
    """
    if process is None or sampling is None:
        process, sampling = system_of(model)
    num_classes = getattr(model, "num_classes", None) or 0
    hidden = int(label_dropout > 0)  # one class more, which stands for none
    if num_classes <= hidden and hidden:
        raise UserError(
            f"label_dropout must be 0 for a network of {num_classes} classes, none included; got {label_dropout:g}."
        )
    recipes = [recipe.config for recipe in RECIPES.values() if type(recipe.config.model) is type(model)]
    scale = recipes[0].data.scale if recipes else "signed"
    config = Preset(
        data=dataclasses.replace(data, labels=bool(num_classes), scale=scale),
        model=model,
        process=process,
        train=TrainConfig(label_dropout=label_dropout),
        sample=sampling,
    )
    check(config)
    # a file says nothing of the points' mean and deviation: samples come as the network makes them
    scaling = IMAGE_SCALINGS[scale] if len(model.shape) == 3 else Scaling(0.0, 1.0)
    run = Run(folder, config, tuple(map(str, range(num_classes - hidden))), scaling, origin)
    network = models.abstract(run.config.model)
    if "step" in arrays:
        state = state_from_numpy(network, run.abstract_state(), arrays)
    else:
        variables = from_torch(layout(network), arrays)
        params = jax.tree.map(lambda a: a.astype("float32"), variables["params"])
        state = run.state_of({**variables, "params": params})
    with new_folder(folder) as made:
        run = dataclasses.replace(run, folder=made)
        create_folder(run)
        with Checkpoints(run.checkpoint_folder) as checkpoints:
            checkpoints.save(state)
    return folder
