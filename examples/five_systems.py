"""The five systems, each in one line: its network, what it learns, and how its author samples.

All of them are one training step and one sampler apart: the same functions train and sample each.
"""

import itertools
import time

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from ddpm_jax import data, models, samplers, schedules, training
from ddpm_jax.processes import GaussianDiffusion
from ddpm_jax.samplers import Ancestral, Strided

STEPS = 2
NUM = 4  # samples of each

# fmt: off
SYSTEMS = {
    # network: shape of an example, process, sampler, steps (None: the whole chain)
    "convnext_unet":  ((28, 28, 1), GaussianDiffusion(schedules.cosine_unclipped(500)),     Strided(eta=0.1), 35),
    "tiny_unet":      ((32, 32, 1), GaussianDiffusion(schedules.linear(1000)),              Ancestral(), None),
    "annotated_unet": ((28, 28, 1), GaussianDiffusion(schedules.linear(200), loss="huber"), Ancestral("posterior"), None),
    "mlp":            ((2,),        GaussianDiffusion(schedules.linear(1000)),              Ancestral(), None),
    "strided_unet":   ((32, 32, 3), GaussianDiffusion(schedules.linear_inclusive(400)),     Ancestral(), None),
}
# fmt: on

optimizer = optax.adam(1e-3)
for name, (shape, process, sampler, num_steps) in SYSTEMS.items():
    begun = time.perf_counter()
    model = models.create(name, rngs=nnx.Rngs(0))
    classes = getattr(model.config, "num_classes", None)
    source = data.open_source("spiral" if shape == (2,) else "digits")  # images are resized to the network's shape
    step, state = training.make_step(process, optimizer), training.create_state(model, optimizer)
    batches = data.batches(source, shape=shape, batch_size=16)
    for batch in itertools.islice(batches, STEPS):
        if not classes:
            batch = {"x_0": batch["x_0"]}
        state, metrics = step(state, batch, jax.random.key(0))
    denoise = state.denoiser(process, labels=jnp.arange(NUM) if classes else None)
    samples = samplers.sample(denoise, sampler, jax.random.key(1), (NUM, *shape), num_steps)
    print(
        f"{name:15} {models.num_params(model):>9,} parameters, loss {metrics['loss']:.2f}, samples {samples.shape}, "
        f"{time.perf_counter() - begun:.0f} s",
        flush=True,
    )
