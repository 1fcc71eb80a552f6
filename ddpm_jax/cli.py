"""The command `ddpm`: its flags are made from the configs, and jax is imported only once there is work to do."""

import contextlib
import dataclasses
import itertools
import logging
import os
import shlex
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ddpm_jax
from ddpm_jax import cache, progress, signals
from ddpm_jax.arguments import (
    BASICS,
    EXPORTS,
    AverageArgs,
    BenchmarkArgs,
    CompileArgs,
    ConvertArgs,
    DoctorArgs,
    EditArgs,
    EvaluateArgs,
    FinetuneArgs,
    ImportArgs,
    OnnxArgs,
    PlotArgs,
    RestoreArgs,
    RunFolderArgs,
    SampleArgs,
    StableHLOArgs,
    TrainArgs,
    VerifyArgs,
)
from ddpm_jax.class_names import class_index
from ddpm_jax.errors import UserError, meant
from ddpm_jax.files import check_writable, write_text
from ddpm_jax.launch import join, leave, several
from ddpm_jax.parsing import HELP, Command, HelpShown
from ddpm_jax.presets import RECIPES, SYSTEMS, Preset, SampleConfig, differences, preset
from ddpm_jax.run_config import RunConfig, read_run, read_tree
from ddpm_jax.run_names import Place, place_of


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit status: 0 done, 2 a mistake of the caller, 130 interrupted, 143 terminated after saving."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    warnings.showwarning = lambda message, *_: _show_warning(str(message))
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # what fails in Orbax is raised as well
    if why_not := cache.keep_programs():
        warnings.warn(why_not, stacklevel=2)
    try:
        status = _dispatch(arguments)
        sys.stdout.flush()  # here, where it may fail
        return status
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


def _show_warning(message: str) -> None:
    left_by_orbax = "was never awaited" in message  # where another read has failed, which is raised
    if cache.is_worth_saying(message) and not left_by_orbax:
        print(f"warning: {message}", file=sys.stderr)


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in HELP:
        print(_help())
        return 0
    if arguments[0] == "--version":
        print(f"ddpm-jax {ddpm_jax.__version__}")
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        raise UserError(
            f"the command must be one of {', '.join(COMMANDS)}; got {name!r}.{meant(name, COMMANDS)} See ddpm --help."
        )
    command, subject, _ = COMMANDS[name]
    with contextlib.suppress(HelpShown):
        return _called(name, command, subject, rest)
    return 0


def _called(name: str, command: Callable[[str | None, list[str]], int], subject: str, rest: list[str]) -> int:
    if rest and not rest[0].startswith("-"):
        return command(rest[0], rest[1:])
    if rest and rest[0] in HELP:
        return command(None, rest)
    if subject.startswith("["):
        return command(None, rest)
    raise UserError(f"ddpm {name} needs a {subject} first: ddpm {name} {subject} [options]. See ddpm {name} --help.")


def _train(name: str | None, rest: list[str]) -> int:
    if name is None:
        print(f"Presets: {', '.join(RECIPES)}. Their options, with the defaults of {next(iter(RECIPES))}:\n")
    asked = _places(f"ddpm train {name or 'PRESET'}", rest)
    chosen = preset(name or next(iter(RECIPES)))
    about = f"{TrainArgs.__doc__}"
    if name:
        about += f"\n\n{name}: {RECIPES[name].about} {RECIPES[name].expect}"
    args = _training_args(Command(TrainArgs, f"ddpm train {name or 'PRESET'}"), chosen, asked, rest, about)
    _check_data(args.config.data.source)
    join(args.parallel)

    if _says_finished(args, f"ddpm train {name}"):
        return 0

    from ddpm_jax.training import train

    return _report_training(lambda: train(args.config, args.out, **_how(args)), args.out, f"ddpm train {name}", rest)


def _finetune(name: str | None, rest: list[str]) -> int:
    about = f"{FinetuneArgs.__doc__}"
    if name is None:
        command = Command(FinetuneArgs, "ddpm finetune RUN")
        _training_args(command, preset(next(iter(RECIPES))), RunFolderArgs(), rest, about)
    folder = Path(str(name))
    read_tree(folder)
    asked = _places(f"ddpm finetune {name}", rest)
    chosen = _for_the_data_as_it_is(read_run(folder).config)
    args = _training_args(Command(FinetuneArgs, f"ddpm finetune {name}"), chosen, asked, rest, about)
    _check_data(args.config.data.source)
    join(args.parallel)

    if _says_finished(args, f"ddpm finetune {name}"):
        return 0

    from ddpm_jax.training import finetune, open_run

    return _report_training(
        lambda: finetune(open_run(folder), args.config, args.out, weights=args.weights, **_how(args)),
        args.out,
        f"ddpm finetune {name}",
        rest,
    )


