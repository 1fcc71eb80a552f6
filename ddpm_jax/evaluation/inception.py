"""The Inception-v3 network that FID is measured with: the TensorFlow weights of 2015, under the names PyTorch published them by.

It is Szegedy et al. 2016 ("Rethinking the Inception architecture") but for what the FID of the literature rests on: 1,008 logits;
3x3 averages that leave the padding out of their count; a maximum in the place of the last block's average; BatchNorm's epsilon
1e-3. Attributes carry the published file's names, so that the bridge's rules need no table.
"""

import functools
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, UInt8

from ddpm_jax import models, weights
from ddpm_jax.cache import cache_folder
from ddpm_jax.compilation import jit
from ddpm_jax.errors import UserError
from ddpm_jax.models.convolution import convolve
from ddpm_jax.models.normalization import BatchNorm
from ddpm_jax.weights.files import SUFFIXES

NUM_FEATURES = 2048
"""Width of what the last block leaves, averaged over its map."""
NUM_LOGITS = 1008
SIZE = 299
"""Sides of the images that the network was trained on."""
RESIZE = f"bilinear to {SIZE}x{SIZE}, half-pixel centres, not antialiased; pixels / 127.5 - 1 (as pytorch-fid)"
"""How images are brought to the network: see docs/fid.md for what other tools do."""

WEIGHTS = "pt_inception-2015-12-05-6726825d.pth"
"""The published file, 95,628,359 bytes."""
WEIGHTS_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"

BATCH = 32
"""Images a device takes at a time."""


class _Conv(NamedTuple):
    """A convolution without bias, BatchNorm and ReLU."""

    dim: int
    size: tuple[int, int] = (1, 1)
    stride: int = 1
    padded: bool = True
    """By half the kernel, so that stride 1 keeps the map's size."""


_Branch = tuple[_Conv | tuple[_Conv, _Conv], ...]
"""Convolutions one after the other; a pair, which stands last, takes the same map side by side."""


_zeros = nnx.initializers.zeros_init()  # until weights are loaded: nothing is trained here


