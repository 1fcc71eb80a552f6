"""Evaluate a run: draw samples, hold them against its data, write what was found."""

import json
from pathlib import Path

import numpy as np

from ddpm_jax import data
from ddpm_jax.data.geometry import fit
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation.agreement import Agreement, class_agreement
from ddpm_jax.files import write_atomically
from ddpm_jax.presets import SampleConfig
from ddpm_jax.training import Run
from ddpm_jax.training.samples import draw

MOST_REAL = 10_000
"""Real images that the classifier is trained and tested on, at most."""


def evaluate_run(run: Run, config: SampleConfig, *, seed: int = 0, batch_size: int = 500) -> tuple[Agreement, Path]:
    """Class agreement of config.num samples, an equal number of each class; also written to evaluation.json in the run folder.

    Raises:
        UserError: the run is unconditional, has no checkpoint, its data is gone, or a class has too few images or samples.
    """
    count = len(run.class_names)
    if not count:
        raise UserError(f"{run.folder} is trained without classes; class agreement needs a conditional run.")
    if config.num < count:
        raise UserError(f"num must be at least {count}, one sample for each class; got {config.num}.")
    real_images, real_labels = _real(run, seed)
    graphdef, variables, step = run.load()
    labels = run.labels(config.num)
    assert labels is not None
    samples = draw(run, graphdef, variables, labels, config.num, config=config, seed=seed, batch_size=batch_size)
    agreement = class_agreement(samples.values, labels, real_images, real_labels, seed=seed)
    report = {
        "step": step,
        "samples": config.num,
        "sampler": config.sampler,
        "sampler_steps": len(run.process.times(config.steps)) - 1,
        "seed": seed,
        "weights": "ema",
        "data": run.config.data.source,
        "class_agreement": agreement.samples,
        "classifier_accuracy_on_held_out_real_images": agreement.real,
        "class_agreement_by_class": {run.class_names[label]: share for label, share in agreement.by_class.items()},
    }
    text = json.dumps(report, indent=2) + "\n"
    return agreement, write_atomically(run.folder / "evaluation.json", lambda path: path.write_text(text))


def _real(run: Run, seed: int) -> tuple[np.ndarray, np.ndarray]:
    source = data.open_source(run.config.data.source, on_bad_image=run.config.data.on_bad_image)
    order = np.random.default_rng(seed).permutation(len(source))[:MOST_REAL]
    elements = [source[int(index)] for index in order]
    labels = np.array([element["label"] for element in elements])
    least = np.bincount(labels).min()
    if least < 5:
        raise UserError(f"class agreement needs at least 5 images of each class; {source.name} has one with {least}.")
    size, _, channels = run.shape
    return np.stack([fit(element["image"], size, channels) for element in elements]), labels
