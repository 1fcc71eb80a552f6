"""A run folder: the config it was made with, the environment, and the network that its checkpoints fill."""

import contextlib
import json
import platform
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import ddpm_jax
from ddpm_jax import data, denoisers, display, figures, models, presets
from ddpm_jax.checks import path as as_path
from ddpm_jax.class_names import check_distinct, class_index
from ddpm_jax.condition import Condition, as_condition
from ddpm_jax.denoisers import Denoiser
from ddpm_jax.errors import UserError
from ddpm_jax.files import check_writable, delete_folder, write_text
from ddpm_jax.parallel import ALONE, Layout
from ddpm_jax.presets import Preset
from ddpm_jax.processes import Process
from ddpm_jax.run_config import FORMAT, read_run
from ddpm_jax.run_names import CONFIG
from ddpm_jax.training import loss_aware, packed
from ddpm_jax.training.checkpoints import Checkpoints
from ddpm_jax.training.metrics import read_metrics
from ddpm_jax.training.optimizers import make_optimizer
from ddpm_jax.training.state import TrainState, state_of
from ddpm_jax.typed import build

_REVISABLE = {
    "train.steps", "train.epochs", "train.steps_per_call", "train.log_every", "train.sample_every", "train.checkpoint_every",
    "train.keep_checkpoints", "train.keep_every", "train.on_nonfinite", "train.accumulate", "train.remat", "data.threads",
    "train.trackers",
}  # fmt: skip
"""Fields that a resumed run may change, besides those of sampling: they leave the steps already done as they were."""

_FROM_DATA = ("model.num_classes", "train.epoch_steps")
"""Fields that are filled in from the data where they are None."""


