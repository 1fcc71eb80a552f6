"""What a run is made of: frozen configs, and the table of named presets. Free of jax: the command line is made from it."""

import dataclasses
import json
import math
from dataclasses import dataclass, field
from typing import Any, Literal

from ddpm_jax import model_configs as configs
from ddpm_jax.errors import UserError


@dataclass(frozen=True)
class DataConfig:
    """Which images, and how they reach the network."""

    source: str = "digits"
    """digits | folder:PATH | idx:PATH | npz:PATH | tfds:NAME, or just a path."""
    labels: bool = True
    """Tell the network the class of each image, where the data has classes."""
    flip: bool = False
    """Mirror half of the images, drawn anew each time."""
    on_bad_image: Literal["stop", "skip"] = "stop"
    """What to do when an image file cannot be read."""
    threads: int = 4
    """Threads that read and prepare images."""


@dataclass(frozen=True)
class ProcessConfig:
    """How noise is added, and what is learned of it."""

    schedule: Literal["linear", "cosine", "quadratic", "sigmoid", "linear_inclusive", "cosine_unclipped"] = "linear"
    """Noise schedule."""
    num_steps: int = 1000
    """T, the number of timesteps."""
    prediction: Literal["eps", "x0", "v"] = "eps"
    """What the network outputs: the noise, the clean image, or the velocity between them."""
    loss: Literal["mse", "l1", "huber"] = "mse"
    """Error of that output."""


@dataclass(frozen=True)
class TrainConfig:
    """How the network is trained.

    Raises:
        UserError: a number outside its range.
    """

    steps: int = 100_000
    """Updates in all."""
    batch_size: int = 128
    """Images in a batch."""
    lr: float = 2e-4
    """Peak learning rate of Adam."""
    warmup_steps: int = 0
    """Steps over which the learning rate rises from 0."""
    lr_decay: Literal["constant", "cosine"] = "constant"
    """What follows the warm-up: the same rate, or a cosine down to 0 at the last step."""
    grad_clip: float | None = 1.0
    """Largest joint norm of the gradients; None: not clipped."""
    ema_decay: float = 0.9999
    """Decay of the parameters' moving average, which starts lower and warms up, in [0, 1)."""
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

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "log_every", "checkpoint_every", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise UserError(f"train.{name} must be at least 1; got {getattr(self, name)}.")
        for name in ("warmup_steps", "sample_every", "seed"):
            if getattr(self, name) < 0:
                raise UserError(f"train.{name} must not be negative; got {getattr(self, name)}.")
        if not 0 < self.lr < math.inf:  # false for NaN too
            raise UserError(f"train.lr must be positive and finite; got {self.lr:g}.")
        if not 0 <= self.ema_decay < 1:
            raise UserError(f"train.ema_decay must lie in [0, 1); got {self.ema_decay:g}.")
        if self.grad_clip is not None and not self.grad_clip > 0:
            raise UserError(f"train.grad_clip must be positive, or None; got {self.grad_clip:g}.")
        if self.lr_decay == "cosine" and self.warmup_steps >= self.steps:
            raise UserError(
                f"train.warmup_steps must be below train.steps ({self.steps}) with a cosine decay; got {self.warmup_steps}."
            )


@dataclass(frozen=True)
class SampleConfig:
    """How samples are drawn.

    Raises:
        UserError: a number outside its range.
    """

    sampler: Literal["ancestral", "ddim", "strided"] = "ancestral"
    """The reverse chain (DDPM), DDIM, or the update of system 1."""
    steps: int | None = None
    """Denoising steps, at most the schedule's; None: all of them."""
    eta: float = 0.0
    """Share of fresh noise for ddim and strided: 0 deterministic, 1 as the reverse chain."""
    variance: Literal["beta", "posterior"] = "beta"
    """Ancestral sampling's variance: the upper or the lower bound (DDPM, section 3.2)."""
    clip: float | None = 1.0
    """Bound on the predicted clean image while sampling; None: no bound."""
    num: int = 36
    """How many samples."""

    @property
    def step_options(self) -> dict[str, Any]:
        """The options of the sampler's step, as `samplers.create` takes them."""
        return {"variance": self.variance} if self.sampler == "ancestral" else {"eta": self.eta}

    def __post_init__(self) -> None:
        if self.num < 1:
            raise UserError(f"sample.num must be at least 1; got {self.num}.")
        if self.steps is not None and self.steps < 1:
            raise UserError(f"sample.steps must be at least 1; got {self.steps}.")
        if not 0 <= self.eta <= 1:
            raise UserError(f"sample.eta must lie in [0, 1]; got {self.eta:g}.")
        if self.clip is not None and not self.clip > 0:
            raise UserError(f"sample.clip must be positive, or None; got {self.clip:g}.")


