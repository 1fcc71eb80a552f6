"""Samplers: one frozen dataclass a method, its options as fields, and the loop that walks any of them down its grid of times."""

from ddpm_torch_ref.samplers.ancestral import Ancestral, ancestral_step
from ddpm_torch_ref.samplers.base import Sampler, Stepped, Walked, frame_steps, levels
from ddpm_torch_ref.samplers.ddim import DDIM, Euler, ddim_inversion, ddim_step, euler_step
from ddpm_torch_ref.samplers.dpm_solver import DPMSolver, dpmpp_2m_sde_step, dpmpp_2m_step, dpmpp_3m_step
from ddpm_torch_ref.samplers.grids import GRIDS, rows, times
from ddpm_torch_ref.samplers.heun import Heun, Midpoint, heun_step, midpoint_step
from ddpm_torch_ref.samplers.loop import sample, sample_with_frames, walk
from ddpm_torch_ref.samplers.strided import Strided, strided_step, strided_times
from ddpm_torch_ref.samplers.unipc import UniPC

__all__ = [
    "DDIM",
    "GRIDS",
    "Ancestral",
    "DPMSolver",
    "Euler",
    "Heun",
    "Midpoint",
    "Sampler",
    "Stepped",
    "Strided",
    "UniPC",
    "Walked",
    "ancestral_step",
    "ddim_inversion",
    "ddim_step",
    "dpmpp_2m_sde_step",
    "dpmpp_2m_step",
    "dpmpp_3m_step",
    "euler_step",
    "frame_steps",
    "heun_step",
    "levels",
    "midpoint_step",
    "rows",
    "sample",
    "sample_with_frames",
    "strided_step",
    "strided_times",
    "times",
    "walk",
]
