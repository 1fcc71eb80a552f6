"""The 8 x 8 digits that come with scikit-learn: real data that needs no download."""

import importlib.util
from pathlib import Path

import numpy as np

from ddpm_jax.data.source import FORMS, ArraySource, Form, Opening
from ddpm_jax.errors import UserError


def open_digits() -> ArraySource:
    """1797 images 8 x 8 of one channel; the values 0..16 become 0..255.

    Raises:
        UserError: scikit-learn is not installed, or has them no more.
    """
    found = importlib.util.find_spec("sklearn")  # to import it takes a second
    if found is None or found.origin is None:
        raise UserError("the data source 'digits' needs scikit-learn: pip install scikit-learn")
    try:
        table = np.loadtxt(Path(found.origin).parent / "datasets" / "data" / "digits.csv.gz", delimiter=",")
    except OSError as error:
        raise UserError(f"the scikit-learn that is installed has no file of digits ({error}).") from error
    images = np.rint(table[:, :64].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    return ArraySource("digits", images, table[:, 64].astype(np.int64), [str(name) for name in range(10)])


def _open(rest: str, _: Opening) -> ArraySource:
    if rest:
        raise UserError(f"the data source digits takes nothing after it; got {rest!r}.")
    return open_digits()


FORMS["digits"] = Form("digits", "scikit-learn's 8 x 8 digits", _open, alone=True)