def _training_args(command: Command, chosen: Preset, asked: RunFolderArgs, rest: list[str], about: str) -> Any:
    """The arguments of a command that trains: its defaults are those of the run that it is asked to resume, or else `chosen`."""
    command = dataclasses.replace(command, defaults={"config": chosen}, basics=BASICS[command.kind])
    command.show_help(rest, about)
    if asked.resume and asked.out is not None:
        config = read_run(asked.out).config
        theirs, ours = config.model.network, chosen.model.network
        if theirs != ours:
            raise UserError(
                f"{asked.out} is a run of the network {theirs}, and {command.prog} is of {ours}; "
                "go on with what it was started with."
            )
        chosen = _for_the_data_as_it_is(config)
    # steps and epochs replace each other: the one that is given makes room for itself
    given, length = {part.partition("=")[0].replace("_", "-") for part in rest}, chosen.train
    if "--train.steps" in given and "--train.epochs" not in given and length.steps is None:
        length = dataclasses.replace(length, steps=sys.maxsize, epochs=None)
    if "--train.epochs" in given and "--train.steps" not in given and length.epochs is None:
        length = dataclasses.replace(length, steps=None, epochs=1)
    chosen = dataclasses.replace(chosen, train=length)
    return dataclasses.replace(command, defaults={"config": chosen}).parse(rest)


def _places(prog: str, rest: list[str]) -> RunFolderArgs:
    """What a command that trains is told of places, which are seen to be there: the options of a network wait for jax."""
    asked = Command(RunFolderArgs, prog).known([] if set(HELP).intersection(rest) else rest)
    if asked.resume and asked.overwrite:
        raise UserError("--resume and --overwrite exclude each other: go on with the run, or start it anew.")
    if asked.resume and asked.out is not None:
        read_tree(asked.out)
    _check_data(asked.source)
    return asked


def _says_finished(args: TrainArgs, command: str) -> bool:
    """Whether a run that is to be resumed, with nothing changed, has all its steps and its pictures behind it; says so."""
    if not args.resume:
        return False
    recorded = read_run(args.out).config
    drawn = all((args.out / name).exists() for name in ("loss.png", "samples.png"))
    if not drawn or set(differences(recorded, args.config)) - {"train.epoch_steps"}:
        return False

    from ddpm_jax.training.checkpoints import damage

    total = recorded.train.total_steps
    newest = args.out / "checkpoints" / str(total)
    if not newest.is_dir() or damage(newest)[0] is not None:
        return False
    print(f"{args.out} is finished: it has all its {total} steps. To go on with more of them:")
    print(f"  {command} --out {shlex.quote(str(args.out))} --resume --train.steps {2 * total}")
    return True


def _check_data(source: str) -> None:
    from ddpm_jax.data.sources import check_there

    if source:
        check_there(source)


def _for_the_data_as_it_is(config: Preset) -> Preset:
    """A run's config for another one: the length of an epoch is found anew, so that data which has changed is noticed."""
    return dataclasses.replace(config, train=dataclasses.replace(config.train, epoch_steps=None))


def _how(args: TrainArgs) -> dict[str, Any]:
    return {key: getattr(args, key) for key in ("resume", "overwrite", "parallel", "profile")}


def _report_training(run: Callable[[], Any], out: Path, command: str, rest: list[str]) -> int:
    begun = time.perf_counter()
    again = f"Go on with: {command} {shlex.join([*_beside_the_config(rest), '--resume'])}"
    before = None if "--resume" in rest else _config_written(out)

    def so_far() -> str:
        step = _newest_step(out) if _config_written(out) != before else None
        return "interrupted." if step is None else f"interrupted; step {step} is saved. {again}"

    signals.tell(so_far)
    outcome = run()
    if outcome.stopped_by is not None:
        signals.say(f"interrupted; step {outcome.step} is saved. {again}")
        return 128 + outcome.stopped_by
    print(f"trained to step {outcome.step} in {time.perf_counter() - begun:.0f} s, pictures included. In {out}:")
    print("  config.json, metrics.jsonl, tensorboard/, checkpoints/, samples.png, denoising.gif, samples.npz, loss.png")
    if (out / "profile").is_dir():
        print(
            "  profile/, for `tensorboard --logdir` with its profile plugin; perfetto_trace.json.gz in it, for ui.perfetto.dev"
        )
    return 0


