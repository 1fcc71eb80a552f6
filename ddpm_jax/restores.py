"""`ddpm restore`: whole images from what a linear operator left of them, with a run's network; leaves them and a picture."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from ddpm_jax import display, figures, posterior, progress, samplers
from ddpm_jax.denoisers import Denoiser
from ddpm_jax.edits import hidden_by, images_of, read_image
from ddpm_jax.errors import UserError
from ddpm_jax.files import check_writable, together, write_atomically
from ddpm_jax.operators import Mask, Operator
from ddpm_jax.presets import RestoreConfig, SampleConfig
from ddpm_jax.training import Run
from ddpm_jax.training.objective import check
from ddpm_jax.training.samples import believed


@dataclass(frozen=True)
class _Problem:
    """What is to be restored, as the network sees it."""

    y: np.ndarray
    """Measurements, (B, ...)."""
    whole: np.ndarray | None
    """The images that they are of, where those are known."""
    labels: Any
    """Their classes, where they have any that are known."""

    __repr__ = display.of_fields


def restore(
    run: Run, images: Sequence[Path], folder: Path, config: SampleConfig, how: RestoreConfig | None = None
) -> list[Path]:
    """Restore images and write restore.npz and restore.png; returns their paths.

    images: files of measurements; or of whole images, with `how.degrade`; none: num of the run's own, degraded. config: sampler,
    steps, spacing, guidance, clip, and how many of the run's own images. how: None for a RestoreConfig's defaults.

    Raises:
        UserError: points, an operator that is unknown or does not fit the run's images, a config that does not fit the run's, a
            file that is no image or has another size or colours than the operator gives, classes that are not told, or a folder
            that cannot be written to.
        NotFiniteError: what is drawn holds NaN or infinity.
    """
    how = how or RestoreConfig()
    check(replace(run.config, sample=config))
    if not run.holds_images:
        raise UserError(f"what is restored are images, and {run.folder} is of points.")
    operator = operator_of(how.operator, run)
    if run.condition is not None and images and not how.degrade:
        raise UserError(
            f"{run.folder} is shown {run.condition!r} of an image, which must be whole for that: give whole images with --degrade."
        )
    check_writable(folder)
    posed = _posed(run, operator, images, config.num, how)
    variables, step = run.load_variables()
    shown = None if posed.whole is None else run.shown(posed.whole)
    denoise = _told(run.denoiser(posed.labels, variables=variables, shown=shown), operator, posed.y, config, how)
    shape = (len(posed.y), *run.shape)
    with progress.bar(len(posed.y), "restoring, to be compiled first", unit="image"):
        x_0 = samplers.sample(denoise, config.sampler, how.seed, shape, config.steps, spacing=config.spacing)
    away = np.sqrt(np.mean((np.asarray(operator(x_0)) - posed.y) ** 2))
    heading = f"{run.folder.name}, step {step}, {how.operator} by {how.method.name}: {away:.2g} from the measurement"
    result = run.to_data(x_0)
    rows = {"measured": _enlarged(run, posed.y), "restored": result}
    rows |= {} if posed.whole is None else {"whole": run.to_data(posed.whole)}
    rows = {title: row for title, row in rows.items() if row is not None}
    arrays: dict[str, Any] = {"images": result, "measured": posed.y}
    arrays |= {} if posed.whole is None else {"whole": rows["whole"]}
    arrays |= {} if posed.labels is None else {"labels": np.asarray(posed.labels)}
    options: dict[str, Any] = {"columns": len(result), "row_titles": [*rows]}
    with together():
        return [
            write_atomically(
                folder / "restore.npz", lambda path: np.savez_compressed(path, allow_pickle=False, **arrays)
            ),
            figures.save_grid(folder / "restore.png", np.concatenate([*rows.values()]), heading=heading, **options),
        ]


def operator_of(text: str, run: Run) -> Operator:
    """The operator that NAME or NAME:VALUE stands for, the value being that of its first field, and of a mask its name or a file.

    Raises:
        UserError: an unknown name, a value of another type, or an operator that cannot be applied to the run's images.
    """
    name, _, value = text.partition(":")
    kind = Operator.member(name)
    if issubclass(kind, Mask):
        return kind(hidden_by(run, value or "middle")[None, :, :, None])
    operator: Operator = kind(*([_as_first_field(kind, value)] if value else []))
    operator.measured((1, *run.shape))
    return operator


def _as_first_field(kind: type[Operator], value: str) -> Any:
    field = fields(kind)[0]  # type: ignore[arg-type]
    default: Any = field.default
    try:
        if isinstance(default, tuple):
            return tuple(map(float, value.split(",")))
        return type(default)(value)
    except ValueError as error:
        wanted = {int: "a whole number", float: "a number"}.get(type(default), "numbers, with commas between")
        raise UserError(f"operator {kind.name}:{field.name.upper()} needs {wanted}; got {value!r}.") from error


def _posed(run: Run, operator: Operator, images: Sequence[Path], num: int, how: RestoreConfig) -> _Problem:
    if images and not how.degrade:
        y = run.scaling.apply(np.stack([_measurement(path, run, operator, how.operator) for path in images]))
        if isinstance(operator, Mask):
            y = np.asarray(operator(jnp.asarray(y)))  # whatever the file has where nothing is seen
        return _Problem(y, None, _labels(run, len(y), how.labels, None))
    whole, own = images_of(run, images, num, how.seed)
    y = np.asarray(operator(jnp.asarray(whole)))
    drawn = np.random.default_rng(how.seed).standard_normal(y.shape)
    y = (y + how.noise * drawn).astype(np.float32)
    if isinstance(operator, Mask):
        y = np.asarray(operator(jnp.asarray(y)))
    return _Problem(y, whole, _labels(run, len(y), how.labels, own))


def _labels(run: Run, num: int, wanted: tuple[str, ...], own: Any) -> Any:
    """The classes that are named, or the run's own; the one that stands for none where neither is known."""
    if wanted or own is not None or not run.class_names:
        return run.labels(num, wanted) if wanted or own is None else own
    if run.null_label is None:
        raise UserError(
            f"labels must say the images' classes: {run.folder} was trained with all labels shown (train.label_dropout = 0) and "
            "knows no missing one. Pass --labels."
        )
    return np.full(num, run.null_label, np.int32)


