"""Over which devices and processes a command runs: its options, joining the other processes, and agreeing with them.

Free of jax until it joins.
"""

import json
import os
import pickle
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, TypeVar

import tyro

from ddpm_jax import progress, signals
from ddpm_jax.errors import UserError

T = TypeVar("T")

MIN_SHARD = 2**14
"""Numbers that a tensor must have to be shared out, unless told otherwise."""

_ENVIRONMENT = {
    "coordinator": "JAX_COORDINATOR_ADDRESS",
    "processes": "JAX_NUM_PROCESSES",
    "process_id": "JAX_PROCESS_ID",
}


@dataclass(frozen=True)
class ParallelConfig:
    """Over which devices and processes the work is spread. It decides how fast a run is, not what it computes.

    Raises:
        UserError: a number outside its range.
    """

    # --parallel MODE, beside --parallel.coordinator and the like
    mode: Annotated[Literal["data", "fsdp", "pmap"], tyro.conf.arg(name="parallel", prefix_name=False)] = "data"
    """data: a share of the batch on each device; fsdp: parameters, average and optimiser in shares as well; pmap: data, by
    jax.pmap."""
    devices: int | None = None
    """How many devices; None: all there are."""
    min_shard: int = MIN_SHARD
    """With fsdp, tensors of fewer numbers are whole on every device."""
    coordinator: str | None = None
    """HOST:PORT at which process 0 awaits the others; $JAX_COORDINATOR_ADDRESS, or as Slurm or Open MPI says, unless given."""
    processes: int | None = None
    """How many processes there are; $JAX_NUM_PROCESSES, or as Slurm or Open MPI says, unless given."""
    process_id: int | None = None
    """Which of them this one is, from 0; $JAX_PROCESS_ID, or as Slurm or Open MPI says, unless given."""
    detect: bool = False
    """Let JAX find the other processes of a cluster that the environment does not show, as of a TPU pod."""
    timeout: int = 120
    """Seconds to wait for the other processes at the start."""

    def __post_init__(self) -> None:
        for name in ("devices", "processes", "timeout", "min_shard"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"parallel.{name} must be at least 1; got {value}.")
        if self.mode != "fsdp" and self.min_shard != MIN_SHARD:
            raise UserError(f"parallel.min_shard belongs to --parallel fsdp; got {self.min_shard} with {self.mode}.")
        if self.process_id is not None and self.process_id < 0:
            raise UserError(f"parallel.process_id must not be negative; got {self.process_id}.")
        if None not in (self.processes, self.process_id) and self.process_id >= self.processes:  # type: ignore[operator]
            raise UserError(
                f"parallel.process_id must lie in 0..{self.processes - 1}, "  # type: ignore[operator]
                f"one for each of {self.processes} processes; got {self.process_id}."
            )
        if self.coordinator is not None and not self.coordinator.rpartition(":")[2].isdecimal():
            raise UserError(f"parallel.coordinator must have the form HOST:PORT; got {self.coordinator!r}.")


ALL_DEVICES = ParallelConfig()
"""Data parallel over all devices there are."""


def join(config: ParallelConfig) -> None:
    """Join the other processes of this command, if there are any: call it before anything touches a device.

    From then on only process 0 prints to stdout. Ends the process, with status 2, where the others are not to be found within
    config.timeout seconds.

    Raises:
        UserError: the options are incomplete, or the others cannot be joined.
    """
    config = _with_environment(config)
    given = [getattr(config, name) is not None for name in _ENVIRONMENT]
    if not any(given) and not config.detect and not _in_cluster():
        return
    explicit = all(given)
    if any(given) and not explicit:
        missing = [name for name, there in zip(_ENVIRONMENT, given, strict=True) if not there]
        raise UserError(
            "parallel.coordinator, processes and process_id belong together; missing: " + ", ".join(missing) + "."
        )
    import jax

    if jax.distributed.is_initialized():
        return
    if not explicit:
        # its own messages say what it looked for
        _initialize("the cluster that JAX detects", config.timeout)
    elif config.processes != 1:
        _initialize(
            str(config.coordinator),
            config.timeout,
            coordinator_address=config.coordinator,
            num_processes=config.processes,
            process_id=config.process_id,
            cluster_detection_method="deactivate",
        )
    if jax.process_index():
        progress.hush()
        signals.quiet()
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # for as long as the process lives


def several() -> bool:
    """Whether other processes have been joined."""
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized() and jax.process_count() > 1


