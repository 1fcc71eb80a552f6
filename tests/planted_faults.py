"""Faults planted in ports of eight small networks: where each has to be found, and what has to be named as its cause.

A port is built with options, all of which are right by default; a fault is another value of one of them. The PyTorch side is never
touched. Shapes are unequal, so that no layout is a guess.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F
from flax import nnx

from ddpm_jax.models import normalization
from ddpm_jax.verify import tap
from ddpm_jax.weights import bridge

RNGS = nnx.Rngs(0)
RNG = np.random.default_rng(1)


def normal(*shape):
    return RNG.standard_normal(shape)


class Options(dict):
    """What a port is built with; what is not given is right."""

    def of(self, name, right):
        return self.get(name, right)


def activation(name):
    functions = {
        "gelu": lambda x: jax.nn.gelu(x, approximate=False),
        "gelu_tanh": jax.nn.gelu,
        "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
        "none": lambda x: x,
        "leaky": lambda x: jax.nn.leaky_relu(x, 0.01),
    }
    return functions.get(name) or getattr(jax.nn, name)


class Turned(nnx.Conv):
    """With its kernel turned round, or its height and width exchanged."""

    how = ""

    def __call__(self, x):
        kernel, how = self.kernel[...], self.how
        turned = kernel[::-1, ::-1] if how == "turned" else kernel.swapaxes(0, 1)
        padding = [(self.padding, self.padding)] * 2
        y = jax.lax.conv_general_dilated(x, turned, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return y + self.bias[...]


class Unbiased(nnx.LayerNorm):
    """Like torch.std, where LayerNorm divides by n."""

    def __call__(self, x):
        mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True, ddof=1)
        return (x - mean) / jnp.sqrt(var + self.epsilon) * self.scale[...] + self.bias[...]


class BesideRoot(nnx.LayerNorm):
    """Epsilon added to the deviation instead of the variance."""

    def __call__(self, x):
        mean, std = x.mean(-1, keepdims=True), x.std(-1, keepdims=True)
        return (x - mean) / (std + self.epsilon) * self.scale[...] + self.bias[...]


class Without(nnx.Linear):
    """A linear layer that forgets its bias."""

    def __call__(self, x):
        return x @ self.kernel[...]


class Coarse(nnx.Linear):
    """A linear layer with a cast left in."""

    def __call__(self, x):
        return super().__call__(x).astype(jnp.bfloat16).astype(x.dtype)


class Crossed(nnx.Linear):
    """A square linear layer whose weight is transposed."""

    def __call__(self, x):
        return x @ self.kernel[...].T + self.bias[...]


def attend(q, k, v, o, heads, causal=False):
    """(B, N, C) each."""
    batch, length, width = q.shape
    dim = width // heads

    def split(x):
        if o.of("heads_inside", False):
            return x.reshape(batch, length, dim, heads).transpose(0, 3, 1, 2)
        return x.reshape(batch, length, heads, dim).transpose(0, 2, 1, 3)

    q, k, v = split(q), split(k), split(v)
    logits = q @ k.swapaxes(-1, -2) * o.of("scale", 1 / math.sqrt(dim))
    if o.of("causal", causal):
        logits = jnp.where(jnp.tri(length, dtype=bool), logits, -1e30)
    out = jax.nn.softmax(logits, axis=o.of("axis", -1)) @ v
    if o.of("merged_inside", False):
        return out.transpose(0, 2, 3, 1).reshape(batch, length, width)
    return out.transpose(0, 2, 1, 3).reshape(batch, length, width)


# Networks: residual -----------------------------------------------------------------------------------------------


class TorchResNet(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(3, 8, 3, padding=1)
        self.bn1 = torch.nn.BatchNorm2d(8)
        self.down = torch.nn.Conv2d(8, 6, 3, stride=2, padding=1)
        self.shortcut = torch.nn.Conv2d(8, 6, 1, stride=2)
        self.fc = torch.nn.Linear(24, 5)

    def forward(self, x):
        h = torch.relu(self.bn1(self.conv1(x)))
        h = self.down(h) + self.shortcut(h)
        return self.fc(F.max_pool2d(torch.relu(h), 2).flatten(1))


class ResNet(nnx.Module):
    def __init__(self, o):
        self.o = o
        kind = Turned if o.of("conv1", "") else nnx.Conv
        self.conv1 = kind(3, 8, (3, 3), padding=1, rngs=RNGS)
        self.conv1.how = o.of("conv1", "")
        self.bn1 = BatchNorm(8, epsilon=o.of("eps", 1e-5), momentum=o.of("momentum", 0.9), rngs=RNGS)
        self.bn1.biased = o.of("biased", False)
        self.down = nnx.Conv(8, 6, (3, 3), strides=2, padding=o.of("padding", 1), rngs=RNGS)
        self.shortcut = nnx.Conv(8, 6, (1, 1), strides=2, rngs=RNGS)
        self.fc = nnx.Linear(24, 5, rngs=RNGS)

    def __call__(self, x):
        o = self.o
        h = activation(o.of("act1", "relu"))(self.bn1(self.conv1(x)))
        h = self.down(h) + (self.shortcut(h) if o.of("residual", True) else 0)
        h = activation(o.of("act2", "relu"))(h)
        blocks = h.reshape(-1, 2, 2, 2, 2, 6)
        h = blocks.mean((2, 4)) if o.of("pool", "max") == "mean" else blocks.max((2, 4))
        h = h if o.of("flatten", "") else h.transpose(0, 3, 1, 2)
        return self.fc(h.reshape(len(x), -1))


class BatchNorm(nnx.BatchNorm):
    """With PyTorch's running variance."""

    def __call__(self, x, use_running_average=None):
        if self.use_running_average:
            return super().__call__(x)
        before = self.var[...]
        y = super().__call__(x)
        if not self.biased:
            kept, size = self.momentum * before, x.size // x.shape[-1]
            self.var[...] = kept + (self.var[...] - kept) * size / (size - 1)
        return y


