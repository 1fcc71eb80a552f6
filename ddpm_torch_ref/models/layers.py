"""The layers of the U-Net: time embedding, residual block, attention, resampling."""

from collections.abc import Callable
from math import log, sqrt

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

NORM_EPS = 1e-6
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"silu": F.silu, "gelu": F.gelu, "mish": F.mish, "relu": F.relu}


def timestep_embedding(
    t: Tensor, width: int, dtype: torch.dtype = torch.float32, *, freq_shift: int = 1, cos_first: bool = False
) -> Tensor:
    """(B,) times -> (B, width): concat(sin(t f), cos(t f)), f_i = 10000^(-i/(width/2 - freq_shift)).

    Ho et al. 2020, appendix B, in the form of their code; freq_shift 0 and cos_first, the other order, as in that of Nichol &
    Dhariwal 2021.
    """
    half = width // 2
    frequencies = np.exp(-log(10000) * np.arange(half) / (half - freq_shift))
    # In half precision not even t itself would be exact.
    precise = torch.promote_types(dtype, torch.float32)
    angles = t[:, None].to(precise) * torch.tensor(frequencies, dtype=precise, device=t.device)
    parts = (angles.cos(), angles.sin()) if cos_first else (angles.sin(), angles.cos())
    return torch.cat(parts, dim=1).to(dtype)


