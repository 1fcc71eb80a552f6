"""Verification: hold a JAX module to a PyTorch one, layer by layer, and say where they part."""

from ddpm_jax.verify.comparison import compare
from ddpm_jax.verify.report import Report, Row, write
from ddpm_jax.verify.stages import verify, verify_run
from ddpm_jax.verify.tolerances import TOLERANCES, relative_error, tolerance

__all__ = ["TOLERANCES", "Report", "Row", "compare", "relative_error", "tolerance", "verify", "verify_run", "write"]
