"""Programs compiled for TPUs and GPUs that are not here: whether they fit, and what bounds their speed. `estimate` does it.

The name is that of the command; within this package Python's own `compile` is not used.
"""

from ddpm_jax.compile.chips import CHIPS, Chip
from ddpm_jax.compile.costs import Costs, costs
from ddpm_jax.compile.estimate import EFFORTS, estimate
from ddpm_jax.compile.hlo import Module, parse
from ddpm_jax.compile.programs import WHAT, Program, trace
from ddpm_jax.compile.report import Counted, Estimated, Memory, Moved
from ddpm_jax.compile.search import largest_batch
from ddpm_jax.compile.topologies import SIZES, Topology, topology

__all__ = [
    "CHIPS",
    "EFFORTS",
    "SIZES",
    "WHAT",
    "Chip",
    "Costs",
    "Counted",
    "Estimated",
    "Memory",
    "Module",
    "Moved",
    "Program",
    "Topology",
    "costs",
    "estimate",
    "largest_batch",
    "parse",
    "topology",
    "trace",
]
