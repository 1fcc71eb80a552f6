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
    """An image file's bytes -> uint8 (H, W, C), C = 1 for greys, else 3; the first frame of an animation.

    The EXIF orientation is applied; transparency is laid on white; palettes, CMYK and the like become RGB; 16 bits become 8 by
    v / 257, floats in [0, 1] by v * 255. Of 16 bits in colour or beside transparency Pillow itself keeps the upper 8, v >> 8. A
    colour that stands for transparent is looked for among the file's own numbers.

    Raises:
        BadImageError: they are damaged, or no image; or numbers whose range nobody knows: floats outside [0, 1], integers of 32
            bits, and a colour of 16 bits that stands for transparent.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return image_to_array(_as_the_file_says(image, data) if image.format == "PNG" else image)
    except UnidentifiedImageError as error:
        raise BadImageError("the content is of no known image format") from error
    except _BROKEN as error:
        raise BadImageError(f"{type(error).__name__}: {error}") from error


def _as_the_file_says(image: Image.Image, data: bytes) -> Image.Image:
    """A PNG whose transparent colour, left by Pillow in the file's own bits, is in those of the pixels; greys stay greys.

    Raises:
        ValueError: a transparent colour of 16 bits; the pixels have lost the bits to compare.
    """
    depth, colour = data[24], data[25]  # of the header, which is a PNG's first chunk
    key = image.info.get("transparency")
    if colour == 2 and depth == 16 and key is not None:
        raise ValueError("a colour of 16 bits that stands for transparent, of which Pillow keeps 8; save it with alpha")
    if colour == 0 and depth < 8 and key is not None:
        image.info["transparency"] = key * (255 // (2**depth - 1))
    return image.convert("LA") if colour == 4 and image.mode == "RGBA" else image


def image_to_array(image: Image.Image) -> np.ndarray:
    """An open image -> uint8 (H, W, C), by the rules of `decode_image`.

    Raises:
        ValueError: values of no known range. Damaged data: what Pillow raises.
    """
    kind = image.format
    image = ImageOps.exif_transpose(image)
    if image.mode == "I" and kind not in ("PPM", "PNG"):  # where they are 16 bits
        raise ValueError("integers of 32 bits, or signed ones, whose range nobody knows; save them with 8 or 16 bits")
    if image.mode == "F" or image.mode.startswith("I"):
        return _to_8_bits(image)
    grey = image.mode in ("1", "L", "LA", "La")
    if image.has_transparency_data:
        rgba = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    pixels = np.array(image.convert("L" if grey else "RGB"))
    return pixels[..., None] if grey else pixels


def _to_8_bits(image: Image.Image) -> np.ndarray:
    """A grey image of 16 bits, or of floats."""
    values, mode = np.asarray(image), image.mode
    highest = 1 if mode == "F" else 65535
    if not (values.min() >= 0 and values.max() <= highest):  # false for NaN too
        raise ValueError(f"mode {mode} with values from {values.min()} to {values.max()}; 0..{highest} is understood")
    key = image.info.get("transparency")
    pixels = np.rint(values.astype(np.float64) * (255 / highest)).astype(np.uint8)
    return (pixels if key is None else np.where(values == key, np.uint8(255), pixels))[..., None]
