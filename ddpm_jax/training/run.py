"""A run folder: the config it was made with, the environment, and the network that its checkpoints fill."""

import json
import platform
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import flax
import jax
import numpy as np
from flax import nnx

import ddpm_jax
from ddpm_jax import models, presets, schedules
from ddpm_jax.data import Source, check_labels
from ddpm_jax.errors import UserError
from ddpm_jax.files import write_atomically
from ddpm_jax.presets import Preset
from ddpm_jax.processes import GaussianDiffusion
from ddpm_jax.training.checkpoints import Checkpoints
from ddpm_jax.training.state import TrainState, create_state
from ddpm_jax.training.step import make_optimizer

CONFIG = "config.json"
FORMAT = 1
"""Version of the run folder's layout."""

_REVISABLE = {
    "train.steps", "train.log_every", "train.sample_every", "train.checkpoint_every", "train.keep_checkpoints", "data.threads",
}  # fmt: skip
"""Fields that a resumed run may change, besides those of sampling: they leave the steps already done as they were."""


@dataclass(frozen=True)
class Run:
    """A run folder that exists."""

    folder: Path
    config: Preset
    class_names: tuple[str, ...]
    """Names of the classes the network is told about; empty: unconditional."""

    @property
    def process(self) -> GaussianDiffusion:
        """The forward process it is trained on."""
        config = self.config.process
        schedule = schedules.create(config.schedule, config.num_steps)
        return GaussianDiffusion(schedule, config.prediction, config.loss)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of its images."""
        model: Any = self.config.model
        return model.image_size, model.image_size, model.channels

    @property
    def checkpoint_folder(self) -> Path:
        """Where its checkpoints are."""
        return self.folder / "checkpoints"

    def fresh_model(self) -> nnx.Module:
        """The network with the parameters that the run starts from."""
        return models.build(self.config.model, rngs=nnx.Rngs(params=self.config.train.seed))

    def fresh_state(self) -> TrainState:
        """The state before the first step."""
        return create_state(self.fresh_model(), make_optimizer(self.config.train))

    def load(self) -> tuple[nnx.GraphDef, models.Variables, int]:
        """The network for sampling, with the averaged parameters of the newest checkpoint, and that checkpoint's step.

        Raises:
            UserError: there is no checkpoint, or it does not fit the config.
        """
        if not self.checkpoint_folder.is_dir():
            raise UserError(f"{self.folder} holds no checkpoint yet; train it first.")
        graphdef, _ = models.split(nnx.eval_shape(self.fresh_model))
        with Checkpoints(self.checkpoint_folder) as checkpoints:
            state = checkpoints.restore(jax.eval_shape(self.fresh_state))
        return graphdef, state.variables(ema=True), int(state.step)

    def labels(self, num: int, wanted: tuple[str, ...] = ()) -> np.ndarray | None:
        """num labels that go through the wanted classes (names or numbers; none: all) in turn; None for an unconditional run.

        Raises:
            UserError: a class that the run does not have, or classes asked of an unconditional run.
        """
        if not self.class_names:
            if wanted:
                raise UserError(
                    f"labels were given ({', '.join(wanted)}), but {self.folder} is trained without classes."
                )
            return None
        chosen = [self._class_index(name) for name in wanted] or list(range(len(self.class_names)))
        return np.resize(np.array(chosen, np.int32), num)

    def _class_index(self, name: str) -> int:
        if name in self.class_names:
            return self.class_names.index(name)
        if name.isdecimal() and int(name) < len(self.class_names):
            return int(name)
        count = len(self.class_names)
        shown = ", ".join(self.class_names[:20]) + (", …" if count > 20 else "")
        raise UserError(f"label {name!r} is none of the run's {count} classes: {shown} (or 0..{count - 1}).")


def open_run(folder: Path) -> Run:
    """The run in a folder that `ddpm train` made.

    Raises:
        UserError: the folder is missing or is no run, or its config cannot be read.
    """
    path = folder / CONFIG
    if not path.is_file():
        what = "does not exist" if not folder.exists() else f"holds no {CONFIG}, so it is no run folder"
        raise UserError(f"{folder} {what}. Make one with: ddpm train PRESET --out {folder}")
    try:
        tree = json.loads(path.read_text())
        version, names, config = tree["format"], tuple(tree["class_names"]), tree["config"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read: {error}.") from error
    if version != FORMAT:
        raise UserError(f"{path} has format {version}; this version of ddpm-jax reads format {FORMAT}.")
    return Run(folder, presets.from_json(json.dumps(config)), names)


def start_run(config: Preset, source: Source, folder: Path, *, resume: bool, overwrite: bool) -> Run:
    """Make the run folder for a config, or take up the one that is there; writes config.json.

    Raises:
        UserError: the folder exists and neither option is given, the data does not fit the network, or the config to
            resume with differs from the run's.
    """
    if resume and overwrite:
        raise UserError("--resume and --overwrite exclude each other: go on with the run, or start it anew.")
    config, class_names = _fit_to_data(config, source)
    run = Run(folder, config, class_names)
    if resume:
        _check_same(open_run(folder), run)
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        if not (folder / CONFIG).is_file():
            raise UserError(f"{folder} exists and is no run folder; choose another --out.")
        if not overwrite:
            raise UserError(
                f"{folder} exists. Pass --resume to go on with it, --overwrite to start anew, or another --out."
            )
        shutil.rmtree(folder)
    create_folder(run)
    return run


def create_folder(run: Run) -> None:
    """Make a run's folder, and write its config.json."""
    tree = {
        "format": FORMAT,
        "class_names": run.class_names,
        "environment": environment(run.config.train.dtype),
        "config": json.loads(presets.to_json(run.config)),
    }
    write_atomically(run.folder / CONFIG, lambda path: path.write_text(json.dumps(tree, indent=2) + "\n"))


