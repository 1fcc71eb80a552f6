"""The U-Net of the DDPM paper and its successors."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddpm_torch_ref.checks import check_choice, check_counts, check_dim, check_dim_mults, check_divides, check_dropout
from ddpm_torch_ref.models.layers import (
    ACTIVATIONS,
    Attention,
    Downsample,
    ResBlock,
    Resize,
    TimeMLP,
    Upsample,
    conv,
    group_norm,
)


class DownLevel(nn.Module):
    """Blocks at one resolution, each with its attention if any, then a downsampling unless it is the last."""

    def __init__(self, blocks: list[nn.Module], attentions: list[nn.Module], downsample: nn.Module | None):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.attentions = nn.ModuleList(attentions)
        self.downsample = downsample

    def forward(self, x: Tensor, emb: Tensor) -> list[Tensor]:
        """All that later levels need, in order: the output of each block and of the downsampling."""
        skips = []
        for i, block in enumerate(self.blocks):
            x = block(x, emb)
            if self.attentions:
                x = self.attentions[i](x)
            skips.append(x)
        if self.downsample is not None:
            skips.append(self.downsample(x, emb))
        return skips


class Middle(nn.Module):
    """Block, attention if any, block at the lowest resolution."""

    def __init__(self, block1: nn.Module, attention: nn.Module | None, block2: nn.Module):
        super().__init__()
        self.block1 = block1
        self.attention = attention
        self.block2 = block2

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """x (B, C, H, W) -> the same shape."""
        x = self.block1(x, emb)
        if self.attention is not None:
            x = self.attention(x)
        return self.block2(x, emb)


class UpLevel(nn.Module):
    """Blocks on [x, skip], each with its attention if any, then an upsampling unless it is the last."""

    def __init__(self, blocks: list[nn.Module], attentions: list[nn.Module], upsample: nn.Module | None):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.attentions = nn.ModuleList(attentions)
        self.upsample = upsample

    def forward(self, x: Tensor, skips: list[Tensor], emb: Tensor) -> Tensor:
        """Takes one skip a block from the end of the list."""
        for i, block in enumerate(self.blocks):
            x = block(torch.cat([x, skips.pop()], dim=1), emb)
            if self.attentions:
                x = self.attentions[i](x)
        return x if self.upsample is None else self.upsample(x, emb)


class ForeignUNet(nn.Module):
    """`UNet` with what only checkpoints of other libraries need: diffusers, improved DDPM, guided diffusion (ADM).

    Args:
        image_size: height and width of the image, in pixels; divisible by 2^(levels - 1).
        channels: of the image.
        num_classes: number of labels; None: unconditional.
        dim: base width, even.
        dim_mults: width of each level as a multiple of dim, the highest resolution first.
        num_blocks: residual blocks a level going down; one more going up.
        attention_resolutions: sizes of map, in pixels, at which every block is followed by attention.
        num_heads: attention heads.
        head_dim: width of a head; when given, heads = width // head_dim.
        dropout: probability within residual blocks, in [0, 1).
        norm_groups: groups of every GroupNorm.
        time_conditioning: "add", or "scale_shift" of the second norm.
        resample: "conv" (Ho et al.), "residual" blocks that resample (ADM), or "fixed": 2x2 means and nearest pixels
            alone (ADM with conv_resample False).
        learn_variance: twice the channels at the output, the second half for the variance (improved DDPM).
        self_conditioning: twice the channels at the input, the second half for a guess at x_0 (Chen et al. 2023).
        interval: t is (B, 2), the time and how far it is to an earlier one (Geng et al. 2025, "Mean Flows").
        condition_channels: channels at the input behind those of x_t and before a guess, for what is known of x_0; 0: nothing is.
        widths: of the levels, in place of dim_mults; then conv_in has the first of them.
        time_dim: width of the embedding of time and class; None: 4 dim.
        up_attention_resolutions: attention_resolutions going up; None: the same.
        halving: "conv", "residual" or "fixed" for each level but the last, highest resolution first; None: all as resample says.
        doubling: the same for the way up to each of those levels.
        middle: "attention" between two blocks, "plain" for the two blocks alone, or "none".
        middle_norm_groups: of the middle's attention; 0: no norm there; None: norm_groups.
        middle_scale: what the middle's sums are divided by.
        norm_eps: epsilon of every GroupNorm.
        activation: within residual blocks: "silu", "gelu", "mish" or "relu".
        cos_first: the time's cosines come before its sines.
        freq_shift: 1: the lowest frequency is 1/10000; 0: one short of that.
        time_scale: factor of t before it is embedded.
        pad_all_sides: of convolutions that halve; otherwise at the bottom and right.
        center_input: x_t becomes 2 x_t - 1.
        class_embedding: a "table", or "sinusoidal" as for the time, with layers of its own.

    Raises:
        ValueError: an option out of range, or a width that the groups or the heads do not divide.

    Ho et al. 2020, appendix B; Nichol & Dhariwal 2021; Dhariwal & Nichol 2021, "Diffusion Models Beat GANs".
    """

    def __init__(
        self,
        *,
        image_size: int = 32,
        channels: int = 3,
        num_classes: int | None = None,
        dim: int = 128,
        dim_mults: Sequence[int] = (1, 2, 2, 2),
        num_blocks: int = 2,
        attention_resolutions: Sequence[int] = (16,),
        num_heads: int = 1,
        head_dim: int | None = None,
        dropout: float = 0.0,
        norm_groups: int = 32,
        time_conditioning: str = "add",
        resample: str = "conv",
        learn_variance: bool = False,
        self_conditioning: bool = False,
        interval: bool = False,
        condition_channels: int = 0,
        widths: Sequence[int] | None = None,
        time_dim: int | None = None,
        up_attention_resolutions: Sequence[int] | None = None,
        halving: Sequence[str] | None = None,
        doubling: Sequence[str] | None = None,
        middle: str = "attention",
        middle_norm_groups: int | None = None,
        middle_scale: float = 1.0,
        norm_eps: float = 1e-6,
        activation: str = "silu",
        cos_first: bool = False,
        freq_shift: int = 1,
        time_scale: float = 1.0,
        pad_all_sides: bool = False,
        center_input: bool = False,
        class_embedding: str = "table",
    ):
        super().__init__()
        check_counts(channels=channels, num_blocks=num_blocks, num_heads=num_heads, norm_groups=norm_groups)
        if condition_channels < 0:
            raise ValueError(f"condition_channels must not be negative; got {condition_channels}.")
        check_counts(head_dim=head_dim, num_classes=num_classes, time_dim=time_dim)
        width_in = dim if widths is None else widths[0]
        widths = [dim * mult for mult in dim_mults] if widths is None else list(widths)
        check_dim(dim)
        check_dim_mults(dim_mults)
        check_divides("image_size", image_size, 2 ** (len(widths) - 1), f"for {len(widths)} levels")
        check_choice("time_conditioning", time_conditioning, ("add", "scale_shift"))
        check_choice("middle", middle, ("attention", "plain", "none"))
        check_choice("activation", activation, tuple(ACTIVATIONS))
        check_choice("class_embedding", class_embedding, ("table", "sinusoidal"))
        last = len(widths) - 1
        halving, doubling = ([resample] * last if kinds is None else list(kinds) for kinds in (halving, doubling))
        for kind in (resample, *halving, *doubling):
            check_choice("resample", kind, ("conv", "residual", "fixed"))
        if len(halving) != last or len(doubling) != last:
            raise ValueError(f"halving and doubling must name {last} levels; got {len(halving)} and {len(doubling)}.")
        check_dropout(dropout)
        if freq_shift not in (0, 1):
            raise ValueError(f"freq_shift must be 0 or 1; got {freq_shift}.")
        if up_attention_resolutions is None:
            up_attention_resolutions = attention_resolutions
        sizes = [image_size // 2**level for level in range(len(widths))]
        attending = [
            w
            for w, size in zip(widths, sizes, strict=True)
            if size in (*attention_resolutions, *up_attention_resolutions)
        ]
        attending += [widths[-1]] * (middle == "attention")
        divisor = ("num_heads", num_heads) if head_dim is None else ("head_dim", head_dim)
        _check_widths([width_in, *widths], ("norm_groups", norm_groups))
        _check_widths(attending, divisor)
        time_dim = 4 * dim if time_dim is None else time_dim

        def block(width_in: int, width_out: int, direction: str | None = None, scale: float = 1.0) -> ResBlock:
            return ResBlock(
                width_in,
                width_out,
                time_dim,
                norm_groups=norm_groups,
                dropout=dropout,
                scale_shift=time_conditioning == "scale_shift",
                resample=direction,
                eps=norm_eps,
                activation=activation,
                scale=scale,
            )

        def attention(width: int, groups: int = norm_groups, scale: float = 1.0) -> Attention:
            heads = num_heads if head_dim is None else width // head_dim
            return Attention(width, heads=heads, norm_groups=groups, eps=norm_eps, scale=scale)

        def attentions(resolutions: Sequence[int], level: int, count: int) -> list[nn.Module]:
            return [attention(widths[level]) for _ in range(count)] if sizes[level] in resolutions else []

        def resampling(kind: str, direction: str, width: int) -> nn.Module:
            if kind == "residual":
                return block(width, width, direction)
            if kind == "fixed":
                return Resize(direction)
            return Downsample(width, pad_all_sides=pad_all_sides) if direction == "down" else Upsample(width)

        def time_mlp() -> TimeMLP:
            return TimeMLP(dim, time_dim, freq_shift=freq_shift, cos_first=cos_first)

        self.image_size = image_size
        self.channels = channels
        self.num_classes = num_classes
        self.self_conditioning = self_conditioning
        self.condition_channels = condition_channels
        self.time_scale = time_scale
        self.center_input = center_input
        self.time_mlp = time_mlp()
        self.interval_mlp = time_mlp() if interval else None
        self.class_embed: nn.Module | None = None
        if num_classes is not None:
            self.class_embed = nn.Embedding(num_classes, time_dim) if class_embedding == "table" else time_mlp()

        self.conv_in = conv((1 + self_conditioning) * channels + condition_channels, width_in)
        width = width_in
        skip_widths = [width]
        self.down = nn.ModuleList()
        for level, width_out in enumerate(widths):
            blocks: list[nn.Module] = []
            for _ in range(num_blocks):
                blocks.append(block(width, width_out))
                width = width_out
                skip_widths.append(width)
            downsample: nn.Module | None = None
            if level < last:
                downsample = resampling(halving[level], "down", width)
                skip_widths.append(width)
            self.down.append(DownLevel(blocks, attentions(attention_resolutions, level, num_blocks), downsample))

        groups = norm_groups if middle_norm_groups is None else middle_norm_groups
        self.middle: nn.Module | None = None
        if middle != "none":
            self.middle = Middle(
                block(width, width, scale=middle_scale),
                attention(width, groups, middle_scale) if middle == "attention" else None,
                block(width, width, scale=middle_scale),
            )

        self.up = nn.ModuleList()
        for level, width_out in reversed(list(enumerate(widths))):
            blocks = []
            for _ in range(num_blocks + 1):
                blocks.append(block(width + skip_widths.pop(), width_out))
                width = width_out
            upsample: nn.Module | None = None
            if level > 0:
                upsample = resampling(doubling[level - 1], "up", width)
            self.up.append(UpLevel(blocks, attentions(up_attention_resolutions, level, num_blocks + 1), upsample))

        self.norm_out = group_norm(norm_groups, width, norm_eps)
        self.conv_out = conv(width, 2 * channels if learn_variance else channels, zero=True)

    def forward(self, x_t: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """Predict from noised images.

        Args:
            x_t: (B, channels, image_size, image_size); with condition_channels so many more behind, then with self_conditioning a
                guess of as many as the image's.
            t: (B,) times; with interval (B, 2), the times and how far each is from an earlier one.
            labels: (B,) int64 classes, 0..num_classes - 1; given if and only if num_classes is.

        Returns:
            (B, channels, image_size, image_size), or twice the channels with learn_variance.

        Raises:
            ValueError: labels missing or unexpected, or x_t of another number of channels.
        """
        if x_t.shape[1] != self.conv_in.in_channels:
            raise ValueError(
                f"x_t must have {self.conv_in.in_channels} channels, {self.condition_channels} of a condition among them; "
                f"got {x_t.shape[1]}."
            )
        # A time that is scaled is no whole number any more; half precision could not hold it.
        precise = torch.promote_types(x_t.dtype, torch.float32)
        t = t if self.time_scale == 1 else t.to(precise) * self.time_scale
        if (t.ndim == 2) != (self.interval_mlp is not None):
            raise ValueError(f"t must be (B, 2) with interval and (B,) without; got {tuple(t.shape)}.")
        emb = self.time_mlp(t if self.interval_mlp is None else t[:, 0])
        if self.interval_mlp is not None:
            emb = emb + self.interval_mlp(t[:, 1])
        if self.class_embed is not None:
            if labels is None:
                raise ValueError(f"labels are required: this network has num_classes = {self.num_classes}.")
            emb = emb + self.class_embed(labels)
        elif labels is not None:
            raise ValueError("labels must be None: this network was made without num_classes.")

        skips = [self.conv_in(2 * x_t - 1 if self.center_input else x_t)]
        for level in self.down:
            skips += level(skips[-1], emb)
        x = skips[-1] if self.middle is None else self.middle(skips[-1], emb)
        for level in self.up:
            x = level(x, skips, emb)
        return self.conv_out(F.silu(self.norm_out(x)))


class UNet(ForeignUNet):
    """Ho et al.'s network; by options that of improved DDPM and of guided diffusion (ADM).

    Args:
        image_size: height and width of the image, in pixels; divisible by 2^(levels - 1).
        channels: of the image.
        dim: base width, even.
        dim_mults: width of each level as a multiple of dim, the highest resolution first.
        num_blocks: residual blocks a level going down; one more going up.
        attention_resolutions: sizes of map, in pixels, at which every block is followed by attention.
        num_heads: attention heads.
        head_dim: width of a head; when given, heads = width // head_dim.
        dropout: probability within residual blocks, in [0, 1).
        num_classes: number of labels; None: unconditional.
        norm_groups: groups of every GroupNorm.
        time_conditioning: "add", or "scale_shift" of the second norm.
        resample: "conv" (Ho et al.), "residual" blocks that resample (ADM).
        learn_variance: twice the channels at the output, the second half for the variance (improved DDPM).
        self_conditioning: twice the channels at the input, the second half for a guess at x_0 (Chen et al. 2023).
        interval: t is (B, 2), the time and how far it is to an earlier one (Geng et al. 2025, "Mean Flows").
        condition_channels: channels at the input behind those of x_t and before a guess, for what is known of x_0; 0: nothing is.

    Raises:
        ValueError: an option out of range, or a width that the groups or the heads do not divide.

    Ho et al. 2020, appendix B; Nichol & Dhariwal 2021; Dhariwal & Nichol 2021, "Diffusion Models Beat GANs".
    """

    def __init__(
        self,
        *,
        image_size: int = 32,
        channels: int = 3,
        num_classes: int | None = None,
        dim: int = 128,
        dim_mults: Sequence[int] = (1, 2, 2, 2),
        num_blocks: int = 2,
        attention_resolutions: Sequence[int] = (16,),
        num_heads: int = 1,
        head_dim: int | None = None,
        dropout: float = 0.0,
        norm_groups: int = 32,
        time_conditioning: str = "add",
        resample: str = "conv",
        learn_variance: bool = False,
        self_conditioning: bool = False,
        interval: bool = False,
        condition_channels: int = 0,
    ):
        check_choice("resample", resample, ("conv", "residual"))
        super().__init__(
            image_size=image_size,
            channels=channels,
            dim=dim,
            dim_mults=dim_mults,
            num_blocks=num_blocks,
            attention_resolutions=attention_resolutions,
            num_heads=num_heads,
            head_dim=head_dim,
            dropout=dropout,
            num_classes=num_classes,
            norm_groups=norm_groups,
            time_conditioning=time_conditioning,
            resample=resample,
            learn_variance=learn_variance,
            self_conditioning=self_conditioning,
            interval=interval,
            condition_channels=condition_channels,
        )


def _check_widths(widths: list[int], *divisors: tuple[str, int]) -> None:
    for name, divisor in divisors:
        if any(width % divisor for width in widths):
            raise ValueError(f"{name} must divide every width, dim and its multiples {widths}; got {divisor}.")
