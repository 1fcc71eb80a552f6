"""The PyTorch twin of ddpm_jax: the same names, written independently, to check it against."""

from ddpm_torch_ref import guidance, likelihood, models, processes, samplers, schedules, solvers, training

__all__ = ["guidance", "likelihood", "models", "processes", "samplers", "schedules", "solvers", "training"]
