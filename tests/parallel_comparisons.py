"""What tests/test_parallel.py looks at, on eight simulated devices: python parallel_comparisons.py float32 NAME ... prints JSON.

Every comparison is with one device, in the largest absolute difference.
"""

import dataclasses
import json
import os
import sys
import tempfile
from pathlib import Path

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
os.environ["JAX_ENABLE_X64"] = str(int(sys.argv[1] == "float64"))

import jax
import jax.numpy as jnp
import numbered_walks
import numpy as np
from flax import nnx

from ddpm_jax import denoisers, models, parallel, processes, samplers, schedules
from ddpm_jax.launch import ParallelConfig
from ddpm_jax.presets import TrainConfig
from ddpm_jax.training import loss_aware, make_optimizer, make_step
from ddpm_jax.training.checkpoints import Checkpoints
from ddpm_jax.training.state import state_of

STEPS, BATCH, SHAPE, CLASSES = 20, 16, (4, 4, 1), 3
DTYPE = np.dtype(sys.argv[1])
OPTIONS = {"image_size": 4, "channels": 1, "num_classes": CLASSES, "dim": 8, "dim_mults": (1,), "num_blocks": 1}
OPTIONS |= {"condition_channels": 1}
CONFIG = TrainConfig(batch_size=BATCH, lr=1e-4, ema_decay=0.9)
PROCESS = processes.GaussianDiffusion(schedules.create("linear", 10))

model = models.create("unet", rngs=nnx.Rngs(0), norm_groups=4, attention_resolutions=(), **OPTIONS)
rng = np.random.default_rng(0)
start = jax.tree.map(lambda a: np.asarray(a, DTYPE), models.split(model)[1])
batches = [
    {
        "x_0": rng.normal(size=(BATCH, *SHAPE)).astype(DTYPE),
        "label": rng.integers(0, CLASSES, BATCH, np.int32),
        "condition": rng.normal(size=(BATCH, *SHAPE)).astype(DTYPE),
    }
    for _ in range(STEPS)
]


def layout_of(mode, devices):
    options = {"min_shard": 64} if mode == "fsdp" else {}
    return parallel.layout_of(ParallelConfig(mode=mode, devices=devices, **options))


def fresh(aware=False):
    variables = jax.tree.map(jnp.asarray, start)
    history = loss_aware.empty(10, 2) if aware else None
    return state_of(structure(), variables, make_optimizer(CONFIG), loss_history=history)


def structure(remat=False):
    return models.split(models.rematerialised(model) if remat else model)[0]


def step_on(layout, accumulate=1):
    return make_step(PROCESS, make_optimizer(CONFIG), ema=0.9, accumulate=accumulate, bounded=False).on(layout)


def walk(layout, state, steps, accumulate=1, remat=False):
    """The losses of so many steps, and the state after them, which is checked to lie where it lay."""
    update = step_on(layout, accumulate)
    state = dataclasses.replace(state, graphdef=structure(remat))
    places = jax.tree.map(lambda a: a.sharding, state)
    losses = []
    for step in steps:
        state, metrics = update(state, layout.feed(batches[step]), jax.random.key(0))
        losses.append(float(metrics["loss"]))
    moved = jax.tree.map(lambda a, place: not a.sharding.is_equivalent_to(place, a.ndim), state, places)
    assert not any(jax.tree.leaves(moved))
    return losses, state


def difference(a, b):
    return max(
        float(np.abs(np.asarray(x) - np.asarray(y)).max()) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True)
    )


def compared(losses, state, expected):
    return {
        "losses": difference(losses, expected[0]),
        "params": difference(state.params, expected[1].params),
        "average": difference(state.ema_params, expected[1].ema_params),
        "moments": difference(state.opt_state, expected[1].opt_state),
    }


def trained(mode, devices, accumulate=1, remat=False, aware=False):
    layout = layout_of(mode, devices)
    losses, state = walk(layout, layout.place(fresh(aware)), range(STEPS), accumulate, remat)
    found = compared(losses, state, expected_of(aware))
    if aware:
        found["history"] = difference(state.loss_history, expected_of(True)[1].loss_history)
    leaves = jax.tree.leaves((state.params, state.ema_params, state.opt_state))
    on_first = sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves)
    return found | {"share of the state": on_first / sum(leaf.nbytes for leaf in leaves)}


reference = {}


def expected_of(aware):
    if aware not in reference:
        reference[aware] = walk(parallel.ALONE, fresh(aware), range(STEPS))
    return reference[aware]


