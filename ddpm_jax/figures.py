"""How pictures are drawn: titled grids of images, scatters of points, animations, curves."""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ddpm_jax.checks import whole
from ddpm_jax.errors import UserError
from ddpm_jax.files import write_atomically

MARGIN = 4
"""Pixels between the images of a grid."""
CELL = 64
"""Least side of an image in a grid, in pixels: smaller images are enlarged by a whole factor."""
FRAME_MS, LAST_FRAME_MS = 80, 2000
"""How long a picture of an animation is shown, and how long the last one."""


def grid(
    images: np.ndarray,
    titles: Sequence[str] = (),
    *,
    heading: str = "",
    columns: int | None = None,
    row_titles: Sequence[str] = (),
) -> Image.Image:
    """Images in rows and columns, a title over each, or one beside each row.

    images: uint8 (N, H, W, C), C 1 or 3. titles: N strings, or none. columns: about the square root of N unless given.

    Raises:
        UserError: images of another type or shape; `data.to_images` makes uint8 of what a network draws.
    """
    images = np.asarray(images)
    if not images.size or images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise UserError(f"images must be uint8 (N, H, W, 1 or 3); got {images.dtype} of shape {images.shape}.")
    count, height, width = images.shape[:3]
    if len(titles) not in (0, count):
        raise UserError(f"titles must be {count}, one for each image, or none; got {len(titles)}.")
    if columns is not None and whole("columns", columns) < 1:
        raise UserError(f"columns must be at least 1, or None; got {columns}.")
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    scale = max(1, math.ceil(CELL / max(height, width)))
    font, large = ImageFont.load_default(13), ImageFont.load_default(16)
    title_height = 17 if len(titles) else 0
    top = 28 if heading else 0
    cell_width, cell_height = width * scale + MARGIN, height * scale + title_height + MARGIN
    beside = max((int(font.getlength(title)) + 3 * MARGIN for title in row_titles), default=0)
    # a heading may be wider than a few small images
    total_width = max(beside + columns * cell_width + MARGIN, int(large.getlength(heading)) + 4 * MARGIN)
    left = (total_width - beside - columns * cell_width + MARGIN) // 2 + beside
    canvas = Image.new("RGB", (total_width, rows * cell_height + MARGIN + top), "white")
    draw = ImageDraw.Draw(canvas)
    if heading:
        draw.text((total_width // 2, top // 2 + 2), heading, fill="black", font=large, anchor="mm")
    for row, title in enumerate(row_titles):
        middle = top + MARGIN + row * cell_height + title_height + height * scale // 2
        draw.text((left - 2 * MARGIN, middle), title, fill="black", font=font, anchor="rm")
    for index, image in enumerate(images):
        x, y = left + index % columns * cell_width, top + MARGIN + index // columns * cell_height
        if len(titles):
            draw.text(
                (x + width * scale // 2, y + title_height // 2), titles[index], fill="black", font=font, anchor="mm"
            )
        pixels = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
        canvas.paste(pixels.resize((width * scale, height * scale), Image.Resampling.NEAREST), (x, y + title_height))
    return canvas


def save_grid(path: Path, images: np.ndarray, titles: Sequence[str] = (), **options: Any) -> Path:
    """Write `grid(images, titles, **options)` as a PNG."""
    return write_atomically(path, grid(images, titles, **options).save)


def save_animation(
    path: Path,
    frames: np.ndarray,
    titles: Sequence[str] = (),
    *,
    headings: Sequence[str] = (),
    columns: int | None = None,
) -> Path:
    """Write a GIF of grids that rests on its last frame. frames: uint8 (K, N, H, W, C); headings: one for each frame."""
    if not len(frames):
        raise UserError("frames must be one grid of images or more; got none.")
    pictures = [
        grid(images, titles, heading=headings[k] if len(headings) else "", columns=columns)
        for k, images in enumerate(frames)
    ]
    return _save_gif(path, pictures)


def _save_gif(path: Path, pictures: Sequence[Image.Image]) -> Path:
    durations = [FRAME_MS] * (len(pictures) - 1) + [LAST_FRAME_MS]
    first, *rest = pictures
    return write_atomically(
        path, lambda p: first.save(p, save_all=True, append_images=rest, duration=durations, loop=0, optimize=True)
    )


def scatter(data: np.ndarray, samples: np.ndarray, *, heading: str = "") -> Image.Image:
    """Samples (red) over data (grey), both (N, 2)."""
    (picture,) = _scatters(data, samples[None], [heading], reach=_reach(data, samples))
    return picture


def save_scatter(path: Path, data: np.ndarray, samples: np.ndarray, *, heading: str = "") -> Path:
    """Write `scatter(data, samples, heading=heading)` as a PNG."""
    return write_atomically(path, scatter(data, samples, heading=heading).save)


def save_scatter_animation(path: Path, data: np.ndarray, frames: np.ndarray, *, headings: Sequence[str] = ()) -> Path:
    """Write a GIF of scatters that rests on its last frame. data: (N, 2); frames: (K, M, 2); headings: one for each frame."""
    reach = _reach(data, frames.reshape(-1, 2))
    return _save_gif(path, _scatters(data, frames, headings or [""] * len(frames), reach=reach))


def _reach(data: np.ndarray, samples: np.ndarray) -> float:
    """How far the axes go: to the last of the data, or to where all but a hundredth of the samples are."""
    far = float(np.quantile(np.abs(samples), 0.99))
    return 1.1 * max(far, float(np.abs(data).max(initial=0.0)))


def _scatters(data: np.ndarray, frames: np.ndarray, headings: Sequence[str], *, reach: float) -> list[Image.Image]:
    """A picture for each of the frames, all drawn with the axes of the first: to lay them out is what takes long."""
    for name, points in (("data", data), ("samples", frames[0])):
        if points.ndim != 2 or points.shape[1] != 2:
            raise UserError(f"{name} must be points (N, 2); got the shape {points.shape}.")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 5), dpi=100, layout="constrained")
    axes = figure.subplots()
    axes.scatter(data[:, 0], data[:, 1], s=4, color="0.75", linewidths=0, label="data" if len(data) else None)
    moving = axes.scatter(frames[0, :, 0], frames[0, :, 1], s=4, color="tab:red", linewidths=0, label="samples")
    axes.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
    figure.legend(loc="outside lower center", ncols=2, markerscale=3, frameon=False)
    canvas = FigureCanvasAgg(figure)
    pictures = []
    for frame, heading in zip(frames, headings, strict=True):
        moving.set_offsets(frame)
        axes.set_title(heading)
        canvas.draw()
        figure.set_layout_engine("none")  # it is laid out by now
        pictures.append(Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3]))
    return pictures


