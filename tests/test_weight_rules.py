"""The rule of every stock layer: with PyTorch's weights carried over, the layer returns what PyTorch's returns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from ddpm_jax import weights
from ddpm_jax.errors import UserError
from ddpm_jax.weights.bridge import gradients_by_tensor, tensors_from
from ddpm_jax.weights.structure import leaves_by_path, linen_modules

torch = pytest.importorskip("torch")
T = torch.nn
R = np.random.default_rng(0)


def tensor(array):
    return torch.from_numpy(np.array(array))


def last(array):
    """Channels last."""
    return jnp.asarray(np.moveaxis(np.asarray(array), 1, -1))


def first(array):
    return np.moveaxis(np.asarray(array), -1, 1)


def drawn(module):
    """A torch layer in float64, of which no parameter or statistic is 0 or 1."""
    module = module.double().eval()
    with torch.no_grad():
        for name, array in module.state_dict().items():
            if array.is_floating_point():
                array.copy_(tensor(R.uniform(0.5, 1.5, array.shape) if "var" in name else R.normal(size=array.shape)))
    return module


def close(ours, theirs, within=1e-12):
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape and np.abs(ours - theirs).max() < within * max(1, np.abs(theirs).max())


def image(*shape):
    return R.normal(size=shape)


def rngs():
    return nnx.Rngs(0)


def run(layer, *inputs):
    return jax.jit(lambda *inputs: layer(*inputs))(*inputs)


DOUBLE = {"dtype": jnp.float64, "param_dtype": jnp.float64}  # these take float32 as their own otherwise
NO = {"use_fast_variance": False}
LAYERS = {
    "Linear": (lambda: nnx.Linear(3, 4, rngs=rngs()), lambda: T.Linear(3, 4), (2, 3), False),
    "Conv1d": (lambda: nnx.Conv(3, 4, (3,), padding=1, rngs=rngs()), lambda: T.Conv1d(3, 4, 3, padding=1), (2, 3, 5), True),
    "Conv2d": (lambda: nnx.Conv(4, 6, (3, 2), feature_group_count=2, padding=1, rngs=rngs()),
               lambda: T.Conv2d(4, 6, (3, 2), padding=1, groups=2), (2, 4, 5, 6), True),
    "Conv3d": (lambda: nnx.Conv(2, 3, (2, 3, 1), padding="VALID", rngs=rngs()), lambda: T.Conv3d(2, 3, (2, 3, 1)), (1, 2, 3, 4, 5), True),
    "ConvTranspose1d": (lambda: nnx.ConvTranspose(3, 4, (3,), padding="VALID", rngs=rngs()), lambda: T.ConvTranspose1d(3, 4, 3), (2, 3, 5), True),
    "ConvTranspose2d": (lambda: nnx.ConvTranspose(3, 3, (2, 3), strides=(2, 3), padding="VALID", rngs=rngs()),
                        lambda: T.ConvTranspose2d(3, 3, (2, 3), stride=(2, 3)), (2, 3, 4, 4), True),
    "ConvTranspose2d, transpose_kernel": (
        lambda: nnx.ConvTranspose(3, 4, (2, 2), strides=(2, 2), padding="VALID", transpose_kernel=True, rngs=rngs()),
        lambda: T.ConvTranspose2d(3, 4, 2, stride=2), (2, 3, 4, 4), True),
    "BatchNorm": (lambda: nnx.BatchNorm(3, use_running_average=True, epsilon=1e-5, rngs=rngs()), lambda: T.BatchNorm2d(3), (2, 3, 4, 4), True),
    "LayerNorm": (lambda: nnx.LayerNorm(5, epsilon=1e-5, rngs=rngs(), **NO), lambda: T.LayerNorm(5), (2, 3, 5), False),
    "GroupNorm": (lambda: nnx.GroupNorm(6, 2, epsilon=1e-5, rngs=rngs(), **NO), lambda: T.GroupNorm(2, 6), (2, 6, 3, 3), True),
    "InstanceNorm": (lambda: nnx.InstanceNorm(3, epsilon=1e-5, rngs=rngs(), **NO), lambda: T.InstanceNorm2d(3, affine=True), (2, 3, 4, 4), True),
    "RMSNorm": (lambda: nnx.RMSNorm(5, epsilon=1e-5, rngs=rngs()), lambda: T.RMSNorm(5, eps=1e-5), (2, 5), False),
    "PReLU": (lambda: nnx.PReLU(), lambda: T.PReLU(), (2, 3), False),
    "LinearGeneral": (lambda: nnx.LinearGeneral((2, 3), (4, 5), axis=(-2, -1), rngs=rngs()),
                      lambda: T.Sequential(T.Flatten(-2), T.Linear(6, 20), T.Unflatten(-1, (4, 5))), (7, 2, 3), False),
    "Einsum": (lambda: nnx.Einsum("btd,dhk->bthk", (3, 2, 4), (2, 4), rngs=rngs()),
               lambda: T.Sequential(T.Identity(), T.Linear(3, 8), T.Unflatten(-1, (2, 4))), (2, 5, 3), False),
}  # fmt: skip
INNER = {"LinearGeneral": {"": "1"}, "Einsum": {"": "1"}}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_of_nnx(name):
    with jax.enable_x64(True):
        make, twin, shape, images = LAYERS[name]
        twin, x = drawn(twin()), image(*shape)
        layer = weights.load_torch(nnx.eval_shape(make), twin.state_dict(), INNER.get(name))
        ours = run(layer, last(x) if images else jnp.asarray(x))
        close(first(ours) if images else ours, twin(tensor(x)).detach())


def test_tables_look_up():
    with jax.enable_x64(True):
        twin = drawn(T.Embedding(7, 3))
        layer = weights.load_torch(
            nnx.Embed(7, 3, param_dtype=jnp.float64, dtype=jnp.float64, rngs=rngs()), twin.state_dict()
        )
        close(layer(jnp.array([1, 6])), twin(torch.tensor([1, 6])).detach())


# linen


LINEN = {
    "Dense": (lambda: linen.Dense(4), lambda: T.Linear(3, 4), (2, 3), False),
    "Conv": (lambda: linen.Conv(3, (3, 2), padding=1), lambda: T.Conv2d(3, 3, (3, 2), padding=1), (2, 3, 5, 5), True),
    "ConvTranspose": (lambda: linen.ConvTranspose(3, (3, 2), padding="VALID"), lambda: T.ConvTranspose2d(3, 3, (3, 2)), (2, 3, 4, 4), True),
    "DenseGeneral": (lambda: linen.DenseGeneral((4, 2)), lambda: T.Sequential(T.Linear(3, 8), T.Unflatten(-1, (4, 2))), (2, 3), False),
    "BatchNorm": (lambda: linen.BatchNorm(use_running_average=True), lambda: T.BatchNorm2d(3), (2, 3, 4, 4), True),
    "LayerNorm": (lambda: linen.LayerNorm(epsilon=1e-5, use_fast_variance=False), lambda: T.LayerNorm(5), (2, 5), False),
    "GroupNorm": (lambda: linen.GroupNorm(2, epsilon=1e-5, use_fast_variance=False), lambda: T.GroupNorm(2, 6), (2, 6, 3, 3), True),
    "RMSNorm": (lambda: linen.RMSNorm(epsilon=1e-5), lambda: T.RMSNorm(5, eps=1e-5), (2, 5), False),
    "PReLU": (lambda: linen.PReLU(), lambda: T.PReLU(), (2, 3), False),
    "Einsum": (lambda: linen.Einsum((3, 8), "bd,de->be"), lambda: T.Linear(3, 8), (2, 3), False),
}  # fmt: skip


class Held(linen.Module):
    """A linen layer under a name."""

    make: object

    def setup(self):
        self.layer = self.make()

    def __call__(self, *inputs):
        return self.layer(*inputs)


@pytest.mark.parametrize("name", LINEN)
def test_layers_of_linen(name):
    make, twin, shape, images = LINEN[name]
    with jax.enable_x64(True):
        twin, x = drawn(twin()), image(*shape)
        x_j = last(x) if images else jnp.asarray(x)
        module = Held(make)
        variables = jax.eval_shape(module.init, jax.random.key(0), x_j)
        names = {"layer": "0" if name == "DenseGeneral" else ""}
        filled = weights.load_torch(variables, twin.state_dict(), names, modules=linen_modules(module, variables, x_j))
        ours = run(module.apply, filled, x_j)
        close(first(ours) if images else ours, twin(tensor(x)).detach())
        if name not in (
            "ConvTranspose",
            "Einsum",
        ):  # square, or without a type: what cannot be told from names and shapes
            guessed = weights.load_torch(variables, twin.state_dict(), names)
            assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), filled, guessed))


# equinox


def of_equinox(eqx):
    key = jax.random.key(0)
    return {
        "Linear": (eqx.nn.Linear(3, 4, key=key), T.Linear(3, 4), (3,)),
        "Conv2d": (eqx.nn.Conv2d(4, 6, (3, 2), padding=1, groups=2, key=key), T.Conv2d(4, 6, (3, 2), padding=1, groups=2), (4, 5, 5)),
        "ConvTranspose2d": (eqx.nn.ConvTranspose2d(4, 6, (3, 2), stride=2, groups=2, key=key), T.ConvTranspose2d(4, 6, (3, 2), stride=2, groups=2), (4, 5, 5)),
        "LayerNorm": (eqx.nn.LayerNorm(5), T.LayerNorm(5), (5,)),
        "GroupNorm": (eqx.nn.GroupNorm(2, 6), T.GroupNorm(2, 6), (6, 3, 3)),
        "RMSNorm": (eqx.nn.RMSNorm(5, eps=1e-5, use_bias=False), T.RMSNorm(5, eps=1e-5), (5,)),
        "PReLU": (eqx.nn.PReLU(), T.PReLU(), (3,)),
    }  # fmt: skip


@pytest.mark.parametrize("name", ["Linear", "Conv2d", "ConvTranspose2d", "LayerNorm", "GroupNorm", "RMSNorm", "PReLU"])
def test_layers_of_equinox(name):
    eqx = pytest.importorskip("equinox")
    with jax.enable_x64(True):
        layer, twin, shape = of_equinox(eqx)[name]
        twin, x = drawn(twin), image(*shape)
        filled = weights.load_torch(layer, twin.state_dict())
        close(filled(jnp.asarray(x)), twin(tensor(x)[None])[0].detach())


def test_attention_of_equinox():
    eqx = pytest.importorskip("equinox")
    with jax.enable_x64(True):
        twin, x = drawn(T.MultiheadAttention(6, 2, batch_first=True)), image(5, 6)
        bias = {f"use_{part}_bias": True for part in ("query", "key", "value", "output")}
        layer = eqx.nn.MultiheadAttention(2, 6, key=jax.random.key(0), **bias)
        filled = weights.load_torch(layer, twin.state_dict())
        close(filled(*[jnp.asarray(x)] * 3), twin(*[tensor(x)[None]] * 3)[0][0].detach())


@pytest.mark.parametrize("kind", ["LSTMCell", "GRUCell"])
def test_cells_of_equinox(kind):
    eqx = pytest.importorskip("equinox")
    with jax.enable_x64(True):
        twin, x, h = drawn(getattr(T, kind)(3, 4)), image(3), image(4)
        cell = weights.load_torch(getattr(eqx.nn, kind)(3, 4, key=jax.random.key(0)), twin.state_dict())
        state, twin_state = (
            (h, tensor(h)[None]) if kind == "GRUCell" else ((h, 2 * h), (tensor(h)[None], 2 * tensor(h)[None]))
        )
        ours, theirs = cell(jnp.asarray(x), jax.tree.map(jnp.asarray, state)), twin(tensor(x)[None], twin_state)
        close(
            jnp.stack(jax.tree.leaves(ours)),
            torch.stack([t[0] for t in (theirs if kind == "LSTMCell" else (theirs,))]).detach(),
        )


# Attention and recurrence, in one piece in PyTorch and in several here


@pytest.mark.parametrize("flax", ["nnx", "linen"])
@pytest.mark.parametrize("fused", [True, False])
def test_attention(flax, fused):
    class Split(T.Module):
        def __init__(self):
            super().__init__()
            self.query, self.key, self.value, self.out = (T.Linear(6, 6) for _ in range(4))

        def forward(self, x):
            q, k, v = (layer(x).unflatten(-1, (2, 3)).transpose(1, 2) for layer in (self.query, self.key, self.value))
            return self.out(T.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    with jax.enable_x64(True):
        twin, x = drawn(T.MultiheadAttention(6, 2, batch_first=True) if fused else Split()), image(2, 5, 6)
        theirs = twin(*[tensor(x)] * 3)[0] if fused else twin(tensor(x))
        if flax == "nnx":
            layer = nnx.eval_shape(
                lambda: nnx.MultiHeadAttention(2, 6, decode=False, deterministic=True, **DOUBLE, rngs=rngs())
            )
            ours = run(weights.load_torch(layer, twin.state_dict()), jnp.asarray(x))
        else:
            module = linen.MultiHeadDotProductAttention(2)
            variables = jax.eval_shape(module.init, jax.random.key(0), jnp.asarray(x))
            ours = run(module.apply, weights.load_torch(variables, twin.state_dict()), jnp.asarray(x))
        # jax.nn.dot_product_attention, which nnx calls, takes its softmax in float32
        close(ours, theirs.detach(), 1e-6 if flax == "nnx" else 1e-12)


@pytest.mark.parametrize("flax, kind", [("nnx", "LSTMCell"), ("nnx", "OptimizedLSTMCell"), ("nnx", "GRUCell"), ("nnx", "SimpleCell"),
                                        ("linen", "LSTMCell"), ("linen", "OptimizedLSTMCell"), ("linen", "GRUCell")])  # fmt: skip
def test_cells(flax, kind):
    with jax.enable_x64(True):
        name = {"SimpleCell": "RNNCell", "OptimizedLSTMCell": "LSTMCell"}.get(kind, kind)
        twin, x, h = drawn(getattr(T, name)(3, 4)), image(2, 3), image(2, 4)
        if (flax, kind) == ("nnx", "GRUCell"):  # which has no bias within the product with r
            with torch.no_grad():
                twin.bias_hh[8:] = 0
        carry = (jnp.asarray(2 * h), jnp.asarray(h)) if "LSTM" in kind else jnp.asarray(h)  # flax: (c, h)
        theirs = twin(tensor(x), (tensor(h), tensor(2 * h)) if "LSTM" in kind else tensor(h))
        theirs = theirs[0] if "LSTM" in kind else theirs
        if flax == "nnx":
            cell = nnx.eval_shape(lambda: getattr(nnx, kind)(3, 4, **DOUBLE, rngs=rngs()))
            _, ours = run(weights.load_torch(cell, twin.state_dict()), carry, jnp.asarray(x))
        else:
            module = getattr(linen, kind)(4)
            variables = jax.eval_shape(module.init, jax.random.key(0), carry, jnp.asarray(x))
            _, ours = run(module.apply, weights.load_torch(variables, twin.state_dict()), carry, jnp.asarray(x))
        close(ours, theirs.detach())


def test_layers_of_a_recurrent_network():
    with jax.enable_x64(True):
        twin = drawn(T.LSTM(3, 4, batch_first=True))
        rnn = nnx.RNN(nnx.OptimizedLSTMCell(3, 4, **DOUBLE, rngs=rngs()), rngs=rngs())
        x = image(2, 6, 3)
        close(weights.load_torch(rnn, twin.state_dict(), {"cell": ""})(jnp.asarray(x)), twin(tensor(x))[0].detach())


# Rules of one's own


class Qkv(nnx.Module):
    def __init__(self, split):
        self.gain = nnx.Param(jnp.ones(6))
        if split:
            self.q, self.k, self.v = (nnx.Linear(6, 6, rngs=rngs()) for _ in range(3))
        else:
            self.qkv = nnx.Linear(6, 18, rngs=rngs())
        self.split = split

    def __call__(self, x):
        x = x * self.gain[...]
        return jnp.concatenate([self.q(x), self.k(x), self.v(x)], -1) if self.split else self.qkv(x)


class TorchQkv(T.Module):
    def __init__(self, split):
        super().__init__()
        self.gain, self.split = T.Parameter(torch.ones(6)), split
        self.register_buffer("table", torch.ones(3))
        if split:
            self.q, self.k, self.v = (T.Linear(6, 6) for _ in range(3))
        else:
            self.qkv = T.Linear(6, 18)

    def forward(self, x):
        x = x * self.gain
        return torch.cat([self.q(x), self.k(x), self.v(x)], -1) if self.split else self.qkv(x)


STACKED = {
    "qkv.kernel": weights.Rule(("q.weight", "k.weight", "v.weight"), lambda q, k, v: jnp.concatenate([q, k, v]).T),
    "qkv.bias": weights.Rule(("q.bias", "k.bias", "v.bias"), lambda *parts: jnp.concatenate(parts)),
}
APART = {
    f"{name}.{array}": weights.Rule(f"qkv.{torch_name}", lambda w, i=i: w[6 * i : 6 * i + 6].T)
    for i, name in enumerate("qkv")
    for array, torch_name in (("kernel", "weight"), ("bias", "bias"))
}


@pytest.mark.parametrize("rules, ours_split", [(STACKED, False), (APART, True)])
def test_fused_against_split(rules, ours_split):
    """Outputs, gradients under PyTorch's names, and the way back."""
    with jax.enable_x64(True):
        twin, x = drawn(TorchQkv(not ours_split)), image(5, 6)
        state = twin.state_dict()
        model = weights.load_torch(Qkv(ours_split), state, rules=rules, ignore=["table"])
        close(model(jnp.asarray(x)), twin(tensor(x)).detach())
        twin(tensor(x)).square().sum().backward()
        grads = nnx.grad(lambda m: jnp.square(m(jnp.asarray(x))).sum())(model)
        entries = weights.layout(model, theirs=state, rules=rules, ignore=["table"])
        leaves = {("params", *path): leaf for path, leaf in leaves_by_path(nnx.to_pure_dict(grads)).items()}
        found = gradients_by_tensor(entries, leaves)
        assert found.keys() == {name for name, _ in twin.named_parameters()}
        for name, parameter in twin.named_parameters():
            close(found[name], parameter.grad)
        params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
        back = tensors_from(entries, {("params", *path): leaf for path, leaf in leaves_by_path(params).items()})
        for name, array in back.items():
            np.testing.assert_array_equal(array, state[name].numpy())


