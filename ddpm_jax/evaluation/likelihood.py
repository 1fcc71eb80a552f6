"""Bits per dimension of 8-bit images by the variational bound, term by term (Ho et al. 2020, section 3; Nichol & Dhariwal 2021)."""

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ddpm_jax import bound, display, noise, progress
from ddpm_jax.compilation import jit
from ddpm_jax.denoisers import Denoiser, as_denoiser
from ddpm_jax.errors import NotFiniteError, UserError
from ddpm_jax.evaluation.report import check_drawing, load_images, open_data, save
from ddpm_jax.files import check_writable
from ddpm_jax.presets import SampleConfig
from ddpm_jax.processes import GaussianDiffusion, Variance
from ddpm_jax.training import Drawing, Run
from ddpm_jax.training.samples import believed


@dataclass(frozen=True)
class Bound:
    """The bound on -log2 p(x_0) of each example and its terms, in bits per dimension."""

    prior: Float[Array, "b"]
    """KL(q(x_T | x_0) || N(0, 1))."""
    terms: Float[Array, "T b"]
    """By timestep, ascending; the first one is the decoder's."""

    __repr__ = display.of_fields

    @property
    def total(self) -> Float[Array, "b"]:
        """The sum of all of them."""
        return self.prior + self.terms.sum(axis=0)


def variational_bound(
    denoise: Denoiser,
    x_0: Float[Array, "b *shape"],
    noise: Callable[[jax.Array], Float[Array, "b *shape"]],
    *,
    variance: Variance = "posterior",
) -> Bound:
    """Every term of the bound, one draw of x_t at each timestep, as one scan; traceable.

    denoise: of a chain; a self-conditioned network is given no guess. x_0: 8-bit data in [-1, 1]. noise(i): that of the i-th
    timestep, of the shape of x_0.

    Raises:
        UserError: no denoiser, or not that of a chain.
    """
    process = as_denoiser(denoise).process
    if not isinstance(process, GaussianDiffusion):
        raise UserError(f"the variational bound belongs to a chain; got the denoiser of a {type(process).__name__}.")
    schedule = process.schedule

    def term(_: None, i: Array) -> tuple[None, Array]:
        t = jnp.full(x_0.shape[:1], schedule.first) + i
        x_t = process.add_noise(x_0, noise(i), t)
        return None, process.bound_term(denoise(x_t, t), x_0, x_t, t, variance)

    _, terms = jax.lax.scan(term, None, jnp.arange(schedule.num_steps))
    return Bound(bound.prior(x_0, float(schedule.alphas_cumprod[-1])), terms)


@functools.partial(jit, static_argnames=("variance",))
def _compiled(denoise: Denoiser, x_0: Array, keys: Array, *, variance: Variance) -> tuple[Array, Array]:
    _, drawn = noise.of_walk(keys, x_0.shape[1:])
    found = variational_bound(denoise, x_0, drawn, variance=variance)
    return found.prior, found.terms


@dataclass(frozen=True)
class Likelihood:
    """The bound averaged over images, and how it was measured."""

    facts: dict[str, Any]
    bits_per_dim: float
    standard_error: float
    """Standard error of that mean, over images."""
    prior: float
    terms: tuple[float, ...]
    """By timestep, ascending; the first one is the decoder's."""

    def __repr__(self) -> str:
        """The figure; `table` and `json` tell its parts."""
        return display.line(self, bits_per_dim=self.bits_per_dim, standard_error=self.standard_error)

    def json(self) -> str:
        """As JSON text."""
        whole = {"bits_per_dim": self.bits_per_dim, "standard_error": self.standard_error}
        parts = {"prior": self.prior, "decoder": self.terms[0], "terms": self.terms}
        return json.dumps({**self.facts, **whole, **parts}, indent=2) + "\n"

    def table(self) -> str:
        """As lines for a terminal."""
        lines = [f"{name}: {value}" for name, value in self.facts.items()]
        for name, value in (
            ("prior, L_T", self.prior),
            ("steps, sum of L_t", sum(self.terms[1:])),
            ("decoder, L_0", self.terms[0]),
            ("bits per dimension", self.bits_per_dim),
        ):
            lines.append(f"{name:<24}{value:>12.4f}")
        return "\n".join(["", *lines]).lstrip("\n") + f" ± {self.standard_error:.4f}"


