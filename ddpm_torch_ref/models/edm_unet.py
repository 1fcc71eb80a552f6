"""The U-Nets of Karras et al. 2022 for CIFAR-10: DDPM++ and NCSN++ of Song et al. 2021, with the original's names.

A state dict is that of the original's network without the buffers of its resampling filters, which are constants here.
"""

from collections.abc import Sequence
from math import sqrt
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddpm_torch_ref.checks import check_choice, check_counts, check_dim, check_dim_mults, check_divides, check_dropout
from ddpm_torch_ref.models.layers import timestep_embedding

FILTERS = {"box": (1.0, 1.0), "fir": (1.0, 3.0, 3.0, 1.0)}
"""Taps along one axis of what images are resampled with, before they are made to add up to 1."""


def taps(resample: str, like: Tensor) -> Tensor:
    """(C, 1, k, k) the filter of each of like's channels, on its device, adding up to 1."""
    line = torch.tensor(FILTERS[resample], dtype=like.dtype, device=like.device)
    square = torch.outer(line, line) / line.sum() ** 2
    return square.expand(like.shape[1], 1, *square.shape)


def border(resample: str) -> int:
    """Zeros that the filter needs around an image."""
    return (len(FILTERS[resample]) - 1) // 2


def halve(x: Tensor, resample: str, padding: int | None = None) -> Tensor:
    """(B, C, H, W) -> (B, C, H/2, W/2): the filter at every other pixel; padding: the border unless given."""
    padding = border(resample) if padding is None else padding
    return F.conv2d(x, taps(resample, x), stride=2, padding=padding, groups=x.shape[1])


def double(x: Tensor, resample: str) -> Tensor:
    """(B, C, H, W) -> (B, C, 2 H, 2 W): zeros between the pixels, filtered, times 4 for the zeros."""
    return F.conv_transpose2d(x, 4 * taps(resample, x), stride=2, padding=border(resample), groups=x.shape[1])


Layer = TypeVar("Layer", nn.Linear, nn.Conv2d)


