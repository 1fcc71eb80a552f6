"""`dit`: the diffusion transformer of Peebles & Xie 2023, on the pixels themselves, with the long skips of U-ViT as an option.

Layers bear the names of the authors' checkpoints; only the table of positions, which is fixed, is computed here.
"""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float, Int, Num

from ddpm_jax.errors import UserError
from ddpm_jax.models.attention import attend
from ddpm_jax.models.config import ModelConfig
from ddpm_jax.models.convolution import Image, Resized
from ddpm_jax.models.layers import Conv, Vector, linear, linear_of_tokens, timestep_embedding
from ddpm_jax.models.network import Network
from ddpm_jax.models.normalization import VectorNorm
from ddpm_jax.models.remat import Block

Tokens = Float[Array, "b n d"]
"""One vector for each patch, row by row."""

FREQUENCIES = 256
"""Width of the sinusoids of t, whatever that of the network."""

xavier = nnx.initializers.variance_scaling(1.0, "fan_avg", "uniform")
xavier_of_patches = nnx.initializers.variance_scaling(1.0, "fan_avg", "uniform", in_axis=(0, 1, 2), out_axis=3)
zeros = nnx.initializers.zeros_init()
small = nnx.initializers.normal(0.02)


@dataclass(frozen=True)
class DiTConfig(ModelConfig, network="dit"):
    """The transformer of Peebles & Xie 2023 (the defaults: their DiT-S/2, on pixels instead of latents).

    Raises:
        UserError: an image size that patch_size does not divide, a width that num_heads does not divide, or a number out of range.
    """

    image_size: int = 32
    """Height and width of the images, in pixels."""
    channels: int = 3
    """Channels of the images."""
    num_classes: int | None = None
    """Number of classes the network is told about, the one that stands for none included; None: unconditional."""
    dim: int = 384
    """Width of a token, divisible by 4."""
    patch_size: int = 2
    """Height and width of the patch that becomes a token, in pixels."""
    depth: int = 12
    """Blocks."""
    num_heads: int = 6
    """Attention heads."""
    mlp_ratio: float = 4.0
    """Width within the two-layer perceptrons, as a multiple of dim."""
    learn_variance: bool = False
    """Twice the output channels: the second half says where the variance lies (improved DDPM)."""
    long_skips: bool = False
    """Each block of the second half also sees what its mirror image in the first gave (U-ViT, Bao et al. 2023)."""

    @property
    def hidden(self) -> int:
        """Width within the perceptrons."""
        return int(self.dim * self.mlp_ratio)

    def __post_init__(self) -> None:
        self._at_least_1("image_size", "channels", "dim", "patch_size", "depth", "num_heads")
        self._at_least_1_or_none("num_classes")
        if self.image_size % self.patch_size:
            raise UserError(f"image_size must be divisible by patch_size = {self.patch_size}; got {self.image_size}.")
        self._divides("dim", 4)  # sines and cosines, of columns and rows
        if self.dim % self.num_heads:
            raise UserError(f"num_heads must divide dim = {self.dim}; got {self.num_heads}.")
        if not 1 <= self.dim * self.mlp_ratio < float("inf"):  # false for NaN too
            raise UserError(
                f"mlp_ratio must be finite and at least 1 / dim = {1 / self.dim:g}; got {self.mlp_ratio:g}."
            )

    def module(self, rngs: nnx.Rngs) -> "DiT":
        """The network of these options."""
        return DiT(self, rngs=rngs)


