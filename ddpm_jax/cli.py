"""The command `ddpm`: its flags are made from the configs, and jax is imported only once there is work to do."""

import argparse
import dataclasses
import logging
import os
import shlex
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

import ddpm_jax
from ddpm_jax.arguments import (
    BenchmarkArgs,
    ConvertArgs,
    EditArgs,
    EvaluateArgs,
    FinetuneArgs,
    Flat,
    ImportArgs,
    PlotArgs,
    SampleArgs,
    TrainArgs,
    VerifyArgs,
)
from ddpm_jax.errors import UserError
from ddpm_jax.files import check_writable, keep_programs
from ddpm_jax.huge_pages import restart_with_huge_pages
from ddpm_jax.launch import join, leave, several
from ddpm_jax.presets import RECIPES, SYSTEMS, Preset, SampleConfig, preset


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit status: 0 done, 2 a mistake of the caller, 130 interrupted, 143 terminated after saving."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if argv is None and arguments and not {"-h", "--help", "--version"}.intersection(arguments):
        restart_with_huge_pages()
    warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # what fails in Orbax is raised as well
    keep_programs()
    try:
        return _dispatch(arguments)
    except UserError as error:
        print(f"ddpm: {error}", file=sys.stderr)
        return leave(2)
    except BrokenPipeError:  # whoever read the output, as `head` does, has seen enough
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # else Python's own last flush complains
        return leave(141)
    except KeyboardInterrupt:
        print("ddpm: interrupted.", file=sys.stderr)
        return leave(130)
    except Exception:
        if several():
            traceback.print_exc()
        leave(1)
        raise


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
    if subject.startswith("["):
        return command(None, rest)
    raise UserError(f"ddpm {name} needs a {subject} first: ddpm {name} {subject} [options]. See ddpm {name} --help.")


def _train(name: str | None, rest: list[str]) -> int:
    if name is None:
        print(f"Presets: {', '.join(RECIPES)}. Their options, with the defaults of {next(iter(RECIPES))}:\n")
    chosen = preset(name or next(iter(RECIPES)))
    run = _run_to_resume(rest)
    if run is not None:
        theirs, ours = run.config.model.network, chosen.model.network
        if theirs != ours:
            raise UserError(
                f"{run.folder} is a run of the network {theirs}, and the preset {name} is of {ours}; "
                "give the preset that it was started with."
            )
        chosen = _for_the_data_as_it_is(run.config)
    about = (
        f"{TrainArgs.__doc__}\n\n{name}: {RECIPES[name].about} {RECIPES[name].expect}" if name else TrainArgs.__doc__
    )
    args = _parse_training(TrainArgs, chosen, f"ddpm train {name or 'PRESET'}", rest, description=about)

    join(args.parallel)

    from ddpm_jax.training import train

    return _report_training(lambda: train(args.config, args.out, **_how(args)), args.out, f"ddpm train {name}", rest)


def _finetune(name: str | None, rest: list[str]) -> int:
    if name is None:
        _parse_training(
            FinetuneArgs, preset(next(iter(RECIPES))), "ddpm finetune RUN", rest, description=FinetuneArgs.__doc__
        )
    from ddpm_jax.training import finetune, open_run

    origin = open_run(Path(str(name)))
    chosen = _for_the_data_as_it_is((_run_to_resume(rest) or origin).config)
    args = _parse_training(FinetuneArgs, chosen, f"ddpm finetune {name}", rest, description=FinetuneArgs.__doc__)
    join(args.parallel)

    return _report_training(
        lambda: finetune(origin, args.config, args.out, weights=args.weights, **_how(args)),
        args.out,
        f"ddpm finetune {name}",
        rest,
    )


def _run_to_resume(rest: list[str]) -> Any:
    """The run that a command that trains is asked to resume, whose options are then the defaults; None: none that is there."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--out", type=Path, nargs="?")
    parser.add_argument("--resume", action="store_true")
    asked, _ = parser.parse_known_args(rest)
    if not asked.resume or asked.out is None or not asked.out.exists():
        return None
    from ddpm_jax.training import open_run

    return open_run(asked.out)


def _for_the_data_as_it_is(config: Preset) -> Preset:
    """A run's config for another one: the length of an epoch is found anew, so that data which has changed is noticed."""
    return dataclasses.replace(config, train=dataclasses.replace(config.train, epoch_steps=None))


