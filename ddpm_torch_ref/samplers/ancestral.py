"""The reverse chain of Ho et al. 2020."""

from dataclasses import dataclass
from math import log, sqrt
from typing import Any

from torch import Tensor

from ddpm_torch_ref.checks import check_choice
from ddpm_torch_ref.denoisers import Denoiser
from ddpm_torch_ref.processes import Estimate, GaussianDiffusion, Level, Process
from ddpm_torch_ref.samplers.base import Sampler, Stepped, levels
from ddpm_torch_ref.samplers.grids import Row

VARIANCES = ("beta", "posterior", "learned")
"""Variances of the reverse step."""


def ancestral_step(x_t: Tensor, hat: Estimate, t: Level, s: Level, noise: Tensor, variance: str = "beta") -> Tensor:
    """x_t -> x_s by p(x_s | x_t).

    With alpha = alpha_t / alpha_s, what is added between s and t has the variance beta = sigma_t^2 - alpha^2 sigma_s^2.

    Args:
        x_t: (B, C, H, W) images at t.
        hat: the estimate there; for "learned" with a variance_logit.
        t: the level that is left.
        s: the level that is gone to.
        noise: (B, C, H, W) standard normal; zeros for the mean alone.
        variance: of the step: "beta"; "posterior", beta~ = beta sigma_s^2 / sigma_t^2; or "learned", whose logarithm is
            f log beta + (1 - f) log beta~, f = (variance_logit + 1)/2. To a clean end, sigma_s = 0, a learned one adds no noise.

    Raises:
        ValueError: "learned" from an estimate without variance_logit.

    Ho et al. 2020, algorithm 2; for a chain that leaves steps out Nichol & Dhariwal 2021, section 4, whose eq. 15 is the learned
    variance; Kingma et al. 2021, "Variational Diffusion Models", eq. 32, in these letters.
    """
    alpha = t.alpha / s.alpha
    beta = t.sigma**2 - (alpha * s.sigma) ** 2
    posterior = beta * (s.sigma / t.sigma) ** 2
    mean = s.alpha * hat.x_0 if alpha == 0 else (x_t - beta / t.sigma * hat.eps) / alpha
    if variance == "beta":
        return mean + sqrt(beta) * noise
    if variance == "posterior":
        return mean + sqrt(posterior) * noise
    if hat.variance_logit is None:
        raise ValueError("variance must be beta or posterior where there is no variance_logit; got 'learned'.")
    if posterior == 0:
        return mean
    fraction = (hat.variance_logit + 1) / 2
    log_variance = fraction * log(beta) + (1 - fraction) * log(posterior)
    return mean + (0.5 * log_variance).exp() * noise


@dataclass(frozen=True)
class Ancestral(Sampler):
    """Ancestral sampling (Ho et al. 2020, algorithm 2).

    Args:
        variance: of the reverse step, one of VARIANCES.

    Raises:
        ValueError: an unknown variance.
    """

    variance: str = "beta"

    def __post_init__(self) -> None:
        check_choice("variance", self.variance, VARIANCES)

    def misfit(self, process: Process) -> str:
        """A learned variance has to be learned."""
        if self.variance == "learned" and not (isinstance(process, GaussianDiffusion) and process.learned_variance):
            return "variance must be beta or posterior on a process without learned_variance; got 'learned'."
        return ""

    def step(self, denoise: Denoiser, x_t: Tensor, times: Row, noise: Tensor, memory: Any) -> Stepped:
        """`ancestral_step`."""
        t, s = levels(denoise.process, times)
        hat = denoise(x_t, times[0])
        return Stepped(ancestral_step(x_t, hat, t, s, noise, self.variance), hat)
