"""The command `ddpm`: its flags are made from the configs, and jax is imported only once there is work to do."""

import dataclasses
import logging
import shlex
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

import ddpm_jax
from ddpm_jax import model_configs as configs
from ddpm_jax.errors import UserError
from ddpm_jax.files import check_writable, keep_programs
from ddpm_jax.import_args import ImportArgs
from ddpm_jax.launch import ALL_DEVICES, ParallelConfig, join, leave, several
from ddpm_jax.presets import PRESETS, RECIPES, SYSTEMS, Preset, SampleConfig, preset

Flat = tyro.conf.arg(name="")


@dataclass(frozen=True, kw_only=True)
class TrainArgs:
    """Train a preset's network and leave checkpoints, metrics and pictures in a run folder."""

    config: Annotated[Preset, Flat]
    out: Path
    """The run folder."""
    resume: bool = False
    """Go on from the run folder's newest checkpoint."""
    overwrite: bool = False
    """Delete the run that is in the folder and start anew."""
    profile: bool = False
    """Record three calls of the compiled step in profile/, for TensorBoard or Perfetto."""
    parallel: ParallelConfig = ALL_DEVICES


@dataclass(frozen=True, kw_only=True)
class FinetuneArgs(TrainArgs):
    """Train on from a run's weights, on other data or a class of it, in a run folder of its own."""

    weights: Literal["ema", "params"] = "ema"
    """The averaged parameters, or those being trained."""


@dataclass(frozen=True)
class SampleArgs:
    """Draw samples from a run: an npz, a titled grid and a denoising animation."""

    config: Annotated[SampleConfig, Flat]
    labels: tuple[str, ...] = ()
    """Classes to draw, by name or number, in turn; all of them unless given."""
    seed: int = 0
    """Start of the random draws."""
    batch_size: int = 500
    """Samples drawn at a time, over all devices."""
    out: Path | None = None
    """Where to; RUN/samples unless given."""
    parallel: ParallelConfig = ALL_DEVICES


@dataclass(frozen=True)
class EvaluateArgs:
    """Draw samples from a run and measure them: of images class agreement, Fréchet and kernel distance in the features of a
    classifier of the run's data, and the distance to the nearest training image, or with --fid the figures of the literature in
    Inception's features; of points sliced Wasserstein distance and MMD."""

    config: Annotated[SampleConfig, Flat] = field(default_factory=lambda: SampleConfig(num=500))
    seed: int = 0
    """Start of the random draws."""
    batch_size: int = 500
    """Samples drawn at a time; points all at once."""
    num_real: int | None = None
    """Real images looked at, at most: 20,000, or with fid all there are, unless given."""
    held_out: str | None = None
    """Data that the run was not trained on, as tfds:mnist:test; a part of the run's own unless given."""
    likelihood: bool = False
    """Bits per dimension of num images by the variational bound, instead of measuring samples."""
    fid: bool = False
    """FID, KID, precision and recall in the features of Inception-v3, instead of the other figures; take --num 10000 or more."""
    fid_weights: Path | None = None
    """The weights of Inception-v3; those in the cache unless given."""
    fid_reference: Path | None = None
    """An .npz of mu and sigma, or of images as arr_0, to hold samples against; the run's data, or held_out, unless given."""
    fid_save: Path | None = None
    """Where to write mu and sigma of the data that samples are held against."""
    parallel: ParallelConfig = ALL_DEVICES


@dataclass(frozen=True)
class EditArgs:
    """Edit images with a run: inpaint draws what a mask hides, vary noises part of the way and denoises, interpolate walks from
    each image to the next; leaves edit.npz and edit.png."""

    config: Annotated[SampleConfig, Flat]
    kind: Annotated[Literal["inpaint", "vary", "interpolate"], tyro.conf.Positional]
    """What to do."""
    images: tuple[Path, ...] = ()
    """Image files; num images of the run's data unless given."""
    mask: str = "middle"
    """Of inpaint: left, right, top, bottom, middle, or an image that is white where to draw."""
    labels: tuple[str, ...] = ()
    """Classes to draw, by name or number, in turn; the images' own unless given."""
    strength: float = 0.5
    """Of vary: how far an image is noised, in (0, 1]."""
    resample: int = 10
    """Of inpaint: how often each stretch of the walk is taken (RePaint)."""
    jump: int = 10
    """Of inpaint: steps in a stretch."""
    seed: int = 0
    """Start of the random draws."""
    out: Path | None = None
    """Where to; RUN/edits/KIND unless given."""