def _how(args: TrainArgs) -> dict[str, Any]:
    return {key: getattr(args, key) for key in ("resume", "overwrite", "parallel", "profile")}


def _parse_training(kind: type[Any], chosen: Preset, prog: str, rest: list[str], **options: Any) -> Any:
    """The arguments of a command that trains, their defaults those of a preset or of a run."""
    # steps and epochs replace each other: the one that is given makes room for itself
    given, length = {part.partition("=")[0].replace("_", "-") for part in rest}, chosen.train
    if "--train.steps" in given and "--train.epochs" not in given and length.steps is None:
        length = dataclasses.replace(length, steps=sys.maxsize, epochs=None)
    if "--train.epochs" in given and "--train.steps" not in given and length.epochs is None:
        length = dataclasses.replace(length, steps=None, epochs=1)
    chosen = dataclasses.replace(chosen, train=length)

    @dataclass(frozen=True, kw_only=True)
    class Args(kind):
        config: Annotated[Preset, Flat, tyro.conf.AvoidSubcommands] = chosen  # the options of its own network alone

    return _parse(Args, prog, rest, **options)


def _report_training(run: Callable[[], Any], out: Path, command: str, rest: list[str]) -> int:
    begun = time.perf_counter()
    outcome = run()
    if outcome.stopped_by is not None:
        again = shlex.join([*_beside_the_config(rest), "--resume"])
        print(f"interrupted; step {outcome.step} is saved. Go on with:\n  {command} {again}")
        return 128 + outcome.stopped_by
    print(f"trained to step {outcome.step} in {time.perf_counter() - begun:.0f} s, pictures included. In {out}:")
    print("  config.json, metrics.jsonl, tensorboard/, checkpoints/, samples.png, denoising.gif, samples.npz, loss.png")
    if (out / "profile").is_dir():
        print(
            "  profile/, for `tensorboard --logdir` with its profile plugin; perfetto_trace.json.gz in it, for ui.perfetto.dev"
        )
    return 0


def _beside_the_config(rest: list[str]) -> list[str]:
    """The arguments of a command that trains which its run's config.json does not hold, without --overwrite and --resume."""
    known = {f"--{part.name}" for part in dataclasses.fields(Preset)} | {"--overwrite", "--resume"}
    kept, wanted = [], True
    for part in rest:
        if part.startswith("--"):
            wanted = part.partition(".")[0] not in known
        kept += [part] if wanted else []
    return kept


def _sample(name: str | None, rest: list[str]) -> int:
    run, config = _run_and_config(name)
    args = _parse(SampleArgs, f"ddpm sample {name or 'RUN'}", rest, default=SampleArgs(config))
    if args.batch_size < 1:
        raise UserError(f"batch_size must be at least 1; got {args.batch_size}.")

    join(args.parallel)

    from ddpm_jax.parallel import layout_of
    from ddpm_jax.training import samples

    labels = run.labels(args.config.num, args.labels)
    out = args.out or run.folder / "samples"
    check_writable(out)
    options = {"seed": args.seed, "batch_size": args.batch_size, "layout": layout_of(args.parallel)}
    drawing = samples.Drawing(run, args.config, **options)
    heading = f"{run.folder.name}, step {drawing.step}, {args.config.sampler}"
    drawn, paths = samples.draw_and_save(
        out,
        drawing,
        labels,
        args.config.num,
        num_frames=samples.FRAMES,
        heading=lambda drawn: f"{heading} {int(drawn.frame_steps[-1])}",
    )
    steps = int(drawn.frame_steps[-1])
    first = min(args.config.num, args.batch_size)
    speed = f"{first} samples in one call of {drawn.first_call_s:.1f} s, compilation included"
    if drawn.later_call_s is not None:
        speed += f"; each later call {drawn.later_call_s:.1f} s"
    which = {"ema": ", averaged weights", "params": ", weights not averaged"}.get(run.weights_at(drawing.step), "")
    print(f"{args.config.num} samples by {args.config.sampler} in {steps} steps{which}: {speed}")
    for path in paths:
        print(f"  {path}")
    return 0


def _plot(name: str | None, rest: list[str]) -> int:
    args = _parse(PlotArgs, f"ddpm plot {name or 'RUN'}", rest)

    from ddpm_jax.pictures import plot
    from ddpm_jax.training import open_run

    for path in plot(open_run(Path(str(name))), args.kinds, args.out, seed=args.seed, num=args.num):
        print(path)
    return 0


