"""`make demo`: train on the digits, draw samples, measure them; prints how long each part took."""

import argparse
import sys
import time
from pathlib import Path

from ddpm_jax.cli import main


def step(title: str, *arguments: str) -> float:
    """Run one command as a user would type it; returns its seconds."""
    print(f"\n== {title}\n$ ddpm {' '.join(arguments)}", flush=True)
    begun = time.perf_counter()
    status = main(list(arguments))
    if status:
        sys.exit(status)
    return time.perf_counter() - begun


def demo(out: Path) -> None:
    """The whole tour; a demo run that is already in the folder is made anew."""
    run = str(out)
    seconds = {
        "training": step("Train on 1,797 real handwritten digits", "train", "digits", "--out", run, "--overwrite"),
        "sampling": step(
            "Draw 100 digits with all 1,000 denoising steps, in one compiled call",
            *("sample", run, "--num", "100", "--sampler", "ancestral", "--steps", "1000"),
        ),
        "evaluation": step("Have 500 generated digits read by a classifier of real ones", "evaluate", run),
    }
    print("\n== Done in " + f"{sum(seconds.values()):.0f} s: ", end="")
    print(", ".join(f"{name} {value:.0f} s" for name, value in seconds.items()))
    print("Look at:")
    for name in ("samples.png", "denoising.gif", "loss.png", "samples/samples.png", "samples/denoising.gif"):
        print(f"  {out / name}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="run folder (default: runs/demo)")
    demo(parser.parse_args().out)
