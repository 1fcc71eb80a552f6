"""From a config to the process, the step of training and the sampler that it asks for, or to why they do not fit each other."""

from collections.abc import Callable
from typing import Any

from ddpm_jax import samplers, schedules
from ddpm_jax.errors import UserError
from ddpm_jax.presets import Preset, ProcessConfig, SampleConfig
from ddpm_jax.processes import AlphaBlending, FlowMatching, GaussianDiffusion, Process
from ddpm_jax.samplers import Sampler
from ddpm_jax.training.optimizers import make_optimizer
from ddpm_jax.training.step import Step, make_step

WITH_ETA = ("ddim", "strided")
"""Samplers that take fresh noise by sample.eta."""


def check(config: Preset) -> None:
    """Refuse a config whose parts do not fit each other: asked before any work by all that makes a run, or draws from one.

    Raises:
        UserError: options that exclude each other, a sampler or a spacing that does not fit the process, sampling that needs what
            the network is not trained for.
    """
    process, sample = process_of(config), config.sample
    if sample.guidance != 1 and not config.train.label_dropout:
        raise UserError(
            f"sample.guidance = {sample.guidance:g} needs a network that is trained with some labels hidden: "
            f"train.label_dropout must be above 0; got {config.train.label_dropout:g}."
        )
    if sample.variance == "learned" and not getattr(config.model, "learn_variance", False):
        raise UserError("sample.variance = learned needs a network that learns it: model.learn_variance must be True.")
    if sample.eta and sample.sampler not in WITH_ETA:
        raise UserError(
            f"sample.eta belongs to {' and '.join(WITH_ETA)}: with {sample.sampler} it must be 0; got {sample.eta:g}."
        )
    sampler_of(sample).grid(process, sample.steps, sample.spacing)


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


def sampler_of(config: SampleConfig) -> Sampler:
    """The sampler that a config asks for."""
    made: dict[str, Callable[[], Sampler]] = {
        "ancestral": lambda: samplers.Ancestral(config.variance),
        "ddim": lambda: samplers.DDIM(config.eta),
        "strided": lambda: samplers.Strided(config.eta),
        "dpmpp_2m": samplers.DPMSolver,
        "dpmpp_2m_sde": lambda: samplers.DPMSolver(sde=True),
        "dpmpp_3m": lambda: samplers.DPMSolver(order=3),
        "unipc": samplers.UniPC,
        "euler": samplers.Euler,
        "euler_ancestral": lambda: samplers.Euler(eta=1.0),
        "heun": lambda: samplers.Heun(config.churn),
        "midpoint": samplers.Midpoint,
        "adaptive": lambda: samplers.Adaptive(config.tolerance),
    }
    return made[config.sampler]()
