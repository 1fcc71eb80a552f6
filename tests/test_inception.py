"""ddpm_jax.evaluation.inception: the file of weights, where it is looked for and what is refused; and all devices at work."""

import hashlib
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from ddpm_jax import models, weights
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation import inception
from ddpm_jax.evaluation.inception import WEIGHTS, WEIGHTS_SHA256, load_extractor

SCRIPT = """
import sys
from pathlib import Path
import jax, numpy as np
from ddpm_jax import models
from ddpm_jax.evaluation import inception
inception.BATCH = 2
assert jax.local_device_count() == 2
images = np.random.default_rng(0).integers(0, 256, (5, 28, 28, 1)).astype(np.uint8)
extractor = inception.load_extractor(Path(sys.argv[1]))
kernel = extractor.variables["params"]["fc"]["kernel"]
assert kernel.sharding.is_fully_replicated and len(kernel.devices()) == 2
both = extractor(images)
inception._sharding = lambda spec: jax.sharding.SingleDeviceSharding(jax.devices()[0])
one = inception.load_extractor(Path(sys.argv[1]))(images)
np.savez(sys.argv[2], both=both, one=one)
"""


@pytest.fixture(scope="module")
def tensors():
    """Weights drawn at random, under the published names."""
    rng = np.random.default_rng(0)

    def fill(entry):
        if entry.path[-1] == "kernel":
            return (rng.standard_normal(entry.shape, np.float32) * np.sqrt(2 / np.prod(entry.shape[1:]))).astype(
                np.float32
            )
        return np.full(entry.shape, entry.path[-1] in ("scale", "var"), np.float32)

    return {entry.key: fill(entry) for entry in weights.layout(inception.abstract())}


@pytest.fixture
def own_cache(monkeypatch, tmp_path):
    """An empty cache, and the folder in it where weights are looked for."""
    monkeypatch.setenv("DDPM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "inception"


def test_weights_that_are_not_there(own_cache, tmp_path):
    """The message has all that is needed: name, checksum, who publishes it, where to put it."""
    for path in (None, tmp_path / "mine.pth"):
        with pytest.raises(UserError) as raised:
            load_extractor(path)
        shown = str(raised.value)
        assert str(path or own_cache / WEIGHTS) in shown
        for part in (WEIGHTS, WEIGHTS_SHA256[:8], "pytorch-fid", "torch-fidelity", str(own_cache), "--fid-weights"):
            assert part in shown


def test_another_file_is_refused(own_cache, tensors):
    """By its checksum, before anything in it is read; also where it has the published name."""
    own_cache.mkdir(parents=True)
    (own_cache / WEIGHTS).write_bytes(b"something else")
    with pytest.raises(UserError, match=rf"{WEIGHTS} is not the published .* must be 6726825d"):
        load_extractor()


def test_a_converted_file(own_cache, tensors):
    """Without PyTorch, under the published name in the cache; `told` says that nothing vouches for it."""
    path = own_cache / WEIGHTS.replace(".pth", ".safetensors")
    weights.write_tensors(path, tensors)
    extractor = load_extractor()
    assert extractor.told.startswith(path.name) and extractor.told.endswith("not held to the published checksum")
    graphdef, variables = models.split(inception.abstract())
    assert extractor.graphdef == graphdef and jax.tree.structure(extractor.variables) == jax.tree.structure(variables)
    np.testing.assert_array_equal(extractor.variables["params"]["fc"]["kernel"], tensors["fc.weight"].T)
    np.testing.assert_array_equal(
        extractor.variables["params"]["Mixed_7c"]["branch3x3dbl_3b"]["conv"]["kernel"],
        tensors["Mixed_7c.branch3x3dbl_3b.conv.weight"].transpose(2, 3, 1, 0),
    )
    assert extractor(np.zeros((0, 8, 8, 3), np.uint8)).shape == (0, 2048)
    for wrong in (np.zeros((1, 8, 8, 3), np.float32), np.zeros((1, 8, 8, 2), np.uint8), np.zeros((8, 8, 3), np.uint8)):
        with pytest.raises(UserError, match=r"images must be uint8 of shape \(N, H, W, 1 or 3\)"):
            extractor(wrong)


def test_the_published_checksum(own_cache, tensors, monkeypatch, tmp_path):
    """A .pth is taken if its checksum is the published one, whatever its name, and its counters are passed over."""
    path = tmp_path / "theirs.pth"
    weights.write_tensors(path, tensors | {"Mixed_5b.branch1x1.bn.num_batches_tracked": np.zeros((), np.int64)})
    monkeypatch.setattr(inception, "WEIGHTS_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    assert load_extractor(path).told == f"theirs.pth, sha256 {inception.WEIGHTS_SHA256}"


def test_weights_of_another_network(tmp_path):
    weights.write_tensors(tmp_path / "other.npz", {"fc.weight": np.zeros((1000, 2048), np.float32)})
    with pytest.raises(UserError, match=r"other\.npz: .*\(471 tensors missing, 0 too many, 1 misshapen\)"):
        load_extractor(tmp_path / "other.npz")


@pytest.mark.slow
def test_two_devices(tensors, tmp_path):
    """Two images each and a batch that is not full: what one device finds."""
    path = weights.write_tensors(tmp_path / "weights.safetensors", tensors)
    environment = os.environ | {"XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2"}
    arguments = [sys.executable, "-c", SCRIPT, str(path), str(tmp_path / "found.npz")]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "found.npz") as found:
        one, both = found["one"], found["both"]
    assert both.shape == (5, 2048) and both.dtype == np.float32 and (both.std(axis=0) > 0).mean() > 0.5
    np.testing.assert_allclose(both, one, rtol=1e-4, atol=1e-5 * one.max())
