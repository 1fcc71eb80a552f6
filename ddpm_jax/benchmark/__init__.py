"""Speed beside the PyTorch twin: what is measured, by whom, and how it is told."""

from ddpm_jax.benchmark.report import Report, Row, write
from ddpm_jax.benchmark.side_by_side import benchmark
from ddpm_jax.benchmark.workload import LIGHT, PRECISIONS, WHAT, Workload, workload

__all__ = ["LIGHT", "PRECISIONS", "WHAT", "Report", "Row", "Workload", "benchmark", "workload", "write"]
