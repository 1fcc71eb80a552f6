"""ddpm_jax and its PyTorch twin, side by side: the same inputs, the same weights, the same numbers."""
