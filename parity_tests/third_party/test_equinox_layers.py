"""Equinox's own layers, in one network, held to PyTorch's; its weights are carried over, and no name is mapped."""

import jax
import numpy as np
import pytest
import torch

from ddpm_jax import verify

eqx = pytest.importorskip("equinox")
pytestmark = pytest.mark.slow

RNG = np.random.default_rng(0)
INPUTS = (RNG.standard_normal((4, 3, 8, 8)), RNG.integers(0, 7, (4, 16)), RNG.standard_normal((4, 8)))


class Ours(eqx.Module):
    conv: eqx.nn.Conv2d
    group: eqx.nn.GroupNorm
    prelu: eqx.nn.PReLU
    pool: eqx.nn.MaxPool2d
    up: eqx.nn.ConvTranspose2d
    embed: eqx.nn.Embedding
    norm: eqx.nn.LayerNorm
    attention: eqx.nn.MultiheadAttention
    mlp: list
    rms: eqx.nn.RMSNorm
    mix: eqx.nn.Conv1d
    gru: eqx.nn.GRUCell
    dropout: eqx.nn.Dropout
    head: eqx.nn.Linear

    def __init__(self, key, approximate=False):
        keys = iter(jax.random.split(key, 12))
        self.conv = eqx.nn.Conv2d(3, 8, 3, stride=2, padding=1, key=next(keys))
        self.group = eqx.nn.GroupNorm(4, 8)
        self.prelu = eqx.nn.PReLU(0.25)
        self.pool = eqx.nn.MaxPool2d(2, 2)
        self.up = eqx.nn.ConvTranspose2d(8, 8, 2, stride=2, key=next(keys))
        self.embed = eqx.nn.Embedding(7, 8, key=next(keys))
        self.norm = eqx.nn.LayerNorm(8)
        self.attention = eqx.nn.MultiheadAttention(
            2, 8, use_query_bias=True, use_key_bias=True, use_value_bias=True, use_output_bias=True, key=next(keys)
        )
        gelu = eqx.nn.Lambda(lambda x: jax.nn.gelu(x, approximate=approximate))
        self.mlp = [eqx.nn.Linear(8, 16, key=next(keys)), gelu, eqx.nn.Linear(16, 8, key=next(keys))]
        self.rms = eqx.nn.RMSNorm(8, eps=1e-6, use_bias=False)
        self.mix = eqx.nn.Conv1d(8, 8, 3, padding=1, groups=2, key=next(keys))
        self.gru = eqx.nn.GRUCell(8, 8, key=next(keys))
        self.dropout = eqx.nn.Dropout(0.5)
        self.head = eqx.nn.Linear(8, 5, key=next(keys))

    def __call__(self, image, tokens, state):
        h = self.up(self.pool(self.prelu(self.group(self.conv(image)))))
        h = h.reshape(8, -1).T + jax.vmap(self.embed)(tokens)
        fed = jax.vmap(self.norm)(h)
        h = h + self.attention(fed, fed, fed)
        fed = jax.vmap(self.rms)(h)
        h = h + jax.vmap(lambda x: self.mlp[2](self.mlp[1](self.mlp[0](x))))(fed)
        h = self.mix(h.T).mean(1)
        return self.head(self.dropout(self.gru(h, state)))


class Theirs(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.group = torch.nn.GroupNorm(4, 8)
        self.prelu = torch.nn.PReLU()
        self.pool = torch.nn.MaxPool2d(2, 2)
        self.up = torch.nn.ConvTranspose2d(8, 8, 2, stride=2)
        self.embed = torch.nn.Embedding(7, 8)
        self.norm = torch.nn.LayerNorm(8)
        self.attention = torch.nn.MultiheadAttention(8, 2, batch_first=True)
        self.mlp = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.GELU(), torch.nn.Linear(16, 8))
        self.rms = torch.nn.RMSNorm(8, eps=1e-6)
        self.mix = torch.nn.Conv1d(8, 8, 3, padding=1, groups=2)
        self.gru = torch.nn.GRUCell(8, 8)
        self.dropout = torch.nn.Dropout(0.5)
        self.head = torch.nn.Linear(8, 5)

    def forward(self, image, tokens, state):
        h = self.up(self.pool(self.prelu(self.group(self.conv(image)))))
        h = h.flatten(2).mT + self.embed(tokens)
        fed = self.norm(h)
        h = h + self.attention(fed, fed, fed, need_weights=False)[0]
        h = h + self.mlp(self.rms(h))
        h = self.mix(h.mT).mean(2)
        return self.head(self.dropout(self.gru(h, state)))


@pytest.mark.parametrize("training", [False, True])
def test_every_layer_agrees(training):
    torch.manual_seed(0)
    report = verify.compare(Ours(jax.random.key(0)), Theirs(), INPUTS, weights="carried", training=training)
    assert report.ok and not report.faults, report.table()
    assert report.coverage.compared == 16, report.table()
    parameters = [row.name for row in report.rows if row.stage == "gradient" and not row.name.startswith("input ")]
    assert sorted(parameters) == sorted(name for name, _ in Theirs().named_parameters())


def test_another_gelu_is_located():
    ours = Ours(jax.random.key(0), approximate=True)
    report = verify.compare(ours, Theirs(), INPUTS, weights="carried")
    assert [fault.name for fault in report.faults] == ["mlp.1"], report.table()
    assert report.faults[0].cause.startswith("tanh GELU in JAX, exact GELU in PyTorch")


def test_another_epsilon_is_located():
    theirs = Theirs()
    theirs.group.eps = 1e-3
    report = verify.compare(Ours(jax.random.key(0)), theirs, INPUTS, weights="carried")
    assert [fault.name for fault in report.faults] == ["group"], report.table()
    assert report.faults[0].cause == "epsilon 1e-05 in JAX, 0.001 in PyTorch"
