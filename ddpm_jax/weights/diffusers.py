"""`UNet2DModel` of the library diffusers: its config and its names, to and from those of `unet`."""

import re
from collections.abc import Hashable, Mapping
from typing import Any, NamedTuple

import numpy as np

from ddpm_jax import models
from ddpm_jax.errors import UserError
from ddpm_jax.weights import foreign
from ddpm_jax.weights.foreign import Source

CLASS, MIDDLE = "UNet2DModel", "UNetMidBlock2D"
DEFAULTS: dict[str, Any] = {
    "sample_size": None,
    "in_channels": 3,
    "out_channels": 3,
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "freq_shift": 0,
    "flip_sin_to_cos": True,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
    "mid_block_type": MIDDLE,
    "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (224, 448, 672, 896),
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "downsample_padding": 1,
    "downsample_type": "conv",
    "upsample_type": "conv",
    "dropout": 0.0,
    "act_fn": "silu",
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "attn_norm_num_groups": None,
    "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default",
    "add_attention": True,
    "class_embed_type": None,
    "num_class_embeds": None,
    "num_train_timesteps": None,
}
"""Every option there, and what it is where a config.json does not say."""

AVERAGER = (
    "decay", "min_decay", "optimization_step", "update_after_step", "use_ema_warmup", "inv_gamma", "power",
)  # fmt: skip
"""What an average of a network's weights keeps of itself in the network's config.json."""

DOWN = {"DownBlock2D": (False, "conv"), "AttnDownBlock2D": (True, None), "ResnetDownsampleBlock2D": (False, "residual")}
UP = {"UpBlock2D": (False, "conv"), "AttnUpBlock2D": (True, None), "ResnetUpsampleBlock2D": (False, "residual")}
"""block -> whether it attends, and how it resamples; None: as downsample_type or upsample_type says."""

ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu": "gelu", "mish": "mish", "relu": "relu"}
RESAMPLING = {"conv": "conv", "resnet": "residual"}
CONDITIONING = {"default": "add", "scale_shift": "scale_shift"}

SUPPORTED = (
    f"Supported are {CLASS}s of the blocks {', '.join((*DOWN, *UP))}, with act_fn {', '.join(ACTIVATIONS)}, "
    f"resnet_time_scale_shift {', '.join(CONDITIONING)}, downsample_type and upsample_type {', '.join(RESAMPLING)}, "
    "downsample_padding 0 or 1, freq_shift 0 or 1, time_embedding_type positional, mid_block_type UNetMidBlock2D or null, "
    "class_embed_type null or timestep, and as many channels out as in, or twice as many."
)

RENAMED = [
    (r"^(time|class)_(?:mlp|embed)\.linear(\d)\.", r"\1_embedding.linear_\2."),
    (r"^class_embed\.", "class_embedding."),
    (r"^(down|up)\.(\d+)\.", r"\1_blocks.\2."),
    (r"\.blocks\.", ".resnets."),
    (r"\.(down|up)sample\.", r".\1samplers.0."),
    (r"^middle\.block1\.", "mid_block.resnets.0."),
    (r"^middle\.block2\.", "mid_block.resnets.1."),
    (r"^middle\.attention\.", "mid_block.attentions.0."),
    (r"^norm_out\.", "conv_norm_out."),
    (r"\.time_proj\.", ".time_emb_proj."),
    (r"\.shortcut\.", ".conv_shortcut."),
    (r"(\.attentions\.\d+)\.norm\.", r"\1.group_norm."),
    (r"(\.attentions\.\d+)\.proj\.", r"\1.to_out.0."),
]
"""Parts of the twin's names that are called otherwise there."""

FORMER = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""What attention's layers were called before version 0.15: what they are called now."""


def from_diffusers(
    config: Mapping[str, Any],
    tensors: Mapping[str, Any],
    *,
    image_size: int | None = None,
    num_classes: int | None = None,
) -> tuple[models.UNetConfig, dict[str, np.ndarray]]:
    """A `UNet2DModel`'s config.json and state dict as options of `unet`, or of `foreign_unet` where that has not all of them, and
    the twin's state dict.

    image_size, num_classes: where the config does not say them (sample_size null; class_embed_type timestep).

    Raises:
        UserError: options without a counterpart here, by name, or tensors that are missing, left over, or misshapen.
    """
    try:
        options = to_options(config, image_size=image_size, num_classes=num_classes)
    except (TypeError, AttributeError, IndexError) as error:  # null or a word where a number or a list belongs
        raise UserError(f"this is no config.json of a {CLASS}: {error}.") from error
    current = {
        re.sub(r"(\.attentions\.\d+\.)(\w+)", lambda found: found[1] + FORMER.get(found[2], found[2]), name): tensor
        for name, tensor in tensors.items()
    }
    return options, foreign.read(foreign.rows(options, _source), current, f"the {CLASS}'s state dict")