def _edit(name: str | None, rest: list[str]) -> int:
    run, config = _run_and_config(name)
    default = EditArgs(dataclasses.replace(config, num=8), "vary")
    args = _parse(EditArgs, f"ddpm edit {name or 'RUN'}", rest, default=default)

    from ddpm_jax.edits import edit

    options = {key: getattr(args, key) for key in ("images", "mask", "labels", "strength", "resample", "jump", "seed")}
    for path in edit(run, args.kind, args.out or run.folder / "edits" / args.kind, args.config, **options):
        print(path)
    return 0


def _evaluate(name: str | None, rest: list[str]) -> int:
    run, config = _run_and_config(name)
    points = run is not None and not run.holds_images
    default = EvaluateArgs(
        dataclasses.replace(config, num=10_000 if points else 500), batch_size=10_000 if points else 500
    )
    args = _parse(EvaluateArgs, f"ddpm evaluate {name or 'RUN'}", rest, default=default)
    if args.batch_size < 1:
        raise UserError(f"batch_size must be at least 1; got {args.batch_size}.")

    if args.likelihood and args.fid:
        raise UserError("--likelihood and --fid are two evaluations: give one of them.")
    if not args.fid and (args.fid_weights or args.fid_reference or args.fid_save):
        raise UserError("--fid-weights, --fid-reference and --fid-save belong to --fid, which is not given.")

    join(args.parallel)

    from ddpm_jax.parallel import layout_of
    from ddpm_jax.training import Drawing

    drawing = Drawing(run, args.config, seed=args.seed, batch_size=args.batch_size, layout=layout_of(args.parallel))
    options: dict[str, Any] = {"held_out": args.held_out}
    if args.likelihood:
        from ddpm_jax.evaluation import evaluate_likelihood

        found, path = evaluate_likelihood(drawing, **options)
        print(f"{found.table()}\n  {path}")
        return 0

    if args.num_real is not None:
        options["num_real"] = args.num_real
    if args.fid:
        from ddpm_jax.evaluation import evaluate_fid

        options |= {"weights": args.fid_weights, "reference": args.fid_reference, "save_reference": args.fid_save}
        evaluation, path = evaluate_fid(drawing, **options)
    else:
        from ddpm_jax.evaluation import evaluate_run

        evaluation, path = evaluate_run(drawing, **options)
    print(f"{evaluation.table()}\n  {path}")
    return 0


def _convert(source: str | None, rest: list[str]) -> int:
    from ddpm_jax import models

    network = None
    if "--network" in rest and rest.index("--network") + 1 < len(rest):
        at = rest.index("--network")
        network = rest[at + 1]
        rest = rest[:at] + rest[at + 2 :]
    default = ConvertArgs(models.configure(network or "unet", {}))
    if source is None:
        print("ddpm convert IN OUT [--network NAME] [options]\n\nNetworks: " + ", ".join(models.NETWORKS) + "\n")
        _parse(ConvertArgs, "ddpm convert IN OUT", rest, default=default)
    if not rest or rest[0].startswith("-"):
        raise UserError("ddpm convert needs an OUT after IN: ddpm convert IN OUT [--network NAME] [options].")
    args = _parse(ConvertArgs, f"ddpm convert {source} {rest[0]}", rest[1:], default=default)

    from ddpm_jax.conversion import convert

    for path in convert(Path(str(source)), Path(rest[0]), args.model if network else None, args.weights, args.to):
        print(path)
    return 0


def _import(source: str | None, rest: list[str]) -> int:
    args = _parse(ImportArgs, f"ddpm import {source or 'PATH_OR_HUB_ID'}", rest)

    from ddpm_jax.conversion import import_weights, recognised
    from ddpm_jax.training import open_run

    options = {key: value for key, value in vars(args).items() if key not in ("out", "openai", "ddp")}
    options |= {"openai": vars(args.openai), "ddp": vars(args.ddp)}
    out = import_weights(str(source), args.out, **options)
    print(out)
    for line in recognised(open_run(out)):
        print(f"  {line}")
    return 0


