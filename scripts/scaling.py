"""Memory and traffic of a training step by number of devices, from compiled programs: python scripts/scaling.py [--preset NAME].

Nothing is run, and no array is made. Without accelerators the devices are simulated on the CPU; the network is then compiled in the
forms that accelerators get.
"""

import argparse
import dataclasses
import itertools
import json
import math
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

if "XLA_FLAGS" not in os.environ:
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import jax
import jax.numpy as jnp

from ddpm_jax import cpu_forms, data, models, parallel, presets
from ddpm_jax.compilation import once
from ddpm_jax.files import write_text
from ddpm_jax.launch import ParallelConfig
from ddpm_jax.training.objective import step_of
from ddpm_jax.training.run import Run

MB = 1e6
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
SIZES = {"f64": 8, "s64": 8, "f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "pred": 1, "s8": 1, "u8": 1}


def measure(preset: presets.Preset, spread: ParallelConfig) -> dict[str, Any]:
    """Per device: bytes of the state, of everything else at the peak, and of the results of collectives; FLOP of a step."""
    layout = parallel.layout_of(spread)
    parallel.check_batch(layout, preset.train.batch_size, preset.train.accumulate)
    network: Any = preset.model
    classes = tuple(map(str, range(getattr(network, "num_classes", None) or 0)))
    run = Run(Path("."), preset, classes, data.Scaling(0, 1))
    state = layout.abstract(run.abstract_state())
    size = preset.train.batch_size
    batch = {"x_0": jax.ShapeDtypeStruct((size, *run.shape), jnp.float32)}
    if classes:
        batch["label"] = jax.ShapeDtypeStruct((size,), jnp.int32)
    if layout.mesh is not None:
        sharding = jax.sharding.NamedSharding(layout.mesh, jax.sharding.PartitionSpec(*layout.mesh.axis_names))
        batch = {name: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding) for name, a in batch.items()}
    at_once = size / preset.train.accumulate / layout.size
    begun = time.perf_counter()
    step = jax.jit(parallel.shared(step_of(preset).update, layout), donate_argnums=0)
    program = step.lower(state, batch, jax.eval_shape(lambda: jax.random.key(0))).compile(once())
    memory: Any = program.memory_analysis()
    peak = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return {
        "mode": spread.mode if layout.size > 1 else "one device",
        "devices": layout.size,
        "batch_per_device": size // layout.size,
        "kept_mb": kept_of_an_example(network, run.shape, classes, preset.train) * at_once / MB,
        "state_mb": sum(map(bytes_on_each, jax.tree.leaves(state))) / MB,
        "temporary_mb": memory.temp_size_in_bytes / MB,
        "peak_mb": (peak + memory.temp_size_in_bytes) / MB,
        "collectives_mb": {name: size / MB for name, size in traffic(program.as_text() or "").items()},
        "gflop": (program.cost_analysis() or {}).get("flops", 0) / 1e9,
        "compile_s": round(time.perf_counter() - begun, 1),
    }


def bytes_on_each(leaf: jax.ShapeDtypeStruct) -> int:
    """Of an array, on one device."""
    shape = leaf.shape if leaf.sharding is None else leaf.sharding.shard_shape(leaf.shape)
    return math.prod(shape) * leaf.dtype.itemsize


def kept_of_an_example(
    network: Any, shape: tuple[int, ...], classes: tuple[str, ...], train: presets.TrainConfig
) -> int:
    """Bytes that the forward pass keeps of each example for the backward pass, as JAX asks for it, without the loss's own."""
    model = models.abstract(network)
    graphdef, variables = models.split(models.rematerialised(model) if train.remat else model, training=True)
    dtype = None if train.dtype == "float32" else jnp.dtype(train.dtype)

    def kept(size: int) -> int:
        def backward(params: Any, x: jax.Array, t: jax.Array, labels: jax.Array | None) -> Any:
            def output(params: Any) -> jax.Array:
                key = jax.random.key(0)
                return models.apply(graphdef, variables | {"params": params}, x, t, labels, key=key, dtype=dtype)[0]

            return jax.vjp(output, params)[1]

        x, number = jax.ShapeDtypeStruct((size, *shape), jnp.float32), jax.ShapeDtypeStruct((size,), jnp.int32)
        found = jax.eval_shape(backward, variables["params"], x, number, number if classes else None)
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(found))

    return kept(2) - kept(1)


def traffic(text: str) -> dict[str, float]:
    """Bytes of the results of each kind of collective in a compiled program's text, loops' bodies counted once."""
    found: dict[str, float] = {}
    for results, kind in re.findall(rf"= (\S+|\(.*?\)) ({'|'.join(COLLECTIVES)})(?:-start)?\(", text):
        for dtype, shape in re.findall(r"(\w+)\[([\d,]*)\]", results):
            count = math.prod(int(n) for n in shape.split(",") if n)
            found[kind] = found.get(kind, 0) + count * SIZES[dtype]
    return found


def table(rows: list[dict[str, Any]]) -> str:
    """As Markdown."""
    lines = [
        "| mode | devices | examples on each | state, MB | kept, MB | temporary, MB | peak, MB | collectives, MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        moved = ", ".join(f"{name} {size:,.1f}" for name, size in row["collectives_mb"].items()) or "none"
        lines.append(
            f"| {row['mode']} | {row['devices']} | {row['batch_per_device']} | {row['state_mb']:,.0f} | "
            f"{row['kept_mb']:,.0f} | {row['temporary_mb']:,.0f} | {row['peak_mb']:,.0f} | {moved} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Print the table, and write it as JSON where asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--preset", default="imagenet-convnext", choices=presets.RECIPES)
    parser.add_argument("--batch-size", type=int, default=64, help="examples over all devices (default: 64)")
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--modes", nargs="+", default=["data", "fsdp"], choices=["data", "fsdp"])
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--remat", action="store_true")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    preset = presets.preset(args.preset)
    options = {"accumulate": args.accumulate, "remat": args.remat, "dtype": args.dtype}
    train = dataclasses.replace(preset.train, batch_size=args.batch_size, **options)
    preset = dataclasses.replace(preset, train=train)
    rows = []
    for mode, count in itertools.product(args.modes, args.devices):
        if count > 1 or mode == args.modes[0]:
            with cpu_forms.off():  # which go through a batch in loops that cannot be shared out
                rows.append(measure(preset, ParallelConfig(mode=mode, devices=count)))
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    print(table(rows))
    if args.out:
        text = json.dumps({"preset": args.preset, "batch_size": args.batch_size, **options, "rows": rows}, indent=2)
        write_text(args.out, text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
