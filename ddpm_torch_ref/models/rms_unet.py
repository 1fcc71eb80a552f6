"""The U-Net of denoising-diffusion-pytorch 2.x: RMS norms, attention with learned keys and values, pixel-unshuffling."""

from collections.abc import Sequence
from functools import partial
from math import sqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddpm_torch_ref.checks import check_counts, check_dim, check_dim_mults, check_divides, check_dropout, refuse_labels
from ddpm_torch_ref.models.annotated_unet import Middle, TimeMLP

MEMORY = 4
"""Learned keys, and values, of each attention."""


class RMSNorm(nn.Module):
    """Bring the channels of each pixel to length sqrt(C), and scale them (Zhang & Sennrich 2019)."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) -> the same shape."""
        return F.normalize(x, dim=1) * sqrt(len(self.weight)) * self.weight[:, None, None]


class ResBlock(nn.Module):
    """conv, norm, scale and shift by time, SiLU, dropout; conv, norm, SiLU; plus the input."""

    def __init__(self, width_in: int, width_out: int, *, time_dim: int, dropout: float):
        super().__init__()
        self.time_proj = nn.Linear(time_dim, 2 * width_out)
        self.conv1 = nn.Conv2d(width_in, width_out, 3, padding=1)
        self.norm1 = RMSNorm(width_out)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(width_out, width_out, 3, padding=1)
        self.norm2 = RMSNorm(width_out)
        self.shortcut = nn.Conv2d(width_in, width_out, 1) if width_in != width_out else None

    def forward(self, x: Tensor, time_emb: Tensor) -> Tensor:
        """x (B, width_in, H, W), activated embedding (B, time_dim) -> (B, width_out, H, W)."""
        scale, shift = self.time_proj(time_emb)[:, :, None, None].chunk(2, dim=1)
        h = F.silu(self.norm1(self.conv1(x)) * (1 + scale) + shift)
        h = F.silu(self.norm2(self.conv2(self.dropout(h))))
        return h + (x if self.shortcut is None else self.shortcut(x))


class MemoryAttention(nn.Module):
    """Attention between the pixels, which also see MEMORY learned keys and values, added to the input.

    full: softmax(q k^T / sqrt(head width)) v; otherwise that of linear cost (Shen et al. 2021), and a norm at the end.
    """

    def __init__(self, width: int, *, full: bool, heads: int, head_dim: int):
        super().__init__()
        self.full = full
        self.heads = heads
        self.norm = RMSNorm(width)
        shape = (MEMORY, head_dim) if full else (head_dim, MEMORY)
        self.memory = nn.Parameter(torch.randn(2, heads, *shape))
        self.qkv = nn.Conv2d(width, 3 * heads * head_dim, 1, bias=False)
        self.proj = nn.Conv2d(heads * head_dim, width, 1)
        self.norm_out = None if full else RMSNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) -> the same shape."""
        pixels = self.qkv(self.norm(x)).unflatten(1, (3, self.heads, -1)).flatten(4)
        q, k, v = pixels.unbind(1)  # each (B, heads, head width, H W)
        remembered = self.memory.transpose(2, 3) if self.full else self.memory
        keys, values = remembered.expand(x.shape[0], -1, -1, -1, -1).unbind(1)
        k, v = torch.cat([keys, k], dim=3), torch.cat([values, v], dim=3)
        if self.full:
            h = v @ (k.transpose(2, 3) @ q / sqrt(q.shape[2])).softmax(dim=2)
        else:
            h = v @ k.softmax(dim=3).transpose(2, 3) @ q.softmax(dim=2) / sqrt(q.shape[2])
        h = self.proj(h.flatten(1, 2).unflatten(2, x.shape[2:]))
        return x + (h if self.norm_out is None else self.norm_out(h))


class DownStage(nn.Module):
    """Two blocks, attention, and the convolution that leads on; after pixel-unshuffling where it `halves`."""

    def __init__(self, block1: nn.Module, block2: nn.Module, attention: nn.Module, resample: nn.Module, halves: bool):
        super().__init__()
        self.block1 = block1
        self.block2 = block2
        self.attention = attention
        self.resample = resample
        self.halves = halves

    def forward(self, x: Tensor, time_emb: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, width, H, W) -> both skips, of the same shape, and what leads on, of half the size where it is halved."""
        first = self.block1(x, time_emb)
        second = self.attention(self.block2(first, time_emb))
        return first, second, self.resample(F.pixel_unshuffle(second, 2) if self.halves else second)


