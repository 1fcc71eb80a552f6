"""Pairs that are right, and look wrong at first sight: no false alarm, whatever the library, the layout and the structure."""

import dataclasses
import os
import subprocess
import sys
from collections import OrderedDict
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx, struct

from ddpm_jax import verify
from ddpm_jax.errors import UserError
from ddpm_jax.verify.layouts import decide, fitting, of_order

torch = pytest.importorskip("torch")
F = torch.nn.functional
RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.standard_normal(shape)


class Pair(nnx.Module):
    """Layers by name, and a function of them: both sides are written in a line."""

    def __init__(self, function, **layers):
        self.function = function
        for name, layer in layers.items():
            setattr(self, name, layer)

    def __call__(self, *args, **kwargs):
        return self.function(self, *args, **kwargs)


class TorchPair(torch.nn.Module):
    def __init__(self, function, **layers):
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, *args, **kwargs):
        return self.function(self, *args, **kwargs)


RNGS = nnx.Rngs(0)


def agree(ours, theirs, inputs, **options):
    report = verify.compare(ours, theirs, inputs, **{"gradients": False, **options})
    assert report.ok and not report.faults, report.table(every_row=True)
    return report


# Layouts and dtypes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_an_embedding_whose_dtype_was_settled_when_it_was_made(dtype):
    ours = Pair(lambda m, i: m.head(m.embed(i)), embed=nnx.Embed(7, 4, rngs=RNGS), head=nnx.Linear(4, 3, rngs=RNGS))
    theirs = TorchPair(lambda m, i: m.head(m.embed(i)), embed=torch.nn.Embedding(7, 4), head=torch.nn.Linear(4, 3))
    report = agree(ours, theirs, np.array([[0, 3, 6], [1, 1, 2]]), dtype=dtype, gradients=True)
    assert report.coverage.words() == "all 2 layers compared"


@pytest.mark.parametrize("size", [(2, 8, 5), (2, 8, 8)])
def test_a_group_norm_of_sequences(size):
    """(B, C, N) in PyTorch, (B, N, C) in JAX; with N = C the values decide."""
    ours = Pair(lambda m, x: m.norm(x.swapaxes(1, 2)).swapaxes(1, 2), norm=nnx.GroupNorm(8, 4, epsilon=1e-5, rngs=RNGS))
    theirs = TorchPair(lambda m, x: m.norm(x), norm=torch.nn.GroupNorm(4, 8))
    with torch.no_grad():
        theirs.norm.weight.copy_(torch.arange(1.0, 9))
    report = agree(ours, theirs, normal(*size))
    assert report.rows[0].layout == "axes (0, 2, 1)"


@pytest.mark.parametrize("tokens", [5, 2])
def test_heads_before_or_after_tokens(tokens):
    def theirs(m, x):
        heads = x.reshape(*x.shape[:2], 2, 4).transpose(1, 2)
        return verify.tap("heads", heads).transpose(1, 2).flatten(2) * m.gain

    ours = Pair(
        lambda m, x: verify.tap("heads", x.reshape(*x.shape[:2], 2, 4)).reshape(x.shape) * m.norm.scale[...],
        norm=nnx.LayerNorm(8, use_bias=False, rngs=RNGS),
    )
    twin = TorchPair(lambda m, x: theirs(SimpleGain(m.norm.weight), x), norm=torch.nn.LayerNorm(8, bias=False))
    report = agree(ours, twin, normal(3, tokens, 8))
    assert [row.layout for row in report.rows if row.name == "heads"] == ["axes (0, 2, 1, 3)"]


@dataclasses.dataclass
class SimpleGain:
    gain: Any


