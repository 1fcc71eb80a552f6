"""The 8 x 8 digits that come with scikit-learn: real data that needs no download."""

import numpy as np

from ddpm_jax.data.source import FORMS, ArraySource, Form, Opening
from ddpm_jax.errors import UserError


def open_digits() -> ArraySource:
    """1797 images 8 x 8 of one channel; the values 0..16 become 0..255.

    Raises:
        UserError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UserError("the data source 'digits' needs scikit-learn: pip install scikit-learn") from error
    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    return ArraySource("digits", images, digits.target, [str(name) for name in digits.target_names])


def _open(rest: str, _: Opening) -> ArraySource:
    if rest:
        raise UserError(f"the data source digits takes nothing after it; got {rest!r}.")
    return open_digits()


FORMS["digits"] = Form("digits", "scikit-learn's 8 x 8 digits", _open, alone=True)
