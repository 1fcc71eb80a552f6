"""Many devices: the same training step on one device, data parallel, and fully sharded (fsdp).

A layout says what lies where. It decides how fast a step is and how much memory it takes, not what it computes: the losses
below are the same but for rounding. A run needs one argument for it:

    training.train(config, folder, parallel=ParallelConfig("fsdp"))    # ddpm train digits --parallel fsdp --out FOLDER

Where there is no accelerator, four devices are simulated on the CPU.
"""

import itertools

import jax
import numpy as np
import optax
from flax import nnx

from ddpm_jax import data, denoisers, models, noise, processes, samplers, schedules, training
from ddpm_jax.launch import ParallelConfig
from ddpm_jax.parallel import layout_of

STEPS, BATCH = 20, 64

jax.config.update("jax_num_cpu_devices", 4)  # before the first call of jax; accelerators are what they are
print(f"{jax.device_count()} devices: {jax.devices()[0].device_kind}")

process = processes.GaussianDiffusion(schedules.cosine(1000), prediction="v")
unet = {"dim": 32, "dim_mults": (1,), "num_blocks": 1, "attention_resolutions": (), "norm_groups": 8}
model = models.create("unet", rngs=nnx.Rngs(0), image_size=8, channels=1, num_classes=10, **unet)
optimizer = optax.adam(1e-3)
train_step = training.make_step(process, optimizer)
source = data.open_source("digits")
labels = np.arange(20, dtype=np.int32) % 10
keys = np.asarray(jax.random.key_data(noise.sample_keys(1, 20)))  # one for each sample, whatever the devices


def in_memory(state):
    """Megabytes of the state on the first device."""
    return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state)) / 1e6


print("                 loss at the end   state on a device (MB)   mean of the samples")
for name, asked_for in {
    "one device": ParallelConfig(devices=1),
    "data": ParallelConfig("data"),
    "fsdp": ParallelConfig(
        "fsdp", min_shard=1024
    ),  # small tensors are whole everywhere; here even small ones are shared out
}.items():
    layout = layout_of(asked_for)
    step, state = train_step.on(layout), layout.place(training.create_state(model, optimizer))
    megabytes = in_memory(state)
    batches = data.batches(source, shape=(8, 8, 1), batch_size=BATCH)
    for batch in itertools.islice(batches, STEPS):
        state, metrics = step(state, layout.feed(batch), jax.random.key(0))
    denoise = denoisers.clipped(state.denoiser(process, labels=layout.deal(labels)))
    # where the keys lie decides where the batch is drawn
    images = samplers.sample(denoise, samplers.DDIM(), layout.deal(keys), (20, 8, 8, 1), num_steps=10)
    print(f"{name:12} {metrics['loss']:19.6f} {megabytes:24.2f} {layout.gather(images).mean():21.6f}", flush=True)
