"""Verification: hold a JAX side to a PyTorch one, layer by layer, and name the fault where they part."""

import importlib
import os
from typing import TYPE_CHECKING, Any

from ddpm_jax import processors

if TYPE_CHECKING:
    from ddpm_jax.verify.comparison import assert_parity, compare
    from ddpm_jax.verify.faults import Fault
    from ddpm_jax.verify.held_traces import compare_traces
    from ddpm_jax.verify.holding import hold
    from ddpm_jax.verify.lockstep import JaxTraining, TorchTraining, TrainingReport, compare_training, observed
    from ddpm_jax.verify.options import Options
    from ddpm_jax.verify.pages import write
    from ddpm_jax.verify.proposal import Proposal, propose
    from ddpm_jax.verify.recording import Call, Recording
    from ddpm_jax.verify.report import Coverage, Report, Row
    from ddpm_jax.verify.stages import verify, verify_run
    from ddpm_jax.verify.taps import tap
    from ddpm_jax.verify.tolerances import TOLERANCES, relative_error, tolerance
    from ddpm_jax.verify.traces import record

if processors.count() == 1:
    # XLA has a thread for each core, and what is recorded leaves it by callbacks, which wait for another one: with one thread
    # for ever. It reads the variable when the first array is made.
    os.environ.setdefault("NPROC", "2")

_HOMES = {
    "assert_parity": "comparison",
    "compare": "comparison",
    "Fault": "faults",
    "hold": "holding",
    "Options": "options",
    "Call": "recording",
    "Recording": "recording",
    "Coverage": "report",
    "Report": "report",
    "Row": "report",
    "write": "pages",
    "verify": "stages",
    "verify_run": "stages",
    "tap": "taps",
    "TOLERANCES": "tolerances",
    "relative_error": "tolerances",
    "tolerance": "tolerances",
    "JaxTraining": "lockstep",
    "TorchTraining": "lockstep",
    "TrainingReport": "lockstep",
    "compare_training": "lockstep",
    "observed": "lockstep",
    "Proposal": "proposal",
    "propose": "proposal",
    "record": "traces",
    "compare_traces": "held_traces",
}
"""name -> module: imported at first use, so that comparing brings in neither diffusion nor what only a run needs."""

__all__ = [
    "TOLERANCES",
    "Call",
    "Coverage",
    "Fault",
    "JaxTraining",
    "Options",
    "Proposal",
    "Recording",
    "Report",
    "Row",
    "TorchTraining",
    "TrainingReport",
    "assert_parity",
    "compare",
    "compare_traces",
    "compare_training",
    "hold",
    "observed",
    "propose",
    "record",
    "relative_error",
    "tap",
    "tolerance",
    "verify",
    "verify_run",
    "write",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
