"""System 5: two convolutions, the smallest of its networks."""

import torch.nn.functional as F
from torch import Tensor, nn

from ddpm_torch_ref.checks import check_counts, refuse_labels


class ConvNet(nn.Module):
    """3x3 convolution, BatchNorm, ReLU, 3x3 convolution; it does not see t.

    Args:
        channels: of the image.
        image_size: height and width of the image, in pixels; the network takes any size.
        dim: hidden width.

    Raises:
        ValueError: an option out of range.
    """

    def __init__(self, *, channels: int = 3, image_size: int = 32, dim: int = 64):
        super().__init__()
        check_counts(channels=channels, image_size=image_size, dim=dim)
        self.conv_in = nn.Conv2d(channels, dim, 3, padding=1)
        self.norm = nn.BatchNorm2d(dim)
        self.conv_out = nn.Conv2d(dim, channels, 3, padding=1)

    def forward(self, x_t: Tensor, t: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        """Predict the noise of images (B, channels, H, W); t is not used.

        Raises:
            ValueError: labels given.
        """
        refuse_labels(labels)
        return self.conv_out(F.relu(self.norm(self.conv_in(x_t))))
