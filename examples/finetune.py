"""Fine-tuning: a network that was trained on all digits goes on with one of them.

It starts from the averaged weights of a run, with a fresh optimiser, in a folder of its own. The network and what it predicts stay;
data, training and sampling may change.
"""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp

from ddpm_jax import data, denoisers, figures, presets, samplers, training

STEPS = 400
OUT = Path("runs/examples")

# The pretrained network: here of a short run that is told no classes
digits = presets.preset("digits")
digits = replace(
    digits,
    data=replace(digits.data, labels=False),
    train=replace(digits.train, steps=STEPS, warmup_steps=STEPS // 20, sample_every=0, checkpoint_every=STEPS),
)
origin = training.train(digits, OUT / "all_digits", overwrite=True).run

# Any other run folder serves as well,
#     origin = training.open_run(Path("runs/digits"))
# and so do a folder of diffusers and checkpoints of other libraries, once they are one (`ddpm import` does the same):
#     from ddpm_jax import conversion
#     folder = conversion.import_weights("google/ddpm-cifar10-32", Path("runs/cifar10"))  # or a path
#     origin = training.open_run(folder)

# Fine-tuning on the threes: fewer steps, a lower rate
threes = replace(
    origin.config,
    data=replace(origin.config.data, classes=("3",)),
    train=replace(origin.config.train, steps=STEPS // 4, lr=5e-4, warmup_steps=0, checkpoint_every=STEPS // 4),
)
tuned = training.finetune(origin, threes, OUT / "threes", overwrite=True).run
print(f"{tuned.folder} started from step {tuned.origin['step']} of {tuned.origin['run']}")

# The same noise through both
drawn = []
for run in (origin, tuned):
    denoise = denoisers.clipped(run.denoiser())
    drawn.append(samplers.sample(denoise, samplers.DDIM(), jax.random.key(0), (10, *run.shape), num_steps=50))
rows = data.to_images(jnp.concatenate(drawn))
print("samples in", figures.save_grid(OUT / "finetune.png", rows, columns=10, row_titles=["before", "after"]))