def _measurement(path: Path, run: Run, operator: Operator, text: str) -> np.ndarray:
    """A file's pixels, which have the size and the colours that the operator gives."""
    found, (_, *expected) = read_image(path), operator.measured((1, *run.shape))
    if list(found.shape) != expected:
        said = [f"{h} x {w} in {'grey' if c == 1 else 'colour'}" for h, w, c in (expected, found.shape)]
        raise UserError(
            f"{path}: a measurement by {text} must be {said[0]}; got {said[1]}. Of a whole image --degrade makes one."
        )
    return found


def _told(network: Denoiser, operator: Operator, y: np.ndarray, config: SampleConfig, how: RestoreConfig) -> Denoiser:
    """Guided within, bounded without: what is clipped has no gradient."""
    guided = believed(network, replace(config, clip=None, threshold=None))
    told = posterior.conditioned(guided, operator, jnp.asarray(y), noise=how.noise, method=how.method)
    return believed(told, replace(config, guidance=1.0))


def _enlarged(run: Run, y: np.ndarray) -> np.ndarray | None:
    """Measurements that are images, as such of the run's size."""
    height, width, channels = run.shape
    if y.ndim != 4 or height % y.shape[1] or width % y.shape[2] or channels % y.shape[3]:
        return None
    shown = run.to_data(y)
    for axis, size in enumerate(run.shape, start=1):
        shown = np.repeat(shown, size // shown.shape[axis], axis=axis)
    return shown
