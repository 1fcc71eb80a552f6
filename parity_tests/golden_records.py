"""The golden records: what the five original systems computed, and the recipe of their weights and draws."""

import json
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tolerances import relative_error, to_numpy

FOLDER = Path(__file__).parent / "golden"
Record = dict[str, np.ndarray]

PRECISIONS = pytest.mark.parametrize("precision", ["f64", "f32"])
"""The two that most records come in, as their names end."""
RGB = {"channels": 3, "image_size": 32, "dim": 32, "dim_mults": (1, 2, 4, 8)}
"""Options of the network of annotated_unet_rgb."""

LIMITS: dict[tuple[str, str], float] = {
    # quantity       dtype        largest relative error, as `golden.md` promises it
    ("call", "float64"): 1e-10,
    ("call", "float32"): 2e-5,
    ("trajectory", "float64"): 1e-10,
    ("trajectory", "float32"): 2e-4,
    # 1,000 steps, or training
    ("long", "float64"): 1e-8,
    ("long", "float32"): 2e-4,
}


def assert_agrees(quantity: str, ours: Any, recorded: np.ndarray, name: str) -> None:
    """Fail unless ours is what an original computed, in the record's own precision."""
    ours = to_numpy(ours)
    assert ours.shape == recorded.shape and ours.dtype == recorded.dtype, f"{name}: {ours.shape}, {ours.dtype}"
    error, limit = relative_error(ours, recorded), LIMITS[quantity, str(recorded.dtype)]
    assert error <= limit, f"{name}: relative error {error:.3g} exceeds {limit:g}"  # not met by NaN either


@cache
def record(name: str) -> Record:
    """The arrays of a record, e.g. "tiny_unet_f64"."""
    with np.load(FOLDER / f"{name}.npz") as file:
        return {key: file[key] for key in file.files}


def dtype_of(name: str) -> np.dtype:
    """The precision that a record was computed in."""
    return np.dtype("float64" if name.endswith("_f64") else "float32")


def numbers(array: Any, precision: str) -> np.ndarray:
    """The numbers in the precision of a record."""
    return np.asarray(array).astype(dtype_of(f"_{precision}"))


def generator(rec: Record, *tags: str | int) -> np.random.Generator:
    """The generator of a record's numbers: seeded by its salt, then by a tag or by integers."""
    salt = json.loads(str(rec["meta"]))["salt"]
    return np.random.default_rng([salt, *(zlib.crc32(tag.encode()) if isinstance(tag, str) else tag for tag in tags)])


def draw(rec: Record, tag: str, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal numbers, float64."""
    return generator(rec, tag).standard_normal(shape)


def weights(rec: Record) -> dict[str, np.ndarray]:
    """The checkpoint of a record under its author's names, float64 but for counters; fixed tables as they were."""
    mindspore = "mindspore" in json.loads(str(rec["meta"]))
    shapes = [tuple(json.loads(shape)) for shape in rec["param_shapes"].tolist()]
    named = zip(rec["param_names"].tolist(), shapes, strict=True)
    return {name: _tensor(rec, name, shape, mindspore) for name, shape in named}


def _tensor(rec: Record, name: str, shape: tuple[int, ...], mindspore: bool) -> np.ndarray:
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    if name == "t_emb":
        return record("convnext_tables")["position_embeddings"].astype(np.float64)
    if name == "time_embed.weight":
        return record("tiny_tables")["sinusoidal_1000_100"].astype(np.float64)
    w = draw(rec, name, shape) * 0.1
    if name.endswith("running_var"):
        return 1 + np.abs(w)
    if mindspore:
        scale = name.endswith(("weight", "gamma", ".g")) and sum(side > 1 for side in shape) <= 1
    else:
        scale = (name.endswith("weight") and len(shape) == 1) or name.endswith(".g")
    if scale:
        return 1 + w
    return w * 10 / np.sqrt(np.prod(shape[1:])) if len(shape) > 1 else w


def convnext_weights(rec: Record, expansion: int) -> Record:
    """The checkpoint of system 1 for another expansion: the record lists the shapes of expansion 3 only."""
    hidden = {"sequential.1.weight": 0, "sequential.1.bias": 0, "sequential.3.weight": 0, "sequential.3.bias": 0}
    hidden["sequential.4.weight"] = 1
    shapes = []
    for name, shape in zip(rec["param_names"].tolist(), rec["param_shapes"].tolist(), strict=True):
        sides = [int(side) for side in shape.strip("[]").split(",")]
        for ending, axis in hidden.items():
            if name.endswith(ending):
                sides[axis] = sides[axis] * expansion // 3
        shapes.append(str(sides))
    return weights({**rec, "param_shapes": np.array(shapes)})
