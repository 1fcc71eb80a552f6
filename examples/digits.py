# %% [markdown]
"""
# Digits by class, with guidance

A network that is told the class of each digit, and one time in ten is not, can say both: what this digit looks like, and what any
digit looks like. Guidance goes further in the direction from the second to the first.
"""

# %%
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from ddpm_jax import data, denoisers, figures, models, processes, samplers, schedules, training
from ddpm_jax.samplers import DDIM

STEPS = 400
OUT = Path("runs/examples")
OUT.mkdir(parents=True, exist_ok=True)

# %% [markdown]
# ## Data
# 1,797 handwritten digits of 8 x 8 pixels, which come with scikit-learn.

# %%
source = data.open_source("digits")
shape = (8, 8, 1)
picture = figures.grid(source.images[:20], [source.class_names[label] for label in source.labels[:20]], columns=10)
picture

# %% [markdown]
# ## Training
# There are ten classes, and an eleventh that stands for none: it takes the place of a label one time in ten.

# %%
NONE = 10
process = processes.GaussianDiffusion(schedules.cosine(1000), prediction="v")
unet = {"dim": 32, "dim_mults": (1, 2), "num_blocks": 1, "attention_resolutions": (4,), "norm_groups": 8}
model = models.create("unet", rngs=nnx.Rngs(0), image_size=8, channels=1, num_classes=11, **unet)
rate = optax.warmup_cosine_decay_schedule(0.0, 2e-3, warmup_steps=20, decay_steps=STEPS)
optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))
step, state = (
    training.make_step(process, optimizer, ema=0.99, label_dropout=0.1),
    training.create_state(model, optimizer),
)

losses = []
batches = data.batches(source, shape=shape, batch_size=64)
for _, batch in zip(range(STEPS), batches, strict=False):
    state, metrics = step(state, batch, jax.random.key(0))
    losses.append(metrics["loss"])
print(f"{models.num_params(model):,} parameters; loss {losses[0]:.2f} at first, {sum(losses[-50:]) / 50:.2f} at last")

# %% [markdown]
# ## Samples by class, and by how much they are guided
# A scale of 0 forgets the class, 1 is the network as it was trained, and more is guidance. The noise that they start from is the
# same in every row.

# %%
denoise = state.denoiser(process, labels=jnp.arange(10), null_label=NONE)


def draw(scale):
    """The ten digits, and eleven states on the way to them: (10, 8, 8, 1) and (11, 10, 8, 8, 1)."""
    guided = denoisers.clipped(denoisers.guided(denoise, scale))
    return samplers.sample_with_frames(guided, DDIM(), jax.random.key(1), (10, *shape), num_steps=50, num_frames=11)


scales = (0.0, 1.0, 2.0, 4.0)
drawn = [draw(scale) for scale in scales]
rows = jnp.concatenate([images for images, _ in drawn])
titles = [f"scale {scale:g}" for scale in scales]
picture = figures.grid(data.to_images(rows), source.class_names * 4, columns=10, row_titles=titles)
picture.save(OUT / "digits.png")
picture

# %% [markdown]
# ## On the way
# Three of them with scale 2, after every fifth step.

# %%
frames = drawn[2][1][:, jnp.array([3, 5, 8])].swapaxes(0, 1).reshape(-1, *shape)
steps = [str(step) for step in samplers.frame_steps(50, 11)]
picture = figures.grid(data.to_images(frames), steps * 3, columns=11, row_titles=["3", "5", "8"])
picture.save(OUT / "digits_denoising.png")
picture
