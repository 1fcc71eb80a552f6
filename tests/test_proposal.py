"""Names found between a JAX and a PyTorch network: right where there is one choice, said to be guessed where there were several."""

import jax
import jax.numpy as jnp
import pytest
from flax import linen, nnx

from ddpm_jax import verify, weights
from ddpm_jax.errors import UserError

torch = pytest.importorskip("torch")
T = torch.nn


def abstract(make):
    return nnx.eval_shape(lambda: make(nnx.Rngs(0)))


class Block(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.LayerNorm(8, rngs=rngs)
        self.attn = nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs)
        self.up, self.down = nnx.Linear(8, 16, rngs=rngs), nnx.Linear(16, 8, rngs=rngs)


class Net(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(11, 8, rngs=rngs)
        self.pos = nnx.Param(jnp.zeros((5, 8)))
        self.blocks = nnx.List([Block(rngs) for _ in range(2)])
        self.head = nnx.Linear(8, 3, rngs=rngs)


class TorchBlock(T.Module):
    def __init__(self):
        super().__init__()
        self.ln_1, self.self_attn = T.LayerNorm(8), T.MultiheadAttention(8, 2)
        self.fc1, self.fc2 = T.Linear(8, 16), T.Linear(16, 8)


class TorchNet(T.Module):
    def __init__(self):
        super().__init__()
        self.tok, self.position = T.Embedding(11, 8), T.Parameter(torch.zeros(5, 8))
        self.layers = T.ModuleList([TorchBlock() for _ in range(2)])
        self.classifier = T.Linear(8, 3)


def test_a_transformer():
    side, twin = abstract(Net), TorchNet()
    found = verify.propose(side, twin)
    assert found.names == {
        "embed": "tok",
        "blocks.0.norm": "layers.0.ln_1",
        "blocks.0.attn": "layers.0.self_attn",
        "blocks.0.up": "layers.0.fc1",
        "blocks.0.down": "layers.0.fc2",
        "blocks.1.norm": "layers.1.ln_1",
        "blocks.1.attn": "layers.1.self_attn",
        "blocks.1.up": "layers.1.fc1",
        "blocks.1.down": "layers.1.fc2",
        "head": "classifier",
        "pos": "position",
    }
    assert "blocks.0.norm" in found.guessed and not {"embed", "head", "pos"} & set(found.guessed)
    assert not found.jax_alone and not found.torch_alone
    weights.load_torch(side, twin.state_dict(), found.names)
    scope: dict = {}
    exec(found.text(), scope)
    assert scope["names"] == found.names and found.text().count("# guessed") == 8


def test_what_follows_is_said_once():
    class Pair(nnx.Module):
        def __init__(self, rngs):
            self.blocks = nnx.List([nnx.Linear(4, 4, rngs=rngs) for _ in range(12)])
            self.out = nnx.Linear(4, 2, rngs=rngs)

    class TorchPair(T.Module):
        def __init__(self):
            super().__init__()
            self.model = T.ModuleDict({"h": T.ModuleList([T.Linear(4, 4) for _ in range(12)]), "out": T.Linear(4, 2)})

    found = verify.propose(abstract(Pair), TorchPair())
    assert found.names == {"blocks": "model.h", "out": "model.out"}
    assert len(found.guessed) == 12 and found.pairs["blocks.10"] == "model.h.10"

    class Inner(nnx.Module):
        def __init__(self, rngs):
            self.h = nnx.List([nnx.Linear(4, 4, rngs=rngs) for _ in range(2)])
            self.out = nnx.Linear(4, 2, rngs=rngs)

    twin = TorchPair()
    twin.model["h"] = twin.model["h"][:2]
    assert verify.propose(abstract(Inner), twin).names == {"": "model"}


def test_linen_by_numbers():
    """Linen's dicts are sorted by name, 10 before 2: numbers decide."""

    class Deep(linen.Module):
        @linen.compact
        def __call__(self, x):
            for _ in range(11):
                x = linen.Dense(4)(x)
            return x

    variables = jax.eval_shape(Deep().init, jax.random.key(0), jnp.zeros((1, 4)))
    found = verify.propose(variables, T.Sequential(*(T.Linear(4, 4) for _ in range(11))))
    assert found.names == {f"Dense_{i}": str(i) for i in range(11)}


def test_what_fits_nothing_is_said():
    found = verify.propose(abstract(lambda rngs: nnx.Linear(3, 4, rngs=rngs)), T.Linear(3, 5))
    assert (found.names, sorted(found.jax_alone), found.torch_alone) == ({}, ["bias", "kernel"], ("weight", "bias"))
    assert "# JAX alone: bias, kernel\n# PyTorch alone: weight, bias" in found.text()
    with pytest.raises(UserError, match=r"torch_side must be a torch.nn.Module or a state dict; got a float"):
        verify.propose(abstract(Net), 3.0)
    with pytest.raises(UserError, match="the JAX side must hold arrays; a dict holds none"):
        verify.propose({}, TorchNet())
