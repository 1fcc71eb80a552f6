"""What the same layer may mean in two programs: activations, norms, attention, convolutions, ... in NumPy, each in its variants.

Each function takes arrays in JAX's order of axes and returns {how it was computed: result}.
"""

import itertools
import math
from collections.abc import Callable, Iterator

import numpy as np
from scipy.special import erf, expit, log_softmax, softmax

Variants = dict[str, np.ndarray]

ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "no activation": lambda x: x,
    "exact GELU": lambda x: x * 0.5 * (1 + erf(x / math.sqrt(2))),
    "tanh GELU": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "quick GELU (sigmoid of 1.702 x)": lambda x: x * expit(1.702 * x),
    "SiLU": lambda x: x * expit(x),
    "ReLU": lambda x: np.maximum(x, 0),
    "ReLU6": lambda x: np.clip(x, 0, 6),
    "LeakyReLU(0.01)": lambda x: np.where(x > 0, x, 0.01 * x),
    "LeakyReLU(0.2)": lambda x: np.where(x > 0, x, 0.2 * x),
    "ELU": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    "softplus": lambda x: np.logaddexp(0, x),
    "Mish": lambda x: x * np.tanh(np.logaddexp(0, x)),
    "tanh": np.tanh,
    "sigmoid": expit,
}

EPSILONS = (0.0, 1e-12, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3)


def activations(x: np.ndarray) -> Variants:
    """Every elementwise activation, and softmax along each axis."""
    found = {name: function(x) for name, function in ACTIVATIONS.items()}
    for axis in range(x.ndim):
        found[f"softmax along axis {axis}"] = softmax(x, axis=axis)
        found[f"log-softmax along axis {axis}"] = log_softmax(x, axis=axis)
    return found


