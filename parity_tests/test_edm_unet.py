"""`edm_unet` against what the original's networks compute, and its names against those of the published models."""

import hashlib
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from twins import to_nhwc

from ddpm_jax import denoisers, models, processes, weights
from ddpm_jax.verify import relative_error
from ddpm_torch_ref import models as twin_models

KINDS = {"ddpmpp": {}, "ncsnpp": {"embedding": "fourier", "resample": "fir", "residual_input": True}}
RECORD = Path(__file__).parent / "golden" / "edm_unet.npz"
SMALL = {
    "image_size": 16,
    "dim": 16,
    "dim_mults": (1, 2),
    "num_blocks": 1,
    "attention_resolutions": (8,),
    "dropout": 0.0,
}
PUBLISHED = {
    # the CIFAR-10 models: tensors, numbers, and a digest of every name with its shape
    ("ddpmpp", None): (417, 55_733_891, "e76ae8dd54cc00a056ae5f8c4e22425a155d3f75e8f14877b491c9e2e4656312"),
    ("ddpmpp", 10): (419, 55_735_299, "ae289865911ea223d82f25e6c5542fa3a4f185df79fca5a0fbc907ef2e2f7a2e"),
    ("ncsnpp", None): (422, 56_397_955, "42d53e74a26a97948238aad30774353ef01aaf5c3da92b67b637eab1c84cf564"),
    ("ncsnpp", 10): (424, 56_400_771, "b222399e3690ccb3e3875c9f3c877fc6d1f67a2d60a8abe7dda1d120df411181"),
}


@pytest.mark.parametrize(("kind", "num_classes"), PUBLISHED)
def test_names_and_shapes_are_those_of_the_published_models(kind, num_classes):
    with torch.device("meta"):
        twin = twin_models.create("edm_unet", num_classes=num_classes, augment_dim=9, **KINDS[kind])
    shapes = sorted((name, list(tensor.shape)) for name, tensor in twin.state_dict().items())
    digest = hashlib.sha256(json.dumps(shapes).encode()).hexdigest()
    numbers = sum(int(np.prod(shape)) for _, shape in shapes)
    assert (len(shapes), numbers, digest) == PUBLISHED[kind, num_classes]
    ours = models.abstract(models.configure("edm_unet", {"num_classes": num_classes, "augment_dim": 9, **KINDS[kind]}))
    assert sorted((entry.key, list(entry.shape)) for entry in weights.layout(ours)) == [(n, s) for n, s in shapes]


def recorded_weights(twin):
    """The weights that the records were made with: drawn in the order of their names."""
    rng = np.random.default_rng(0)
    drawn = {}
    for name, tensor in sorted(twin.state_dict().items()):
        shape = tuple(tensor.shape)
        values = rng.standard_normal(shape)
        drawn[name] = values if name.endswith("freqs") else values * 0.3 / np.sqrt(max(1, np.prod(shape[1:])))
    return {name: torch.as_tensor(np.asarray(values)) for name, values in drawn.items()}


@pytest.mark.parametrize(
    ("kind", "by_class"),
    [
        ("ncsnpp", True),
        pytest.param("ddpmpp", False, marks=pytest.mark.slow),
        pytest.param("ddpmpp", True, marks=pytest.mark.slow),
        pytest.param("ncsnpp", False, marks=pytest.mark.slow),
    ],
)
def test_both_sides_compute_what_the_original_does(kind, by_class):
    """Its network with augmentation labels, and its preconditioned denoiser without. It attends in float32, as its records show."""
    options = {"num_classes": 5 if by_class else None, "augment_dim": 9, **SMALL, **KINDS[kind]}
    twin = twin_models.create("edm_unet", **options).double().eval()
    twin.load_state_dict(recorded_weights(twin))
    model = models.create("edm_unet", rngs=0, **options)
    weights.load_torch(model, {name: tensor.numpy() for name, tensor in twin.state_dict().items()})
    rng = np.random.default_rng(1)
    x, t, augment = rng.standard_normal((2, 3, 16, 16)), np.array([-1.2, 0.8]), rng.standard_normal((2, 9))
    labels = jnp.array([4, 1]) if by_class else None
    name = f"{kind} by class" if by_class else kind
    with np.load(RECORD) as record:
        wanted, denoised = np.moveaxis(record[name], 1, -1), np.moveaxis(record[f"{name} D"], 1, -1)
    given = None if labels is None else torch.as_tensor(np.array(labels)).long()
    with torch.no_grad():
        theirs = twin(torch.as_tensor(x), torch.as_tensor(t), given, augment=torch.as_tensor(augment))
    assert relative_error(to_nhwc(theirs), wanted) < 1e-6
    ours = model(jnp.moveaxis(jnp.asarray(x), 1, -1), jnp.asarray(t), labels, augment=jnp.asarray(augment))
    assert relative_error(ours, wanted) < 1e-6
    denoise = denoisers.of_network(model, processes.EDM(), labels=labels)
    hat = denoise(jnp.moveaxis(jnp.asarray(5 * x), 1, -1), jnp.array([0.3, 20.0]))
    assert relative_error(hat.x_0, denoised) < 1e-6
