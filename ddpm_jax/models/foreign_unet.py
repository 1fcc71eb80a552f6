"""`foreign_unet`: `unet` with what only checkpoints of other libraries need: diffusers, improved and guided diffusion."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Num

from ddpm_jax.errors import UserError
from ddpm_jax.models.convolution import Image, Resized
from ddpm_jax.models.layers import Middle, TimeMLP, Vector, double_nearest, gelu, halve_mean
from ddpm_jax.models.normalization import GroupNorm
from ddpm_jax.models.unet import Downsample, ResBlock, UNet, UNetConfig, Upsample, xavier

Resampling = Literal["conv", "residual", "fixed"]
RESAMPLING: tuple[str, ...] = get_args(Resampling)
"""How a level may halve, or be reached on the way up."""
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": nnx.silu,
    "gelu": gelu,
    "mish": jax.nn.mish,
    "relu": nnx.relu,
}
"""What a residual block may apply, by name."""


@dataclass(frozen=True)
class ForeignUNetConfig(UNetConfig, network="foreign_unet"):
    """`unet` and the further options of other libraries' networks; without any of them, the same network.

    Raises:
        UserError: as `UNetConfig`, or an option of these that does not fit.
    """

    resample: Resampling = "conv"  # type: ignore[assignment]
    """As in `unet`, or fixed: 2x2 means and nearest neighbours alone (ADM with conv_resample = False)."""
    widths: tuple[int, ...] | None = None
    """Width of each level, in channels, in place of dim_mults; the first convolution then has the first of them."""
    time_dim: int | None = None
    """Width of the embedding of time and class; None: four times dim."""
    up_attention_resolutions: tuple[int, ...] | None = None
    """attention_resolutions of the way up; None: the same."""
    halving: tuple[Resampling, ...] | None = None
    """How each level but the last halves, the largest first; None: all as resample says."""
    doubling: tuple[Resampling, ...] | None = None
    """How each level but the last is reached on the way up, the largest first; None: all as resample says."""
    middle: Literal["attention", "plain", "none"] = "attention"
    """Between the ways down and up: two blocks with attention between them, two blocks, or nothing."""
    middle_norm_groups: int | None = None
    """Groups of the norm before the middle's attention, 0 for no norm; None: norm_groups."""
    middle_scale: float = 1.0
    """What the middle's blocks and attention divide their sums by."""
    norm_eps: float = 1e-6
    """Epsilon of every GroupNorm."""
    activation: Literal["silu", "gelu", "mish", "relu"] = "silu"
    """Activation within residual blocks."""
    cos_first: bool = False
    """The sinusoids of t begin with the cosines (improved DDPM) instead of the sines."""
    freq_shift: int = 1
    """The sinusoids' last frequency is 1/10000 (1), or one short of it (0, improved DDPM)."""
    time_scale: float = 1.0
    """What t is multiplied by before it is embedded; 1000 / T in improved DDPM."""
    pad_all_sides: bool = False
    """A halving convolution is padded all around (improved DDPM) instead of at the bottom and right."""
    center_input: bool = False
    """Take x_t to 2 x_t - 1 first."""
    class_embedding: Literal["table", "sinusoidal"] = "table"
    """A class is looked up in a table, or embedded as the time is, by layers of its own."""

    def module(self, rngs: nnx.Rngs) -> "ForeignUNet":
        """The network of these options."""
        return ForeignUNet(self, rngs=rngs)

    @property
    def level_widths(self) -> tuple[int, ...]:
        """Width of each level, in channels."""
        return super().level_widths if self.widths is None else self.widths

    @property
    def width_in(self) -> int:
        """Width of the first convolution, in channels."""
        return self.level_widths[0] if self.widths is not None else self.dim

    @property
    def embedding_width(self) -> int:
        """Width of the embedding of time and class."""
        return self.time_dim or super().embedding_width

    @property
    def attention_widths(self) -> tuple[int, ...]:
        """Width of each level with attention, and of the middle where it attends."""
        return super().attention_widths if self.middle == "attention" else super().attention_widths[:-1]

    @property
    def attention_sizes(self) -> tuple[frozenset[int], frozenset[int]]:
        """The image sizes of levels with attention, on the way down and on the way up."""
        up = self.attention_resolutions if self.up_attention_resolutions is None else self.up_attention_resolutions
        return self._sizes_among(self.attention_resolutions), self._sizes_among(up)

    def resampling(self, way: Literal["down", "up"]) -> tuple[str, ...]:
        """How each level but the last halves, or is reached on the way up: one of RESAMPLING, the largest first."""
        given = self.halving if way == "down" else self.doubling
        return (self.resample,) * (len(self.level_widths) - 1) if given is None else given

    def __post_init__(self) -> None:
        if self.widths is not None:
            self._for_each_level("widths")
        self._at_least_1_or_none("time_dim")
        super().__post_init__()
        for name in ("middle_scale", "norm_eps", "time_scale"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name} must be positive; got {getattr(self, name)}.")
        if self.freq_shift not in (0, 1):
            raise UserError(f"freq_shift must be 0 or 1; got {self.freq_shift}.")
        for name in ("halving", "doubling"):
            kinds, halvings = getattr(self, name), len(self.level_widths) - 1
            if kinds is not None and (len(kinds) != halvings or {*kinds} - {*RESAMPLING}):
                raise UserError(
                    f"{name} must be one of {', '.join(RESAMPLING)} for each of {halvings} levels; got {kinds}."
                )
        groups, width = self.middle_norm_groups, self.level_widths[-1]
        if groups is not None and (groups < 0 or (groups and width % groups)):
            raise UserError(f"middle_norm_groups must divide the last width, {width}, or be 0; got {groups}.")


