"""Every preset compiled for a chip of each kind, into one file of figures: python scripts/compile_presets.py [--presets NAME ...].

Needs the compilers, pip install 'ddpm-jax[aot-tpu,aot-cuda]', and hours. What the file has already is left alone, so that the
command goes on where it stopped. Nothing is run, and no accelerator is needed.
"""

import argparse
import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"

from ddpm_jax import compile as compiling
from ddpm_jax import presets, progress
from ddpm_jax.compile.report import from_json, rate
from ddpm_jax.errors import UserError
from ddpm_jax.files import write_text

OUT = Path("docs/results/compiled.json")
CHIPS = ("v5e:1x1", "v6e:1x1", "h100:1", "h200:1")
SAMPLES = 128


def as_compiled(name: str) -> presets.Preset:
    """A preset in bfloat16, SAMPLES drawn at a time; points in float32, all at once."""
    preset = presets.preset(name)
    if len(preset.model.shape) != 3:
        return preset
    train = dataclasses.replace(preset.train, dtype="bfloat16")
    return dataclasses.replace(preset, train=train, sample=dataclasses.replace(preset.sample, num=SAMPLES))


def compiled(name: str, what: Any, chip: str) -> dict[str, Any]:
    """The figures, or why there are none."""
    try:
        return json.loads(compiling.estimate(as_compiled(name), chip, what, name=name).to_json())
    except (UserError, RuntimeError) as error:
        return {"preset": name, "what": what, "topology": chip, "error": str(error).splitlines()[0][:300]}


def table(rows: list[dict[str, Any]]) -> str:
    """As Markdown: a line for each preset and piece of work, a column for each chip."""
    found = {(row["preset"], row["what"], row["topology"]): row for row in rows}
    lines = [f"| preset | program | {' | '.join(CHIPS)} |", f"|---|---|{'---|' * len(CHIPS)}"]
    for name, what in dict.fromkeys((row["preset"], row["what"]) for row in rows):
        cells = [_cell(found.get((name, what, chip))) for chip in CHIPS]
        lines.append(f"| `{name}` | {what} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return "not compiled yet"
    if "error" in row:
        return "failed"
    figures = from_json(json.dumps(row))
    if not figures.fits:
        needed = figures.memory.peak
        return f"does not fit: {needed / 1e9:.1f} GB" if needed else "does not fit"
    kind = "arithmetic" if figures.arithmetic_ms == figures.bound_ms else "memory"
    return f"{figures.memory.peak / 1e9:.2g} GB, {rate(figures.images_per_s or 0.0)}/s, {kind}"


def main() -> int:
    """Compile what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--presets", nargs="+", default=list(presets.RECIPES), choices=presets.RECIPES)
    parser.add_argument("--what", nargs="+", default=["train", "sample"], choices=["train", "sample"])
    parser.add_argument("--chips", nargs="+", default=list(CHIPS))
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    rows: list[dict[str, Any]] = json.loads(args.out.read_text()) if args.out.exists() else []
    done = {(row["preset"], row["what"], row["topology"]) for row in rows}
    wanted = [(name, what, chip) for what in args.what for name in args.presets for chip in args.chips]
    for name, what, chip in wanted:
        if (name, what, chip) in done:
            continue
        rows.append(compiled(name, what, chip))
        write_text(args.out, json.dumps(rows, indent=1) + "\n")
        progress.say(f"{name} {what} {chip}: {_cell(rows[-1])}, {rows[-1].get('compile_s', 0):.0f} s")
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
