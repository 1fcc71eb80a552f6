"""`ddpm edit`: edit images, the run's own or any file's, with the run's network; leaves the images and a picture of before and
after.
"""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from ddpm_jax import editing, figures, progress
from ddpm_jax.condition import HALVES, hidden
from ddpm_jax.data.decoding import BadImageError, decode_image, read_file
from ddpm_jax.data.geometry import fit
from ddpm_jax.denoisers import Denoiser
from ddpm_jax.errors import UserError, meant
from ddpm_jax.files import check_writable, together, write_atomically
from ddpm_jax.presets import EditConfig, SampleConfig
from ddpm_jax.training import Run
from ddpm_jax.training.objective import check
from ddpm_jax.training.samples import believed

KINDS = ("inpaint", "vary", "interpolate")


class _Edited(NamedTuple):
    """What came of an edit, and the picture's rows: images as the network sees them."""

    x_0: Any
    before: list[np.ndarray]
    titles: list[str]


def edit(run: Run, kind: str, folder: Path, config: SampleConfig, how: EditConfig | None = None) -> list[Path]:
    """Edit images and write edit.npz and edit.png; returns their paths.

    kind: `inpaint` draws what the mask hides, `vary` noises an image part of the way and denoises it, `interpolate` walks between
    neighbouring images. config: steps, sampler and spacing of `vary`, clip, how many of the run's own images, and how many
    `interpolate` draws. how: None for an EditConfig's defaults.

    Raises:
        UserError: an unknown kind, a config that does not fit the run's, points, a file that is no image, a mask of another size,
            numbers out of range, or a folder that cannot be written to.
    """
    how = how or EditConfig()
    if kind not in KINDS:
        raise UserError(f"an edit must be one of {', '.join(KINDS)}; got {kind!r}.{meant(kind, KINDS)}")
    check(replace(run.config, sample=config))
    if not run.holds_images:
        raise UserError(f"edits are of images, and {run.folder} is of points.")
    least = 2 if kind == "interpolate" else 1
    if how.images and len(how.images) < least:
        raise UserError(f"{kind} needs at least {least} images; got {len(how.images)}.")
    if kind == "interpolate" and run.condition is not None:
        raise UserError(
            f"interpolate needs a run without data.condition, as two images have two; got {run.condition!r}."
        )
    check_writable(folder)
    away = hidden_by(run, how.mask) if kind == "inpaint" else np.zeros(0)
    x_0, own = images_of(run, how.images, max(config.num, least), how.seed)
    found: Any = run.labels(len(x_0), how.labels) if how.labels or own is None else own
    variables, step = run.load_variables()
    network = run.denoiser(found, variables=variables, shown=run.shown(x_0))
    if kind == "inpaint":
        edited = _inpainted(run, believed(network, config), x_0, away, config, how)
    elif kind == "vary":
        edited = _varied(believed(network, config), x_0, config, how)
    else:
        edited = _interpolated(network, x_0, found, config)
    result = run.to_data(edited.x_0)
    shown = np.concatenate([*map(run.to_data, edited.before), result])
    columns = len(result) // len(edited.titles) if kind == "interpolate" else len(x_0)
    arrays: dict[str, Any] = {"images": result} | ({} if found is None else {"labels": np.asarray(found)})
    heading = f"{run.folder.name}, step {step}, {kind}"
    with together():
        return [
            write_atomically(folder / "edit.npz", lambda path: np.savez_compressed(path, allow_pickle=False, **arrays)),
            figures.save_grid(folder / "edit.png", shown, heading=heading, columns=columns, row_titles=edited.titles),
        ]


def _inpainted(
    run: Run, denoise: Denoiser, x_0: np.ndarray, away: np.ndarray, config: SampleConfig, how: EditConfig
) -> _Edited:
    options: dict[str, Any] = {"num_steps": config.steps, "resample": how.resample, "jump": how.jump}
    with progress.bar(len(x_0), "inpainting, to be compiled first", unit="image"):
        edited = editing.inpaint(denoise, how.seed, x_0, away, **options)
    grey = run.scaling.apply(np.full_like(run.to_data(x_0), 127))
    left = np.where(editing.fitting_mask(away, x_0.shape), grey, x_0)
    return _Edited(edited, [x_0, left], ["before", "shown", "after"])


def _varied(denoise: Denoiser, x_0: np.ndarray, config: SampleConfig, how: EditConfig) -> _Edited:
    options: dict[str, Any] = {"num_steps": config.steps, "sampler": config.sampler, "spacing": config.spacing}
    with progress.bar(len(x_0), "varying, to be compiled first", unit="image"):
        return _Edited(
            editing.vary(denoise, how.seed, x_0, strength=how.strength, **options), [x_0], ["before", "after"]
        )


def _interpolated(network: Denoiser, x_0: np.ndarray, labels: Any, config: SampleConfig) -> _Edited:
    """Neither guided nor bounded: what is walked up has to come down again."""
    between = max(config.num, 2)
    pairs = progress.each(itertools.pairwise(x_0), len(x_0) - 1, "interpolating, to be compiled first", unit="pair")
    ways = [
        editing.interpolate(
            network if labels is None else network.with_labels(labels[i]), a, b, between, num_steps=config.steps
        )
        for i, (a, b) in enumerate(pairs)
    ]
    return _Edited(jnp.concatenate(ways), [], [""] * len(ways))


def images_of(run: Run, files: Sequence[Path], num: int, seed: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Images as the network sees them, num of the run's own where there are no files, and their labels where they are.

    Raises:
        UserError: a file that is no image, or a run without data of its own.
    """
    size, _, channels = run.shape
    if files:
        return run.scaling.apply(np.stack([fit(read_image(path), size, channels) for path in files])), None
    batch = run.first_batch(num, seed)
    return batch["x_0"], batch["label"] if run.class_names else None


def read_image(path: Path) -> np.ndarray:
    """The pixels of an image file, uint8 (H, W, 1 or 3).

    Raises:
        UserError: it cannot be read as one.
    """
    try:
        return decode_image(read_file(path))
    except BadImageError as error:
        raise UserError(f"{path}: not a readable image ({error}).") from error


def hidden_by(run: Run, mask: str) -> np.ndarray:
    """Where a mask hides the run's images, (H, W): one of HALVES, or an image file that is white there.

    Raises:
        UserError: it is neither.
    """
    size = run.shape[0]
    if mask not in HALVES:
        if not Path(mask).exists():
            raise UserError(
                f"mask must be one of {', '.join(HALVES)}, or an image file; got {mask!r}.{meant(mask, HALVES)}"
            )
        return fit(read_image(Path(mask)), size, 1)[..., 0] > 127
    return hidden(mask, size, size)
