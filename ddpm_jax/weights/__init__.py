"""Weights in and out: the exact bridge between a network and its PyTorch twin."""

from ddpm_jax.weights.bridge import Entry, from_torch, layout, load_torch, to_torch

__all__ = ["Entry", "from_torch", "layout", "load_torch", "to_torch"]
