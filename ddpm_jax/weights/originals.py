"""Checkpoints of the five original systems: from the names of their authors to those of the PyTorch twin.

Each network is a list of rows (their name, our name, shape). Whatever is an option of the network (widths of the image, of
the levels, number of classes, …) is read off the checkpoint itself. Not ours, and left behind, are the fixed timestep
tables (`t_emb`, `time_embed.weight`: the twin computes them) and a unit that its author never calls (`dconv_down5`).
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from ddpm_jax.errors import UserError, meant
from ddpm_jax.weights.bridge import misfit

StateDict = Mapping[str, Any]


class Row(NamedTuple):
    """One tensor: its name and shape in the checkpoint, its name in the twin, and whether the twin has it as a vector."""

    theirs: str
    ours: str
    shape: tuple[int, ...]
    flat: bool = False


def from_original(name: str, state_dict: StateDict) -> dict[str, Any]:
    """The twin's state dict of a checkpoint that an original wrote (annotated_unet: MindSpore; all others: PyTorch).

    Args:
        name: of the network: one of NETWORKS.
        state_dict: their name -> tensor or array.

    Returns:
        Our name -> the same tensors. `models.create` needs the options that the checkpoint was made with; a checkpoint whose
        timestep table is not the original's needs timestep_table = "sinusoidal".

    Raises:
        UserError: an unknown name, or tensors that are missing, left over, or misshapen; they are listed.
    """
    if name not in NETWORKS:
        raise UserError(f"name must be one of {', '.join(NETWORKS)}; got {name!r}.{meant(name, NETWORKS)}")
    problems = _problems(name, state_dict)
    if problems:
        fitting = [other for other in NETWORKS if not _problems(other, state_dict)]
        hint = f"\nIt fits {' and '.join(fitting)}." if fitting else ""
        raise UserError(f"the checkpoint does not fit {name}:\n  " + "\n  ".join(problems) + hint)
    tensors = ((row, state_dict[row.theirs]) for row in NETWORKS[name](state_dict))
    return {row.ours: tensor.reshape(-1) if row.flat else tensor for row, tensor in tensors}


def _problems(name: str, state_dict: StateDict) -> list[str]:
    left_behind = re.compile(LEFT_BEHIND.get(name, r"(?!)"))
    expected = {row.theirs: row.shape for row in NETWORKS[name](state_dict)}
    given = {key: tensor for key, tensor in state_dict.items() if key in expected or not left_behind.fullmatch(key)}
    return misfit(expected, given).lines()


# Layers


def _size(state_dict: StateDict, key: str, axis: int, default: int) -> int:
    """What a checkpoint says of an option; the original's own value where it says nothing."""
    shape = tuple(state_dict[key].shape) if key in state_dict else ()
    return max(shape[axis], 1) if axis < len(shape) else default


def _layer(theirs: str, ours: str, *shape: int, bias: int | None = None) -> Iterator[Row]:
    """A convolution, a transposed one, or a linear map; bias: its width, None for none."""
    yield Row(f"{theirs}.weight", f"{ours}.weight", shape)
    if bias is not None:
        yield Row(f"{theirs}.bias", f"{ours}.bias", (bias,))


def _conv(theirs: str, ours: str, width_in: int, width_out: int, size: int, up: bool = False) -> Iterator[Row]:
    widths = (width_in, width_out) if up else (width_out, width_in)
    return _layer(theirs, ours, *widths, size, size, bias=width_out)


def _linear(theirs: str, ours: str, width_in: int, width_out: int) -> Iterator[Row]:
    return _layer(theirs, ours, width_out, width_in, bias=width_out)


TORCH, MINDSPORE = ("weight", "bias"), ("gamma", "beta")
"""What a norm's scale and shift are called."""


def _norm(theirs: str, ours: str, *shape: int, names: tuple[str, str] = TORCH) -> Iterator[Row]:
    for their_name, our_name in zip(names, TORCH, strict=True):
        yield Row(f"{theirs}.{their_name}", f"{ours}.{our_name}", shape)


def _batch_norm(theirs: str, ours: str, width: int) -> Iterator[Row]:
    yield from _norm(theirs, ours, width)
    for statistic, shape in (("running_mean", (width,)), ("running_var", (width,)), ("num_batches_tracked", ())):
        yield Row(f"{theirs}.{statistic}", f"{ours}.{statistic}", shape)


