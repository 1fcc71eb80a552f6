"""The Inception-v3 network of FID: Szegedy et al. 2016 with the four differences of the TensorFlow weights of 2015.

These are 1,008 logits; averages of 3x3 pixels whose count leaves the padding out; a maximum instead of the average in the last
block; and BatchNorm with epsilon 1e-3. Maps are named after their sides at an input of 299: 35, 17 and 8.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ConvNorm(nn.Module):
    """A convolution without bias, BatchNorm, ReLU."""

    def __init__(
        self, width_in: int, width_out: int, kernel: int | tuple[int, int] = 1, *, stride: int = 1, pad: bool = True
    ):
        super().__init__()
        height, breadth = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (height // 2, breadth // 2) if pad else (0, 0)
        self.conv = nn.Conv2d(width_in, width_out, (height, breadth), stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(width_out, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, width_in, H, W) -> (B, width_out, H', W')."""
        return F.relu(self.bn(self.conv(x)))


class Block35(nn.Module):
    """One 1x1, one 5x5, two 3x3 in a row, and an average."""

    def __init__(self, width_in: int, width_pool: int):
        super().__init__()
        self.branch1x1 = ConvNorm(width_in, 64)
        self.branch5x5_1 = ConvNorm(width_in, 48)
        self.branch5x5_2 = ConvNorm(48, 64, 5)
        self.branch3x3dbl_1 = ConvNorm(width_in, 64)
        self.branch3x3dbl_2 = ConvNorm(64, 96, 3)
        self.branch3x3dbl_3 = ConvNorm(96, 96, 3)
        self.branch_pool = ConvNorm(width_in, width_pool)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, width_in, H, W) -> (B, 224 + width_pool, H, W)."""
        five = self.branch5x5_2(self.branch5x5_1(x))
        threes = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch1x1(x), five, threes, self.branch_pool(mean_around(x))], dim=1)


class From35To17(nn.Module):
    """Half the map's side, to 768 channels."""

    def __init__(self, width_in: int):
        super().__init__()
        self.branch3x3 = ConvNorm(width_in, 384, 3, stride=2, pad=False)
        self.branch3x3dbl_1 = ConvNorm(width_in, 64)
        self.branch3x3dbl_2 = ConvNorm(64, 96, 3)
        self.branch3x3dbl_3 = ConvNorm(96, 96, 3, stride=2, pad=False)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, width_in, H, W) -> (B, 480 + width_in, H', W')."""
        threes = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), threes, F.max_pool2d(x, 3, 2)], dim=1)


class Block17(nn.Module):
    """7x7 taken apart into 1x7 and 7x1, once and twice, between `width` channels."""

    def __init__(self, width: int):
        super().__init__()
        across, down = (1, 7), (7, 1)
        self.branch1x1 = ConvNorm(768, 192)
        self.branch7x7_1 = ConvNorm(768, width)
        self.branch7x7_2 = ConvNorm(width, width, across)
        self.branch7x7_3 = ConvNorm(width, 192, down)
        self.branch7x7dbl_1 = ConvNorm(768, width)
        self.branch7x7dbl_2 = ConvNorm(width, width, down)
        self.branch7x7dbl_3 = ConvNorm(width, width, across)
        self.branch7x7dbl_4 = ConvNorm(width, width, down)
        self.branch7x7dbl_5 = ConvNorm(width, 192, across)
        self.branch_pool = ConvNorm(768, 192)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, 768, H, W) -> the same shape."""
        seven = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        sevens = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        sevens = self.branch7x7dbl_5(self.branch7x7dbl_4(sevens))
        return torch.cat([self.branch1x1(x), seven, sevens, self.branch_pool(mean_around(x))], dim=1)


