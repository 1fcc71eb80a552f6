"""`ddpm doctor`: what this machine computes with, how exactly, how fast, and into what folder: one screen, and JSON."""

import dataclasses
import functools
import importlib.metadata
import json
import math
import os
import platform
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import ddpm_jax
from ddpm_jax import benchmark, display, models, progress
from ddpm_jax.benchmark.workload import Workload
from ddpm_jax.compilation import compiler_options, once
from ddpm_jax.compile.chips import CHIPS, Chip
from ddpm_jax.compile.costs import costs
from ddpm_jax.compile.hlo import parse
from ddpm_jax.compile.programs import as_run
from ddpm_jax.compile.report import rate
from ddpm_jax.errors import UserError
from ddpm_jax.files import check_writable
from ddpm_jax.training.objective import step_of
from ddpm_jax.verify.tolerances import relative_error

PACKAGES = (
    "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "libtpu", "jax-cuda13-plugin", "jax-cuda13-pjrt",
    "jax-cuda12-plugin", "nvidia-cudnn-cu13", "nvidia-cudnn-cu12", "torch",
)  # fmt: skip
"""Versions that are told where they are installed."""
NETWORKS: dict[str, dict[str, Any]] = {
    "unet": {"image_size": 8, "channels": 1, "dim": 32, "dim_mults": (1, 2), "num_blocks": 1, "norm_groups": 8,
             "attention_resolutions": (4,)},
    "convnext_unet": {"image_size": 16},
    "conv_net": {"image_size": 16},
    "mlp": {},
}  # fmt: skip
"""What is computed in every precision: dense and depthwise convolutions, attention, norms, products of matrices."""
ALLOWED = {"highest": (1e-4, 1e-3), "default": (3e-2, 0.1), "bfloat16": (0.1, 0.3)}
"""precision -> largest relative error of outputs and of gradients beside float64. The default is float32 on CPUs, rounds factors to
TF32 on NVIDIA GPUs, 10 bits behind the point, and to bfloat16 on TPUs, 7 bits."""
KINDS = {
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
}
"""What devices call themselves that are in CHIPS; GPUs have the name within theirs."""
WRITTEN = 64 * 2**20
"""Bytes that are written to see how fast the folder is."""


@dataclass(frozen=True)
class Exactness:
    """A network on this device beside itself in float64 on the CPU."""

    network: str
    precision: str
    """highest, default or bfloat16."""
    output: float
    """Relative error of what it makes."""
    gradient: float
    """And of the gradients of all its parameters together."""
    seconds: float
    """What it took, compilation included."""

    __repr__ = display.of_fields

    @property
    def ok(self) -> bool:
        """Whether both are within ALLOWED."""
        output, gradient = ALLOWED[self.precision]
        return self.output <= output and self.gradient <= gradient