def _convnext_block(
    theirs: str, ours: str, width_in: int, width_out: int, expansion: int, *, torch: bool
) -> Iterator[Row]:
    """A block of systems 1 (torch) and 3 (MindSpore, without biases), but for what it is told beside the map."""
    net, shortcut = ("sequential", "shortcut") if torch else ("net", "res_conv")
    hidden = width_out * expansion
    convs = {
        ("ds_conv", "depthwise"): (width_in, 1, 7, 7),
        (f"{net}.1", "conv1"): (hidden, width_in, 3, 3),
        (f"{net}.4", "conv2"): (width_out, hidden, 3, 3),
        (shortcut, "shortcut"): (width_out, width_in, 1, 1),
    }
    for (their_name, our_name), shape in convs.items():
        if our_name != "shortcut" or width_in != width_out:
            bias = shape[0] if torch else None
            yield from _layer(f"{theirs}.{their_name}", f"{ours}.{our_name}", *shape, bias=bias)
    for their_index, our_name, width in ((0, "norm1", width_in), (3, "norm2", hidden)):
        names = TORCH if torch else MINDSPORE
        yield from _norm(f"{theirs}.{net}.{their_index}", f"{ours}.{our_name}", width, names=names)


# System 1


def _convnext_unet(state: StateDict) -> Iterator[Row]:
    return _convnext(state, (_size(state, "downblocks.0.0.ds_conv.weight", 0, 1), 16, 32, 64, 128), 8, (10, 112))


def _convnext_unet_224(state: StateDict) -> Iterator[Row]:
    channels = _size(state, "downblocks.0.0.ds_conv.weight", 0, 3)
    return _convnext(state, (channels, 16, 32, 64, 128, 256, 512), 16, (1000, 896))


def _convnext(state: StateDict, widths: tuple[int, ...], width_last: int, classes: tuple[int, int]) -> Iterator[Row]:
    """widths: of the image, of each level, of the middle; classes: the original's number of them and their width."""
    num_classes, emb_dim = (_size(state, "class_emb.weight", axis, classes[axis]) for axis in (0, 1))
    expansion = _size(state, "downblocks.1.0.sequential.1.weight", 0, 3 * widths[2]) // widths[2]

    def block(theirs: str, ours: str, width_in: int, width_out: int) -> Iterator[Row]:
        yield from _linear(f"{theirs}.t_fc", f"{ours}.time_proj", emb_dim, width_in)
        yield from _linear(f"{theirs}.c_fc", f"{ours}.class_proj", emb_dim, width_in)
        yield from _convnext_block(theirs, ours, width_in, width_out, expansion, torch=True)

    def stage(theirs: str, ours: str, width_in: int, width: int) -> Iterator[Row]:
        yield from block(f"{theirs}.0", f"{ours}.block", width_in, width)
        yield from _norm(f"{theirs}.1.gn", f"{ours}.attention.norm", width)
        yield from _linear(f"{theirs}.1.wx", f"{ours}.attention.qkv", width, 3 * width)
        yield from _linear(f"{theirs}.1.wo", f"{ours}.attention.proj", width, width)

    yield Row("class_emb.weight", "class_embed.weight", (num_classes, emb_dim))
    channels, *levels = widths
    last = len(levels) - 1
    for i, width in enumerate(levels):
        # Their blocks take the downsampled map at its own width, all but the first.
        yield from stage(f"downblocks.{i}", f"down.{i}" if i < last else "middle", width if i else channels, width)
    for i in range(last):
        wide, narrow = levels[last - i], levels[last - i - 1]
        yield from _conv(f"downscales.{i}", f"downsamples.{i}", levels[i], levels[i + 1], 3)
        yield from _conv(f"upscales.{i}", f"upsamples.{i}", wide, narrow, 3, up=True)
        yield from stage(f"upblocks.{i}", f"up.{i}", wide, narrow if i < last - 1 else width_last)
    yield from block("final_conv", "block_out", width_last, channels)


# System 2


def _projection(theirs: str, ours: str, time_dim: int, width: int) -> Iterator[Row]:
    yield from _linear(f"{theirs}.0", f"{ours}.time_proj.linear1", time_dim, width)
    yield from _linear(f"{theirs}.2", f"{ours}.time_proj.linear2", width, width)


