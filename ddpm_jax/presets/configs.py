"""What a run is made of: frozen configs that check themselves, and their JSON. jax comes with the first model or sampler."""

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import ddpm_jax
from ddpm_jax import display
from ddpm_jax.condition import as_condition
from ddpm_jax.errors import UserError
from ddpm_jax.named import BESIDE, tree_of
from ddpm_jax.presets import older
from ddpm_jax.typed import build, value_of


@dataclass(frozen=True)
class DataConfig:
    """Which data, and how it reaches the network.

    Raises:
        UserError: an unknown condition.
    """

    source: str = "digits"
    """digits | spiral | disc-grid | folder:PATH | zip:PATH | idx:PATH | npz:PATH | tfds:NAME | hf:PATH-or-NAME |
    hf-stream:PATH-or-NAME | webdataset:PATTERN, or just a path."""
    label: str | None = None
    """Which column holds the classes, of data with several; None: the one that its form says."""
    classes: tuple[str, ...] = ()
    """Train on these classes alone, by name, or by position from 0 where no class's name is a number; none: on all of them."""
    scale: Literal["signed", "unit"] = "signed"
    """Pixels to [-1, 1] or to [0, 1]; points are always standardised. Sampling undoes it."""
    stream: bool = False
    """For points: draw new ones for every batch instead of going through a fixed set."""
    labels: bool = True
    """Tell the network the class of each image, where the data has classes."""
    flip: bool = False
    """Mirror half of the images, drawn anew each time."""
    condition: str | None = None
    """What the network is shown of each image: downsample:FACTOR, gray, mask:left|right|top|bottom|middle; None: nothing."""
    on_bad_image: Literal["stop", "skip"] = "stop"
    """What to do when an image file cannot be read."""
    threads: int = 4
    """Threads that read and prepare images."""

    __repr__ = display.of_fields

    def __post_init__(self) -> None:
        if self.condition is not None:
            as_condition(self.condition)


