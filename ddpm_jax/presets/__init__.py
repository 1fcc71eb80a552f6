"""Presets: the configs that a run is made of, and the table of named ones. To import it does not import jax."""

from ddpm_jax.presets.configs import (
    DataConfig,
    EditConfig,
    Preset,
    RestoreConfig,
    SampleConfig,
    TrainConfig,
    differences,
    from_json,
    shown_its_condition,
    to_json,
)
from ddpm_jax.presets.imports import DDPConfig, DiTImportConfig, ImportConfig, OpenAIConfig
from ddpm_jax.presets.table import RECIPES, SYSTEMS, Recipe, preset, system_of

__all__ = [
    "RECIPES",
    "SYSTEMS",
    "DDPConfig",
    "DataConfig",
    "DiTImportConfig",
    "EditConfig",
    "ImportConfig",
    "OpenAIConfig",
    "Preset",
    "Recipe",
    "RestoreConfig",
    "SampleConfig",
    "TrainConfig",
    "differences",
    "from_json",
    "preset",
    "shown_its_condition",
    "system_of",
    "to_json",
]
