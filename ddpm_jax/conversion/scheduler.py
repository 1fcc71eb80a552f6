"""scheduler_config.json of the library diffusers, to and from the configs of a process and of sampling."""

import warnings
from collections.abc import Mapping
from typing import Any

from ddpm_jax import models, schedules
from ddpm_jax.errors import UserError
from ddpm_jax.presets import Preset, SampleConfig
from ddpm_jax.processes import GaussianDiffusion
from ddpm_jax.samplers import DDIM, Ancestral
from ddpm_jax.schedules import Linear

COMMON: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "clip_sample": True,
    "clip_sample_range": 1.0,
    "prediction_type": "epsilon",
    "thresholding": False,
    "dynamic_thresholding_ratio": 0.995,
    "sample_max_value": 1.0,
    "timestep_spacing": "leading",
    "steps_offset": 0,
    "rescale_betas_zero_snr": False,
}
DEFAULTS: dict[str, dict[str, Any]] = {
    "DDPMScheduler": COMMON | {"variance_type": "fixed_small"},
    "DDIMScheduler": COMMON | {"set_alpha_to_one": True},
}
"""Scheduler -> its options, and what they are where a scheduler_config.json does not say."""

SCHEDULES = {
    "linear": "linear",
    "scaled_linear": "quadratic",
    "squaredcos_cap_v2": "cosine",
    "sigmoid": "sigmoid",
}
PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
VARIANCES = {
    "fixed_small": "posterior",
    "fixed_small_log": "posterior",
    "fixed_large": "beta",
    "learned_range": "learned",
}
SPACINGS = {
    "DDPMScheduler": ("leading", "linspace", "trailing"),
    # from linspace's times it steps down by T // n, which leads to none of the others
    "DDIMScheduler": ("leading", "trailing"),
}
"""Scheduler -> the spacings that are the same here, by the same names, for every number of steps."""
PIPELINE_STEPS = {"DDPMScheduler": 1000, "DDIMScheduler": 50}
"""What the pipeline of a scheduler takes unless told otherwise."""

SUPPORTED = (
    f"Supported are {' and '.join(DEFAULTS)} with beta_schedule {', '.join(SCHEDULES)}, prediction_type "
    f"{', '.join(PREDICTIONS)}, variance_type {', '.join(VARIANCES)}, timestep_spacing leading, trailing and, of a "
    "DDPMScheduler, linspace, clip_sample, clip_sample_range and, unless epsilon is predicted, rescale_betas_zero_snr."
)
_FIXED = {"trained_betas": None, "thresholding": False, "steps_offset": 0, "set_alpha_to_one": True}
_IGNORED = ("dynamic_thresholding_ratio", "sample_max_value", "tensor_format")
"""What concerns thresholding alone, or a version that could compute in NumPy."""


def from_scheduler(config: Mapping[str, Any], model: models.UNetConfig) -> tuple[GaussianDiffusion, SampleConfig]:
    """How a network was trained, and how its pipeline samples, of a scheduler_config.json.

    Raises:
        UserError: options without a counterpart here; all of them are named.
    """
    kind = config.get("_class_name", "DDPMScheduler")
    if kind not in DEFAULTS:
        raise UserError(f"the scheduler is a {kind}. {SUPPORTED}")
    options = {name: value for name, value in config.items() if not name.startswith("_") and name not in _IGNORED}
    if "predict_epsilon" in options:  # before version 0.10
        options["prediction_type"] = "epsilon" if options.pop("predict_epsilon") else "sample"
    unknown = {name: value for name, value in options.items() if name not in DEFAULTS[kind] and value is not None}
    c = DEFAULTS[kind] | {name: value for name, value in options.items() if name in DEFAULTS[kind]}
    problems = [f"{name} = {value!r}" for name, value in unknown.items()]
    problems += [f"{name} = {c[name]!r}" for name, needed in _FIXED.items() if c.get(name, needed) != needed]
    tables = {
        "beta_schedule": SCHEDULES,
        "prediction_type": PREDICTIONS,
        "timestep_spacing": SPACINGS[kind],
        **({"variance_type": VARIANCES} if kind == "DDPMScheduler" else {}),
    }
    problems += [f"{name} = {c[name]!r}" for name, table in tables.items() if c[name] not in table]
    if c["rescale_betas_zero_snr"] and c["prediction_type"] == "epsilon":
        reason = "the noise that is predicted says nothing of x_T, which holds no data then"
        problems.append(f"rescale_betas_zero_snr = True with prediction_type = 'epsilon' ({reason})")
    learned = c.get("variance_type") == "learned_range"
    if kind == "DDPMScheduler" and learned != model.learn_variance:
        channels = "as many" if learned else "twice as many"
        problems.append(f"variance_type = {c['variance_type']!r} with {channels} channels out as in")
    if problems:
        raise UserError(f"this {kind} has no counterpart here because of {', '.join(problems)}. {SUPPORTED}")
    name, num_steps = SCHEDULES[c["beta_schedule"]], c["num_train_timesteps"]
    betas = {} if name == "cosine" else {"beta_start": c["beta_start"], "beta_end": c["beta_end"]}
    process = GaussianDiffusion(
        schedules.create(name, num_steps, **betas, zero_terminal_snr=c["rescale_betas_zero_snr"]),
        PREDICTIONS[c["prediction_type"]],  # type: ignore[arg-type]
        "hybrid" if model.learn_variance else "mse",
    )
    steps = PIPELINE_STEPS[kind]
    return process, SampleConfig(
        DDIM() if kind == "DDIMScheduler" else Ancestral(VARIANCES[c["variance_type"]]),  # type: ignore[arg-type]
        steps=steps if steps < num_steps else None,
        spacing=c["timestep_spacing"],
        clip=c["clip_sample_range"] if c["clip_sample"] else None,
    )