@dataclass(frozen=True)
class TrainConfig:
    """How the network is trained.

    Raises:
        UserError: a number outside its range.
    """

    steps: int | None = 100_000
    """Updates in all; None: as many as the epochs say."""
    epochs: int | None = None
    """Passes over the data in all, in place of steps."""
    epoch_steps: int | None = None
    """Updates in an epoch; None: as many as show all the data once."""
    steps_per_call: int | None = None
    """Updates in one call of the compiled program, at most; None: 100 for points, 1 for images."""
    batch_size: int = 128
    """Examples in a batch, over all devices."""
    accumulate: int = 1
    """Parts that a batch is gone through in, one after the other, to save memory; BatchNorm sees each part alone."""
    remat: bool = False
    """Compute activations anew for the gradient, block by block, instead of keeping them: saves memory."""
    lr: float = 2e-4
    """Peak learning rate of Adam."""
    warmup_steps: int = 0
    """Steps over which the learning rate rises from 0."""
    lr_decay: Literal["constant", "cosine", "cosine_by_epoch"] = "constant"
    """What follows the warm-up: the same rate, or a cosine down to lr_end at the last step, also in one step for each epoch."""
    lr_end: float = 0.0
    """Where a cosine would end."""
    label_dropout: float = 0.0
    """Share of the labels that are hidden from the network, in [0, 1): above 0 it can be guided when it samples."""
    loss_aware_times: bool = False
    """Draw the timesteps of a diffusion more often where the losses were large (Nichol & Dhariwal 2021, section 3.3)."""
    reset_optimizer: bool = False
    """Forget Adam's moments at the beginning of every epoch."""
    grad_clip: float | None = 1.0
    """Largest joint norm of the gradients; None: not clipped."""
    ema_decay: float = 0.9999
    """Decay of the parameters' moving average, which starts lower and warms up, in [0, 1)."""
    ema_lengths: tuple[float, ...] = ()
    """In place of it, power-function averages of these lengths, in shares of the training, up to 0.28; samples are drawn with the
    first. `ddpm average` makes other lengths of them and of the checkpoints that keep_every keeps.
    """
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What the network computes in; parameters, statistics and optimiser stay in float32."""
    seed: int = 0
    """Start of every random draw: parameters, data order, times, noise, dropout."""
    log_every: int = 50
    """Steps between lines of metrics."""
    sample_every: int = 5_000
    """Steps between sample grids; 0: none."""
    checkpoint_every: int = 1_000
    """Steps between checkpoints; the last step always makes one."""
    keep_checkpoints: int = 3
    """How many of the newest checkpoints are kept."""
    keep_every: int | None = None
    """Checkpoints whose step is a multiple of it are kept for good; None: the newest alone."""
    trackers: tuple[str, ...] = ("tensorboard",)
    """What is told the numbers of metrics.jsonl as well: tensorboard | wandb; none: nothing is."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """What to do when a loss or gradient is not finite: stop, or leave everything as it was and go on with the next step."""

    __repr__ = display.of_fields

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.epochs is None):
            raise UserError(
                f"one of train.steps and train.epochs is needed, and the other must be None; got {self.steps} and {self.epochs}."
            )
        for name in ("steps", "epochs", "epoch_steps", "steps_per_call", "keep_every"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UserError(f"train.{name} must be at least 1, or None; got {getattr(self, name)}.")
        for name in ("batch_size", "accumulate", "log_every", "checkpoint_every", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise UserError(f"train.{name} must be at least 1; got {getattr(self, name)}.")
        for name in ("warmup_steps", "sample_every", "seed"):
            if getattr(self, name) < 0:
                raise UserError(f"train.{name} must not be negative; got {getattr(self, name)}.")
        if self.batch_size % self.accumulate:
            raise UserError(
                f"train.accumulate must divide train.batch_size = {self.batch_size}; got {self.accumulate}."
            )
        if not 0 < self.lr < math.inf:  # false for NaN too
            raise UserError(f"train.lr must be positive and finite; got {self.lr:g}.")
        if not 0 <= self.ema_decay < 1:
            raise UserError(f"train.ema_decay must lie in [0, 1); got {self.ema_decay:g}.")
        if any(not 0 < length <= 0.28 for length in self.ema_lengths):
            raise UserError(f"train.ema_lengths must lie in (0, 0.28]; got {self.ema_lengths}.")
        if not 0 <= self.label_dropout < 1:
            raise UserError(f"train.label_dropout must lie in [0, 1); got {self.label_dropout:g}.")
        if self.grad_clip is not None and not self.grad_clip > 0:
            raise UserError(f"train.grad_clip must be positive, or None; got {self.grad_clip:g}.")
        if not 0 <= self.lr_end < math.inf:
            raise UserError(f"train.lr_end must not be negative; got {self.lr_end:g}.")
        length_known = self.steps is not None or self.epoch_steps is not None
        if self.lr_decay == "cosine" and length_known and self.warmup_steps >= self.total_steps:
            raise UserError(
                f"train.warmup_steps must be below the number of steps ({self.total_steps}) with a cosine decay; "
                f"got {self.warmup_steps}."
            )
        if self.lr_decay == "cosine_by_epoch" and self.warmup_steps:
            raise UserError(f"train.warmup_steps must be 0 with a cosine by epoch; got {self.warmup_steps}.")

    @property
    def total_steps(self) -> int:
        """Updates in all.

        Raises:
            UserError: they are given in epochs, and epoch_steps is not known yet.
        """
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        return self.epochs * self.steps_in_epoch

    @property
    def steps_in_epoch(self) -> int:
        """Updates in an epoch.

        Raises:
            UserError: epoch_steps is not known yet; a run fills it in from its data.
        """
        if self.epoch_steps is None:
            raise UserError("train.epoch_steps, the updates in an epoch, is needed to count in epochs; got None.")
        return self.epoch_steps


@dataclass(frozen=True)
class SampleConfig:
    """How samples are drawn.

    Raises:
        UserError: a number outside its range.
    """

    sampler: Any = field(default_factory=lambda: ddpm_jax.samplers.Ancestral(), metadata=BESIDE)
    """The method, with options of its own: the reverse chain (DDPM), DDIM, the update of system 1, DPM-Solver++, UniPC, or those of
    Karras et al.; midpoint: of flows. In Python an object of `samplers`, or a name.
    """
    steps: int | None = None
    """Denoising steps, at most the schedule's; None: all of them. heun and midpoint evaluate the network twice in each."""
    spacing: Literal["even", "leading", "linspace", "trailing", "quadratic", "karras", "log_snr"] | None = None
    """Where a diffusion's steps lie; None: where the sampler's authors put them."""
    clip: float | None = 1.0
    """Bound on the predicted clean image while sampling; None: no bound."""
    threshold: float | None = None
    """Quantile, in (0, 1], of the clean image's values that may widen the bound before it is scaled back (Imagen); None: a fixed
    bound.
    """
    guidance: float = 1.0
    """Classifier-free guidance's scale: 1 none, 0 forgets the labels. Needs a network trained with label dropout."""
    guidance_from: float = 0.0
    """Earliest time at which to guide, as a share of the noisiest, in [0, 1]."""
    guidance_to: float = 1.0
    """Latest time at which to guide, as a share of the noisiest, in [0, 1]."""
    weaker: str = ""
    """Run folder of a network that is worse in the same ways, smaller or less trained, or FOLDER@STEP for an earlier checkpoint:
    guidance leads away from what it says, and not from what is said without labels (autoguidance, Karras et al. 2024).
    """
    guidance_rescale: float = 0.0
    """Share of a guided output brought back to its unguided deviation, in [0, 1]."""
    stretch: bool = False
    """For images: draw each from black to white, its least value to its greatest, for a network that does not see brightness."""
    num: int = 36
    """How many samples."""

    __repr__ = display.of_fields

    def __post_init__(self) -> None:
        object.__setattr__(self, "sampler", ddpm_jax.samplers.as_sampler(self.sampler))
        if self.num < 1:
            raise UserError(f"sample.num must be at least 1; got {self.num}.")
        if self.steps is not None and self.steps < 1:
            raise UserError(f"sample.steps must be at least 1; got {self.steps}.")
        if self.clip is not None and not self.clip > 0:
            raise UserError(f"sample.clip must be positive, or None; got {self.clip:g}.")
        if self.threshold is not None and not (0 < self.threshold <= 1 and self.clip is not None):
            raise UserError(
                f"sample.threshold must lie in (0, 1], and needs sample.clip; got {self.threshold:g} and {self.clip}."
            )
        if not 0 <= self.guidance < math.inf:
            raise UserError(f"sample.guidance must not be negative; got {self.guidance:g}.")
        if not 0 <= self.guidance_from <= self.guidance_to <= 1:
            raise UserError(
                f"sample.guidance_from and guidance_to must be two numbers of [0, 1] in order; "
                f"got {self.guidance_from:g} and {self.guidance_to:g}."
            )
        if self.weaker and self.guidance == 1:
            raise UserError(f"sample.weaker = {self.weaker} needs a sample.guidance other than 1, such as 2; got 1.")
        if not 0 <= self.guidance_rescale <= 1:
            raise UserError(f"sample.guidance_rescale must lie in [0, 1]; got {self.guidance_rescale:g}.")


