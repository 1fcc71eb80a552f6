"""A network of one's own, trained and sampled by the library: residual blocks told the time and the class.

What the library asks of a network: it is an nnx.Module, called as model(x_t, t, labels) with images (B, H, W, C), times (B,), and
labels (B,) or None, and it returns the shape of x_t (twice its channels where it learns the variance).
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from ddpm_jax import data, denoisers, figures, models, processes, samplers, schedules, training

STEPS = 600
OUT = Path("runs/examples")


class Block(nnx.Module):
    """Two convolutions, added to their input; the condition scales and shifts what lies between them."""

    def __init__(self, dim: int, *, rngs: nnx.Rngs):
        self.norm1 = nnx.GroupNorm(dim, num_groups=8, rngs=rngs)
        self.norm2 = nnx.GroupNorm(dim, num_groups=8, rngs=rngs)
        self.conv1 = nnx.Conv(dim, dim, (3, 3), rngs=rngs)
        self.conv2 = nnx.Conv(dim, dim, (3, 3), kernel_init=nnx.initializers.zeros, rngs=rngs)
        self.modulation = nnx.Linear(dim, 2 * dim, rngs=rngs)

    def __call__(self, x: jax.Array, condition: jax.Array) -> jax.Array:
        """Maps x (B, H, W, dim) and condition (B, dim) -> (B, H, W, dim)."""
        scale, shift = jnp.split(self.modulation(condition)[:, None, None], 2, axis=-1)
        y = self.conv1(nnx.silu(self.norm1(x)))
        return x + self.conv2(nnx.silu(self.norm2(y) * (1 + scale) + shift))


class ResNet(nnx.Module):
    """(x_t, t, labels) -> output: residual blocks, all at the size of the image."""

    def __init__(self, channels: int, num_classes: int, dim: int, depth: int, *, rngs: nnx.Rngs):
        self.dim = dim
        self.first = nnx.Conv(channels, dim, (3, 3), rngs=rngs)
        self.time = nnx.Linear(dim, dim, rngs=rngs)
        self.classes = nnx.Embed(num_classes, dim, embedding_init=nnx.initializers.normal(1.0), rngs=rngs)
        self.blocks = nnx.List([Block(dim, rngs=rngs) for _ in range(depth)])
        self.norm = nnx.GroupNorm(dim, num_groups=8, rngs=rngs)
        self.last = nnx.Conv(dim, channels, (3, 3), kernel_init=nnx.initializers.zeros, rngs=rngs)

    def __call__(self, x_t: jax.Array, t: jax.Array, labels: jax.Array | None = None) -> jax.Array:
        """Images x_t (B, H, W, C), times t (B,), labels (B,) -> (B, H, W, C)."""
        angles = t[:, None] * 10_000 ** -jnp.linspace(0, 1, self.dim // 2)
        condition = self.time(jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1))
        if labels is not None:
            condition = condition + self.classes(labels)
        x = self.first(x_t)
        for block in self.blocks:
            x = block(x, nnx.silu(condition))
        return self.last(nnx.silu(self.norm(x)))


model = ResNet(channels=1, num_classes=10, dim=48, depth=4, rngs=nnx.Rngs(0))
process = processes.GaussianDiffusion(schedules.cosine(1000), prediction="v")
optimizer = optax.adamw(optax.warmup_cosine_decay_schedule(0.0, 2e-3, warmup_steps=20, decay_steps=STEPS))
train_step, state = training.make_step(process, optimizer, ema=0.99), training.create_state(model, optimizer)

batches = data.batches(data.open_source("digits"), shape=(8, 8, 1), batch_size=64)
for step, batch in zip(range(1, STEPS + 1), batches, strict=False):
    state, metrics = train_step(state, batch, jax.random.key(0))
    if step % 100 == 0 or step == STEPS:
        print(f"step {step}: loss {metrics['loss']:.3f}", flush=True)

labels = jnp.arange(40) % 10
denoise = denoisers.clipped(state.denoiser(process, labels))
images = samplers.sample(denoise, samplers.DDIM(), jax.random.key(1), (40, 8, 8, 1), num_steps=50)
path = figures.save_grid(
    OUT / "custom_network.png", data.to_images(images), [str(label) for label in labels], columns=10
)
print(f"{models.num_params(model):,} parameters; samples in {path}")
