"""Samplers: one dataclass a method, the grids of times, and the one loop that walks any of them as a single compiled program."""

from ddpm_jax.samplers.adaptive import Adaptive, solve
from ddpm_jax.samplers.ancestral import Ancestral, ancestral_step
from ddpm_jax.samplers.base import SAMPLERS, Sampler, Stepped, Walked, frame_steps, levels
from ddpm_jax.samplers.ddim import DDIM, Euler, ddim_inversion, ddim_step
from ddpm_jax.samplers.dpm_solver import DPMSolver, Past, dpmpp_2m_sde_step, dpmpp_2m_step, dpmpp_3m_step
from ddpm_jax.samplers.grids import GRIDS, rows, times
from ddpm_jax.samplers.heun import Heun, Midpoint, heun_step, midpoint_step
from ddpm_jax.samplers.loop import as_sampler, check_finite, draw, lower, sample, sample_with_frames, trace, walk
from ddpm_jax.samplers.strided import Strided, strided_step, strided_times
from ddpm_jax.samplers.unipc import UniPC, unipc_step

__all__ = [
    "DDIM",
    "GRIDS",
    "SAMPLERS",
    "Adaptive",
    "Ancestral",
    "DPMSolver",
    "Euler",
    "Heun",
    "Midpoint",
    "Past",
    "Sampler",
    "Stepped",
    "Strided",
    "UniPC",
    "Walked",
    "ancestral_step",
    "as_sampler",
    "check_finite",
    "ddim_inversion",
    "ddim_step",
    "dpmpp_2m_sde_step",
    "dpmpp_2m_step",
    "dpmpp_3m_step",
    "draw",
    "frame_steps",
    "heun_step",
    "levels",
    "lower",
    "midpoint_step",
    "rows",
    "sample",
    "sample_with_frames",
    "solve",
    "strided_step",
    "strided_times",
    "times",
    "trace",
    "unipc_step",
    "walk",
]
