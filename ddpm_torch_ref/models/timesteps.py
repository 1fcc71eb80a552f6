"""Fixed timestep tables, and the projection that adds a row of them to a map."""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ddpm_torch_ref.checks import check_choice

TABLES = ("original", "sinusoidal")


class TimestepTable(nn.Module):
    """(B,) times -> (B, width): rows of a fixed table, kept in float64 and outside the state dict."""

    values: Tensor

    def __init__(self, values: NDArray[np.float64]):
        super().__init__()
        self.register_buffer("values", torch.from_numpy(values), persistent=False)

    def forward(self, t: Tensor, dtype: torch.dtype) -> Tensor:
        """The rows of times t, (B,), in the given dtype; a time between two rows gets their mixture."""
        if not t.is_floating_point():
            return self.values[t].to(dtype)
        below = t.floor().long().clamp(0, len(self.values) - 2)
        return torch.lerp(self.values[below], self.values[below + 1], (t - below).to(self.values)[:, None]).to(dtype)


class TimeProj(nn.Module):
    """(B, time_dim) rows -> (B, width, 1, 1), to be added to a map: linear, SiLU, linear."""

    def __init__(self, time_dim: int, width: int):
        super().__init__()
        self.linear1 = nn.Linear(time_dim, width)
        self.linear2 = nn.Linear(width, width)

    def forward(self, emb: Tensor) -> Tensor:
        """Project rows of a table, (B, time_dim)."""
        return self.linear2(F.silu(self.linear1(emb)))[:, :, None, None]


def convnext_table(num_steps: int, width: int) -> NDArray[np.float64]:
    """(num_steps + 1, width): sin in even columns, cos in odd ones, of (t + 1) 10^(-4 k/width), k = 2, 2, 4, 4, …

    Vaswani et al. 2017, section 3.5, with t and k counted from one step further on (system 1).
    """
    t = np.arange(num_steps + 1)[:, None]
    k = 2 * (np.arange(width) // 2) + 2
    angles = (t + 1) * 1e-4 ** (k / width)
    return np.where(np.arange(width) % 2 == 0, np.sin(angles), np.cos(angles))


def timestep_table(kind: str, num_steps: int, width: int) -> NDArray[np.float64]:
    """(num_steps, width) table of system 2.

    Args:
        kind: "original": even rows are sin(R[i]), R[i, j] = i / 10000^(2j/width), and the odd row (1 - i) mod num_steps is
            cos(sin(R[i])), as in the published weights; or "sinusoidal": sin in even columns and cos in odd ones of
            t / 10000^(2 (j // 2)/width) (Vaswani et al. 2017, section 3.5).
        num_steps: T, even for "original".
        width: of a row.

    Raises:
        ValueError: an unknown kind, or an odd num_steps for the original.
    """
    check_choice("timestep_table", kind, TABLES)
    t, j = np.arange(num_steps)[:, None], np.arange(width)
    if kind == "sinusoidal":
        angles = t / 10000 ** (2 * (j // 2) / width)
        return np.where(j % 2 == 0, np.sin(angles), np.cos(angles))
    if num_steps % 2:
        raise ValueError(f'num_steps must be even for timestep_table = "original"; got {num_steps}.')
    even = np.arange(0, num_steps, 2)
    table = np.empty((num_steps, width))
    table[even] = np.sin((t / 10000 ** (2 * j / width))[even])
    table[1 - even] = np.cos(table[even])
    return table
