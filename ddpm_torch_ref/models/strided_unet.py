"""System 5: the U-Nets of strided convolutions, without and with classes."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddpm_torch_ref.checks import check_counts, check_divides

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


class StridedUNet(nn.Module):
    """Four levels down and up; it does not see t.

    With classes, the one-hot class, spread over the map, is a third part of the first two concatenations.

    Args:
        channels: of the image.
        image_size: height and width of the image, in pixels; a multiple of 16, as of every image that the network takes.
        num_classes: number of labels; None: unconditional.

    Raises:
        ValueError: an option out of range.
    """

    def __init__(self, *, channels: int = 3, image_size: int = 32, num_classes: int | None = None):
        super().__init__()
        check_counts(channels=channels, num_classes=num_classes)
        check_divides("image_size", image_size, 16, "for four halvings")
        self.num_classes = num_classes
        self.down = nn.ModuleList()
        width = channels
        for width_out in DOWN:
            self.down.append(Unit(nn.Conv2d(width, width_out, 4, 2, padding=1, bias=False)))
            width = width_out
        self.middle = nn.Conv2d(width, MIDDLE, 3, padding=1, bias=False)
        self.up = nn.ModuleList()
        width = MIDDLE
        for i, width_out in enumerate(UP):
            width += DOWN[-1 - i] + (0 if num_classes is None or i > 1 else num_classes)
            self.up.append(Unit(nn.ConvTranspose2d(width, width_out, 4, 2, padding=1, bias=False)))
            width = width_out
        self.conv_out = nn.Conv2d(width + channels, channels, 1)

    def forward(self, x_t: Tensor, t: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        """Predict the noise.

        Args:
            x_t: (B, channels, H, W) noised images, H and W divisible by 16.
            t: not used.
            labels: (B,) int64 classes, 0..num_classes - 1; given if and only if num_classes is.

        Returns:
            (B, channels, H, W).

        Raises:
            ValueError: labels missing or unexpected.
        """
        if labels is None and self.num_classes is not None:
            raise ValueError(f"labels are required: this network has num_classes = {self.num_classes}.")
        if labels is not None and self.num_classes is None:
            raise ValueError("labels must be None: this network was made without num_classes.")
        x, skips = x_t, []
        for unit in self.down:
            x = unit(x)
            skips.append(x)
        x = self.middle(x)
        for i, unit in enumerate(self.up):
            parts = [x, skips.pop()]
            if labels is not None and self.num_classes is not None and i < 2:
                one_hot = F.one_hot(labels, self.num_classes).to(x.dtype)
                parts.append(one_hot[:, :, None, None].expand(-1, -1, *x.shape[2:]))
            x = unit(torch.cat(parts, dim=1))
        return self.conv_out(torch.cat([x, x_t], dim=1))


class StridedUNetConditional(StridedUNet):
    """The same with ten classes unless told otherwise. For the arguments see StridedUNet."""

    def __init__(self, *, channels: int = 3, image_size: int = 32, num_classes: int | None = 10):
        super().__init__(channels=channels, image_size=image_size, num_classes=num_classes)
