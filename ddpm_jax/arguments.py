"""What each command of `ddpm` takes: the command line's flags are made from these."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from ddpm_jax.launch import ALL_DEVICES, ParallelConfig
from ddpm_jax.presets import EditConfig, ImportConfig, Preset, RestoreConfig, SampleConfig

Flat = tyro.conf.arg(name="")


@dataclass(frozen=True, kw_only=True)
class TrainArgs:
    """Train a preset's network and leave checkpoints, metrics and pictures in a run folder."""

    config: Annotated[Preset, Flat]
    out: Path
    """The run folder."""
    resume: bool = False
    """Go on from the run folder's newest checkpoint; its config.json has the options, and what is given now is laid over them."""
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
    """Classes to draw, in turn, by name, or by position from 0 where no class's name is a number; all of them unless given."""
    condition: tuple[Path, ...] = ()
    """For a run with data.condition: image files to show, in turn, which hold what that leaves of an image (small, grey, or with a
    part missing); unless given, what it leaves of images of the run's data."""
    seed: int = 0
    """Start of the random draws."""
    batch_size: int = 500
    """Samples drawn at a time, over all devices; what is drawn does not depend on it."""
    out: Path | None = None
    """Where to; RUN/samples unless given."""
    parallel: ParallelConfig = ALL_DEVICES


@dataclass(frozen=True)
class EvaluateArgs:
    """Draw samples from a run and measure them: of images class agreement, Fréchet and kernel distance in the features of a
    classifier of the run's data, and the distance to the nearest training image, or with --fid the figures of the literature in
    Inception's features; of points sliced Wasserstein distance and MMD."""

    config: Annotated[SampleConfig, Flat]
    seed: int = 0
    """Start of the random draws."""
    batch_size: int = 500
    """Samples drawn at a time; points all at once. What is drawn does not depend on it."""
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
    kind: Annotated[Literal["inpaint", "vary", "interpolate"], tyro.conf.Positional] = "vary"
    """What to do."""
    how: Annotated[EditConfig, Flat] = field(default_factory=EditConfig)
    out: Path | None = None
    """Where to; RUN/edits/KIND unless given."""


@dataclass(frozen=True)
class RestoreArgs:
    """Restore images from what a linear operator left of them: fewer pixels, a blur, a mask, one channel; leaves restore.npz and
    restore.png. The images are the measurements, as large as the operator makes them; or whole ones, with --degrade."""

    config: Annotated[SampleConfig, Flat]
    images: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Image files; num images of the run's data, degraded, unless given."""
    how: Annotated[RestoreConfig, Flat] = field(default_factory=RestoreConfig)
    out: Path | None = None
    """Where to; RUN/restored unless given."""


@dataclass(frozen=True)
class PlotArgs:
    """Draw pictures of a run: samples, animation, one, walk, middle, beside, nearest, noising, schedule, loss; all that fit it
    unless named."""

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
    this project's names. Or a run as a program: OUT.onnx, OUT.stablehlo, whose options `ddpm convert RUN OUT.onnx --help` shows."""

    model: Any
    network: str | None = None
    """Which network a file's weights belong to: its options are then those of --model."""
    weights: Literal["ema", "params", "state"] = "ema"
    """The averaged parameters, or those being trained; or, of a run, everything that training needs."""
    to: Literal["diffusers", "dit", "packed"] | None = None
    """diffusers: of a run of a unet, a pipeline's folder that this library loads; dit: of one of a dit, a file with the names of
    facebookresearch/DiT; packed: the run with its averaged weights alone, in 16 bits, to keep or to publish."""


@dataclass(frozen=True)
class OnnxArgs:
    """A run's network as ONNX, for any size of batch, held to JAX by ONNX Runtime before it is kept."""

    weights: Literal["ema", "params"] = "ema"
    """The averaged parameters, or those being trained."""


@dataclass(frozen=True)
class StableHLOArgs:
    """A run as a program that jax alone runs, for CPU, NVIDIA GPU and TPU in one file, weights included."""

    config: Annotated[SampleConfig, Flat]
    what: Literal["sample", "denoise"] = "sample"
    """A whole walk from a seed to samples; or one estimate (x_0, eps) of a noised batch, guided and bounded as the options say."""
    weights: Literal["ema", "params"] = "ema"
    """The averaged parameters, or those being trained."""


EXPORTS: dict[str, type] = {".onnx": OnnxArgs, ".stablehlo": StableHLOArgs}
"""Suffix of OUT -> what `ddpm convert` takes for it."""


@dataclass(frozen=True, kw_only=True)
class AverageArgs:
    """Make an average of another length of a run that was trained with --train.ema-lengths, of all the checkpoints that it keeps
    (--train.keep-every): a run folder of its own (Karras et al. 2024)."""

    length: float
    """How far the average looks back, as a share of the training, in (0, 0.28]."""
    out: Path
    """The new run folder."""
    step: int | None = None
    """After how many steps; those of the newest checkpoint unless given."""


@dataclass(frozen=True, kw_only=True)
class ImportArgs:
    """Make a run folder of other libraries' weights: a folder of a UNet2DModel or of its pipeline (diffusers), from a path or from
    the Hugging Face Hub; or a checkpoint of improved-diffusion, guided-diffusion, denoising-diffusion-pytorch or
    facebookresearch/DiT."""

    out: Path
    """The run folder."""
    how: Annotated[ImportConfig, Flat] = field(default_factory=ImportConfig)


