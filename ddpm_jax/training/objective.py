"""Whether a config's parts fit each other, and the step of training that it asks for."""

import functools
from dataclasses import replace

from ddpm_jax.errors import UserError
from ddpm_jax.parallel import ALONE, Layout
from ddpm_jax.presets import Preset, TrainConfig
from ddpm_jax.processes import GaussianDiffusion, Process
from ddpm_jax.training.optimizers import make_optimizer
from ddpm_jax.training.step import Step, make_step


def check(config: Preset) -> None:
    """Refuse a config whose parts do not fit each other: asked before any work by all that makes a run, or draws from one.

    Raises:
        UserError: options that exclude each other, a sampler or a spacing that does not fit the process, sampling that needs what
            the network is not trained for.
    """
    process, sample = config.process, config.sample
    if sample.guidance != 1 and not (config.train.label_dropout or sample.weaker):
        raise UserError(
            f"sample.guidance = {sample.guidance:g} needs a network that is trained with some labels hidden: "
            f"train.label_dropout must be above 0; got {config.train.label_dropout:g}. Or give sample.weaker."
        )
    if config.train.loss_aware_times and not isinstance(process, GaussianDiffusion):
        raise UserError(f"train.loss_aware_times needs timesteps, which process.kind = {process.name} has not.")
    sample.sampler.grid(process, sample.steps, sample.spacing)


_LEARNING = (
    "lr", "warmup_steps", "lr_decay", "lr_end", "reset_optimizer", "grad_clip", "ema_decay", "ema_lengths", "accumulate",
    "label_dropout", "dtype", "on_nonfinite",
)  # fmt: skip
"""The options of training that the compiled step depends on."""
_LENGTH = ("steps", "epochs", "epoch_steps")
"""Those it depends on as well, where the learning rate does, or where moments are forgotten by epoch."""


def step_of(config: Preset, layout: Layout = ALONE) -> Step:
    """The step that a config describes; the same object, which is compiled already, where that was asked for before.

    Raises:
        UserError: options that exclude each other.
    """
    train = config.train
    counts = train.lr_decay != "constant" or train.reset_optimizer
    names = (*_LEARNING, *(_LENGTH if counts else ()))
    return _step(config.process, replace(TrainConfig(), **{name: getattr(train, name) for name in names}), layout)


@functools.lru_cache(maxsize=4)
def _step(process: Process, train: TrainConfig, layout: Layout) -> Step:
    return make_step(
        process,
        make_optimizer(train),
        ema=train.ema_lengths or train.ema_decay,
        accumulate=train.accumulate,
        label_dropout=train.label_dropout,
        dtype=None if train.dtype == "float32" else train.dtype,
        skip_nonfinite=train.on_nonfinite == "skip",
        bounded=False,  # the pipeline scales
    ).on(layout)
