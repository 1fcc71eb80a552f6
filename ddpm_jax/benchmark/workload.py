"""What a benchmark runs: a network or a preset, with the batch, the precision and the data that every contender gets alike."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from ddpm_jax import models
from ddpm_jax.errors import UserError, meant
from ddpm_jax.presets import RECIPES, SYSTEMS, DataConfig, Preset, TrainConfig, system_of

What = Literal["forward", "train", "sample"]
WHAT: tuple[What, ...] = get_args(What)
"""What is timed: a forward pass in evaluation mode; an update by Adam with its average, draws and transfer of the batch; a walk
from noise to samples."""

Precision = Literal["float32", "tf32", "bfloat16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
"""tf32: float32 numbers whose products are rounded to 10 bits of mantissa, on NVIDIA GPUs since 2020. bfloat16: the network
computes in it, parameters and optimiser stay in float32."""

HEAVY = frozenset({"unet", "edm_unet", "double_conv_unet", "rms_unet", "dit", "convnext_unet_224"})
"""Networks of 1 to 57 GFLOP an image: a walk of all their steps takes a laptop minutes to hours."""
LIGHT = tuple(name for name in SYSTEMS if name not in HEAVY)
"""The others, of which none takes more than 0.6: what is measured where no name is given."""

BATCH = 16
"""Examples in a batch of a network that is named without a preset; the author's own for points."""
STACK = 100
"""Different batches that training goes through; also the steps in one call where steps are short."""


@dataclass(frozen=True)
class Workload:
    """One network and all that decides on what it costs."""

    name: str
    """What the network or the preset is called."""
    config: Preset
    """Process, training and sampling; its batch size is that of forward passes and updates."""
    precision: Precision = "float32"
    """What both sides compute products in."""
    sample_size: int = BATCH
    """Samples drawn at a time."""
    steps_per_call: int = 1
    """Updates that JAX makes in one call."""
    seed: int = 0
    """Start of the random draws."""

    @property
    def batch_size(self) -> int:
        """Examples in a batch."""
        return self.config.train.batch_size

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one example, channels last."""
        return self.config.model.shape

    @property
    def num_classes(self) -> int | None:
        """Classes the network is told about; None: none."""
        return getattr(self.config.model, "num_classes", None)

    def batches(self) -> dict[str, np.ndarray]:
        """Made-up data: "x_0" float32 (STACK, B, ...) in [-1, 1], or standard normal points, and "label" int32 (STACK, B)."""
        rng = np.random.default_rng(self.seed)
        x_0 = rng.standard_normal((STACK, self.batch_size, *self.shape), np.float32)
        if len(self.shape) == 3:
            x_0 = np.tanh(x_0)
        batches = {"x_0": x_0}
        if self.num_classes:
            batches["label"] = rng.integers(0, self.num_classes, x_0.shape[:2], np.int32)
        return batches


def workload(
    name: str,
    *,
    precision: Precision = "float32",
    batch_size: int | None = None,
    sample_size: int | None = None,
    sampler: str | None = None,
    sample_steps: int | None = None,
    options: dict[str, Any] | None = None,
) -> Workload:
    """A network by its name, with its author's process, or a preset. options: of the network, in place of its own.

    batch_size: None for the preset's, BATCH for a network. sample_size: None for the batch's. sampler, sample_steps: None for the
    author's.

    Raises:
        UserError: an unknown name, or numbers out of range.
    """
    if name in RECIPES:
        config = RECIPES[name].config
    elif name in models.NETWORKS:
        model = models.configure(name, options or {})
        process, sample = system_of(model)
        trained = next((r.config.train for r in RECIPES.values() if type(r.config.model) is type(model)), TrainConfig())
        size = trained.batch_size if len(model.shape) == 1 else BATCH
        config = Preset(DataConfig(), model, process, dataclasses.replace(trained, batch_size=size), sample)
    else:
        raise UserError(
            f"what is measured must be a network or a preset; got {name!r}.{meant(name, [*SYSTEMS, *RECIPES])} See ddpm --help."
        )
    if config.data.condition is not None:
        raise UserError(f"what is measured must be shown no condition; got {name} with {config.data.condition}.")
    if sample_size is not None and sample_size < 1:
        raise UserError(f"sample_size must be at least 1; got {sample_size}.")
    train = dataclasses.replace(config.train, epoch_steps=config.train.epoch_steps or 1_000)
    if batch_size is not None:
        train = dataclasses.replace(train, batch_size=batch_size)
    asked: dict[str, Any] = {"sampler": sampler, "steps": sample_steps}
    sample = dataclasses.replace(config.sample, **{key: value for key, value in asked.items() if value is not None})
    config = dataclasses.replace(config, train=train, sample=sample)
    per_call = config.train.steps_per_call or (STACK if len(config.model.shape) == 1 else 1)
    return Workload(name, config, precision, sample_size or train.batch_size, min(per_call, STACK))