@dataclass(frozen=True)
class VerifyArgs:
    """Hold networks to their PyTorch twins, or any JAX side to any PyTorch side; exit status 1 when a tolerance is broken."""

    names: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Networks, or run folders, whose own weights they then are; all networks unless given. Or a pair of your own: jax_net:Model
    torch_net:Model, classes or functions without arguments of modules in this folder."""
    input: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """For a pair, each argument in turn: NAME=SHAPE in PyTorch's order of axes, such as x=2,3,32,32; t=2:1000 for integers below
    1000; NAME=FILE.npy."""
    map: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """For a pair: JAX=TORCH, for layers that have another name there."""
    training: bool = False
    """For a pair: compare in training mode."""
    traces: tuple[Path, Path] | None = None
    """Two files that verify.record wrote, to compare instead; with --map where layers are called differently."""
    all: bool = False
    """All networks, in float64 and in float32."""
    weights: Path | None = None
    """Weights of the one network that is named: .pt, .pth, .safetensors or .npz, of an original or of this project; the averaged
    ones of a .pt that holds both."""
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
    """Networks or presets; all networks but the heavy ones (unet, double_conv_unet, rms_unet, edm_unet, dit, convnext_unet_224)
    unless given."""
    what: tuple[Literal["forward", "train", "sample"], ...] = ("forward", "train", "sample")
    """What to measure."""
    against: tuple[Literal["torch", "torch.compile", "diffusers"], ...] = ("torch",)
    """The PyTorch twin in eager mode, or compiled, or a network of diffusers, of unet; JAX alone where torch is not installed."""
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
    """How long calls are timed for each piece of work, in about."""
    out: Path = Path("benchmark")
    """Where benchmark.json and benchmark.png go."""


@dataclass(frozen=True, kw_only=True)
class CompileArgs:
    """Compile a preset's programs for TPUs or GPUs that are not here: whether they fit, operations, traffic, and the speed that
    follows at most. Nothing is run."""

    config: Annotated[Preset, Flat]
    topology: str
    """CHIP:SIZE, as v5e:2x4 (TPU chips along each side) or h100:8 (GPUs); a chip alone says which sizes there are."""
    what: tuple[Literal["train", "sample", "fid"], ...] = ("train",)
    """A step of training, a walk of sample.num samples, the network of FID."""
    effort: Literal["quick", "full"] = "quick"
    """full: as for a device, up to half an hour; quick: minutes, memory and operations hold, traffic with memory is more."""
    largest_batch: bool = False
    """Find the largest batch that fits as well, by compiling several."""
    out: Path | None = None
    """Where to write the figures as JSON; nowhere unless given."""
    parallel: ParallelConfig = ALL_DEVICES


@dataclass(frozen=True)
class DoctorArgs:
    """Look at this machine: devices, versions, whether networks come out right in every precision, speed, memory, the folder for
    runs. One screen; takes minutes at most, with an accelerator or without."""

    folder: Path = Path("runs")
    """Where runs are to be kept; nothing is left in it."""
    out: Path | None = None
    """Where to write all of it as JSON, for the report of a bug; nowhere unless given."""
    seconds: float = 2.0
    """How long calls are timed for each piece of work, in about."""


@dataclass(frozen=True)
class RunFolderArgs:
    """What a command that trains reads before the rest, whose defaults depend on it."""

    out: Path | None = None
    resume: bool = False
    overwrite: bool = False
    source: Annotated[str, tyro.conf.arg(name="data.source")] = ""


BASICS: dict[type, tuple[str, ...]] = {
    TrainArgs: (
        "out", "resume", "overwrite", "config.data.source", "config.model.image_size", "config.train.steps",
        "config.train.epochs", "config.train.batch_size", "config.train.lr", "config.train.dtype", "parallel.mode",
    ),
    FinetuneArgs: (
        "out", "resume", "overwrite", "config.data.source", "config.data.classes", "config.train.steps",
        "config.train.batch_size", "config.train.lr", "weights", "parallel.mode",
    ),
    SampleArgs: (
        "config.num", "labels", "config.sampler", "config.steps", "config.guidance", "seed", "batch_size", "out",
        "parallel.mode",
    ),
    EvaluateArgs: (
        "config.num", "config.sampler", "config.steps", "config.guidance", "fid", "likelihood", "held_out", "seed",
        "batch_size", "parallel.mode",
    ),
    EditArgs: (
        "kind", "how.images", "config.num", "how.mask", "how.strength", "how.labels", "config.sampler", "config.steps",
        "how.seed", "out",
    ),
    RestoreArgs: (
        "images", "how.operator", "how.method", "how.noise", "how.degrade", "how.labels", "config.num", "config.sampler",
        "config.steps", "how.seed", "out",
    ),
    CompileArgs: (
        "topology", "what", "effort", "largest_batch", "out", "config.model.image_size", "config.train.batch_size",
        "config.train.dtype", "config.train.remat", "config.sample.num", "config.sample.steps", "parallel.mode",
    ),
    StableHLOArgs: ("what", "config.sampler", "config.steps", "config.guidance", "config.clip", "weights"),
    ConvertArgs: ("network", "weights", "to", "model.image_size", "model.channels", "model.num_classes"),
    ImportArgs: (
        "out", "how.weights", "how.variant", "how.revision", "how.data", "how.image_size", "how.num_classes",
        "how.scheduler",
    ),
}  # fmt: skip
"""The fields that a newcomer needs, which --help shows; --help-all shows all of them. Of the other commands both show all."""
