"""System 3: the annotated U-Net, ConvNeXt blocks with linear attention."""

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddpm_torch_ref.checks import check_choice, check_counts, check_dim, check_dim_mults, check_divides, refuse_labels
from ddpm_torch_ref.models.convnext import ConvNeXtBlock
from ddpm_torch_ref.models.layers import timestep_embedding

HEADS = 4
HEAD_DIM = 32
GROUPS = 8
"""Groups of the norms of a ResNet block."""


class ResNetBlock(nn.Module):
    """3x3 convolution, GroupNorm, scale and shift by time, SiLU; again without time; plus the input.

    He et al. 2016, "Deep Residual Learning"; time as in Dhariwal & Nichol 2021.
    """

    def __init__(self, width_in: int, width_out: int, *, time_dim: int | None, bias: bool):
        super().__init__()
        self.time_proj = nn.Linear(time_dim, 2 * width_out) if time_dim is not None else None
        self.conv1 = nn.Conv2d(width_in, width_out, 3, padding=1, bias=bias)
        self.norm1 = nn.GroupNorm(GROUPS, width_out)
        self.conv2 = nn.Conv2d(width_out, width_out, 3, padding=1, bias=bias)
        self.norm2 = nn.GroupNorm(GROUPS, width_out)
        self.shortcut = nn.Conv2d(width_in, width_out, 1, bias=bias) if width_in != width_out else None

    def forward(self, x: Tensor, time_emb: Tensor | None = None) -> Tensor:
        """x (B, width_in, H, W), activated embedding (B, time_dim) or None -> (B, width_out, H, W)."""
        h = self.norm1(self.conv1(x))
        if self.time_proj is not None and time_emb is not None:
            scale, shift = self.time_proj(time_emb)[:, :, None, None].chunk(2, dim=1)
            h = h * (scale + 1) + shift
        h = F.silu(self.norm2(self.conv2(F.silu(h))))
        return h + (x if self.shortcut is None else self.shortcut(x))


class ChannelNorm(nn.Module):
    """Normalise the channels of each pixel, and scale them (Ba et al. 2016, "Layer Normalization", without shift)."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) -> the same shape."""
        h = F.layer_norm(x.movedim(1, 3), self.weight.shape, self.weight, eps=1e-5)
        return h.movedim(3, 1)


class Attention(nn.Module):
    """Self-attention between the pixels, 4 heads of 32 channels, added to the input (Vaswani et al. 2017, eq. 1)."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.GroupNorm(1, width)
        self.qkv = nn.Conv2d(width, 3 * HEADS * HEAD_DIM, 1, bias=False)
        self.proj = nn.Conv2d(HEADS * HEAD_DIM, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) -> the same shape."""
        qkv = self.qkv(self.norm(x)).unflatten(1, (3, HEADS, HEAD_DIM)).flatten(4)
        h = self.mix(*qkv.unbind(1))  # (B, heads, head width, H W)
        return x + self.finish(h.flatten(1, 2).unflatten(2, x.shape[2:]))

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Each (B, heads, head width, pixels) -> the same shape."""
        weights = (q.transpose(2, 3) @ k * HEAD_DIM**-0.5).softmax(dim=3)
        return v @ weights.transpose(2, 3)

    def finish(self, h: Tensor) -> Tensor:
        """The heads' maps (B, 128, H, W) -> (B, C, H, W)."""
        return self.proj(h)


class LinearAttention(Attention):
    """The same at a cost linear in the pixels, then a channel norm (Shen et al. 2021, "Efficient Attention")."""

    def __init__(self, width: int):
        super().__init__(width)
        self.norm_out = ChannelNorm(width)

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Each (B, heads, head width, pixels) -> the same shape."""
        q = q.softmax(dim=2) * HEAD_DIM**-0.5
        context = k.softmax(dim=3) @ (v / v.shape[3]).transpose(2, 3)
        return context.transpose(2, 3) @ q

    def finish(self, h: Tensor) -> Tensor:
        """The heads' maps (B, 128, H, W) -> (B, C, H, W)."""
        return self.norm_out(self.proj(h))


class TimeMLP(nn.Module):
    """(B,) times -> (B, 4 dim): the sinusoidal embedding, linear, GELU, linear."""

    def __init__(self, dim: int, gelu: partial[Tensor]):
        super().__init__()
        self.dim = dim
        self.gelu = gelu
        self.linear1 = nn.Linear(dim, 4 * dim)
        self.linear2 = nn.Linear(4 * dim, 4 * dim)

    def forward(self, t: Tensor) -> Tensor:
        """Embed times t, (B,)."""
        h = timestep_embedding(t, self.dim, self.linear1.weight.dtype)
        return self.linear2(self.gelu(self.linear1(h)))