def _verify(name: str | None, rest: list[str]) -> int:
    args = _parse(VerifyArgs, "ddpm verify", ([name] if name else []) + rest)
    names = args.names or tuple(SYSTEMS)
    for known in names:
        if known not in SYSTEMS and not Path(known).is_dir():
            raise UserError(f"the network must be one of {', '.join(SYSTEMS)}, or a run folder; got {known!r}.")
    if args.weights is not None and (len(args.names) != 1 or names[0] not in SYSTEMS):
        raise UserError(f"--weights needs the name of the one network they belong to; got {len(args.names)} names.")

    import jax

    from ddpm_jax import models, verify
    from ddpm_jax.training import open_run

    weights: dict[str, Any] = {}
    if args.weights is not None:
        from ddpm_jax.conversion import fitted
        from ddpm_jax.weights import read_tensors

        weights = {"state_dict": fitted(models.configure(names[0], {}), read_tensors(args.weights))}
    reports = []
    for dtype in ("float64", "float32") if args.all else (args.dtype,):
        for known in names:
            options = {"dtype": dtype, "device": args.device, "seed": args.seed, **weights}
            if known in SYSTEMS:
                reports.append(verify.verify(known, **options))
            else:
                reports.append(verify.verify_run(open_run(Path(known)), **options))
            print(reports[-1].table(every_row=args.layers) + "\n", flush=True)
            jax.clear_caches()  # half a gigabyte of programs for each network
    for path in verify.write(reports, args.out):
        print(path)
    return 0 if all(report.ok for report in reports) else 1


def _benchmark(name: str | None, rest: list[str]) -> int:
    args = _parse(BenchmarkArgs, "ddpm benchmark", ([name] if name else []) + rest)
    from ddpm_jax import benchmark

    options = {key: getattr(args, key) for key in ("precision", "batch_size", "sample_size", "sampler", "sample_steps")}
    works = [benchmark.workload(known, **options) for known in args.names or benchmark.LIGHT]
    found = benchmark.benchmark(works, what=args.what, against=args.against, seconds=args.seconds, on_row=_print_row)
    print(f"\n{found.table()}\n")
    for path in benchmark.write(found, args.out):
        print(path)
    return 0


def _print_row(row: Any) -> None:
    compared = "" if row.ratio is None else f"; JAX is {row.ratio:.2f} times as fast"
    print(f"{row.workload} {row.what} {row.contender}: {row.per_s:.1f} examples/s{compared}", flush=True)


def _run_and_config(name: str | None) -> tuple[Any, SampleConfig]:
    if name is None:  # --help: no run to take the defaults from
        return None, SampleConfig()
    from ddpm_jax.training import open_run

    run = open_run(Path(name))
    return run, run.config.sample


def _parse(kind: type[Any], prog: str, rest: list[str], **options: Any) -> Any:
    return tyro.cli(kind, prog=prog, args=rest, **{"description": kind.__doc__, **options})


COMMANDS: dict[str, tuple[Callable[[str | None, list[str]], int], str, str]] = {
    "train": (_train, "PRESET", "train a network; leaves a run folder"),
    "finetune": (_finetune, "RUN", "train on from a run's weights, in a run folder of its own"),
    "sample": (_sample, "RUN", "draw samples from a run folder"),
    "evaluate": (_evaluate, "RUN", "measure the samples of a run folder"),
    "edit": (_edit, "RUN", "inpaint, vary or interpolate images with a run"),
    "plot": (_plot, "RUN", "draw pictures of a run folder"),
    "convert": (_convert, "IN OUT", "weights to and from PyTorch, safetensors, npz"),
    "import": (_import, "SOURCE", "weights of diffusers or OpenAI, from a path or the Hub"),
    "verify": (_verify, "[NAME ...]", "hold networks, or runs, to their PyTorch twins"),
    "benchmark": (_benchmark, "[NAME ...]", "measure speed beside the PyTorch twin"),
}


def _help() -> str:
    commands = "\n".join(f"  ddpm {name + ' ' + subject:<18} {what}" for name, (_, subject, what) in COMMANDS.items())
    presets = "\n".join(f"  {name:<28} {recipe.about}" for name, recipe in RECIPES.items())
    return (
        "Denoising diffusion in JAX.\n\n"
        f"{commands}\n\n"
        "  ddpm COMMAND --help      all options of a command\n"
        "  ddpm --version\n\n"
        f"Presets:\n{presets}\n\n"
        "Example:\n  ddpm train digits --out runs/digits\n  ddpm sample runs/digits --labels 3 7 --num 20"
    )


if __name__ == "__main__":
    sys.exit(main())