@dataclass(frozen=True)
class EditConfig:
    """How images are edited: inpaint draws what a mask hides, vary noises part of the way and denoises, interpolate walks from each
    image to the next."""

    images: tuple[Path, ...] = ()
    """Image files; num images of the run's data unless given."""
    mask: str = "middle"
    """For inpaint: left, right, top, bottom, middle, or an image that is white where to draw."""
    labels: tuple[str, ...] = ()
    """Classes to draw, in turn, by name, or by position from 0 where no class's name is a number; the images' own unless given."""
    strength: float = 0.5
    """For vary: how far an image is noised, in (0, 1]."""
    resample: int = 10
    """For inpaint: how often each stretch of the walk is taken (RePaint)."""
    jump: int = 10
    """For inpaint: steps in a stretch."""
    seed: int = 0
    """Start of the random draws."""

    __repr__ = display.of_fields


@dataclass(frozen=True)
class RestoreConfig:
    """How images are restored from measurements y = A x + noise.

    Raises:
        UserError: noise below 0.
    """

    operator: str = "downsample:2"
    """A: downsample:FACTOR, blur:SIGMA in pixels, gray, or mask:WHERE, which is left, right, top, bottom, middle, or an image
    that is white where nothing is seen.
    """
    method: Any = field(default_factory=lambda: ddpm_jax.posterior.MMPS(), metadata=BESIDE)
    """How sure the network is taken to be of its images: as it says itself (mmps), equally of all pixels (pigdm), wholly (dps)."""
    noise: float = 0.05
    """Standard deviation of the measurement's noise, in units of the network's, of which images span 2; 0: exact."""
    degrade: bool = False
    """The images are whole: make the measurements of them first."""
    labels: tuple[str, ...] = ()
    """Classes of the images, in turn, by name, or by position from 0 where no class's name is a number."""
    seed: int = 0
    """Start of the random draws."""

    __repr__ = display.of_fields

    def __post_init__(self) -> None:
        if not 0 <= self.noise < math.inf:
            raise UserError(f"noise must be 0 or more, and finite; got {self.noise:g}.")


