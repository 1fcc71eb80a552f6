"""OpenAI's U-Net restated from its papers and its checkpoints' names: what a map of its names has to agree with.

Independent of the package and of the twin. The modules' names, their numbering through all levels, and the order of queries, keys
and values are those of improved-diffusion and guided-diffusion; nothing else of theirs is here.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn


class Norm(nn.GroupNorm):
    def __init__(self, width, groups):
        super().__init__(groups, width, eps=1e-5)


def resize(x, way):
    if way == "up":
        return x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    return (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4 if way else x


class Residual(nn.Module):
    def __init__(self, width_in, width_out, emb, groups, scale_shift, way=None):
        super().__init__()
        self.way, self.scale_shift = way, scale_shift
        after = [nn.SiLU(), nn.Dropout(0.0), nn.Conv2d(width_out, width_out, 3, padding=1)]
        self.in_layers = nn.Sequential(Norm(width_in, groups), nn.SiLU(), nn.Conv2d(width_in, width_out, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb, width_out * (1 + scale_shift)))
        self.out_layers = nn.Sequential(Norm(width_out, groups), *after)
        self.skip_connection = nn.Conv2d(width_in, width_out, 1) if width_in != width_out else nn.Identity()

    def forward(self, x, emb):
        h = self.in_layers[2](resize(self.in_layers[:2](x), self.way))
        told = self.emb_layers(emb)[..., None, None]
        if self.scale_shift:
            scale, shift = told.tensor_split(2, dim=1)
            h = self.out_layers[1:](self.out_layers[0](h) * (1 + scale) + shift)
        else:
            h = self.out_layers(h + told)
        return self.skip_connection(resize(x, self.way)) + h


class Attention(nn.Module):
    """new_order: the 3 C outputs of qkv are (three, heads, d) instead of (heads, three, d)."""

    def __init__(self, width, groups, heads, new_order):
        super().__init__()
        self.heads, self.new_order = heads, new_order
        self.norm = Norm(width, groups)
        self.qkv = nn.Conv1d(width, 3 * width, 1)
        self.proj_out = nn.Conv1d(width, width, 1)

    def forward(self, x, emb):
        flat = x.flatten(2)
        qkv = self.qkv(self.norm(flat))
        if self.new_order:
            q, k, v = qkv.unflatten(1, (3, self.heads, -1)).unbind(1)
        else:
            q, k, v = qkv.unflatten(1, (self.heads, 3, -1)).unbind(2)
        logits = torch.einsum("bhdi,bhdj->bhij", q, k) / math.sqrt(q.shape[2])
        seen = torch.einsum("bhij,bhdj->bhdi", logits.softmax(-1), v)
        return x + self.proj_out(seen.flatten(1, 2)).unflatten(2, x.shape[2:])


class Halve(nn.Module):
    def __init__(self, width, conv):
        super().__init__()
        self.op = nn.Conv2d(width, width, 3, stride=2, padding=1) if conv else nn.AvgPool2d(2)

    def forward(self, x, emb):
        return self.op(x)


class Double(nn.Module):
    def __init__(self, width, conv):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1) if conv else nn.Identity()

    def forward(self, x, emb):
        return self.conv(resize(x, "up"))


class First(nn.Conv2d):
    def forward(self, x, emb):
        return super().forward(x)


class Chain(nn.Sequential):
    def forward(self, x, emb):
        for layer in self:
            x = layer(x, emb)
        return x


class OpenAIUNet(nn.Module):
    def __init__(
        self,
        *,
        model_channels: int = 8,
        channel_mult: Sequence[float] = (1, 2),
        num_res_blocks: int = 1,
        attention_ds: Sequence[int] = (2,),
        in_channels: int = 3,
        out_channels: int = 3,
        num_classes: int | None = None,
        num_heads: int = 2,
        num_head_channels: int | None = None,
        use_scale_shift_norm: bool = False,
        resblock_updown: bool = False,
        conv_resample: bool = True,
        use_new_attention_order: bool = False,
        groups: int = 4,
    ):
        super().__init__()
        self.model_channels = model_channels
        emb = 4 * model_channels
        self.time_embed = nn.Sequential(nn.Linear(model_channels, emb), nn.SiLU(), nn.Linear(emb, emb))
        if num_classes is not None:
            self.label_emb = nn.Embedding(num_classes, emb)

        def residual(width_in, width_out, way=None):
            return Residual(width_in, width_out, emb, groups, use_scale_shift_norm, way)

        def attention(width):
            heads = width // num_head_channels if num_head_channels else num_heads
            return Attention(width, groups, heads, use_new_attention_order)

        widths = [int(mult * model_channels) for mult in channel_mult]
        width = widths[0]
        self.input_blocks = nn.ModuleList([Chain(First(in_channels, width, 3, padding=1))])
        skips = [width]
        for level, out in enumerate(widths):
            for _ in range(num_res_blocks):
                layers = [residual(width, out)] + [attention(out)] * (2**level in attention_ds)
                self.input_blocks.append(Chain(*layers))
                width = out
                skips.append(width)
            if level < len(widths) - 1:
                self.input_blocks.append(
                    Chain(residual(width, width, "down") if resblock_updown else Halve(width, conv_resample))
                )
                skips.append(width)
        self.middle_block = Chain(residual(width, width), attention(width), residual(width, width))
        self.output_blocks = nn.ModuleList()
        for level in reversed(range(len(widths))):
            for index in range(num_res_blocks + 1):
                layers = [residual(width + skips.pop(), widths[level])]
                width = widths[level]
                layers += [attention(width)] * (2**level in attention_ds)
                if level and index == num_res_blocks:
                    layers.append(residual(width, width, "up") if resblock_updown else Double(width, conv_resample))
                self.output_blocks.append(Chain(*layers))
        self.out = nn.Sequential(Norm(width, groups), nn.SiLU(), nn.Conv2d(width, out_channels, 3, padding=1))

    def forward(self, x, t, labels=None, low_res=None):
        """low_res: what a super-resolution model is shown behind x, brought to its size between the centres of pixels."""
        if low_res is not None:
            x = torch.cat([x, F.interpolate(low_res, x.shape[-2:], mode="bilinear", align_corners=False)], dim=1)
        half = self.model_channels // 2
        angles = t[:, None].to(x.dtype) * torch.exp(-math.log(10_000) * torch.arange(half, dtype=x.dtype) / half)
        emb = self.time_embed(torch.cat([angles.cos(), angles.sin()], dim=1))
        if labels is not None:
            emb = emb + F.embedding(labels, self.label_emb.weight)
        skips = []
        for block in self.input_blocks:
            x = block(x, emb)
            skips.append(x)
        x = self.middle_block(x, emb)
        for block in self.output_blocks:
            x = block(torch.cat([x, skips.pop()], dim=1), emb)
        return self.out(x)