def _config_written(out: Path) -> int | None:
    """When a run's config.json was written, as a command that trains does first of all; None: it is not there."""
    path = out / "config.json"
    return path.stat().st_mtime_ns if path.exists() else None


def _newest_step(out: Path) -> int | None:
    """The newest step of the checkpoints in a run folder."""
    names = os.listdir(out / "checkpoints") if (out / "checkpoints").is_dir() else []
    return max((int(name) for name in names if name.isdecimal()), default=None)


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
    found = _read(name)
    args = _parse(SampleArgs, f"ddpm sample {name or 'RUN'}", rest, config=found.config.sample)
    if args.batch_size < 1:
        raise UserError(f"batch_size must be at least 1; got {args.batch_size}.")
    folder = Path(str(name))
    for label in args.labels if found.class_names else ():
        class_index(label, found.class_names, str(folder))
    out = args.out or found.place.results / "samples"
    check_writable(out)
    join(args.parallel)

    from ddpm_jax.parallel import layout_of
    from ddpm_jax.training import open_run, samples
    from ddpm_jax.training.conditions import of_files

    run = open_run(folder)
    labels = run.labels(args.config.num, args.labels)
    options: dict[str, Any] = {"seed": args.seed, "batch_size": args.batch_size, "layout": layout_of(args.parallel)}
    if args.condition:
        options["conditions"] = of_files(run, args.condition)
    drawing = samples.Drawing(run, args.config, **options)
    heading = f"{run.folder.name}, step {drawing.step}, {args.config.sampler.name}"
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
    print(f"{args.config.num} samples by {args.config.sampler.name} in {steps} steps{which}: {speed}")
    for path in paths:
        print(f"  {path}")
    return 0


def _plot(name: str | None, rest: list[str]) -> int:
    args = _parse(PlotArgs, f"ddpm plot {name or 'RUN'}", rest)
    folder = Path(str(name))
    read_run(folder)

    from ddpm_jax.pictures import plot
    from ddpm_jax.training import open_run

    for path in plot(open_run(folder), args.kinds, args.out, seed=args.seed, num=args.num):
        print(path)
    return 0


def _average(name: str | None, rest: list[str]) -> int:
    args = _parse(AverageArgs, f"ddpm average {name or 'RUN'}", rest)
    read_run(Path(str(name)))

    from ddpm_jax.conversion import average
    from ddpm_jax.training import open_run

    apart = average(open_run(Path(str(name))), args.length, args.out, step=args.step)
    print(
        f"{args.out}: an average of length {args.length:g}; its profile is {100 * apart:.2g} % from the one asked for"
    )
    return 0


def _edit(name: str | None, rest: list[str]) -> int:
    sampling = dataclasses.replace(_read(name).config.sample, num=8)
    args = _parse(EditArgs, f"ddpm edit {name or 'RUN'}", rest, config=sampling)

    from ddpm_jax.edits import edit
    from ddpm_jax.training import open_run

    run = open_run(Path(str(name)))
    for path in edit(run, args.kind, args.out or run.results / "edits" / args.kind, args.config, args.how):
        print(path)
    return 0


def _restore(name: str | None, rest: list[str]) -> int:
    sampling = dataclasses.replace(_read(name).config.sample, num=8)
    args = _parse(RestoreArgs, f"ddpm restore {name or 'RUN'}", rest, config=sampling)

    from ddpm_jax.restores import restore
    from ddpm_jax.training import open_run

    run = open_run(Path(str(name)))
    for path in restore(run, args.images, args.out or run.results / "restored", args.config, args.how):
        print(path)
    return 0