@functools.cache
def position_table(size: int, dim: int) -> np.ndarray:
    """What each of size x size tokens is told of its place, (size^2, dim) in float64, row by row.

    The first half of dim is of the token's column, the second of its row: each sines, then cosines, of the position times
    10000^(-k / (dim / 4)), k = 0 .. dim / 4 - 1.
    """
    angles = np.arange(size)[:, None] * 10_000.0 ** (-np.arange(dim // 4) / (dim // 4))
    axis = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)  # (size, dim / 2)
    return np.concatenate([np.tile(axis, (size, 1)), np.repeat(axis, size, axis=0)], axis=1)


def unpatchify(x: Tokens, patch_size: int) -> Image:
    """(B, N, patch_size^2 C), a square of N patches row by row -> (B, H, W, C); within a patch pixels lie row by row too."""
    side = round(x.shape[1] ** 0.5)
    return rearrange(x, "b (h w) (p q c) -> b (h p) (w q) c", h=side, p=patch_size, q=patch_size)


def modulate(x: Tokens, shift: Float[Array, "b 1 d"], scale: Float[Array, "b 1 d"]) -> Tokens:
    """x (1 + scale) + shift."""
    return x * (1 + scale) + shift


class Chain(nnx.List[Any]):
    """Layers and functions, one after the other; numbered as in PyTorch's Sequential."""

    def __call__(self, x: Any) -> Any:
        """What the last one gives."""
        for layer in self:
            x = layer(x)
        return x


def modulation(dim: int, parts: int, rngs: nnx.Rngs) -> nnx.Module:
    """What turns the conditioning into shifts, scales and gates, (B, dim) -> (B, parts dim); all zero at first (adaLN-Zero)."""
    return Chain([nnx.silu, linear(dim, parts * dim, init=zeros, rngs=rngs)])


class PatchConv(Conv):
    """A convolution whose windows lie side by side: one product for each patch."""

    def __init__(self, in_dim: int, out_dim: int, size: int, *, rngs: nnx.Rngs):
        super().__init__(in_dim, out_dim, size, stride=size, padding=0, init=xavier_of_patches, rngs=rngs)

    def __call__(self, x: Image) -> Resized:  # type: ignore[override]
        """(B, H, W, in) -> (B, H / size, W / size, out)."""
        kernel = self.kernel[...]
        size, _, _, out_dim = kernel.shape
        patches = rearrange(x, "b (h p) (w q) c -> b h w (p q c)", p=size, q=size)
        assert self.bias is not None
        return patches @ kernel.reshape(-1, out_dim) + self.bias[...]


class PatchEmbed(nnx.Module):
    """Patches -> tokens."""

    def __init__(self, channels: int, dim: int, patch_size: int, *, rngs: nnx.Rngs):
        self.proj = PatchConv(channels, dim, patch_size, rngs=rngs)

    def __call__(self, x: Image) -> Tokens:
        """(B, H, W, C) -> (B, N, dim)."""
        return rearrange(self.proj(x), "b h w d -> b (h w) d")


class TimestepEmbedder(nnx.Module):
    """Timesteps -> embedding: cosines and sines, linear, SiLU, linear."""

    def __init__(self, dim: int, *, rngs: nnx.Rngs):
        first, second = (linear(width, dim, init=small, rngs=rngs) for width in (FREQUENCIES, dim))
        self.mlp = Chain([first, nnx.silu, second])

    def __call__(self, t: Num[Array, "b"], dtype: jnp.dtype) -> Vector:
        """t (B,) -> (B, dim) in the given dtype."""
        return self.mlp(timestep_embedding(t, FREQUENCIES, dtype, freq_shift=0, cos_first=True))


class LabelEmbedder(nnx.Module):
    """Classes -> embedding: a row of a table."""

    def __init__(self, num_classes: int, dim: int, *, rngs: nnx.Rngs):
        self.embedding_table = nnx.Embed(num_classes, dim, embedding_init=small, rngs=rngs)

    def __call__(self, labels: Int[Array, "b"]) -> Vector:
        """(B,) -> (B, dim)."""
        return self.embedding_table.embedding[labels]  # nnx.Embed itself casts to the dtype it was made with


class SelfAttention(nnx.Module):
    """Multi-head attention of all tokens to all."""

    def __init__(self, dim: int, num_heads: int, *, rngs: nnx.Rngs):
        self.num_heads = num_heads
        self.qkv = linear_of_tokens(dim, 3 * dim, init=xavier, rngs=rngs)
        self.proj = linear_of_tokens(dim, dim, init=xavier, rngs=rngs)

    def __call__(self, x: Tokens) -> Tokens:
        """(B, N, dim) in and out."""
        parts = jnp.split(self.qkv(x), 3, axis=-1)
        q, k, v = (rearrange(part, "b n (heads d) -> b heads n d", heads=self.num_heads) for part in parts)
        return self.proj(rearrange(attend(q, k, v), "b heads n d -> b n (heads d)"))


class FeedForward(nnx.Module):
    """Linear, GELU in its tanh form, linear."""

    def __init__(self, dim: int, hidden: int, *, rngs: nnx.Rngs):
        self.fc1 = linear_of_tokens(dim, hidden, init=xavier, rngs=rngs)
        self.fc2 = linear_of_tokens(hidden, dim, init=xavier, rngs=rngs)

    def __call__(self, x: Tokens) -> Tokens:
        """(B, N, dim) in and out."""
        return self.fc2(nnx.gelu(self.fc1(x), approximate=True))


class DiTBlock(Block):
    """Attention, then a perceptron, each normalised, modulated and gated by the conditioning (figure 3 there)."""

    def __init__(self, config: DiTConfig, *, skips: bool, rngs: nnx.Rngs):
        dim = config.dim
        self.skip_linear = linear_of_tokens(2 * dim, dim, init=xavier, rngs=rngs) if skips else None
        self.norm1 = VectorNorm(epsilon=1e-6)  # scale and bias come from the conditioning
        self.attn = SelfAttention(dim, config.num_heads, rngs=rngs)
        self.norm2 = VectorNorm(epsilon=1e-6)
        self.mlp = FeedForward(dim, config.hidden, rngs=rngs)
        self.adaLN_modulation = modulation(dim, 6, rngs)

    def __call__(self, x: Tokens, told: Vector, skip: Tokens | None = None) -> Tokens:
        """x (B, N, dim), conditioning told (B, dim) -> (B, N, dim); skip: what the mirror image gave, if it takes one."""
        if self.skip_linear is not None and skip is not None:
            x = self.skip_linear(jnp.concatenate([x, skip], axis=-1))
        parts = jnp.split(self.adaLN_modulation(told)[:, None], 6, axis=-1)
        shift_attn, scale_attn, gate_attn, shift_mlp, scale_mlp, gate_mlp = parts
        x = x + gate_attn * self.attn(modulate(self.norm1(x), shift_attn, scale_attn))
        return x + gate_mlp * self.mlp(modulate(self.norm2(x), shift_mlp, scale_mlp))


class FinalLayer(nnx.Module):
    """Norm, modulation, and the linear map from tokens to patches, zero at first."""

    def __init__(self, dim: int, out_dim: int, *, rngs: nnx.Rngs):
        self.norm_final = VectorNorm(epsilon=1e-6)
        self.linear = linear_of_tokens(dim, out_dim, init=zeros, rngs=rngs)
        self.adaLN_modulation = modulation(dim, 2, rngs)

    def __call__(self, x: Tokens, told: Vector) -> Float[Array, "b n out"]:
        """(B, N, dim), conditioning told (B, dim) -> (B, N, out_dim)."""
        shift, scale = jnp.split(self.adaLN_modulation(told)[:, None], 2, axis=-1)
        return self.linear(modulate(self.norm_final(x), shift, scale))


class DiT(Network):
    """(x_t, t, labels) -> what the process predicts: a transformer over patches; see `DiTConfig`."""

    def __init__(self, config: DiTConfig, *, rngs: nnx.Rngs):
        self.config = config
        dim, outputs = config.dim, config.channels * (2 if config.learn_variance else 1)
        self.x_embedder = PatchEmbed(config.channels, dim, config.patch_size, rngs=rngs)
        self.t_embedder = TimestepEmbedder(dim, rngs=rngs)
        self.y_embedder = None if config.num_classes is None else LabelEmbedder(config.num_classes, dim, rngs=rngs)
        first_half = config.depth // 2
        mirrored = [config.long_skips and index >= config.depth - first_half for index in range(config.depth)]
        self.blocks = nnx.List([DiTBlock(config, skips=skips, rngs=rngs) for skips in mirrored])
        self.final_layer = FinalLayer(dim, config.patch_size**2 * outputs, rngs=rngs)

    def __call__(
        self,
        x_t: Image,
        t: Num[Array, "b"],
        labels: Int[Array, "b"] | None = None,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b h w out"]:
        """Predict from x_t (B, H, W, C) at timesteps t (B,), for classes labels (B,); rngs is not used: nothing is dropped.

        Raises:
            UserError: labels missing for a class-conditional network, or given to another.
        """
        config = self.config
        self._check_labels(labels)
        told = self.t_embedder(t, x_t.dtype)
        if self.y_embedder is not None and labels is not None:
            told = told + self.y_embedder(labels)
        places = position_table(config.image_size // config.patch_size, config.dim)
        x = self.x_embedder(x_t) + jnp.asarray(places, x_t.dtype)
        skips: list[jax.Array] = []
        for index, block in enumerate(self.blocks):
            x = block(x, told, None if block.skip_linear is None else skips.pop())
            if config.long_skips and index < config.depth // 2:
                skips.append(x)
        return unpatchify(self.final_layer(x, told), config.patch_size)