@dataclass(frozen=True)
class Preset:
    """Everything that describes a run; two runs of the same preset on the same machine are the same.

    data, model, process, train, sample: its parts, each its own config; model is the options of one of `models.NETWORKS`, process
    one of `processes.Process.members`, which learns the variance where the model does.

    Raises:
        UserError: a bound on samples whose data lies in [0, 1], points that are stretched, or a process that does not fit the
            model; the rest of what does not fit is refused by `training.objective.check`, so that runs that were made before open.
    """

    data: DataConfig = field(default_factory=DataConfig)
    model: Any = field(default_factory=lambda: ddpm_jax.models.UNetConfig())
    process: Any = field(default_factory=lambda: ddpm_jax.processes.GaussianDiffusion())
    train: TrainConfig = field(default_factory=TrainConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)

    def __post_init__(self) -> None:
        if self.data.scale == "unit" and self.sample.clip is not None:
            raise UserError(
                f"sample.clip bounds what lies in [-clip, clip], and data.scale = unit gives [0, 1]: sample.clip must be None; "
                f"got {self.sample.clip:g}."
            )
        if self.sample.stretch and len(self.model.shape) != 3:
            raise UserError(f"sample.stretch is for images; {self.model.network} makes points.")
        object.__setattr__(self, "process", _for_the_variance(self.process, self.model))
        if self.process.of_intervals != getattr(self.model, "interval", False):
            need = "needs a network that is told of two times" if self.process.of_intervals else "knows one time alone"
            raise UserError(
                f"process.kind = {self.process.name} {need}: model.interval must be {self.process.of_intervals}, as unet has it."
            )
        _check_condition(self.data, self.model)
        if self.process.name == "edm" and getattr(self.model, "num_steps", 2) > 2:
            raise UserError(
                f"process.kind = edm tells the network ln(sigma) / 4, and {self.model.network} counts timesteps up to "
                f"{self.model.num_steps}: take a network that embeds any time, such as unet, or model.num_steps = 2."
            )

    def __repr__(self) -> str:
        """Its parts in a word each; `to_json` tells all."""
        train = self.train
        length = f"{train.steps:,} steps" if train.steps is not None else f"{train.epochs:,} epochs"
        return display.line(
            self,
            self.model.network,
            f"data {display.short(self.data.source)}",
            self.process,
            f"{length} of {train.batch_size}",
            self.sample.sampler,
        )

    def _repr_html_(self) -> str:
        changed = {part.name: display.changed(getattr(self, part.name)) for part in dataclasses.fields(self)}
        rows = [
            (f"{part.name}.{name}", value, "" if name in changed[part.name] else "default")
            for part in dataclasses.fields(self)
            for name, value in display.options(getattr(self, part.name))
        ]
        return display.table([("model", self.model.network, ""), *rows], heading=repr(self))


