"""What a sampler is: options, its usual grid of times, and one step down a row of it."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ddpm_torch_ref.denoisers import Denoiser
from ddpm_torch_ref.processes import Estimate, GaussianDiffusion, Level, Process
from ddpm_torch_ref.samplers import grids
from ddpm_torch_ref.samplers.grids import Row


class Stepped(NamedTuple):
    """Where a step led."""

    x: Tensor
    """The state at s."""
    hat: Estimate
    """The last estimate on the way."""
    memory: Any = ()
    """What the next step is to remember."""
    shown: Tensor | None = None
    """What a frame shows of it; None: x."""


class Walked(NamedTuple):
    """Where a walk led."""

    x_0: Tensor
    """The samples."""
    frames: Tensor
    """(K, B, ...) states evenly spread over the walk, the starting noise first and the samples last."""


class Sampler(ABC):
    """One method. Its subclasses are frozen dataclasses, whose fields are its options."""

    spacing: ClassVar[str] = "even"
    """The grid that its authors walk on a chain."""

    def misfit(self, process: Process) -> str:
        """Why it does not fit a process; empty: it does."""
        return ""

    def grid(self, process: Process, num_steps: int | None = None, spacing: Any = None) -> list[Row]:
        """The rows of times that it walks, num_steps of them; None: the whole chain.

        Args:
            process: whose times.
            num_steps: at least 1.
            spacing: one of GRIDS, or times of one's own, descending; None: the sampler's own on a chain, even on a straight path.

        Raises:
            ValueError: a process that the sampler does not fit, an unknown spacing, or num_steps out of range.
        """
        if reason := self.misfit(process):
            raise ValueError(reason)
        if spacing is None:
            spacing = self.spacing if isinstance(process, GaussianDiffusion) else "even"
        return grids.rows(grids.times(process, num_steps, spacing))

    def init(self, x_T: Tensor) -> Any:
        """What it remembers before its first step."""
        return ()

    @abstractmethod
    def step(self, denoise: Denoiser, x_t: Tensor, times: Row, noise: Tensor, memory: Any) -> Stepped:
        """From x_t, (B, C, H, W) or (B, D), down a row of times, with noise of its shape: zeros in a walk's last step."""


def frame_steps(num_steps: int, num_frames: int) -> NDArray[np.int64]:
    """(num_frames,) after how many steps each frame is taken: evenly spread from 0 to num_steps."""
    return np.linspace(0, num_steps, num_frames).round().astype(np.int64)


def levels(process: Process, times: Row) -> tuple[Level, ...]:
    """The level of each time of a row."""
    return tuple(process.level(time) for time in times)