def test_tied_weights_and_names_by_expression():
    class Tied(T.Module):
        def __init__(self):
            super().__init__()
            self.embed = T.Embedding(7, 4)
            self.layers = T.ModuleList([T.Linear(4, 4) for _ in range(2)])

        def forward(self, tokens):
            h = self.embed(tokens)
            for layer in self.layers:
                h = layer(h)
            return h @ self.embed.weight.T

    with jax.enable_x64(True):
        twin = drawn(Tied())
        tree = {
            "embed": {"embedding": jnp.zeros((7, 4))},
            **{f"block_{i}": {"kernel": jnp.zeros((4, 4)), "bias": jnp.zeros(4)} for i in range(2)},
            "head": {"kernel": jnp.zeros((4, 7))},
        }
        how = {
            "names": {r"block_(\d+)": r"layers.\1"},
            "rules": {"head.kernel": weights.Rule("embed.weight", lambda w: w.T)},
        }

        def network(tree, tokens):
            h = tree["embed"]["embedding"][tokens]
            for i in range(2):
                h = h @ tree[f"block_{i}"]["kernel"] + tree[f"block_{i}"]["bias"]
            return h @ tree["head"]["kernel"]

        filled, tokens = weights.load_torch(tree, twin.state_dict(), **how), jnp.array([0, 3, 6])
        theirs = twin(torch.tensor([0, 3, 6]))
        close(network(filled, tokens), theirs.detach())
        theirs.square().sum().backward()
        grads = jax.grad(lambda tree: jnp.square(network(tree, tokens)).sum())(filled)
        entries = weights.layout(tree, theirs=twin.state_dict(), **how)
        found = gradients_by_tensor(entries, leaves_by_path(grads))
        close(found["embed.weight"], twin.embed.weight.grad)  # both uses of the one table
        back = tensors_from(entries, leaves_by_path(filled))
        np.testing.assert_array_equal(back["embed.weight"], twin.embed.weight.detach().numpy())


@pytest.mark.parametrize("said, message", [
    ({"names": {"qkvv": "x"}}, r"names: 'qkvv' fits no path of the JAX side\. Did you mean 'qkv'"),
    ({"rules": {"qkv.weight": weights.Rule("x")}}, r"rules: 'qkv\.weight' fits no path"),
    ({"ignore": ["tabel"]}, r"ignore: 'tabel' fits no path"),
    ({}, r"not of this network: table \(3,\)"),
])  # fmt: skip
def test_what_fits_nothing_is_an_error(said, message):
    with pytest.raises(UserError, match=message):
        weights.load_torch(Qkv(False), TorchQkv(False).state_dict(), **said)
