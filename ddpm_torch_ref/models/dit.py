"""The diffusion transformer on pixels: adaLN-Zero, a fixed table of positions, and by option U-ViT's long skips."""

from math import isfinite

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ddpm_torch_ref.checks import check_counts, check_divides
from ddpm_torch_ref.models.layers import timestep_embedding

TIME_WIDTH = 256
NORM_EPS = 1e-6


def position_table(size: int, dim: int) -> NDArray[np.float64]:
    """(size * size, dim) rows for the patches of a square, left to right and then down.

    A row is [e(x), e(y)] of its patch's column x and row y, with e(p) = [sin(p w), cos(p w)] and w_k = 10000^(-4 k / dim).
    Vaswani et al. 2017, section 3.5, for two axes.
    """
    y, x = np.divmod(np.arange(size * size), size)
    w = 1e4 ** (-4 * np.arange(dim // 4) / dim)
    return np.hstack([wave(p[:, None] * w) for p in (x, y) for wave in (np.sin, np.cos)])


def unpatchify(x: Tensor, patch_size: int) -> Tensor:
    """(B, N, p * p * C) patches of a square, each (p, p, C) -> (B, C, H, W)."""
    batch, count, width = x.shape
    side = int(count**0.5 + 0.5)
    grid = x.reshape(batch, side, side, patch_size, patch_size, width // patch_size**2)
    # (batch, row, column, y, x, channel) -> (batch, channel, row, y, column, x)
    return grid.permute(0, 5, 1, 3, 2, 4).reshape(batch, -1, side * patch_size, side * patch_size)


class PatchEmbed(nn.Module):
    """(B, C, H, W) -> (B, N, dim): a linear map of every patch, as a convolution of stride patch_size."""

    def __init__(self, channels: int, dim: int, patch_size: int):
        super().__init__()
        self.proj = nn.Conv2d(channels, dim, patch_size, stride=patch_size)
        # Xavier's bound for the linear map that it is, not for a convolution.
        nn.init.xavier_uniform_(self.proj.weight.detach().flatten(1))
        nn.init.zeros_(self.proj.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Embed images."""
        return self.proj(x).flatten(2).transpose(1, 2)


class TimestepEmbedder(nn.Module):
    """(B,) times -> (B, dim): cosines and sines, linear, SiLU, linear."""

    def __init__(self, dim: int):
        super().__init__()
        layers = nn.Linear(TIME_WIDTH, dim), nn.Linear(dim, dim)
        for layer in layers:
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        self.mlp = nn.Sequential(layers[0], nn.SiLU(), layers[1])

    def forward(self, t: Tensor) -> Tensor:
        """Embed times."""
        dtype = next(self.parameters()).dtype
        return self.mlp(timestep_embedding(t, TIME_WIDTH, dtype, freq_shift=0, cos_first=True))


class LabelEmbedder(nn.Module):
    """(B,) classes -> (B, dim): rows of a learned table."""

    def __init__(self, num_classes: int, dim: int):
        super().__init__()
        self.embedding_table = nn.Embedding(num_classes, dim)
        nn.init.normal_(self.embedding_table.weight, std=0.02)

    def forward(self, labels: Tensor) -> Tensor:
        """Look classes up."""
        return self.embedding_table(labels)


class SelfAttention(nn.Module):
    """(B, N, dim) -> the same: softmax(q k^T / sqrt(dim / heads)) v for each head (Vaswani et al. 2017, eq. 1)."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        _xavier(self.qkv, self.proj)

    def forward(self, x: Tensor) -> Tensor:
        """Let every token see all."""
        batch, count, dim = x.shape
        qkv = self.qkv(x).reshape(batch, count, 3, self.num_heads, dim // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, N, head width)
        weights = (q @ k.transpose(-2, -1) / (dim // self.num_heads) ** 0.5).softmax(dim=-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(batch, count, dim))


class FeedForward(nn.Module):
    """(B, N, dim) -> the same: linear, GELU by its tanh approximation, linear."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)
        _xavier(self.fc1, self.fc2)

    def forward(self, x: Tensor) -> Tensor:
        """Map every token."""
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class DiTBlock(nn.Module):
    """x + gate attn(modulated norm x), then the same with a feed-forward network (Peebles & Xie 2023, section 3.2).

    skips: x is first mixed with what the mirror image of this block gave: a linear map of both (Bao et al. 2023).
    """

    def __init__(self, dim: int, num_heads: int, hidden: int, *, skips: bool):
        super().__init__()
        self.skip_linear: nn.Linear | None = None
        if skips:
            self.skip_linear = nn.Linear(2 * dim, dim)
            _xavier(self.skip_linear)
        self.norm1 = _norm(dim)
        self.attn = SelfAttention(dim, num_heads)
        self.norm2 = _norm(dim)
        self.mlp = FeedForward(dim, hidden)
        self.adaLN_modulation = _modulation(dim, 6)

    def forward(self, x: Tensor, emb: Tensor, skip: Tensor | None = None) -> Tensor:
        """x (B, N, dim), emb (B, dim) of time and class -> (B, N, dim)."""
        if self.skip_linear is not None:
            assert skip is not None
            x = self.skip_linear(torch.cat([x, skip], dim=2))
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(emb).unsqueeze(1).chunk(6, dim=2)
        x = x + gate1 * self.attn(self.norm1(x) * (1 + scale1) + shift1)
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)


class FinalLayer(nn.Module):
    """(B, N, dim), (B, dim) -> (B, N, width_out): modulated norm, linear map that begins at zero."""

    def __init__(self, dim: int, width_out: int):
        super().__init__()
        self.norm_final = _norm(dim)
        self.linear = nn.Linear(dim, width_out)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.adaLN_modulation = _modulation(dim, 2)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Tokens to patches."""
        shift, scale = self.adaLN_modulation(emb).unsqueeze(1).chunk(2, dim=2)
        return self.linear(self.norm_final(x) * (1 + scale) + shift)


class DiT(nn.Module):
    """A transformer over the patches of an image, told time and class by adaptive norms that begin as the identity.

    Args:
        image_size: height and width of the image, in pixels; divisible by patch_size.
        channels: of the image.
        num_classes: number of labels, with the one for none, if any; None: unconditional.
        dim: width of a token, divisible by 4 and by num_heads.
        patch_size: height and width of a patch, in pixels.
        depth: blocks.
        num_heads: attention heads.
        mlp_ratio: hidden width of the feed-forward networks, as a multiple of dim; rounded down.
        learn_variance: twice the channels at the output, the second half for the variance (improved DDPM).
        long_skips: the last blocks see what the first gave, mirrored (U-ViT, Bao et al. 2023).

    Raises:
        ValueError: an option out of range.

    Peebles & Xie 2023, "Scalable Diffusion Models with Transformers".
    """

    positions: Tensor

    def __init__(
        self,
        *,
        image_size: int = 32,
        channels: int = 3,
        num_classes: int | None = None,
        dim: int = 384,
        patch_size: int = 2,
        depth: int = 12,
        num_heads: int = 6,
        mlp_ratio: float = 4.0,
        learn_variance: bool = False,
        long_skips: bool = False,
    ):
        super().__init__()
        check_counts(
            channels=channels, num_classes=num_classes, patch_size=patch_size, depth=depth, num_heads=num_heads
        )
        check_divides("image_size", image_size, patch_size, "the patch_size")
        check_divides("dim", dim, 4, "for sines and cosines of rows and columns")
        check_divides("dim", dim, num_heads, "the num_heads")
        if not isfinite(mlp_ratio) or dim * mlp_ratio < 1:
            raise ValueError(f"mlp_ratio must be finite and leave a width of at least 1; got {mlp_ratio}.")
        self.num_classes = num_classes
        self.patch_size = patch_size
        self.long_skips = long_skips
        self.x_embedder = PatchEmbed(channels, dim, patch_size)
        self.t_embedder = TimestepEmbedder(dim)
        self.y_embedder = None if num_classes is None else LabelEmbedder(num_classes, dim)
        # In float64 and outside the state dict, as tables of times are.
        self.register_buffer(
            "positions", torch.from_numpy(position_table(image_size // patch_size, dim)), persistent=False
        )
        half = depth // 2
        self.blocks = nn.ModuleList(
            DiTBlock(dim, num_heads, int(dim * mlp_ratio), skips=long_skips and i >= depth - half) for i in range(depth)
        )
        self.final_layer = FinalLayer(dim, patch_size**2 * channels * (2 if learn_variance else 1))

    def forward(self, x_t: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """Predict from noised images.

        Args:
            x_t: (B, channels, image_size, image_size).
            t: (B,) int64 times.
            labels: (B,) int64 classes, 0..num_classes - 1; given if and only if num_classes is.

        Returns:
            (B, channels, image_size, image_size), or twice the channels with learn_variance.

        Raises:
            ValueError: labels missing or unexpected.
        """
        emb = self.t_embedder(t)
        if self.y_embedder is not None:
            if labels is None:
                raise ValueError(f"labels are required: this network has num_classes = {self.num_classes}.")
            emb = emb + self.y_embedder(labels)
        elif labels is not None:
            raise ValueError("labels must be None: this network was made without num_classes.")
        x = self.x_embedder(x_t) + self.positions.to(x_t.dtype)
        kept: list[Tensor] = []
        for i, block in enumerate(self.blocks):
            x = block(x, emb, kept.pop() if block.skip_linear is not None else None)
            if self.long_skips and i < len(self.blocks) // 2:
                kept.append(x)
        return unpatchify(self.final_layer(x, emb), self.patch_size)


def _norm(dim: int) -> nn.LayerNorm:
    return nn.LayerNorm(dim, eps=NORM_EPS, elementwise_affine=False)


def _modulation(dim: int, parts: int) -> nn.Sequential:
    layer = nn.Linear(dim, parts * dim)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return nn.Sequential(nn.SiLU(), layer)


def _xavier(*layers: nn.Linear) -> None:
    for layer in layers:
        nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(layer.bias)
