"""Weights from one form to another: run folders, safetensors, npz, PyTorch's pt, the originals' names, diffusers' folders."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ddpm_jax import models
from ddpm_jax.conversion.folders import write_folder
from ddpm_jax.conversion.runs import Which, from_run, to_run
from ddpm_jax.errors import UserError
from ddpm_jax.files import new_folder
from ddpm_jax.models import DiTConfig, UNetConfig
from ddpm_jax.run_names import CONFIG
from ddpm_jax.training import packed
from ddpm_jax.training.run import open_run
from ddpm_jax.weights import from_dit, from_original, from_torch, layout, read_weights, to_dit, to_numpy, write_tensors
from ddpm_jax.weights.dit import POSITIONS
from ddpm_jax.weights.files import SUFFIXES
from ddpm_jax.weights.originals import NETWORKS as ORIGINALS

Other = Literal["diffusers", "dit", "packed"]
"""What else a run can be made into."""


def convert(source: Path, target: Path, model: Any = None, which: Which = "ema", to: Other | None = None) -> list[Path]:
    """Write the weights in `source` to `target`; what either is, its suffix says (none: a run folder). Returns what was written.

    model: config of the network that a file's weights belong to, where the source is no run folder and the target is one, or the
    names are those of an original. which: the averaged or the trained parameters, where there are both, or of a run the whole state
    of training. to: another form, the source being a run folder: of a unet a pipeline's folder of diffusers, of a dit a file with
    the names of facebookresearch/DiT, of any run a packed one, which has its averaged weights alone, in 16 bits.

    Raises:
        UserError: unreadable or unfit weights, a target that exists as a folder, a model that is needed and not given, or a run
            with options that have no counterpart in the other library.
    """
    if to == "diffusers":
        run = open_run(source)
        if not isinstance(run.config.model, UNetConfig) or which == "state":
            what = "the state of training" if which == "state" else f"a {run.config.model.network}"
            raise UserError(f"--to diffusers takes the weights of a unet; of {source} it would be {what}.")
        return write_folder(target, run.config, from_run(run, which))
    if to == "packed":
        return [pack(source, target, which)]
    if to == "dit":
        return [_write_dit(source, target, which)]
    if target.exists() and (target.is_dir() or not target.suffix):
        raise UserError(f"{target} exists; choose another name for the run folder.")
    if target.suffix and target.suffix not in SUFFIXES:
        raise UserError(
            f"{target}: weights must be one of {', '.join(SUFFIXES)}, or a run folder, without a suffix; .onnx and .stablehlo, "
            "which ddpm_jax.export writes, hold a run as a program."
        )
    if source.is_dir():
        run = open_run(source)
        arrays = from_run(run, which)
        if not target.suffix:
            raise UserError(f"{source} is a run folder already; convert it to one of {', '.join(SUFFIXES)}.")
        return [write_tensors(target, arrays)]
    arrays, found = read_weights(source, None if which == "state" else which)
    if found is not None:
        print(_TOLD[found].format(source))
    if model is not None and "step" not in arrays:
        arrays = fitted(model, arrays)
    if target.suffix:
        return [write_tensors(target, arrays)]
    if model is None:
        raise UserError(f"a run folder needs to know the network: pass --network, one of {', '.join(models.NETWORKS)}.")
    return [to_run(target, model, arrays, origin={"source": str(source.absolute()), "weights": found})]


RECORDS = ("metrics.jsonl", "samples.png", "loss.png", "evaluation.json")
"""What a packed run keeps of its folder, where it is there, besides its config."""


def pack(source: Path, target: Path, which: Which = "ema") -> Path:
    """Make of a run a folder that travels: its config, its records, and its averaged weights as float16 in one file.

    Raises:
        UserError: the target exists, the source is no run or has no checkpoint, or weights that are not averaged are asked for.
    """
    run = open_run(source)
    if which != "ema":
        raise UserError(f"--to packed takes averaged weights; got --weights {which}.")
    if target.exists():
        raise UserError(f"{target} exists; choose another name for the packed run.")
    variables, step = run.load_variables()
    arrays = to_numpy(models.abstract(run.config.model), variables)
    with new_folder(target) as made:
        for name in (CONFIG, *RECORDS):
            if (run.folder / name).is_file():
                shutil.copyfile(run.folder / name, made / name)
        packed.write(made, arrays, step)
    return target


def _write_dit(source: Path, target: Path, which: Which) -> Path:
    run = open_run(source)
    if not isinstance(run.config.model, DiTConfig) or which == "state":
        what = "the state of training" if which == "state" else f"a {run.config.model.network}"
        raise UserError(f"--to dit takes the weights of a dit; of {source} it would be {what}.")
    return write_tensors(target, to_dit(run.config.model, from_run(run, which)))


_TOLD = {
    "ema": "of {}, the averaged weights are taken (--weights params: those being trained)",
    "params": "of {}, the weights being trained are taken (--weights ema: the averaged ones)",
}


def fitted(model: Any, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Arrays under the twin's names, whether they come under those or under the original's.

    Raises:
        UserError: they fit neither; what is missing, left over or misshapen is listed.
    """
    name = model.network
    entries = layout(models.abstract(model))
    keys = {entry.key for entry in entries}
    if name in ORIGINALS and len(keys & set(arrays)) < len(keys) / 2:
        arrays = from_original(name, arrays)
    if name == "dit" and POSITIONS in arrays:  # the authors' own file
        arrays = from_dit(arrays, num_heads=model.num_heads)[1]
    try:
        from_torch(entries, arrays)
    except UserError as error:
        raise UserError(
            f"{error}\nIf it is a {name} of other widths, give its options, as in --model.channels 1."
        ) from error
    return dict(arrays)
