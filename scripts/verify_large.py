"""Peak memory and time of comparing an 85 M-parameter transformer in float32 with gradients: 12 blocks of width 768.

Run it alone: `python scripts/verify_large.py`; `--library linen` compares a linen port, into which the weights are carried.
"""

import argparse
import resource
import time
from typing import Any

import jax
import numpy as np
import torch
from flax import linen, nnx
from torch.nn import functional

from ddpm_jax import verify


class Block(nnx.Module):
    """Attention and a perceptron, each behind a norm."""

    def __init__(self, width: int, heads: int, rngs: nnx.Rngs):
        self.norm1, self.norm2 = (nnx.LayerNorm(width, epsilon=1e-5, rngs=rngs) for _ in range(2))
        self.q, self.k, self.v, self.out = (nnx.Linear(width, width, rngs=rngs) for _ in range(4))
        self.fc1, self.fc2 = nnx.Linear(width, 4 * width, rngs=rngs), nnx.Linear(4 * width, width, rngs=rngs)
        self.heads = heads

    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, N, C) -> (B, N, C)."""
        h = self.norm1(x)
        q, k, v = (part(h).reshape(*h.shape[:2], self.heads, -1) for part in (self.q, self.k, self.v))
        x = x + self.out(nnx.dot_product_attention(q, k, v).reshape(x.shape))
        return x + self.fc2(nnx.gelu(self.fc1(self.norm2(x)), approximate=False))


class Transformer(nnx.Module):
    """Blocks one after the other."""

    def __init__(self, depth: int, width: int, heads: int, rngs: nnx.Rngs):
        self.blocks = nnx.List([Block(width, heads, rngs) for _ in range(depth)])

    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, N, C) -> (B, N, C)."""
        for block in self.blocks:
            x = block(x)
        return x


class LinenBlock(linen.Module):
    """The same in linen."""

    width: int
    heads: int

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, N, C) -> (B, N, C)."""
        h = linen.LayerNorm(epsilon=1e-5, name="norm1")(x)
        q, k, v = (linen.Dense(self.width, name=n)(h).reshape(*h.shape[:2], self.heads, -1) for n in "qkv")
        x = x + linen.Dense(self.width, name="out")(linen.dot_product_attention(q, k, v).reshape(x.shape))
        h = linen.Dense(4 * self.width, name="fc1")(linen.LayerNorm(epsilon=1e-5, name="norm2")(x))
        return x + linen.Dense(self.width, name="fc2")(linen.gelu(h, approximate=False))


class LinenTransformer(linen.Module):
    """Blocks one after the other."""

    depth: int
    width: int
    heads: int

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, N, C) -> (B, N, C)."""
        for i in range(self.depth):
            x = LinenBlock(self.width, self.heads, name=f"blocks_{i}")(x)
        return x


class TorchBlock(torch.nn.Module):
    """The same in PyTorch."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1, self.norm2 = torch.nn.LayerNorm(width), torch.nn.LayerNorm(width)
        self.q, self.k, self.v, self.out = (torch.nn.Linear(width, width) for _ in range(4))
        self.fc1, self.fc2 = torch.nn.Linear(width, 4 * width), torch.nn.Linear(4 * width, width)
        self.heads = heads

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, N, C) -> (B, N, C)."""
        h = self.norm1(x)
        q, k, v = (part(h).unflatten(2, (self.heads, -1)).transpose(1, 2) for part in (self.q, self.k, self.v))
        x = x + self.out(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.fc2(functional.gelu(self.fc1(self.norm2(x))))


class TorchTransformer(torch.nn.Module):
    """Blocks one after the other."""

    def __init__(self, depth: int, width: int, heads: int):
        super().__init__()
        self.blocks = torch.nn.ModuleList([TorchBlock(width, heads) for _ in range(depth)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, N, C) -> (B, N, C)."""
        for block in self.blocks:
            x = block(x)
        return x


def main() -> None:
    """Make the pair, compare it, and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--library", choices=("nnx", "linen"), default="nnx")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    parser.add_argument("--depth", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=64)
    given = parser.parse_args()
    torch.manual_seed(0)
    size = (given.depth, 768, 12)
    theirs = TorchTransformer(*size)
    x = np.random.default_rng(0).standard_normal((2, given.tokens, 768)).astype(np.float32)
    ours: Any = Transformer(*size, nnx.Rngs(0))
    if given.library == "linen":
        import jax

        module = LinenTransformer(*size)
        ours = (module, module.init(jax.random.key(0), x))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    start = time.perf_counter()
    report = verify.compare(ours, theirs, x, dtype=given.dtype, weights="carried")
    taken = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(report.table())
    count = sum(parameter.numel() for parameter in theirs.parameters()) / 1e6
    print(f"{count:.0f} M parameters: {taken:.1f} s; peak {peak:.2f} GiB, {before:.2f} GiB of it before the comparison")


if __name__ == "__main__":
    main()
