"""What checkpoints cost while the `digits` preset trains: `python scripts/checkpoint_overhead.py [--every 500] [--out FILE]`.

Blocks of steps that begin with a save alternate with blocks that do not, so that what else the machine does meets both alike.
"""

import argparse
import dataclasses
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import jax

from ddpm_jax import data, presets
from ddpm_jax.files import write_text
from ddpm_jax.training.checkpoints import Checkpoints
from ddpm_jax.training.objective import step_of
from ddpm_jax.training.run import Run, environment

CLASSES = tuple("0123456789")


def measure(every: int, blocks: int, steps: int) -> dict[str, Any]:
    """The seconds that one checkpoint adds to the steps beside and after it, and their share of so many steps."""
    preset = presets.preset("digits")
    network: Any = preset.model
    preset = dataclasses.replace(preset, model=dataclasses.replace(network, num_classes=len(CLASSES)))
    run = Run(Path("."), preset, CLASSES, data.Scaling(127.5, 127.5))
    batches = data.batches(data.open_source("digits"), shape=run.shape, batch_size=preset.train.batch_size)
    step_of_run, state, key = step_of(run.config), run.fresh_state(), jax.random.key(0)
    seconds: dict[bool, list[float]] = {True: [], False: []}
    blocking: list[float] = []
    with tempfile.TemporaryDirectory() as folder, Checkpoints(Path(folder), keep=3) as checkpoints:
        for block in range(-2, 2 * blocks):
            saves = block % 2 == 0
            begun = time.perf_counter()
            if saves:
                checkpoints.save(state)
                blocking.append(time.perf_counter() - begun)
            for _ in range(steps):
                state, metrics = step_of_run(state, next(batches), key)
            jax.block_until_ready(metrics)
            checkpoints.wait()
            if block >= 0:  # the first two compile and make folders
                seconds[saves].append(time.perf_counter() - begun)
        newest = Path(folder) / str(checkpoints.latest_step)
        size = sum(path.stat().st_size for path in newest.rglob("*") if path.is_file())
    step = statistics.median(seconds[False]) / steps
    cost = statistics.median(a - b for a, b in zip(seconds[True], seconds[False], strict=True))
    return {
        "environment": environment("float32"),
        "step_ms": round(1000 * step, 1),
        "checkpoint_mb": round(size / 1e6, 2),
        "save_returns_after_ms": round(1000 * statistics.median(blocking[1:]), 1),
        "checkpoint_costs_ms": round(1000 * cost, 1),
        "every_steps": every,
        "share_of_training_percent": round(100 * cost / (every * step), 3),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, default=500, help="steps between checkpoints (default: 500)")
    parser.add_argument("--blocks", type=int, default=15, help="blocks of steps of each kind (default: 15)")
    parser.add_argument("--steps", type=int, default=30, help="steps in a block (default: 30)")
    parser.add_argument("--out", type=Path, help="also write the figures here, as JSON")
    arguments = parser.parse_args()
    text = json.dumps(measure(arguments.every, arguments.blocks, arguments.steps), indent=2) + "\n"
    print(text)
    if arguments.out:
        write_text(arguments.out, text)
