"""From an image file of any kind Pillow reads to a uint8 array of one or three channels."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("PNG", "JPEG", "BMP", "DIB", "WEBP", "GIF", "TIFF", "PPM")
"""What an image's content may be; Pillow knows others, of which PostScript is a program."""

# What Pillow's plugins raise for a damaged file.
_BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    EOFError,
    OverflowError,
    NotImplementedError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
_UNREADABLE = (FileNotFoundError, PermissionError, IsADirectoryError)


class BadImageError(Exception):
    """A file is no readable image; the message says why."""


def read_file(path: Path | str) -> bytes:
    """A file's bytes.

    Raises:
        BadImageError: it is missing or forbidden. Failures of the machine (too many open files, a disk error) come
            through as they are: they say nothing about the image.
    """
    try:
        return Path(path).read_bytes()
    except _UNREADABLE as error:
        raise BadImageError(error.strerror or str(error)) from error


def decode_image(data: bytes) -> np.ndarray:
    """An image file's bytes -> uint8 (H, W, C), C = 1 or 3; the first frame of an animation.

    Raises:
        BadImageError: they are damaged, or no image.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return image_to_array(image)
    except UnidentifiedImageError as error:
        raise BadImageError("the content is of no known image format") from error
    except _BROKEN as error:
        raise BadImageError(f"{type(error).__name__}: {error}") from error


def image_to_array(image: Image.Image) -> np.ndarray:
    """An open image -> uint8 (H, W, C): C = 1 for greys, else 3.

    The EXIF orientation is applied; transparency is laid on white; palettes, CMYK and the like become RGB;
    16 bits become 8 by v / 257, floats in [0, 1] by v * 255.

    Raises:
        ValueError: the values of a 32-bit image lie outside those ranges. Damaged data: what Pillow raises.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode == "F" or image.mode.startswith("I"):
        return _to_8_bits(np.asarray(image), image.mode)
    grey = image.mode in ("1", "L", "LA")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    pixels = np.array(image.convert("L" if grey else "RGB"))
    return pixels[..., None] if grey else pixels


def _to_8_bits(values: np.ndarray, mode: str) -> np.ndarray:
    highest = 1 if mode == "F" else 65535
    if not (values.min() >= 0 and values.max() <= highest):  # false for NaN too
        raise ValueError(f"mode {mode} with values from {values.min()} to {values.max()}; 0..{highest} is understood")
    return np.rint(values.astype(np.float64) * (255 / highest)).astype(np.uint8)[..., None]