@dataclass(frozen=True)
class Speed:
    """A piece of work on this device."""

    what: str
    """train or sample."""
    images_per_s: float
    """Digits trained on, or drawn."""
    of_matrix_product: float | None
    """Its operations a second, as a share of those of a product of large matrices here."""
    of_bound: float | None
    """Its speed as a share of what its compiled program allows at the device's published peaks; None: they are not known."""
    beside_torch: float | None
    """How many times as fast as the PyTorch twin on this device; None: it is not installed."""

    __repr__ = display.of_fields


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What `examine` found."""

    versions: dict[str, str]
    """Of packages, Python, the driver."""
    devices: list[dict[str, Any]]
    """kind, memory in bytes where the device says, and how many of them there are."""
    environment: dict[str, str]
    """Variables that change what JAX and XLA do."""
    exactness: list[Exactness]
    """Of every network in every precision."""
    speed: list[Speed]
    """Of training, then of sampling."""
    memory: dict[str, float | None]
    """Bytes of a training step: estimated by the compiler; used at most on the device so far, where it says."""
    folder: dict[str, Any]
    """path, free_bytes, write_mb_per_s, read_mb_per_s."""
    seconds: float
    """What all this took."""

    def __repr__(self) -> str:
        return display.line(self, f"{len(self.exactness)} exactness", f"{len(self.speed)} speed", ok=self.ok)

    @property
    def ok(self) -> bool:
        """Whether every network came out as it should."""
        return all(each.ok for each in self.exactness)

    def to_json(self) -> str:
        """Everything."""
        return json.dumps(dataclasses.asdict(self) | {"ok": self.ok}, indent=2) + "\n"

    def table(self) -> str:
        """A screen of text."""
        devices = ", ".join(
            f"{each['count']} x {each['kind']}{_gigabytes(each['memory_bytes'])}" for each in self.devices
        )
        lines = [
            f"devices      {devices}",
            f"versions     {', '.join(f'{name} {version}' for name, version in self.versions.items())}",
            f"environment  {', '.join(f'{name}={value}' for name, value in self.environment.items()) or 'as it comes'}",
            "",
            f"{'beside float64 on the CPU':<27}{'precision':<12}{'output':>9}{'gradients':>11}{'allowed':>16}",
        ]
        for each in self.exactness:
            output, gradient = ALLOWED[each.precision]
            verdict = "" if each.ok else "  TOO FAR"
            allowed = f"{output:.0e}, {gradient:.0e}"
            lines.append(
                f"{each.network:<27}{each.precision:<12}{each.output:>9.1e}{each.gradient:>11.1e}{allowed:>16}{verdict}"
            )
        lines += [f"  {_told_of_default(self.devices[0]['platform'])}", ""]
        for found in self.speed:
            shares = [f"{found.of_matrix_product:.0%} of a matrix product's rate"] if found.of_matrix_product else []
            shares += [f"{found.of_bound:.0%} of the compiled bound"] if found.of_bound else []
            shares += [f"{found.beside_torch:.2f} times the PyTorch twin"] if found.beside_torch else []
            lines.append(
                f"{found.what:<13}{rate(found.images_per_s)} images/s of digits, batch 64: {', '.join(shares)}"
            )
        estimated, used = self.memory["estimated_bytes"], self.memory["used_bytes"]
        told = f"{used / 1e6:,.0f} MB used at most so far" if used else "the device does not say what is used"
        folder = self.folder
        return "\n".join(
            [
                *lines,
                f"memory       {(estimated or 0) / 1e6:,.0f} MB estimated for that training step; {told}",
                f"folder       {folder['path']}: {folder['free_bytes'] / 1e9:,.1f} GB free, written at "
                f"{folder['write_mb_per_s']:,.0f} MB/s, read at {folder['read_mb_per_s']:,.0f}",
                "",
                f"{'all is well' if self.ok else 'SOMETHING IS WRONG'}; {self.seconds:.0f} s",
            ]
        )


def examine(folder: Path = Path("."), *, seconds: float = 2.0) -> Diagnosis:
    """Look at this machine: minutes at most, with an accelerator or without.

    folder: where runs are to be kept. seconds: of timed calls for each piece of work.

    Raises:
        UserError: the folder cannot be written to, or seconds is not positive.
    """
    if not seconds > 0:
        raise UserError(f"seconds must be positive; got {seconds:g}.")
    check_writable(folder)
    begun = time.perf_counter()
    exactness = [
        _exactness(network, precision)
        for network in progress.each(NETWORKS, len(NETWORKS), "precision", unit="network")
        for precision in ALLOWED
    ]
    speed, memory = _speed(seconds)
    return Diagnosis(
        versions=_versions(),
        devices=_devices(),
        environment={
            name: os.environ[name]
            for name in sorted(os.environ)
            if name.startswith(("JAX_", "XLA_", "LIBTPU_", "NCCL_"))
        },
        exactness=exactness,
        speed=speed,
        memory=memory,
        folder=_folder(folder),
        seconds=time.perf_counter() - begun,
    )


def chip_of(kind: str) -> Chip | None:
    """The accelerator that calls itself so; None: it is not in CHIPS."""
    if kind in KINDS:
        return CHIPS[KINDS[kind]]
    return next((chip for name, chip in CHIPS.items() if chip.gpu and name in kind.lower()), None)


# Precision -------------------------------------------------------------------------------------------------------


def _exactness(network: str, precision: str) -> Exactness:
    begun = time.perf_counter()
    exact = _reference(network)
    dtype = "bfloat16" if precision == "bfloat16" else None
    wanted = "default" if dtype else precision
    with jax.default_matmul_precision(wanted):
        found = _computed(network, jax.devices()[0], "float32", dtype)
    output, gradient = (relative_error(ours, theirs) for ours, theirs in zip(found, exact, strict=True))
    return Exactness(network, precision, output, gradient, time.perf_counter() - begun)


@functools.cache
def _reference(network: str) -> tuple[np.ndarray, np.ndarray]:
    with jax.enable_x64(True):
        return _computed(network, jax.devices("cpu")[0], "float64", None)


def _computed(network: str, device: jax.Device, kept_in: str, dtype: str | None) -> tuple[np.ndarray, np.ndarray]:
    """Output, and gradients of its product with a fixed array, one after the other."""
    config = models.configure(network, NETWORKS[network])
    rng = np.random.default_rng(0)
    graphdef, variables = models.split(models.abstract(config))
    # of a size that keeps activations near 1; float32 throughout, so that both sides begin with the same numbers
    drawn = {
        "params": jax.tree.map(
            lambda a: (rng.standard_normal(a.shape) * max(1, math.prod(a.shape[:-1])) ** -0.5).astype(np.float32),
            variables["params"],
        ),
        "batch_stats": jax.tree.map(lambda a: np.ones(a.shape, np.float32), variables["batch_stats"]),
    }
    x_t, pull = (rng.standard_normal((4, *config.shape)).astype(np.float32) for _ in range(2))
    placed: Any = jax.device_put(jax.tree.map(lambda a: a.astype(kept_in), (drawn, x_t, pull)), device)

    def loss(params: Any, drawn: Any, x_t: jax.Array, pull: jax.Array) -> Any:
        numbers = jnp.arange(4, dtype=jnp.int32)
        labels = numbers if getattr(config, "num_classes", None) else None
        output = models.apply(graphdef, drawn | {"params": params}, x_t, 1 + 100 * numbers, labels, dtype=dtype)[0]
        return (output * pull).sum(), output

    def run(drawn: Any, x_t: jax.Array, pull: jax.Array) -> Any:
        (_, output), grads = jax.value_and_grad(loss, has_aux=True)(drawn["params"], drawn, x_t, pull)
        return output, grads

    program: Callable[..., Any] = jax.jit(run, compiler_options=once())
    output, grads = program(*placed)
    return np.asarray(output), np.concatenate([np.ravel(np.asarray(leaf)) for leaf in jax.tree.leaves(grads)])


def _told_of_default(kind: str) -> str:
    told = {
        "gpu": "default rounds float32 factors to TF32 (jax_default_matmul_precision = highest does not)",
        "tpu": "default rounds float32 factors to bfloat16 (jax_default_matmul_precision = highest does not)",
    }
    return told.get(kind, "default is float32 here")


# Speed and memory ------------------------------------------------------------------------------------------------


def _speed(seconds: float) -> tuple[list[Speed], dict[str, float | None]]:
    work = benchmark.workload("digits", sample_steps=10)
    found = benchmark.benchmark([work], what=("train", "sample"), seconds=seconds)
    estimated, bound_s = _compiled_step(work)
    rows = []
    for what in ("train", "sample"):
        ours, *others = (row for row in found.rows if row.what == what)
        share = bound_s / (ours.call_ms / 1000) if what == "train" and bound_s else None
        beside = next((row.ratio for row in others), None)
        rows.append(Speed(what, ours.per_s, ours.share_of_peak, share, beside))
    used = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return rows, {"estimated_bytes": estimated, "used_bytes": None if used is None else float(used)}


def _compiled_step(work: Workload) -> tuple[float, float | None]:
    """Bytes that a training step takes on this device, and seconds that it takes at least, where its peaks are known."""
    run = as_run(work.config)
    batch = {"x_0": jax.ShapeDtypeStruct((work.batch_size, *run.shape), jnp.float32)}
    key = jax.eval_shape(lambda: jax.random.key(0))
    step: Any = step_of(run.config).program()
    compiled = step.lower(run.abstract_state(), batch, key).compile(compiler_options())
    memory: Any = compiled.memory_analysis()
    size = float(
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
    )
    chip = chip_of(jax.devices()[0].device_kind)
    if chip is None:
        return size, None
    counted = costs(parse(compiled.as_text() or ""))
    arithmetic = sum(flops / chip.peak(dtype) for dtype, flops in counted.matrix_flops.items())
    return size, max(arithmetic, counted.bytes / chip.bandwidth)


# The machine -----------------------------------------------------------------------------------------------------


def _versions() -> dict[str, str]:
    found = {"ddpm-jax": ddpm_jax.__version__, "python": platform.python_version(), "system": platform.platform()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    if driver := _driver():
        found["driver"] = driver
    return found


def _driver() -> str | None:
    """NVIDIA's; None: there is none."""
    try:
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        said = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return next(iter(said.split()), None)


def _devices() -> list[dict[str, Any]]:
    kinds: dict[tuple[str, str], list[jax.Device]] = {}
    for device in jax.local_devices():
        kinds.setdefault((device.platform, device.device_kind), []).append(device)
    return [
        {
            "platform": platform_,
            "kind": kind,
            "count": len(devices),
            "memory_bytes": (devices[0].memory_stats() or {}).get("bytes_limit"),
        }
        for (platform_, kind), devices in kinds.items()
    ]


def _folder(folder: Path) -> dict[str, Any]:
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    block = os.urandom(2**20)
    with tempfile.TemporaryFile(dir=there) as file:
        begun = time.perf_counter()
        for _ in range(WRITTEN // len(block)):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        written = time.perf_counter()
        file.seek(0)
        while file.read(len(block)):
            pass
        read = time.perf_counter()
    return {
        "path": str(folder),
        "free_bytes": shutil.disk_usage(there).free,
        "write_mb_per_s": WRITTEN / 1e6 / (written - begun),
        "read_mb_per_s": WRITTEN / 1e6 / (read - written),
    }


def _gigabytes(size: float | None) -> str:
    return "" if not size else f" ({size / 1e9:.0f} GB)"
