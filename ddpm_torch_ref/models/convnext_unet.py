"""System 1: the class-conditional ConvNeXt U-Net for digits, and its large variant."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddpm_torch_ref.models.checks import check_counts, check_divides
from ddpm_torch_ref.models.convnext import ConvNeXtBlock
from ddpm_torch_ref.models.timesteps import TimestepTable, shifted_table


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


class Base(nn.Module):
    """The network of both variants.

    Args:
        channels: of the image.
        image_size: height and width of the image, in pixels; the embeddings are four times as wide.
        num_classes: number of labels.
        num_steps: T; t = 0..T have a row in the timestep table.
        expansion: of the ConvNeXt blocks.
        widths: of the stages going down, the last of them the middle.
        strides: of the convolutions between them, 2 or 3.
        width_last: of the last stage.
    """

    def __init__(
        self,
        channels: int,
        image_size: int,
        num_classes: int,
        num_steps: int,
        expansion: int,
        *,
        widths: Sequence[int],
        strides: Sequence[int],
        width_last: int,
    ):
        super().__init__()
        check_counts(channels=channels, num_classes=num_classes, num_steps=num_steps, expansion=expansion)
        emb_dim = 4 * image_size

        def block(width_in: int, width_out: int) -> ConvNeXtBlock:
            return ConvNeXtBlock(
                width_in, width_out, expansion=expansion, gelu=F.gelu, time_dim=emb_dim, class_dim=emb_dim
            )

        self.time_table = TimestepTable(shifted_table(num_steps, emb_dim))
        self.class_embed = nn.Embedding(num_classes, emb_dim)

        self.down = nn.ModuleList()
        self.downsamples = nn.ModuleList()
        width = channels
        for i, stride in enumerate(strides):
            self.down.append(Stage(block(width, widths[i]), widths[i]))
            width = widths[i + 1]
            self.downsamples.append(nn.Conv2d(widths[i], width, 3, stride, padding=1))

        self.middle = Stage(block(width, width), width)

        self.upsamples = nn.ModuleList()
        self.up = nn.ModuleList()
        for i, stride in reversed(list(enumerate(strides))):
            # 14 -> 7 -> 14, but 7 -> 3 -> 7: only halved maps lose a pixel that has to come back.
            lost = 1 if stride == 2 else 0
            self.upsamples.append(nn.ConvTranspose2d(width, widths[i], 3, stride, padding=1, output_padding=lost))
            width = widths[i] if i > 0 else width_last
            self.up.append(Stage(block(2 * widths[i], width), width))

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


class ConvNeXtUNet(Base):
    """Three levels of 16, 32, 64 channels, the last of them thirded, 128 in the middle.

    Args:
        channels: of the image.
        image_size: height and width of the image, in pixels; 4 more than a multiple of 12.
        num_classes: number of labels.
        num_steps: T; t = 0..T have a row in the timestep table.
        expansion: of the ConvNeXt blocks.

    Raises:
        ValueError: an option out of range.
    """

    def __init__(
        self,
        *,
        channels: int = 1,
        image_size: int = 28,
        num_classes: int = 10,
        num_steps: int = 500,
        expansion: int = 3,
    ):
        if image_size < 1 or image_size % 12 != 4:
            raise ValueError(
                f"image_size must be 4 more than a multiple of 12, to be halved twice, cut to a third, and restored; "
                f"got {image_size}."
            )
        super().__init__(
            channels,
            image_size,
            num_classes,
            num_steps,
            expansion,
            widths=(16, 32, 64, 128),
            strides=(2, 2, 3),
            width_last=8,
        )


class ConvNeXtUNet224(Base):
    """Five halving levels of 16 to 256 channels, 512 in the middle.

    Args:
        channels: of the image.
        image_size: height and width of the image, in pixels; a multiple of 32.
        num_classes: number of labels.
        num_steps: T; t = 0..T have a row in the timestep table.
        expansion: of the ConvNeXt blocks.

    Raises:
        ValueError: an option out of range.
    """

    def __init__(
        self,
        *,
        channels: int = 3,
        image_size: int = 224,
        num_classes: int = 1000,
        num_steps: int = 500,
        expansion: int = 3,
    ):
        check_divides("image_size", image_size, 32, "for five halvings")
        super().__init__(
            channels,
            image_size,
            num_classes,
            num_steps,
            expansion,
            widths=(16, 32, 64, 128, 256, 512),
            strides=(2, 2, 2, 2, 2),
            width_last=16,
        )
