"""Which forms are in use: all of them on CPU, unless they are switched off while a program is traced."""

import os
from contextlib import AbstractContextManager

import jax

from ddpm_jax.errors import UserError

FORMS: dict[str, str] = {
    "few": "a convolution to 4 channels or fewer, and its gradients: products for each pixel, summed",
    "narrow": "a convolution to 20 channels or fewer where no gradient is asked for: the same",
    "small": "a kernel larger than the image: one product with what lies under it at each place",
    "gradients": "the gradients of a dense convolution: forward convolutions of transposed operands",
    "deep": "the gradient of an image with fewer pixels than half the kernel's channels: products, summed",
    "strided": "a transposed convolution, and the gradient of an image at a stride: products, summed by remainders",
    "depthwise": "a depthwise convolution and its gradients: sums of shifted images",
    "vectors": "a product of many vectors with a matrix: of all of them in an array of two axes",
    "normalization": "sums by channel as products with ones, and the gradient written down",
    "attention": "blocks of heads, weights divided after the product and computed again for the gradient",
}
"""name -> what XLA's CPU compiler is slow at: what is done instead. Each can be switched off alone, to be measured."""

FUSED = "fused attention"

VARIABLE = "DDPM_CPU_FORMS"
"""The environment variable that switches all of them off: "off", or "on", which it is unless set."""


def _off_at_first() -> frozenset[str]:
    wanted = os.environ.get(VARIABLE, "on")
    if wanted not in ("on", "off"):
        raise UserError(f"{VARIABLE} must be on or off; got {wanted!r}.")
    return frozenset(FORMS) if wanted == "off" else frozenset()


# part of jit's key: a program is traced anew where it changes
_off = jax.make_user_context(default_value=_off_at_first())


def off(*names: str) -> AbstractContextManager[None]:
    """`with off():` programs that are traced within have none of the forms, or none of those named.

    Without them a network is what its layers say, on every platform, and differentiable forwards (jax.jvp). A program for another
    platform that is lowered on a machine without it wants them off as well.

    Raises:
        UserError: a name that is not in FORMS.
    """
    for name in names:
        if name not in FORMS:
            raise UserError(f"a form must be one of {', '.join(FORMS)}; got {name!r}.")
    return _off(_off.value | frozenset(names or FORMS))


def forwards() -> AbstractContextManager[None]:
    """`with forwards():` what is traced within can be differentiated forwards (jax.jvp), on every platform.

    That takes every form away, and attention that is fused by a platform's library.
    """
    return _off(_off.value | frozenset(FORMS) | {FUSED})


def fused() -> bool:
    """Whether a program that is being traced may have attention that is fused by a platform's library."""
    return FUSED not in _off.value


def in_use(*names: str) -> bool:
    """Whether one of these forms is in use for a program that is being traced."""
    return jax.default_backend() == "cpu" and not _off.value.issuperset(names)
