"""DDIM upwards: from data to the noise that it makes them of."""

from itertools import pairwise

import torch
from torch import Tensor

from ddpm_torch_ref.denoisers import Denoiser
from ddpm_torch_ref.processes import GaussianDiffusion


@torch.no_grad()
def invert(denoise: Denoiser, x_0: Tensor, num_steps: int | None = None) -> tuple[Tensor, list[Tensor]]:
    """DDIM's deterministic step run upwards.

    Each step takes the network at the time that it leaves, so that inversion and sampling undo each other in the limit of small
    steps only. A chain's network knows no clean end: there it is asked for eps at the first valid t.

    Args:
        denoise: what is believed of each state.
        x_0: (B, C, H, W) or (B, D) data.
        num_steps: evenly spread steps; None: the whole chain.

    Returns:
        x_T, and the list of all n + 1 states from x_0 to it.

    Raises:
        ValueError: num_steps out of range.

    Song et al. 2021, "Denoising Diffusion Implicit Models", section 4.3.
    """
    process = denoise.process
    x_t, states = x_0, [x_0]
    for t, s in pairwise(process.times(num_steps).tolist()[::-1]):
        (alpha_t, sigma_t), (alpha_s, sigma_s) = process.level(t), process.level(s)
        asked = max(t, process.schedule.first) if isinstance(process, GaussianDiffusion) else t
        eps = denoise(x_t, asked).eps
        x_t = alpha_s * (x_t - sigma_t * eps) / alpha_t + sigma_s * eps
        states.append(x_t)
    return x_t, states
