"""Sampling: pure steps x_t -> x_s, grids of times, and the one loop that runs them as a single compiled program."""

import functools
import inspect
from typing import Any

import numpy as np

from ddpm_jax.errors import UserError
from ddpm_jax.processes import GaussianDiffusion, LinearPath, Process
from ddpm_jax.samplers.adaptive import sample_adaptively, solve
from ddpm_jax.samplers.grids import GRIDS, two_stage, with_middles
from ddpm_jax.samplers.grids import strided as strided_times
from ddpm_jax.samplers.loop import Walk, check_finite, climb, denoise, frame_steps, invert, run, sample
from ddpm_jax.samplers.steps import (
    Past,
    Seen,
    Step,
    ancestral_step,
    ddim_step,
    dpmpp_2m_sde_step,
    dpmpp_2m_step,
    dpmpp_3m_step,
    heun_step,
    looks_back,
    midpoint_step,
    strided_step,
    unipc_step,
)

__all__ = [
    "GRIDS",
    "STEPS",
    "Past",
    "Seen",
    "Step",
    "Walk",
    "ancestral_step",
    "check_finite",
    "climb",
    "create",
    "ddim_step",
    "denoise",
    "dpmpp_2m_sde_step",
    "dpmpp_2m_step",
    "dpmpp_3m_step",
    "frame_steps",
    "heun_step",
    "invert",
    "looks_back",
    "midpoint_step",
    "run",
    "sample",
    "sample_adaptively",
    "solve",
    "strided_step",
    "strided_times",
    "times",
    "unipc_step",
]

STEPS: dict[str, Step] = {
    "ancestral": ancestral_step,
    "ddim": ddim_step,
    "strided": strided_step,
    "dpmpp_2m": dpmpp_2m_step,
    "dpmpp_2m_sde": dpmpp_2m_sde_step,
    "dpmpp_3m": dpmpp_3m_step,
    "unipc": unipc_step,
    "euler": functools.partial(ddim_step, eta=0.0),
    "euler_ancestral": functools.partial(ddim_step, eta=1.0),
    "heun": heun_step,
    "midpoint": midpoint_step,
}
"""Every sampler by name."""

SPACING = {"strided": "strided", "euler": "karras", "euler_ancestral": "karras", "heun": "karras"}
"""The grid that belongs to a sampler of a discrete chain; even where none is named."""

CHOICES = {"variance": ("beta", "posterior", "learned"), "coordinates": ("karras", "linear")}


@functools.cache  # the same options give the same object, which is what keeps a compiled program in use
def create(name: str, process: Process | None = None, **options: Any) -> Step:
    """The named step with its options bound: create("ddim", eta=0.5).

    process: what it will be used on, to refuse what does not fit and to choose heun's coordinates; None: a chain that fits.

    Raises:
        UserError: unknown name or option, an option out of range, or a sampler that does not fit the process.
    """
    if name not in STEPS:
        raise UserError(f"sampler must be one of {', '.join(STEPS)}; got {name!r}.")
    step = STEPS[name]
    bound = getattr(step, "keywords", {})
    parameters = inspect.signature(step).parameters.values()
    known = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in bound]
    for option in options.keys() - set(known):
        has = f"it has {', '.join(known)}" if known else "it has none"
        raise UserError(f"sampler {name} has no option {option!r}; {has}.")
    if not 0 <= options.get("eta", 0) <= 1:
        raise UserError(f"eta must lie in [0, 1]; got {options['eta']:g}.")
    for option, allowed in CHOICES.items():
        if options.get(option, allowed[0]) not in allowed:
            raise UserError(f"{option} must be one of {', '.join(allowed)}; got {options[option]!r}.")
    if process is not None:
        _check_fit(name, process, options)
        if name == "heun" and isinstance(process, LinearPath):
            options = {"coordinates": "linear", **options}
    return functools.partial(step, **options)


def times(
    name: str, process: Process, num_steps: int | None = None, *, spacing: str | None = None, churn: float = 0.0
) -> np.ndarray:
    """The grid that the named sampler walks in num_steps steps (None: the whole chain).

    spacing: one of GRIDS, None for the sampler's own. Methods of two evaluations a step get a grid of both times, which is longer.
    churn: of heun, how much noise is added anew over the whole walk (Karras et al. 2022, S_churn).

    Raises:
        UserError: num_steps outside 1..T, an unknown spacing, or one that the process does not have.
    """
    if spacing is None:
        spacing = SPACING.get(name, "even") if isinstance(process, GaussianDiffusion) else "even"
    if spacing not in GRIDS:
        raise UserError(f"spacing must be one of {', '.join(GRIDS)}; got {spacing!r}.")
    if (name == "strided") != (spacing == "strided"):
        raise UserError(f"sampler strided and its spacing belong together; got spacing = {spacing} with {name}.")
    if churn and name != "heun":
        raise UserError(f"churn belongs to sampler = heun; got {churn:g} with {name}.")
    if not 0 <= churn < float("inf"):
        raise UserError(f"churn must not be negative, nor infinite; got {churn:g}.")
    grid = GRIDS[spacing](process, num_steps)
    if name == "heun":
        return two_stage(process, grid, churn)
    return with_middles(process, grid) if name == "midpoint" else grid


def _check_fit(name: str, process: Process, options: dict[str, Any]) -> None:
    if isinstance(process, LinearPath):
        if name == "strided":
            raise UserError("sampler = strided walks a chain of timesteps; flow matching has none.")
        if options.get("variance") == "learned":
            raise UserError("variance = learned belongs to a diffusion that learns it; flow matching does not.")
        return
    if name == "midpoint":
        raise UserError("sampler = midpoint needs times between timesteps: it fits flow matching alone.")
    assert isinstance(process, GaussianDiffusion)
    if options.get("variance") == "learned" and not process.learned_variance:
        raise UserError("variance = learned needs a network trained with process.learned_variance.")
    if name == "heun" and process.schedule.alphas_cumprod[-1] == 0:
        raise UserError("sampler = heun works in sigma / alpha, which is infinite in x_T at a zero terminal SNR.")
