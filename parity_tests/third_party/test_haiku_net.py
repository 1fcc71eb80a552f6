"""A haiku network held to a PyTorch one; its weights are carried over, with a name for each layer."""

import jax
import numpy as np
import pytest
import torch

from ddpm_jax import verify
from ddpm_jax.weights import Rule

hk = pytest.importorskip("haiku")
pytestmark = pytest.mark.slow

IMAGES = np.random.default_rng(0).standard_normal((4, 3, 8, 8))
NAMES = {"net.conv2_d": "0", "net.layer_norm": "3", r"net\.mlp\.linear_0": "4", r"net\.mlp\.linear_1": "6"}


class Net(hk.Module):
    def __init__(self, epsilon):
        super().__init__(name="net")
        self.epsilon = epsilon

    def __call__(self, x):
        h = jax.nn.relu(hk.Conv2D(8, 3, padding="SAME")(x)).mean((1, 2))
        h = hk.LayerNorm(-1, create_scale=True, create_offset=True, eps=self.epsilon)(h)
        return hk.nets.MLP([16, 5])(h)


class Mean(torch.nn.Module):
    def forward(self, x):
        return x.mean((2, 3))


def pair(epsilon=1e-5):
    torch.manual_seed(0)
    theirs = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1),
        torch.nn.ReLU(),
        Mean(),
        torch.nn.LayerNorm(8),
        torch.nn.Linear(8, 16),
        torch.nn.ReLU(),
        torch.nn.Linear(16, 5),
    )
    ours = hk.transform(lambda x: Net(epsilon)(x))
    return (ours, ours.init(jax.random.key(0), IMAGES.transpose(0, 2, 3, 1))), theirs


def test_a_right_pair_agrees():
    report = verify.compare(*pair(), IMAGES, weights="carried", names=NAMES)
    assert report.ok and report.coverage.compared == 4, report.table()
    assert len([row for row in report.rows if row.stage == "gradient"]) == 9


def test_an_epsilon_is_located():
    report = verify.compare(*pair(1e-3), IMAGES, weights="carried", names=NAMES)
    assert [fault.name for fault in report.faults] == ["net.layer_norm"], report.table()
    assert report.faults[0].cause == "epsilon 0.001 in JAX, 1e-05 in PyTorch"


def test_a_kernel_that_is_not_turned_is_located():
    rules = {r"net\.mlp\.linear_1\.w": Rule("6.weight", lambda w: w.reshape(w.shape[::-1]))}
    report = verify.compare(*pair(), IMAGES, weights="carried", names=NAMES, rules=rules)
    assert [fault.name for fault in report.faults] == ["net.mlp.linear_1"], report.table()
