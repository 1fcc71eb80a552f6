"""From a config to the process and the step of training that it asks for."""

from typing import Any

from ddpm_jax import schedules
from ddpm_jax.errors import UserError
from ddpm_jax.presets import Preset, ProcessConfig
from ddpm_jax.processes import AlphaBlending, FlowMatching, GaussianDiffusion, Process
from ddpm_jax.training.optimizers import make_optimizer
from ddpm_jax.training.step import Step, make_step


def process_of(config: Preset) -> Process:
    """The process that a config describes; the network's options say whether it learns the variance.

    Raises:
        UserError: options that exclude each other.
    """
    asked = config.process
    learned = bool(getattr(config.model, "learn_variance", False))
    if asked.kind == "diffusion":
        if asked.times == "logit_normal":
            raise UserError("process.times = logit_normal belongs to process.kind = flow or blending; got diffusion.")
        schedule = schedules.create(
            asked.schedule, asked.num_steps, beta_start=asked.beta_start, beta_end=asked.beta_end
        )
        return GaussianDiffusion(
            schedules.zero_terminal_snr(schedule) if asked.zero_terminal_snr else schedule,
            asked.prediction,
            asked.loss,
            weighting=asked.weighting,
            p2_gamma=asked.p2_gamma,
            p2_k=asked.p2_k,
            min_snr_gamma=asked.min_snr_gamma,
            learned_variance=learned,
            # a loss-aware choice replaces these draws
            time_draw="uniform" if asked.times == "loss_aware" else asked.times,
        )
    standard = ProcessConfig()
    for name in ("schedule", "beta_start", "beta_end", "zero_terminal_snr", "prediction", "weighting"):
        if getattr(asked, name) != getattr(standard, name):
            raise UserError(
                f"process.{name} belongs to process.kind = diffusion; got {getattr(asked, name)!r} with {asked.kind}."
            )
    if asked.loss in ("vlb", "hybrid") or learned:
        raise UserError(
            f"the variational bound and a learned variance belong to process.kind = diffusion; got {asked.kind}."
        )
    if asked.times == "loss_aware":
        raise UserError(f"process.times = loss_aware needs timesteps, which process.kind = {asked.kind} has not.")
    options: dict[str, Any] = {"num_steps": asked.num_steps, "loss": asked.loss, "time_draw": asked.times}
    return FlowMatching(**options) if asked.kind == "flow" else AlphaBlending(**options)


def step_of(config: Preset) -> Step:
    """The step that a config describes, for one device.

    Raises:
        UserError: options that exclude each other.
    """
    train = config.train
    return make_step(
        process_of(config),
        make_optimizer(train),
        ema=train.ema_decay,
        accumulate=train.accumulate,
        label_dropout=train.label_dropout,
        dtype=None if train.dtype == "float32" else train.dtype,
        skip_nonfinite=train.on_nonfinite == "skip",
        bounded=False,  # the pipeline scales
    )
