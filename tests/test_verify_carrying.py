"""Weights carried over to any JAX side by names, expressions and rules; and what real pairs of other libraries taught."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen as nn
from flax import nnx

from ddpm_jax import verify
from ddpm_jax.errors import UserError
from ddpm_jax.paths import listed, renamed
from ddpm_jax.weights import Rule


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


RNG = np.random.default_rng(0)
TOKENS = RNG.integers(0, 7, (2, 5))


class Block(nn.Module):
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        return x + nn.Dense(8, name="dense_0", dtype=self.dtype)(nn.LayerNorm(epsilon=1e-5, dtype=self.dtype)(x))


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        h = nn.Embed(7, 8, name="embed")(tokens) + nn.Embed(5, 8, name="where")(jnp.arange(5))
        return {"logits": nn.Dense(3, name="head")(Block(name="blocks_0")(h)), "hidden": h}


class TorchBlock(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = torch.nn.LayerNorm(8)
        self.dense = torch.nn.ModuleList([torch.nn.Linear(8, 8)])

    def forward(self, x):
        return x + self.dense[0](self.norm(x))


class TorchNet(torch.nn.Module):
    """Positions computed once for all examples, a mask in the default dtype, padding, and an output that JAX has not."""

    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(7, 8, padding_idx=int(TOKENS[0, 0]))
        self.where = torch.nn.Embedding(5, 8)
        self.blocks = torch.nn.ModuleList([TorchBlock()])
        self.head = torch.nn.Linear(8, 3)
        self.register_buffer("table", torch.zeros(4))

    def forward(self, tokens):
        mask = torch.full((1, 5, 1), torch.finfo(self.head.weight.dtype).min).clamp(min=0)
        h = self.embed(tokens) + self.where(torch.arange(5)[None]) + mask
        return {"logits": self.head(self.blocks[0](h)), "hidden": h, "cache": 3 * h}


NAMES = {r"blocks_(\d+)\.LayerNorm_0": r"blocks.\1.norm"}


def linen_pair():
    torch.manual_seed(0)
    module = LinenNet()
    return (module, module.init(jax.random.key(0), TOKENS)), TorchNet()


def parameters(report):
    return {row.name for row in report.rows if row.stage == "gradient" and not row.name.startswith("input ")}


@pytest.mark.parametrize("wrapped", [False, True])
def test_linen_is_filled_and_watched_also_within_a_function(wrapped):
    (module, variables), theirs = linen_pair()
    side = (
        (lambda params, x: module.apply({"params": params}, x), variables["params"]) if wrapped else (module, variables)
    )
    report = verify.compare(side, theirs, TOKENS, weights="carried", names=NAMES)
    assert report.ok and not report.faults, report.table()
    assert report.coverage.compared == 6
    assert parameters(report) == {name for name, _ in theirs.named_parameters()}
    assert any("padding_idx" in warning for warning in report.warnings)


def test_a_port_that_has_the_weights_has_its_gradients_compared_by_name():
    (module, variables), theirs = linen_pair()
    filled = verify.compare((module, variables), theirs, TOKENS, names=NAMES)
    assert not parameters(filled)  # other numbers: nothing says that the names mean the same
    from ddpm_jax.weights import load_torch

    variables = load_torch(
        variables,
        {k: x for k, x in theirs.state_dict().items() if k != "table"},
        {**NAMES, "blocks_0.dense_0": "blocks.0.dense.0"},
    )
    report = verify.compare((module, variables), theirs, TOKENS, names=NAMES)
    assert report.ok and parameters(report) == {name for name, _ in theirs.named_parameters()}, report.table()


def test_a_rule_that_forgets_to_turn_a_kernel_is_located():
    rules = {r"blocks_(\d+)\.dense_0\.kernel": Rule(r"blocks.\1.dense.0.weight")}
    report = verify.compare(*linen_pair(), TOKENS, weights="carried", names=NAMES, rules=rules)
    assert [fault.name for fault in report.faults] == ["blocks_0.dense_0"], report.table()
    assert "transposed" in report.faults[0].cause


def test_what_is_ignored_needs_no_partner():
    (module, variables), theirs = linen_pair()
    theirs.extra = torch.nn.Linear(2, 2)
    variables["params"]["own"] = {"kernel": jnp.ones((3, 3))}
    report = verify.compare(
        (module, variables), theirs, TOKENS, weights="carried", names=NAMES, ignore=["extra", r"own\..*"]
    )
    assert report.ok, report.table()
    with pytest.raises(UserError, match=r"(?s)do not correspond.*extra\.weight \(2, 2\)"):
        verify.compare((module, variables), theirs, TOKENS, weights="carried", names=NAMES, ignore=["own"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rules": {"nowhere": Rule("head.weight")}}, "rules: 'nowhere' fits no path"),
        (
            {"rules": {r"head\.kernel": Rule("head.weight", lambda w: w.reshape(4, 6))}},
            r"makes \(4, 6\) of head.weight; .* \(8, 3\)",
        ),
        ({"names": {**NAMES, r"layers_(\d)": r"blocks.\1"}}, r"holds 'layers_"),
        ({"names": {**NAMES, r"hea(d)": r"foot_\1"}}, "do not correspond"),
        ({"names": {**NAMES, "haed": "head", "head": "x"}}, "names: 'haed' fits no path"),
    ],
)
def test_mistakes(options, said):
    given = {"weights": "carried", "names": NAMES, **options}
    with pytest.raises(UserError, match=said):
        verify.compare(*linen_pair(), TOKENS, **given)


def test_weights_cannot_come_from_a_function():
    with pytest.raises(UserError, match=r"carried from a torch\.nn\.Module"):
        verify.compare((lambda p, x: x @ p, np.eye(3)), lambda x: x, RNG.standard_normal((2, 3)), weights="carried")


class Tied(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = torch.nn.Embedding(7, 4), torch.nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        return self.head(torch.tanh(self.embed(tokens)))


class NnxTied(nnx.Module):
    def __init__(self):
        self.embed = nnx.Embed(7, 4, rngs=nnx.Rngs(0))

    def __call__(self, tokens):
        return self.embed.attend(jnp.tanh(self.embed(tokens)))


def test_a_tied_tensor_is_one_array():
    report = verify.compare(NnxTied(), Tied(), TOKENS)
    assert report.ok and parameters(report) == {"embed.weight"}, report.table()


class Apart(nnx.Module):
    def __init__(self):
        self.q, self.k = (nnx.Linear(4, 6, use_bias=False, rngs=nnx.Rngs(seed)) for seed in range(2))

    def __call__(self, x):
        return self.q(x) @ self.k(x).T


class Fused(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.qk = torch.nn.Linear(4, 12, bias=False)

    def forward(self, x):
        q, k = self.qk(x).chunk(2, -1)
        return q @ k.T


def test_parts_of_a_fused_tensor():
    """A function with no layer that both have: its gradient is put together of both parts."""
    rules = {"q.kernel": Rule("qk.weight", lambda w: w[:6].T), "k.kernel": Rule("qk.weight", lambda w: w[6:].T)}
    x = RNG.standard_normal((3, 4))
    report = verify.compare(Apart(), Fused(), x, rules=rules)
    assert report.ok and parameters(report) == {"qk.weight"}, report.table()
    exchanged = dict(zip(rules, reversed(rules.values()), strict=True))
    assert not verify.compare(Apart(), Fused(), x, rules=exchanged).ok


class Single(nnx.Module):
    """Some code in the middle computes in float32, and returns float64."""

    def __init__(self, epsilon):
        self.first, self.second = nnx.Linear(8, 8, rngs=nnx.Rngs(0)), nnx.Linear(8, 8, rngs=nnx.Rngs(1))
        self.norm = nnx.LayerNorm(8, epsilon=epsilon, rngs=nnx.Rngs(0))

    def __call__(self, x):
        h = self.first(x)
        h = self.second(jax.nn.softmax(h.astype(jnp.float32)).astype(x.dtype) + x)
        return self.norm(h)


class TorchSingle(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.norm = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8), torch.nn.LayerNorm(8)

    def forward(self, x):
        return self.norm(self.second(torch.softmax(self.first(x), -1) + x))


def test_jax_code_that_computes_in_float32_is_seen():
    torch.manual_seed(0)
    theirs, x = TorchSingle(), RNG.standard_normal((4, 8))
    report = verify.compare(Single(1e-5), theirs, x)
    assert report.ok and report.warnings == [
        "`second` computes in float32: it, and what comes of it, is held to float32's tolerance."
    ], report.table()
    # an epsilon that float32's tolerance would excuse is found all the same
    report = verify.compare(Single(1.1e-5), theirs, x)
    assert [(fault.name, fault.cause) for fault in report.faults] == [
        ("norm", "epsilon 1.1e-05 in JAX, 1e-05 in PyTorch")
    ], report.table()


def test_paths():
    names = {"layers": "blocks", r"layers\.(\d+)\.attn\.(q|k)": r"blocks.\1.attention.\2", "": "model"}
    assert renamed("layers.3.mlp", names) == ("blocks.3.mlp", "layers")
    assert renamed("layers.3.attn.q.kernel", names) == ("blocks.3.attention.q.kernel", r"layers\.(\d+)\.attn\.(q|k)")
    assert renamed("head", names) == ("model.head", "") and renamed("head", {}) == ("head", None)
    assert listed("a.norm.scale", ["*.norm"]) and listed("a.norm.scale", [r".*\.norm"]) and not listed("ab", ["a.*"])
    assert listed("blocks.0.x", [r"blocks\.\d"]) and not listed("blocks.0.x", [r"blocks\.(1"])


def test_what_does_not_correspond_is_told_with_names_that_would():
    torch.manual_seed(0)
    theirs = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    params = {
        "first": {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4)},
        "last": {"kernel": jnp.ones((4, 2)), "bias": jnp.ones(2)},
    }

    def ours(params, x):
        for layer in params.values():
            x = x @ layer["kernel"] + layer["bias"]
        return x

    with pytest.raises(UserError, match=r"first\.bias fits no tensor of PyTorch's by its name") as raised:
        verify.compare((ours, params), theirs, np.ones((2, 3)), weights="carried")
    told = str(raised.value).partition("verify.propose finds:\n")[2]
    names = {}
    exec(told, names)
    assert names["names"] == {"first": "0", "last": "1"}
    assert verify.compare((ours, params), theirs, np.ones((2, 3)), weights="carried", names=names["names"]).ok
