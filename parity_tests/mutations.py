"""Faults to be found: each entry breaks one thing in one framework, and says where `ddpm verify` must notice first."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import torch.nn.functional as F

import ddpm_torch_ref as twins
from ddpm_jax import schedules
from ddpm_jax.models import attention, dit, layers, normalization, tiny_unet
from ddpm_jax.models.mlp import MLP
from ddpm_jax.presets import SampleConfig
from ddpm_jax.processes import GaussianDiffusion
from ddpm_jax.samplers import Sampler, ddim, strided
from ddpm_jax.training import averages
from ddpm_jax.verify.stages import Verification
from ddpm_jax.weights import bridge
from ddpm_torch_ref.models import dit as twin_dit
from ddpm_torch_ref.models import layers as twin_layers
from ddpm_torch_ref.models import tiny_unet as twin_tiny_unet
from ddpm_torch_ref.models import unet as twin_unet
from ddpm_torch_ref.samplers import ancestral as twin_ancestral
from ddpm_torch_ref.training import averages as twin_averages
from ddpm_torch_ref.training import update as twin_update

UNET = {"image_size": 8, "dim": 8, "dim_mults": (1, 2), "num_blocks": 1, "norm_groups": 4, "attention_resolutions": ()}
OPTIONS: dict[str, dict[str, Any]] = {
    "unet": UNET,
    "unet, classes": UNET | {"num_classes": 3},
    "unet, scale_shift": UNET | {"time_conditioning": "scale_shift"},
    "tiny_unet": {"image_size": 8},
    "convnext_unet": {"image_size": 16},
    "conv_net": {"dim": 8},
    "dit": {"image_size": 8, "channels": 1, "dim": 16, "depth": 2, "num_heads": 2},
    "mlp": {},
}
"""Networks at sizes that compile quickly; what follows a comma tells variants of one network apart."""

NETWORK = ("schedule", "noising", "layers", "output")
STATISTICS = (*NETWORK, "statistics")
TRAINING = ("schedule", "noising", "loss", "optimiser", "average")
SAMPLING = ("schedule", "noising", "sampler step", "trajectory")


@dataclass(frozen=True)
class Mutation:
    """One fault."""

    name: str
    network: str
    """One of OPTIONS."""
    stage: str
    """That of the first divergence."""
    where: str | None
    """Its name, a module path for a layer; None: any of that stage."""
    stages: tuple[str, ...]
    """What is run: the stage, and those before it that could notice as well."""
    patch: Callable[[pytest.MonkeyPatch], None] = field(default=lambda patch: None)
    """Break a class or a function of either framework, before anything is built."""
    edit: Callable[[Verification], None] = field(default=lambda verification: None)
    """Break one module of what was built."""


def verification(network: str) -> Verification:
    """Both sides of a network of OPTIONS."""
    return Verification(network.partition(",")[0], options=OPTIONS[network])


def assign(path: str, value: Any) -> Callable[[Verification], None]:
    """Set an attribute of the twin: assign("norm.eps", 1e-3); "__class__" puts a subclass in a module's place."""
    module, _, name = path.rpartition(".")
    return lambda verification: setattr(verification.twin.get_submodule(module), name, value)


def setting(owner: Any, name: str, value: Any) -> Callable[[pytest.MonkeyPatch], None]:
    """Replace an attribute of a module or class."""
    return lambda patch: patch.setattr(owner, name, value)


def sampling(sampler: str, steps: int | None = None, **options: Any) -> Callable[[Verification], None]:
    """Not a fault: have the network sampled in another way."""
    config = SampleConfig(Sampler.made(sampler, options), steps, clip=None)
    return lambda verification: setattr(verification, "sampling", config)


# Broken modules and functions ------------------------------------------------------------------------------------


class ReluUnit(twin_tiny_unet.Unit):
    def forward(self, x):
        return F.relu(self.conv(self.norm(x)))


class NoShortcut(twin_layers.ResBlock):
    def forward(self, x, emb):
        return super().forward(x, emb) - x


class ScaleWithoutOne(twin_layers.ResBlock):
    def forward(self, x, emb):
        h = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.time_proj(F.silu(emb))[:, :, None, None].chunk(2, dim=1)
        h = self.conv2(F.silu(self.norm2(h) * scale + shift))
        return h + (x if self.shortcut is None else self.shortcut(x))


