"""Every image to one size and one number of channels."""

import numpy as np
from PIL import Image


def fit(image: np.ndarray, image_size: int, channels: int) -> np.ndarray:
    """uint8 (H, W, 1 or 3) -> uint8 (image_size, image_size, channels).

    The short side is brought to `image_size` (bicubic, antialiased when it shrinks; untouched where it has
    that size already), the centre is cut out, then 1 channel is repeated to 3, or 3 become their luma
    (ITU-R 601). Sizes and offsets round as torchvision's Resize and CenterCrop do.
    """
    height, width = image.shape[:2]
    short = min(height, width)
    if short != image_size:
        height, width = image_size * height // short, image_size * width // short
        image = np.asarray(_pillow(image).resize((width, height), Image.Resampling.BICUBIC))
    top, left = round((height - image_size) / 2), round((width - image_size) / 2)
    image = image[top : top + image_size, left : left + image_size]
    image = image.reshape(image_size, image_size, -1)  # Pillow drops a single channel
    if image.shape[-1] == channels:
        return image
    return np.repeat(image, 3, axis=-1) if channels == 3 else np.asarray(_pillow(image).convert("L"))[..., None]


def _pillow(image: np.ndarray) -> Image.Image:
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else np.ascontiguousarray(image))
