"""Image files of every kind against arithmetic on the numbers that were written into them."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from ddpm_jax.data.decoding import BadImageError, decode_image

RNG = np.random.default_rng(0)
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Numbers a pixel has, by a PNG's type of colour: grey, RGB, palette, grey and alpha, RGB and alpha."""


def png(values, colour, depth, *, palette=None, key=None):
    """A PNG of values (H, W, C) by the file's own bits; key: what tRNS holds."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    height, width, _ = values.shape
    rows = values.reshape(height, -1)
    if depth == 16:
        packed = [row.astype(">u2").tobytes() for row in rows]
    else:
        bits = ((rows[..., None] >> np.arange(depth)[::-1]) & 1).reshape(height, -1).astype(np.uint8)
        packed = [np.packbits(row).tobytes() for row in bits]
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = [chunk(b"IHDR", header)]
    if palette is not None:
        parts.append(chunk(b"PLTE", palette.astype(np.uint8).tobytes()))
    if key is not None:
        parts.append(
            chunk(b"tRNS", bytes(map(int, key)) if colour == 3 else b"".join(struct.pack(">H", v) for v in key))
        )
    parts += [chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in packed))), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def on_white(colours, alpha):
    """Numbers of 0..255 laid on white; alpha in [0, 1]."""
    return colours * alpha + 255 * (1 - alpha)


PNGS = [
    (colour, depth, transparent)
    for colour, depths in {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}.items()
    for depth in depths
    for transparent in ((False, True) if colour in (0, 2, 3) else (True,))
]


@pytest.mark.parametrize(("colour", "depth", "transparent"), PNGS)
def test_every_png(colour, depth, transparent):
    """Whatever the type of colour, its bits and its transparency: the file's numbers, brought to 255 and laid on white."""
    highest = 2**depth - 1
    values = RNG.integers(0, highest + 1, (8, 8, CHANNELS[colour]))
    palette = key = None
    alpha = np.ones((8, 8, 1))
    if colour == 3:
        palette = RNG.integers(0, 256, (highest + 1, 3))
        numbers = palette[values[..., 0]].astype(float)
        if transparent:
            key = RNG.integers(0, 256, max(1, highest // 2))  # shorter than the palette: the rest is opaque
            alpha = np.append(key, np.full(highest + 1 - len(key), 255))[values] / 255
    else:
        # what Pillow drops of 16 bits in colour or beside alpha, as the documentation says
        kept = values >> 8 if depth == 16 and colour != 0 else values / (highest / 255)
        numbers = kept[..., : 1 if colour in (0, 4) else 3].astype(float)
        if colour in (4, 6):
            alpha = kept[..., -1:] / 255
        elif transparent:
            key = values[3, 4]
            alpha = (values != key).any(-1, keepdims=True).astype(float)
            assert 0 < alpha.sum() < 64
    data = png(values, colour, depth, palette=palette, key=key)
    if colour == 2 and depth == 16 and transparent:
        with pytest.raises(BadImageError, match="a colour of 16 bits that stands for transparent"):
            decode_image(data)
        return
    found = decode_image(data)
    assert found.dtype == np.uint8 and found.shape == (8, 8, 1 if colour in (0, 4) else 3)
    # where alpha mixes, Pillow rounds in between
    assert np.abs(found - on_white(numbers, alpha)).max() <= (1 if set(np.unique(alpha)) - {0, 1} else 0.501)


@pytest.mark.parametrize("highest", [1, 100, 255, 256, 1000, 65535])
@pytest.mark.parametrize("kind", [5, 6])
def test_every_ppm(kind, highest):
    """Greys and colours of any greatest value."""
    channels = 1 if kind == 5 else 3
    values = RNG.integers(0, highest + 1, (6, 5, channels))
    values[0, 0] = highest
    body = values.astype(">u2" if highest > 255 else np.uint8).tobytes()
    found = decode_image(b"P%d 5 6 %d\n" % (kind, highest) + body)
    assert found.shape == (6, 5, channels) and (found[0, 0] == 255).all()
    assert np.abs(found - values * (255 / highest)).max() <= 0.51


def saved(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"])
def test_every_mode_that_a_tiff_has(mode):
    """Laid on white and brought to RGB; Pillow's own conversion where a colour space has arithmetic of its own."""
    colours = Image.fromarray(RNG.integers(0, 256, (4, 5, 4), np.uint8))
    if mode == "LA":
        image = Image.fromarray(RNG.integers(0, 256, (4, 5, 2), np.uint8))
    else:
        image = colours if mode == "RGBA" else colours.convert("RGB").convert(mode)
    numbers = np.asarray(image, float)
    if mode == "CMYK":  # what each ink and the black leave of white
        wanted = (255 - numbers[..., :3]) * (255 - numbers[..., 3:]) / 255
    elif mode in ("LA", "RGBA"):
        wanted = on_white(numbers[..., :-1], numbers[..., -1:] / 255)
    elif mode in ("1", "L"):
        wanted = numbers[..., None] * (255 if mode == "1" else 1)
    else:
        wanted = np.asarray(image.convert("RGB"), float)
    found = decode_image(saved(image, "TIFF"))
    assert found.shape == (4, 5, 1 if mode in ("1", "L", "LA") else 3)
    assert np.abs(found - wanted).max() <= (0 if mode in ("1", "L", "P", "RGB", "RGBX") else 1)


def test_lab_is_shown_in_colours():
    greys = np.zeros((1, 3, 3), np.uint8)
    greys[0, :, 0] = (0, 128, 255)  # L of 100 at the most, a and b at their middle
    greys[..., 1:] = 128
    found = decode_image(
        saved(Image.frombytes("LAB", (3, 1), (greys ^ [0, 128, 128]).astype(np.uint8).tobytes()), "TIFF")
    )
    # half of the lightness is 18 % of the light, 119 in sRGB
    assert np.abs(found[0].astype(int) - np.array([[0], [119], [255]])).max() <= 6


@pytest.mark.parametrize(("kind", "highest"), [(np.uint16, 65535), (np.float32, 1.0)])
def test_deep_greys_in_a_tiff(kind, highest):
    values = (RNG.random((4, 5)) * highest).astype(kind)
    found = decode_image(saved(Image.fromarray(values), "TIFF"))
    np.testing.assert_array_equal(found[..., 0], np.rint(values.astype(float) * (255 / highest)))


@pytest.mark.parametrize("highest", [255, 65535, 2**31 - 1])
def test_integers_of_32_bits_are_refused(highest):
    """Their range is nobody's: the same file may hold 8 bits, 16 or 32."""
    values = np.array([[0, highest]], np.int32)
    with pytest.raises(BadImageError, match="integers of 32 bits"):
        decode_image(saved(Image.fromarray(values), "TIFF"))


@pytest.mark.parametrize("highest", [1.5, float("nan"), -0.1])
def test_floats_of_no_known_range(highest):
    values = np.full((2, 2), 0.5, np.float32)
    values[0, 0] = highest
    with pytest.raises(BadImageError, match=r"0\.\.1 is understood"):
        decode_image(saved(Image.fromarray(values), "TIFF"))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG", "WEBP"])
@pytest.mark.parametrize("deep", [False, True])
def test_every_orientation(kind, orientation, deep):
    """The camera's note is followed, of 16 bits too."""
    if deep and kind in ("JPEG", "WEBP"):
        return
    picture = np.repeat(np.repeat(np.array([[0, 85, 170], [255, 40, 120]], np.uint8), 16, 0), 16, 1)
    image = Image.fromarray(picture.astype(np.uint16) * 257 if deep else picture)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {"quality": 100} if kind == "JPEG" else {}
    turned = {
        1: picture, 2: picture[:, ::-1], 3: picture[::-1, ::-1], 4: picture[::-1], 5: picture.T,
        6: np.rot90(picture, -1), 7: picture[::-1, ::-1].T, 8: np.rot90(picture),
    }[orientation]  # fmt: skip
    found = decode_image(saved(image, kind, exif=exif, **options))[..., 0].astype(int)
    assert found.shape == turned.shape and np.abs(found - turned).max() <= 2


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "TIFF", "PNG"])
def test_the_first_frame_of_several(kind):
    frames = [Image.fromarray(np.full((4, 4, 3), value, np.uint8)) for value in (10, 200)]
    options = {"lossless": True} if kind == "WEBP" else {}
    found = decode_image(saved(frames[0], kind, save_all=True, append_images=frames[1:], **options))
    assert found.shape == (4, 4, 3) and (found == 10).all()


def test_a_gif_with_a_transparent_colour():
    indices = RNG.integers(0, 4, (6, 6)).astype(np.uint8)
    image = Image.fromarray(indices, "P")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120])
    found = decode_image(saved(image, "GIF", transparency=2))
    wanted = np.array([[10, 20, 30], [40, 50, 60], [255, 255, 255], [100, 110, 120]])[indices]
    np.testing.assert_array_equal(found, wanted)


def test_a_picture_larger_than_memory():
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    body = struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    with pytest.raises(BadImageError, match="DecompressionBombError"):
        decode_image(
            b"\x89PNG\r\n\x1a\n" + body + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
        )