def _evaluate(name: str | None, rest: list[str]) -> int:
    run = _read(name)
    points = run.config.model is not None and len(run.config.model.shape) == 1
    many = 10_000 if points else 500
    sampling = dataclasses.replace(run.config.sample, num=many)
    args = _parse(EvaluateArgs, f"ddpm evaluate {name or 'RUN'}", rest, config=sampling, batch_size=many)
    if args.batch_size < 1:
        raise UserError(f"batch_size must be at least 1; got {args.batch_size}.")

    if args.likelihood and args.fid:
        raise UserError("--likelihood and --fid are two evaluations: give one of them.")
    if not args.fid and (args.fid_weights or args.fid_reference or args.fid_save):
        raise UserError("--fid-weights, --fid-reference and --fid-save belong to --fid, which is not given.")

    join(args.parallel)

    from ddpm_jax.parallel import layout_of
    from ddpm_jax.training import Drawing, open_run

    drawing = Drawing(
        open_run(Path(str(name))),
        args.config,
        seed=args.seed,
        batch_size=args.batch_size,
        layout=layout_of(args.parallel),
    )
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
    place = [] if source is None else rest[:1]
    if source is not None and (not place or place[0].startswith("-")):
        raise UserError("ddpm convert needs an OUT after IN: ddpm convert IN OUT [--network NAME] [options].")
    options = rest[len(place) :]
    prog = " ".join(["ddpm convert", source or "IN", *(place or ["OUT"])])
    if place and not set(HELP).intersection(options):
        check_writable(Path(place[0]).parent)
        source = str(place_of(str(source)).folder)
        if not Path(source).exists():
            raise UserError(f"{source} does not exist; ddpm convert takes a run folder, or a file of weights.")
    if place and Path(place[0]).suffix in EXPORTS:
        return _export(str(source), Path(place[0]), options)

    from ddpm_jax import models

    if source is None:
        print(f"Networks: {', '.join(models.NETWORKS)}.\n")
    network = _network_of(options)
    args = _parse(ConvertArgs, prog, options, model=models.configure(network or "unet", {}))

    from ddpm_jax.conversion import convert

    model = args.model if network else None
    for path in convert(Path(str(source)), Path(place[0]), model, args.weights, args.to):
        print(path)
    return 0


def _export(source: str, target: Path, rest: list[str]) -> int:
    kind, prog = EXPORTS[target.suffix], f"ddpm convert {source} {target}"
    asked = set(HELP).intersection(rest)
    if not asked:
        _check_run_to_export(Path(source), target)
    sampling = {"config": _read(None if asked else source).config.sample} if kind is StableHLOArgs else {}
    args = _parse(kind, prog, rest, **sampling)

    from ddpm_jax import export
    from ddpm_jax.training import open_run

    run = open_run(Path(source))
    if isinstance(args, OnnxArgs):
        error = export.to_onnx(run, target, args.weights)
        print(f"{target}\n  from JAX it differs by {error:.1e} of the largest output, in ONNX Runtime")
        return 0
    batch = export.to_stablehlo(run, target, args.config, args.what, args.weights)
    size = "any number of examples" if batch is None else f"{batch} examples (--num), no more and no fewer,"
    print(f"{target}\n  for {size} at a time, on cpu, cuda and tpu")
    return 0


def _check_run_to_export(source: Path, target: Path) -> None:
    """Sees that there is a run, and room for the file: what else could be taken for a run is told how to become one."""
    if target.is_dir():
        raise UserError(f"{target} is a folder; choose another name for the file.")
    made = f"{target.suffix} is made of a run folder"
    if source.is_file():
        raise UserError(
            f"{made}; {source} is a file. Make a run of its weights: ddpm convert {source} FOLDER --network NAME."
        )
    try:
        read_tree(source)
    except UserError:
        from ddpm_jax.conversion.folders import is_diffusers_folder

        if not is_diffusers_folder(source):
            raise
        raise UserError(
            f"{made}; {source} is one of diffusers. Make a run of it: ddpm import {source} --out FOLDER."
        ) from None


def _network_of(rest: list[str]) -> str | None:
    """The value of --network, on which depends what other options there are."""
    for part, after in itertools.pairwise([*rest, ""]):
        if part.startswith("--network="):
            return part.partition("=")[2]
        if part == "--network":
            return after
    return None


def _import(source: str | None, rest: list[str]) -> int:
    args = _parse(ImportArgs, f"ddpm import {source or 'PATH_OR_HUB_ID'}", rest)

    path = Path(str(source))
    if not path.exists() and (path.is_absolute() or len(path.parts) != 2):
        raise UserError(f"{source} does not exist, and is no id of the Hub (owner/name) either.")
    check_writable(args.out)

    from ddpm_jax.conversion import import_weights, recognised
    from ddpm_jax.training import open_run

    out = import_weights(str(source), args.out, args.how)
    print(out)
    for line in recognised(open_run(out)):
        print(f"  {line}")
    return 0