def to_scheduler(config: Preset) -> dict[str, Any]:
    """The scheduler_config.json of a run's config: DDIM's where it samples so, otherwise DDPM's.

    Warns where the run samples in a way that no pipeline does (sampler, spacing, guidance): which it then does instead.

    Raises:
        UserError: a process or options of sampling without a counterpart there; all of them are named.
    """
    process, sample = config.process, config.sample
    learned = bool(getattr(config.model, "learn_variance", False))
    kind = "DDIMScheduler" if type(sample.sampler) is DDIM and not learned else "DDPMScheduler"
    names = {name: key for key, name in reversed(SCHEDULES.items())}
    problems = []
    schedule = process.schedule if isinstance(process, GaussianDiffusion) else None
    if schedule is None:
        problems.append(f"process.kind = {process.name}")
    elif schedule.name not in names or (schedule.name == "sigmoid" and kind == "DDIMScheduler"):
        problems.append(f"process.schedule = {schedule.name} of a {kind}")
    if config.data.scale != "signed":
        problems.append(f"data.scale = {config.data.scale}")
    if sample.threshold is not None:
        problems.append(f"sample.threshold = {sample.threshold:g}")
    if problems or schedule is None:
        raise UserError("diffusers has no counterpart of " + ", ".join(problems) + ".")
    variances = {"posterior": "fixed_small", "beta": "fixed_large", "learned": "learned_range"}
    variance = "learned" if learned else getattr(sample.sampler, "variance", "beta")
    betas = schedule if isinstance(schedule, Linear) else Linear()
    spacing = sample.spacing if sample.spacing in SPACINGS[kind] else "trailing"
    if others := _without_counterpart(sample, kind):
        warnings.warn(
            f"the pipeline samples in another way than this run, by its {kind} with timestep_spacing {spacing}: diffusers has "
            f"no counterpart of {', '.join(others)}.",
            stacklevel=2,
        )
    return {
        "_class_name": kind,
        **DEFAULTS[kind],
        "num_train_timesteps": schedule.num_steps,
        "beta_start": betas.beta_start,
        "beta_end": betas.beta_end,
        "beta_schedule": names[schedule.name],
        "clip_sample": sample.clip is not None,
        "clip_sample_range": 1.0 if sample.clip is None else sample.clip,
        "prediction_type": {ours: theirs for theirs, ours in PREDICTIONS.items()}[process.prediction],
        "timestep_spacing": spacing,
        "rescale_betas_zero_snr": getattr(schedule, "zero_terminal_snr", False),
        **({"variance_type": variances[variance]} if kind == "DDPMScheduler" else {}),
    }


def _without_counterpart(sample: SampleConfig, kind: str) -> list[str]:
    """Ways of sampling that a scheduler does not know."""
    found = []
    if type(sample.sampler) is not (DDIM if kind == "DDIMScheduler" else Ancestral):
        found.append(f"sample.sampler = {sample.sampler.name}")
    if sample.spacing not in (None, "even", *SPACINGS[kind]):
        found.append(f"sample.spacing = {sample.spacing}")
    if sample.guidance != 1:
        found.append(f"sample.guidance = {sample.guidance:g}")
    return found
