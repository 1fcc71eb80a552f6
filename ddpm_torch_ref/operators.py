"""Linear measurements y = A x of images: a mask's, a blur's, fewer pixels, a sum of channels, or any linear function's."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Blur", "Downsample", "Function", "Gray", "Mask", "Operator", "of"]


class Operator(ABC):
    """A linear function of a batch: x (B, C, H, W) -> y (B, ...), each example by itself."""

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """A x."""

    def transposed(self, y: Tensor, shape: tuple[int, ...]) -> Tensor:
        """A^T y of the given shape (B, C, H, W): the gradient of <A x, y> in x."""
        pullback = torch.func.vjp(self.__call__, torch.zeros(shape, dtype=y.dtype, device=y.device))[1]
        return pullback(y)[0]

    def measured(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of y for an x of the given shape."""
        return tuple(self(torch.zeros(shape)).shape)


@dataclass(frozen=True)
class Mask(Operator):
    """Nothing of the pixels that are hidden."""

    hidden: Tensor | bool = True
    """True where nothing is seen; broadcasts against x."""

    def __call__(self, x: Tensor) -> Tensor:
        """x with zeros where it is hidden."""
        hidden = torch.as_tensor(self.hidden)
        if torch.broadcast_shapes(hidden.shape, x.shape) != x.shape:
            raise ValueError(f"hidden must broadcast against x {tuple(x.shape)}; got {tuple(hidden.shape)}.")
        return x.masked_fill(hidden, 0)


@dataclass(frozen=True)
class Blur(Operator):
    """Convolution with a Gaussian; at the edges the weights that lie outside are left out and the others scaled up."""

    sigma: float = 1.0
    """Standard deviation in pixels."""

    def __post_init__(self) -> None:
        if not 0 < self.sigma < float("inf"):
            raise ValueError(f"sigma must be positive and finite; got {self.sigma}.")

    def __call__(self, x: Tensor) -> Tensor:
        """x, blurred."""
        b, c, h, w = x.shape
        reach = max(h, w) - 1
        offsets = torch.arange(-reach, reach + 1, dtype=x.dtype, device=x.device)
        line = torch.exp(-((offsets / self.sigma) ** 2) / 2)
        kernel = torch.outer(line, line)[None, None]
        inside = F.conv2d(torch.ones(1, 1, h, w, dtype=x.dtype, device=x.device), kernel, padding=reach)
        return (F.conv2d(x.reshape(b * c, 1, h, w), kernel, padding=reach) / inside).reshape(b, c, h, w)


@dataclass(frozen=True)
class Downsample(Operator):
    """Means of squares of pixels."""

    factor: int = 2
    """Side of a square, which divides height and width."""

    def __post_init__(self) -> None:
        if self.factor < 1:
            raise ValueError(f"factor must be at least 1; got {self.factor}.")

    def __call__(self, x: Tensor) -> Tensor:
        """The means."""
        if x.shape[-2] % self.factor or x.shape[-1] % self.factor:
            raise ValueError(f"factor must divide height and width, {tuple(x.shape[-2:])}; got {self.factor}.")
        return F.avg_pool2d(x, self.factor)


@dataclass(frozen=True)
class Gray(Operator):
    """One channel, the weighted sum of all."""

    weights: tuple[float, ...] = (0.299, 0.587, 0.114)
    """One for each channel; those of ITU-R 601 for red, green and blue."""

    def __call__(self, x: Tensor) -> Tensor:
        """The sum."""
        if x.shape[1] != len(self.weights):
            raise ValueError(f"weights must be one for each of {x.shape[1]} channels; got {len(self.weights)}.")
        return torch.einsum("bchw,c->bhw", x, torch.tensor(self.weights, dtype=x.dtype, device=x.device))[:, None]


@dataclass(frozen=True)
class Function(Operator):
    """See `of`."""

    function: Callable[[Tensor], Tensor]
    """Linear."""

    def __call__(self, x: Tensor) -> Tensor:
        """What it gives."""
        return self.function(x)


def of(function: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> Operator:
    """Any linear function of a batch of examples of the given shape, (C, H, W).

    Raises:
        ValueError: it is not linear, on random input.
    """
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(2, *shape, generator=generator) for _ in range(2))
    whole, parts = function(2 * a - 3 * b), 2 * function(a) - 3 * function(b)
    if not torch.allclose(whole, parts, rtol=1e-4, atol=1e-4 * float(function(a).abs().max())):
        raise ValueError("function must be linear; got one of which f(2 a - 3 b) is not 2 f(a) - 3 f(b).")
    return Function(function)
