"""System 2: the small U-Net of plain DDPM on digits."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddpm_torch_ref.checks import check_counts, check_divides, refuse_labels
from ddpm_torch_ref.models import timesteps
from ddpm_torch_ref.models.timesteps import TimeProj, TimestepTable


class Unit(nn.Module):
    """LayerNorm over the whole (C, H, W) map, 3x3 convolution, SiLU."""

    def __init__(self, width_in: int, width_out: int, size: int):
        super().__init__()
        self.norm = nn.LayerNorm([width_in, size, size])
        self.conv = nn.Conv2d(width_in, width_out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, width_in, size, size) -> (B, width_out, size, size)."""
        return F.silu(self.conv(self.norm(x)))


class Stage(nn.Module):
    """Three units, of widths[0] -> … -> widths[3] channels, after time is added to their input."""

    def __init__(self, time_dim: int, widths: Sequence[int], size: int):
        super().__init__()
        self.time_proj = TimeProj(time_dim, widths[0])
        self.units = nn.ModuleList(Unit(widths[i], widths[i + 1], size) for i in range(3))

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """x (B, widths[0], size, size), emb (B, time_dim) -> (B, widths[3], size, size)."""
        x = x + self.time_proj(emb)
        for unit in self.units:
            x = unit(x)
        return x


class TinyUNet(nn.Module):
    """Three levels of dim, 2 dim, 4 dim channels; the output is a plain convolution of the last.

    Args:
        channels: of the image.
        image_size: height and width of the image, in pixels; a multiple of 8.
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
        channels: int = 1,
        image_size: int = 32,
        dim: int = 10,
        num_steps: int = 1000,
        time_dim: int = 100,
        timestep_table: str = "original",
    ):
        super().__init__()
        check_counts(channels=channels, dim=dim, num_steps=num_steps, time_dim=time_dim)
        check_divides("image_size", image_size, 8, "for three halvings")
        w1, w2, w3 = dim, 2 * dim, 4 * dim

        def stage(size: int, *widths: int) -> Stage:
            return Stage(time_dim, widths, size)

        self.time_table = TimestepTable(timesteps.timestep_table(timestep_table, num_steps, time_dim))
        self.down = nn.ModuleList(
            [
                stage(image_size, channels, w1, w1, w1),
                stage(image_size // 2, w1, w2, w2, w2),
                stage(image_size // 4, w2, w3, w3, w3),
            ]
        )
        self.downsamples = nn.ModuleList(nn.Conv2d(w, w, 4, 2, padding=1) for w in (w1, w2, w3))
        self.middle = stage(image_size // 8, w3, w2, w2, w3)
        self.upsamples = nn.ModuleList(nn.ConvTranspose2d(w, w, 4, 2, padding=1) for w in (w3, w2, w1))
        self.up = nn.ModuleList(
            [
                stage(image_size // 4, 2 * w3, w3, w2, w2),
                stage(image_size // 2, 2 * w2, w2, w1, w1),
                stage(image_size, 2 * w1, w1, w1, w1),
            ]
        )
        self.conv_out = nn.Conv2d(w1, channels, 3, padding=1)

    def forward(self, x_t: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """Predict the noise.

        Args:
            x_t: (B, channels, image_size, image_size) noised images.
            t: (B,) int64 times, 0..T-1.
            labels: None.

        Returns:
            (B, channels, image_size, image_size).

        Raises:
            ValueError: labels given.
        """
        refuse_labels(labels)
        emb = self.time_table(t, x_t.dtype)
        x, skips = x_t, []
        for stage, downsample in zip(self.down, self.downsamples, strict=True):
            skips.append(stage(x, emb))
            x = downsample(skips[-1])
        x = self.middle(x, emb)
        for upsample, stage in zip(self.upsamples, self.up, strict=True):
            x = stage(torch.cat([skips.pop(), upsample(x)], dim=1), emb)
        return self.conv_out(x)