class PaddedAtTheTop(twin_layers.Downsample):
    def forward(self, x, emb):
        return self.conv(F.pad(x, (1, 0, 1, 0)))


class SkipFirst(twin_unet.UpLevel):
    def forward(self, x, skips, emb):
        for block in self.blocks:
            x = block(torch.cat([skips.pop(), x], dim=1), emb)
        return x if self.upsample is None else self.upsample(x, emb)


class Silent(torch.nn.Embedding):
    def forward(self, labels):
        return 0 * super().forward(labels)


class Ungated(twin_dit.DiTBlock):
    def forward(self, x, emb, skip=None):
        shift1, scale1, _, shift2, scale2, gate2 = self.adaLN_modulation(emb).unsqueeze(1).chunk(6, dim=2)
        x = x + self.attn(self.norm1(x) * (1 + scale1) + shift1)
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)


def rows_first(size, dim):
    return np.roll(PLACES(size, dim), dim // 2, axis=1)


def turned_about(x, patch_size):
    return UNPATCHIFY(x, patch_size).transpose(2, 3)


def biased_batch_norm(self, x):
    if self.use_running_average:
        mean, var = self.mean[...], self.var[...]
    else:
        mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
        for running, seen in ((self.mean, mean), (self.var, var)):
            running[...] = self.momentum * running[...] + (1 - self.momentum) * seen
    return (x - mean) * jax.lax.rsqrt(var + self.epsilon) * self.scale[...] + self.bias[...]


def one_later(call):
    return lambda self, x_t, t, labels=None, *, rngs=None: call(self, x_t, t + 1, labels, rngs=rngs)


def swapped_embedding(t, dim, dtype, **options):
    return jnp.roll(EMBEDDING(t, dim, dtype, **options), dim // 2, axis=-1)


def lower_frequencies(t, dim, dtype, **_):
    frequencies = jnp.exp(-np.log(10_000) / (dim // 2) * jnp.arange(dim // 2))
    angles = t[:, None] * frequencies
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1).astype(dtype)


def queries_for_keys(qkv, num, axes):
    q, k, v = HEADS(qkv, num, axes)
    return k, q, v


def noise_of_the_next(self, x_0, noise, t):
    return ADD_NOISE(self, x_0, noise, (t + 1).clamp(max=int(self.schedule.timesteps[-1])))


def unclipped_strided_step(x_t, hat, t, s, noise, eta=0.1):
    beta = (1 - (t.alpha / s.alpha) ** 2) * (s.sigma / t.sigma) ** 2
    return (x_t - beta / t.sigma * hat.eps) / jnp.sqrt(1 - beta) + eta * jnp.sqrt(jnp.maximum(beta, 0)) * noise


def without_wrapping(process, num_steps=None):
    times = STRIDED_TIMES(process, num_steps)
    return np.append(times[:-1], process.schedule.first - 1)


def never_clipped(gradients, norm, max_norm):
    CLIP(gradients, norm, None)


def huber(verification: Verification) -> None:
    """Not a fault: train the network with that loss."""
    verification.process = GaussianDiffusion(verification.process.schedule, loss="huber")
    verification.twin_process = twins.processes.GaussianDiffusion(verification.twin_process.schedule, loss="huber")


def flipped(x, kernel, strides, padding):
    return TRANSPOSED(x, kernel[::-1, ::-1], strides, padding)


TRANSPOSED = layers.transposed
PLACES, UNPATCHIFY = dit.position_table, twin_dit.unpatchify
EMBEDDING, HEADS, TABLE = layers.timestep_embedding, layers.heads, tiny_unet.timestep_table
ADD_NOISE, CLIP, STRIDED_TIMES = (
    twins.processes.GaussianDiffusion.add_noise,
    twin_update._clip_gradients,
    strided.strided_times,
)
ANCESTRAL, DDIM = twin_ancestral.ancestral_step, ddim.ddim_step
RATE, CURVE, COSINE = twins.training.learning_rate, schedules.Linear.curve, twins.schedules.cosine_unclipped
ADAM = optax.scale_by_adam

# fmt: off
MUTATIONS = [
    # the schedule and the noise
    Mutation("schedule: beta_end 0.0201", "mlp", "schedule", "betas", TRAINING[:2],
             setting(schedules.Linear, "curve", lambda own: CURVE(SimpleNamespace(**vars(own) | {"beta_end": 0.0201})))),
    Mutation("schedule: cosine with s = 0.01", "convnext_unet", "schedule", "betas", ("schedule",),
             setting(twins.schedules, "cosine_unclipped", lambda num_steps, s: COSINE(num_steps, 0.01))),
    Mutation("schedule: beta for the posterior variance", "mlp", "schedule", "posterior_variance", TRAINING[:2],
             setting(schedules.Schedule, "posterior_variance", property(lambda schedule: schedule.betas))),
    Mutation("add_noise: t + 1", "mlp", "noising", "x_t", TRAINING[:2],
             setting(twins.processes.GaussianDiffusion, "add_noise", noise_of_the_next)),
    # norms and convolutions
    Mutation("GroupNorm: epsilon 1e-5", "unet", "layers", "down.0.blocks.0.norm1", NETWORK,
             edit=assign("down.0.blocks.0.norm1.eps", 1e-5)),
    Mutation("BatchNorm: epsilon 1e-3", "conv_net", "layers", "norm", STATISTICS, edit=assign("norm.eps", 1e-3)),
    Mutation("BatchNorm: biased running variance", "conv_net", "statistics*", "norm.running_var", STATISTICS,
             setting(normalization.BatchNorm, "__call__", biased_batch_norm)),
    Mutation("BatchNorm: momentum 0.01", "conv_net", "statistics*", "norm.running_mean", STATISTICS,
             edit=assign("norm.momentum", 0.01)),
    Mutation("LayerNorm of a map: epsilon 1e-6", "tiny_unet", "layers", "down.1.units.0.norm", NETWORK,
             edit=assign("down.1.units.0.norm.eps", 1e-6)),
    Mutation("bridge: convolution kernels transposed", "conv_net", "layers", "conv_in", NETWORK,
             lambda patch: patch.setitem(bridge.RULES, layers.Conv, {"kernel": ("weight", (3, 2, 1, 0)), "bias": ("bias", (0,))})),
    Mutation("transposed convolution: kernel flipped", "tiny_unet", "layers", "upsamples.0", NETWORK,
             setting(layers, "transposed", flipped)),
    # blocks
    Mutation("Unit: ReLU for SiLU", "tiny_unet", "layers", "down.1.units.0", NETWORK,
             edit=assign("down.1.units.0.__class__", ReluUnit)),
    Mutation("ConvNeXt: tanh GELU", "convnext_unet", "layers", "down.1.block.norm2", NETWORK,
             edit=assign("down.1.block.gelu", functools.partial(F.gelu, approximate="tanh"))),
    Mutation("ResBlock: no shortcut", "unet", "layers", "middle.block1", NETWORK,
             edit=assign("middle.block1.__class__", NoShortcut)),
    Mutation("ResBlock: scale without + 1", "unet, scale_shift", "layers", "down.0.blocks.0.conv2", NETWORK,
             edit=assign("down.0.blocks.0.__class__", ScaleWithoutOne)),
    Mutation("Attention: scale 1 / width", "unet", "layers", "middle.attention.proj", NETWORK,
             setting(attention, "math", SimpleNamespace(sqrt=float))),
    Mutation("Attention: queries for keys", "unet", "layers", "middle.attention.proj", NETWORK,
             setting(layers, "heads", queries_for_keys)),
    Mutation("Downsample: padded at the top", "unet", "layers", "down.0.downsample.conv", NETWORK,
             edit=assign("down.0.downsample.__class__", PaddedAtTheTop)),
    Mutation("Upsample: bilinear", "unet", "layers", "up.0.upsample.conv", NETWORK,
             setting(twin_layers, "resample_map", lambda x, _: F.interpolate(x, scale_factor=2.0, mode="bilinear"))),
    Mutation("UNet: the skip before x", "unet", "layers", "up.0.blocks.0.norm1", NETWORK,
             edit=assign("up.0.__class__", SkipFirst)),
    # transformer
    Mutation("DiT: rows before columns", "dit", "layers", "blocks.0.norm1", NETWORK, setting(dit, "position_table", rows_first)),
    Mutation("DiT: attention not gated", "dit", "layers", "blocks.1.norm2", NETWORK, edit=assign("blocks.1.__class__", Ungated)),
    Mutation("DiT: scale without + 1", "dit", "layers", "blocks.0.attn.qkv", NETWORK,
             setting(dit, "modulate", lambda x, shift, scale: x * scale + shift)),
    Mutation("DiT: GELU by erf", "dit", "layers", "blocks.0.mlp.fc2", NETWORK,
             setting(dit.nnx, "gelu", lambda x, approximate: jax.nn.gelu(x, approximate=False))),
    Mutation("DiT: LayerNorm with epsilon 1e-5", "dit", "layers", "blocks.0.norm2", NETWORK,
             edit=assign("blocks.0.norm2.eps", 1e-5)),
    Mutation("DiT: the image turned about", "dit", "output", "output", NETWORK,
             setting(twin_dit, "unpatchify", turned_about)),
    # conditioning
    Mutation("MLP: t + 1", "mlp", "layers", "layers.0", NETWORK, setting(MLP, "__call__", one_later(MLP.__call__))),
    Mutation("time embedding: cosines first", "unet", "layers", "time_mlp.linear1", NETWORK,
             setting(layers, "timestep_embedding", swapped_embedding)),
    Mutation("time embedding: dim / 2 for dim / 2 - 1", "unet", "layers", "time_mlp.linear1", NETWORK,
             setting(layers, "timestep_embedding", lower_frequencies)),
    Mutation("timestep table: the textbook's", "tiny_unet", "layers", "down.0.time_proj.linear1", NETWORK,
             setting(tiny_unet, "timestep_table", lambda num_steps, dim, form: TABLE(num_steps, dim, "sinusoidal"))),
    Mutation("classes: dropped", "unet, classes", "layers", "down.0.blocks.0.time_proj", NETWORK,
             edit=assign("class_embed.__class__", Silent)),
    # training
    Mutation("loss: Huber with delta 2", "mlp", "loss", "loss", TRAINING,
             lambda patch: patch.setitem(twins.processes.LOSSES, "huber", functools.partial(F.smooth_l1_loss, beta=2.0)),
             huber),
    Mutation("gradients: not clipped", "mlp", "optimiser", None, TRAINING,
             setting(twin_update, "_clip_gradients", never_clipped)),
    Mutation("Adam: epsilon 1e-6", "mlp", "optimiser", None, TRAINING,
             setting(optax, "scale_by_adam", functools.partial(ADAM, eps=1e-6))),
    Mutation("learning rate: one step ahead", "mlp", "optimiser", None, TRAINING,
             setting(twins.training, "learning_rate", lambda *given: lambda step: RATE(*given)(step + 1))),
    Mutation("average: no warm-up", "mlp", "average", None, TRAINING,
             setting(twin_averages, "decays", lambda step, decay: [decay])),
    Mutation("average: decay forgotten", "mlp", "average", None, TRAINING,
             setting(averages, "decays", lambda step, decay: [(1 + step) / (10 + step)])),
    # sampling
    Mutation("ancestral: posterior variance", "mlp", "sampler step", "t = 999 -> 998", SAMPLING,
             setting(twin_ancestral, "ancestral_step", lambda *args: ANCESTRAL(*args[:5], variance="posterior"))),
    Mutation("DDIM: eta ignored", "mlp", "sampler step", "t = 999 -> 998", SAMPLING,
             setting(ddim, "ddim_step", lambda *args: DDIM(*args[:5])), sampling("ddim", eta=0.5)),
    Mutation("strided: beta not clipped", "mlp", "sampler step", "t = 0 -> 980", SAMPLING,
             setting(strided, "strided_step", unclipped_strided_step), sampling("strided", steps=50, eta=0.1)),
    Mutation("strided: no wrap-around", "mlp", "sampler step", "times", SAMPLING,
             setting(strided, "strided_times", without_wrapping), sampling("strided", steps=50, eta=0.1)),
]
# fmt: on
