"""System 1: the class-conditional ConvNeXt U-Net for digits, and its large variant."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddpm_torch_ref.checks import check_counts
from ddpm_torch_ref.models.convnext import ConvNeXtBlock
from ddpm_torch_ref.models.timesteps import TimestepTable, convnext_table


class PixelAttention(nn.Module):
    """Self-attention between the pixels, one head, added to the input: softmax(q k^T / sqrt(width)) v.

    Vaswani et al. 2017, eq. 1.
    """

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.GroupNorm(1, width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) -> the same shape."""
        tokens = self.norm(x).flatten(2).transpose(1, 2)  # (B, H W, C)
        q, k, v = self.qkv(tokens).chunk(3, dim=2)
        # At 224 x 224 pixels the matrix of weights would take 10 GB an image: this call never holds it whole.
        h = self.proj(F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0])
        return x + h.transpose(1, 2).reshape(x.shape)


class Stage(nn.Module):
    """A ConvNeXt block, then attention."""

    def __init__(self, block: ConvNeXtBlock, width: int):
        super().__init__()
        self.block = block
        self.attention = PixelAttention(width)

    def forward(self, x: Tensor, time_emb: Tensor | None, class_emb: Tensor | None) -> Tensor:
        """x (B, width_in, H, W) -> (B, width, H, W)."""
        return self.attention(self.block(x, time_emb, class_emb))


class ConvNeXtUNet(nn.Module):
    """Three levels of 16, 32, 64 channels, the last of them thirded, 128 in the middle.

    Args:
        channels: of the image.
        image_size: height and width of the image, in pixels, which the strides bring down and up again: 4 more than a multiple of
            12; the embeddings are four times as wide.
        num_classes: number of labels.
        num_steps: T; t = 0..T have a row in the timestep table.
        expansion: of the ConvNeXt blocks.

    Raises:
        ValueError: an option out of range.
    """

    widths: Sequence[int] = (16, 32, 64, 128)
    """Widths of the stages going down, the last of them the middle."""
    strides: Sequence[int] = (2, 2, 3)
    """Strides of the convolutions between them."""
    width_last: int = 8
    """Width of the last stage."""

    def __init__(
        self,
        *,
        channels: int = 1,
        image_size: int = 28,
        num_classes: int = 10,
        num_steps: int = 500,
        expansion: int = 3,
    ):
        super().__init__()
        check_counts(channels=channels, num_classes=num_classes, num_steps=num_steps, expansion=expansion)
        _check_size(image_size, self.strides)
        emb_dim = 4 * image_size
        self.num_classes = num_classes

        def block(width_in: int, width_out: int) -> ConvNeXtBlock:
            return ConvNeXtBlock(
                width_in, width_out, expansion=expansion, gelu=F.gelu, time_dim=emb_dim, class_dim=emb_dim
            )

        self.time_table = TimestepTable(convnext_table(num_steps, emb_dim))
        self.class_embed = nn.Embedding(num_classes, emb_dim)

        self.down = nn.ModuleList()
        self.downsamples = nn.ModuleList()
        width = channels
        for i, stride in enumerate(self.strides):
            self.down.append(Stage(block(width, self.widths[i]), self.widths[i]))
            width = self.widths[i + 1]
            self.downsamples.append(nn.Conv2d(self.widths[i], width, 3, stride, padding=1))

        self.middle = Stage(block(width, width), width)

        self.upsamples = nn.ModuleList()
        self.up = nn.ModuleList()
        for i, stride in reversed(list(enumerate(self.strides))):
            # 14 -> 7 -> 14, but 7 -> 3 -> 7: only halved maps lose a pixel that has to come back.
            lost = 1 if stride == 2 else 0
            self.upsamples.append(nn.ConvTranspose2d(width, self.widths[i], 3, stride, padding=1, output_padding=lost))
            width = self.widths[i] if i > 0 else self.width_last
            self.up.append(Stage(block(2 * self.widths[i], width), width))

        self.block_out = block(width, channels)

    def forward(self, x_t: Tensor, t: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        """Predict the noise.

        Args:
            x_t: (B, channels, image_size, image_size) noised images.
            t: (B,) int64 times; None leaves that conditioning out.
            labels: (B,) int64 classes, 0..num_classes - 1; None leaves that conditioning out.

        Returns:
            (B, channels, image_size, image_size).
        """
        time_emb = None if t is None else F.silu(self.time_table(t, x_t.dtype))
        class_emb = None if labels is None else F.silu(self.class_embed(labels))
        x, skips = x_t, []
        for stage, downsample in zip(self.down, self.downsamples, strict=True):
            skips.append(stage(x, time_emb, class_emb))
            x = downsample(skips[-1])
        x = self.middle(x, time_emb, class_emb)
        for upsample, stage in zip(self.upsamples, self.up, strict=True):
            x = stage(torch.cat([upsample(x), skips.pop()], dim=1), time_emb, class_emb)
        return self.block_out(x, time_emb, class_emb)


class ConvNeXtUNet224(ConvNeXtUNet):
    """Five halving levels of 16 to 256 channels, 512 in the middle; image_size: a multiple of 32. See ConvNeXtUNet."""

    widths = (16, 32, 64, 128, 256, 512)
    strides = (2, 2, 2, 2, 2)
    width_last = 16

    def __init__(
        self,
        *,
        channels: int = 3,
        image_size: int = 224,
        num_classes: int = 1000,
        num_steps: int = 500,
        expansion: int = 3,
    ):
        sizes = {"channels": channels, "image_size": image_size, "num_classes": num_classes}
        super().__init__(**sizes, num_steps=num_steps, expansion=expansion)


def _check_size(image_size: int, strides: Sequence[int]) -> None:
    """A 3x3 convolution of stride 2 and back restores even sizes, one of stride 3 those that leave 1 when divided by 3."""
    size = image_size
    for stride in strides:
        if size < 1 or size % stride != stride - 2:
            raise ValueError(
                f"image_size must come back from the strides {strides}, as 28 or 224 does; got {image_size}."
            )
        size = (size - 1) // stride + 1
