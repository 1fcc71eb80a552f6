"""System 2: the U-Net of double convolutions of plain DDPM on CIFAR-10."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddpm_torch_ref.checks import check_counts, refuse_labels
from ddpm_torch_ref.models import timesteps
from ddpm_torch_ref.models.timesteps import TimeProj, TimestepTable


class DoubleConv(nn.Module):
    """3x3 convolution, BatchNorm, ReLU, twice."""

    def __init__(self, width_in: int, width_out: int):
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width_out, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(width_out)
        self.conv2 = nn.Conv2d(width_out, width_out, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(width_out)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, width_in, H, W) -> (B, width_out, H, W)."""
        return F.relu(self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))))


class DownStage(nn.Module):
    """Time added, 2x2 maximum if asked for, double convolution."""

    def __init__(self, time_dim: int, width_in: int, width_out: int, *, pool: bool):
        super().__init__()
        self.pool = pool
        self.time_proj = TimeProj(time_dim, width_in)
        self.block = DoubleConv(width_in, width_out)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """x (B, width_in, H, W), emb (B, time_dim) -> (B, width_out, H', W')."""
        x = x + self.time_proj(emb)
        return self.block(F.max_pool2d(x, 2) if self.pool else x)


class UpStage(nn.Module):
    """Time added, transposed 2x2 convolution that halves the channels, double convolution of [up, skip]."""

    def __init__(self, time_dim: int, width_in: int):
        super().__init__()
        self.time_proj = TimeProj(time_dim, width_in)
        self.upsample = nn.ConvTranspose2d(width_in, width_in // 2, 2, 2)
        self.block = DoubleConv(width_in, width_in // 2)

    def forward(self, x: Tensor, skip: Tensor, emb: Tensor) -> Tensor:
        """x (B, width_in, H, W), skip (B, width_in / 2, H', W'), emb (B, time_dim) -> skip's shape."""
        x = self.upsample(x + self.time_proj(emb))
        rows, columns = skip.shape[2] - x.shape[2], skip.shape[3] - x.shape[3]
        x = F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
        return self.block(torch.cat([x, skip], dim=1))


class DoubleConvUNet(nn.Module):
    """Five levels of dim to 16 dim channels (Ronneberger et al. 2015, "U-Net"), for maps of 16 pixels and more.

    Args:
        channels: of the image.
        image_size: height and width of the image, in pixels: at least 16; the network takes any size from there.
        dim: width of the first level.
        num_steps: T, rows of the timestep table.
        time_dim: width of a row.
        timestep_table: "original" (odd on purpose or by accident: `timesteps.timestep_table`), or "sinusoidal".

    Raises:
        ValueError: an option out of range.
    """

    def __init__(
        self,
        *,
        channels: int = 3,
        image_size: int = 32,
        dim: int = 64,
        num_steps: int = 1000,
        time_dim: int = 100,
        timestep_table: str = "original",
    ):
        super().__init__()
        check_counts(channels=channels, dim=dim, num_steps=num_steps, time_dim=time_dim)
        if image_size < 16:
            raise ValueError(f"image_size must be at least 16, for four halvings; got {image_size}.")
        widths = [channels, *(dim * 2**i for i in range(5))]
        self.time_table = TimestepTable(timesteps.timestep_table(timestep_table, num_steps, time_dim))
        self.down = nn.ModuleList(DownStage(time_dim, widths[i], widths[i + 1], pool=i > 0) for i in range(5))
        self.up = nn.ModuleList(UpStage(time_dim, widths[i]) for i in (5, 4, 3, 2))
        self.conv_out = nn.Conv2d(dim, channels, 1)

    def forward(self, x_t: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """Predict the noise.

        Args:
            x_t: (B, channels, H, W) noised images.
            t: (B,) int64 times, 0..T-1.
            labels: None.

        Returns:
            (B, channels, H, W).

        Raises:
            ValueError: labels given.
        """
        refuse_labels(labels)
        emb = self.time_table(t, x_t.dtype)
        x, skips = x_t, []
        for stage in self.down:
            x = stage(x, emb)
            skips.append(x)
        x = skips.pop()
        for stage in self.up:
            x = stage(x, skips.pop(), emb)
        return self.conv_out(x)