@dataclass(frozen=True)
class Run:
    """A run folder that exists."""

    folder: Path
    """Where it lies."""
    config: Preset
    """What it was made with, the number of classes and the length of an epoch filled in from the data."""
    class_names: tuple[str, ...]
    """Names of the classes the network is told about; empty: unconditional."""
    scaling: data.Scaling
    """Between its data and what the network sees."""
    origin: dict[str, Any] | None = None
    """Where a fine-tuned run started: that run, its step, and which of its weights; of an imported one: its source,
    which weights (None: nothing there says), revision, licence, and the SHA-256 of every file."""
    apart: Path | None = None
    """Where what is made of it goes, its folder not being the user's; None: into its folder."""

    def __repr__(self) -> str:
        classes = f"{len(self.class_names)} classes" if self.class_names else "no classes"
        return display.line(self, display.short(str(self.folder)), self.config, classes)

    def _repr_html_(self) -> str:
        """Its last steps, the curve of its loss, the picture of its samples, and, once opened, its config."""
        metrics = read_metrics(self.folder)
        done = f"step {metrics[-1]['step']:,}" if metrics else "no step recorded"
        parts = [display.paragraph(f"{self!r}, {done}")]
        if any(line["loss"] is not None for line in metrics):
            parts.append(display.picture(figures.loss_png(metrics), "the loss by step"))
        samples = self.folder / "samples.png"
        with contextlib.suppress(OSError):  # there are none yet
            parts.append(display.picture(samples.read_bytes(), f"samples of {self.folder.name}"))
        options = f"<details><summary>all options</summary>{self.config._repr_html_()}</details>"
        return "\n".join([*parts, options])

    @property
    def results(self) -> Path:
        """Where what is made of it goes."""
        return self.apart or self.folder

    @property
    def process(self) -> Process:
        """The forward process it is trained on."""
        return self.config.process

    @property
    def null_label(self) -> int | None:
        """The class that stands for none where labels are dropped; None: they are not."""
        num_classes = getattr(self.config.model, "num_classes", None)  # None before it is known from the data
        return num_classes - 1 if self.config.train.label_dropout and num_classes else None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one example: (H, W, C) of an image, (2,) of a point."""
        return self.config.model.shape

    @property
    def holds_images(self) -> bool:
        """Whether its data are images; otherwise they are points."""
        return len(self.shape) == 3

    def to_data(self, x_0: Any) -> np.ndarray:
        """What the network makes, in the units of the data: uint8 images, or float32 points."""
        return self.scaling.to_images(x_0) if self.holds_images else self.scaling.undo(x_0)

    def open_source(self) -> data.Source:
        """The data it is trained on.

        Raises:
            UserError: the data is gone or damaged, or the run came from a file of weights and has none.
        """
        config = self.config.data
        if not config.source:
            raise UserError(f"{self.folder} was made from a file of weights and has no data of its own.")
        return data.open_source(
            config.source, on_bad_image=config.on_bad_image, classes=config.classes, label=config.label
        )

    def first_batch(self, most: int, seed: int) -> dict[str, np.ndarray]:
        """The first batch of its data, of `most` examples or of all there are, as its network sees them."""
        source = self.open_source()
        options: dict[str, Any] = {
            "batch_size": min(most, len(source)),
            "seed": seed,
            "reading": data.Reading(num_threads=0),
        }
        return next(data.batches(source, shape=self.shape, scaling=self.scaling, **options))

    @property
    def checkpoint_folder(self) -> Path:
        """Where its checkpoints are."""
        return self.folder / "checkpoints"

    def fresh_model(self) -> nnx.Module:
        """The network with the parameters that the run starts from."""
        return models.build(self.config.model, rngs=nnx.Rngs(params=self.config.train.seed))

    def fresh_state(self) -> TrainState:
        """The state before the first step."""
        return self.state_of(models.split(self.fresh_model())[1])

    def state_of(self, variables: models.Variables) -> TrainState:
        """The state before the first step, from given parameters and running statistics."""
        aware = self.config.train.loss_aware_times  # of timesteps, which `objective.check` has seen to be there
        history = loss_aware.empty(self.config.process.schedule.num_steps) if aware else None
        train = self.config.train
        ema = train.ema_lengths or train.ema_decay
        return state_of(self._structure, variables, make_optimizer(train), ema=ema, loss_history=history)

    def abstract_state(self) -> TrainState:
        """The shapes and dtypes of a state."""
        _, variables = models.split(models.abstract(self.config.model))
        return jax.eval_shape(self.state_of, variables)

    @property
    def _structure(self) -> nnx.GraphDef[Any]:
        model = models.abstract(self.config.model)
        return models.split(models.rematerialised(model) if self.config.train.remat else model)[0]

    @property
    def condition(self) -> Condition | None:
        """What its network is shown of an image; None: nothing."""
        spec = self.config.data.condition
        return None if spec is None else as_condition(spec)

    def shown(self, x_0: Any) -> jax.Array | None:
        """(B, H, W, C') what its network is shown of images x_0 (B, H, W, C), as it sees both; None: nothing."""
        return None if self.condition is None else jnp.asarray(self.condition.shown(x_0))

    def denoiser(
        self,
        labels: Any = None,
        *,
        variables: models.Variables | None = None,
        dtype: Any = None,
        shown: Any = None,
    ) -> Denoiser:
        """What its network believes.

        labels: classes, (B,) or one for all. variables: parameters and running statistics, None for the averaged ones of the newest
        checkpoint. dtype: what the network computes in, None for that of its parameters. shown: (B, H, W, C'), what a network with
        data.condition is shown; None: it is said later, by `Denoiser.beside`.

        Raises:
            UserError: there is no checkpoint, or it does not fit the config.
        """
        variables = self.load_variables()[0] if variables is None else variables
        graphdef, _ = models.split(models.abstract(self.config.model))
        options: dict[str, Any] = {"labels": labels, "null_label": self.null_label, "dtype": dtype}
        network = denoisers.of_network((graphdef, variables), self.process, **options)
        network = network if shown is None else network.beside(shown)
        return (
            denoisers.self_conditioned(network) if getattr(self.config.model, "self_conditioning", False) else network
        )

    def load_variables(
        self, *, ema: bool = True, layout: Layout = ALONE, step: int | None = None
    ) -> tuple[models.Variables, int]:
        """The parameters of a checkpoint, averaged or those being trained, its running statistics, and its step.

        step: whose checkpoint; None: the newest. A packed run has the averaged ones of one step alone.

        Raises:
            UserError: there is no checkpoint, or it does not fit the config.
        """
        if packed.is_packed(self.folder):
            variables, step = packed.variables(self.folder, self.config.model, ema=ema, step=step)
            return layout.place(variables), step
        if not self.checkpoint_folder.is_dir():
            raise UserError(f"{self.folder} holds no checkpoint yet; train it first.")
        with Checkpoints(self.checkpoint_folder) as checkpoints:
            if step is not None and step not in checkpoints.steps:
                there = ", ".join(map(str, checkpoints.steps))
                raise UserError(f"{self.checkpoint_folder} has no checkpoint of step {step}; it has {there or 'none'}.")
            state = checkpoints.restore(layout.abstract(self.abstract_state()), step)
        return state.variables(ema=ema), int(state.step)

    def weights_at(self, step: int) -> str:
        """The parameters a run is drawn with: `ema`; before the first step those that it was made of, `unknown` where nothing says.

        They are `ema`, or `params` where they are not averaged.
        """
        if step or self.origin is None:
            return "ema"
        return self.origin.get("weights") or "unknown"

    def labels(self, num: int, wanted: tuple[str, ...] = ()) -> np.ndarray | None:
        """num labels that go through the wanted classes in turn (none: all it is trained on); None for an unconditional run.

        wanted: names, or positions from 0 where no class's name is a number.

        Raises:
            UserError: a class that the run does not have, or classes asked of an unconditional run.
        """
        if not self.class_names:
            if wanted:
                raise UserError(
                    f"labels were given ({', '.join(wanted)}), but {self.folder} is trained without classes."
                )
            return None
        whose = str(self.folder)
        chosen = [
            class_index(name, self.class_names, whose)
            for name in wanted or self.config.data.classes or self.class_names
        ]
        return np.resize(np.array(chosen, np.int32), num)


def open_run(folder: Path | str) -> Run:
    """The run in a folder that `ddpm train` made, or of a name: pretrained:NAME of this package, hub:OWNER/NAME of the Hub.

    Raises:
        UserError: the folder is missing or is no run, or its config cannot be read; there is no run of that name.
    """
    found = read_run(as_path("folder", folder))
    folder = found.place.folder
    try:
        scaling = build(data.Scaling, found.scaling, "scaling")
    except UserError as error:
        raise UserError(f"{folder / CONFIG} cannot be read: {error}") from error
    return Run(folder, found.config, found.class_names, scaling, found.origin, found.place.apart)


def start_run(
    config: Preset,
    source: data.Source | data.Batches,
    folder: Path,
    *,
    resume: bool,
    overwrite: bool,
    scaling: data.Scaling | None = None,
    origin: dict[str, Any] | None = None,
) -> Run:
    """Make the run folder for a config, or take up the one that is there; writes config.json.

    scaling: that of the run whose weights this one starts from; None: the data's own. origin: which run that is.

    Raises:
        UserError: the folder exists and neither option is given, the data does not fit the network, or the config to
            resume with differs from the run's.
    """
    if resume and overwrite:
        raise UserError("--resume and --overwrite exclude each other: go on with the run, or start it anew.")
    config = presets.shown_its_condition(config)
    if resume:
        old = open_run(folder)
        if packed.is_packed(folder):
            raise UserError(
                f"{folder} is packed: it has no state of training to go on with. Train on from its weights, in a new run: "
                f"ddpm finetune {folder} --out FOLDER."
            )
        _check_same_config(old, config)  # before the data is asked whether it fits: the option is to blame
    config, class_names = _fit_to_data(config, source)
    run = Run(
        folder, config, class_names, scaling or data.scaling_of(source, config.data.scale, config.model.shape), origin
    )
    if resume:
        _check_same_classes(old, class_names)
        _check_same_config(old, config)
        run = replace(run, scaling=old.scaling, origin=old.origin)
    elif folder.exists() and (not folder.is_dir() or not all(map(_left_by_a_kill, folder.iterdir()))):
        if not (folder / CONFIG).is_file():
            raise UserError(f"{folder} exists and is no run folder; choose another --out.")
        if not overwrite:
            raise UserError(
                f"{folder} exists. Pass --resume to go on with it, --overwrite to start anew, or another --out."
            )
        _check_writable(folder)
        try:
            delete_folder(folder)
        except OSError as error:
            raise UserError(f"{folder} cannot be deleted: {error.strerror or error}.") from error
    _check_writable(folder)
    create_folder(run)
    return run


def create_folder(run: Run) -> None:
    """Make a run's folder, and write its config.json."""
    tree = {
        "format": FORMAT,
        "class_names": run.class_names,
        "scaling": asdict(run.scaling),
        "origin": run.origin,
        "environment": environment(run.config.train.dtype),
        "config": json.loads(presets.to_json(run.config)),
    }
    write_text(run.folder / CONFIG, json.dumps(tree, indent=2) + "\n")


def _check_writable(folder: Path) -> None:
    check_writable(folder)
    for name in ("checkpoints", "samples", "tensorboard", "wandb"):
        if (folder / name).exists():
            check_writable(folder / name)


def _left_by_a_kill(path: Path) -> bool:
    """Whether it is a config.json that was never finished: a folder with nothing else in it is as good as empty."""
    return path.name.startswith(".config-")


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


def _fit_to_data(config: Preset, source: data.Source | data.Batches) -> tuple[Preset, tuple[str, ...]]:
    """The config with the number of classes and the length of an epoch filled in from the data, and the classes' names."""
    if config.train.epoch_steps is None and not isinstance(source, data.Batches):
        steps = data.epoch_steps(source, config.train.batch_size)
        config = replace(config, train=replace(config.train, epoch_steps=steps))
    model: Any = config.model
    asked_for = getattr(model, "num_classes", None)
    if not hasattr(model, "num_classes") or not (config.data.labels and (source.class_names or asked_for)):
        if asked_for:
            raise UserError(f"model.num_classes = {asked_for} needs labels; remove it, or --data.no-labels.")
        if config.train.label_dropout:
            raise UserError(
                f"train.label_dropout = {config.train.label_dropout:g} needs a network and data with classes."
            )
        return config, ()
    dropped = int(config.train.label_dropout > 0)  # one class more, which stands for none
    num_classes = asked_for or len(source.class_names) + dropped
    if num_classes <= dropped:
        raise UserError(f"model.num_classes must be at least 2 with train.label_dropout; got {num_classes}.")
    if not isinstance(source, data.Batches):  # whose labels nobody knows beforehand
        data.check_labels(source, num_classes - dropped)
    names = source.class_names + tuple(str(i) for i in range(len(source.class_names), num_classes - dropped))
    check_distinct(names, f"model.num_classes = {num_classes} adds classes to those of {source.name}")
    return replace(config, model=replace(model, num_classes=num_classes)), names


def _check_same_classes(old: Run, names: tuple[str, ...]) -> None:
    if old.class_names != names:
        raise UserError(
            f"{old.folder} was trained on the classes {', '.join(old.class_names) or '(none)'}; "
            f"the data now has {', '.join(names) or '(none)'}."
        )


def _check_same_config(old: Run, config: Preset) -> None:
    fixed = {
        name: (before, now)
        for name, (before, now) in presets.differences(old.config, config).items()
        if (name not in _REVISABLE and not name.startswith("sample.") and not (name in _FROM_DATA and now is None))
        or (name in ("train.steps", "train.epochs") and config.train.lr_decay != "constant")
    }
    if fixed:
        told = "; ".join(f"{name}: {before!r} in the run, {now!r} now" for name, (before, now) in fixed.items())
        raise UserError(
            f"{old.folder} cannot be resumed with another config ({told}). "
            "Leave them as they were, or start a new run in another --out."
        )
