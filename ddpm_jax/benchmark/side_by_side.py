"""The benchmark itself: JAX and the PyTorch contenders at the same work, in turn, in one run."""

import contextlib
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from importlib.util import find_spec
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.compilation_cache import compilation_cache

import ddpm_jax
from ddpm_jax import processors, progress
from ddpm_jax.benchmark.jax_side import MATMUL, JaxSide
from ddpm_jax.benchmark.report import Report, Row
from ddpm_jax.benchmark.timing import TURN, Contender, Facts, Timing, alternate, ratios
from ddpm_jax.benchmark.worker import Worker
from ddpm_jax.benchmark.workload import WHAT, Precision, What, Workload
from ddpm_jax.errors import UserError, fits_memory
from ddpm_jax.files import scratch_folder

BUSY = 0.8
"""Processes that want a core, by the load of the last minute, from which a measurement is not to be trusted."""


def benchmark(
    works: Sequence[Workload],
    *,
    what: Sequence[What] = WHAT,
    against: Sequence[str] = ("torch",),
    seconds: float = 10.0,
    on_row: Callable[[Row], object] = lambda row: None,
) -> Report:
    """Measure every piece of work of every workload, all contenders in turn; all workloads are of one precision.

    against: "torch" (eager), "torch.compile", "diffusers" (their network, eager). seconds: of timed calls for each piece of work.
    on_row: told of each row as it comes.

    Raises:
        UserError: seconds out of range; a precision that the device lacks; a workload that does not fit the device's memory.
    """
    if not seconds > 0:  # true for NaN too
        raise UserError(f"seconds must be positive; got {seconds:g}.")
    (precision,) = {work.precision for work in works}
    device = jax.devices()[0]
    _check_precision(precision, device)
    compared = list(against)
    report = Report({})
    if device.platform == "cpu" and (load := _load()) > BUSY:
        report.notes.append(
            f"other work kept {load:.1f} of {processors.count()} cores busy in the minute before: times and ratios "
            "are of a shared machine, and say little. Measure again when it is idle."
        )
    if compared and not find_spec("torch"):
        report.notes.append('PyTorch is not installed, so JAX alone was measured: pip install "ddpm-jax[torch]".')
        compared = []
    with _conditions(precision), contextlib.ExitStack() as stack:
        workers = {name: stack.enter_context(Worker(name, _torch_device(device))) for name in compared}
        peak = _matmul_peak(precision, device)
        report.environment = _environment(precision, device, peak, torch=bool(compared))
        parts = [(work, part) for work in works for part in what]
        for work, part in progress.each(parts, len(parts), "benchmark", unit="piece"):
            found, notes = _measure(work, part, workers, seconds, peak)
            report.rows += found
            report.notes += notes
            for row in found:
                on_row(row)
            jax.clear_caches()
    return report


def _measure(
    work: Workload, what: What, workers: Mapping[str, Worker], seconds: float, peak: float
) -> tuple[list[Row], list[str]]:
    notes = []
    with fits_memory(_advice(work, what)):
        calls: dict[str, Contender] = {"jax": JaxSide(work).call(what)}
        for name, worker in workers.items():
            try:
                worker.prepare(work, what)
                calls[name] = worker
            except UserError as error:
                notes.append(f"{work.name} {what} {name}: not measured. {error}")
        timings = alternate(calls, seconds=seconds, turn=min(TURN, seconds))
        facts = {name: call.facts() for name, call in calls.items()}
    flops = facts["jax"].flops
    return [_row(work, what, name, calls[name], timings, facts[name], flops, peak) for name in calls], notes


def _load() -> float:
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def _torch_device(device: jax.Device) -> str:
    return "cuda" if device.platform == "gpu" else "cpu"


def _row(
    work: Workload,
    what: str,
    name: str,
    call: Contender,
    timings: dict[str, Timing],
    facts: Facts,
    flops: float | None,
    peak: float,
) -> Row:
    timing, found = timings[name], ratios(timings["jax"], timings[name])
    low, high = np.quantile(found, [0.25, 0.75])
    return Row(
        workload=work.name,
        what=what,
        contender=name,
        examples=call.examples,
        call_ms=1000 * timing.median,
        quartiles_ms=(1000 * timing.quartiles[0], 1000 * timing.quartiles[1]),
        calls=len(timing.later),
        compile_s=max(timing.first - timing.median, 0.0),
        from_cache_s=facts.from_cache_s,
        memory_mib=None if facts.memory is None else facts.memory / 2**20,
        gflop_per_example=None if flops is None else flops / call.examples / 1e9,
        share_of_peak=None if flops is None else flops / timing.median / peak,
        ratio=None if name == "jax" else float(np.median(found)),
        ratio_quartiles=None if name == "jax" else (float(low), float(high)),
    )


def _check_precision(precision: Precision, device: jax.Device) -> None:
    if precision == "tf32" and device.platform != "gpu":
        raise UserError(
            f"precision tf32 belongs to NVIDIA GPUs; this is a {device.device_kind}. Use float32 or bfloat16."
        )


@contextlib.contextmanager
def _conditions(precision: Precision) -> Iterator[None]:
    """The precision asked for, and programs that are compiled here and then kept: in a folder that is thrown away."""
    with contextlib.ExitStack() as stack:
        folder = str(stack.enter_context(scratch_folder()))
        if jax.devices()[0].platform == "gpu":
            stack.enter_context(jax.default_matmul_precision(MATMUL[precision]))
        kept = {
            "jax_compilation_cache_dir": folder,
            "jax_persistent_cache_min_compile_time_secs": 0.0,
        }
        before = {name: getattr(jax.config, name) for name in kept}
        for name, value in kept.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        try:
            yield
        finally:
            for name, value in before.items():
                jax.config.update(name, value)
            compilation_cache.reset_cache()


def _advice(work: Workload, what: What) -> str:
    size = work.sample_size if what == "sample" else work.batch_size
    flag = "--sample-size" if what == "sample" else "--batch-size"
    return (
        f"{work.name} {what}: {size} examples do not fit into memory. Try {flag} {max(1, size // 2)}. A training run can also take "
        "--train.accumulate 2 or --train.remat, and sampling a smaller --batch-size."
    )


def _matmul_peak(precision: Precision, device: jax.Device) -> float:
    """Floating-point operations a second in a product of two large square matrices, the best of ten."""
    size = 8192 if device.platform == "gpu" else 2048
    dtype = jnp.bfloat16 if precision == "bfloat16" else jnp.float32
    a = jnp.ones((size, size), dtype)
    product = jax.jit(lambda a: a @ a)
    product(a).block_until_ready()
    seconds = []
    for _ in range(10):
        begun = time.perf_counter()
        product(a).block_until_ready()
        seconds.append(time.perf_counter() - begun)
    return 2 * size**3 / min(seconds)


def _environment(precision: Precision, device: jax.Device, peak: float, *, torch: bool) -> dict[str, Any]:
    found = {
        "device": device.device_kind,
        "machine": f"{platform.machine()}, {processors.count()} cores",
        "precision": precision,
        "matrix product": f"{peak / 1e9:.0f} GFLOP/s",
        "GLIBC_TUNABLES": os.environ.get("GLIBC_TUNABLES", "none"),
        "ddpm_jax": ddpm_jax.__version__,
        "jax": jax.__version__,
        "python": platform.python_version(),
    }
    if torch:
        found["torch"] = metadata.version("torch")
    return found