def is_first() -> bool:
    """Whether this is the process that writes what a run leaves, checkpoints apart; the only one, or process 0."""
    return not several() or sys.modules["jax"].process_index() == 0


def leave(status: int) -> int:
    """The exit status of a command that failed; does not return where there are other processes.

    JAX's own end waits until all processes are there, and the others may be waiting for this one in the middle of a step.
    """
    if several():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


def on_first(work: Callable[[], T]) -> T:
    """What `work` returns, or the UserError it raises, where process 0 alone does it; all processes must call this."""
    if not several():
        return work()
    outcome: Any = None
    if is_first():
        try:
            outcome = work()
        except UserError as error:
            outcome = error
    outcome = pickle.loads(_from_first(pickle.dumps(outcome)))
    if isinstance(outcome, UserError):
        raise outcome
    return outcome


def agree(options: dict[str, Any]) -> None:
    """Refuse processes that were started with different options; all processes must call this.

    options: a tree of what JSON can hold.

    Raises:
        UserError: some differ from process 0's (names the process and each field), in every process.
    """
    if not several():
        return
    import jax

    text = json.dumps(options)
    ours, firsts = _flat(json.loads(text)), _flat(json.loads(_from_first(text.encode())))
    differing = [
        f"  {name}: {firsts.get(name)!r} in process 0, {ours.get(name)!r} in process {jax.process_index()}"
        for name in sorted(ours.keys() | firsts.keys())
        if ours.get(name) != firsts.get(name)
    ]
    found = [line for part in _from_each("\n".join(differing).encode()) if (line := part.decode())]
    if found:
        raise UserError("the processes were started with different options:\n" + "\n".join(found))


def any_of(flag: bool) -> bool:
    """Whether the flag is up in any process; all processes must call this."""
    return any(part == b"1" for part in _from_each(b"1" if flag else b"0")) if several() else flag


def _flat(tree: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {name: tree}
    return {
        key: value for part, inner in tree.items() for key, value in _flat(inner, f"{name}.{part}".strip(".")).items()
    }


def _from_first(payload: bytes) -> bytes:
    import numpy as np
    from jax.experimental import multihost_utils

    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(payload))))
    padded = np.frombuffer(payload[:size].ljust(size, b"\0"), np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(padded), np.uint8).tobytes()


def _from_each(payload: bytes) -> list[bytes]:
    import numpy as np
    from jax.experimental import multihost_utils

    sizes = np.asarray(multihost_utils.process_allgather(np.int32(len(payload))))
    padded = np.frombuffer(payload.ljust(int(sizes.max()), b"\0"), np.uint8)
    parts = np.asarray(multihost_utils.process_allgather(padded))
    return [part[:size].tobytes() for part, size in zip(parts, sizes, strict=True)]


def _with_environment(config: ParallelConfig) -> ParallelConfig:
    found = {}
    for name, variable in _ENVIRONMENT.items():
        text = os.environ.get(variable)
        if text and getattr(config, name) is None:
            if name != "coordinator" and not text.isdecimal():
                raise UserError(f"${variable} must be a whole number; got {text!r}.")
            found[name] = text if name == "coordinator" else int(text)
    return replace(config, **found)  # type: ignore[arg-type]


def _in_cluster() -> bool:
    """Whether a launcher that JAX knows has started several processes, of which this is one."""
    slurm = "SLURM_STEP_NODELIST" in os.environ and os.environ.get("SLURM_NTASKS", "1") != "1"
    return slurm or os.environ.get("OMPI_COMM_WORLD_SIZE", "1") != "1"


def _initialize(where: str, timeout: int, **options: Any) -> None:
    import jax

    def give_up() -> None:
        print(
            f"ddpm: the other processes were not to be found at {where} within {timeout} s (--parallel.timeout).",
            file=sys.stderr,
            flush=True,
        )
        os._exit(2)

    # `train` agrees with the others on when to stop; this service would keep SIGTERM for itself
    jax.config.update("jax_enable_preemption_service", False)
    clock = threading.Timer(timeout, give_up)  # at the end of its own time JAX aborts the process, with a stack of C++
    clock.daemon = True
    clock.start()
    try:
        jax.distributed.initialize(initialization_timeout=timeout + 60, **options)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"the other processes cannot be joined at {where}: {str(error).splitlines()[0]}") from error
    finally:
        clock.cancel()
