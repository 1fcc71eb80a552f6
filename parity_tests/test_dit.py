"""`dit` and its twin against a restatement of the original: checkpoints of its names both ways, and what a gradient step does."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from dit_layout import OriginalDiT
from tolerances import assert_close
from twins import compiled, indices, make_pair, normal, randomise, to_nchw, to_nhwc

from ddpm_jax import models, weights
from ddpm_jax.errors import UserError
from ddpm_jax.models import dit
from ddpm_torch_ref import models as twin_models
from ddpm_torch_ref.models import dit as twin_dit

CONFIGS = {
    "small": {},
    "one channel, eps alone, patches of 4": {"in_channels": 1, "learn_sigma": False, "patch_size": 4, "input_size": 16},
    "patches of one pixel, odd ratio": {"patch_size": 1, "input_size": 4, "mlp_ratio": 2.7, "num_heads": 4, "depth": 3},
}


def original(name, dtype="float64"):
    """A network of its names with random weights, the positions but not their digits kept."""
    theirs = OriginalDiT(**CONFIGS[name]).to(getattr(torch, dtype)).eval()
    table = theirs.pos_embed.detach().clone()
    randomise(theirs)
    theirs.pos_embed.data = table
    return theirs, {"num_heads": CONFIGS[name].get("num_heads", 2)}


@pytest.mark.parametrize("name", CONFIGS)
def test_checkpoints(dtype, name):
    theirs, told = original(name, dtype)
    config, tensors = weights.from_dit(theirs.state_dict(), **told)
    twin = twin_models.create(config.network, **dataclasses.asdict(config)).to(getattr(torch, dtype)).eval()
    twin.load_state_dict({key: torch.from_numpy(array) for key, array in tensors.items()})
    model = models.abstract(config)
    weights.load_torch(model, tensors)
    x = normal(dtype, 2, config.image_size, config.image_size, config.channels)
    t, tt = indices([3, 971])
    labels, tlabels = indices([5, 0])  # the first is none
    graphdef, variables = models.split(model)
    with torch.no_grad():
        wanted = theirs(to_nchw(x), tt, tlabels)
        assert_close("output", twin(to_nchw(x), tt, tlabels), wanted, f"{name}, twin")
    ours = compiled(lambda v, x: models.apply(graphdef, v, x, t, labels)[0])(variables, jnp.asarray(x))
    assert_close("output", ours, to_nhwc(wanted), name)
    back = weights.to_dit(config, tensors)
    assert back.keys() == theirs.state_dict().keys()
    for key, tensor in theirs.state_dict().items():
        if key == "pos_embed":
            np.testing.assert_allclose(back[key], tensor.numpy(), atol=1e-6 if dtype == "float32" else 1e-14)
        else:
            np.testing.assert_array_equal(back[key], tensor.numpy(), key, strict=True)


def test_what_the_shapes_say():
    config, _ = weights.from_dit(original("patches of one pixel, odd ratio")[0].state_dict(), num_heads=4)
    expected = dit.DiTConfig(4, 3, 6, dim=16, patch_size=1, depth=3, num_heads=4, learn_variance=True)
    assert config == dataclasses.replace(expected, mlp_ratio=43 / 16) and config.hidden == int(2.7 * 16)


@pytest.mark.parametrize("hidden", [1, 29, 49, 103, 1037])
def test_every_width_of_the_perceptrons_is_read_back(hidden):
    """int(dim (hidden / dim)) falls below hidden for some."""
    for dim in (12, 28, 44, 92, 388):
        state = OriginalDiT(hidden_size=dim, mlp_ratio=(hidden + 0.5) / dim).state_dict()
        assert weights.from_dit(state, num_heads=2)[0].hidden == hidden


@pytest.mark.parametrize(("dim", "heads"), [(384, 6), (768, 12)])
def test_the_papers_heads_are_known(dim, heads):
    assert weights.from_dit(OriginalDiT(hidden_size=dim, depth=1).state_dict())[0].num_heads == heads


def trained(state):
    state["pos_embed"] = state["pos_embed"] + 1e-3


@pytest.mark.parametrize(
    ("change", "told", "message"),
    [
        (lambda state: state.pop("blocks.1.attn.proj.bias"), {}, r"missing: blocks.1.attn.proj.bias \(16,\)"),
        (lambda state: state.update(extra=torch.zeros(2)), {}, r"not of this network: extra \(2,\)"),
        (lambda state: state.pop("pos_embed"), {}, "no checkpoint of facebookresearch/DiT: pos_embed is missing"),
        (lambda state: state.update(pos_embed=torch.zeros(1, 15, 16)), {}, "a square of patches; got 15"),
        (lambda state: state.update(pos_embed=torch.zeros(1, 16, 8)), {}, r"pos_embed must be \(1, 16, 16\); got"),
        (lambda state: state.update({"x_embedder.proj.weight": torch.zeros(3)}), {}, "has 1 axes instead of 4"),
        (lambda state: state.update({"t_embedder.mlp.0.weight": torch.zeros(16, 64)}), {}, "of width 256; got 64"),
        (lambda state: state.update({"final_layer.linear.weight": torch.zeros(16, 16)}), {}, "12 outputs.*; got 16"),
        (trained, {}, "pos_embed must be the paper's sines and cosines.* differs from them by 0.001"),
        (lambda state: None, {"num_heads": None}, "pass num_heads; they are known for widths of 384, 768"),
        (lambda state: None, {"num_heads": 3}, "num_heads must divide dim = 16; got 3"),
    ],
)
def test_refusals(change, told, message):
    theirs, known = original("small")
    state = dict(theirs.state_dict())
    change(state)
    with pytest.raises(UserError, match=message):
        weights.from_dit(state, **known | told)


@pytest.mark.parametrize(
    ("option", "message"), [({"num_classes": None}, "num_classes = None"), ({"long_skips": True}, "long_skips = True")]
)
def test_what_the_original_has_not_got(option, message):
    config = dit.DiTConfig(8, 1, **{"num_classes": 3, "dim": 16, "depth": 2, "num_heads": 2} | option)
    with pytest.raises(UserError, match=message):
        weights.to_dit(config, {})


def test_tables_of_positions():
    for size, dim in ((1, 4), (3, 8), (16, 384)):
        ours, theirs = dit.position_table(size, dim), twin_dit.position_table(size, dim)
        assert ours.dtype == theirs.dtype == np.float64
        np.testing.assert_allclose(ours, theirs, atol=1e-13)


def test_patches_are_put_together_alike():
    x = normal("float64", 2, 9, 4 * 4 * 3)
    np.testing.assert_array_equal(
        dit.unpatchify(jnp.asarray(x), 4), to_nhwc(twin_dit.unpatchify(torch.from_numpy(x), 4))
    )


@pytest.mark.parametrize("depth", [4, 5])
def test_long_skips_join_mirror_images(depth):
    """Each block of the second half is given what its mirror image in the first gave, itself and no other."""
    options = {"image_size": 4, "channels": 1, "dim": 8, "depth": depth, "num_heads": 2, "long_skips": True}
    model, twin = make_pair("dit", "float64", **options)
    assert [block.skip_linear is not None for block in twin.blocks] == [i >= depth - depth // 2 for i in range(depth)]
    seen = {}
    for index, block in enumerate(twin.blocks):
        block.register_forward_hook(lambda _, args, out, index=index: seen.update({index: (args, out)}))
    with torch.no_grad():
        twin(to_nchw(normal("float64", 2, 4, 4, 1)), torch.tensor([3, 5]))
    for index in range(depth - depth // 2, depth):
        assert seen[index][0][2] is seen[depth - 1 - index][1]
    assert [block.skip_linear is not None for block in model.blocks] == [
        block.skip_linear is not None for block in twin.blocks
    ]