def conv(width_in: int, width_out: int, size: int = 3, *, zero: bool = False) -> nn.Conv2d:
    """A size x size convolution that keeps the map's size: Xavier uniform (or zero) weight, zero bias."""
    layer = nn.Conv2d(width_in, width_out, size, padding=size // 2)
    _initialise(layer, zero)
    return layer


def linear(width_in: int, width_out: int, *, zero: bool = False) -> nn.Linear:
    """A linear map: Xavier uniform (or zero) weight, zero bias."""
    layer = nn.Linear(width_in, width_out)
    _initialise(layer, zero)
    return layer


def group_norm(groups: int, width: int, eps: float = NORM_EPS) -> nn.GroupNorm:
    """GroupNorm with the epsilon that is usual here, 1e-6 (PyTorch's own default is 1e-5)."""
    return nn.GroupNorm(groups, width, eps=eps)


class TimeMLP(nn.Module):
    """(B,) times -> (B, width_out), four times width unless given: the sinusoidal embedding, linear, SiLU, linear."""

    def __init__(self, width: int, width_out: int | None = None, *, freq_shift: int = 1, cos_first: bool = False):
        super().__init__()
        self.width = width
        self.freq_shift = freq_shift
        self.cos_first = cos_first
        width_out = 4 * width if width_out is None else width_out
        self.linear1 = linear(width, width_out)
        self.linear2 = linear(width_out, width_out)

    def forward(self, t: Tensor) -> Tensor:
        """Embed times t, (B,)."""
        dtype = self.linear1.weight.dtype
        h = timestep_embedding(t, self.width, dtype, freq_shift=self.freq_shift, cos_first=self.cos_first)
        return self.linear2(F.silu(self.linear1(h)))


def resample_map(x: Tensor, direction: str) -> Tensor:
    """Double the map, nearest ("up"), or halve it by 2x2 means ("down")."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest") if direction == "up" else F.avg_pool2d(x, 2)


class ResBlock(nn.Module):
    """norm, activation, conv, time, norm, activation, dropout, conv, plus the input; optionally resampling on the way.

    Args:
        width_in: channels in.
        width_out: channels out.
        emb_width: width of the time embedding.
        norm_groups: groups of each norm.
        dropout: probability, in [0, 1).
        scale_shift: time scales and shifts the second norm's output (Dhariwal & Nichol 2021) instead of being
            added to its input.
        resample: "up" (nearest, x2) or "down" (2x2 mean) before the first conv and before the shortcut.
        eps: of each norm.
        activation: one of ACTIVATIONS.
        scale: what the sum is divided by.
    """

    def __init__(
        self,
        width_in: int,
        width_out: int,
        emb_width: int,
        *,
        norm_groups: int,
        dropout: float,
        scale_shift: bool,
        resample: str | None = None,
        eps: float = NORM_EPS,
        activation: str = "silu",
        scale: float = 1.0,
    ):
        super().__init__()
        self.scale_shift = scale_shift
        self.resample = resample
        self.activate = ACTIVATIONS[activation]
        self.scale = scale
        self.norm1 = group_norm(norm_groups, width_in, eps)
        self.conv1 = conv(width_in, width_out)
        self.time_proj = linear(emb_width, 2 * width_out if scale_shift else width_out)
        self.norm2 = group_norm(norm_groups, width_out, eps)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = conv(width_out, width_out, zero=True)
        self.shortcut = conv(width_in, width_out, size=1) if width_in != width_out else None

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """x (B, width_in, H, W), emb (B, emb_width) -> (B, width_out, H', W')."""
        h = self.activate(self.norm1(x))
        if self.resample is not None:
            h, x = resample_map(h, self.resample), resample_map(x, self.resample)
        h = self.conv1(h)
        e = self.time_proj(self.activate(emb))[:, :, None, None]
        if self.scale_shift:
            scale, shift = e.chunk(2, dim=1)
            h = self.norm2(h) * (1 + scale) + shift
        else:
            h = self.norm2(h + e)
        h = self.conv2(self.dropout(self.activate(h)))
        return (h + (x if self.shortcut is None else self.shortcut(x))) / self.scale


class Attention(nn.Module):
    """Self-attention between the pixels, added to the input: softmax(q k^T / sqrt(width / heads)) v.

    norm_groups 0: the input is not normalised. scale: what the sum is divided by. Vaswani et al. 2017, eq. 1.
    """

    def __init__(self, width: int, *, heads: int, norm_groups: int, eps: float = NORM_EPS, scale: float = 1.0):
        super().__init__()
        self.heads = heads
        self.scale = scale
        self.norm = group_norm(norm_groups, width, eps) if norm_groups else nn.Identity()
        self.qkv = linear(width, 3 * width)
        # Three width -> width maps in one: each keeps its own Xavier bound, sqrt(6 / (width + width)).
        nn.init.uniform_(self.qkv.weight, -sqrt(3 / width), sqrt(3 / width))
        self.proj = linear(width, width, zero=True)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) -> the same shape."""
        batch, width, height, breadth = x.shape
        tokens = self.norm(x).flatten(2).transpose(1, 2)  # (B, H W, C)
        q, k, v = (
            part.reshape(batch, -1, self.heads, width // self.heads).transpose(1, 2)  # (B, heads, H W, head width)
            for part in self.qkv(tokens).chunk(3, dim=2)
        )
        weights = (q @ k.transpose(2, 3) / sqrt(width // self.heads)).softmax(dim=3)
        h = self.proj((weights @ v).transpose(1, 2).reshape(batch, -1, width))
        return (x + h.transpose(1, 2).reshape(batch, width, height, breadth)) / self.scale


class Resize(nn.Module):
    """Double or halve the map without parameters (see resample_map); emb is not used (a ResBlock may stand in)."""

    def __init__(self, direction: str):
        super().__init__()
        self.direction = direction

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """x (B, C, H, W) -> (B, C, H', W')."""
        return resample_map(x, self.direction)


class Downsample(nn.Module):
    """Halve the map by a 3x3 convolution of stride 2; emb is not used (a ResBlock may stand in).

    pad_all_sides: by one pixel all around, instead of at the bottom and right.
    """

    def __init__(self, width: int, *, pad_all_sides: bool = False):
        super().__init__()
        # Ho et al.'s TensorFlow pads "SAME": at an even size and stride 2 that is bottom and right only.
        self.pad = (1, 1, 1, 1) if pad_all_sides else (0, 1, 0, 1)
        self.conv = nn.Conv2d(width, width, 3, stride=2)
        _initialise(self.conv, zero=False)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """x (B, C, H, W) -> (B, C, H/2, W/2)."""
        return self.conv(F.pad(x, self.pad))


class Upsample(nn.Module):
    """Double the map, nearest, then a 3x3 convolution; emb is not used (a ResBlock may stand in)."""

    def __init__(self, width: int):
        super().__init__()
        self.conv = conv(width, width)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """x (B, C, H, W) -> (B, C, 2 H, 2 W)."""
        return self.conv(resample_map(x, "up"))


def _initialise(layer: nn.Conv2d | nn.Linear, zero: bool) -> None:
    if zero:
        nn.init.zeros_(layer.weight)
    else:
        nn.init.xavier_uniform_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