def _verify(name: str | None, rest: list[str]) -> int:
    args = _parse(VerifyArgs, "ddpm verify", ([name] if name else []) + rest)
    if args.traces is not None:
        return _verify_traces(args)
    if args.input or any(":" in known and not place_of(known).folder.exists() for known in args.names):
        return _verify_pair(args)
    names = args.names or tuple(SYSTEMS)
    for known in names:
        if known not in SYSTEMS and not place_of(known).folder.is_dir():
            raise UserError(
                f"the network must be one of {', '.join(SYSTEMS)}, or a run folder; got {known!r}.{meant(known, SYSTEMS)}"
            )
        if known not in SYSTEMS:
            read_run(Path(known))
    check_writable(args.out)
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


def _verify_pair(args: VerifyArgs) -> int:
    if len(args.names) != 2:
        raise UserError(
            f"a pair is jax_net:Model torch_net:Model, with --input for each argument; got {len(args.names)} names."
        )
    check_writable(args.out)
    names = _mapped(args.map)

    from ddpm_jax import verify
    from ddpm_jax.verify import loading

    inputs = loading.inputs_of(args.input, args.seed)
    jax_side, torch_side = (loading.load(spec, args.seed) for spec in args.names)
    options: dict[str, Any] = {
        "dtype": args.dtype,
        "device": args.device,
        "training": args.training,
        "title": " and ".join(args.names),
    }
    report = verify.compare(jax_side, torch_side, tuple(inputs.values()), names=names, **options)
    print(report.table(every_row=args.layers) + "\n", flush=True)
    for path in verify.write([report], args.out):
        print(path)
    return 0 if report.ok else 1


def _mapped(given: tuple[str, ...]) -> dict[str, str]:
    """--map as a dict."""
    renamed = [part.partition("=") for part in given]
    wrong = [part for part, (ours, _, theirs) in zip(given, renamed, strict=True) if not ours or not theirs]
    if wrong:
        raise UserError(f"--map takes JAX=TORCH, such as conv_in=stem.0; got {wrong[0]!r}.")
    return {ours: theirs for ours, _, theirs in renamed}


def _verify_traces(args: VerifyArgs) -> int:
    if args.traces is None or args.names or args.input or args.all or args.weights is not None:
        raise UserError("--traces are compared by themselves: leave out names, --input, --all and --weights.")
    check_writable(args.out)
    names = _mapped(args.map)

    from ddpm_jax import verify

    report = verify.compare_traces(*args.traces, names=names)
    print(report.table(every_row=args.layers) + "\n", flush=True)
    for path in verify.write([report], args.out):
        print(path)
    return 0 if report.ok else 1


def _benchmark(name: str | None, rest: list[str]) -> int:
    args = _parse(BenchmarkArgs, "ddpm benchmark", ([name] if name else []) + rest)
    check_writable(args.out)

    from ddpm_jax import benchmark

    options = {key: getattr(args, key) for key in ("precision", "batch_size", "sample_size", "sampler", "sample_steps")}
    works = [benchmark.workload(known, **options) for known in args.names or benchmark.LIGHT]
    found = benchmark.benchmark(works, what=args.what, against=args.against, seconds=args.seconds, on_row=_print_row)
    print(f"\n{found.table()}\n")
    for path in benchmark.write(found, args.out):
        print(path)
    return 0


def _compile(name: str | None, rest: list[str]) -> int:
    if "jax" not in sys.modules:
        os.environ["JAX_PLATFORMS"] = "cpu"  # devices that are here are not needed
    if name is None:
        print(f"Presets: {', '.join(RECIPES)}. Their options, with the defaults of {next(iter(RECIPES))}:\n")
    chosen = preset(name or next(iter(RECIPES)))
    args = _parse(CompileArgs, f"ddpm compile {name or 'PRESET'}", rest, config=chosen)
    if args.out is not None:
        check_writable(args.out.parent)

    from ddpm_jax import compile as compiling

    where = compiling.topology(args.topology)
    found = []
    for what in args.what:
        options = {"spread": args.parallel, "name": name}
        found.append(compiling.estimate(args.config, where, what, effort=args.effort, **options))
        print(found[-1].table() + "\n", flush=True)
        if args.largest_batch and what != "fid":
            size = compiling.largest_batch(args.config, where, what, **options)
            print(f"largest batch that fits: {size or 'none'}\n", flush=True)
    if args.out is not None:
        text = "[\n" + ",\n".join(each.to_json().rstrip() for each in found) + "\n]\n"
        print(write_text(args.out, text))
    return 0 if all(each.fits for each in found) else 1