def unet_of(**options: Any) -> UNetConfig:
    """The options of a `foreign_unet`, as those of `unet` where that has all of them."""
    return simplest(ForeignUNetConfig(**options))


def simplest(config: UNetConfig) -> UNetConfig:
    """The options of `unet` that make the same network, where there are any; otherwise the config itself."""
    plain = {option.name: getattr(config, option.name) for option in fields(UNetConfig)}
    if plain["resample"] == "fixed" or config != ForeignUNetConfig(**plain):
        return config
    return UNetConfig(**plain)


class ForeignUNet(UNet):
    """(x_t, t, labels) -> eps; see `ForeignUNetConfig`."""

    config: ForeignUNetConfig

    def _time_mlp(self, rngs: nnx.Rngs) -> TimeMLP:
        c = self.config
        options: dict[str, Any] = {"freq_shift": c.freq_shift, "cos_first": c.cos_first}
        return TimeMLP(c.dim, c.embedding_width, activation=nnx.silu, init=xavier, **options, rngs=rngs)

    def _class_embed(self, rngs: nnx.Rngs) -> nnx.Module:
        return self._time_mlp(rngs) if self.config.class_embedding == "sinusoidal" else super()._class_embed(rngs)

    def _norm(self, dim: int, *, groups: int | None = None, rngs: nnx.Rngs) -> GroupNorm:
        return GroupNorm(dim, groups or self.config.norm_groups, epsilon=self.config.norm_eps, rngs=rngs)

    def _block(self, in_dim: int, out_dim: int, rngs: nnx.Rngs, **options: Any) -> ResBlock:
        return super()._block(in_dim, out_dim, rngs, activation=ACTIVATIONS[self.config.activation], **options)

    def _middle(self, dim: int, rngs: nnx.Rngs) -> Middle | None:
        c = self.config
        if c.middle == "none":
            return None
        block1 = self._block(dim, dim, rngs, scale=c.middle_scale)
        attention = None
        if c.middle == "attention":
            attention = self._attention(dim, rngs)
            attention.scale = c.middle_scale
            if c.middle_norm_groups is not None:
                attention.norm = (
                    self._norm(dim, groups=c.middle_norm_groups, rngs=rngs) if c.middle_norm_groups else None
                )
        return Middle(block1, attention, self._block(dim, dim, rngs, scale=c.middle_scale))

    def _downsample(self, level: int, rngs: nnx.Rngs) -> nnx.Module:
        width, kind = self.config.level_widths[level], self.config.resampling("down")[level]
        if kind == "residual":
            return self._block(width, width, rngs, resample=halve_mean)
        if kind == "fixed":
            return Resize(halve_mean)
        return Downsample(width, padding=(1, 1) if self.config.pad_all_sides else (0, 1), rngs=rngs)

    def _upsample(self, level: int, rngs: nnx.Rngs) -> nnx.Module:
        width, kind = self.config.level_widths[level], self.config.resampling("up")[level - 1]
        if kind == "residual":
            return self._block(width, width, rngs, resample=double_nearest)
        return Resize(double_nearest) if kind == "fixed" else Upsample(width, rngs=rngs)

    def __call__(
        self,
        x_t: Image,
        t: Num[Array, "b"],
        labels: Int[Array, "b"] | None = None,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b h w out"]:
        """As `UNet`, of x_t and t brought to what the network was trained with."""
        if self.config.time_scale != 1:
            t = t * jnp.asarray(self.config.time_scale, jnp.promote_types(x_t.dtype, jnp.float32))
        return super().__call__(2 * x_t - 1 if self.config.center_input else x_t, t, labels, rngs=rngs)

    def _embedded(self, labels: Int[Array, "b"], dtype: jnp.dtype) -> Vector:
        if isinstance(self.class_embed, TimeMLP):
            return self.class_embed(labels, dtype)
        return super()._embedded(labels, dtype)


class Resize(nnx.Module):
    """Halve or double the image without parameters, by `halve_mean` or `double_nearest`; time and rngs are not used."""

    def __init__(self, resize: Callable[[Image], Resized]):
        self.resize = resize

    def __call__(self, x: Image, time: Vector, rngs: nnx.Rngs | None = None) -> Resized:
        """(B, H, W, C) -> (B, H', W', C)."""
        return self.resize(x)
