"""The whole variational bound of a batch: -log p(x_0) <= prior + sum over t of the term of t, in bits per dimension."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ddpm_torch_ref import bound
from ddpm_torch_ref.checks import check_clean_end
from ddpm_torch_ref.denoisers import Denoiser
from ddpm_torch_ref.processes import GaussianDiffusion


@dataclass(frozen=True)
class Bound:
    """The bound on -log2 p(x_0) of each example and its terms, in bits per dimension."""

    prior: Tensor
    """(B,) KL(q(x_T | x_0) || N(0, 1))."""
    terms: Tensor
    """(T, B), row i for t = timesteps[i]; the first one is the decoder's."""

    @property
    def total(self) -> Tensor:
        """(B,) their sum."""
        return self.prior + self.terms.sum(0)


@torch.no_grad()
def variational_bound(
    denoise: Denoiser, x_0: Tensor, noise: Callable[[int], Tensor], *, variance: str = "posterior"
) -> Bound:
    """The whole bound for a batch, by one evaluation of the network at each t.

    Args:
        denoise: of a Gaussian diffusion with a clean end.
        x_0: (B, C, H, W) data in [-1, 1].
        noise: noise(i), of x_0's shape, is added at t = timesteps[i].
        variance: of the reverse step: "beta", "posterior" or "learned", as in process.log_variance.

    Raises:
        ValueError: another process; the chain's clean end is not clean; an unknown variance, or "learned" from an estimate without
            one.
    """
    process = denoise.process
    if not isinstance(process, GaussianDiffusion):
        raise ValueError(f"the bound belongs to a GaussianDiffusion; got {type(process).__name__}.")
    check_clean_end(process.schedule.first, process.schedule.alphas_cumprod)
    terms = []
    for i, t in enumerate(process.schedule.timesteps):
        t_batch = torch.full((len(x_0),), int(t), dtype=torch.int64, device=x_0.device)
        x_t = process.add_noise(x_0, noise(i), t_batch)
        terms.append(process.bound_term(denoise(x_t, t_batch), x_0, x_t, t_batch, variance))
    return Bound(bound.prior(x_0, float(process.schedule.alphas_cumprod[-1])), torch.stack(terms))