class Stage(nn.Module):
    """Two blocks, then attention."""

    def __init__(self, block1: nn.Module, block2: nn.Module, attention: nn.Module):
        super().__init__()
        self.block1 = block1
        self.block2 = block2
        self.attention = attention

    def forward(self, x: Tensor, time_emb: Tensor) -> Tensor:
        """x (B, width_in, H, W) -> (B, width, H, W)."""
        return self.attention(self.block2(self.block1(x, time_emb), time_emb))


class Middle(Stage):
    """Block, attention, block."""

    def forward(self, x: Tensor, time_emb: Tensor) -> Tensor:
        """x (B, C, H, W) -> the same shape."""
        return self.block2(self.attention(self.block1(x, time_emb)), time_emb)


class AnnotatedUNet(nn.Module):
    """The U-Net of "The Annotated Diffusion Model" (Rogge & Rasul 2022) as it stands in MindSpore.

    Args:
        channels: of the image.
        image_size: height and width of the image, in pixels; divisible by 2^(levels - 1).
        dim: base width, even and at least 4; a multiple of 8 for ResNet blocks.
        dim_mults: width of each level as a multiple of dim, the highest resolution first.
        gelu: "tanh", MindSpore's approximation, or "exact", PyTorch's.
        conv_bias: biases in all convolutions, as in PyTorch, or in the first and those that end attention alone; those
            that begin attention have none.
        block: "convnext" or "resnet".
        expansion: of the ConvNeXt blocks.

    Raises:
        ValueError: an option out of range.
    """

    def __init__(
        self,
        *,
        channels: int = 1,
        image_size: int = 28,
        dim: int = 28,
        dim_mults: Sequence[int] = (1, 2, 4),
        gelu: str = "tanh",
        conv_bias: bool = False,
        block: str = "convnext",
        expansion: int = 2,
    ):
        super().__init__()
        check_counts(channels=channels, expansion=expansion)
        check_choice("gelu", gelu, ("tanh", "exact"))
        check_choice("block", block, ("convnext", "resnet"))
        check_dim(dim)
        check_dim_mults(dim_mults)
        levels = len(dim_mults)
        check_divides("image_size", image_size, 2 ** (levels - 1), f"for {levels} levels")
        if block == "resnet":
            check_divides("dim", dim, GROUPS, "the groups of the norms of ResNet blocks")
        activation = partial(F.gelu, approximate="tanh" if gelu == "tanh" else "none")
        widths = [dim // 3 * 2, *(dim * mult for mult in dim_mults)]

        def make(width_in: int, width_out: int, time_dim: int | None = 4 * dim) -> nn.Module:
            if block == "resnet":
                return ResNetBlock(width_in, width_out, time_dim=time_dim, bias=conv_bias)
            return ConvNeXtBlock(
                width_in, width_out, expansion=expansion, gelu=activation, time_dim=time_dim, bias=conv_bias
            )

        def stage(width_in: int, width: int) -> Stage:
            return Stage(make(width_in, width), make(width, width), LinearAttention(width))

        # A block activates the embedding that it projects, and all of them alike: it is done once.
        self.activation = activation if block == "convnext" else F.silu
        self.conv_in = nn.Conv2d(channels, widths[0], 7, padding=3)
        self.time_mlp = TimeMLP(dim, activation)
        self.down = nn.ModuleList(stage(widths[i], widths[i + 1]) for i in range(levels))
        self.downsamples = nn.ModuleList(
            nn.Conv2d(width, width, 4, 2, padding=1, bias=conv_bias) for width in widths[1:-1]
        )
        last = widths[-1]
        self.middle = Middle(make(last, last), make(last, last), Attention(last))
        self.up = nn.ModuleList(stage(2 * widths[i + 1], widths[i]) for i in range(levels - 1, 0, -1))
        self.upsamples = nn.ModuleList(
            nn.ConvTranspose2d(width, width, 4, 2, padding=1, bias=conv_bias) for width in widths[-2:0:-1]
        )
        self.block_out = make(widths[1], dim, time_dim=None)
        self.conv_out = nn.Conv2d(dim, channels, 1, bias=conv_bias)

    def forward(self, x_t: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """Predict the noise.

        Args:
            x_t: (B, channels, image_size, image_size) noised images.
            t: (B,) int64 times.
            labels: None.

        Returns:
            (B, channels, image_size, image_size).

        Raises:
            ValueError: labels given.
        """
        refuse_labels(labels)
        time_emb = self.activation(self.time_mlp(t))
        x, skips = self.conv_in(x_t), []
        for i, stage in enumerate(self.down):
            x = stage(x, time_emb)
            skips.append(x)
            if i < len(self.downsamples):
                x = self.downsamples[i](x)
        x = self.middle(x, time_emb)
        for stage, upsample in zip(self.up, self.upsamples, strict=True):
            x = upsample(stage(torch.cat([x, skips.pop()], dim=1), time_emb))
        return self.conv_out(self.block_out(x))