@dataclass(frozen=True)
class Preset:
    """Everything that describes a run; two runs of the same preset on the same machine are the same."""

    data: DataConfig = field(default_factory=DataConfig)
    model: configs.ModelConfig = field(default_factory=configs.UNet)
    process: ProcessConfig = field(default_factory=ProcessConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)

    def __post_init__(self) -> None:
        if self.sample.steps is not None and self.sample.steps > self.process.num_steps:
            raise UserError(
                f"sample.steps must be at most process.num_steps ({self.process.num_steps}); got {self.sample.steps}."
            )


# fmt: off
PRESETS: dict[str, Preset] = {
    # 1,797 handwritten 8x8 digits, by class; minutes on two CPU cores, >= 90 % of the samples recognised as the class asked for
    "digits": Preset(
        data    = DataConfig(source="digits"),
        model   = configs.UNet(image_size=8, channels=1, dim=32, dim_mults=(1, 2), num_blocks=1, attention_resolutions=(4,),
                               norm_groups=8),
        process = ProcessConfig(schedule="cosine", prediction="v"),
        train   = TrainConfig(steps=800, batch_size=64, lr=2e-3, warmup_steps=50, lr_decay="cosine", ema_decay=0.995,
                              log_every=20, sample_every=400, checkpoint_every=400),
        sample  = SampleConfig(sampler="ddim", steps=50, num=100),
    ),
    # your own pictures: ddpm train images --data.source PATH; 32x32 in colour, a GPU's evening
    "images": Preset(
        data    = DataConfig(source="", flip=True),
        model   = configs.UNet(image_size=32, dim=64),
        process = ProcessConfig(schedule="cosine"),
        train   = TrainConfig(batch_size=64, warmup_steps=1_000),
        sample  = SampleConfig(sampler="ddim", steps=100),
    ),
}
# fmt: on


# fmt: off
SYSTEMS: dict[str, tuple[ProcessConfig, SampleConfig]] = {
    "unet":                     (ProcessConfig("linear", 1000),              SampleConfig("ancestral")),
    "convnext_unet":            (ProcessConfig("cosine_unclipped", 500),     SampleConfig("strided", 35, eta=0.1, clip=None)),
    "convnext_unet_224":        (ProcessConfig("cosine_unclipped", 500),     SampleConfig("strided", 35, eta=0.1, clip=None)),
    "tiny_unet":                (ProcessConfig("linear", 1000),              SampleConfig("ancestral", clip=None)),
    "double_conv_unet":         (ProcessConfig("linear", 1000),              SampleConfig("ancestral", clip=None)),
    "annotated_unet":           (ProcessConfig("linear", 200, loss="huber"), SampleConfig("ancestral", variance="posterior",
                                                                                          clip=None)),
    "mlp":                      (ProcessConfig("linear", 1000),              SampleConfig("ancestral", clip=None)),
    "conv_net":                 (ProcessConfig("linear_inclusive", 400),     SampleConfig("ancestral", clip=None)),
    "strided_unet":             (ProcessConfig("linear_inclusive", 400),     SampleConfig("ancestral", clip=None)),
    "strided_unet_conditional": (ProcessConfig("linear_inclusive", 400),     SampleConfig("ancestral", clip=None)),
}
"""How each network is trained and sampled by its author."""
# fmt: on


def preset(name: str) -> Preset:
    """The named preset.

    Raises:
        UserError: no such preset (lists the names).
    """
    if name not in PRESETS:
        raise UserError(f"preset must be one of {', '.join(PRESETS)}; got {name!r}.")
    return PRESETS[name]


def to_json(config: Preset) -> str:
    """The config as JSON text that `from_json` reads back; the model's options begin with the network's name."""
    tree = dataclasses.asdict(config)
    tree["model"] = {"network": configs.name_of(config.model), **tree["model"]}
    return json.dumps(tree, indent=2) + "\n"


def from_json(text: str) -> Preset:
    """The config that `to_json` wrote.

    Raises:
        UserError: not JSON, or fields that a preset does not have.
    """
    try:
        tree = json.loads(text)
        model = configs.create(tree["model"].pop("network"), _tuples(tree.pop("model")))
        kinds = {"data": DataConfig, "process": ProcessConfig, "train": TrainConfig, "sample": SampleConfig}
        return Preset(model=model, **{name: kind(**_tuples(tree.pop(name))) for name, kind in kinds.items()}, **tree)
    except UserError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"the run's config.json cannot be read: {error}.") from error


def _tuples(options: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}


def differences(old: Preset, new: Preset) -> dict[str, tuple[Any, Any]]:
    """The fields in which two configs differ: {"train.lr": (old, new)}."""
    found = {}
    for part in dataclasses.fields(Preset):
        before, after = (dataclasses.asdict(getattr(config, part.name)) for config in (old, new))
        if part.name == "model":
            before["network"], after["network"] = (configs.name_of(config.model) for config in (old, new))
        for name in before | after:
            pair = before.get(name), after.get(name)
            if pair[0] != pair[1]:
                found[f"{part.name}.{name}"] = pair
    return found
