"""System 4: the perceptron for points in the plane."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddpm_torch_ref.checks import check_counts, refuse_labels


class MLP(nn.Module):
    """(x, t/(T-1) - 1/2) through four linear maps, with ReLU between them.

    Args:
        data_dim: coordinates of a point.
        dim: hidden width.
        num_steps: T, at least 2.

    Raises:
        ValueError: an option out of range.
    """

    def __init__(self, *, data_dim: int = 2, dim: int = 256, num_steps: int = 1000):
        super().__init__()
        check_counts(dim=dim, data_dim=data_dim)
        if num_steps < 2:
            raise ValueError(f"num_steps must be at least 2, because t is divided by T - 1; got {num_steps}.")
        self.num_steps = num_steps
        widths = [data_dim + 1, dim, dim, dim, data_dim]
        self.layers = nn.ModuleList(nn.Linear(widths[i], widths[i + 1]) for i in range(4))

    def forward(self, x_t: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """Predict the noise.

        Args:
            x_t: (B, data_dim) noised points.
            t: (B,) int64 times, 0..T-1.
            labels: None.

        Returns:
            (B, data_dim).

        Raises:
            ValueError: labels given.
        """
        refuse_labels(labels)
        time = t.to(x_t.dtype)[:, None] / (self.num_steps - 1) - 0.5
        x = torch.cat([x_t, time], dim=1)
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)