class UpStage(nn.Module):
    """Two blocks, each with a skip, attention, and the convolution that leads on; after doubling, nearest, where it `doubles`."""

    def __init__(self, block1: nn.Module, block2: nn.Module, attention: nn.Module, resample: nn.Module, doubles: bool):
        super().__init__()
        self.block1 = block1
        self.block2 = block2
        self.attention = attention
        self.resample = resample
        self.doubles = doubles

    def forward(self, x: Tensor, skips: tuple[Tensor, Tensor], time_emb: Tensor) -> Tensor:
        """x (B, width, H, W), the skips of the way down -> (B, next width, H, W), of twice the size where it is doubled."""
        first, second = skips
        x = self.block1(torch.cat([x, second], dim=1), time_emb)
        x = self.attention(self.block2(torch.cat([x, first], dim=1), time_emb))
        return self.resample(F.interpolate(x, scale_factor=2.0, mode="nearest") if self.doubles else x)


class RMSUNet(nn.Module):
    """The `Unet` of denoising-diffusion-pytorch 2.x (Wang, 2020 to 2025).

    Args:
        channels: of the image.
        image_size: height and width of the image, in pixels; divisible by 2^(levels - 1).
        dim: base width, even and at least 4.
        dim_mults: width that each level leads to as a multiple of dim, the highest resolution first.
        init_dim: width of the first convolution; None: dim.
        num_heads: of every attention.
        head_dim: width of a head.
        full_attention: for each level, whether its attention is full; None: the last alone.
        dropout: probability, in [0, 1), in the first half of each block.
        learn_variance: twice the channels out.
        self_conditioning: twice the channels in, x_t and then a guess of x_0.

    Raises:
        ValueError: an option out of range.
    """

    def __init__(
        self,
        *,
        channels: int = 3,
        image_size: int = 128,
        dim: int = 64,
        dim_mults: Sequence[int] = (1, 2, 4, 8),
        init_dim: int | None = None,
        num_heads: int = 4,
        head_dim: int = 32,
        full_attention: Sequence[bool] | None = None,
        dropout: float = 0.0,
        learn_variance: bool = False,
        self_conditioning: bool = False,
    ):
        super().__init__()
        check_counts(channels=channels, init_dim=init_dim, num_heads=num_heads, head_dim=head_dim)
        check_dim(dim)
        check_dim_mults(dim_mults)
        levels = len(dim_mults)
        check_divides("image_size", image_size, 2 ** (levels - 1), f"for {levels} levels")
        full = [level == levels - 1 for level in range(levels)] if full_attention is None else list(full_attention)
        if len(full) != levels:
            raise ValueError(f"full_attention must say yes or no for each of {levels} levels; got {tuple(full)}.")
        check_dropout(dropout)
        make = partial(ResBlock, time_dim=4 * dim, dropout=dropout)
        attend = partial(MemoryAttention, heads=num_heads, head_dim=head_dim)
        first = dim if init_dim is None else init_dim
        widths = [first, *(dim * mult for mult in dim_mults)]

        self.self_conditioning = self_conditioning
        self.conv_in = nn.Conv2d(channels * (1 + self_conditioning), first, 7, padding=3)
        self.time_mlp = TimeMLP(dim, partial(F.gelu, approximate="none"))
        self.down = nn.ModuleList()
        self.up = nn.ModuleList()
        for i in range(levels):
            fine, coarse, halve = widths[i], widths[i + 1], i < levels - 1
            on = nn.Conv2d(4 * fine, coarse, 1) if halve else nn.Conv2d(fine, coarse, 3, padding=1)
            self.down.append(DownStage(make(fine, fine), make(fine, fine), attend(fine, full=full[i]), on, halve))
            blocks = make(fine + coarse, coarse), make(fine + coarse, coarse)
            on = nn.Conv2d(coarse, fine, 3, padding=1)
            self.up.insert(0, UpStage(*blocks, attend(coarse, full=full[i]), on, doubles=i > 0))
        last = widths[-1]
        self.middle = Middle(make(last, last), make(last, last), attend(last, full=True))
        self.block_out = make(2 * first, first)
        self.conv_out = nn.Conv2d(first, channels * (1 + learn_variance), 1)

    def forward(self, x_t: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """Predict the noise, the clean image or the velocity, as it was trained.

        Args:
            x_t: (B, channels, image_size, image_size) noised images; twice the channels with self-conditioning.
            t: (B,) int64 times.
            labels: None.

        Returns:
            (B, channels, image_size, image_size); twice the channels where the variance is learned.

        Raises:
            ValueError: labels given.
        """
        refuse_labels(labels)
        time_emb = F.silu(self.time_mlp(t))
        x = start = self.conv_in(x_t)
        skips = []
        for stage in self.down:
            *both, x = stage(x, time_emb)
            skips.append(both)
        x = self.middle(x, time_emb)
        for stage in self.up:
            x = stage(x, skips.pop(), time_emb)
        return self.conv_out(self.block_out(torch.cat([x, start], dim=1), time_emb))
