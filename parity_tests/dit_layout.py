"""DiT restated from its paper and its checkpoints' names: what a map of its names, and our network, have to agree with.

Independent of the package and of the twin. The modules' names, their order, and the frozen parameter of positions are those of
facebookresearch/DiT; nothing else of theirs is here.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn


def sines(positions, width):
    """One number a position -> its sines at width / 2 frequencies, then its cosines."""
    rates = [10_000 ** (-2 * k / width) for k in range(width // 2)]
    rows = [[wave(p * r) for wave in (math.sin, math.cos) for r in rates] for p in positions]
    return torch.tensor(rows, dtype=torch.float64)


class Times(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(256, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, t):
        angles = t.double()[:, None] * 10_000.0 ** (-torch.arange(128, dtype=torch.float64) / 128)
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=1).to(self.mlp[0].weight))


class Classes(nn.Module):
    """One row more than there are classes, for none."""

    def __init__(self, num_classes, dim):
        super().__init__()
        self.embedding_table = nn.Embedding(num_classes + 1, dim)


class Patches(nn.Module):
    def __init__(self, channels, dim, size):
        super().__init__()
        self.proj = nn.Conv2d(channels, dim, size, size)


class Heads(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x):
        q, k, v = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in self.qkv(x).tensor_split(3, dim=2))
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Perceptron(nn.Module):
    def __init__(self, dim, hidden):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x):
        h = self.fc1(x)
        return self.fc2(h / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3))))


def normed(x, shift, scale):
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale[:, None]) + shift[:, None]


class Layer(nn.Module):
    def __init__(self, dim, heads, hidden):
        super().__init__()
        self.attn, self.mlp = Heads(dim, heads), Perceptron(dim, hidden)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))

    def forward(self, x, c):
        told = self.adaLN_modulation(c).unflatten(1, (6, -1)).unbind(1)
        x = x + told[2][:, None] * self.attn(normed(x, told[0], told[1]))
        return x + told[5][:, None] * self.mlp(normed(x, told[3], told[4]))


class Last(nn.Module):
    def __init__(self, dim, out):
        super().__init__()
        self.linear = nn.Linear(dim, out)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 2 * dim))

    def forward(self, x, c):
        return self.linear(normed(x, *self.adaLN_modulation(c).unflatten(1, (2, -1)).unbind(1)))


class OriginalDiT(nn.Module):
    def __init__(
        self,
        input_size=8,
        patch_size=2,
        in_channels=3,
        hidden_size=16,
        depth=2,
        num_heads=2,
        mlp_ratio=4.0,
        num_classes=5,
        learn_sigma=True,
    ):
        super().__init__()
        self.patch_size, self.out_channels = patch_size, in_channels * (1 + learn_sigma)
        self.x_embedder = Patches(in_channels, hidden_size, patch_size)
        self.t_embedder, self.y_embedder = Times(hidden_size), Classes(num_classes, hidden_size)
        side, half = input_size // patch_size, hidden_size // 2
        places = [(row, column) for row in range(side) for column in range(side)]
        columns, rows = sines([c for _, c in places], half), sines([r for r, _ in places], half)
        self.pos_embed = nn.Parameter(torch.cat([columns, rows], dim=1)[None], requires_grad=False)
        self.blocks = nn.ModuleList(Layer(hidden_size, num_heads, int(hidden_size * mlp_ratio)) for _ in range(depth))
        self.final_layer = Last(hidden_size, patch_size**2 * self.out_channels)

    def forward(self, x, t, labels):
        size = x.shape[-1]
        c = self.t_embedder(t) + self.y_embedder.embedding_table(labels)
        x = self.x_embedder.proj(x).flatten(2).mT + self.pos_embed
        for block in self.blocks:
            x = block(x, c)
        x = self.final_layer(x, c).unflatten(2, (-1, self.out_channels))  # (B, N, pixels of a patch, C)
        return F.fold(x.permute(0, 3, 2, 1).flatten(1, 2), size, self.patch_size, stride=self.patch_size)
