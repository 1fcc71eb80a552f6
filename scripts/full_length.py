"""Every preset trained as long as its author did, and measured: python scripts/full_length.py [NAME ...].

Trains (or goes on with) what is asked for, draws its pictures, and leaves the figures in docs/results/NAME.json; with --page it
only makes the tables of docs/results.md anew from those. The folder data/ holds mnist/ (the IDX files of both sets),
cifar10-train.zip and cifar10-test.zip; what is in no file there is not needed.
"""

import argparse
import json
import re
import shlex
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ddpm_jax import cli
from ddpm_jax.files import write_text
from ddpm_jax.training.metrics import read_metrics

DOCS = Path(__file__).resolve().parents[1] / "docs"
RESULTS, PAGE, IMAGES = DOCS / "results", DOCS / "results.md", DOCS / "images"
MNIST, CIFAR10 = "idx:data/mnist", "zip:data/cifar10-train.zip"
HELD_OUT = {MNIST: "idx:data/mnist:test", CIFAR10: "zip:data/cifar10-test.zip"}


@dataclass(frozen=True)
class Sampling:
    """How the samples of a run are drawn and measured."""

    label: str
    options: tuple[str, ...] = ()
    num: int = 500


AUTHOR = Sampling("as its author")


@dataclass(frozen=True)
class Recipe:
    """A training, and what is looked at."""

    source: str = ""
    """Where its data comes from; the preset says it unless given."""
    start: str = ""
    """The recipe whose run it begins from; it begins anew unless given."""
    options: tuple[str, ...] = ()
    """Of the training, beside the preset's own."""
    milestones: tuple[int, ...] = ()
    """Steps whose loss is told."""
    reported: dict[int, str] = field(default_factory=dict)
    """The loss that the author reports, by milestone."""
    measured: dict[int, float] = field(default_factory=dict)
    """What the author's own code reached, run here for comparison."""
    says: str = ""
    """What the author reports besides."""
    system: int | None = None
    """Which of the five it is."""
    same: str = ""
    """Whether it came out as the author's, and why."""
    samplings: tuple[Sampling, ...] = (AUTHOR,)
    seeds: tuple[int, ...] = (0,)

    def command(self, name: str, seed: int, runs: str) -> list[str]:
        """What is typed after `ddpm` to train it into a folder of `runs`."""
        seeded = ("--train.seed", str(seed)) if seed else ()
        data = ("--data.source", self.source) if self.source else ()
        what = ("finetune", f"{runs}/{self.start}") if self.start else ("train", name)
        return [*what, "--out", f"{runs}/{called(name, seed)}", *data, *self.options, *seeded]


def called(name: str, seed: int) -> str:
    """The folder of a recipe's run from a seed."""
    return f"{name}-{seed}" if seed else name


DDIM_NOISY = Sampling(
    "DDIM, 35 steps, eta 1, clipped", ("--sampler", "ddim", "--steps", "35", "--eta", "1", "--clip", "1"),
)  # fmt: skip
CLIPPED = Sampling("clipped", ("--clip", "1"))
ALL_STEPS = Sampling("ancestral, 250 steps", ("--sampler", "ancestral", "--steps", "250"), num=1_000)
PRESET = Sampling("the preset's", num=1_000)
POINTS = (Sampling("the preset's", num=10_000),)
FEW = (0, 1, 2)
STRIDED, CONDITIONAL = (500, 1_000, 2_500, 5_000, 7_500, 10_000), (500, 2_500, 5_000, 10_000, 25_000)

