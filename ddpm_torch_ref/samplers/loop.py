"""The one loop, which takes any sampler down its grid of times with any denoiser."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ddpm_torch_ref.denoisers import Denoiser
from ddpm_torch_ref.samplers.base import Sampler, Walked, frame_steps
from ddpm_torch_ref.samplers.grids import Row


@torch.no_grad()
def walk(
    denoise: Denoiser,
    sampler: Sampler,
    x_T: Tensor,
    drawn: Callable[[int], Tensor],
    grid: Sequence[Row],
    num_frames: int = 0,
) -> Walked:
    """Run a sampler down a grid of times, from pure noise to data.

    Args:
        denoise: what is believed of each state.
        sampler: the method.
        x_T: (B, C, H, W) or (B, D), what process.prior makes of standard normal noise.
        drawn: drawn(i), of x_T's shape, is the noise of step i; the last step takes none.
        grid: rows of times, as sampler.grid gives them.
        num_frames: states to keep, evenly spread over the walk; 0, or 2 to one more than the steps.
    """
    x_t, memory = x_T, sampler.init(x_T)
    kept = set(frame_steps(len(grid), num_frames).tolist())
    frames = [x_T] if kept else []
    for i, times in enumerate(grid, start=1):
        noise = drawn(i - 1) if i < len(grid) else torch.zeros_like(x_t)
        stepped = sampler.step(denoise, x_t, times, noise, memory)
        x_t, memory = stepped.x, stepped.memory
        if i in kept:
            frames.append(x_t if stepped.shown is None else stepped.shown)
        denoise = denoise.given(stepped.hat.x_0)
    return Walked(x_t, torch.stack(frames) if frames else x_T.new_zeros((0, *x_T.shape)))


def sample(
    denoise: Denoiser,
    sampler: Sampler,
    generator: torch.Generator,
    shape: Sequence[int],
    num_steps: int | None = None,
    *,
    spacing: Any = None,
) -> Tensor:
    """Draw samples of the given shape, (B, C, H, W) or (B, D).

    Args:
        denoise: what is believed of each state.
        sampler: the method.
        generator: of all noise.
        shape: of the samples.
        num_steps: how many steps; None: the whole chain.
        spacing: of the grid, one of GRIDS or times of one's own; None: the sampler's own.

    Raises:
        ValueError: as sampler.grid.
    """
    return _from_noise(denoise, sampler, generator, shape, sampler.grid(denoise.process, num_steps, spacing)).x_0


def sample_with_frames(
    denoise: Denoiser,
    sampler: Sampler,
    generator: torch.Generator,
    shape: Sequence[int],
    num_steps: int | None = None,
    *,
    spacing: Any = None,
    num_frames: int = 24,
) -> tuple[Tensor, Tensor]:
    """`sample`, and num_frames states (K, B, ...) evenly spread over the walk, the starting noise first and the samples last.

    Raises:
        ValueError: as `sample`; num_frames outside 2..steps + 1.
    """
    grid = sampler.grid(denoise.process, num_steps, spacing)
    if not 2 <= num_frames <= len(grid) + 1:
        raise ValueError(f"num_frames must lie in 2..{len(grid) + 1}, the steps and one; got {num_frames}.")
    return _from_noise(denoise, sampler, generator, shape, grid, num_frames)


def _from_noise(
    denoise: Denoiser,
    sampler: Sampler,
    generator: torch.Generator,
    shape: Sequence[int],
    grid: Sequence[Row],
    num_frames: int = 0,
) -> Walked:
    def drawn(_: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=generator.device)

    return walk(denoise, sampler, denoise.process.prior(drawn(0), grid[0][0]), drawn, grid, num_frames)