def save_curves(path: Path, x: np.ndarray, curves: Mapping[str, np.ndarray], *, heading: str = "", xlabel: str) -> Path:
    """Write curves, name -> (N,), over x (N,) on a logarithmic axis as a PNG; what is not positive is left out."""
    above = {name: np.where(values > 0, values, np.nan) for name, values in curves.items()}
    figure = _curves(x, above, heading=heading, xlabel=xlabel, yscale="log", size=(7, 4))
    return write_atomically(path, lambda p: figure.savefig(p, dpi=120))


def curves_png(x: np.ndarray, curves: Mapping[str, np.ndarray], *, xlabel: str) -> bytes:
    """A small picture of curves, name -> (N,), over x (N,), as the bytes of a PNG: for a notebook's page."""
    return _png(_curves(x, curves, heading="", xlabel=xlabel, yscale="linear", size=(4.5, 2.5)))


def _curves(
    x: np.ndarray,
    curves: Mapping[str, np.ndarray],
    *,
    heading: str,
    xlabel: str,
    yscale: str,
    size: tuple[float | int, float | int],
) -> Any:
    from matplotlib.figure import Figure  # without pyplot, whose state is the caller's

    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    for name, values in curves.items():
        axes.plot(x, values, label=name)
    axes.set(xlabel=xlabel, yscale=yscale, title=heading)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return figure


def _png(figure: Any) -> bytes:
    held = io.BytesIO()
    figure.savefig(held, format="png", dpi=90)
    return held.getvalue()


def as_png(picture: Image.Image) -> bytes:
    """A picture as the bytes of a PNG: for a notebook's page."""
    held = io.BytesIO()
    picture.save(held, format="png")
    return held.getvalue()


def save_loss_curve(path: Path, metrics: Sequence[dict[str, Any]]) -> Path:
    """Write the loss by step as a PNG: as recorded, and smoothed. metrics: the lines of metrics.jsonl; those without a loss are
    left out."""
    figure = _loss_curve(metrics)
    return write_atomically(path, lambda p: figure.savefig(p, dpi=120))


def loss_png(metrics: Sequence[dict[str, Any]]) -> bytes:
    """The picture of `save_loss_curve`, small, as the bytes of a PNG."""
    figure = _loss_curve(metrics)
    figure.set_size_inches(4.5, 2.5)
    return _png(figure)


def _loss_curve(metrics: Sequence[dict[str, Any]]) -> Any:
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, ScalarFormatter

    metrics = [line for line in metrics if line["loss"] is not None]
    steps = np.array([line["step"] for line in metrics], float)
    loss = np.array([line["loss"] for line in metrics], float)
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(steps, loss, color="#9bb7d4", linewidth=1, label="as recorded")
    axes.plot(steps, _smoothed(loss), color="#1f4e79", label="smoothed")
    axes.set(xlabel="step", ylabel="training loss", yscale="log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_formatter("")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return figure


def _smoothed(values: np.ndarray) -> np.ndarray:
    """Mean over a centred window of a tenth of the curve, narrower towards its ends, so that neither end is bent."""
    sums = np.append(0.0, np.cumsum(values))
    index = np.arange(len(values))
    reach = np.minimum(np.minimum(index, index[::-1]), len(values) // 20)
    return (sums[index + reach + 1] - sums[index - reach]) / (2 * reach + 1)
