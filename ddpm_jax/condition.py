"""Images as condition: what a network is shown of the clean image, in channels behind those of x_t."""

import abc
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from ddpm_jax.errors import UserError, meant

__all__ = ["CONDITIONS", "HALVES", "Condition", "Downsample", "Gray", "Mask", "as_condition", "hidden"]

HALVES = ("left", "right", "top", "bottom", "middle")
"""Parts of an image that have a name: a half of it, or its middle."""
LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue (ITU-R BT.601)."""


@dataclass(frozen=True)
class Condition(abc.ABC):
    """What is kept of an image (`degraded`), and the channels that a network sees of that (`raised`).

    Images are as the network sees them, x_0 (..., H, W, C), what is shown (..., H, W, C'). NumPy's arrays and JAX's are taken.
    """

    word: ClassVar[str]
    """What a spec begins with."""

    def __repr__(self) -> str:
        return ":".join([self.word, *(str(getattr(self, part.name)) for part in fields(self))])

    @abc.abstractmethod
    def channels(self, channels: int) -> int:
        """How many channels a network sees of an image of so many."""

    @abc.abstractmethod
    def degraded_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of what is kept of an image (H, W, C).

        Raises:
            UserError: it cannot be made of such an image (says which could).
        """

    @abc.abstractmethod
    def degraded(self, x_0: Any) -> Any:
        """What is kept of images."""

    @abc.abstractmethod
    def raised(self, kept: Any) -> Any:
        """The channels that a network sees of what is kept, of the images' height and width."""

    def shown(self, x_0: Any) -> Any:
        """The channels that a network sees of images."""
        return self.raised(self.degraded(x_0))

    def pictured(self, shown: Any) -> Any:
        """What of these channels is an image, of 1 channel or 3."""
        return shown


@dataclass(frozen=True, repr=False)
class Downsample(Condition):
    """The means of factor x factor pixels, brought back to full size bilinearly: super-resolution (Saharia et al. 2021, SR3).

    As guided-diffusion trains and samples its upsamplers: area means, and interpolation between the centres of pixels.
    """

    word = "downsample"
    factor: int
    """How many times smaller either side becomes, at least 2."""

    def __post_init__(self) -> None:
        if self.factor < 2:
            raise UserError(f"downsample must make images at least 2 times smaller; got downsample:{self.factor}.")

    def channels(self, channels: int) -> int:
        """As many."""
        return channels

    def degraded_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """(H / factor, W / factor, C)."""
        height, width, channels = shape
        if height % self.factor or width % self.factor:
            raise UserError(
                f"{self!r} needs an image_size that is divisible by {self.factor}; got {height} x {width} pixels."
            )
        return height // self.factor, width // self.factor, channels

    def degraded(self, x_0: Any) -> Any:
        """Means of squares."""
        height, width, channels = self.degraded_shape(x_0.shape[-3:])
        squares = x_0.reshape(*x_0.shape[:-3], height, self.factor, width, self.factor, channels)
        return squares.mean((-4, -2))

    def raised(self, kept: Any) -> Any:
        """Bilinear interpolation; beyond the outermost centres, their values."""
        import jax.image  # here, because a config is read without jax

        *before, height, width, channels = kept.shape
        full = (*before, height * self.factor, width * self.factor, channels)
        return jax.image.resize(kept, full, "linear")


@dataclass(frozen=True, repr=False)
class Gray(Condition):
    """The luma of an image in colour, one channel: colourisation (Saharia et al. 2022, Palette)."""

    word = "gray"

    def channels(self, channels: int) -> int:
        """One."""
        return 1

    def degraded_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """(H, W, 1)."""
        if shape[-1] != 3:
            raise UserError(f"gray needs images in colour, of 3 channels; got {shape[-1]}.")
        return *shape[:-1], 1

    def degraded(self, x_0: Any) -> Any:
        """The luma."""
        import numpy as np  # here, because a config is read without it

        return (x_0 * np.array(LUMA, x_0.dtype)).sum(-1, keepdims=True)

    def raised(self, kept: Any) -> Any:
        """The same."""
        return kept


@dataclass(frozen=True, repr=False)
class Mask(Condition):
    """The image with a part of it at 0, and a channel that is 1 there: inpainting (Saharia et al. 2022, Palette)."""

    word = "mask"
    part: str
    """What is hidden: one of HALVES."""

    def __post_init__(self) -> None:
        if self.part not in HALVES:
            raise UserError(
                f"mask must hide one of {', '.join(HALVES)}; got mask:{self.part}.{meant(self.part, HALVES)}"
            )

    def channels(self, channels: int) -> int:
        """One more."""
        return channels + 1

    def degraded_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The same."""
        return shape

    def degraded(self, x_0: Any) -> Any:
        """The image without its hidden part."""
        return x_0 * self._seen(x_0)

    def raised(self, kept: Any) -> Any:
        """The same, hidden where it is not yet, and the channel that says where."""
        import jax.numpy as jnp

        seen = self._seen(kept)
        where = jnp.broadcast_to(1 - seen, (*kept.shape[:-1], 1))
        return jnp.concatenate([kept * seen, where], axis=-1)

    def pictured(self, shown: Any) -> Any:
        """All but the last channel."""
        return shown[..., :-1]

    def _seen(self, x: Any) -> Any:
        """(H, W, 1): 1 where the image is shown."""
        return (~hidden(self.part, *x.shape[-3:-1]))[..., None].astype(x.dtype)


CONDITIONS: dict[str, type[Condition]] = {kind.word: kind for kind in (Downsample, Gray, Mask)}
"""Word of a spec -> what it makes."""
SPECS = "downsample:FACTOR, gray, mask:PART"
"""The specs, as messages say them."""


def as_condition(spec: str) -> Condition:
    """What a spec describes: downsample:4, gray, mask:left.

    Raises:
        UserError: no such spec (lists what there is).
    """
    word, colon, rest = str(spec).partition(":")
    kind = CONDITIONS.get(word)
    if kind is None:
        raise UserError(f"condition must be one of {SPECS}; got {spec!r}.{meant(word, CONDITIONS)}")
    if kind is Gray and not colon:
        return Gray()
    if kind is Mask:
        return Mask(rest)
    if kind is Downsample and rest.isdecimal():
        return Downsample(int(rest))
    raise UserError(f"condition must be one of {SPECS}; got {spec!r}.")


def hidden(part: str, height: int, width: int) -> Any:
    """True in a part of an image, (H, W).

    part: one of HALVES; the middle is half as high and half as wide as the image.
    """
    import numpy as np

    found = np.zeros((height, width), bool)
    top, left = height // 4, width // 4
    parts: dict[str, Any] = {
        "left": np.s_[:, : width // 2],
        "right": np.s_[:, width // 2 :],
        "top": np.s_[: height // 2],
        "bottom": np.s_[height // 2 :],
        "middle": np.s_[top : height - top, left : width - left],
    }
    found[parts[part]] = True
    return found