def _tiny_unet(state: StateDict) -> Iterator[Row]:
    channels = _size(state, "b1.0.ln.weight", 0, 1)
    size = _size(state, "b1.0.ln.weight", 1, 32)
    time_dim = _size(state, "te1.0.weight", 1, 100)
    w = _size(state, "down1.weight", 0, 10)
    stages: list[tuple[str, str, int, tuple[int, ...]]] = [
        ("1", "down.0", 1, (channels, w, w, w)),
        ("2", "down.1", 2, (w, 2 * w, 2 * w, 2 * w)),
        ("3", "down.2", 4, (2 * w, 4 * w, 4 * w, 4 * w)),
        ("_mid", "middle", 8, (4 * w, 2 * w, 2 * w, 4 * w)),
        ("4", "up.0", 4, (8 * w, 4 * w, 2 * w, 2 * w)),
        ("5", "up.1", 2, (4 * w, 2 * w, w, w)),
        ("_out", "up.2", 1, (2 * w, w, w, w)),
    ]
    for theirs, ours, halved, widths in stages:
        yield from _projection(f"te{theirs}", ours, time_dim, widths[0])
        for j in range(3):
            unit, side = f"{ours}.units.{j}", size // halved
            yield from _norm(f"b{theirs}.{j}.ln", f"{unit}.norm", widths[j], side, side)
            yield from _conv(f"b{theirs}.{j}.conv1", f"{unit}.conv", widths[j], widths[j + 1], 3)
    for i in range(3):
        yield from _conv(f"down{i + 1}", f"downsamples.{i}", w * 2**i, w * 2**i, 4)
        yield from _conv(f"up{i + 1}", f"upsamples.{i}", w * 2 ** (2 - i), w * 2 ** (2 - i), 4, up=True)
    yield from _conv("conv_out", "conv_out", w, channels, 3)


def _double_conv_unet(state: StateDict) -> Iterator[Row]:
    channels = _size(state, "last_conv.weight", 0, 3)
    dim = _size(state, "last_conv.weight", 1, 64)
    time_dim = _size(state, "te1.0.weight", 1, 100)
    widths = [channels, *(dim * 2**i for i in range(5))]

    def double_conv(theirs: str, ours: str, width_in: int, width_out: int) -> Iterator[Row]:
        yield from _conv(f"{theirs}.conv.0", f"{ours}.block.conv1", width_in, width_out, 3)
        yield from _batch_norm(f"{theirs}.conv.1", f"{ours}.block.norm1", width_out)
        yield from _conv(f"{theirs}.conv.3", f"{ours}.block.conv2", width_out, width_out, 3)
        yield from _batch_norm(f"{theirs}.conv.4", f"{ours}.block.norm2", width_out)

    for i in range(5):
        yield from _projection(f"te{i + 1}", f"down.{i}", time_dim, widths[i])
        yield from double_conv(f"down{i}.conv" if i else "conv1", f"down.{i}", widths[i], widths[i + 1])
    for i in range(4):
        width_in, width_out = widths[5 - i], widths[4 - i]
        yield from _projection(f"te{i + 1}_up", f"up.{i}", time_dim, width_in)
        yield from _conv(f"up{i + 1}.up.up_scale", f"up.{i}.upsample", width_in, width_out, 2, up=True)
        yield from double_conv(f"up{i + 1}.conv", f"up.{i}", width_in, width_out)
    yield from _conv("last_conv", "conv_out", dim, channels, 1)


# System 3, in MindSpore's terms