def _doctor(name: str | None, rest: list[str]) -> int:
    args = _parse(DoctorArgs, "ddpm doctor", ([name] if name else []) + rest)
    if args.out is not None:
        check_writable(args.out.parent)

    from ddpm_jax.doctor import examine

    found = examine(args.folder, seconds=args.seconds)
    print(found.table())
    if args.out is not None:
        print(write_text(args.out, found.to_json()))
    return 0 if found.ok else 1


def _print_row(row: Any) -> None:
    compared = "" if row.ratio is None else f"; JAX is {row.ratio:.2f} times as fast"
    progress.say(f"{row.workload} {row.what} {row.contender}: {row.per_s:.1f} examples/s{compared}")


def _read(name: str | None) -> RunConfig:
    """The config of the run that a command is given; with --help and no run, one of no network, for which jax is not imported."""
    if name is None:
        return RunConfig(Preset(model=None, sample=SampleConfig()), (), {}, None, Place(Path("RUN")))
    return read_run(Path(name))


def _parse(kind: type[Any], prog: str, rest: list[str], **defaults: Any) -> Any:
    return Command(kind, prog, defaults, BASICS.get(kind, ())).parse(rest)


DOORS: dict[str, dict[str, tuple[Callable[[str | None, list[str]], int], str, str]]] = {
    "Train, draw, edit": {
        "train": (_train, "PRESET", "train a network; leaves a run folder"),
        "finetune": (_finetune, "RUN", "train on from a run's weights, in a run folder of its own"),
        "sample": (_sample, "RUN", "draw samples from a run folder"),
        "edit": (_edit, "RUN", "inpaint, vary or interpolate images with a run"),
        "restore": (_restore, "RUN", "images from what a blur, a mask or fewer pixels left"),
        "plot": (_plot, "RUN", "draw pictures of a run folder"),
        "average": (_average, "RUN", "an average of another length, of a run's checkpoints"),
    },
    "Port a network": {
        "verify": (_verify, "[NAME ...]", "hold your JAX network to its PyTorch original, or ours to their twins"),
        "convert": (_convert, "IN OUT", "weights to and from PyTorch, safetensors, npz; ONNX, StableHLO"),
        "import": (_import, "SOURCE", "weights of diffusers or OpenAI, from a path or the Hub"),
    },
    "Plan and measure": {
        "compile": (_compile, "PRESET", "does it fit, how fast at most: on devices that are not here"),
        "benchmark": (_benchmark, "[NAME ...]", "measure speed beside the PyTorch twin"),
        "evaluate": (_evaluate, "RUN", "measure the samples of a run folder"),
        "doctor": (_doctor, "[OPTIONS]", "whether this machine computes right, and how fast"),
    },
}
"""What somebody comes for -> the commands for it: function, what it is given first, and what it does."""

COMMANDS = {name: command for commands in DOORS.values() for name, command in commands.items()}


def _help() -> str:
    lines: list[str] = []
    for door, behind in DOORS.items():
        lines += [f"{door}:"]
        lines += [f"  ddpm {name + ' ' + subject:<20} {what}" for name, (_, subject, what) in behind.items()]
        lines += [""]
    commands = "\n".join(lines)
    presets = "\n".join(f"  {name:<28} {recipe.about}" for name, recipe in RECIPES.items())
    return (
        "Denoising diffusion in JAX.\n\n"
        f"{commands}\n"
        "  ddpm COMMAND --help       what a command takes; --help-all: every option\n"
        "  ddpm --version\n\n"
        f"Presets:\n{presets}\n\n"
        "Begin with one of these:\n"
        "  ddpm sample pretrained:digits                                # draw from a network that is trained already\n"
        "  ddpm train images --data.source FOLDER --out runs/mine       # train one on your own pictures\n"
        "  ddpm verify jax_net:Model torch_net:Model --input x=2,3,32,32\n"
        "  ddpm doctor                                                  # look at this machine"
    )


if __name__ == "__main__":  # as python -m ddpm_jax.cli
    from ddpm_jax.__main__ import main as program

    sys.exit(program())