@dataclass(frozen=True)
class PlotArgs:
    """Draw pictures of a run: samples, animation, one, middle, beside, noising, schedule, loss; all that fit it unless named."""

    kinds: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Which pictures."""
    num: int | None = None
    """Samples in a picture; as the run's config says unless given."""
    seed: int = 0
    """Start of the random draws."""
    out: Path | None = None
    """Where to; RUN/pictures unless given."""


@dataclass(frozen=True)
class ConvertArgs:
    """Weights from one form to another: a run folder, .safetensors, .npz, .pt; a checkpoint of an original network comes out under
    this project's names."""

    model: Annotated[configs.ModelConfig, tyro.conf.AvoidSubcommands]
    weights: Literal["ema", "params", "state"] = "ema"
    """Of a run: the averaged parameters, those being trained, or everything that training needs."""
    to: Literal["diffusers"] | None = None
    """Of a run of a unet: write a pipeline's folder that the library diffusers loads."""


@dataclass(frozen=True)
class VerifyArgs:
    """Hold networks to their PyTorch twins stage by stage; exit status 1 when a tolerance is broken."""

    names: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Networks, or run folders, whose own weights they then are; all networks unless given."""
    all: bool = False
    """All networks, in float64 and in float32."""
    weights: Path | None = None
    """Weights of the one network that is named: .pt, .pth, .safetensors or .npz, of an original or of this project."""
    dtype: Literal["float64", "float32"] = "float64"
    """What both sides compute in."""
    device: Literal["cpu", "gpu", "tpu"] = "cpu"
    """Where JAX computes; PyTorch stays on the CPU."""
    layers: bool = False
    """Print every quantity instead of the worst of each stage."""
    seed: int = 0
    """Start of the random draws."""
    out: Path = Path("verify")
    """Where report.json and report.html go."""


@dataclass(frozen=True)
class BenchmarkArgs:
    """Measure speed, JAX against the PyTorch twin at the same work in one run: forward passes, training, sampling."""

    names: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Networks or presets; all networks unless given."""
    what: tuple[Literal["forward", "train", "sample"], ...] = ("forward", "train", "sample")
    """What to measure."""
    against: tuple[Literal["torch", "torch.compile"], ...] = ("torch",)
    """PyTorch in eager mode, or compiled; JAX alone where torch is not installed."""
    precision: Literal["float32", "tf32", "bfloat16"] = "float32"
    """What both sides compute products in; tf32 on NVIDIA GPUs alone."""
    batch_size: int | None = None
    """Examples in a batch; a preset's own unless given, 16 for a network."""
    sample_size: int | None = None
    """Samples drawn at a time; as many as a batch has unless given."""
    sampler: str | None = None
    """ancestral, ddim, strided; euler, heun of flows; the author's unless given."""
    sample_steps: int | None = None
    """Denoising steps; the author's unless given."""
    seconds: float = 10.0
    """Of timed calls for each piece of work, in about."""
    out: Path = Path("benchmark")
    """Where benchmark.json and benchmark.png go."""


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit status: 0 done, 2 a mistake of the caller, 130 interrupted, 143 terminated after saving."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # what fails in Orbax is raised as well
    keep_programs()
    try:
        return _dispatch(arguments)
    except UserError as error:
        print(f"ddpm: {error}", file=sys.stderr)
        return leave(2)
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
        print(f"Presets: {', '.join(PRESETS)}. Their options, with the defaults of {next(iter(PRESETS))}:\n")
    chosen = preset(name or next(iter(PRESETS)))
    about = f"{TrainArgs.__doc__}\n\n{name}: {RECIPES[name].about}" if name else TrainArgs.__doc__
    args = _parse_training(TrainArgs, chosen, f"ddpm train {name or 'PRESET'}", rest, description=about)

    join(args.parallel)

    from ddpm_jax.training import train

    return _report_training(lambda: train(args.config, args.out, **_how(args)), args.out, f"ddpm train {name}", rest)


def _finetune(name: str | None, rest: list[str]) -> int:
    if name is None:
        _parse_training(
            FinetuneArgs, preset(next(iter(PRESETS))), "ddpm finetune RUN", rest, description=FinetuneArgs.__doc__
        )
    from ddpm_jax.training import finetune, open_run

    origin = open_run(Path(str(name)))
    # the length of an epoch is that of the new data
    chosen = dataclasses.replace(origin.config, train=dataclasses.replace(origin.config.train, epoch_steps=None))
    args = _parse_training(FinetuneArgs, chosen, f"ddpm finetune {name}", rest, description=FinetuneArgs.__doc__)
    join(args.parallel)

    return _report_training(
        lambda: finetune(origin, args.config, args.out, weights=args.weights, **_how(args)),
        args.out,
        f"ddpm finetune {name}",
        rest,
    )


