"""Accelerators that are only described, for a compiler: v5e:2x4 is eight TPU chips, h100:8 eight GPUs of one host."""

import importlib.util
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ddpm_jax import display
from ddpm_jax.compile.chips import CHIPS, Chip, target_config
from ddpm_jax.errors import UserError, meant

_SQUARES = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4")
_COUNTS = ("1", "2", "4", "8", "16", "32", "64")
_HOST = 8
"""GPUs of one host."""

SIZES: dict[str, tuple[str, ...]] = {
    name: _COUNTS if chip.platform == "cuda" else _CUBES if name == "v5p" else _SQUARES for name, chip in CHIPS.items()
}
"""chip -> the sizes that it comes in: chips along each side of a slice of TPUs, or the number of GPUs, eight a host."""

_WHEELS = {
    "tpu": ("libtpu", "aot-tpu", "137 MB"),
    "cuda": ("jax_cuda13_plugin", "aot-cuda", "140 MB"),
}
"""platform -> the module of its compiler, the extra that installs it, and what is downloaded."""


@dataclass(frozen=True)
class Topology:
    """Chips of one kind and how many of them; `topology` reads it."""

    name: str
    """As it was asked for: v5e:2x4."""
    chip: Chip
    """One of them."""
    size: str
    """2x4 of TPUs, 8 of GPUs."""

    def __repr__(self) -> str:
        return display.line(self, repr(self.name), self.chip)

    @property
    def count(self) -> int:
        """How many devices there are."""
        return math.prod(map(int, self.size.split("x")))

    def devices(self) -> Sequence[Any]:
        """What programs can be compiled for, and not run on.

        Raises:
            UserError: the compiler for them is not installed (names the extra), or does not know them.
        """
        check_installed(self.chip.platform)
        from jax.experimental import topologies

        try:
            if self.chip.platform == "cuda":
                hosts, each = max(1, self.count // _HOST), min(self.count, _HOST)
                found = topologies.get_topology_desc(
                    "", platform="cuda", target_config=target_config(self.chip), topology=f"1x{hosts}x{each}"
                )
            else:
                # neither ask a cloud's metadata server nor mind another process that has the library
                os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
                os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
                # nor say on standard error that there is no TPU
                os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
                os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")  # any that it knows: the topology decides
                os.environ.setdefault("TPU_MIN_LOG_LEVEL", "4")
                os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "4")
                alone = {"chips_per_host_bounds": (1, 1, 1)} if self.count == 1 else {}
                found = topologies.get_topology_desc(self.name, platform="tpu", **alone)
        except NotImplementedError as error:  # the plugin looks for CUDA unless it is told not to
            raise UserError(
                f"the compiler for {self.chip.platform} was not loaded: set JAX_PLATFORMS=cpu before Python starts, "
                "as ddpm compile does."
            ) from error
        except (RuntimeError, ValueError) as error:
            raise UserError(
                f"the compiler that is installed knows no {self.name}: {str(error).splitlines()[0]:.200}"
            ) from error
        return found.devices


def topology(name: str) -> Topology:
    """The topology of a name, CHIP:SIZE.

    Raises:
        UserError: there is no such chip, or it does not come in that size (lists those that do).
    """
    chip, colon, size = str(name).strip().lower().partition(":")
    if chip not in CHIPS:
        raise UserError(
            f"the topology must be CHIP:SIZE, with a chip of {', '.join(CHIPS)}, as v5e:2x4 or h100:8; got {name!r}."
            f"{meant(chip, CHIPS)}"
        )
    if not colon or size not in SIZES[chip]:
        raise UserError(f"{chip} comes as {', '.join(f'{chip}:{known}' for known in SIZES[chip])}; got {name!r}.")
    return Topology(f"{chip}:{size}", CHIPS[chip], size)


def check_installed(platform: str) -> None:
    """Refuse a platform whose compiler is not there.

    Raises:
        UserError: says which extra has it, and how much is downloaded.
    """
    module, extra, size = _WHEELS[platform]
    if importlib.util.find_spec(module) is None:
        raise UserError(
            f"the compiler for {platform} is not installed: pip install 'ddpm-jax[{extra}]' ({size}), best in an environment of "
            "its own; no accelerator is needed."
        )
