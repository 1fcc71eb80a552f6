"""The five systems, each in one line: its network, what it learns, and how its author samples.

All of them are one training step and one sampler apart: the same functions train and sample each.
"""

import itertools
import time

import jax
import jax.numpy as jnp
from flax import nnx

from ddpm_jax import data, models, presets, samplers, schedules, training
from ddpm_jax.processes import GaussianDiffusion

STEPS = 2
NUM = 4  # samples of each
POSTERIOR = {"variance": "posterior"}

# fmt: off
SYSTEMS = {
    # network: shape of an example, process, sampler, its options, steps (None: the whole chain)
    "convnext_unet":  ((28, 28, 1), GaussianDiffusion(schedules.cosine_unclipped(500)),     "strided", {"eta": 0.1}, 35),
    "tiny_unet":      ((32, 32, 1), GaussianDiffusion(schedules.linear(1000)),              "ancestral", {}, None),
    "annotated_unet": ((28, 28, 1), GaussianDiffusion(schedules.linear(200), loss="huber"), "ancestral", POSTERIOR, None),
    "mlp":            ((2,),        GaussianDiffusion(schedules.linear(1000)),              "ancestral", {}, None),
    "strided_unet":   ((32, 32, 3), GaussianDiffusion(schedules.linear_inclusive(400)),     "ancestral", {}, None),
}
# fmt: on

config = presets.TrainConfig(steps=STEPS, batch_size=16, lr=1e-3, grad_clip=None)
for name, (shape, process, sampler, options, num_steps) in SYSTEMS.items():
    begun = time.perf_counter()
    model = models.create(name, rngs=nnx.Rngs(0))
    classes = getattr(model.config, "num_classes", None)
    source = data.open_source("spiral" if shape == (2,) else "digits")  # images are resized to the network's shape
    state = training.create_state(model, training.make_optimizer(config))
    graphdef, _ = models.split(model, training=True)
    batches = data.batches(source, shape=shape, batch_size=config.batch_size)
    for batch in itertools.islice(batches, STEPS):
        if not classes:
            batch = {"x_0": batch["x_0"]}
        state, metrics = training.train_step(
            state, batch, jax.random.key(0), graphdef=graphdef, process=process, config=config
        )
    samples, _ = samplers.sample(
        (models.split(model)[0], state.variables(ema=True)),
        process,
        jax.random.key(1),
        (NUM, *shape),
        jnp.arange(NUM) if classes else None,
        step=samplers.create(sampler, process, **options),
        times=samplers.times(sampler, process, num_steps),
    )
    print(
        f"{name:15} {models.num_params(model):>9,} parameters, loss {metrics['loss']:.2f}, samples {samples.shape}, "
        f"{time.perf_counter() - begun:.0f} s",
        flush=True,
    )