def _annotated_unet(state: StateDict) -> Iterator[Row]:
    channels = _size(state, "init_conv.weight", 1, 1)
    dim = _size(state, "time_mlp.1.weight", 1, 28)
    expansion = _size(state, "final_conv.0.net.1.weight", 0, 2 * dim) // dim
    levels = 1 + max((int(key.split(".")[1]) for key in state if re.match(r"downs\.\d+\.", key)), default=2)
    outs = [_size(state, f"downs.{i}.1.ds_conv.weight", 0, dim * 2**i) for i in range(levels)]
    widths = [dim // 3 * 2, *outs]

    def block(theirs: str, ours: str, width_in: int, width_out: int, timed: bool = True) -> Iterator[Row]:
        if timed:
            yield from _linear(f"{theirs}.mlp.1", f"{ours}.time_proj", 4 * dim, width_in)
        yield from _convnext_block(theirs, ours, width_in, width_out, expansion, torch=False)

    def attention(theirs: str, ours: str, width: int, linear: bool = True) -> Iterator[Row]:
        yield from _norm(f"{theirs}.fn.norm", f"{ours}.norm", width, names=MINDSPORE)
        yield from _layer(f"{theirs}.fn.fn.to_qkv", f"{ours}.qkv", 384, width, 1, 1)
        yield from _conv(f"{theirs}.fn.fn.to_out" + ".0" * linear, f"{ours}.proj", 128, width, 1)
        if linear:
            yield Row(f"{theirs}.fn.fn.to_out.1.g", f"{ours}.norm_out.weight", (1, width, 1, 1), flat=True)

    def stage(theirs: str, ours: str, width_in: int, width: int) -> Iterator[Row]:
        yield from block(f"{theirs}.0", f"{ours}.block1", width_in, width)
        yield from block(f"{theirs}.1", f"{ours}.block2", width, width)
        yield from attention(f"{theirs}.2", f"{ours}.attention", width)

    yield from _conv("init_conv", "conv_in", channels, widths[0], 7)
    yield from _linear("time_mlp.1", "time_mlp.linear1", dim, 4 * dim)
    yield from _linear("time_mlp.3", "time_mlp.linear2", 4 * dim, 4 * dim)
    for i in range(levels):
        yield from stage(f"downs.{i}", f"down.{i}", widths[i], widths[i + 1])
    for i in range(levels - 1):
        down, up = widths[i + 1], widths[levels - 1 - i]
        yield from _layer(f"downs.{i}.3", f"downsamples.{i}", down, down, 4, 4)
        yield from stage(f"ups.{i}", f"up.{i}", 2 * widths[levels - i], up)
        yield from _layer(f"ups.{i}.3", f"upsamples.{i}", up, up, 4, 4)
    for i in (1, 2):
        yield from block(f"mid_block{i}", f"middle.block{i}", widths[-1], widths[-1])
    yield from attention("mid_attn", "middle.attention", widths[-1], linear=False)
    yield from block("final_conv.0", "block_out", widths[1], dim, timed=False)
    yield from _layer("final_conv.1", "conv_out", channels, dim, 1, 1)


# Systems 4 and 5


def _mlp(state: StateDict) -> Iterator[Row]:
    dim, data_dim = _size(state, "1.weight", 0, 256), _size(state, "7.weight", 0, 2)
    widths = [data_dim + 1, dim, dim, dim, data_dim]
    for i in range(4):
        yield from _linear(f"{2 * i + 1}", f"layers.{i}", widths[i], widths[i + 1])


def _conv_net(state: StateDict) -> Iterator[Row]:
    dim, channels = _size(state, "0.weight", 0, 64), _size(state, "0.weight", 1, 3)
    yield from _conv("0", "conv_in", channels, dim, 3)
    yield from _batch_norm("1", "norm", dim)
    yield from _conv("3", "conv_out", dim, channels, 3)


def _strided_unet(state: StateDict, num_classes: int = 0) -> Iterator[Row]:
    channels = _size(state, "dconv_down1.0.weight", 1, 3)
    down, middle, up = (channels, 72, 96, 128, 196), 256, (256, 196, 128, 96)
    for i in range(4):
        theirs, ours = f"dconv_down{i + 1}", f"down.{i}"
        yield from _layer(f"{theirs}.0", f"{ours}.conv", down[i + 1], down[i], 4, 4)
        yield from _batch_norm(f"{theirs}.1", f"{ours}.norm", down[i + 1])
    yield from _layer("bottleneck", "middle", middle, down[-1], 3, 3)
    for i in range(4):
        theirs, ours = f"dconv_up{4 - i}", f"up.{i}"
        width_in = (up[i - 1] if i else middle) + down[4 - i] + (num_classes if i < 2 else 0)
        yield from _layer(f"{theirs}.0", f"{ours}.conv", width_in, up[i], 4, 4)
        yield from _batch_norm(f"{theirs}.1", f"{ours}.norm", up[i])
    yield from _conv("conv_last", "conv_out", up[-1] + channels, channels, 1)


def _strided_unet_conditional(state: StateDict) -> Iterator[Row]:
    num_classes = _size(state, "dconv_up4.0.weight", 0, 462) - 452
    return _strided_unet(state, num_classes if num_classes > 0 else 10)


NETWORKS: dict[str, Callable[[StateDict], Iterator[Row]]] = {
    "convnext_unet": _convnext_unet,
    "convnext_unet_224": _convnext_unet_224,
    "tiny_unet": _tiny_unet,
    "double_conv_unet": _double_conv_unet,
    "annotated_unet": _annotated_unet,
    "mlp": _mlp,
    "conv_net": _conv_net,
    "strided_unet": _strided_unet,
    "strided_unet_conditional": _strided_unet_conditional,
}
"""Name of a network -> the rows of a checkpoint of it."""

LEFT_BEHIND: dict[str, str] = {
    **dict.fromkeys(("convnext_unet", "convnext_unet_224"), r"t_emb"),
    **dict.fromkeys(("tiny_unet", "double_conv_unet"), r"time_embed\.weight"),
    **dict.fromkeys(("strided_unet", "strided_unet_conditional"), r"dconv_down5\..*"),
}
"""Name of a network -> pattern of the names in its checkpoints that the twin has no use for."""
