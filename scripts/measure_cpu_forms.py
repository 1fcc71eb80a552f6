"""What each form for XLA's CPU compiler gains in whole networks: python scripts/measure_cpu_forms.py [NETWORK ...] [--out FILE].

A network is run with all forms and with all but one, in turn and in one process; compilation is apart. Where a program is the same
without a form, the gain is null. What is measured is written after each pair, and a file that is there is gone on with.
"""

import argparse
import dataclasses
import functools
import json
import tempfile
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np

from ddpm_jax import cpu_forms
from ddpm_jax.benchmark.jax_side import JaxSide
from ddpm_jax.benchmark.timing import Call
from ddpm_jax.benchmark.workload import What, workload
from ddpm_jax.files import write_atomically

NETWORKS = (
    "conv_net",
    "strided_unet",
    "tiny_unet",
    "double_conv_unet",
    "convnext_unet",
    "annotated_unet",
    "unet",
    "digits-dit",
)
BATCH = {"unet": 4}
"""16 for the other networks, and a preset's own."""


STACKED = "train, 5 steps in a call"
WHAT = ("forward", "train", STACKED)
"""A loop's body keeps layouts, which is what one of the forms is for: that one alone is looked at there."""


def main() -> None:
    """Measure what is not in the file yet."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("networks", nargs="*", default=NETWORKS, metavar="NETWORK")
    parser.add_argument("--rounds", type=int, default=9, help="turns of either, by half a second")
    parser.add_argument("--out", type=Path, default=Path("cpu_forms.json"))
    args = parser.parse_args()
    misses: list[str] = []
    jax.monitoring.register_event_listener(lambda event, **_: misses.append(event) if "cache_misses" in event else None)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    rows = json.loads(args.out.read_text()) if args.out.exists() else []
    done = {(row["network"], row["what"], row["form"]) for row in rows}
    for name in args.networks:
        for what in WHAT:
            forms = [
                form
                for form in cpu_forms.FORMS
                if (name, what, form) not in done and (what != STACKED or form == "gradients")
            ]
            if not forms:
                continue
            with tempfile.TemporaryDirectory() as folder:  # programs that are the same are found there
                jax.config.update("jax_compilation_cache_dir", folder)
                jax.experimental.compilation_cache.compilation_cache.reset_cache()
                usual = begun(name, what, None)
                for form in forms:
                    misses.clear()
                    other = begun(name, what, form)
                    row: dict[str, Any] = {"network": name, "what": what, "form": form, "gain": None}
                    if misses:
                        row |= compared(usual, other, form, args.rounds)
                    print(json.dumps(row), flush=True)
                    rows.append(row)
                    write_atomically(args.out, functools.partial(write, json.dumps(rows, indent=1) + "\n"))
            jax.clear_caches()  # a process may have 65,530 pieces of memory, and each program takes dozens


def write(text: str, path: Path) -> None:
    """Fill a file."""
    path.write_text(text)


def without(form: str | None) -> AbstractContextManager[Any]:
    """Where calls are traced, or found traced, without a form; None: with all."""
    return nullcontext() if form is None else cpu_forms.off(form)


def begun(name: str, what: str, form: str | None) -> Call:
    """A piece of work that was done once, so that it is compiled."""
    work = workload(name, batch_size=BATCH.get(name))
    with without(form):
        stacked = dataclasses.replace(work, steps_per_call=5)
        call = JaxSide(stacked).call("train") if what == STACKED else JaxSide(work).call(cast(What, what))
        call.run()
    return call


def compared(usual: Call, other: Call, form: str, rounds: int) -> dict[str, Any]:
    """Throughput with the form by that without, the median of the turns' ratios and what half of them lie between."""
    ratios = []
    for index in range(rounds):
        seconds = {}
        for mine in ((True, False), (False, True))[index % 2]:
            with without(None if mine else form):
                seconds[mine] = (usual if mine else other).seconds(0.5)
        ratios.append(seconds[False] / seconds[True])
    low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
    return {"gain": round(middle, 3), "low": round(low, 3), "high": round(high, 3), "ms": round(1e3 * seconds[True], 3)}


if __name__ == "__main__":
    main()
