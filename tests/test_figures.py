"""ddpm_jax.figures: where every pixel of a grid belongs, the frames of an animation, the loss curve."""

import numpy as np
import pytest
from PIL import Image, ImageSequence

from ddpm_jax.figures import MARGIN, grid, save_animation, save_grid, save_loss_curve


def flat_images(count, side, channels=3):
    """Image i is evenly of the colour (10 + i, 100 + i, 200), none of it white or black."""
    colours = np.array([[10 + i, 100 + i, 200][:channels] for i in range(count)], np.uint8)
    return np.broadcast_to(colours[:, None, None, :], (count, side, side, channels)).copy()


def boxes(picture, images):
    """(left, top, right, bottom) of every flat image in a grid; fails where one is missing or not a whole rectangle."""
    pixels = np.asarray(picture)
    found = []
    for image in images:
        colour = np.resize(image[0, 0], 3)
        ys, xs = np.nonzero((pixels == colour).all(-1))
        assert len(ys), "an image is missing"
        box = xs.min(), ys.min(), xs.max() + 1, ys.max() + 1
        assert len(ys) == (box[2] - box[0]) * (box[3] - box[1]), "an image is covered or torn"
        found.append(box)
    return np.array(found)


@pytest.mark.parametrize(("side", "scale"), [(8, 8), (28, 3), (63, 2), (64, 1), (80, 1)])
def test_small_images_are_enlarged_by_a_whole_factor(side, scale):
    """To 64 pixels or just above; every pixel becomes a square, and nothing is smoothed."""
    image = np.random.default_rng(0).integers(0, 256, (1, side, side, 3), np.uint8)
    picture = np.asarray(grid(image))
    drawn = picture[MARGIN : MARGIN + side * scale, MARGIN : MARGIN + side * scale]
    np.testing.assert_array_equal(drawn, image[0].repeat(scale, 0).repeat(scale, 1))
    assert picture.shape == (side * scale + 2 * MARGIN, side * scale + 2 * MARGIN, 3)


@pytest.mark.parametrize(("count", "columns", "expected"), [(7, None, 3), (9, None, 3), (10, None, 4), (7, 5, 5)])
def test_rows_and_columns(count, columns, expected):
    images = flat_images(count, 16)
    found = boxes(grid(images, columns=columns), images)
    pitch = 64 + MARGIN
    for index, box in enumerate(found):
        left, top = MARGIN + index % expected * pitch, MARGIN + index // expected * pitch
        np.testing.assert_array_equal(box, [left, top, left + 64, top + 64])


def test_grey_images_become_grey_pixels():
    image = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    drawn = np.asarray(grid(image))[MARGIN : MARGIN + 64 : 4, MARGIN : MARGIN + 64 : 4]
    np.testing.assert_array_equal(drawn, np.repeat(image[0], 3, -1))


def test_titles_and_heading_touch_no_image():
    """Each title stands in the strip over its own image, the heading above them all, and no image loses a pixel."""
    images, titles = flat_images(8, 32), [f"jump {i}" for i in range(8)]
    picture = grid(images, titles, heading="a run, step 10", columns=4)
    found = boxes(picture, images)
    assert (found[:, 2] - found[:, 0] == 64).all() and (found[:, 3] - found[:, 1] == 64).all()
    ink = np.asarray(picture.convert("L")) < 128
    for left, top, right, bottom in found:
        assert ink[top - 17 : top, left:right].sum() > 20, "no title over the image"
        ink[top - 17 : bottom, left:right] = False
    ys, _ = np.nonzero(ink)
    assert ys.size and ys.max() < found[:, 1].min() - 17, "ink between the images, or no heading"


def test_a_long_heading_is_shown_whole():
    """The picture grows with it, the image stays in the middle, and the heading has a margin on either side."""
    images = flat_images(1, 8)
    heading = "a very long name of a run, step 100000"
    picture = grid(images, heading=heading)
    ((left, _, right, _),) = boxes(picture, images)
    assert abs(left - (picture.width - right)) <= 1 and picture.width > 200
    _, xs = np.nonzero(np.asarray(picture.convert("L"))[:28] < 128)
    assert xs.min() >= MARGIN and xs.max() < picture.width - MARGIN
    shorter = grid(images, heading=heading[:-12])
    assert picture.width - shorter.width > 40


def test_save_grid_writes_what_grid_draws(tmp_path):
    images = flat_images(3, 8)
    path = save_grid(tmp_path / "sub" / "a.png", images, ["a", "b", "c"], heading="h")
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        np.testing.assert_array_equal(np.asarray(picture), np.asarray(grid(images, ["a", "b", "c"], heading="h")))


def test_animation(tmp_path):
    """As many frames as given, each shown 80 ms and the last 2 s, for ever; the frames are the grids."""
    frames = np.stack([flat_images(4, 8) // (k + 1) for k in range(5)])
    headings = [f"step {k}" for k in range(5)]
    path = save_animation(tmp_path / "a.gif", frames, list("abcd"), headings=headings)
    with Image.open(path) as gif:
        assert gif.format == "GIF" and gif.n_frames == 5 and gif.info["loop"] == 0
        seen = [
            (frame.info["duration"], np.asarray(frame.convert("RGB"), int)) for frame in ImageSequence.Iterator(gif)
        ]
    assert [duration for duration, _ in seen] == [80, 80, 80, 80, 2000]
    for k, (_, pixels) in enumerate(seen):
        expected = np.asarray(grid(frames[k], list("abcd"), heading=headings[k]), int)
        assert np.abs(pixels - expected).max() <= 4  # a GIF has 256 colours


def test_animation_of_equal_frames_keeps_its_length(tmp_path):
    """A frame that repeats the one before may be merged with it, but the time stays."""
    frames = np.stack([flat_images(1, 8)] * 4)
    with Image.open(save_animation(tmp_path / "a.gif", frames)) as gif:
        assert sum(frame.info["duration"] for frame in ImageSequence.Iterator(gif)) == 3 * 80 + 2000


@pytest.mark.parametrize("count", [1, 4, 300])
def test_loss_curve(tmp_path, count):
    """A PNG of 7 x 4 inches at 120 dots, of any number of lines; the curve falls from the left to the right."""
    metrics = [{"step": 10 * k, "loss": float(np.exp(-k / count)), "lr": 0.1} for k in range(1, count + 1)]
    with Image.open(save_loss_curve(tmp_path / "loss.png", metrics)) as picture:
        assert picture.format == "PNG" and picture.size == (840, 480)
        pixels = np.asarray(picture.convert("RGB"), int)
    if count > 1:
        blue = pixels[:, :500, 2] > pixels[:, :500, 0] + 40  # the legend lies further to the right
        ys, xs = np.nonzero(blue)
        assert xs.max() - xs.min() > 300
        assert ys[xs < xs.min() + 20].mean() < ys[xs > xs.max() - 20].mean() - 100
