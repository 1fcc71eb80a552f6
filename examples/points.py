# %% [markdown]
"""
# Points in the plane

All of diffusion in two dimensions, where it can be seen: the points of a spiral become noise, a network learns to tell the two
apart, and noise becomes points of the spiral.
"""

# %%
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx

from ddpm_jax import data, evaluation, models, processes, samplers, schedules, training

STEPS = 20_000
PER_CALL = 100  # steps in one call of the compiled program: one alone takes no longer than its dispatch
OUT = Path("runs/examples")
OUT.mkdir(parents=True, exist_ok=True)

# %% [markdown]
# ## From data to noise
# `x_t = alpha_t x_0 + sigma_t eps`. The network sees standardised points, and is to output `v = alpha_t eps - sigma_t x_0`, from
# which both `x_0` and `eps` follow.

# %%
source = data.open_source("spiral")
process = processes.GaussianDiffusion(schedules.cosine(1000), prediction="v")
x_0 = jnp.asarray(source.scaling.apply(source.points[:2000]))
eps = jax.random.normal(jax.random.key(0), x_0.shape)

figure, panels = plt.subplots(1, 4, figsize=(12, 3.3), layout="constrained")
for axes, t in zip(panels, (0, 100, 300, 999), strict=True):
    x_t = process.add_noise(x_0, eps, jnp.full(len(x_0), t))
    axes.scatter(x_t[:, 0], x_t[:, 1], s=3, color="0.4", linewidths=0)
    axes.set(xlim=(-3, 3), ylim=(-3, 3), aspect="equal", title=f"t = {t}")
figure.savefig(OUT / "points_noised.png")

# %% [markdown]
# ## Training
# A pure, compiled function takes the state and a batch to the next state; here for a hundred batches in one call. The loss cannot
# fall to 0: most noisy points may come from several parts of the spiral.

# %%
model = models.create("mlp", rngs=nnx.Rngs(0))
optimizer = optax.adam(optax.cosine_decay_schedule(1e-3, STEPS))
step, state = training.make_step(process, optimizer, ema=0.999), training.create_state(model, optimizer)

losses = []
batches = data.batches(source, shape=(2,), batch_size=64, reading=data.Reading(stacked=PER_CALL))
for _, stack in zip(range(STEPS // PER_CALL), batches, strict=False):
    state, metrics = step.many(state, stack, jax.random.key(0))
    losses.append(float(metrics["loss"].mean()))
print(f"loss: {losses[0]:.3f} at the beginning, {losses[-1]:.3f} at the end")

# %% [markdown]
# ## From noise to data
# A hundred steps of DDIM by the averaged parameters, from random points. Every state is kept, to draw the paths.

# %%
denoise = state.denoiser(process)
points, path = samplers.sample_with_frames(
    denoise, samplers.DDIM(), jax.random.key(1), (2000, 2), num_steps=100, num_frames=101
)
points, path = source.scaling.undo(points), source.scaling.undo(path)

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 5.2), layout="constrained")
for axes in (left, right):
    axes.scatter(*source.points[:2000].T, s=4, color="0.8", linewidths=0, label="data")
    axes.set(xlim=(-1.6, 1.6), ylim=(-1.6, 1.6), aspect="equal")
left.scatter(*points.T, s=4, color="tab:red", linewidths=0, label="samples")
left.legend(loc="upper right", markerscale=3)
right.plot(*path[:, :40].transpose(2, 0, 1), color="0.4", linewidth=0.8)
right.scatter(*path[0, :40].T, s=14, color="tab:blue", label="noise", zorder=3)
right.scatter(*path[-1, :40].T, s=14, color="tab:red", label="samples", zorder=3)
right.legend(loc="upper right")
left.set_title("2,000 samples")
right.set_title("the paths of 40 of them")
figure.savefig(OUT / "points_samples.png")

# %% [markdown]
# ## How good?
# The sliced Wasserstein distance from other points of the spiral: of the samples, and of real points.

# %%
rng = np.random.default_rng(1)
real, other = source.fresh(rng, len(points)), source.fresh(rng, len(points))
print(f"samples: {evaluation.sliced_wasserstein(points, other):.4f}")
print(f"data:    {evaluation.sliced_wasserstein(real, other):.4f}")