class From17To8(nn.Module):
    """Half the map's side, from 768 channels to 1,280."""

    def __init__(self) -> None:
        super().__init__()
        self.branch3x3_1 = ConvNorm(768, 192)
        self.branch3x3_2 = ConvNorm(192, 320, 3, stride=2, pad=False)
        self.branch7x7x3_1 = ConvNorm(768, 192)
        self.branch7x7x3_2 = ConvNorm(192, 192, (1, 7))
        self.branch7x7x3_3 = ConvNorm(192, 192, (7, 1))
        self.branch7x7x3_4 = ConvNorm(192, 192, 3, stride=2, pad=False)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, 768, H, W) -> (B, 1280, H', W')."""
        three = self.branch3x3_2(self.branch3x3_1(x))
        seven = self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x)))
        return torch.cat([three, self.branch7x7x3_4(seven), F.max_pool2d(x, 3, 2)], dim=1)


class Block8(nn.Module):
    """Branches that end in a 1x3 and a 3x1 side by side; `largest` pools by the maximum, otherwise by the mean."""

    def __init__(self, width_in: int, *, largest: bool):
        super().__init__()
        self.largest = largest
        self.branch1x1 = ConvNorm(width_in, 320)
        self.branch3x3_1 = ConvNorm(width_in, 384)
        self.branch3x3_2a = ConvNorm(384, 384, (1, 3))
        self.branch3x3_2b = ConvNorm(384, 384, (3, 1))
        self.branch3x3dbl_1 = ConvNorm(width_in, 448)
        self.branch3x3dbl_2 = ConvNorm(448, 384, 3)
        self.branch3x3dbl_3a = ConvNorm(384, 384, (1, 3))
        self.branch3x3dbl_3b = ConvNorm(384, 384, (3, 1))
        self.branch_pool = ConvNorm(width_in, 192)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, width_in, H, W) -> (B, 2048, H, W)."""
        three = self.branch3x3_1(x)
        threes = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = F.max_pool2d(x, 3, 1, padding=1) if self.largest else mean_around(x)
        parts = [self.branch1x1(x), self.branch3x3_2a(three), self.branch3x3_2b(three)]
        parts += [self.branch3x3dbl_3a(threes), self.branch3x3dbl_3b(threes), self.branch_pool(pooled)]
        return torch.cat(parts, dim=1)


class Inception(nn.Module):
    """Features and logits of images, for evaluation; its state dict has the names of the published weights."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = ConvNorm(3, 32, 3, stride=2, pad=False)
        self.Conv2d_2a_3x3 = ConvNorm(32, 32, 3, pad=False)
        self.Conv2d_2b_3x3 = ConvNorm(32, 64, 3)
        self.Conv2d_3b_1x1 = ConvNorm(64, 80)
        self.Conv2d_4a_3x3 = ConvNorm(80, 192, 3, pad=False)
        self.Mixed_5b = Block35(192, 32)
        self.Mixed_5c = Block35(256, 64)
        self.Mixed_5d = Block35(288, 64)
        self.Mixed_6a = From35To17(288)
        self.Mixed_6b = Block17(128)
        self.Mixed_6c = Block17(160)
        self.Mixed_6d = Block17(160)
        self.Mixed_6e = Block17(192)
        self.Mixed_7a = From17To8()
        self.Mixed_7b = Block8(1280, largest=False)
        self.Mixed_7c = Block8(2048, largest=True)
        self.fc = nn.Linear(2048, 1008)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, 3, H, W) in [-1, 1], sides of 75 and more -> features (B, 2048), logits (B, 1008)."""
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, 2)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(F.max_pool2d(x, 3, 2))))
        x = self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))
        x = self.Mixed_6e(self.Mixed_6d(x))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        features = x.mean(dim=(2, 3))
        return features, self.fc(features)


def mean_around(x: Tensor) -> Tensor:
    """The mean over each pixel and those of its eight neighbours that lie within the map; the same shape."""
    return F.avg_pool2d(x, 3, 1, padding=1, count_include_pad=False)


def prepare(images: Tensor) -> Tensor:
    """Pixels 0..255 (B, 3, H, W), floating -> (B, 3, 299, 299) in [-1, 1], bilinear between pixel centres without antialiasing."""
    resized = F.interpolate(images, (299, 299), mode="bilinear", align_corners=False)
    return 2 * (resized / 255) - 1
