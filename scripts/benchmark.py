"""Speed and size of the main job: `python scripts/benchmark.py [--out FILE]`; compilation apart from steady state."""

import argparse
import dataclasses
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ddpm_jax import data, models, presets, samplers, training
from ddpm_jax.files import write_atomically
from ddpm_jax.training.run import Run, environment

CLASSES = tuple("0123456789")


def benchmark(steps: int) -> dict[str, Any]:
    """Figures of the `digits` preset: start of the command line, training step, 1,000-step sampling of 100 digits."""
    preset = presets.preset("digits")
    network: Any = preset.model
    preset = dataclasses.replace(preset, model=dataclasses.replace(network, num_classes=len(CLASSES)))
    run = Run(Path("."), preset, CLASSES, data.Scaling(127.5, 127.5))
    found: dict[str, Any] = {
        "environment": environment("float32") | {"processor": platform.processor(), "machine": platform.machine()},
        "help_s": _seconds([sys.executable, "-m", "ddpm_jax.cli", "--help"]),
    }
    begun = time.perf_counter()
    state = run.fresh_state()
    jax.block_until_ready(state)
    found["parameters"] = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    found["create_state_s"] = round(time.perf_counter() - begun, 2)

    batch_size = preset.train.batch_size
    batches = data.batches(data.open_source("digits"), shape=run.shape, batch_size=batch_size)
    graphdef, _ = models.split(run.fresh_model(), training=True)
    key, times = jax.random.key(0), []
    for _ in range(steps + 1):
        batch = next(batches)
        begun = time.perf_counter()
        state, metrics = training.train_step(
            state, batch, key, graphdef=graphdef, process=run.process, config=preset.train
        )
        jax.block_until_ready(metrics)
        times.append(time.perf_counter() - begun)
    median = statistics.median(times[1:])
    found["training"] = {
        "batch_size": batch_size,
        "first_step_s": round(times[0], 2),
        "step_ms_median": round(1000 * median, 1),
        "step_ms_quartiles": [round(1000 * q, 1) for q in np.quantile(times[1:], [0.25, 0.75])],
        "images_per_s": round(batch_size / median, 1),
    }

    graphdef, _ = models.split(run.fresh_model())
    labels = jax.numpy.asarray(np.resize(np.arange(10), 100))
    seconds = []
    for seed in range(2):
        begun = time.perf_counter()
        drawn, _ = samplers.sample(
            (graphdef, state.variables(ema=True)),
            run.process,
            jax.random.key(seed),
            (100, 8, 8, 1),
            labels,
            step=samplers.create("ancestral"),
            clip=1.0,
        )
        drawn.block_until_ready()
        seconds.append(time.perf_counter() - begun)
    found["sampling_100_digits_1000_steps"] = {
        "calls": 1,
        "seconds": round(seconds[1], 2),
        "first_call_extra_s": round(seconds[0] - seconds[1], 2),
        "images_per_s": round(100 / seconds[1], 2),
    }
    found["peak_memory_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return found


def _seconds(command: list[str]) -> float:
    """The least of three tries."""
    tries = []
    for _ in range(3):
        begun = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        tries.append(time.perf_counter() - begun)
    return round(min(tries), 3)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60, help="training steps to time (default: 60)")
    parser.add_argument("--out", type=Path, help="also write the figures here, as JSON")
    arguments = parser.parse_args()
    text = json.dumps(benchmark(arguments.steps), indent=2) + "\n"
    print(text)
    if arguments.out:
        write_atomically(arguments.out, lambda path: path.write_text(text))
