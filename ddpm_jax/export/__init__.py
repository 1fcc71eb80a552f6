"""Networks and whole samplers as files that run without this package: `.onnx` for other runtimes, `.stablehlo` for jax alone."""

from ddpm_jax.export.onnx import to_onnx
from ddpm_jax.export.stablehlo import to_stablehlo

__all__ = ["to_onnx", "to_stablehlo"]
