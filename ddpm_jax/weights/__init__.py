"""Weights in and out: the exact bridge to the PyTorch twin, the originals' and other libraries' names, files of tensors."""

from ddpm_jax.weights.bridge import Entry, from_torch, layout, load_torch, to_numpy, to_torch
from ddpm_jax.weights.denoising_diffusion import from_denoising_diffusion, to_denoising_diffusion
from ddpm_jax.weights.diffusers import from_diffusers, to_diffusers
from ddpm_jax.weights.dit import from_dit, to_dit
from ddpm_jax.weights.edm import from_edm
from ddpm_jax.weights.files import Which, read_tensors, read_weights, write_tensors
from ddpm_jax.weights.openai import from_openai, to_openai
from ddpm_jax.weights.originals import from_original
from ddpm_jax.weights.rules import Rule
from ddpm_jax.weights.states import state_from_numpy, state_to_numpy
from ddpm_jax.weights.structure import linen_modules

__all__ = [
    "Entry",
    "Rule",
    "Which",
    "from_denoising_diffusion",
    "from_diffusers",
    "from_dit",
    "from_edm",
    "from_openai",
    "from_original",
    "from_torch",
    "layout",
    "linen_modules",
    "load_torch",
    "read_tensors",
    "read_weights",
    "state_from_numpy",
    "state_to_numpy",
    "to_denoising_diffusion",
    "to_diffusers",
    "to_dit",
    "to_numpy",
    "to_openai",
    "to_torch",
    "write_tensors",
]
