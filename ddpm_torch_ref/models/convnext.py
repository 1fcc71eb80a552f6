"""The ConvNeXt block of systems 1 and 3."""

from collections.abc import Callable

from torch import Tensor, nn


class ConvNeXtBlock(nn.Module):
    """Depthwise 7x7, plus what it is told; norm, 3x3, GELU, norm, 3x3; plus the input.

    Args:
        width_in: channels in.
        width_out: channels out; where they differ, the input passes a 1x1 convolution.
        expansion: hidden channels as a multiple of width_out.
        gelu: the activation.
        time_dim: width of the time embedding; None: it takes none.
        class_dim: width of the class embedding; None: it takes none.
        bias: of the convolutions.

    After Liu et al. 2022, "A ConvNet for the 2020s", with 3x3 convolutions in place of 1x1.
    """

    def __init__(
        self,
        width_in: int,
        width_out: int,
        *,
        expansion: int,
        gelu: Callable[[Tensor], Tensor],
        time_dim: int | None = None,
        class_dim: int | None = None,
        bias: bool = True,
    ):
        super().__init__()
        hidden = width_out * expansion
        self.gelu = gelu
        self.time_proj = nn.Linear(time_dim, width_in) if time_dim is not None else None
        self.class_proj = nn.Linear(class_dim, width_in) if class_dim is not None else None
        self.depthwise = nn.Conv2d(width_in, width_in, 7, padding=3, groups=width_in, bias=bias)
        self.norm1 = nn.GroupNorm(1, width_in)
        self.conv1 = nn.Conv2d(width_in, hidden, 3, padding=1, bias=bias)
        self.norm2 = nn.GroupNorm(1, hidden)
        self.conv2 = nn.Conv2d(hidden, width_out, 3, padding=1, bias=bias)
        self.shortcut = nn.Conv2d(width_in, width_out, 1, bias=bias) if width_in != width_out else None

    def forward(self, x: Tensor, time_emb: Tensor | None = None, class_emb: Tensor | None = None) -> Tensor:
        """x (B, width_in, H, W), activated embeddings (B, time_dim) and (B, class_dim) or None -> (B, width_out, H, W)."""
        h = self.depthwise(x)
        for projection, emb in ((self.time_proj, time_emb), (self.class_proj, class_emb)):
            if projection is not None and emb is not None:
                h = h + projection(emb)[:, :, None, None]
        h = self.conv1(self.norm1(h))
        h = self.conv2(self.norm2(self.gelu(h)))
        return h + (x if self.shortcut is None else self.shortcut(x))