@pytest.mark.parametrize("batch", [2, 4])
def test_a_layer_norm_on_channels_last_within_a_torch_network(batch):
    """C = H = W: only the values tell that the norm's images are channels last on both sides, and all others are not."""

    def theirs(m, x):
        return m.conv2(m.norm(m.conv1(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2))

    convs = {name: nnx.Conv(4, 4, (3, 3), padding=1, rngs=RNGS) for name in ("conv1", "conv2")}
    ours = Pair(lambda m, x: m.conv2(m.norm(m.conv1(x))), norm=nnx.LayerNorm(4, epsilon=1e-5, rngs=RNGS), **convs)
    torch_convs = {name: torch.nn.Conv2d(4, 4, 3, padding=1) for name in ("conv1", "conv2")}
    twin = TorchPair(theirs, norm=torch.nn.LayerNorm(4), **torch_convs)
    report = agree(ours, twin, normal(batch, 4, 4, 4), gradients=True)
    assert [row.layout for row in report.rows[:3]] == ["axes (0, 2, 3, 1)", "", "axes (0, 2, 3, 1)"]


@pytest.mark.parametrize("kind", ["float", "bool"])
@pytest.mark.parametrize("given", [{}, {"layouts": {"mask": None}}])
def test_a_mask_is_no_image(kind, given):
    mask = np.where(np.tri(5, dtype=bool), 0.0, -1e9)[None, None].repeat(2, 0)
    mask = mask == 0 if kind == "bool" else mask

    def forward(module, x, mask, library):
        logits = module.q(x)[:, None] + (mask if kind == "float" else library.where(mask, 0.0, -1e9))
        return (library.exp(logits) @ x[:, None])[:, 0]

    def theirs(m, x, mask):
        return forward(m, x, mask, torch)

    ours = Pair(lambda m, x, mask: forward(m, x, mask, jnp), q=nnx.Linear(5, 5, rngs=RNGS))
    agree(ours, TorchPair(theirs, q=torch.nn.Linear(5, 5)), (normal(2, 5, 5), mask), **given)


@pytest.mark.parametrize("shape", [(2, 3, 6, 5), (2, 4, 4, 4)])
def test_a_port_that_keeps_channels_first(shape):
    width = shape[1]

    def ours(m, x):
        return m.conv(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)

    model = Pair(ours, conv=nnx.Conv(width, 4, (3, 3), padding=1, rngs=RNGS))
    twin = TorchPair(lambda m, x: m.conv(x), conv=torch.nn.Conv2d(width, 4, 3, padding=1))
    agree(model, twin, normal(*shape), gradients=True)
    # given, nothing is tried
    agree(model, twin, normal(*shape), layouts={"x": None})


class SingleNorm(torch.nn.LayerNorm):
    def forward(self, x):
        return F.layer_norm(x.float(), self.normalized_shape, self.weight.float(), self.bias.float(), self.eps).to(
            x.dtype
        )


def test_a_torch_layer_that_computes_in_float32():
    """It is said, it and what follows are held to float32's tolerance; and a fault behind it is still found."""
    first, last = nnx.Linear(6, 6, rngs=RNGS), nnx.Linear(6, 6, rngs=RNGS)

    def pair(epsilon, factor=1.0):
        norm = nnx.LayerNorm(6, epsilon=epsilon, rngs=RNGS)
        ours = Pair(lambda m, x: m.last(m.norm(m.first(x)) * factor), first=first, norm=norm, last=last)
        layers = {"first": torch.nn.Linear(6, 6), "norm": SingleNorm(6), "last": torch.nn.Linear(6, 6)}
        return ours, TorchPair(lambda m, x: m.last(m.norm(m.first(x))), **layers)

    report = agree(*pair(1e-5), normal(4, 6), gradients=True)
    assert any("`norm` computes in float32" in warning for warning in report.warnings)
    assert report.rows[0].tolerance == 1e-10 and report.rows[1].tolerance > 1e-6
    found = verify.compare(*pair(1e-5, 1.001), normal(4, 6))
    assert [fault.name for fault in found.faults] == ["last"] and found.faults[0].kind == "between"


def test_a_fault_below_float32s_tolerance():
    """An epsilon: the float64 runs of both sides tell what float32 does not."""
    torch.manual_seed(0)
    layers = {"first": nnx.Linear(6, 6, rngs=RNGS), "norm": nnx.LayerNorm(6, epsilon=1e-6, rngs=RNGS)}
    theirs = {"first": torch.nn.Linear(6, 6), "norm": torch.nn.LayerNorm(6)}
    ours = Pair(lambda m, x: m.norm(m.first(x)), **layers)
    twin = TorchPair(lambda m, x: m.norm(m.first(x)), **theirs)
    # the gradient of a norm's mean square is its epsilon alone, and differs in float32 as well
    report = verify.compare(ours, twin, 6 * normal(4, 6), dtype="float32", gradients=False)
    assert all(row.ok for row in report.rows), report.table(every_row=True)
    assert not report.ok and report.hidden.name == "norm"
    assert report.verdict().startswith("agrees in float32; differs in float64, first at layer: norm")
    assert [fault.cause for fault in report.faults] == ["epsilon 1e-06 in JAX, 1e-05 in PyTorch"]


def test_layouts_by_shape_and_by_values():
    image = normal(2, 3, 4, 5)
    assert [one.words() for one in fitting(image.shape, (2, 4, 5, 3))] == ["axes (0, 2, 3, 1)"]
    tokens = normal(2, 12, 3)
    for layout in fitting(tokens.shape, (2, 3, 4, 3)):
        np.testing.assert_array_equal(layout.to_torch(layout.to_jax(tokens), tokens.shape), tokens)
    assert fitting((2, 3), (2, 4)) == []
    cube = normal(2, 4, 4, 4)
    for order in ((0, 1, 2, 3), (0, 2, 3, 1), (0, 3, 1, 2), (0, 2, 1, 3)):
        assert decide(cube, cube.transpose(order), 1e-10) == (of_order(order, cube.shape), False)
    # neither agrees, and neither is nearer by far: it is undecided
    assert decide(cube, normal(2, 4, 4, 4), 1e-10)[1]
    # heads merged into the batch
    heads = normal(6, 5, 4)
    merged = heads.reshape(2, 3, 5, 4).transpose(0, 2, 1, 3)
    assert np.array_equal(decide(heads, merged, 1e-10)[0].to_jax(heads), merged)


def test_height_and_width_exchanged_is_no_layout():
    ours = Pair(lambda m, x: m.conv(x.swapaxes(1, 2)).swapaxes(1, 2), conv=nnx.Conv(3, 3, (1, 1), rngs=RNGS))
    twin = TorchPair(lambda m, x: m.conv(x), conv=torch.nn.Conv2d(3, 3, 1))
    report = verify.compare(ours, twin, normal(2, 3, 6, 6))
    assert report.faults[0].kind == "between" and report.faults[0].name == "conv"
    assert "axes are exchanged" in report.faults[0].place


# Libraries -------------------------------------------------------------------------------------------------------


def numpy_state(module):
    return {key: tensor.detach().numpy() for key, tensor in module.state_dict().items()}


class LinenBlock(nn.Module):
    width: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.Conv(self.width, (3, 3), padding=1, dtype=self.dtype)(x)
        x = nn.BatchNorm(use_running_average=not train, epsilon=1e-5, momentum=0.9, dtype=self.dtype)(x)
        return nn.Dropout(0.5, deterministic=False)(nn.relu(x))


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = LinenBlock(4, name="layers_0")(x)
        return nn.Dense(3, name="head")(x.mean((1, 2)))


def linen_pair():
    twin = TorchPair(
        lambda m, x: m.head(m.layers(x).mean((2, 3))),
        layers=torch.nn.Sequential(OrderedDict([("0", TorchBlock())])),
        head=torch.nn.Linear(4, 3),
    )
    state = numpy_state(twin)
    conv, norm = "layers.0.Conv.0", "layers.0.BatchNorm.0"
    params = {
        "layers_0": {
            "Conv_0": {"kernel": state[f"{conv}.weight"].transpose(2, 3, 1, 0), "bias": state[f"{conv}.bias"]},
            "BatchNorm_0": {"scale": state[f"{norm}.weight"], "bias": state[f"{norm}.bias"]},
        },
        "head": {"kernel": state["head.weight"].T, "bias": state["head.bias"]},
    }
    stats = {"layers_0": {"BatchNorm_0": {"mean": state[f"{norm}.running_mean"], "var": state[f"{norm}.running_var"]}}}
    return LinenNet(), {"params": params, "batch_stats": stats}, twin


class TorchBlock(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.Conv = torch.nn.ModuleList([torch.nn.Conv2d(3, 4, 3, padding=1)])
        self.BatchNorm = torch.nn.ModuleList([torch.nn.BatchNorm2d(4)])

    def forward(self, x):
        return F.dropout(torch.relu(self.BatchNorm[0](self.Conv[0](x))), training=self.training)


@pytest.mark.parametrize("training", [False, True])
def test_linen(training):
    """float32 settled in its layers, dropout, running statistics: all follow; "layers_0" is "layers.0"."""
    module, variables, twin = linen_pair()
    before = jax.tree.map(np.array, variables)
    report = verify.compare((module, variables), twin, normal(4, 3, 6, 6), training=training)
    names = [row.name for row in report.rows if row.stage == "layer"]
    assert names == ["layers_0.Conv_0", "layers_0.BatchNorm_0", "layers_0", "head"]
    # flax's running variance is biased, PyTorch's is not: a difference of the libraries, which is told
    assert [row.name for row in report.rows if not row.ok] == ["layers.0.BatchNorm.0.running_var"] * training, (
        report.table()
    )
    causes = [fault.cause for fault in report.faults]
    assert causes == ["JAX takes the biased variance into the running one, PyTorch the unbiased variance"] * training
    jax.tree.map(np.testing.assert_array_equal, before, variables)


def test_equinox():
    eqx = pytest.importorskip("equinox")

    class Net(eqx.Module):
        layers: list
        norm: eqx.nn.LayerNorm
        dropout: eqx.nn.Dropout

        def __call__(self, x):
            x = jax.nn.relu(self.layers[0](x))
            return self.dropout(self.layers[1](self.norm(x)))

    twin = TorchPair(
        lambda m, x: m.dropout(m.layers[1](m.norm(torch.relu(m.layers[0](x))))),
        layers=torch.nn.ModuleList([torch.nn.Linear(3, 5), torch.nn.Linear(5, 2)]),
        norm=torch.nn.LayerNorm(5),
        dropout=torch.nn.Dropout(0.5),
    )
    key = jax.random.key(0)
    model = Net([eqx.nn.Linear(3, 5, key=key), eqx.nn.Linear(5, 2, key=key)], eqx.nn.LayerNorm(5), eqx.nn.Dropout(0.5))
    for i in range(2):
        new = (jnp.asarray(twin.layers[i].weight.detach().numpy()), jnp.asarray(twin.layers[i].bias.detach().numpy()))
        model = eqx.tree_at(lambda m, i=i: (m.layers[i].weight, m.layers[i].bias), model, new)
    inputs = normal(4, 3)
    # alone it is mapped over the batch; in a function that maps it, its layers are known as well
    for side in (model, (lambda m, x: jax.vmap(m)(x), model), (lambda m, x: eqx.filter_vmap(m)(x), model)):
        for training in (False, True):
            report = agree(side, twin, inputs, training=training, gradients=True)
            assert report.coverage.words() == "all 4 layers compared", report.coverage
            assert [row.shape for row in report.rows[:2]] == [(4, 5), (4, 5)]


def test_functions_with_taps():
    weights = {"w1": normal(5, 8), "w2": normal(8, 3)}

    def ours(params, x, *, scale):
        h = verify.tap("hidden", jnp.tanh(x @ params["w1"]))
        return {"logits": verify.tap("logits", h @ params["w2"]) * scale, "hidden": h}

    def theirs(params, x, *, scale):
        h = verify.tap("hidden", torch.tanh(x @ params["w1"]))
        return {"logits": verify.tap("logits", h @ params["w2"]) * scale, "hidden": h}

    tensors = {key: torch.tensor(value) for key, value in weights.items()}
    report = agree((ours, weights), (theirs, tensors), ((normal(4, 5),), {"scale": 2.0}), gradients=True)
    assert [row.name for row in report.rows] == ["hidden", "logits", "output logits", "output hidden", "input 0"]
    assert verify.tap("anything", 3) == 3


def test_haiku():
    hk = pytest.importorskip("haiku")
    net = hk.transform(lambda x: hk.nets.MLP([5, 2])(x))
    twin = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.ReLU(), torch.nn.Linear(5, 2))
    params = {
        f"mlp/~/linear_{i}": {"w": layer.weight.detach().numpy().T, "b": layer.bias.detach().numpy()}
        for i, layer in enumerate((twin[0], twin[2]))
    }
    report = agree((net, params), twin, normal(4, 3), names={"mlp.linear_0": "0", "mlp.linear_1": "2"})
    assert report.coverage.compared == 2


class Layer(nnx.Module):
    def __init__(self, rngs):
        self.fc = nnx.Linear(4, 4, rngs=rngs)

    def __call__(self, x):
        return x + nnx.tanh(self.fc(x))


class TorchLayer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(4, 4)

    def forward(self, x):
        return x + torch.tanh(self.fc(x))


def remat(m, x):
    return nnx.remat(lambda layer, x: layer(x))(m.layer, x)


def jitted(m, x):
    return nnx.jit(lambda layer, x: layer(x))(m.layer, x)


@pytest.mark.parametrize("transform", [remat, jitted])
def test_layers_under_a_transformation(transform):
    """What is traced within another trace is watched there; and a fault within is found within."""
    model = Pair(transform, layer=Layer(RNGS))
    for _ in range(2):  # what nnx.jit compiled before does not hide it
        report = agree(model, TorchPair(lambda m, x: m.layer(x), layer=TorchLayer()), normal(3, 4), gradients=True)
        assert [row.name for row in report.rows[:2]] == ["layer.fc", "layer"]


def test_a_stack_that_is_scanned_is_compared_layer_by_layer():
    @nnx.vmap(in_axes=0, out_axes=0)
    def stack(rngs):
        return Layer(rngs)

    layers = stack(nnx.Rngs(0).fork(split=3))

    def scanned(m, x):
        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        def walk(x, layer):
            return layer(x)

        return walk(x, m.layers)

    twin = TorchPair(
        lambda m, x: torch.nn.Sequential(*m.layers)(x), layers=torch.nn.ModuleList(TorchLayer() for _ in "123")
    )
    model = Pair(scanned, layers=layers)
    with torch.no_grad():
        for i, layer in enumerate(twin.layers):
            layer.fc.weight.copy_(torch.tensor(np.array(layers.fc.kernel[...][i].T)))
            layer.fc.bias.copy_(torch.tensor(np.array(layers.fc.bias[...][i])))
    report = agree(model, twin, normal(2, 4), weights="own")
    expected = [f"layers{part}{turn}" for turn in ("", "#2", "#3") for part in (".fc", "")]
    assert [row.name for row in report.rows if row.stage == "layer"] == expected
    with torch.no_grad():
        twin.layers[1].fc.bias[2] += 0.1
    found = verify.compare(model, twin, normal(2, 4), weights="own", gradients=False)
    assert [fault.name for fault in found.faults] == ["layers.fc#2"]


# Inputs and outputs as they come ---------------------------------------------------------------------------------


@struct.dataclass
class Out:
    logits: Any
    ids: Any
    extra: Any = None


@dataclasses.dataclass
class TorchOut:
    logits: Any
    ids: Any
    extra: Any = None


class ModelOutput(OrderedDict):
    """As transformers returns."""


def structured():
    """One pair: keywords, booleans, integers, a nested dict; a dataclass with integers in it."""
    fc = nnx.Linear(4, 4, rngs=RNGS)

    def ours(m, x, *, batch, keep, times):
        logits = m.fc(x) * keep[:, None] + batch["bias"] * times
        return Out(logits, logits.argmax(-1))

    def theirs(m, x, *, batch, keep, times):
        logits = m.fc(x) * keep[:, None] + batch["bias"] * times
        return TorchOut(logits, logits.argmax(-1))

    inputs = ((normal(3, 4),), {"batch": {"bias": normal(4)}, "keep": np.array([True, False, True]), "times": 2})
    return Pair(ours, fc=fc), theirs, inputs


def test_structures_of_inputs_and_outputs():
    ours, theirs, inputs = structured()
    report = agree(ours, TorchPair(theirs, fc=torch.nn.Linear(4, 4)), inputs, gradients=True)
    outputs = {row.name: row for row in report.rows if row.stage == "output"}
    assert outputs.keys() == {"output logits", "output ids"}
    assert outputs["output ids"].tolerance == 0.0
    assert {row.name for row in report.rows if row.stage == "gradient"} >= {"input 0", "input batch.bias"}

    def others(m, *args, **kwargs):
        found = theirs(m, *args, **kwargs)
        return ModelOutput(logits=found.logits, ids=found.ids + 1)

    wrong = verify.compare(ours, TorchPair(others, fc=torch.nn.Linear(4, 4)), inputs, gradients=False)
    assert [row.name for row in wrong.rows if not row.ok] == ["output ids"]


def test_adapted_inputs_and_outputs_and_a_loss():
    ours = Pair(lambda m, batch: {"y": m.fc(batch["x"]).T}, fc=nnx.Linear(3, 2, rngs=RNGS))
    theirs = TorchPair(lambda m, x: (m.fc(x), None), fc=torch.nn.Linear(3, 2))
    options = {"adapt_inputs": lambda x: ({"x": x},), "adapt_output": lambda out: out["y"].T}
    loss = (lambda out: out["y"].sum(), lambda out: out[0].sum())
    agree(ours, theirs, normal(4, 3), gradients=True, loss=loss, **options)
    wrong = (lambda out: 2 * out["y"].sum(), loss[1])
    found = verify.compare(ours, theirs, normal(4, 3), loss=wrong, **options)
    assert found.first_divergence.stage == "gradient" and found.faults[0].kind == "gradient"


def test_submodules_that_return_tuples():
    class Both(nnx.Module):
        def __init__(self):
            self.fc = nnx.Linear(3, 3, rngs=RNGS)

        def __call__(self, x):
            return self.fc(x), {"twice": 2 * x}

    class TorchBoth(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = torch.nn.Linear(3, 3)

        def forward(self, x):
            return self.fc(x), {"twice": 2 * x}

    ours = Pair(lambda m, x: m.both(x)[0], both=Both())
    report = agree(ours, TorchPair(lambda m, x: m.both(x)[0], both=TorchBoth()), normal(2, 3))
    assert [row.name for row in report.rows[:3]] == ["both.fc", "both[0]", "both[1.twice]"]


def test_dropout_is_off_unless_asked_for():
    ours = Pair(lambda m, x: m.drop(m.fc(x)), fc=nnx.Linear(64, 64, rngs=RNGS), drop=nnx.Dropout(0.5, rngs=RNGS))

    def twin():
        def theirs(m, x):
            return F.dropout(m.drop(m.fc(x)), 0.25, training=m.training)

        return TorchPair(theirs, fc=torch.nn.Linear(64, 64), drop=torch.nn.Dropout(0.5))

    agree(ours, twin(), normal(4, 64), training=True, gradients=True)
    report = verify.compare(ours, twin(), normal(4, 64), training=True, dropout=True, gradients=False)
    assert any("dropout is left on" in warning for warning in report.warnings)
    assert not report.ok and "dropout is active" in report.faults[0].cause


# Coverage, tolerances, mistakes ----------------------------------------------------------------------------------


def two_layers():
    ours = Pair(lambda m, x: m.b(m.a(x)), a=nnx.Linear(3, 3, rngs=RNGS), b=nnx.Linear(3, 3, rngs=RNGS))
    theirs = TorchPair(
        lambda m, x: m.act(m.b(m.a(x))), a=torch.nn.Linear(3, 3), b=torch.nn.Linear(3, 3), act=torch.nn.Identity()
    )
    return ours, theirs


def test_coverage_is_told_everywhere():
    report = agree(*two_layers(), normal(2, 3), ignore=["b*"])
    said = "1 of 2 layers compared; not compared: 1 (act)"
    assert report.verdict().endswith(f"; {said}.") and said in report.table()
    assert report.to_dict()["coverage"] == {"compared": 1, "alone_in_jax": (), "alone_in_torch": ("act",), "hidden": ()}
    from ddpm_jax.verify.pages import to_html, to_markdown

    assert "1 of 2 layers compared" in to_html([report]) and said in to_markdown([report])


def test_tolerances_by_layer_and_by_quantity():
    ours, theirs = two_layers()
    broken = verify.compare(ours, theirs, normal(2, 3), tolerances={"a": 0.0}, gradients=False, single_step=False)
    assert [row.name for row in broken.rows if not row.ok] in (["a"], [])
    report = agree(ours, theirs, normal(2, 3), tolerances={"layer": 1e-3, "output": 2e-3})
    assert [row.tolerance for row in report.rows] == [1e-3, 1e-3, 2e-3]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"names": {"c": "b"}}, r"names holds 'c', which is no layer of the JAX side"),
        ({"names": {"a": "bb"}}, r"names holds 'bb', which is no layer of the PyTorch side\. Did you mean 'b'"),
        ({"trainng": True}, r"no option 'trainng'.*Did you mean 'training'"),
        ({"dtype": "float16"}, r"dtype must be one of float64, float32; got 'float16'"),
        ({"weights": "mine"}, r'weights must be "carried", "own" or a function'),
    ],
)
def test_mistakes(options, said):
    with pytest.raises(UserError, match=said):
        verify.compare(*two_layers(), normal(2, 3), **{"weights": "own", **options})


