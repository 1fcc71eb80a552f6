"""Accelerators as their makers publish them: memory, arithmetic, bandwidth, and what a compiler has to know of a GPU."""

from dataclasses import dataclass
from typing import Literal

from ddpm_jax import display

GB = 1e9
TERA = 1e12
KIB = 2**10


@dataclass(frozen=True)
class GPU:
    """What XLA's compiler asks of an NVIDIA GPU: the limits of its compute capability, and the size of the chip."""

    capability: tuple[int, int]
    """Compute capability, as (9, 0)."""
    cores: int
    """Streaming multiprocessors."""
    units: int
    """Float32 units of each."""
    shared_kib: int
    """Shared memory of each, in KiB; one block may have 1 KiB less."""
    cache: int
    """Bytes of the second-level cache."""
    clock_ghz: float
    """When boosted."""


@dataclass(frozen=True)
class Chip:
    """An accelerator."""

    name: str
    """As in a topology: v5e, h100."""
    platform: Literal["tpu", "cuda"]
    """What jax calls its kind."""
    flops: float
    """Products and sums a second in bfloat16, without sparsity."""
    float32_flops: float
    """The same of float32 numbers as JAX multiplies them unless told otherwise: rounded to bfloat16 on TPUs, to TF32 on GPUs."""
    bandwidth: float
    """Bytes a second from and to its large memory."""
    memory: float
    """Bytes of it."""
    source: str
    """Where all that is published."""
    gpu: GPU | None = None
    """The rest of a GPU's figures."""

    def __repr__(self) -> str:
        return display.line(self, repr(self.name), f"{self.flops / TERA:g} TFLOP/s", f"{self.memory / GB:.3g} GB")

    def peak(self, dtype: str) -> float:
        """Operations a second with numbers of a dtype, as HLO calls it."""
        return self.float32_flops if dtype in ("f32", "f64") else self.flops


_TPU = "Google Cloud documentation, Cloud TPU, page {}"
_NVIDIA = "NVIDIA {} data sheet (dense), architecture white paper, CUDA C++ programming guide (compute capabilities)"

# fmt: off
CHIPS: dict[str, Chip] = {
    chip.name: chip
    for chip in (
        Chip("v5e", "tpu", 197 * TERA, 197 * TERA, 819 * GB, 16.0 * 2**30, _TPU.format("TPU v5e")),
        Chip("v5p", "tpu", 459 * TERA, 459 * TERA, 2765 * GB, 95 * GB, _TPU.format("TPU v5p")),
        Chip("v6e", "tpu", 918 * TERA, 918 * TERA, 1640 * GB, 32.0 * 2**30, _TPU.format("TPU v6e")),
        Chip("a100", "cuda", 312 * TERA, 156 * TERA, 2039 * GB, 80 * GB, _NVIDIA.format("A100 80GB SXM"),
             GPU((8, 0), 108, 64, 164, 40 * KIB**2, 1.41)),
        Chip("h100", "cuda", 989.4 * TERA, 494.7 * TERA, 3350 * GB, 80 * GB, _NVIDIA.format("H100 SXM"),
             GPU((9, 0), 132, 128, 228, 50 * KIB**2, 1.83)),
        Chip("h200", "cuda", 989.4 * TERA, 494.7 * TERA, 4800 * GB, 141 * GB, _NVIDIA.format("H200 SXM"),
             GPU((9, 0), 132, 128, 228, 50 * KIB**2, 1.83)),
        Chip("b200", "cuda", 2250 * TERA, 1100 * TERA, 8000 * GB, 180 * GB, _NVIDIA.format("B200 (HGX)"),
             GPU((10, 0), 148, 128, 228, 126 * KIB**2, 1.85)),
    )
}
# fmt: on
"""name -> accelerator. What does not fit a TPU the compiler says by itself, by a limit that is a little lower than its memory."""


def target_config(chip: Chip) -> str:
    """What XLA compiles for, as a GpuTargetConfigProto in text: the fields that decide on programs, not those of a driver."""
    gpu = chip.gpu
    assert gpu is not None
    major, minor = gpu.capability
    return f"""
platform_name: "CUDA"
device_description_str: "{chip.name}"
dnn_version_info {{ major: 9 minor: 10 }}
gpu_device_info {{
  cuda_compute_capability {{ major: {major} minor: {minor} {"feature_extension: ACCELERATED_FEATURES" if major >= 9 else ""} }}
  core_count: {gpu.cores}
  fpus_per_core: {gpu.units}
  clock_rate_ghz: {gpu.clock_ghz}
  memory_bandwidth: {chip.bandwidth:.0f}
  device_memory_size: {chip.memory:.0f}
  l2_cache_size: {gpu.cache}
  shared_memory_per_core: {gpu.shared_kib * KIB}
  shared_memory_per_block: {48 * KIB}
  shared_memory_per_block_optin: {(gpu.shared_kib - 1) * KIB}
  registers_per_core_limit: {64 * KIB}
  registers_per_block_limit: {64 * KIB}
  threads_per_core_limit: 2048
  threads_per_block_limit: 1024
  threads_per_warp: 32
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
  block_dim_limit_x: {2**31 - 1}
  block_dim_limit_y: {2**16 - 1}
  block_dim_limit_z: {2**16 - 1}
}}
"""
