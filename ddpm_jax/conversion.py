"""`ddpm convert`: weights from one form to another, among run folders, safetensors, npz, PyTorch's pt, and the originals' names."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from ddpm_jax import model_configs, models
from ddpm_jax.data.scaling import IMAGE_SCALINGS, Scaling
from ddpm_jax.errors import UserError
from ddpm_jax.presets import RECIPES, SYSTEMS, DataConfig, Preset, TrainConfig
from ddpm_jax.training.checkpoints import Checkpoints
from ddpm_jax.training.run import Run, create_folder, open_run
from ddpm_jax.weights import from_original, from_torch, layout, read_tensors, write_tensors
from ddpm_jax.weights.files import SUFFIXES
from ddpm_jax.weights.originals import NETWORKS as ORIGINALS
from ddpm_jax.weights.states import state_from_numpy, state_to_numpy

Which = Literal["ema", "params", "state"]


def convert(source: Path, target: Path, model: Any = None, which: Which = "ema") -> list[Path]:
    """Write the weights in `source` to `target`; what either is, its suffix says (none: a run folder). Returns what was written.

    model: config of the network that a file's weights belong to, where the source is no run folder and the target is one, or the
    names are those of an original. which: of a run, the averaged or the trained parameters, or the whole state of training.

    Raises:
        UserError: unreadable or unfit weights, a target that exists as a folder, or a model that is needed and not given.
    """
    if target.exists() and (target.is_dir() or not target.suffix):
        raise UserError(f"{target} exists; choose another name for the run folder.")
    if target.suffix and target.suffix not in SUFFIXES:
        raise UserError(f"{target}: weights must be one of {', '.join(SUFFIXES)}, or a run folder, without a suffix.")
    if source.is_dir():
        run = open_run(source)
        arrays = _from_run(run, which)
        if not target.suffix:
            raise UserError(f"{source} is a run folder already; convert it to one of {', '.join(SUFFIXES)}.")
        return [write_tensors(target, arrays)]
    arrays = read_tensors(source)
    if model is not None and "step" not in arrays:
        arrays = fitted(model, arrays)
    if target.suffix:
        return [write_tensors(target, arrays)]
    if model is None:
        raise UserError(
            f"a run folder needs to know the network: pass --network, one of {', '.join(model_configs.NETWORKS)}."
        )
    return [_to_run(target, model, arrays)]


def fitted(model: Any, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Arrays under the twin's names, whether they come under those or under the original's.

    Raises:
        UserError: they fit neither; what is missing, left over or misshapen is listed.
    """
    name = model_configs.name_of(model)
    entries = layout(models.abstract(model))
    keys = {entry.key for entry in entries}
    if name in ORIGINALS and len(keys & set(arrays)) < len(keys) / 2:
        arrays = from_original(name, arrays)
    try:
        from_torch(entries, arrays)
    except UserError as error:
        raise UserError(
            f"{error}\nIf it is a {name} of other widths, give its options, as in --model.channels 1."
        ) from error
    return dict(arrays)


def _from_run(run: Run, which: Which) -> dict[str, np.ndarray]:
    model = models.abstract(run.config.model)
    with Checkpoints(run.checkpoint_folder) as checkpoints:
        state = checkpoints.restore(run.abstract_state())
    arrays = state_to_numpy(model, state)
    if which == "state":
        return arrays
    part = "ema." if which == "ema" else "model."
    statistics = {key[6:]: array for key, array in arrays.items() if key.startswith("model.") and "running_" in key}
    return statistics | {key[len(part) :]: array for key, array in arrays.items() if key.startswith(part)}


def _to_run(folder: Path, model: Any, arrays: Mapping[str, np.ndarray]) -> Path:
    """A run at step 0 (or at the state's step) whose parameters and average are the given ones."""
    process, sampling = SYSTEMS[model_configs.name_of(model)]
    if hasattr(model, "num_steps"):
        process = dataclasses.replace(process, num_steps=model.num_steps)
    if getattr(model, "learn_variance", False):
        process = dataclasses.replace(process, loss="hybrid")
    num_classes = getattr(model, "num_classes", None)
    recipes = [recipe.config for recipe in RECIPES.values() if type(recipe.config.model) is type(model)]
    scale = recipes[0].data.scale if recipes else "signed"
    config = Preset(
        data=DataConfig(source="", labels=bool(num_classes), scale=scale),
        model=model,
        process=process,
        train=TrainConfig(),
        sample=sampling,
    )
    # a file says nothing of the points' mean and deviation: samples come as the network makes them
    scaling = IMAGE_SCALINGS[scale] if len(model_configs.shape(model)) == 3 else Scaling(0.0, 1.0)
    run = Run(folder, config, tuple(map(str, range(num_classes or 0))), scaling)
    network = models.abstract(run.config.model)
    if "step" in arrays:
        state = state_from_numpy(network, run.abstract_state(), arrays)
    else:
        variables = from_torch(layout(network), arrays)
        params = jax.tree.map(lambda a: a.astype("float32"), variables["params"])
        state = run.state_of({**variables, "params": params})
    create_folder(run)
    with Checkpoints(run.checkpoint_folder) as checkpoints:
        checkpoints.save(state)
    return folder
