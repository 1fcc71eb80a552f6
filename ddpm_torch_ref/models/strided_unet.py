"""System 5: the U-Nets of strided convolutions, without and with classes."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddpm_torch_ref.models.checks import check_counts, refuse_labels

DOWN = (72, 96, 128, 196)
"""Channels of the levels going down, each half the size of the one before."""
MIDDLE = 256
"""Channels at the lowest resolution."""
UP = (256, 196, 128, 96)
"""Channels of the levels going up, the lowest resolution first."""


class Unit(nn.Module):
    """A convolution without bias that halves or doubles the map, BatchNorm, ReLU."""

    def __init__(self, conv: nn.Conv2d | nn.ConvTranspose2d):
        super().__init__()
        self.conv = conv
        self.norm = nn.BatchNorm2d(conv.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, width_in, H, W) -> (B, width_out, H', W')."""
        return F.relu(self.norm(self.conv(x)))


class Base(nn.Module):
    """The network of both, for images whose sides are divisible by 16; it does not see t."""

    def __init__(self, channels: int, num_classes: int):
        super().__init__()
        check_counts(channels=channels)
        self.down = nn.ModuleList()
        width = channels
        for width_out in DOWN:
            self.down.append(Unit(nn.Conv2d(width, width_out, 4, 2, padding=1, bias=False)))
            width = width_out
        self.middle = nn.Conv2d(width, MIDDLE, 3, padding=1, bias=False)
        self.up = nn.ModuleList()
        width = MIDDLE
        for i, width_out in enumerate(UP):
            width += DOWN[-1 - i] + (num_classes if i < 2 else 0)
            self.up.append(Unit(nn.ConvTranspose2d(width, width_out, 4, 2, padding=1, bias=False)))
            width = width_out
        self.conv_out = nn.Conv2d(width + channels, channels, 1)

    def _predict(self, x_t: Tensor, one_hot: Tensor | None) -> Tensor:
        """x_t (B, channels, H, W), one_hot (B, num_classes) or None -> x_t's shape."""
        x, skips = x_t, []
        for unit in self.down:
            x = unit(x)
            skips.append(x)
        x = self.middle(x)
        for i, unit in enumerate(self.up):
            parts = [x, skips.pop()]
            if one_hot is not None and i < 2:
                parts.append(one_hot[:, :, None, None].expand(-1, -1, *x.shape[2:]))
            x = unit(torch.cat(parts, dim=1))
        return self.conv_out(torch.cat([x, x_t], dim=1))


class StridedUNet(Base):
    """Unconditional.

    Args:
        channels: of the image.

    Raises:
        ValueError: an option out of range.
    """

    def __init__(self, *, channels: int = 3):
        super().__init__(channels, 0)

    def forward(self, x_t: Tensor, t: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        """Predict the noise of images (B, channels, H, W), H and W divisible by 16; t is not used.

        Raises:
            ValueError: labels given.
        """
        refuse_labels(labels)
        return self._predict(x_t, None)


class StridedUNetConditional(Base):
    """Conditional: the one-hot class, spread over the map, is a third part of the first two concatenations.

    Args:
        channels: of the image.
        num_classes: number of labels.

    Raises:
        ValueError: an option out of range.
    """

    def __init__(self, *, channels: int = 3, num_classes: int = 10):
        check_counts(num_classes=num_classes)
        super().__init__(channels, num_classes)
        self.num_classes = num_classes

    def forward(self, x_t: Tensor, t: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        """Predict the noise.

        Args:
            x_t: (B, channels, H, W) noised images, H and W divisible by 16.
            t: not used.
            labels: (B,) int64 classes, 0..num_classes - 1.

        Returns:
            (B, channels, H, W).

        Raises:
            ValueError: labels missing.
        """
        if labels is None:
            raise ValueError(f"labels are required: this network has num_classes = {self.num_classes}.")
        return self._predict(x_t, F.one_hot(labels, self.num_classes).to(x_t.dtype))
