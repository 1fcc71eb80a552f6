"""Pictures of runs: titled grids of samples, denoising animations, loss curves."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ddpm_jax.files import write_atomically

MARGIN = 4
CELL = 64
"""Least side of an image in a grid, in pixels: smaller images are enlarged by a whole factor."""


def grid(
    images: np.ndarray, titles: Sequence[str] = (), *, heading: str = "", columns: int | None = None
) -> Image.Image:
    """Images in rows and columns, a title over each.

    images: uint8 (N, H, W, C), C 1 or 3. titles: N strings, or none. columns: about the square root of N unless given.
    """
    count, height, width = images.shape[:3]
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    scale = max(1, math.ceil(CELL / max(height, width)))
    font, large = ImageFont.load_default(13), ImageFont.load_default(16)
    title_height = 17 if len(titles) else 0
    top = 28 if heading else 0
    cell_width, cell_height = width * scale + MARGIN, height * scale + title_height + MARGIN
    # a heading may be wider than a few small images
    total_width = max(columns * cell_width + MARGIN, int(large.getlength(heading)) + 4 * MARGIN)
    left = (total_width - columns * cell_width + MARGIN) // 2
    canvas = Image.new("RGB", (total_width, rows * cell_height + MARGIN + top), "white")
    draw = ImageDraw.Draw(canvas)
    if heading:
        draw.text((total_width // 2, top // 2 + 2), heading, fill="black", font=large, anchor="mm")
    for index, image in enumerate(images):
        x, y = left + index % columns * cell_width, top + MARGIN + index // columns * cell_height
        if len(titles):
            draw.text(
                (x + width * scale // 2, y + title_height // 2), titles[index], fill="black", font=font, anchor="mm"
            )
        pixels = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
        canvas.paste(pixels.resize((width * scale, height * scale), Image.Resampling.NEAREST), (x, y + title_height))
    return canvas


def save_grid(
    path: Path, images: np.ndarray, titles: Sequence[str] = (), *, heading: str = "", columns: int | None = None
) -> Path:
    """Write `grid(...)` as a PNG."""
    picture = grid(images, titles, heading=heading, columns=columns)
    return write_atomically(path, picture.save)


def save_animation(
    path: Path,
    frames: np.ndarray,
    titles: Sequence[str] = (),
    *,
    headings: Sequence[str] = (),
    columns: int | None = None,
    frame_ms: int = 80,
) -> Path:
    """Write a GIF of grids that rests on its last frame. frames: uint8 (K, N, H, W, C); headings: one for each frame."""
    pictures = [
        grid(images, titles, heading=headings[k] if len(headings) else "", columns=columns)
        for k, images in enumerate(frames)
    ]
    durations = [frame_ms] * (len(pictures) - 1) + [2000]
    first, *rest = pictures
    return write_atomically(
        path, lambda p: first.save(p, save_all=True, append_images=rest, duration=durations, loop=0, optimize=True)
    )


def save_loss_curve(path: Path, metrics: Sequence[dict[str, Any]]) -> Path:
    """Write the loss by step as a PNG: as recorded, and smoothed. metrics: the lines of metrics.jsonl."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, ScalarFormatter

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
    return write_atomically(path, lambda p: figure.savefig(p, dpi=120))


def _smoothed(values: np.ndarray) -> np.ndarray:
    """Mean over a centred window of a tenth of the curve, narrower towards its ends, so that neither end is bent."""
    sums = np.append(0.0, np.cumsum(values))
    index = np.arange(len(values))
    reach = np.minimum(np.minimum(index, index[::-1]), len(values) // 20)
    return (sums[index + reach + 1] - sums[index - reach]) / (2 * reach + 1)