def _drawn(layer: Layer, gain: float = 1.0) -> Layer:
    """The layer with weights by Xavier's rule times a gain, and biases of zero."""
    nn.init.xavier_uniform_(layer.weight, gain)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def conv(width_in: int, width_out: int, size: int, gain: float = 1.0, padding: int | None = None) -> nn.Conv2d:
    """A convolution that keeps the map's size, unless padding is given."""
    return _drawn(nn.Conv2d(width_in, width_out, size, padding=size // 2 if padding is None else padding), gain)


def group_norm(width: int) -> nn.GroupNorm:
    """GroupNorm of 32 groups, or of as many as have four channels each."""
    return nn.GroupNorm(max(1, min(32, width // 4)), width, eps=1e-6)


class UNetBlock(nn.Module):
    """norm, SiLU, conv, plus time; norm, SiLU, dropout, conv; plus the input; then attention, plus its input.

    Args:
        width_in: channels in.
        width_out: channels out.
        time_dim: width of the time's embedding.
        dropout: probability, in [0, 1).
        skip_scale: of both sums.
        filter_name: one of FILTERS.
        resample: "up" or "down" before the first convolution and on the skip; None: neither.
        attention: between the pixels, with one head.
    """

    def __init__(
        self,
        width_in: int,
        width_out: int,
        *,
        time_dim: int,
        dropout: float,
        skip_scale: float,
        filter_name: str,
        resample: str | None = None,
        attention: bool = False,
    ):
        super().__init__()
        self.skip_scale = skip_scale
        self.filter_name = filter_name
        self.resample = resample
        self.attention = attention
        self.norm0 = group_norm(width_in)
        self.conv0 = conv(width_in, width_out, 3)
        self.affine = _drawn(nn.Linear(time_dim, width_out))
        self.norm1 = group_norm(width_out)
        self.dropout = nn.Dropout(dropout)
        self.conv1 = conv(width_out, width_out, 3, gain=1e-5)
        self.skip = conv(width_in, width_out, 1) if resample or width_in != width_out else None
        if attention:
            self.norm2 = group_norm(width_out)
            self.qkv = conv(width_out, 3 * width_out, 1, gain=sqrt(0.2))
            self.proj = conv(width_out, width_out, 1, gain=1e-5)

    def _resampled(self, x: Tensor) -> Tensor:
        if self.resample is None:
            return x
        return halve(x, self.filter_name) if self.resample == "down" else double(x, self.filter_name)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """x (B, width_in, H, W), emb (B, time_dim) -> (B, width_out, H', W')."""
        h = self.conv0(self._resampled(F.silu(self.norm0(x))))
        h = F.silu(self.norm1(h + self.affine(emb)[:, :, None, None]))
        h = self.conv1(self.dropout(h))
        x = self._resampled(x)
        x = (h + (x if self.skip is None else self.skip(x))) * self.skip_scale
        if not self.attention:
            return x
        # Along the channels of qkv, each channel's query, key and value follow each other.
        q, k, v = self.qkv(self.norm2(x)).flatten(2).unflatten(1, (-1, 3)).unbind(2)
        weights = (q.transpose(1, 2) @ k / sqrt(q.shape[1])).softmax(dim=2)
        return (self.proj((v @ weights.transpose(1, 2)).reshape(x.shape)) + x) * self.skip_scale


class FourierEmbedding(nn.Module):
    """(B,) times -> (B, width): sines, then cosines, at random frequencies, which are not trained."""

    def __init__(self, width: int):
        super().__init__()
        self.freqs: Tensor
        self.register_buffer("freqs", 16 * torch.randn(width // 2))

    def forward(self, t: Tensor) -> Tensor:
        """Embed times t, (B,)."""
        angles = 2 * torch.pi * t[:, None].to(self.freqs.dtype) * self.freqs
        return torch.cat([angles.sin(), angles.cos()], dim=1)


class EDMUNet(nn.Module):
    """DDPM++ (the defaults), or with embedding "fourier", resample "fir" and residual_input NCSN++, both as trained on CIFAR-10.

    Args:
        image_size: height and width of the image, in pixels; divisible by 2^(levels - 1).
        channels: of the image.
        num_classes: number of labels; None: unconditional.
        dim: base width, even.
        dim_mults: width of each level as a multiple of dim, the highest resolution first.
        num_blocks: residual blocks a level going down; one more going up.
        attention_resolutions: sizes of map, in pixels, with attention: in each block going down, in the last going up.
        dropout: probability within residual blocks, in [0, 1).
        embedding: of time, "positional" or "fourier".
        resample: by which of FILTERS maps are halved and doubled.
        residual_input: whether the image, halved by convolutions, is added at each level going down.
        skip_scale: of every sum of a block with its input, above 0.
        augment_dim: numbers that tell of the image's augmentation; None: none.

    Raises:
        ValueError: an option out of range, or a width that its groups do not divide.

    Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative Models", appendix F.3; Song et al. 2021,
    "Score-Based Generative Modeling through Stochastic Differential Equations", appendix H.
    """

    def __init__(
        self,
        *,
        image_size: int = 32,
        channels: int = 3,
        num_classes: int | None = None,
        dim: int = 128,
        dim_mults: Sequence[int] = (2, 2, 2),
        num_blocks: int = 4,
        attention_resolutions: Sequence[int] = (16,),
        dropout: float = 0.13,
        embedding: str = "positional",
        resample: str = "box",
        residual_input: bool = False,
        skip_scale: float = sqrt(0.5),
        augment_dim: int | None = None,
    ):
        super().__init__()
        check_counts(image_size=image_size, channels=channels, num_blocks=num_blocks)
        check_dim(dim)
        check_dim_mults(dim_mults)
        halvings = len(dim_mults) - 1
        check_divides("image_size", image_size, 2**halvings, f"to be halved {halvings} times")
        check_dropout(dropout)
        check_choice("embedding", embedding, ("positional", "fourier"))
        check_choice("resample", resample, tuple(FILTERS))
        if not skip_scale > 0:
            raise ValueError(f"skip_scale must be above 0; got {skip_scale}.")
        self.noise_dim = 2 * dim if embedding == "fourier" else dim
        self.resample = resample

        self.map_noise = FourierEmbedding(self.noise_dim) if embedding == "fourier" else None
        self.map_label = None if num_classes is None else _drawn(nn.Linear(num_classes, self.noise_dim))
        self.map_augment = None if augment_dim is None else _drawn(nn.Linear(augment_dim, self.noise_dim, bias=False))
        self.map_layer0 = _drawn(nn.Linear(self.noise_dim, 4 * dim))
        self.map_layer1 = _drawn(nn.Linear(4 * dim, 4 * dim))

        def block(width_in: int, width_out: int, **options: object) -> UNetBlock:
            shared = {"time_dim": 4 * dim, "dropout": dropout, "skip_scale": skip_scale, "filter_name": resample}
            return UNetBlock(width_in, width_out, **shared, **options)  # type: ignore[arg-type]

        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        width, shown, skips = dim, channels, []
        sizes = [image_size >> level for level in range(len(dim_mults))]
        for level, (size, mult) in enumerate(zip(sizes, dim_mults, strict=True)):
            name = f"{size}x{size}"
            if level == 0:
                self.enc[f"{name}_conv"] = conv(channels, width, 3)
            else:
                self.enc[f"{name}_down"] = block(width, width, resample="down")
                if residual_input:
                    self.enc[f"{name}_aux_residual"] = conv(shown, width, 3, padding=1 + border(resample))
                    shown = width
            skips.append(width)
            for i in range(num_blocks):
                attention = size in attention_resolutions
                self.enc[f"{name}_block{i}"] = block(width, dim * mult, attention=attention)
                width = dim * mult
                skips.append(width)
        for level, (size, mult) in reversed(list(enumerate(zip(sizes, dim_mults, strict=True)))):
            name = f"{size}x{size}"
            if level == len(sizes) - 1:
                self.dec[f"{name}_in0"] = block(width, width, attention=True)
                self.dec[f"{name}_in1"] = block(width, width)
            else:
                self.dec[f"{name}_up"] = block(width, width, resample="up")
            for i in range(num_blocks + 1):
                attention = i == num_blocks and size in attention_resolutions
                self.dec[f"{name}_block{i}"] = block(width + skips.pop(), dim * mult, attention=attention)
                width = dim * mult
        self.dec[f"{sizes[0]}x{sizes[0]}_aux_norm"] = group_norm(width)
        self.dec[f"{sizes[0]}x{sizes[0]}_aux_conv"] = conv(width, channels, 3, gain=1e-5)

    def _embed(self, t: Tensor, labels: Tensor | None, augment: Tensor | None) -> Tensor:
        """(B, 4 dim) of time, class and augmentation."""
        dtype = self.map_layer0.weight.dtype
        fourier = self.map_noise
        emb = timestep_embedding(t, self.noise_dim, dtype) if fourier is None else fourier(t).to(dtype)
        if self.map_label is not None:
            if labels is None:
                raise ValueError("labels must be given to a network with num_classes; got None.")
            classes = self.map_label.in_features
            emb = emb + self.map_label(F.one_hot(labels, classes).to(dtype) * sqrt(classes))
        elif labels is not None:
            raise ValueError("labels must be None for a network without num_classes.")
        if augment is not None:
            if self.map_augment is None:
                raise ValueError("augment must be None for a network without augment_dim.")
            emb = emb + self.map_augment(augment)
        return F.silu(self.map_layer1(F.silu(self.map_layer0(emb))))

    def forward(self, x_t: Tensor, t: Tensor, labels: Tensor | None = None, *, augment: Tensor | None = None) -> Tensor:
        """F of x_t, (B, C, H, W), at t = log(sigma)/4, (B,), for labels (B,); augment: (B, augment_dim), None for none."""
        emb = self._embed(t, labels, augment)
        x, shown, skips = x_t, x_t, list[Tensor]()
        for name, part in self.enc.items():
            if name.endswith("_aux_residual"):
                x = shown = (x + halve(part(shown), self.resample, padding=0)) / sqrt(2)
                skips[-1] = x
            else:
                x = part(x, emb) if isinstance(part, UNetBlock) else part(x)
                skips.append(x)
        for name, part in self.dec.items():
            if "_block" in name:
                x = torch.cat([x, skips.pop()], dim=1)
            x = part(x, emb) if isinstance(part, UNetBlock) else part(x)
            if name.endswith("_aux_norm"):
                x = F.silu(x)
        return x