def to_diffusers(
    options: models.UNetConfig, tensors: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The config.json and the state dict of a `UNet2DModel` of the options of `unet` and the twin's state dict.

    Raises:
        UserError: options without a counterpart there, by name.
    """
    return to_config(options), foreign.write(foreign.rows(options, _source), tensors)


def is_averaged(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is that of averaged weights, as training with an EMAModel leaves it."""
    return "optimization_step" in config


def _source(ours: str) -> Source:
    name = ours
    for pattern, replacement in RENAMED:
        name = re.sub(pattern, replacement, name)
    path, _, kind = name.rpartition(".qkv.")
    return Source(tuple(f"{path}.to_{part}.{kind}" for part in "qkv") if path else (name,))


def to_options(
    config: Mapping[str, Any], *, image_size: int | None = None, num_classes: int | None = None
) -> models.UNetConfig:
    """The options of `unet`, or of `foreign_unet` where that has not all of them, of a `UNet2DModel`'s config.json.

    Raises:
        UserError: options without a counterpart here; all of them are named.
    """
    if config.get("_class_name", CLASS) != CLASS:
        raise UserError(f"_class_name must be {CLASS}; got {config['_class_name']!r}. {SUPPORTED}")
    c = _Config(config)
    size = c["sample_size"]
    if isinstance(size, list | tuple):
        if len({*size}) != 1:
            c.problems.append(f"sample_size = {size!r} (images must be square)")
        size = size[0]
    found = {**_ends(c), **_conditioning(c), **_classes(c, num_classes)}
    levels = _levels(c)
    if c.problems:
        raise UserError(f"this {CLASS} has no counterpart here because of " + ", ".join(c.problems) + f". {SUPPORTED}")
    size = image_size or size
    if size is None:
        raise UserError(
            "the config's sample_size is null: pass image_size, the height and width of the images in pixels."
        )
    down, up = (
        tuple(size // 2**level for level, (attends, _) in enumerate(way) if attends) for way in (levels.down, levels.up)
    )
    return models.unet_of(
        image_size=size,
        num_blocks=c["layers_per_block"],
        attention_resolutions=down,
        up_attention_resolutions=None if down == up else up,
        head_dim=c["attention_head_dim"] if down or up or found["middle"] == "attention" else None,
        dropout=c["dropout"],
        norm_groups=c["norm_num_groups"],
        norm_eps=c["norm_eps"],
        **_widths(c),
        **levels.resampling(),
        **found,
    )


class _Config:
    """A config.json with its defaults filled in; what has no counterpart here is gathered in `problems`."""

    def __init__(self, config: Mapping[str, Any]):
        known = {*DEFAULTS, *(AVERAGER if is_averaged(config) else ())}
        unknown = [name for name in config if name not in known and not name.startswith("_")]
        self.values = {name: config.get(name, default) for name, default in DEFAULTS.items()}
        self.problems = [f"{name} = {config[name]!r}" for name in unknown if config[name] is not None]

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    def chosen(self, name: str, table: Mapping[Any, Any]) -> Any:
        """What a table makes of an option's value."""
        value = self[name] if isinstance(self[name], Hashable) else repr(self[name])
        if value not in table:
            self.problems.append(f"{name} = {self[name]!r}")
        return table.get(value)


class _Levels(NamedTuple):
    """Of each level of either way, the widest first: whether it attends, and how it resamples (None: as the others)."""

    down: list[tuple[bool, str | None]]
    up: list[tuple[bool, str | None]]
    others: tuple[str, str]
    """How levels resample, down and up, that do not say."""

    def resampling(self) -> dict[str, Any]:
        """The shortest way to say how levels resample."""
        halving = tuple(kind or self.others[0] for _, kind in self.down[:-1])
        doubling = tuple(kind or self.others[1] for _, kind in self.up[1:])
        kinds = {*halving, *doubling}
        return (
            {"resample": kinds.pop()}
            if len(kinds) == 1
            else {"halving": halving, "doubling": doubling}
            if kinds
            else {}
        )


def _levels(c: _Config) -> _Levels:
    down, up = (
        [_block(f"{way}_block_types", kind, table, c.problems) for kind in c[f"{way}_block_types"]]
        for way, table in (("down", DOWN), ("up", UP))
    )
    others = (
        c.chosen("downsample_type", RESAMPLING | {None: "conv"}),
        c.chosen("upsample_type", RESAMPLING | {None: "conv"}),
    )
    if not len(c["block_out_channels"]) == len(down) == len(up):
        c.problems.append("down_block_types, up_block_types and block_out_channels of different lengths")
    return _Levels(down, up[::-1], others)


def _widths(c: _Config) -> dict[str, Any]:
    widths, dim = tuple(c["block_out_channels"]), c["block_out_channels"][0]
    time_dim = None if c["time_embedding_dim"] in (None, 4 * dim) else c["time_embedding_dim"]
    regular = all(width % dim == 0 for width in widths)
    shape = {"dim_mults": tuple(width // dim for width in widths)} if regular else {"widths": widths}
    return {"dim": dim, "time_dim": time_dim, **shape}


def _conditioning(c: _Config) -> dict[str, Any]:
    """How times come in, and what is in the middle."""
    c.chosen("time_embedding_type", {"positional": None})
    c.chosen("freq_shift", {0: None, 1: None})
    conditioning = c.chosen("resnet_time_scale_shift", CONDITIONING)
    middle = c.chosen("mid_block_type", {MIDDLE: "plain", None: "none"})
    if middle == "plain" and c["add_attention"]:
        middle = "attention"
    norm = c["attn_norm_num_groups"]
    if norm is None and conditioning == "scale_shift":
        norm = 0
    return {
        "time_conditioning": conditioning,
        "cos_first": c.chosen("flip_sin_to_cos", {True: True, False: False}),
        "freq_shift": c["freq_shift"],
        "middle": middle,
        "middle_norm_groups": None if middle != "attention" or norm == c["norm_num_groups"] else norm,
        "middle_scale": float(c["mid_block_scale_factor"]) if middle != "none" else 1.0,
    }


def _classes(c: _Config, num_classes: int | None) -> dict[str, Any]:
    sinusoidal = c["class_embed_type"] == "timestep"
    count = c.chosen(
        "class_embed_type", {None: c["num_class_embeds"], "timestep": num_classes or c["num_class_embeds"]}
    )
    if sinusoidal and count is None:
        c.problems.append("class_embed_type = 'timestep' without a number of classes (pass num_classes)")
    return {"num_classes": count, "class_embedding": "sinusoidal" if sinusoidal else "table"}


def _ends(c: _Config) -> dict[str, Any]:
    """What goes in and comes out, and what is between any two layers."""
    if c["out_channels"] not in (c["in_channels"], 2 * c["in_channels"]):
        c.problems.append(f"in_channels = {c['in_channels']!r} with out_channels = {c['out_channels']!r}")
    return {
        "channels": c["in_channels"],
        "learn_variance": c["out_channels"] != c["in_channels"],
        "center_input": c["center_input_sample"],
        "activation": c.chosen("act_fn", ACTIVATIONS),
        "pad_all_sides": c.chosen("downsample_padding", {0: False, 1: True}),
    }


def _block(option: str, kind: str, table: Mapping[str, tuple[bool, str | None]], problems: list[str]) -> Any:
    kind = kind.removeprefix("UNetRes")
    if kind not in table:
        problems.append(f"{option} with {kind!r}")
    return table.get(kind, (False, "conv"))


def to_config(options: models.UNetConfig) -> dict[str, Any]:
    """A `UNet2DModel`'s config.json of the options of `unet`.

    Raises:
        UserError: options without a counterpart there; all of them are named.
    """
    o: models.ForeignUNetConfig = models.ForeignUNetConfig(**vars(options))
    problems = _unknown_there(o)
    attends, types, kinds = _blocks(o, problems)
    head_dim = _head_dim(o, attends, problems)
    if problems:
        raise UserError("diffusers has no counterpart of " + ", ".join(problems) + ".")
    middle_norm = o.middle_norm_groups or None
    if o.middle_norm_groups is None and o.time_conditioning == "scale_shift":
        middle_norm = o.norm_groups
    back = {
        name: {value: key for key, value in reversed(table.items())}
        for name, table in (("act", ACTIVATIONS), ("resample", RESAMPLING), ("conditioning", CONDITIONING))
    }
    sinusoidal = o.num_classes is not None and o.class_embedding == "sinusoidal"
    return {
        "_class_name": CLASS,
        "sample_size": o.image_size,
        "in_channels": o.channels,
        "out_channels": o.channels * (2 if o.learn_variance else 1),
        "center_input_sample": o.center_input,
        "time_embedding_type": "positional",
        "time_embedding_dim": o.time_dim,
        "freq_shift": o.freq_shift,
        "flip_sin_to_cos": o.cos_first,
        "down_block_types": types["down"],
        "mid_block_type": None if o.middle == "none" else MIDDLE,
        "up_block_types": types["up"][::-1],
        "block_out_channels": list(o.level_widths),
        "layers_per_block": o.num_blocks,
        "mid_block_scale_factor": o.middle_scale,
        "downsample_padding": int(o.pad_all_sides),
        "downsample_type": back["resample"][kinds["down"]],
        "upsample_type": back["resample"][kinds["up"]],
        "dropout": o.dropout,
        "act_fn": back["act"][o.activation],
        "attention_head_dim": head_dim,
        "norm_num_groups": o.norm_groups,
        "attn_norm_num_groups": middle_norm,
        "norm_eps": o.norm_eps,
        "resnet_time_scale_shift": back["conditioning"][o.time_conditioning],
        "add_attention": o.middle == "attention",
        "class_embed_type": "timestep" if sinusoidal else None,
        "num_class_embeds": o.num_classes,
        "num_train_timesteps": None,
    }


def _unknown_there(o: models.ForeignUNetConfig) -> list[str]:
    """Options without a counterpart in a config.json."""
    problems = []
    if o.self_conditioning:
        problems.append("self_conditioning")
    if o.interval:
        problems.append("interval")
    if o.condition_channels:
        problems.append(f"condition_channels = {o.condition_channels}")
    if o.time_scale != 1:
        problems.append(f"time_scale = {o.time_scale:g}")
    if not o.dim == o.width_in == o.level_widths[0]:
        problems.append(f"dim = {o.dim} with a first level of width {o.level_widths[0]}")
    if o.middle_norm_groups == 0 and o.time_conditioning == "add":
        problems.append("middle_norm_groups = 0 with time_conditioning = add")
    return problems


def _head_dim(o: models.ForeignUNetConfig, attends: dict[str, list[bool]], problems: list[str]) -> int | None:
    """What a config.json calls attention_head_dim: the same at every level."""
    attention_widths = {width for width, *ways in zip(o.level_widths, *attends.values(), strict=True) if any(ways)}
    attention_widths |= {o.level_widths[-1]} if o.middle == "attention" else set()
    if o.head_dim is None and o.num_heads > 1 and attention_widths:
        if len(attention_widths) > 1:
            problems.append(
                f"num_heads = {o.num_heads} at the widths {sorted(attention_widths)} (diffusers fixes head_dim)"
            )
        return min(attention_widths) // o.num_heads
    return o.head_dim


def _blocks(
    options: models.ForeignUNetConfig, problems: list[str]
) -> tuple[dict[str, list[bool]], dict[str, list[str]], dict[str, str]]:
    """By way, `down` or `up`: which levels attend, their blocks' types, and how those that attend resample."""
    last = len(options.level_widths) - 1
    sizes = [options.image_size // 2**level for level in range(last + 1)]
    attends, types, kinds = {}, {}, {}
    for way, table, wanted in zip(("down", "up"), (DOWN, UP), options.attention_sizes, strict=True):
        attends[way] = [size in wanted for size in sizes]
        # what resamples belongs to the level that is left, on the way up too
        between = options.resampling("down" if way == "down" else "up")
        if "fixed" in between:
            problems.append(f"levels that resample without convolutions (fixed) on the way {way}")
        resampling = (*between, None) if way == "down" else (None, *between)
        found = {kind for kind, attending in zip(resampling, attends[way], strict=True) if attending and kind}
        if len(found) > 1:
            problems.append(f"levels with attention that resample differently on the way {way}")
        kinds[way] = min(found, default="conv")
        names = {value: name for name, value in table.items()}
        types[way] = [
            names[True, None] if attending else names.get((False, kind or "conv"), "")
            for kind, attending in zip(resampling, attends[way], strict=True)
        ]
    return attends, types, kinds