def test_what_is_refused_is_told():
    ours, theirs = two_layers()
    with pytest.raises(UserError, match=r"the PyTorch side refuses the inputs: RuntimeError: .*shape"):
        verify.compare(ours, theirs, normal(2, 4))
    with pytest.raises(UserError, match=r"the JAX side refuses the inputs: TypeError: "):
        verify.compare(ours, theirs, normal(2, 3), adapt_inputs=lambda x: (normal(2, 4),))
    with pytest.raises(UserError, match=r"jax_model must be an nnx.Module, .*; got a dict"):
        verify.compare({}, theirs, normal(2, 3))
    with pytest.raises(UserError, match=r"torch_model must be .*; got a dict"):
        verify.compare(ours, {}, normal(2, 3))
    with pytest.raises(UserError, match=r"(?s)different structures.*JAX: no array.*PyTorch: one array float64\(2, 3\)"):
        verify.compare(ours, theirs, normal(2, 3), adapt_output=lambda out: None, gradients=False)


def test_assert_parity_shows_the_table():
    ours, theirs = two_layers()
    assert verify.assert_parity(ours, theirs, normal(2, 3)).ok
    theirs.b.__class__ = type(
        "Twice", (torch.nn.Linear,), {"forward": lambda self, x: 2 * torch.nn.Linear.forward(self, x)}
    )
    with pytest.raises(
        AssertionError, match=r"(?s)FAULT `b` differs though it is fed alike.*JAX's is 0\.5 times PyTorch's"
    ):
        verify.assert_parity(ours, theirs, normal(2, 3))


