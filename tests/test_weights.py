"""The bridge to PyTorch: exact both ways, strict about what it is given, and torch only where it is needed."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ddpm_jax import models, weights
from ddpm_jax.errors import UserError

torch = pytest.importorskip("torch")

OPTIONS = {"image_size": 8, "dim": 8, "dim_mults": (1, 2), "num_blocks": 1, "norm_groups": 4, "num_classes": 3}


def network():
    return models.abstract(models.configure("unet", OPTIONS))


def state_dict(dtype):
    rng = np.random.default_rng(0)
    return {
        entry.key: torch.from_numpy(rng.normal(size=entry.shape).astype(dtype)) for entry in weights.layout(network())
    }


def filled():
    model = network()
    weights.load_torch(model, state_dict("float32"))
    return model


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_round_trips_are_exact(dtype):
    with jax.enable_x64(dtype == "float64"):
        model, before = network(), state_dict(dtype)
        weights.load_torch(model, before)
        after = weights.to_torch(model)
        assert list(after) == list(before)
        for name, tensor in before.items():
            assert after[name].dtype == tensor.dtype == getattr(torch, dtype)
            assert torch.equal(after[name], tensor), name
        # and from here to there: a second network filled with what the first one gave
        second = network()
        weights.load_torch(second, after)
        first_tree, second_tree = (nnx.to_pure_dict(nnx.state(m, nnx.Param)) for m in (model, second))
        assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all() and a.dtype == b.dtype, first_tree, second_tree))


def test_axes_by_hand():
    model, tensors = network(), state_dict("float32")
    weights.load_torch(model, tensors)
    np.testing.assert_array_equal(
        model.conv_in.kernel[...], np.moveaxis(tensors["conv_in.weight"].numpy(), (2, 3, 1, 0), (0, 1, 2, 3))
    )
    np.testing.assert_array_equal(model.time_mlp.linear1.kernel[...], tensors["time_mlp.linear1.weight"].numpy().T)
    np.testing.assert_array_equal(model.class_embed.embedding[...], tensors["class_embed.weight"].numpy())
    np.testing.assert_array_equal(model.norm_out.scale[...], tensors["norm_out.weight"].numpy())
    assert tensors["conv_in.weight"].shape == (8, 3, 3, 3)


def test_the_layout_is_that_of_the_twin():
    from ddpm_torch_ref import models as twin_models

    twin = twin_models.create("unet", **OPTIONS)
    ours = {entry.key: entry.shape for entry in weights.layout(network())}
    assert ours == {name: tuple(tensor.shape) for name, tensor in twin.state_dict().items()}
    twin.load_state_dict(weights.to_torch(filled()))


def test_arrays_of_numpy_and_parameters_that_want_gradients_are_taken():
    tensors = state_dict("float32")
    model, other = network(), network()
    weights.load_torch(model, {name: tensor.numpy() for name, tensor in tensors.items()})
    weights.load_torch(other, {name: torch.nn.Parameter(tensor) for name, tensor in tensors.items()})
    for filled_one in (weights.to_torch(model), weights.to_torch(other)):
        assert all(torch.equal(filled_one[name], tensor) for name, tensor in tensors.items())


def test_another_tree_of_the_same_structure_can_be_written():
    model = filled()
    tree = jax.tree.map(lambda a: 2 * a, {"params": nnx.to_pure_dict(nnx.state(model, nnx.Param))})
    own, doubled = weights.to_torch(model), weights.to_torch(model, tree)
    assert all(torch.equal(doubled[name], 2 * own[name]) for name in own)


def test_what_is_given_is_copied():
    tensors = state_dict("float32")
    model = network()
    weights.load_torch(model, tensors)
    kept = np.array(model.conv_in.bias[...])
    tensors["conv_in.bias"].zero_()
    np.testing.assert_array_equal(model.conv_in.bias[...], kept)
    weights.to_torch(model)["conv_in.bias"].zero_()
    np.testing.assert_array_equal(model.conv_in.bias[...], kept)


def test_everything_that_does_not_fit_is_listed():
    tensors = state_dict("float32")
    del tensors["conv_in.bias"], tensors["norm_out.weight"]
    tensors["conv_inn.bias"] = tensors["extra"] = torch.zeros(8)
    tensors["conv_out.bias"] = torch.zeros(4)
    tensors["time_mlp.linear1.weight"] = tensors["time_mlp.linear1.weight"].T
    model = filled()
    before = weights.to_torch(model)
    with pytest.raises(UserError) as error:
        weights.load_torch(model, tensors)
    first, *problems = str(error.value).splitlines()
    assert first == "the state dict does not fit the network (2 tensors missing, 2 too many, 2 misshapen):"
    assert sorted(problems) == [
        "  misshapen: conv_out.bias is (4,), must be (3,)",
        "  misshapen: time_mlp.linear1.weight is (8, 32), must be (32, 8)",
        "  missing: conv_in.bias (8,)",
        "  missing: norm_out.weight (8,)",
        "  not of this network: conv_inn.bias (8,)",
        "  not of this network: extra (8,)",
    ]
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights.to_torch(model).items())


def test_a_layer_without_a_rule_is_named():
    class Bare(nnx.Module):
        def __init__(self):
            self.gain = nnx.Param(jnp.ones(()))

    class Outer(nnx.Module):
        def __init__(self):
            self.inner = nnx.List([Bare()])

    with pytest.raises(UserError, match=r"no rule to map 'gain' of .*Bare at inner\.0"):
        weights.layout(Outer())
    with pytest.raises(UserError, match=r"no rule to map 'gain' of .*Bare at the network itself"):
        weights.layout(Bare())


def test_a_layer_without_bias_has_none():
    class Plain(nnx.Module):
        def __init__(self):
            self.linear = nnx.Linear(2, 3, use_bias=False, rngs=nnx.Rngs(0))

    assert [entry.key for entry in weights.layout(Plain())] == ["linear.weight"]


def test_importing_the_bridge_does_not_import_torch():
    code = "import sys, ddpm_jax.weights; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
