"""Checkpoints of the originals: strictly mapped onto the twin's names, whatever options they were made with."""

import numpy as np
import pytest
from golden_records import record, weights

from ddpm_jax.errors import UserError
from ddpm_jax.weights.originals import LEFT_BEHIND, NETWORKS, from_original
from ddpm_torch_ref import models

RECORDS = {
    "convnext_unet": "convnext_unet_f64",
    "tiny_unet": "tiny_unet_f64",
    "double_conv_unet": "double_conv_unet_f64",
    "annotated_unet": "annotated_unet",
    "mlp": "toy2d_f64",
    "conv_net": "conv_net_f64",
    "strided_unet": "strided_unet_f64",
    "strided_unet_conditional": "strided_unet_conditional_f64",
}

OPTIONS = {
    "convnext_unet": {"channels": 3, "image_size": 40, "num_classes": 7, "expansion": 2},
    "convnext_unet_224": {"image_size": 32, "num_classes": 5},
    "tiny_unet": {"channels": 3, "image_size": 16, "dim": 6, "time_dim": 20},
    "double_conv_unet": {"channels": 1, "dim": 4, "time_dim": 10},
    "annotated_unet": {"channels": 3, "image_size": 32, "dim": 12, "dim_mults": (1, 1, 3), "expansion": 3},
    "mlp": {"dim": 8, "data_dim": 5},
    "conv_net": {"channels": 1, "dim": 5},
    "strided_unet": {"channels": 1},
    "strided_unet_conditional": {"channels": 1, "num_classes": 3},
}


class Renamed(dict):
    """A state dict of the twin in its author's names: what `from_original` undoes."""

    def __init__(self, name, model):
        super().__init__({key: np.asarray(value) for key, value in model.state_dict().items()})
        self.name = name

    def theirs(self):
        # The rows read options off the shapes, so those need their names first: repeated until nothing changes.
        state = {}
        for _ in range(3):
            rows = list(NETWORKS[self.name](state))
            state = {row.theirs: self._shaped(row) for row in rows if row.ours in self}
        return state

    def _shaped(self, row):
        value = self[row.ours]
        return value.reshape(1, -1, 1, 1) if row.flat else value


@pytest.fixture(scope="module", params=RECORDS)
def checkpoint(request):
    return request.param, weights(record(RECORDS[request.param]))


def test_a_checkpoint_becomes_the_twins(checkpoint):
    name, theirs = checkpoint
    ours = from_original(name, theirs)
    expected = models.create(name).state_dict()
    assert {key: tuple(value.shape) for key, value in ours.items()} == {k: tuple(v.shape) for k, v in expected.items()}
    kept = [value for key, value in theirs.items() if key not in ("t_emb", "time_embed.weight")]
    assert sum(value.size for value in kept) == sum(np.asarray(value).size for value in ours.values())


@pytest.mark.parametrize("name", OPTIONS)
def test_options_are_read_off_the_checkpoint(name):
    model = models.create(name, **OPTIONS[name])
    theirs = Renamed(name, model).theirs()
    assert len(theirs) == len(model.state_dict())
    ours = from_original(name, theirs)
    for key, value in model.state_dict().items():
        np.testing.assert_array_equal(ours[key], value, strict=True)


def test_missing_left_over_and_misshapen_are_all_listed(checkpoint):
    name, theirs = checkpoint
    theirs = dict(theirs)
    *_, bent, lost = theirs
    shape = theirs[lost].shape
    del theirs[lost]
    theirs["surplus"] = np.zeros(3)
    theirs[bent] = np.zeros((2, 2, 2))
    with pytest.raises(UserError) as error:
        from_original(name, theirs)
    message = str(error.value)
    assert message.startswith(f"the checkpoint does not fit {name}:")
    assert f"missing: {lost} {shape}" in message
    assert "not of this network: surplus" in message
    assert f"misshapen: {bent} is (2, 2, 2), must be" in message
    assert "It fits" not in message


def test_the_network_that_fits_is_named(checkpoint):
    name, theirs = checkpoint
    for other in NETWORKS:
        if other != name:
            with pytest.raises(UserError, match=rf"does not fit {other}:(.|\n)*\nIt fits {name}\.$"):
                from_original(other, theirs)


def test_what_the_twin_has_no_use_for_is_left_behind_by_name():
    theirs = weights(record("strided_unet_f64"))
    unused = {"dconv_down5.0.weight": np.zeros((256, 196, 4, 4)), "dconv_down5.1.weight": np.zeros(256)}
    assert from_original("strided_unet", {**theirs, **unused}).keys() == from_original("strided_unet", theirs).keys()
    with pytest.raises(UserError, match="not of this network: dconv_down6"):
        from_original("strided_unet", {**theirs, "dconv_down6.0.weight": np.zeros(1)})
    with pytest.raises(UserError, match="not of this network: t_emb"):
        from_original("mlp", {**weights(record("toy2d_f64")), "t_emb": np.zeros(1)})
    assert set(LEFT_BEHIND) <= set(NETWORKS)


def test_an_unknown_network():
    with pytest.raises(UserError, match=r"name must be one of convnext_unet, .*; got 'unet'"):
        from_original("unet", {})
