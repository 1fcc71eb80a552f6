"""The command `ddpm`: its flags are made from the configs, and jax is imported only once there is work to do."""

import dataclasses
import logging
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

import ddpm_jax
from ddpm_jax.errors import UserError
from ddpm_jax.presets import PRESETS, Preset, SampleConfig, preset

Flat = tyro.conf.arg(name="")


@dataclass(frozen=True)
class TrainArgs:
    """Train a preset's network and leave checkpoints, metrics and pictures in a run folder."""

    config: Annotated[Preset, Flat]
    out: Path
    """The run folder."""
    resume: bool = False
    """Go on from the run folder's newest checkpoint."""
    overwrite: bool = False
    """Delete the run that is in the folder and start anew."""


@dataclass(frozen=True)
class SampleArgs:
    """Draw samples from a run: an npz, a titled grid and a denoising animation."""

    config: Annotated[SampleConfig, Flat]
    labels: tuple[str, ...] = ()
    """Classes to draw, by name or number, in turn; all of them unless given."""
    seed: int = 0
    """Start of the random draws."""
    batch_size: int = 500
    """Samples drawn at a time."""
    out: Path | None = None
    """Where to; RUN/samples unless given."""


@dataclass(frozen=True)
class EvaluateArgs:
    """Draw samples from a run and measure how well a classifier of its data recognises them."""

    config: Annotated[SampleConfig, Flat] = field(default_factory=lambda: SampleConfig(num=500))
    seed: int = 0
    """Start of the random draws."""
    batch_size: int = 500
    """Samples drawn at a time."""


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit status: 0 done, 2 a mistake of the caller, 130 interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
    logging.getLogger("absl").setLevel(logging.ERROR)
    try:
        return _dispatch(arguments)
    except UserError as error:
        print(f"ddpm: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("ddpm: interrupted.", file=sys.stderr)
        return 130


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_help())
        return 0
    if arguments[0] == "--version":
        print(f"ddpm-jax {ddpm_jax.__version__}")
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        raise UserError(f"the command must be one of {', '.join(COMMANDS)}; got {name!r}. See ddpm --help.")
    command, subject, _ = COMMANDS[name]
    if rest and not rest[0].startswith("-"):
        return command(rest[0], rest[1:])
    if rest and rest[0] in ("-h", "--help"):
        return command(None, rest)
    raise UserError(f"ddpm {name} needs a {subject} first: ddpm {name} {subject} [options]. See ddpm {name} --help.")


def _train(name: str | None, rest: list[str]) -> int:
    if name is None:
        print(f"Presets: {', '.join(PRESETS)}. Their options, with the defaults of {next(iter(PRESETS))}:\n")
    default = TrainArgs(preset(name or next(iter(PRESETS))), tyro.MISSING)
    args = _parse(TrainArgs, f"ddpm train {name or 'PRESET'}", rest, default)

    from ddpm_jax.training import train

    begun = time.perf_counter()
    outcome = train(args.config, args.out, resume=args.resume, overwrite=args.overwrite)
    if outcome.interrupted:
        again = " ".join(part for part in rest if part not in ("--overwrite", "--resume"))
        print(f"interrupted; step {outcome.step} is saved. Go on with:\n  ddpm train {name} {again} --resume")
        return 130
    print(f"trained to step {outcome.step} in {time.perf_counter() - begun:.0f} s, pictures included. In {args.out}:")
    print("  config.json, metrics.jsonl, tensorboard/, checkpoints/, samples.png, denoising.gif, samples.npz, loss.png")
    return 0


def _sample(name: str | None, rest: list[str]) -> int:
    run, config = _run_and_config(name)
    args = _parse(SampleArgs, f"ddpm sample {name or 'RUN'}", rest, SampleArgs(config))
    if args.batch_size < 1:
        raise UserError(f"batch_size must be at least 1; got {args.batch_size}.")

    from ddpm_jax.training import samples

    labels = run.labels(args.config.num, args.labels)
    graphdef, variables, step = run.load()
    drawn = samples.draw(
        run,
        graphdef,
        variables,
        labels,
        args.config.num,
        config=args.config,
        seed=args.seed,
        batch_size=args.batch_size,
    )
    steps = int(drawn.frame_steps[-1])
    heading = f"{run.folder.name}, step {step}, {args.config.sampler} {steps}"
    paths = samples.save_all(args.out or run.folder / "samples", run, drawn, heading)
    first = min(args.config.num, args.batch_size)
    speed = f"{first} samples in one call of {drawn.first_call_s:.1f} s, compilation included"
    if drawn.later_call_s is not None:
        speed += f"; each later call {drawn.later_call_s:.1f} s"
    print(f"{args.config.num} samples by {args.config.sampler} in {steps} steps: {speed}")
    for path in paths:
        print(f"  {path}")
    return 0


def _evaluate(name: str | None, rest: list[str]) -> int:
    run, config = _run_and_config(name)
    default = EvaluateArgs(dataclasses.replace(config, num=500))
    args = _parse(EvaluateArgs, f"ddpm evaluate {name or 'RUN'}", rest, default)
    if args.batch_size < 1:
        raise UserError(f"batch_size must be at least 1; got {args.batch_size}.")

    from ddpm_jax.evaluation import evaluate_run

    agreement, path = evaluate_run(run, args.config, seed=args.seed, batch_size=args.batch_size)
    print(
        f"class agreement: {agreement.samples:.1%} of {args.config.num} samples are recognised as the class asked for\n"
        f"(the classifier is right on {agreement.real:.1%} of real images it has not seen)\n  {path}"
    )
    return 0


def _run_and_config(name: str | None) -> tuple[Any, SampleConfig]:
    if name is None:  # --help: no run to take the defaults from
        return None, SampleConfig()
    from ddpm_jax.training import open_run

    run = open_run(Path(name))
    return run, run.config.sample


def _parse(kind: type[Any], prog: str, rest: list[str], default: Any) -> Any:
    return tyro.cli(kind, prog=prog, args=rest, default=default, description=kind.__doc__)


COMMANDS: dict[str, tuple[Callable[[str | None, list[str]], int], str, str]] = {
    "train": (_train, "PRESET", "train a network; leaves a run folder"),
    "sample": (_sample, "RUN", "draw samples from a run folder"),
    "evaluate": (_evaluate, "RUN", "measure the samples of a run folder"),
}


def _help() -> str:
    commands = "\n".join(f"  ddpm {name + ' ' + subject:<18} {what}" for name, (_, subject, what) in COMMANDS.items())
    presets = "\n".join(
        f"  {name:<10} {config.data.source or 'your images'}, "
        f"{config.model.image_size}x{config.model.image_size}x{config.model.channels}, {config.train.steps:,} steps"
        for name, config in PRESETS.items()
    )
    return (
        "Denoising diffusion in JAX.\n\n"
        f"{commands}\n\n"
        "  ddpm COMMAND --help      all options of a command\n"
        "  ddpm --version\n\n"
        f"Presets:\n{presets}\n\n"
        "Example:\n  ddpm train digits --out runs/digits\n  ddpm sample runs/digits --labels 3 7 --num 20"
    )