def norms(x: np.ndarray, groups: int | None = None) -> Variants:
    """x normalised over its channels, its map, or groups of channels, with every epsilon, in and beside the root."""
    found: Variants = {}
    channels, last = x.shape[-1], x.ndim - 1
    space = tuple(range(1, last))
    views: dict[str, tuple[np.ndarray, tuple[int, ...]]] = {"over channels": (x, (last,))}
    if space:
        views["over each channel's map (InstanceNorm)"] = (x, space)
    if x.ndim > 2:
        views["over batch and map (BatchNorm)"] = (x, (0, *space))
        for count in [groups] if groups else [1, 2, 4, 8, 16, 32]:
            if count and channels % count == 0 and channels >= count:
                split = x.reshape(*x.shape[:-1], count, channels // count)
                views[f"over {count} groups"] = (split, (*space, last + 1))
                interleaved = x.reshape(*x.shape[:-1], channels // count, count)
                if 1 < count < channels:
                    views[f"over {count} interleaved groups"] = (interleaved, (*space, last))
    for over, (view, axes) in views.items():
        mean = view.mean(axes, keepdims=True)
        size = math.prod(view.shape[axis] for axis in axes)
        variances = {"": ((view - mean) ** 2).mean(axes, keepdims=True)}
        if size > 1:
            variances[", unbiased variance"] = variances[""] * size / (size - 1)
        for said, variance in variances.items():
            for epsilon in EPSILONS:
                with np.errstate(divide="ignore", invalid="ignore"):
                    root, beside = np.sqrt(variance + epsilon), np.sqrt(variance) + epsilon
                    found[f"{over}, epsilon {epsilon:g} in the root{said}"] = ((view - mean) / root).reshape(x.shape)
                    if epsilon:
                        found[f"{over}, epsilon {epsilon:g} beside the root{said}"] = ((view - mean) / beside).reshape(
                            x.shape
                        )
        square = (view**2).mean(axes, keepdims=True)
        for epsilon in EPSILONS[1:]:
            found[f"root mean square {over}, epsilon {epsilon:g}"] = (view / np.sqrt(square + epsilon)).reshape(x.shape)
    return found


def products(a: np.ndarray, b: np.ndarray, h: np.ndarray | None) -> Variants:
    """What is made of two halves of an array: gates; and, of a third array h, its scale and shift, in either order."""
    found: Variants = {}
    gates = ("no activation", "exact GELU", "tanh GELU", "SiLU", "ReLU", "sigmoid")
    if h is None:
        for name in gates:
            gate = ACTIVATIONS[name]
            found[f"first half times {name} of the second"] = a * gate(b)
            found[f"second half times {name} of the first"] = b * gate(a)
        return found
    halves = {"scale first": (a, b), "shift first": (b, a)}
    for said, (scale, shift) in halves.items():
        found[f"h (1 + scale) + shift, {said}"] = h * (1 + scale) + shift
        found[f"h scale + shift, {said}"] = h * scale + shift
        found[f"(h + shift) (1 + scale), {said}"] = (h + shift) * (1 + scale)
        found[f"(h + shift) scale, {said}"] = (h + shift) * scale
    return found


def attentions(sources: list[np.ndarray], width: int) -> Iterator[tuple[dict[str, str], np.ndarray]]:
    """Attention of a packed (B, N, 3 C), or of three (B, N, C), in every usual variant, the likeliest first.

    Yields what each is told apart by, and its result (B, N, C).
    """
    packed = len(sources) == 1
    for heads in [h for h in (1, 2, 3, 4, 6, 8, 12, 16) if width % h == 0]:
        dim = width // heads
        options: dict[str, list[str]] = {
            "packing": ["q, k, v in turn, heads within", "heads in turn, q, k, v within"] if packed else ["apart"],
            "heads": ["heads outside", "heads inside"],
            "order": ["".join(order) for order in itertools.permutations("qkv")],
            "scale": [f"1/sqrt({dim})", "1", f"1/{dim}", f"1/sqrt({width})"],
            "softmax": ["over keys", "over queries"],
            "mask": ["none", "causal"],
        }
        options["scale"] = list(dict.fromkeys(options["scale"]))
        usual = {name: values[0] for name, values in options.items()}
        for changed in itertools.chain([()], _pairs(options)):
            variant = usual | dict(changed)
            result = _attention(sources, variant, heads, dim)
            if result is not None:
                yield {"number of heads": str(heads), **variant}, result


def _pairs(options: dict[str, list[str]]) -> Iterator[tuple[tuple[str, str], ...]]:
    """All ways to leave the usual variant in one respect, then in two."""
    single = [(name, value) for name, values in options.items() for value in values[1:]]
    yield from ((one,) for one in single)
    yield from ((a, b) for a, b in itertools.combinations(single, 2) if a[0] != b[0])


def _attention(sources: list[np.ndarray], variant: dict[str, str], heads: int, dim: int) -> np.ndarray | None:
    def split(x: np.ndarray) -> np.ndarray:
        batch, length = x.shape[:2]
        if variant["heads"] == "heads outside":
            return x.reshape(batch, length, heads, dim).transpose(0, 2, 1, 3)
        return x.reshape(batch, length, dim, heads).transpose(0, 3, 1, 2)

    parts: np.ndarray
    if len(sources) == 1:
        packed = sources[0]
        batch, length = packed.shape[:2]
        if variant["packing"].startswith("heads"):
            parts = packed.reshape(batch, length, heads, 3, dim).transpose(3, 0, 1, 2, 4).reshape(3, batch, length, -1)
        else:
            parts = packed.reshape(batch, length, 3, heads * dim).transpose(2, 0, 1, 3)
    else:
        parts = np.stack(sources) if len({x.shape for x in sources}) == 1 else np.empty(0)
        if not parts.size:
            return None
    q, k, v = (split(parts["qkv".index(letter)]) for letter in variant["order"])
    scale = variant["scale"]
    number = 1.0 if scale == "1" else 1 / math.sqrt(int(scale[7:-1])) if "sqrt" in scale else 1 / int(scale[2:])
    logits = number * q @ k.swapaxes(-1, -2)
    if variant["mask"] == "causal":
        logits = np.where(np.tri(logits.shape[-2], logits.shape[-1], dtype=bool), logits, -1e30)
    out = softmax(logits, axis=-1 if variant["softmax"] == "over keys" else -2) @ v
    order = (0, 2, 1, 3) if variant["heads"] == "heads outside" else (0, 2, 3, 1)
    return out.transpose(order).reshape(*parts.shape[1:])


def embeddings(t: np.ndarray, width: int) -> Variants:
    """Sinusoidal embeddings of numbers t (B,) -> (B, width)."""
    found: Variants = {}
    half = width // 2
    for ends, last in (
        ("frequencies up to, not including, the last", half),
        ("frequencies including the last", half - 1),
    ):
        if last < 1:
            continue
        for base in (10_000, 1_000):
            for factor in (1, 1_000, 1e-3):
                angles = factor * t[:, None] * np.exp(-math.log(base) * np.arange(half) / last)
                sin, cos = np.sin(angles), np.cos(angles)
                said = f"{ends}, base {base}" + (f", times {factor:g}" if factor != 1 else "")
                found[f"sines first, {said}"] = np.concatenate([sin, cos], 1)
                found[f"cosines first, {said}"] = np.concatenate([cos, sin], 1)
                found[f"sines and cosines in turn, {said}"] = np.stack([sin, cos], 2).reshape(len(t), -1)
    return {name: array for name, array in found.items() if array.shape[1] == width}


def resized(x: np.ndarray, size: tuple[int, int]) -> Variants:
    """A map (B, H, W, C) at another size: up by nearest or linear interpolation, down by pooling or picking."""
    found: Variants = {}
    (height, width), (h, w) = size, x.shape[1:3]
    for name, weights in (
        ("nearest", _nearest),
        ("bilinear", _linear),
        ("bilinear with align_corners", _aligned_linear),
    ):
        found[name] = np.einsum("ih,jw,bhwc->bijc", weights(h, height), weights(w, width), x, optimize=True)
    if h % height == 0 and w % width == 0 and height < h:
        blocks = x.reshape(len(x), height, h // height, width, w // width, -1)
        found["average pooling"], found["max pooling"] = blocks.mean((2, 4)), blocks.max((2, 4))
        found["picking the first"] = blocks[:, :, 0, :, 0]
    return found


def _nearest(old: int, new: int) -> np.ndarray:
    return np.eye(old)[np.arange(new) * old // new]


def _linear(old: int, new: int) -> np.ndarray:
    return _between(old, (np.arange(new) + 0.5) * old / new - 0.5)


def _aligned_linear(old: int, new: int) -> np.ndarray:
    return _between(old, np.linspace(0, old - 1, new))


def _between(old: int, places: np.ndarray) -> np.ndarray:
    places = places.clip(0, old - 1)
    low = np.floor(places).astype(int)
    high = np.minimum(low + 1, old - 1)
    share = (places - low)[:, None]
    return (1 - share) * np.eye(old)[low] + share * np.eye(old)[high]


def convolutions(x: np.ndarray, weight: np.ndarray, stride: int, groups: int, dilation: int) -> Variants:
    """A map (B, H, W, C) convolved with a kernel of PyTorch's (out, in, k, k): every padding, kernels turned and transposed."""
    found: Variants = {}
    size = weight.shape[-1]
    reach = dilation * (size - 1)
    kernels = {"": weight}
    if size > 1:
        kernels["kernel turned round, "] = weight[:, :, ::-1, ::-1]
        kernels["kernel's height and width exchanged, "] = weight.swapaxes(2, 3)
    if weight.shape[0] == weight.shape[1] and groups == 1:
        kernels["kernel's in and out exchanged, "] = weight.swapaxes(0, 1)
    total = [max((math.ceil(n / stride) - 1) * stride + reach + 1 - n, 0) for n in x.shape[1:3]]
    paddings = {f"padding {p} on both sides": ((p, p), (p, p)) for p in sorted({0, reach // 2, reach})}
    paddings["padding SAME"] = tuple((t // 2, t - t // 2) for t in total)  # type: ignore[assignment]
    paddings["padding SAME_LOWER"] = tuple((t - t // 2, t // 2) for t in total)  # type: ignore[assignment]
    for (turned, kernel), (said, pads) in itertools.product(kernels.items(), paddings.items()):
        for mode in ("constant", "reflect", "wrap", "edge"):
            if mode != "constant" and (turned or not any(map(any, pads)) or max(map(max, pads)) >= min(x.shape[1:3])):
                continue
            padded = np.pad(x, ((0, 0), *pads, (0, 0)), mode=mode)
            if min(padded.shape[1:3]) > reach:
                name = turned + said + ("" if mode == "constant" else f" ({mode})")
                found[name] = _convolved(padded, kernel, stride, groups, dilation)
    return found


def _convolved(x: np.ndarray, weight: np.ndarray, stride: int, groups: int, dilation: int) -> np.ndarray:
    out, per_group, size, _ = weight.shape
    reach = dilation * (size - 1) + 1
    windows = np.lib.stride_tricks.sliding_window_view(x, (reach, reach), axis=(1, 2))
    windows = windows[:, ::stride, ::stride, :, ::dilation, ::dilation]
    batch, height, width = windows.shape[:3]
    windows = windows.reshape(batch, height, width, groups, per_group, size, size)
    kernel = weight.reshape(groups, out // groups, per_group, size, size)
    return np.einsum("bhwgikl,goikl->bhwgo", windows, kernel, optimize=True).reshape(batch, height, width, out)


def transposed_convolutions(x: np.ndarray, weight: np.ndarray, stride: int, padding: int) -> Variants:
    """The same of a transposed convolution with PyTorch's kernel (in, out, k, k)."""
    size = weight.shape[-1]
    batch, height, width, _ = x.shape
    spread = np.zeros((batch, (height - 1) * stride + 1, (width - 1) * stride + 1, x.shape[-1]))
    spread[:, ::stride, ::stride] = x
    found = {}
    for said, kernel in (("", weight[:, :, ::-1, ::-1]), ("kernel turned round, ", weight)):
        for edge in sorted({padding, 0, size // 2, max(size - stride, 0) // 2}):
            if size - 1 - edge >= 0:
                padded = np.pad(spread, ((0, 0), *[(size - 1 - edge,) * 2] * 2, (0, 0)))
                if min(padded.shape[1:3]) >= size:
                    found[f"{said}padding {edge}"] = _convolved(padded, kernel.swapaxes(0, 1), 1, 1, 1)
    return found