class ConvNorm(nnx.Module):
    """Convolution without bias, BatchNorm with epsilon 1e-3, ReLU."""

    def __init__(self, in_dim: int, spec: _Conv, *, rngs: nnx.Rngs):
        sides = tuple((size // 2, size // 2) if spec.padded else (0, 0) for size in spec.size)
        self.conv = nnx.Conv(
            in_dim,
            spec.dim,
            spec.size,
            strides=spec.stride,
            padding=sides,
            use_bias=False,
            kernel_init=_zeros,
            conv_general_dilated=convolve,
            rngs=rngs,
        )
        self.bn = BatchNorm(spec.dim, epsilon=1e-3, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h_out w_out dim"]:
        """(B, H, W, C) -> (B, H', W', dim)."""
        return nnx.relu(self.bn(self.conv(x)))


class Mixed(nnx.Module):
    """Branches over one map, their outputs side by side; the last branch pools.

    Convolution i of a branch is the attribute `<branch>_<i>`, or `<branch>` where it is the only one; those of a pair
    `<branch>_<i>a` and `<branch>_<i>b`.

    Args:
        in_dim: channels in.
        branches: by name, in the order of their outputs.
        pool: "mean" or "max" over 3x3 at stride 1, or "half", the maximum at stride 2.
        pool_dim: channels of the 1x1 convolution after the pool; None: there is none.
    """

    def __init__(
        self, in_dim: int, branches: dict[str, _Branch], pool: str, pool_dim: int | None = None, *, rngs: nnx.Rngs
    ):
        out_dim, layers = pool_dim or in_dim, []
        for branch, specs in branches.items():
            dim, steps = in_dim, []
            for i, spec in enumerate(specs, start=1):
                stem = branch if len(specs) == 1 else f"{branch}_{i}"
                pair = {stem: spec} if isinstance(spec, _Conv) else {f"{stem}a": spec[0], f"{stem}b": spec[1]}
                for name, one in pair.items():
                    setattr(self, name, ConvNorm(dim, one, rngs=rngs))
                steps.append(tuple(pair))
                dim = sum(one.dim for one in pair.values())
            layers.append(tuple(steps))
            out_dim += dim
        self.branch_pool = None if pool_dim is None else ConvNorm(in_dim, _Conv(pool_dim), rngs=rngs)
        self.pool, self.out_dim, self.layers = pool, out_dim, tuple(layers)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h_out w_out c_out"]:
        """(B, H, W, C) -> (B, H', W', out_dim)."""
        outputs = []
        for steps in self.layers:
            y = x
            for names in steps:
                y = jnp.concatenate([getattr(self, name)(y) for name in names], axis=-1)
            outputs.append(y)
        pooled = _POOLS[self.pool](x)
        return jnp.concatenate([*outputs, pooled if self.branch_pool is None else self.branch_pool(pooled)], axis=-1)


_AROUND: dict[str, Any] = {"window_shape": (3, 3), "strides": (1, 1), "padding": ((1, 1), (1, 1))}


def _mean(x: Array) -> Array:
    """Over those of the 3x3 pixels that lie within the map; flax counts them in the default dtype, whatever that of x."""
    return nnx.avg_pool(x, **_AROUND, count_include_pad=False).astype(x.dtype)


_POOLS: dict[str, Callable[[Array], Array]] = {
    "mean": _mean,
    "max": functools.partial(nnx.max_pool, **_AROUND),
    "half": functools.partial(nnx.max_pool, window_shape=(3, 3), strides=(2, 2)),
}


# --- the blocks, from the finest map to the coarsest

_3x3, _5x5 = (3, 3), (5, 5)
_ROW, _COLUMN = (1, 7), (7, 1)


def _fine(pool_dim: int) -> dict[str, Any]:
    """At 35x35."""
    branches: dict[str, _Branch] = {
        "branch1x1": (_Conv(64),),
        "branch5x5": (_Conv(48), _Conv(64, _5x5)),
        "branch3x3dbl": (_Conv(64), _Conv(96, _3x3), _Conv(96, _3x3)),
    }
    return {"branches": branches, "pool": "mean", "pool_dim": pool_dim}


def _fine_to_middle() -> dict[str, Any]:
    branches: dict[str, _Branch] = {
        "branch3x3": (_Conv(384, _3x3, 2, padded=False),),
        "branch3x3dbl": (_Conv(64), _Conv(96, _3x3), _Conv(96, _3x3, 2, padded=False)),
    }
    return {"branches": branches, "pool": "half"}


def _middle(dim: int) -> dict[str, Any]:
    """At 17x17; dim: channels between the 7x1 and 1x7 convolutions."""
    branches: dict[str, _Branch] = {
        "branch1x1": (_Conv(192),),
        "branch7x7": (_Conv(dim), _Conv(dim, _ROW), _Conv(192, _COLUMN)),
        "branch7x7dbl": (_Conv(dim), _Conv(dim, _COLUMN), _Conv(dim, _ROW), _Conv(dim, _COLUMN), _Conv(192, _ROW)),
    }
    return {"branches": branches, "pool": "mean", "pool_dim": 192}


def _middle_to_coarse() -> dict[str, Any]:
    branches: dict[str, _Branch] = {
        "branch3x3": (_Conv(192), _Conv(320, _3x3, 2, padded=False)),
        "branch7x7x3": (_Conv(192), _Conv(192, _ROW), _Conv(192, _COLUMN), _Conv(192, _3x3, 2, padded=False)),
    }
    return {"branches": branches, "pool": "half"}


def _coarse(pool: str) -> dict[str, Any]:
    """At 8x8."""
    fork = (_Conv(384, (1, 3)), _Conv(384, (3, 1)))
    branches: dict[str, _Branch] = {
        "branch1x1": (_Conv(320),),
        "branch3x3": (_Conv(384), fork),
        "branch3x3dbl": (_Conv(448), _Conv(384, _3x3), fork),
    }
    return {"branches": branches, "pool": pool, "pool_dim": 192}


_STEM: dict[str, _Conv | None] = {
    "Conv2d_1a_3x3": _Conv(32, _3x3, 2, padded=False),
    "Conv2d_2a_3x3": _Conv(32, _3x3, padded=False),
    "Conv2d_2b_3x3": _Conv(64, _3x3),
    "pool1": None,
    "Conv2d_3b_1x1": _Conv(80),
    "Conv2d_4a_3x3": _Conv(192, _3x3, padded=False),
    "pool2": None,
}
"""In order; None: the maximum over 3x3 at stride 2."""

_BLOCKS: dict[str, dict[str, Any]] = {
    "Mixed_5b": _fine(32),
    "Mixed_5c": _fine(64),
    "Mixed_5d": _fine(64),
    "Mixed_6a": _fine_to_middle(),
    "Mixed_6b": _middle(128),
    "Mixed_6c": _middle(160),
    "Mixed_6d": _middle(160),
    "Mixed_6e": _middle(192),
    "Mixed_7a": _middle_to_coarse(),
    "Mixed_7b": _coarse("mean"),
    "Mixed_7c": _coarse("max"),
}


class Inception(nnx.Module):
    """Images -> (features, logits), for inference alone."""

    def __init__(self, *, rngs: nnx.Rngs):
        dim = 3
        for name, spec in _STEM.items():
            if spec is not None:
                setattr(self, name, ConvNorm(dim, spec, rngs=rngs))
                dim = spec.dim
        for name, block in _BLOCKS.items():
            setattr(self, name, Mixed(dim, **block, rngs=rngs))
            dim = getattr(self, name).out_dim
        self.fc = nnx.Linear(dim, NUM_LOGITS, kernel_init=_zeros, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w 3"]) -> tuple[Float[Array, "b 2048"], Float[Array, "b 1008"]]:
        """x (B, H, W, 3) in [-1, 1], sides of 75 and more -> features (B, 2048), none negative, and logits (B, 1008)."""
        for name, spec in _STEM.items():
            x = _POOLS["half"](x) if spec is None else getattr(self, name)(x)
        for name in _BLOCKS:
            x = getattr(self, name)(x)
        features = x.mean((1, 2))
        return features, self.fc(features)


def resize(images: Float[Array, "b h w c"], size: int = SIZE) -> Float[Array, "b size size c"]:
    """Bilinear interpolation between pixel centres, edges repeated and not antialiased: PyTorch's align_corners=False."""
    batch, _, _, channels = images.shape
    return jax.image.resize(images, (batch, size, size, channels), "linear", antialias=False)


def abstract() -> Inception:
    """The network without numbers: jax.ShapeDtypeStruct in the place of each array."""
    return nnx.merge(*_structure())


@functools.cache  # it takes about a second
def _structure() -> tuple[nnx.GraphDef[Any], nnx.State[Any, Any]]:
    return nnx.split(nnx.eval_shape(lambda: Inception(rngs=nnx.Rngs(0))))


# --- from images to features


@dataclass(frozen=True)
class Extractor:
    """The network with its weights, spread over all devices of this process."""

    graphdef: nnx.GraphDef[Any]
    variables: models.Variables
    told: str
    """Which weights these are: file and checksum."""

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """uint8 images (N, H, W, 1 or 3) -> features (N, 2048) float32; a single channel is repeated.

        Batches of BATCH for each device, the last one filled up, go through one compiled program.

        Raises:
            UserError: the images are of another type or shape.
        """
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
            raise UserError(
                f"images must be uint8 of shape (N, H, W, 1 or 3); got {images.dtype} of shape {images.shape}."
            )
        found = [np.asarray(self._features(part))[:count] for part, count in _batches(images)]
        return np.concatenate([np.zeros((0, NUM_FEATURES), np.float32), *found])

    def _features(self, images: np.ndarray) -> jax.Array:
        batch = jax.device_put(images, _sharding(jax.sharding.PartitionSpec("batch")))
        return apply(self.variables, batch, graphdef=self.graphdef)[0]


def load_extractor(path: Path | None = None) -> Extractor:
    """The network with the published weights; path: their file, None: what lies in `cache_folder("inception")`.

    The published file must have the published checksum. A .safetensors or .npz of the same tensors (`ddpm convert` makes one,
    so that PyTorch need not be installed) has none to be held to: `told` says so.

    Raises:
        UserError: the file is missing (says where it is published and where to put it), is another one, or does not fit.
    """
    path = _default_path() if path is None else path
    if not path.is_file():
        raise UserError(_missing(path))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if path.suffix in (".pt", ".pth") and digest != WEIGHTS_SHA256:
        raise UserError(
            f"{path} is not the published {WEIGHTS}: its sha256 is {digest[:8]}..., must be {WEIGHTS_SHA256[:8]}...; "
            "figures by other weights compare with nothing. Fetch the file again."
        )
    told = f"{path.name}, sha256 {digest}" + (
        "" if digest == WEIGHTS_SHA256 else ", not held to the published checksum"
    )
    model = abstract()
    try:
        weights.load_torch(model, weights.read_tensors(path))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    graphdef, variables = models.split(model)
    return Extractor(graphdef, jax.device_put(variables, _sharding(jax.sharding.PartitionSpec())), told)


def _default_path() -> Path:
    """The published file in the cache, under the name of any project that publishes it, or converted."""
    folder = cache_folder("inception")
    found = sorted(folder.glob(f"*{Path(WEIGHTS).stem.removeprefix('pt_')}.*"))
    return next((path for path in found if path.suffix in SUFFIXES), folder / WEIGHTS)


def _missing(path: Path) -> str:
    return (
        f"{path} does not exist. FID needs the Inception-v3 weights of 2015: {WEIGHTS} (96 MB, sha256 "
        f"{WEIGHTS_SHA256[:8]}...), which the project pytorch-fid publishes with its releases, and torch-fidelity as "
        f"weights-inception-2015-12-05-6726825d.pth. Put the file into {cache_folder('inception')}, or pass --fid-weights FILE."
    )


def _sharding(spec: jax.sharding.PartitionSpec) -> jax.sharding.NamedSharding:
    return jax.sharding.NamedSharding(jax.sharding.Mesh(np.array(jax.local_devices()), ("batch",)), spec)


def _batches(images: np.ndarray) -> Iterator[tuple[np.ndarray, int]]:
    """Batches of one size, and how many images of each are real."""
    size = BATCH * jax.local_device_count()
    for start in range(0, len(images), size):
        part = images[start : start + size]
        yield np.concatenate([part, np.zeros((size - len(part), *images.shape[1:]), np.uint8)]), len(part)


@functools.partial(jit, static_argnames="graphdef")
def apply(
    variables: models.Variables, images: UInt8[Array, "b h w c"], *, graphdef: nnx.GraphDef[Any]
) -> tuple[Array, Array]:
    """uint8 images -> features (B, 2048) and logits; a single channel is repeated."""
    pixels = jnp.broadcast_to(images, (*images.shape[:3], 3)).astype(jnp.float32)
    with jax.default_matmul_precision("highest"):  # what accelerators do by default would show in the second digit
        return models.merge(graphdef, variables)(resize(pixels) / 127.5 - 1)
