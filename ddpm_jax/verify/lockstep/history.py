"""What one side of a training did, step by step, in NumPy and under PyTorch's names."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]
"""Arrays by the PyTorch name of their parameter, in PyTorch's order of axes."""


@dataclass
class Step:
    """One step of training."""

    inputs: list[np.ndarray]
    """The batch as it was fed."""
    loss: float
    """What the step returned."""
    gradients: Arrays
    """Of the loss, the sum over the backward passes of the step, in the order in which they came."""
    params: Arrays
    """After the step."""
    parts: list[Arrays] = field(default_factory=list)
    """The gradients of each backward pass, where there were several."""
    fed: Arrays = field(default_factory=dict)
    """Gradients as the optimiser took them up, clipped; empty where that was not seen."""
    moments: dict[str, Arrays] = field(default_factory=dict)
    """What the optimiser remembers after the step: "first", "second", "momentum", "sum" of squares."""
    statistics: Arrays = field(default_factory=dict)
    """Running statistics after the step."""
    average: Arrays = field(default_factory=dict)
    """Averaged weights after the step."""
    rates: dict[str, float] = field(default_factory=dict)
    """Learning rate by parameter, where the optimiser says it."""


@dataclass
class History:
    """One side's training: where it began, its steps, and what its optimiser says of itself."""

    side: str
    """ "JAX" or "PyTorch"."""
    own: Arrays
    """Parameters as that side had drawn them, before both began from PyTorch's."""
    start: Step
    """Parameters, moments, statistics and average before the first step."""
    steps: list[Step] = field(default_factory=list)
    """In order."""
    settings: dict[str, Any] = field(default_factory=dict)
    """What the optimiser says of its betas, eps, momentum; PyTorch's alone does."""

    def before(self, index: int) -> Step:
        """The state that a step began with."""
        return self.steps[index - 1] if index else self.start
