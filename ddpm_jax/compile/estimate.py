"""A preset's program compiled for devices that are not here, and what is known of it then; kept by program."""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args

import jax

from ddpm_jax import parallel, progress
from ddpm_jax.cache import cache_folder
from ddpm_jax.compile.costs import costs
from ddpm_jax.compile.hlo import parse
from ddpm_jax.compile.programs import What, trace
from ddpm_jax.compile.report import Estimated, Memory, figures_of, from_json
from ddpm_jax.compile.topologies import Topology, topology
from ddpm_jax.errors import UserError
from ddpm_jax.files import write_text
from ddpm_jax.launch import ALL_DEVICES, ParallelConfig
from ddpm_jax.presets import Preset

Effort = Literal["quick", "full"]
EFFORTS: tuple[Effort, ...] = get_args(Effort)
"""quick: minutes for the largest networks; memory, operations and what is moved between devices hold, traffic with memory is up to
twice that of full, which is what a device runs and may take half an hour."""

_PACKAGES = {"tpu": ("jax", "libtpu"), "cuda": ("jax", "jax-cuda13-pjrt")}
_OPTIONS = ("jax_exec_time_optimization_effort", "jax_memory_fitting_effort")
_FORMAT = 1
"""The version of what is kept: counted up where its figures are found in another way."""


def estimate(
    preset: Preset,
    where: Topology | str,
    what: What = "train",
    *,
    spread: ParallelConfig = ALL_DEVICES,
    effort: Effort = "quick",
    name: str = "",
) -> Estimated:
    """What a program of a preset takes on devices that need not be there, by compiling it for them; nothing is run.

    where: a topology, as "v5e:2x4" or "h100:8". what: "train", a step; "sample", a walk of sample.num samples; "fid", the network
    of FID on a batch. spread: how the work is shared out. name: of the preset, for the report.

    A program that was compiled before, with the same versions, is not compiled again.

    Raises:
        UserError: no such topology, its compiler is not installed, what cannot be compiled for devices that are not there, a batch
            that they do not divide.
    """
    where = topology(where) if isinstance(where, str) else where
    if effort not in EFFORTS:
        raise UserError(f"effort must be one of {', '.join(EFFORTS)}; got {effort!r}.")
    if spread.mode == "pmap":
        raise UserError("--parallel pmap needs the devices themselves; compile data, which is the same work, or fsdp.")
    layout = parallel.layout_of(spread, where.devices())
    program = trace(preset, what, layout)
    lowered = program.lower()
    versions = {package: importlib.metadata.version(package) for package in _PACKAGES[where.chip.platform]}
    about: dict[str, Any] = {
        "preset": name or preset.model.network,
        "what": what,
        "topology": where.name,
        "devices": layout.size,
        "mode": spread.mode,
        "dtype": preset.train.dtype,
        "examples": program.examples,
        "steps": program.steps,
        "effort": effort,
        "versions": versions,
    }
    path = _kept(lowered, about)
    if path.exists():
        with contextlib.suppress(OSError, UserError):  # then it is compiled
            return dataclasses.replace(from_json(path.read_text()), **about, from_cache=True)
    found = _compiled(lowered, where, about)
    with contextlib.suppress(UserError):  # a folder that cannot be written to costs time alone
        write_text(path, found.to_json())
    return found


def _compiled(lowered: jax.stages.Lowered, where: Topology, about: dict[str, Any]) -> Estimated:
    what = f"compiling {about['preset']}, {about['what']}, for {where.name}"
    begun = time.perf_counter()
    with progress.bar(1, what, unit="program"), _at(about["effort"]):
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            memory = _out_of_memory(str(error), where.chip.memory)
            if memory is None:
                raise
            return Estimated(**about, fits=False, memory=memory, compile_s=time.perf_counter() - begun)
        seconds = time.perf_counter() - begun
    analysis: Any = compiled.memory_analysis()
    arguments, results, aliased = (
        float(getattr(analysis, f"{kind}_size_in_bytes")) for kind in ("argument", "output", "alias")
    )
    temporary = float(analysis.temp_size_in_bytes)
    peak = arguments + results - aliased + temporary
    memory = Memory(arguments, results - aliased, temporary, peak, where.chip.memory)
    counted = costs(parse(compiled.as_text() or ""))
    return figures_of(counted, where.chip, memory, compile_s=seconds, **about)


@contextlib.contextmanager
def _at(effort: Effort) -> Iterator[None]:
    before = {option: getattr(jax.config, option) for option in _OPTIONS}
    try:
        for option in _OPTIONS:
            jax.config.update(option, -1.0 if effort == "quick" else before[option])
        yield
    finally:
        for option, value in before.items():
            jax.config.update(option, value)


_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def _out_of_memory(message: str, capacity: float) -> Memory | None:
    """What XLA says of a program that does not fit; None: it says something else."""
    if "RESOURCE_EXHAUSTED" not in message:
        return None
    found = re.search(r"Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm", message)
    if found is None:
        return Memory(capacity=capacity)
    needed, there = (float(found[i]) * _UNITS[found[i + 1]] for i in (1, 3))
    return Memory(peak=needed, capacity=there)


def _kept(lowered: jax.stages.Lowered, about: dict[str, Any]) -> Path:
    """Where its figures are kept, by all that they depend on."""
    parts = [lowered.as_text(), about["topology"], about["effort"], json.dumps(about["versions"]), str(_FORMAT)]
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    return cache_folder("compiled") / f"{digest[:32]}.json"
