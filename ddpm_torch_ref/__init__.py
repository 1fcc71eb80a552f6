"""The PyTorch twin of ddpm_jax: the same names, written independently, to check it against."""

from ddpm_torch_ref import (
    bound,
    denoisers,
    likelihood,
    models,
    operators,
    posterior,
    processes,
    samplers,
    schedules,
    training,
)

__all__ = [
    "bound",
    "denoisers",
    "likelihood",
    "models",
    "operators",
    "posterior",
    "processes",
    "samplers",
    "schedules",
    "training",
]