def stacked(mode):
    """Two steps in a call."""
    layout = layout_of(mode, 8)
    update = step_on(layout)
    state, losses = layout.place(fresh()), []
    for step in range(0, STEPS, 2):
        pair = jax.tree.map(lambda *a: np.stack(a), *batches[step : step + 2])
        state, metrics = update.many(state, layout.feed(pair, axis=1), jax.random.key(0))
        losses += metrics["loss"].tolist()
    return compared(losses, state, expected_of(False))


def restored(few):
    """Eight devices with shares of the state, then others with all of it: the second half of the steps, against one device."""
    many = layout_of("fsdp", 8)
    losses, state = walk(many, many.place(fresh()), range(STEPS // 2), accumulate=2, remat=True)
    with tempfile.TemporaryDirectory() as folder:
        with Checkpoints(Path(folder) / "c", keep=1) as checkpoints:
            checkpoints.save(state)
        with Checkpoints(Path(folder) / "c") as checkpoints:
            state = checkpoints.restore(few.abstract(jax.eval_shape(fresh)))
    assert len(jax.tree.leaves(state.params)[0].sharding.device_set) == few.size
    more, state = walk(few, state, range(STEPS // 2, STEPS))
    return compared(losses + more, state, expected_of(False))


def sampled(mode):
    """Samples and frames of eight images, by class, of an ancestral sampler."""
    graphdef, _ = models.split(model)
    labels, sampler = np.arange(8, dtype=np.int32) % CLASSES, samplers.Ancestral()
    # of an output layer of zeros no image would come
    moved = jax.tree.map(lambda a: np.asarray(a + rng.normal(size=a.shape) / 10, DTYPE), start)
    found = []
    for layout in (parallel.ALONE, layout_of(mode, 8)):
        variables = layout.everywhere(layout.place(jax.tree.map(jnp.asarray, moved)))
        network = denoisers.of_network((graphdef, variables), PROCESS, labels=layout.deal(labels))
        network = network.beside(layout.deal(batches[0]["condition"][:8]))
        keys = numbered_walks.keys_on(layout, 1, 8)
        drawn = samplers.sample_with_frames(denoisers.clipped(network), sampler, keys, (8, *SHAPE), num_frames=3)
        assert len(drawn[0].sharding.device_set) == layout.size
        found.append(drawn)
    return {"samples": difference(found[0][0], found[1][0]), "frames": difference(found[0][1], found[1][1])}


def of_every_sampler(mode):
    """Eight samples on eight devices, against five and three of them on one; the noise of their walk to the last bit."""
    layout, found = layout_of(mode, 8), {}
    for name in numbered_walks.WALKS:
        parts = [numbered_walks.drawn(name, count, first) for first, count in ((0, 5), (5, 3))]
        together = numbered_walks.drawn(name, 8, layout=layout)
        assert len(together[0].sharding.device_set) == 8
        found[name] = difference(jnp.concatenate([part[0] for part in parts]), together[0])
        found[f"{name}, frames"] = difference(jnp.concatenate([part[1] for part in parts], axis=1), together[1])
    noise = np.asarray(numbered_walks.noises(8, layout=layout))
    alone = np.concatenate([numbered_walks.noises(count, first) for first, count in ((0, 5), (5, 3))], axis=1)
    return found | {"noise is the same": noise.tobytes() == alone.tobytes()}


COMPARISONS = {
    "data": lambda: trained("data", 8),
    "fsdp": lambda: trained("fsdp", 8),
    "pmap": lambda: trained("pmap", 8),
    "accumulated": lambda: trained("data", 1, accumulate=4),
    "rematerialised": lambda: trained("data", 1, remat=True),
    "data, accumulated": lambda: trained("data", 8, accumulate=2),
    "fsdp, accumulated, rematerialised": lambda: trained("fsdp", 8, accumulate=2, remat=True),
    "pmap, accumulated": lambda: trained("pmap", 8, accumulate=2),
    "data, loss-aware": lambda: trained("data", 8, aware=True),
    "pmap, loss-aware": lambda: trained("pmap", 8, accumulate=2, aware=True),
    "data, stacked": lambda: stacked("data"),
    "pmap, stacked": lambda: stacked("pmap"),
    "restored as data": lambda: restored(layout_of("data", 8)),
    "restored on two": lambda: restored(layout_of("data", 2)),
    "restored on one": lambda: restored(parallel.ALONE),
    "samples": lambda: sampled("data"),
    "samples, pmap": lambda: sampled("pmap"),
    "samples, fsdp": lambda: sampled("fsdp"),
    "every sampler": lambda: of_every_sampler("data"),
    "every sampler, pmap": lambda: of_every_sampler("pmap"),
}

if __name__ == "__main__":
    print(json.dumps({name: COMPARISONS[name]() for name in sys.argv[2:] or COMPARISONS}))
