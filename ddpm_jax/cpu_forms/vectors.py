"""Products of the vectors of a sequence with a matrix, all in one array of two axes.

XLA's CPU compiler takes a product with an array of three axes, and the gradients of one, at a fifth more time.
"""

from jaxtyping import Array, Float

from ddpm_jax.cpu_forms.switch import in_use


def vectors(x: Float[Array, "... c"], kernel: Float[Array, "c n"]) -> Float[Array, "... n"] | None:
    """x @ kernel; None where x has two axes."""
    if x.ndim == 2 or not in_use("vectors"):
        return None
    return (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], kernel.shape[1])
