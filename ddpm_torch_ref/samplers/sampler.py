"""What a sampler is: options, its usual grid of times, and one step down a row of it; and the loop that takes the steps."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddpm_torch_ref.denoisers import Denoiser
from ddpm_torch_ref.processes import Estimate, GaussianDiffusion, Level, Process
from ddpm_torch_ref.samplers.grids import GRIDS

Row = tuple[float, ...]
"""The times of one step: (t, s), from t to s < t."""


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


class Sampler(ABC):
    """One method. Its subclasses are frozen dataclasses, whose fields are its options."""

    spacing: ClassVar[str] = "even"
    """The grid that its authors walk on a chain."""

    def grid(self, process: Process, num_steps: int | None = None, spacing: str | None = None) -> list[Row]:
        """The rows of times that it walks, num_steps of them; None: the whole chain.

        Args:
            process: whose times.
            num_steps: at least 1.
            spacing: one of GRIDS; None: the sampler's own.

        Raises:
            ValueError: a process that the sampler does not fit, an unknown spacing, or num_steps out of range.
        """
        if spacing is None:
            spacing = self.spacing if isinstance(process, GaussianDiffusion) else "even"
        if spacing not in GRIDS:
            raise ValueError(f"spacing must be one of {', '.join(GRIDS)}; got {spacing!r}.")
        if (spacing == "strided") != (self.spacing == "strided"):
            raise ValueError(
                f"spacing strided belongs to the sampler Strided, and no other does; got {spacing} with {type(self).__name__}."
            )
        return list(pairwise(GRIDS[spacing](process, num_steps).tolist()))

    def init(self, x_T: Tensor) -> Any:
        """What it remembers before its first step."""
        return ()

    @abstractmethod
    def step(self, denoise: Denoiser, x_t: Tensor, times: Row, noise: Tensor, memory: Any) -> Stepped:
        """From x_t, (B, C, H, W) or (B, D), down a row of times, with noise of its shape."""


def rows(process: Process, times: Sequence[float] | NDArray[np.generic]) -> list[Row]:
    """The rows (t, s) of a grid of one's own: strictly descending times, the last one process.clean_end.

    Raises:
        ValueError: times that do not descend strictly, or do not end at the clean end.
    """
    grid = np.asarray(times).tolist()
    if len(grid) < 2 or any(s >= t for t, s in pairwise(grid)):
        raise ValueError(f"times must be at least two and strictly descending; got {grid}.")
    if grid[-1] != process.clean_end:
        raise ValueError(f"times must end at the clean end, {process.clean_end}; got {grid[-1]}.")
    return list(pairwise(grid))


def levels(process: Process, times: Row) -> tuple[Level, ...]:
    """The level of each time of a row."""
    return tuple(process.level(time) for time in times)


def fresh(process: Process, s: float, noise: Tensor) -> Tensor:
    """The noise of a step to s, of which the clean end takes none: a chain may end a little short of clean data."""
    return torch.zeros_like(noise) if s == process.clean_end else noise


@torch.no_grad()
def walk(
    denoise: Denoiser, sampler: Sampler, x_T: Tensor, noises: Sequence[Tensor] | Tensor, grid: Sequence[Row]
) -> tuple[Tensor, list[Tensor]]:
    """Run a sampler down a grid of times, from pure noise to data.

    Args:
        denoise: what is believed of each state.
        sampler: the method.
        x_T: (B, C, H, W) or (B, D) standard normal.
        noises: noises[i], of x_T's shape, is the noise of step i; the last step may go without, on zeros.
        grid: rows of times, as sampler.grid gives them.

    Returns:
        The data, and the list of what is shown of all n + 1 states from x_T to them.

    Raises:
        ValueError: too few noises.
    """
    if len(noises) < len(grid) - 1:
        raise ValueError(f"noises must be {len(grid) - 1} at least, one for each step but the last; got {len(noises)}.")
    x_t, memory, shown = x_T, sampler.init(x_T), [x_T]
    for i, times in enumerate(grid):
        noise = noises[i] if i < len(noises) else torch.zeros_like(x_t)
        stepped = sampler.step(denoise, x_t, times, noise, memory)
        x_t, memory = stepped.x, stepped.memory
        shown.append(x_t if stepped.shown is None else stepped.shown)
        denoise = denoise.given(stepped.hat.x_0)
    return x_t, shown


def sample(
    denoise: Denoiser,
    sampler: Sampler,
    generator: torch.Generator,
    shape: Sequence[int],
    num_steps: int | None = None,
    spacing: str | None = None,
) -> Tensor:
    """Draw samples of the given shape, (B, C, H, W) or (B, D).

    Args:
        denoise: what is believed of each state.
        sampler: the method.
        generator: of all noise.
        shape: of the samples.
        num_steps: how many steps; None: the whole chain.
        spacing: of the grid; None: the sampler's own.

    Raises:
        ValueError: as sampler.grid.
    """
    grid = sampler.grid(denoise.process, num_steps, spacing)
    x_T = torch.randn(*shape, generator=generator, device=generator.device)

    class Drawn(Sequence[Tensor]):
        def __len__(self) -> int:
            return len(grid)

        def __getitem__(self, i: Any) -> Any:
            return torch.randn(*shape, generator=generator, device=generator.device)

    return walk(denoise, sampler, x_T, Drawn(), grid)[0]