def environment(dtype: str) -> dict[str, Any]:
    """What decides on speed and on the last digits: device, precision, versions."""
    return {
        "ddpm_jax": ddpm_jax.__version__,
        "jax": jax.__version__,
        "flax": flax.__version__,
        "python": platform.python_version(),
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "compute_dtype": dtype,
        "param_dtype": "float32",
        "matmul_precision": jax.config.values["jax_default_matmul_precision"] or "default",
    }


def _fit_to_data(config: Preset, source: Source) -> tuple[Preset, tuple[str, ...]]:
    """The config with the number of classes filled in from the data, and the classes' names."""
    model: Any = config.model
    asked_for = getattr(model, "num_classes", None)
    if not hasattr(model, "num_classes") or not (config.data.labels and (source.class_names or asked_for)):
        if asked_for:
            raise UserError(f"model.num_classes = {asked_for} needs labels; remove it, or --data.no-labels.")
        return config, ()
    num_classes = asked_for or len(source.class_names)
    check_labels(source, num_classes)
    names = source.class_names + tuple(str(i) for i in range(len(source.class_names), num_classes))
    return replace(config, model=replace(model, num_classes=num_classes)), names


def _check_same(old: Run, new: Run) -> None:
    if old.class_names != new.class_names:
        raise UserError(
            f"{old.folder} was trained on the classes {', '.join(old.class_names) or '(none)'}; "
            f"the data now has {', '.join(new.class_names) or '(none)'}."
        )
    changed = presets.differences(old.config, new.config)
    fixed = {
        name: pair
        for name, pair in changed.items()
        if (name not in _REVISABLE and not name.startswith("sample."))
        or (name == "train.steps" and new.config.train.lr_decay != "constant")
    }
    if fixed:
        lines = [f"  {name}: {before!r} in the run, {after!r} now" for name, (before, after) in fixed.items()]
        raise UserError(
            f"{old.folder} cannot be resumed with another config:\n" + "\n".join(lines) + "\n"
            "Give the options it was started with, or start a new run in another --out."
        )