RECIPES: dict[str, Recipe] = {
    "mnist-convnext": Recipe(
        MNIST, milestones=(200, 1_000, 2_600, 4_680, 9_360), samplings=(AUTHOR, DDIM_NOISY),
        says="pictures of readable digits", system=1,
    ),
    "mnist-tiny": Recipe(
        MNIST, options=("--train.accumulate", "64"), milestones=(10, 35, 100, 375, 750), says="pictures of readable digits",
        system=2,
    ),
    "cifar10-double-conv": Recipe(
        CIFAR10, milestones=(20, 98, 490, 980, 1_470), says="pictures that improve to 100 epochs", system=2,
    ),
    "cifar10-ships": Recipe(
        CIFAR10, start="cifar10-double-conv", options=("--data.classes", "ship", "--train.epochs", "10"), milestones=(50, 90),
        says="pictures of ships", system=2,
    ),
    "fashion-annotated": Recipe(
        MNIST, milestones=(500, 1_000, 3_500, 18_750), reported={1_000: "0.09", 3_500: "0.05"},
        says="on Fashion-MNIST, loss 0.03 by epoch 9", system=3,
    ),
    "spiral": Recipe(milestones=(40_000,), measured={40_000: 0.246}, samplings=POINTS, seeds=FEW,
        system=4, same="yes"),
    "disc-grid": Recipe(milestones=(40_000,), measured={40_000: 0.234}, samplings=POINTS, seeds=FEW,
        system=4, same="yes"),
    "mnist-strided": Recipe(
        MNIST, milestones=STRIDED, samplings=(AUTHOR, CLIPPED),
        reported={2_500: "below 0.1", 10_000: "below 0.05"}, measured={500: 0.162, 1_000: 0.123, 2_500: 0.091, 5_000: 0.064},
        system=5, same="yes",
    ),
    "cifar10-strided": Recipe(
        CIFAR10, milestones=STRIDED, samplings=(AUTHOR, CLIPPED),
        reported={2_500: "below 0.12", 10_000: "about 0.08"}, measured={500: 0.180, 1_000: 0.145, 2_500: 0.104, 5_000: 0.087},
        system=5, same="yes",
    ),
    "mnist-strided-conditional": Recipe(
        MNIST, milestones=CONDITIONAL, samplings=(AUTHOR, CLIPPED), says="digits far from perfect",
        system=5, same="yes",
    ),
    "cifar10-strided-conditional": Recipe(
        CIFAR10, milestones=CONDITIONAL, samplings=(AUTHOR, CLIPPED), system=5,
    ),
    "spiral-flow": Recipe(milestones=(40_000,), samplings=POINTS, seeds=FEW),
    "spiral-iadb": Recipe(milestones=(40_000,), samplings=POINTS, seeds=FEW),
    "digits": Recipe(milestones=(100, 400, 800), samplings=(PRESET, ALL_STEPS), seeds=FEW),
    **{
        name: Recipe(milestones=(100, 400, 800), samplings=(PRESET,), seeds=FEW)
        for name in ("digits-flow", "digits-dit", "digits-averages", "digits-meanflow", "digits-edm", "digits-upscale")
    },
}  # fmt: skip


def run_of(name: str, recipe: Recipe, seed: int, runs: Path) -> Path:
    """The trained run; what a kill left unfinished goes on, and what is finished is left alone."""
    folder, command = runs / called(name, seed), recipe.command(name, seed, str(runs))
    resume = ("--resume",) if (folder / "checkpoints").is_dir() else ("--overwrite",) if folder.exists() else ()
    if status := cli.main([*command, *resume]):
        sys.exit(status)
    return folder