def test_recordings_are_held_without_jax_and_torch():
    """What a recorder elsewhere wrote goes through the same code, in NumPy alone."""
    code = """
import sys
import numpy as np
from ddpm_jax import verify
rng = np.random.default_rng(0)
x, w = rng.standard_normal((4, 3)), rng.standard_normal((3, 3))
def side(name, activation):
    hidden = x @ w
    fed = activation(hidden)
    calls = [verify.Call("fc1", "Linear", {"0": x}, {"": hidden}), verify.Call("fc2", "Linear", {"0": fed}, {"": fed @ w})]
    return verify.Recording(name, calls, {"0": x}, {"": fed @ w}, environment={"dtype": "float64"})
report = verify.hold(side("JAX", np.tanh), side("PyTorch", lambda h: np.maximum(h, 0)))
print(report.table())
assert [f.kind for f in report.faults] == ["between"] and "tanh" in report.faults[0].cause and "ReLU" in report.faults[0].cause
verify.compare
heavy = {"jax", "torch", "flax", "orbax", "grain", "matplotlib"} & set(sys.modules)
assert heavy <= {"jax", "torch", "flax"}, heavy
diffusion = {"samplers", "processes", "schedules", "training", "data", "denoisers", "figures"}
assert not {f"ddpm_jax.{name}" for name in diffusion} & set(sys.modules)
"""
    code = code.replace("verify.compare\n", 'assert not {"jax", "torch", "flax"} & set(sys.modules)\nverify.compare\n')
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
