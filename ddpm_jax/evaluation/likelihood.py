"""Bits per dimension of 8-bit images by the variational bound, term by term (Ho et al. 2020, section 3; Nichol & Dhariwal 2021)."""

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ddpm_jax import bound, models, samplers
from ddpm_jax.compilation import jit
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation.report import load_images, open_data, save
from ddpm_jax.files import check_writable
from ddpm_jax.parallel import ALONE, Layout
from ddpm_jax.presets import SampleConfig
from ddpm_jax.processes import GaussianDiffusion, Predict, Variance
from ddpm_jax.training import Run


@dataclass(frozen=True)
class Bound:
    """The bound on -log2 p(x_0) of each example and its terms, in bits per dimension."""

    prior: Float[Array, "b"]
    """KL(q(x_T | x_0) || N(0, 1))."""
    terms: Float[Array, "T b"]
    """By timestep, ascending; the first one is the decoder's."""

    @property
    def total(self) -> Float[Array, "b"]:
        """The sum of all of them."""
        return self.prior + self.terms.sum(axis=0)


def variational_bound(
    process: GaussianDiffusion,
    predict: Predict,
    x_0: Float[Array, "b *shape"],
    noise: Callable[[jax.Array], Float[Array, "b *shape"]],
    *,
    variance: Variance = "posterior",
    clip: float | None = 1.0,
    self_conditioned: bool = False,
) -> Bound:
    """Every term of the bound, one draw of x_t at each timestep, as one scan; traceable.

    x_0: 8-bit data in [-1, 1]. noise(i): that of the i-th timestep, of the shape of x_0. clip: bound on the estimate of x_0.
    """
    schedule = process.schedule

    def term(_, i):
        t = jnp.full(x_0.shape[:1], schedule.first) + i
        x_t = process.add_noise(x_0, noise(i), t)
        guess = jnp.zeros_like(x_t) if self_conditioned else None
        hat = samplers.denoise(process, predict, x_t, t, clip, guess=guess)
        return None, process.bound_term(hat, x_0, x_t, t, variance)

    _, terms = jax.lax.scan(term, None, jnp.arange(schedule.num_steps))
    return Bound(bound.prior(x_0, float(schedule.alphas_cumprod[-1])), terms)


@functools.partial(jit, static_argnames=("process", "graphdef", "settings"))
def _compiled(process, graphdef, variables, x_0, labels, key, *, settings):
    def predict(x_t, t):
        return models.apply(graphdef, variables, x_t, t, labels)[0]

    def noise(i):
        return jax.random.normal(jax.random.fold_in(key, i), x_0.shape)

    found = variational_bound(process, predict, x_0, noise, **dict(settings))
    return found.prior, found.terms


@dataclass(frozen=True)
class Likelihood:
    """The bound averaged over images, and how it was measured."""

    facts: dict[str, Any]
    bits_per_dim: float
    standard_error: float
    """Of that mean, over images."""
    prior: float
    terms: tuple[float, ...]
    """By timestep, ascending; the first one is the decoder's."""

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


def evaluate_likelihood(
    run: Run,
    config: SampleConfig,
    *,
    seed: int = 0,
    batch_size: int = 100,
    held_out: str | None = None,
    layout: Layout = ALONE,
) -> tuple[Likelihood, Path]:
    """The bound on config.num images; also written to likelihood.json in the run folder.

    The variance is config.variance, or the learned one; config.clip bounds the estimates of x_0. held_out: spec of a source that
    the run was not trained on; None: the run's own data. layout: the devices that share each batch.

    Raises:
        UserError: points, pixels that are not scaled to [-1, 1], flow matching, a chain that does not end at clean data, fewer
            images than asked for, no checkpoint, a folder that cannot be written to.
    """
    process = run.process
    if not run.holds_images or run.config.data.scale != "signed":
        raise UserError(f"the likelihood is of 8-bit images in [-1, 1]; {run.folder} holds other data.")
    if not isinstance(process, GaussianDiffusion):
        raise UserError(f"the variational bound belongs to process.kind = diffusion; got {run.config.process.kind}.")
    if process.schedule.first and process.schedule.alphas_cumprod[0] != 1:
        raise UserError(f"the schedule {run.config.process.schedule} does not end at clean data, so it has no bound.")
    check_writable(run.folder)
    x_0, labels, told = _images(run, config.num, seed, held_out)
    graphdef, variables, step = run.load(layout)
    variance: Variance = "learned" if process.learned_variance else config.variance
    if variance == "learned" and not process.learned_variance:
        raise UserError("variance = learned needs a network trained with model.learn_variance.")
    settings = (("variance", variance), ("clip", config.clip), ("self_conditioned", run.inputs.self_conditioned))
    size = min(batch_size, len(x_0))
    priors, terms = [], []
    for start in range(0, len(x_0), size):
        # filled up, so that one program serves all batches and all devices
        part = np.arange(start, start + layout.rounded_up(size)) % len(x_0)
        key = jax.random.fold_in(jax.random.key(seed), start // size)
        batch = layout.deal((jnp.asarray(x_0[part]), None if labels is None else jnp.asarray(labels[part])))
        prior, term = map(layout.gather, _compiled(process, graphdef, variables, *batch, key, settings=settings))
        count = min(size, len(x_0) - start)
        priors.append(prior.astype(np.float64)[:count])
        terms.append(term.astype(np.float64)[:, :count])
    of_prior, of_terms = np.concatenate(priors), np.concatenate(terms, axis=1)
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


def _images(run: Run, num: int, seed: int, held_out: str | None) -> tuple[np.ndarray, np.ndarray | None, str]:
    source, how = open_data(run, held_out)
    if len(source) < num:
        raise UserError(f"num must be at most {len(source)}, the images of {source.name}; got {num}.")
    images, labels = load_images(run, source, seed, num)
    return run.scaling.apply(images), labels if run.class_names else None, f"of {source.name}, {how}"
