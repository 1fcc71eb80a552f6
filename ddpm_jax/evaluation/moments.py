"""Mean and covariance of features: gathered batch by batch, and read and written in the form of the common FID tools."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from ddpm_jax import weights
from ddpm_jax.errors import UserError
from ddpm_jax.files import write_atomically


class Moments(NamedTuple):
    """Mean (F,) and covariance (F, F), with N - 1 below, in float64."""

    mean: Float[np.ndarray, "f"]
    cov: Float[np.ndarray, "f f"]


@dataclass(frozen=True)
class Sums:
    """What the moments of any number of features are made of; the sum of two is that of both sets together."""

    count: int
    total: Float[np.ndarray, "f"]
    """Sum of the features, float64."""
    products: Float[np.ndarray, "f f"]
    """Sum of their outer products, float64."""

    @classmethod
    def of(cls, features: Float[np.ndarray, "n f"]) -> "Sums":
        """Those of features (N, F); N may be 0."""
        rows = features.astype(np.float64)
        return cls(len(rows), rows.sum(axis=0), rows.T @ rows)

    def __add__(self, other: "Sums") -> "Sums":
        return Sums(self.count + other.count, self.total + other.total, self.products + other.products)

    def moments(self) -> Moments:
        """Mean and covariance.

        Raises:
            UserError: there are fewer than 2 features.
        """
        if self.count < 2:
            raise UserError(f"a covariance needs at least 2 images; got {self.count}.")
        mean = self.total / self.count
        return Moments(mean, (self.products - self.count * np.outer(mean, mean)) / (self.count - 1))


@dataclass(frozen=True)
class Reference:
    """What a file of reference statistics holds."""

    moments: Moments | None
    images: np.ndarray | None
    """uint8 (N, H, W, 1 or 3)."""
    told: str
    """What the file says of itself, if it does."""


def read_reference(path: Path, num_features: int) -> Reference:
    """The .npz of a common tool: `mu` (F,) and `sigma` (F, F), or images `arr_0` (N, H, W, 1 or 3) uint8, or all three.

    Reference batches of guided diffusion's evaluator hold the moments of spatial features besides, `mu_s` and `sigma_s`; these are
    left alone. Nothing in the file is unpickled.

    Raises:
        UserError: the file is missing or damaged, or holds neither, or moments of another width than num_features.
    """
    if path.suffix != ".npz":
        raise UserError(f"fid_reference must be an .npz file of statistics or images; got {path}.")
    arrays = weights.read_tensors(path)
    moments, images = None, arrays.get("arr_0")
    if "mu" in arrays and "sigma" in arrays:
        moments = Moments(arrays["mu"].astype(np.float64), arrays["sigma"].astype(np.float64))
        if moments.mean.shape != (num_features,) or moments.cov.shape != (num_features, num_features):
            raise UserError(
                f"{path}: mu and sigma must have the shapes ({num_features},) and ({num_features}, {num_features}); "
                f"got {moments.mean.shape} and {moments.cov.shape}."
            )
    if images is not None and (
        images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3) or len(images) < 4
    ):
        raise UserError(
            f"{path}: arr_0 must be uint8 images (N, H, W, 1 or 3), N at least 4; got {images.dtype} of shape {images.shape}."
        )
    if moments is None and images is None:
        raise UserError(f"{path} must hold mu and sigma, or images as arr_0; it holds {', '.join(arrays)}.")
    return Reference(moments, images, str(arrays.get("about", "of a convention that the file does not tell")))


def write_reference(path: Path, moments: Moments, about: str) -> Path:
    """Write `mu` and `sigma` as pytorch-fid and guided diffusion's evaluator read them; about: which images and conventions.

    path: its name ends in .npz.

    Raises:
        UserError: the file cannot be written.
    """
    arrays = {"mu": moments.mean, "sigma": moments.cov, "about": np.array(about)}
    return write_atomically(path, lambda temporary: np.savez(temporary, allow_pickle=False, **arrays))