def _how(args: TrainArgs) -> dict[str, Any]:
    return {key: getattr(args, key) for key in ("resume", "overwrite", "parallel", "profile")}


def _parse_training(kind: type[Any], chosen: Preset, prog: str, rest: list[str], **options: Any) -> Any:
    """The arguments of a command that trains, their defaults a preset's."""
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
        again = shlex.join(part for part in rest if part not in ("--overwrite", "--resume"))
        print(f"interrupted; step {outcome.step} is saved. Go on with:\n  {command} {again} --resume")
        return 128 + outcome.stopped_by
    print(f"trained to step {outcome.step} in {time.perf_counter() - begun:.0f} s, pictures included. In {out}:")
    print("  config.json, metrics.jsonl, tensorboard/, checkpoints/, samples.png, denoising.gif, samples.npz, loss.png")
    if (out / "profile").is_dir():
        print(
            "  profile/, for `tensorboard --logdir` with its profile plugin; perfetto_trace.json.gz in it, for ui.perfetto.dev"
        )
    return 0


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
    layout = layout_of(args.parallel)
    graphdef, variables, step = run.load(layout)
    drawn, paths = samples.draw_and_save(
        out,
        run,
        graphdef,
        variables,
        labels,
        args.config.num,
        heading=lambda drawn: f"{run.folder.name}, step {step}, {args.config.sampler} {int(drawn.frame_steps[-1])}",
        config=args.config,
        seed=args.seed,
        batch_size=args.batch_size,
        num_frames=samples.FRAMES,
        layout=layout,
    )
    steps = int(drawn.frame_steps[-1])
    first = min(args.config.num, args.batch_size)
    speed = f"{first} samples in one call of {drawn.first_call_s:.1f} s, compilation included"
    if drawn.later_call_s is not None:
        speed += f"; each later call {drawn.later_call_s:.1f} s"
    print(f"{args.config.num} samples by {args.config.sampler} in {steps} steps: {speed}")
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

    options = {"seed": args.seed, "batch_size": args.batch_size, "held_out": args.held_out}
    options["layout"] = layout_of(args.parallel)
    if args.likelihood:
        from ddpm_jax.evaluation import evaluate_likelihood

        found, path = evaluate_likelihood(run, args.config, **options)
        print(f"{found.table()}\n  {path}")
        return 0

    if args.num_real is not None:
        options["num_real"] = args.num_real
    if args.fid:
        from ddpm_jax.evaluation import evaluate_fid

        options |= {"weights": args.fid_weights, "reference": args.fid_reference, "save_reference": args.fid_save}
        evaluation, path = evaluate_fid(run, args.config, **options)
    else:
        from ddpm_jax.evaluation import evaluate_run

        evaluation, path = evaluate_run(run, args.config, **options)
    print(f"{evaluation.table()}\n  {path}")
    return 0


def _convert(source: str | None, rest: list[str]) -> int:
    network = None
    if "--network" in rest and rest.index("--network") + 1 < len(rest):
        at = rest.index("--network")
        network = rest[at + 1]
        rest = rest[:at] + rest[at + 2 :]
    default = ConvertArgs(configs.create(network or "unet", {}))
    if source is None:
        print("ddpm convert IN OUT [--network NAME] [options]\n\nNetworks: " + ", ".join(configs.NETWORKS) + "\n")
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

    from ddpm_jax.conversion import import_weights

    options = {key: value for key, value in vars(args).items() if key not in ("out", "openai", "ddp")}
    options |= {"openai": vars(args.openai), "ddp": vars(args.ddp)}
    print(import_weights(str(source), args.out, **options))
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

    from ddpm_jax import verify
    from ddpm_jax.training import open_run

    weights: dict[str, Any] = {}
    if args.weights is not None:
        from ddpm_jax.conversion import fitted
        from ddpm_jax.weights import read_tensors

        weights = {"state_dict": fitted(configs.create(names[0], {}), read_tensors(args.weights))}
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
    for option in ("batch_size", "sample_size", "sample_steps"):
        if (value := getattr(args, option)) is not None and value < 1:
            raise UserError(f"{option} must be at least 1; got {value}.")
    if not args.seconds > 0:
        raise UserError(f"seconds must be positive; got {args.seconds:g}.")

    from ddpm_jax import benchmark

    options = {key: getattr(args, key) for key in ("precision", "batch_size", "sample_size", "sampler", "sample_steps")}
    works = [benchmark.workload(known, **options) for known in args.names or tuple(SYSTEMS)]
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
