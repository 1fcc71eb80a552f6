"""Samplers: one frozen dataclass a method, its options as fields, and the loop that walks any of them down its grid of times."""

from ddpm_torch_ref.samplers.ancestral import Ancestral, ancestral_step
from ddpm_torch_ref.samplers.ddim import DDIM, ddim_step
from ddpm_torch_ref.samplers.dpm_solver import DPMSolver, dpmpp_2m_sde_step, dpmpp_2m_step, dpmpp_3m_step
from ddpm_torch_ref.samplers.euler import Euler, euler_step
from ddpm_torch_ref.samplers.grids import GRIDS
from ddpm_torch_ref.samplers.heun import Heun, Midpoint
from ddpm_torch_ref.samplers.inversion import invert
from ddpm_torch_ref.samplers.sampler import Sampler, Stepped, rows, sample, walk
from ddpm_torch_ref.samplers.strided import Strided, strided_step
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
    "ancestral_step",
    "ddim_step",
    "dpmpp_2m_sde_step",
    "dpmpp_2m_step",
    "dpmpp_3m_step",
    "euler_step",
    "invert",
    "rows",
    "sample",
    "strided_step",
    "walk",
]