def losses(folder: Path, milestones: tuple[int, ...]) -> dict[str, float]:
    """By milestone, the mean of the recorded losses of the tenth of the steps before it: about as smooth as what authors print."""
    lines = [line for line in read_metrics(folder) if line["loss"] is not None]
    steps, values = (np.array([line[key] for line in lines]) for key in ("step", "loss"))
    every = int(steps[0])
    found = {}
    for milestone in milestones:
        before = (steps <= milestone) & (steps > milestone - max(every, min(500, milestone // 10)))
        if before.any() and steps[-1] >= milestone:
            found[str(milestone)] = round(float(values[before].mean()), 5)
    return found


def cost(folder: Path) -> dict[str, float]:
    """Of the steps: seconds on the clock, and of processors."""
    lines = read_metrics(folder)
    steps = np.diff([0, *(line["step"] for line in lines)])
    wall = sum(count / line["steps_per_s"] for count, line in zip(steps, lines, strict=True))
    return {"wall_s": round(float(wall), 1), "processor_s": round(sum(line["processor_s"] for line in lines), 1)}


def measured(folder: Path, recipe: Recipe, sampling: Sampling, seed: int) -> dict[str, Any]:
    """The figures of one way to sample, held to a classifier of all the training images, or to new points."""
    options = [*sampling.options, "--num", str(sampling.num), "--seed", str(seed)]
    if recipe.source:
        options += ["--num-real", "60000", "--held-out", HELD_OUT[recipe.source]]
    begun, used = time.perf_counter(), time.process_time()
    if status := cli.main(["evaluate", str(folder), *options]):
        sys.exit(status)
    found = json.loads((folder / "evaluation.json").read_text())
    return {
        "sampling": sampling.label,
        "command": shlex.join(["ddpm", "evaluate", "RUN", *options]),
        "wall_s": round(time.perf_counter() - begun, 1),
        "processor_s": round(time.process_time() - used, 1),
        **found,
    }


def pictures(name: str, folder: Path, recipe: Recipe, work: Path) -> None:
    """Samples of each way to draw them, the nearest training images, and the walk."""
    images = bool(recipe.source) or name.startswith("digits")
    many = ("--num", "40") if images else ()
    for index, sampling in enumerate(recipe.samplings):
        out = work / f"{name}-{index}"
        cli.main(["sample", str(folder), *sampling.options, *many, "--out", str(out)])
        (IMAGES / f"full-{name}{'-best' if index else ''}.png").write_bytes((out / "samples.png").read_bytes())
    kinds = ["nearest", "animation"] if images else ["animation"]
    cli.main(["plot", str(folder), *kinds, *(("--num", "8") if images else ()), "--out", str(work / name)])
    for kind, suffix in (("nearest", "png"), ("animation", "gif")):
        if kind in kinds:
            (IMAGES / f"full-{name}-{kind}.{suffix}").write_bytes((work / name / f"{kind}.{suffix}").read_bytes())


def figures(name: str, recipe: Recipe, runs: Path) -> dict[str, Any]:
    """All that is told of a recipe."""
    trainings = []
    for seed in recipe.seeds:
        folder = run_of(name, recipe, seed, runs)
        config = json.loads((folder / "config.json").read_text())
        samples = [measured(folder, recipe, sampling, seed) for sampling in recipe.samplings]
        if seed == recipe.seeds[0]:
            pictures(name, folder, recipe, runs / "pictures")
        trainings.append({"seed": seed, **cost(folder), "loss": losses(folder, recipe.milestones), "samples": samples})
    train = config["config"]["train"]
    return {
        "preset": name,
        "command": shlex.join(["ddpm", *recipe.command(name, 0, "runs")]),
        "steps": samples[0]["step"],
        "batch_size": train["batch_size"],
        "environment": config["environment"],
        "trainings": trainings,
    }


# The page --------------------------------------------------------------------------------------------------------


def mean(values: list[float], form: str) -> str:
    """A mean, and the range of several."""
    text = format(float(np.mean(values)), form)
    return text if len(values) == 1 else f"{text} ({format(min(values), form)} to {format(max(values), form)})"


def overview(found: dict[str, dict[str, Any]]) -> str:
    """Each of the five systems' presets: the author's figure, ours, and whether they are the same."""
    lines = ["| system | preset | the author's figure | ours | the same? |", "|---|---|---|---|---|"]
    for name, recipe in RECIPES.items():
        if recipe.system is None:
            continue
        theirs = [f"loss {text} at {step:,}" for step, text in recipe.reported.items()]
        theirs += (
            []
            if recipe.reported
            else [f"loss {loss:.3f} at {step:,}, run here" for step, loss in recipe.measured.items()]
        )
        theirs += [recipe.says] if recipe.says else []
        ours, same = "not run so yet; [shorter runs](#on-the-way)", ""
        if name in found:
            trainings = found[name]["trainings"]
            steps = [
                step
                for step in (recipe.reported or recipe.measured or recipe.milestones)
                if str(step) in trainings[0]["loss"]
            ]
            told = [f"{mean([t['loss'][str(step)] for t in trainings], '.3f')} at {step:,}" for step in steps]
            ours, same = f"loss {', '.join(told)}", recipe.same
        lines.append(f"| {recipe.system} | `{name}` | {'; '.join(theirs) or 'none'} | {ours} | {same} |")
    return "\n".join(lines)


def loss_table(found: dict[str, dict[str, Any]]) -> str:
    """The losses of every recipe with an author, at the author's steps, beside the author's."""
    lines = ["| preset | step | loss | the author reports | the author's code, run here |", "|---|---|---|---|---|"]
    for name, told in found.items():
        recipe = RECIPES[name]
        if recipe.system is None:
            continue
        for step in recipe.milestones:
            values = [training["loss"][str(step)] for training in told["trainings"] if str(step) in training["loss"]]
            if values:
                theirs = recipe.measured.get(step)
                lines.append(
                    f"| `{name}` | {step:,} | {mean(values, '.3f')} | {recipe.reported.get(step, '')} "
                    f"| {'' if theirs is None else f'{theirs:.3f}'} |"
                )
    return "\n".join(lines)


def cost_table(found: dict[str, dict[str, Any]]) -> str:
    """What every training was, and what it cost."""
    lines = ["| preset | command | steps, batch | seconds | processor seconds |", "|---|---|---|---|---|"]
    for name, told in found.items():
        seconds = (mean([training[key] for training in told["trainings"]], ",.0f") for key in ("wall_s", "processor_s"))
        command = told["command"].removeprefix("ddpm ").replace(f" --out runs/{name}", "")
        lines.append(
            f"| [`{name}`](results/{name}.json) | `{command}` | {told['steps']:,} of {told['batch_size']:,} "
            f"| {' | '.join(seconds)} |"
        )
    return "\n".join(lines)


def image_table(found: dict[str, dict[str, Any]]) -> str:
    """Samples of images beside real ones in their place."""
    lines = [
        "| preset | sampled | samples | recognised | real | Fréchet distance | real | nearest training image | real |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, told in found.items():
        for index, sampling in enumerate(told["trainings"][0]["samples"]):
            rows = [training["samples"][index]["metrics"] for training in told["trainings"]]
            if "nearest_training_image" not in rows[0]:
                continue
            cells = []
            for key, form in (
                ("class_agreement", ".1%"),
                ("frechet_distance", ".3g"),
                ("nearest_training_image", ".3g"),
            ):
                there = key in rows[0]
                cells += [mean([row[key][side] for row in rows], form) if there else "" for side in ("samples", "real")]
            lines.append(f"| `{name}` | {sampling['sampling']} | {sampling['samples']:,} | {' | '.join(cells)} |")
    return "\n".join(lines)


def point_table(found: dict[str, dict[str, Any]]) -> str:
    """Samples of points beside other real ones."""
    lines = ["| preset | sliced Wasserstein distance | real points | ratio |", "|---|---|---|---|"]
    for name, told in found.items():
        rows = [training["samples"][0]["metrics"].get("sliced_wasserstein") for training in told["trainings"]]
        if rows[0] is not None:
            ratio = [row["samples"] / row["real"] for row in rows]
            sides = (mean([row[side] for row in rows], ".4f") for side in ("samples", "real"))
            lines.append(f"| `{name}` | {' | '.join(sides)} | {mean(ratio, '.2f')} |")
    return "\n".join(lines)


def both_table(folder: Path) -> str:
    """Each framework by itself, from several seeds, as scripts/train_both.py left it."""
    lines = ["| preset | figure | JAX | PyTorch | p of the rank test |", "|---|---|---|---|---|"]
    for path in sorted(folder.glob("both_*.json")):
        told = json.loads(path.read_text())
        for figure in told["apart"]:
            sides = (mean([row[figure] for row in told["rows"][side]], ".4f") for side in ("jax", "torch"))
            p = told["apart"][figure]["p"]
            lines.append(f"| `{told['preset']}` | {figure.replace('_', ' ')} | {' | '.join(sides)} | {p:.2f} |")
    return "\n".join(lines)


TABLES = {"overview": overview, "loss": loss_table, "cost": cost_table, "images": image_table, "points": point_table}
_PART = re.compile(r"<!-- made of the figures: (\w+) -->\n.*?<!-- until here -->", re.DOTALL)


def written(page: str, folder: Path = RESULTS) -> str:
    """The page, its tables made anew of the figures in a folder."""
    paths = {name: folder / f"{name}.json" for name in RECIPES}
    found = {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}

    def table(part: re.Match[str]) -> str:
        made = both_table(folder) if part[1] == "both" else TABLES[part[1]](found)
        return f"<!-- made of the figures: {part[1]} -->\n{made}\n<!-- until here -->"

    return _PART.sub(table, page)


def main() -> None:
    """Train and measure what is asked for, and write the page anew."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("names", nargs="*", metavar="NAME", choices=[*RECIPES, []], help=", ".join(RECIPES))
    parser.add_argument("--runs", type=Path, default=Path("runs/full"))
    parser.add_argument("--page", action="store_true", help="write the tables of the page anew, and nothing else")
    args = parser.parse_args()
    for name in [] if args.page else args.names or list(RECIPES):
        told = figures(name, RECIPES[name], args.runs)
        write_text(RESULTS / f"{name}.json", json.dumps(told, indent=1) + "\n")
    write_text(PAGE, written(PAGE.read_text()))


if __name__ == "__main__":
    main()
