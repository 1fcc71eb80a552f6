"""Presets: the configs that a run is made of, and the table of named ones. Free of jax."""

from ddpm_jax.presets.configs import (
    DataConfig,
    Preset,
    ProcessConfig,
    SampleConfig,
    TrainConfig,
    differences,
    from_json,
    to_json,
)
from ddpm_jax.presets.table import PRESETS, RECIPES, SYSTEMS, Recipe, preset

__all__ = [
    "PRESETS",
    "RECIPES",
    "SYSTEMS",
    "DataConfig",
    "Preset",
    "ProcessConfig",
    "Recipe",
    "SampleConfig",
    "TrainConfig",
    "differences",
    "from_json",
    "preset",
    "to_json",
]