# Networks: a level of a U-Net -------------------------------------------------------------------------------------


def torch_sinusoid(t, dim):
    freqs = torch.exp(-math.log(10_000) * torch.arange(dim // 2, dtype=torch.float64) / (dim // 2))
    angles = t[:, None] * freqs
    return torch.cat([angles.sin(), angles.cos()], -1)


class TorchUNet(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.time1, self.time2 = torch.nn.Linear(8, 12), torch.nn.Linear(12, 16)
        self.conv_in = torch.nn.Conv2d(2, 8, 3, padding=1)
        self.norm = torch.nn.GroupNorm(4, 8)
        self.mid = torch.nn.Conv2d(8, 8, 3, padding=1)
        self.small = torch.nn.Conv2d(8, 6, 2, stride=2)
        self.up = torch.nn.Conv2d(6, 6, 3, padding=1)
        self.out = torch.nn.Conv2d(14, 2, 1)

    def forward(self, x, t):
        emb = self.time2(F.silu(self.time1(torch_sinusoid(t, 8).to(x.dtype))))
        skip = self.conv_in(x)
        scale, shift = emb[:, :, None, None].chunk(2, 1)
        h = self.mid(F.silu(self.norm(skip) * (1 + scale) + shift))
        h = self.up(F.interpolate(self.small(h), scale_factor=2.0, mode="nearest"))
        return self.out(torch.cat([h, skip], 1))


class UNet(nnx.Module):
    def __init__(self, o):
        self.o = o
        self.time1, self.time2 = nnx.Linear(8, 12, rngs=RNGS), nnx.Linear(12, 16, rngs=RNGS)
        self.conv_in = nnx.Conv(2, 8, (3, 3), padding=1, rngs=RNGS)
        self.norm = nnx.GroupNorm(8, o.of("groups", 4), epsilon=o.of("eps", 1e-5), rngs=RNGS)
        self.mid = nnx.Conv(8, 8, (3, 3), padding=1, rngs=RNGS)
        self.small = nnx.Conv(8, 6, (2, 2), strides=2, rngs=RNGS)
        self.up = nnx.Conv(6, 6, (3, 3), padding=1, rngs=RNGS)
        self.out = nnx.Conv(14, 2, (1, 1), rngs=RNGS)

    def sinusoid(self, t):
        o, half = self.o, 4
        t = t + o.of("late", 0)
        freqs = jnp.exp(-math.log(o.of("base", 10_000)) * jnp.arange(half) / (half - o.of("last", 0)))
        angles = t[:, None] * freqs
        parts = [jnp.sin(angles), jnp.cos(angles)]
        if o.of("embedding", "") == "turn":
            return jnp.stack(parts, -1).reshape(len(t), -1)
        return jnp.concatenate(parts[::-1] if o.of("embedding", "") == "cos" else parts, -1)

    def __call__(self, x, t):
        o = self.o
        emb = self.time2(jax.nn.silu(self.time1(self.sinusoid(t))))
        skip = self.conv_in(x)
        scale, shift = jnp.split(emb[:, None, None], 2, -1)
        h, how = self.norm(skip), o.of("modulation", "")
        if how == "swapped":
            scale, shift = shift, scale
        h = (
            h * scale + shift
            if how == "no_one"
            else (h + shift) * (1 + scale)
            if how == "shift_first"
            else h * (1 + scale) + shift
        )
        h = self.small(self.mid(activation(o.of("act", "silu"))(h)))
        size = (len(h), 2 * h.shape[1], 2 * h.shape[2], h.shape[3])
        if o.of("resize", "") == "align":
            rows, columns = (align(n) for n in h.shape[1:3])
            h = jnp.einsum("ih,jw,bhwc->bijc", rows, columns, h)
        else:
            h = jax.image.resize(h, size, o.of("resize", "nearest"))
        h = self.up(h)
        return self.out(jnp.concatenate([skip, h] if o.of("concat", "") else [h, skip], -1))


def align(n):
    """Rows that interpolate n to 2 n numbers with both ends kept."""
    places = np.linspace(0, n - 1, 2 * n)
    return jnp.asarray(np.maximum(0, 1 - np.abs(places[:, None] - np.arange(n))))


# Networks: an encoder ---------------------------------------------------------------------------------------------


class TorchEncoder(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = torch.nn.LayerNorm(12), torch.nn.LayerNorm(12)
        self.qkv, self.proj = torch.nn.Linear(12, 36), torch.nn.Linear(12, 12)
        self.fc1, self.fc2 = torch.nn.Linear(12, 20), torch.nn.Linear(20, 12)

    def forward(self, x):
        batch, length, _ = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(batch, length, 3, 3, 4).permute(2, 0, 3, 1, 4)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class Encoder(nnx.Module):
    def __init__(self, o):
        self.o = o
        kind = {"unbiased": Unbiased, "beside": BesideRoot}.get(o.of("norm2", ""), nnx.LayerNorm)
        self.norm1 = nnx.LayerNorm(12, epsilon=o.of("eps", 1e-5), rngs=RNGS)
        self.norm2 = kind(12, epsilon=1e-5, rngs=RNGS)
        self.qkv, self.proj = nnx.Linear(12, 36, rngs=RNGS), o.of("proj", nnx.Linear)(12, 12, rngs=RNGS)
        self.fc1, self.fc2 = nnx.Linear(12, 20, rngs=RNGS), o.of("fc2", nnx.Linear)(20, 12, rngs=RNGS)

    def __call__(self, x):
        o = self.o
        normed = self.norm1(x)
        packed = self.qkv(normed)
        if o.of("packing", ""):
            parts = packed.reshape(*x.shape[:2], 3, 3, 4).transpose(3, 0, 1, 2, 4).reshape(3, *x.shape)
        else:
            parts = packed.reshape(*x.shape[:2], 3, 12).transpose(2, 0, 1, 3)
        q, k, v = (parts["qkv".index(letter)] for letter in o.of("order", "qkv"))
        x = (normed if o.of("residual", "") == "normed" else x) + self.proj(attend(q, k, v, o, 3))
        h = self.fc2(activation(o.of("act", "gelu"))(self.fc1(self.norm2(x))))
        return h if o.of("residual", "") == "none" else x + h


# Networks: a decoder of tokens ------------------------------------------------------------------------------------


class TorchDecoder(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.positions = torch.nn.Embedding(11, 8), torch.nn.Embedding(9, 8)
        self.q, self.k, self.v = (torch.nn.Linear(8, 8) for _ in "qkv")
        self.proj, self.norm = torch.nn.Linear(8, 8), torch.nn.LayerNorm(8, eps=1e-6)
        self.head = torch.nn.Linear(8, 11)

    def forward(self, ids):
        x = self.embed(ids) + self.positions(torch.arange(ids.shape[1]))
        q, k, v = (layer(x).unflatten(-1, (2, 4)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return self.head(self.norm(x))


class Decoder(nnx.Module):
    def __init__(self, o):
        self.o = o
        self.embed, self.positions = nnx.Embed(11, 8, rngs=RNGS), nnx.Embed(9, 8, rngs=RNGS)
        self.q, self.k, self.v = (nnx.Linear(8, 8, rngs=RNGS) for _ in "qkv")
        self.proj, self.norm = nnx.Linear(8, 8, rngs=RNGS), nnx.LayerNorm(8, epsilon=o.of("eps", 1e-6), rngs=RNGS)
        self.head = o.of("head", nnx.Linear)(8, 11, rngs=RNGS)

    def __call__(self, ids):
        o = self.o
        places = jnp.arange(ids.shape[1]) + o.of("first", 0)
        x = self.embed(ids) * o.of("embed_scale", 1.0)
        x = x + (self.positions(places) if o.of("add_positions", True) else 0 * self.positions(places))
        x = x + self.proj(attend(self.q(x), self.k(x), self.v(x), o, 2, causal=True))
        x = self.norm(x)
        return self.head(jnp.roll(x, 1, 1) if o.of("rolled", False) else x)


# Networks: a ConvNeXt block ---------------------------------------------------------------------------------------


class TorchConvNeXt(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.dwconv = torch.nn.Conv2d(6, 6, 5, padding=2, groups=6)
        self.norm = torch.nn.LayerNorm(6, eps=1e-6)
        self.fc1, self.fc2 = torch.nn.Linear(6, 10), torch.nn.Linear(10, 6)

    def forward(self, x):
        h = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        h = self.fc2(F.gelu(self.fc1(h)))
        return x + 0.5 * h.permute(0, 3, 1, 2)


class ConvNeXt(nnx.Module):
    def __init__(self, o):
        self.o = o
        padding = o.of("padding", 2)
        self.dwconv = nnx.Conv(6, 6, (5, 5), padding=padding, feature_group_count=6, rngs=RNGS)
        self.norm = nnx.LayerNorm(6, epsilon=o.of("eps", 1e-6), rngs=RNGS)
        self.fc1, self.fc2 = o.of("fc1", nnx.Linear)(6, 10, rngs=RNGS), nnx.Linear(10, 6, rngs=RNGS)

    def __call__(self, x):
        o = self.o
        h = self.dwconv(x)
        h = self.norm(h.swapaxes(1, 2) if o.of("exchanged", False) else h)
        h = self.fc2(activation(o.of("act", "gelu"))(self.fc1(h)))
        return (x if o.of("residual", True) else 0) + o.of("gain", 0.5) * h


# Networks: a decoder of images ------------------------------------------------------------------------------------


class TorchImages(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(5, 36)
        self.up = torch.nn.ConvTranspose2d(6, 4, 3, stride=2)
        self.conv = torch.nn.Conv2d(4, 3, 3, padding=1)

    def forward(self, z):
        h = tap("map", self.fc(z).unflatten(1, (6, 2, 3)))
        h = tap("large", F.interpolate(self.up(h), scale_factor=2.0, mode="bilinear"))
        return torch.tanh(self.conv(F.leaky_relu(h, 0.2)))


class Images(nnx.Module):
    def __init__(self, o):
        self.o = o
        self.fc = nnx.Linear(5, 36, rngs=RNGS)
        self.up = nnx.ConvTranspose(6, 4, (3, 3), strides=2, padding="VALID", transpose_kernel=True, rngs=RNGS)
        if o.of("turned", False):
            self.up = TurnedUp(6, 4, (3, 3), strides=2, padding="VALID", transpose_kernel=True, rngs=RNGS)
        self.conv = nnx.Conv(4, 3, (3, 3), padding=o.of("padding", 1), rngs=RNGS)

    def __call__(self, z):
        o, h = self.o, self.fc(z)
        h = tap(
            "map", h.reshape(-1, 2, 3, 6) if o.of("unflatten", "") else h.reshape(-1, 6, 2, 3).transpose(0, 2, 3, 1)
        )
        h = self.up(h)
        if o.of("resize", "bilinear") == "align":
            h = jnp.einsum("ih,jw,bhwc->bijc", align(h.shape[1]), align(h.shape[2]), h)
        else:
            h = jax.image.resize(h, (len(h), 2 * h.shape[1], 2 * h.shape[2], h.shape[3]), o.of("resize", "bilinear"))
        h = tap("large", h)
        return activation(o.of("last", "tanh"))(self.conv(jax.nn.leaky_relu(h, o.of("slope", 0.2)))) * o.of("gain", 1.0)


class TurnedUp(nnx.ConvTranspose):
    def __call__(self, x):
        kernel = self.kernel[...]
        self.kernel[...] = kernel[::-1, ::-1]
        y = super().__call__(x)
        self.kernel[...] = kernel
        return y


# Networks: functions, and equinox ---------------------------------------------------------------------------------


def torch_gated(params, x):
    square = x.square().mean(-1, keepdim=True)
    h = tap("normed", x / torch.sqrt(square + 1e-6))
    a, b = tap("packed", h @ params["up"]).chunk(2, -1)
    h = tap("gated", a * F.gelu(b))
    logits = tap("logits", h @ params["down"] / math.sqrt(7))
    return tap("weights", torch.softmax(logits, -1)) @ params["values"]


def gated(o):
    def forward(params, x):
        epsilon, how = o.of("eps", 1e-6), o.of("norm", "")
        mean = x.mean(-1, keepdims=True) if how == "mean" else 0
        square = ((x - mean) ** 2).mean(-1, keepdims=True)
        root = jnp.sqrt(square) + epsilon if how == "beside" else jnp.sqrt(square + epsilon)
        h = tap("normed", (x - mean) / root)
        a, b = jnp.split(tap("packed", h @ params["up"]), 2, -1)
        a, b = (b, a) if o.of("halves", "") else (a, b)
        h = tap("gated", a * activation(o.of("act", "gelu"))(b))
        logits = tap("logits", o.of("sign", 1) * (h @ params["down"]) / o.of("root", math.sqrt(7)))
        weights = jax.nn.softmax(logits, o.of("axis", -1))
        return tap("weights", weights[:, ::-1] if o.of("reversed", False) else weights) @ params["values"]

    return forward


GATED = {"up": normal(6, 16), "down": normal(8, 4), "values": normal(4, 3)}


class TorchMLP(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleList([torch.nn.Linear(5, 7), torch.nn.Linear(7, 7), torch.nn.Linear(7, 3)])
        self.norm = torch.nn.LayerNorm(7)

    def forward(self, x):
        x = F.silu(self.layers[0](x))
        return self.layers[2](self.norm(F.silu(self.layers[1](x))))


def equinox_mlp(o, twin):
    import equinox as eqx

    class MLP(eqx.Module):
        layers: list
        norm: eqx.nn.LayerNorm
        act: Any = eqx.field(static=True)

        def __call__(self, x):
            x = jax.nn.silu(self.layers[0](x))
            x = self.act(self.layers[1](x))
            if o.of("dropout", False):
                x = jnp.where(jnp.arange(7) % 2 == 0, 2 * x, 0)
            return self.layers[2](self.norm(x)) + o.of("shift", 0.0)

    def linear(layer, index):
        made = eqx.nn.Linear(*layer.weight.shape[::-1], key=jax.random.key(0))
        weight, bias = (jnp.asarray(x.detach().numpy()) for x in (layer.weight, layer.bias))
        weight = weight.T if o.of("crossed", None) == index else weight
        bias = 0 * bias if o.of("no_bias", None) == index else bias
        return eqx.tree_at(lambda m: (m.weight, m.bias), made, (weight, bias))

    layers = [linear(layer, index) for index, layer in enumerate(twin.layers)]
    layers = [layers[i] for i in o.of("layers", (0, 1, 2))]
    norm = eqx.nn.LayerNorm(7, eps=o.of("eps", 1e-5))
    gain, shift = (jnp.asarray(x.detach().numpy()) for x in (twin.norm.weight, twin.norm.bias))
    norm = eqx.tree_at(lambda m: (m.weight, m.bias), norm, (gain, shift))
    return MLP(layers, norm, activation(o.of("act", "silu")))


@dataclass(frozen=True)
class Fault:
    """One option of a port that is wrong."""

    network: str
    options: dict[str, Any]
    name: str
    """The layer at, or before, which it has to be found."""
    cause: str | None
    """What its cause or place has to say, a regular expression; None: nothing in the table fits, and none is asked for."""
    kind: str = "layer"
    given: dict[str, Any] = field(default_factory=dict)
    """Options of compare."""

    @property
    def id(self):
        """What pytest calls it."""
        told = [f"{name}={getattr(value, '__name__', value)}" for name, value in self.options.items()]
        return f"{self.network}: {', '.join(told)}"


LIKE = {
    nnx.Conv: [Turned],
    nnx.LayerNorm: [Unbiased, BesideRoot],
    nnx.Linear: [Without, Coarse, Crossed],
    nnx.ConvTranspose: [TurnedUp],
}
for base, kinds in LIKE.items():
    bridge.RULES.update(dict.fromkeys(kinds, bridge.RULES[base]))
bridge.RULES[BatchNorm] = bridge.RULES[normalization.BatchNorm]

IDS = np.array([[1, 4, 10, 0, 7], [3, 3, 9, 2, 5]])
NETWORKS = {
    "resnet": (ResNet, TorchResNet, normal(3, 3, 8, 8)),
    "unet": (UNet, TorchUNet, (normal(2, 2, 6, 4), np.array([3, 40]))),
    "encoder": (Encoder, TorchEncoder, normal(2, 5, 12)),
    "decoder": (Decoder, TorchDecoder, IDS),
    "convnext": (ConvNeXt, TorchConvNeXt, normal(2, 6, 5, 7)),
    "images": (Images, TorchImages, normal(2, 5)),
    "gated": (gated, None, normal(5, 6)),
    "equinox": (equinox_mlp, TorchMLP, normal(4, 5)),
}


def pair(network, **options):
    """A port with options, PyTorch's side, and inputs."""
    make, make_torch, inputs = NETWORKS[network]
    o = Options(options)
    torch.manual_seed(0)
    if network == "gated":
        return (make(o), GATED), (torch_gated, {key: torch.tensor(x) for key, x in GATED.items()}), inputs
    twin = make_torch()
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            if "norm" in name or "bn" in name:  # gains and shifts that tell something
                parameter.add_(torch.rand_like(parameter))
    return (make(o, twin) if network == "equinox" else make(o)), twin, inputs


TRAINING = {"training": True}
# fmt: off
FAULTS = [
    Fault("resnet", {"eps": 1e-3}, "bn1", "epsilon 0.001 in JAX, 1e-05 in PyTorch"),
    Fault("resnet", {"padding": "SAME"}, "down", r"padding 'SAME' puts \(0, 1\) at either end in JAX"),
    Fault("resnet", {"conv1": "turned"}, "conv1", "kernel turned round"),
    Fault("resnet", {"conv1": "exchanged"}, "conv1", "kernel's height and width exchanged"),
    Fault("resnet", {"act1": "leaky"}, "down", r"LeakyReLU\(0.01\) in JAX, ReLU in PyTorch", "between"),
    Fault("resnet", {"act1": "none"}, "down", "no activation in JAX, ReLU in PyTorch", "between"),
    Fault("resnet", {"residual": False}, "fc", None, "between"),
    Fault("resnet", {"act2": "none"}, "fc", None, "between"),
    Fault("resnet", {"pool": "mean"}, "fc", None, "between"),
    Fault("resnet", {"flatten": "last"}, "fc", "flattened in another order", "between"),
    Fault("resnet", {"biased": True}, "bn1.running_var", "JAX takes the biased variance", "statistics", TRAINING),
    Fault("resnet", {"momentum": 0.1}, "bn1.running_mean", "momentum: a new batch counts 0.9 in JAX, 0.1", "statistics", TRAINING),

    Fault("unet", {"embedding": "cos"}, "time1", "cosines first in JAX, sines first in PyTorch", "between"),
    Fault("unet", {"embedding": "turn"}, "time1", "sines and cosines in turn in JAX", "between"),
    Fault("unet", {"last": 1}, "time1", "frequencies including the last in JAX", "between"),
    Fault("unet", {"base": 1000}, "time1", "base 1000 in JAX, base 10000 in PyTorch", "between"),
    Fault("unet", {"late": 1}, "time1", None, "between"),
    Fault("unet", {"groups": 2}, "norm", "groups of the norm 2 in JAX, 4 in PyTorch"),
    Fault("unet", {"eps": 1e-6}, "norm", "epsilon 1e-06 in JAX, 1e-05 in PyTorch"),
    Fault("unet", {"modulation": "swapped"}, "mid", None, "between"),
    Fault("unet", {"modulation": "no_one"}, "mid", None, "between"),
    Fault("unet", {"modulation": "shift_first"}, "mid", None, "between"),
    Fault("unet", {"act": "relu"}, "mid", None, "between"),
    Fault("unet", {"resize": "bilinear"}, "up", "bilinear in JAX, nearest in PyTorch", "between"),
    Fault("unet", {"resize": "align"}, "up", "bilinear with align_corners in JAX, nearest", "between"),
    Fault("unet", {"concat": "skip first"}, "out", "parts of a concatenation", "between"),

    Fault("encoder", {"eps": 1e-6}, "norm1", "epsilon 1e-06 in JAX, 1e-05 in PyTorch"),
    Fault("encoder", {"eps": 1e-12}, "norm1", "epsilon 1e-12 in JAX"),
    Fault("encoder", {"norm2": "unbiased"}, "norm2", "unbiased variance in JAX"),
    Fault("encoder", {"norm2": "beside"}, "norm2", "beside the root in JAX"),
    Fault("encoder", {"act": "gelu_tanh"}, "fc2", "tanh GELU in JAX, exact GELU in PyTorch", "between"),
    Fault("encoder", {"act": "quick_gelu"}, "fc2", "quick GELU .* in JAX, exact GELU", "between"),
    Fault("encoder", {"scale": 0.25}, "proj", r"scale 1/4 in JAX, 1/sqrt\(4\) in PyTorch", "between"),
    Fault("encoder", {"scale": 1.0}, "proj", r"scale 1 in JAX, 1/sqrt\(4\) in PyTorch", "between"),
    Fault("encoder", {"order": "kqv"}, "proj", "order kqv in JAX, qkv in PyTorch", "between"),
    Fault("encoder", {"packing": "heads"}, "proj", "heads in turn, q, k, v within in JAX", "between"),
    Fault("encoder", {"heads_inside": True, "merged_inside": True}, "proj", "heads inside in JAX", "between"),
    Fault("encoder", {"axis": -2}, "proj", "over queries in JAX, over keys", "between"),
    Fault("encoder", {"causal": True}, "proj", "mask causal in JAX, none", "between"),
    Fault("encoder", {"merged_inside": True}, "proj", "flattened in another order", "between"),
    Fault("encoder", {"residual": "normed"}, "norm2", "adds", "between"),
    Fault("encoder", {"residual": "none"}, "output", "PyTorch adds", "output"),
    Fault("encoder", {"proj": Crossed}, "proj", "the weight is transposed"),
    Fault("encoder", {"fc2": Without}, "fc2", "the bias is left out in JAX"),
    Fault("encoder", {"fc2": Coarse}, "fc2", "a cast to bfloat16 left in JAX"),

    Fault("decoder", {"causal": False}, "proj", "mask none in JAX, causal in PyTorch", "between"),
    Fault("decoder", {"first": 1}, "positions", "plus 1", "between"),
    Fault("decoder", {"embed_scale": math.sqrt(8)}, "q", "adds", "between"),
    Fault("decoder", {"add_positions": False}, "q", "PyTorch adds `positions`", "between"),
    Fault("decoder", {"eps": 1e-5}, "norm", "epsilon 1e-05 in JAX, 1e-06"),
    Fault("decoder", {"rolled": True}, "head", "concatenation|shifted by 1 along the tokens", "between"),
    Fault("decoder", {"head": Coarse}, "head", "a cast to bfloat16 left in JAX"),
    Fault("decoder", {"scale": 1 / math.sqrt(8)}, "proj", r"scale 1/sqrt\(8\) in JAX, 1/sqrt\(4\)", "between"),

    Fault("convnext", {"padding": ((4, 0), (2, 2))}, "dwconv", r"padding .* puts \(4, 0\)"),
    Fault("convnext", {"eps": 1e-5}, "norm", "epsilon 1e-05 in JAX, 1e-06"),
    Fault("convnext", {"act": "gelu_tanh"}, "fc2", "tanh GELU in JAX, exact GELU in PyTorch", "between"),
    Fault("convnext", {"residual": False}, "output", "PyTorch adds", "output"),
    Fault("convnext", {"gain": 1.0}, "output", "JAX adds 0.5 times `fc2`", "output"),
    Fault("convnext", {"fc1": Without}, "fc1", "the bias is left out in JAX"),

    Fault("images", {"unflatten": "last"}, "map", None, "tap"),
    Fault("images", {"turned": True}, "up", "kernel turned round"),
    Fault("images", {"resize": "nearest"}, "large", "nearest in JAX, bilinear in PyTorch", "tap"),
    Fault("images", {"resize": "align"}, "large", "align_corners in JAX, bilinear in PyTorch", "tap"),
    Fault("images", {"slope": 0.01}, "conv", r"LeakyReLU\(0.01\) in JAX, LeakyReLU\(0.2\)", "between"),
    Fault("images", {"last": "sigmoid"}, "output", "sigmoid in JAX, tanh in PyTorch", "output"),
    Fault("images", {"gain": 0.5}, "output", "0.5", "output"),
    Fault("images", {"padding": "CIRCULAR"}, "conv", r"wrap"),

    Fault("gated", {"eps": 1e-5}, "normed", "epsilon 1e-05 in JAX, epsilon 1e-06 in PyTorch", "tap"),
    Fault("gated", {"norm": "mean"}, "normed", "normalised", "tap"),
    Fault("gated", {"halves": "exchanged"}, "gated", "second half times exact GELU of the first in JAX", "tap"),
    Fault("gated", {"act": "gelu_tanh"}, "gated", "tanh GELU of the second in JAX", "tap"),
    Fault("gated", {"act": "silu"}, "gated", "SiLU of the second in JAX", "tap"),
    Fault("gated", {"root": 1.0}, "logits", r"sqrt\(7\)", "tap"),
    Fault("gated", {"sign": -1}, "logits", "a sign", "tap"),
    Fault("gated", {"axis": 0}, "weights", "softmax along axis 0 in JAX, softmax along axis 1", "tap"),
    Fault("gated", {"reversed": True}, "weights", "turned round along the channels|order", "tap"),

    Fault("equinox", {"act": "relu"}, "norm", "ReLU in JAX, SiLU in PyTorch", "between"),
    Fault("equinox", {"crossed": 1}, "layers.1", "the weight is transposed"),
    Fault("equinox", {"no_bias": 2}, "layers.2", "bias"),
    Fault("equinox", {"dropout": True}, "norm", None, "between"),
    Fault("equinox", {"shift": 0.5}, "output", r"plus 0\.5", "output"),
    Fault("equinox", {"eps": 1e-6}, "norm", "epsilon 1e-06 in JAX, 1e-05 in PyTorch"),
]
# fmt: on
