"""Pickled networks of NVlabs/edm: the process and the sampler that they were trained for."""

from pathlib import Path

import numpy as np

from ddpm_jax.models.edm_unet import EDMUNetConfig
from ddpm_jax.presets import SampleConfig
from ddpm_jax.processes import EDM
from ddpm_jax.samplers import Heun
from ddpm_jax.weights.edm import read_edm


def from_file(path: Path) -> tuple[EDMUNetConfig, dict[str, np.ndarray], EDM, SampleConfig]:
    """A network, the twin's state dict, and how it was trained and is sampled: 18 steps of Heun's method, for CIFAR-10.

    Raises:
        UserError: as `weights.edm.read_edm`.
    """
    model, ours, sigma_data = read_edm(path)
    return model, ours, EDM(sigma_data), SampleConfig(Heun(), 18, clip=None)
