# %% [markdown]
"""
# Own pictures

A folder of pictures, with a subfolder for each class, is all that training needs. This one makes such a folder; put the path of
yours in its place.
"""

# %%
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw

from ddpm_jax import data, denoisers, figures, presets, samplers, training

STEPS = 400
OUT = Path("runs/examples")
PICTURES = OUT / "pictures"

# %% [markdown]
# ## The folder
# `pictures/disc`, `pictures/square` and `pictures/triangle`: a hundred PNG files each, anywhere and of any size.

# %%
SHAPES = {"disc": (60, "tomato"), "square": (4, "gold"), "triangle": (3, "skyblue")}  # corners and colour
rng = np.random.default_rng(0)
for name, (corners, colour) in SHAPES.items():
    (PICTURES / name).mkdir(parents=True, exist_ok=True)
    for number in range(100):
        picture = Image.new("RGB", (48, 48), "black")
        where = (*rng.uniform(18, 30, 2), rng.uniform(11, 17))  # middle and radius
        ImageDraw.Draw(picture).regular_polygon(where, corners, fill=colour)
        picture.save(PICTURES / name / f"{number}.png")

source = data.open_source(PICTURES)
print(source)
figures.grid(np.stack([source[number]["image"] for number in range(0, 300, 25)]), columns=6)

# %% [markdown]
# ## The run
# A preset says everything that a training needs: data, network, process, training, sampling. Whatever differs is replaced. What
# comes of it lies in a run folder, from which all commands of `ddpm` go on: `ddpm sample runs/examples/own_pictures`.

# %%
config = presets.preset("images-small")
config = replace(
    config,
    data=replace(config.data, source=str(PICTURES)),
    train=replace(config.train, steps=STEPS, warmup_steps=STEPS // 20, label_dropout=0.1),
    sample=replace(config.sample, num=30),
)
run = training.train(config, OUT / "own_pictures", overwrite=True).run
run

# %% [markdown]
# ## More of one class
# Twelve triangles, guided away from what the network draws when it is told no class.

# %%
labels = jnp.full(12, run.class_names.index("triangle"))
denoise = denoisers.clipped(denoisers.guided(run.denoiser(labels), scale=2.0))
images = samplers.sample(denoise, samplers.DDIM(), 0, (12, *run.shape), num_steps=50)
picture = figures.grid(run.to_data(images), columns=6)
picture.save(OUT / "own_pictures.png")
picture