def evaluate_likelihood(drawing: Drawing, *, held_out: str | None = None) -> tuple[Likelihood, Path]:
    """The bound on as many images as the config says; also written to likelihood.json in the run folder.

    The variance is config.variance, or the learned one; config.clip bounds the estimates of x_0. held_out: spec of a source that
    the run was not trained on; None: the run's own data. An image's noise goes by its number: neither the devices nor batch_size
    change more than rounding does.

    Raises:
        UserError: points, pixels that are not scaled to [-1, 1], flow matching, a chain that does not end at clean data, fewer
            images than asked for, no checkpoint, a folder that cannot be written to.
        NotFiniteError: a term of the bound is NaN or infinity.
    """
    check_drawing(drawing)
    run, config, layout, seed = drawing.run, drawing.config, drawing.layout, drawing.seed
    process = _bounded(run)
    check_writable(run.results)
    x_0, labels, told = _images(run, config.num, seed, held_out)
    step, size = drawing.step, min(drawing.batch_size, len(x_0))
    variance: Variance = "learned" if process.learned_variance else getattr(config.sampler, "variance", "beta")
    bounded = replace(SampleConfig(), clip=config.clip)
    priors, terms = [], []
    keys = np.asarray(jax.random.key_data(noise.sample_keys(seed, len(x_0))))
    starts = range(0, len(x_0), size)
    for start in progress.each(starts, len(starts), "the bound", unit="batch"):
        # filled up, so that one program serves all batches and all devices
        part = np.arange(start, start + layout.rounded_up(size)) % len(x_0)
        of_batch = None if labels is None else layout.deal(labels[part])
        batch = layout.deal((x_0[part], keys[part]))
        denoise, shown = drawing.network.with_labels(of_batch), run.shown(x_0[part])
        denoise = believed(denoise if shown is None else denoise.beside(layout.deal(shown)), bounded)
        prior, term = map(
            layout.gather, _compiled(denoise, batch[0], noise.as_keys(batch[1], len(part)), variance=variance)
        )
        count = min(size, len(x_0) - start)
        priors.append(prior.astype(np.float64)[:count])
        terms.append(term.astype(np.float64)[:, :count])
    of_prior, of_terms = np.concatenate(priors), np.concatenate(terms, axis=1)
    _check_finite(of_terms, process)
    total = of_prior + of_terms.sum(axis=0)
    facts = {
        "step": step,
        "weights": run.weights_at(step),
        "images": f"{len(x_0)} {told}",
        "seed": seed,
        "variance": variance,
        "clip": config.clip,
    }
    found = Likelihood(
        facts,
        float(total.mean()),
        float(total.std() / np.sqrt(len(total))),
        float(of_prior.mean()),
        tuple(float(value) for value in of_terms.mean(axis=1)),
    )
    return found, save(run, "likelihood.json", found.json())


def _bounded(run: Run) -> GaussianDiffusion:
    """The process of a run that has a bound on the likelihood of its images."""
    process = run.process
    if not run.holds_images or run.config.data.scale != "signed":
        raise UserError(f"the likelihood is of 8-bit images in [-1, 1]; {run.folder} holds other data.")
    if not isinstance(process, GaussianDiffusion):
        raise UserError(f"the variational bound belongs to process.kind = diffusion; got {process.name}.")
    if process.schedule.first and process.schedule.alphas_cumprod[0] != 1:
        raise UserError(f"the schedule {process.schedule.title} does not end at clean data, so it has no bound.")
    return process


def _check_finite(terms: np.ndarray, process: GaussianDiffusion) -> None:
    bad = ~np.isfinite(terms)
    if bad.any():
        of_images, times = np.count_nonzero(bad.any(axis=0)), process.schedule.first + np.flatnonzero(bad.any(axis=1))
        raise NotFiniteError(
            f"the bound of {of_images} of {terms.shape[1]} images is NaN or infinite: {len(times)} of {len(terms)} terms, "
            f"the first at t = {times[0]}. Try clip = 1, another variance or other weights: these may be damaged."
        )


def _images(run: Run, num: int, seed: int, held_out: str | None) -> tuple[np.ndarray, np.ndarray | None, str]:
    source, how = open_data(run, held_out)
    if len(source) < num:
        raise UserError(f"num must be at most {len(source)}, the images of {source.name}; got {num}.")
    images, labels = load_images(run, source, seed, num)
    return run.scaling.apply(images), labels if run.class_names else None, f"of {source.name}, {how}"