def shown_its_condition(config: Preset) -> Preset:
    """The config, whose network has the condition_channels that data.condition needs, where it said none."""
    model = config.model
    if config.data.condition is None or model.condition_channels:
        return config
    channels = as_condition(config.data.condition).channels(model.channels)
    return dataclasses.replace(config, model=dataclasses.replace(model, condition_channels=channels))


def _check_condition(data: DataConfig, model: Any) -> None:
    """Refuse a network that cannot be shown what data.condition says, or that is to be shown what nothing says."""
    asked = getattr(model, "condition_channels", None)
    if data.condition is None:
        if asked:
            raise UserError(
                f"model.condition_channels = {asked} needs data.condition, which says what the network is shown; got None."
            )
        return
    if asked is None:
        raise UserError(
            f"data.condition = {data.condition} needs a network with condition_channels, unet or foreign_unet; "
            f"got {model.network}."
        )
    condition = as_condition(data.condition)
    condition.degraded_shape(model.shape)
    channels = condition.channels(model.channels)
    if asked not in (0, channels):
        raise UserError(
            f"model.condition_channels must be {channels} for data.condition = {data.condition}, or 0, which becomes that; "
            f"got {asked}."
        )


def _for_the_variance(process: Any, model: Any) -> Any:
    """The process, which learns the variance where the network has an output for it."""
    if not isinstance(process, ddpm_jax.processes.Process):
        raise UserError(f"process must be one of processes.Process; got {display.short(process)}.")
    learned = bool(getattr(model, "learn_variance", False))
    if hasattr(process, "learned_variance"):
        return (
            process if process.learned_variance == learned else dataclasses.replace(process, learned_variance=learned)
        )
    if learned:
        raise UserError(f"model.learn_variance belongs to process.kind = diffusion; got {process.name}.")
    return process


def to_json(config: Preset) -> str:
    """The config as JSON text that `from_json` reads back; the model's options begin with the network's name."""
    tree = {part.name: tree_of(getattr(config, part.name)) for part in dataclasses.fields(config)}
    tree["model"] = {"network": config.model.network, **tree["model"]}
    return json.dumps(tree, indent=2) + "\n"


def from_json(text: str) -> Preset:
    """The config that `to_json` wrote, also that of a run of an older version.

    Raises:
        UserError: not JSON, or fields that a preset does not have, or of another type (named).
    """
    try:
        tree = value_of(dict[str, Any], json.loads(text), "the config")
    except (ValueError, RecursionError) as error:
        raise UserError(f"the run's config.json cannot be read: {error}") from error
    kinds: dict[str, Any] = {part.name: part.type for part in dataclasses.fields(Preset)}
    if tree.keys() != kinds.keys():
        raise UserError(f"the config must consist of {', '.join(kinds)}; got {', '.join(tree) or 'nothing'}.")
    parts = {name: dict(value_of(dict[str, Any], part, name)) for name, part in tree.items()}
    parts, foreign = older.upgraded(parts)
    network = value_of(str, parts["model"].pop("network", None), "model.network")
    model = build(ddpm_jax.models.kind_of("foreign_unet" if foreign else network), parts["model"], "model")
    kinds["process"] = ddpm_jax.processes.Process.member(
        value_of(str, parts["process"].pop("kind", "diffusion"), "process.kind")
    )
    others = {name: build(kinds[name], parts[name], name) for name in kinds if name != "model"}
    return Preset(model=ddpm_jax.models.simplest(model) if foreign else model, **others)


def differences(old: Preset, new: Preset) -> dict[str, tuple[Any, Any]]:
    """The fields in which two configs differ: {"train.lr": (old, new)}."""
    found = {}
    for part in dataclasses.fields(Preset):
        before, after = (tree_of(getattr(config, part.name)) for config in (old, new))
        if part.name == "model":
            before["network"], after["network"] = (config.model.network for config in (old, new))
        for name in before | after:
            pair = before.get(name), after.get(name)
            if pair[0] != pair[1]:
                found[f"{part.name}.{name}"] = pair
    return found
