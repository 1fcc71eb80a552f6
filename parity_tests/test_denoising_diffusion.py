"""denoising-diffusion-pytorch's Unet and tables: records of what version 2.3.4 itself computes, against the twin and ours."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from golden_records import assert_agrees, draw, record, weights
from twins import compiled

from ddpm_jax import models, schedules
from ddpm_jax import weights as bridge
from ddpm_torch_ref import models as twin_models
from ddpm_torch_ref import schedules as twin_schedules

CASES = ("rms_unet_f64", "rms_unet_f32", "rms_unet_options_f64", "rms_unet_options_f32")
WITH_JAX = ("rms_unet_f32", "rms_unet_options_f64")
"""Both networks and both precisions; those left out are the twin's alone, to which test_networks.py holds ours."""


def read(name):
    """Record, config, the twin's state dict, and x_t with the guess of x_0 behind it where there is one."""
    rec = record(name)
    meta = json.loads(str(rec["meta"]))
    dtype = rec["output"].dtype
    checkpoint = {key: array.astype(dtype) for key, array in weights(rec).items()}
    config, tensors = bridge.from_denoising_diffusion(checkpoint, image_size=meta["image_size"])
    shape = rec["gradient_x"].shape
    parts = [draw(rec, tag, shape) for tag in (("x", "x0") if config.self_conditioning else ("x",))]
    return rec, config, checkpoint, tensors, np.concatenate(parts, axis=1).astype(dtype)


def assert_gradients_agree(rec, config, by_parameter, by_x):
    theirs = bridge.to_denoising_diffusion(config, by_parameter)
    assert list(theirs) and set(theirs) == set(rec["param_names"].tolist())
    norms = np.array([np.linalg.norm(theirs[name]) for name in rec["param_names"].tolist()])
    assert_agrees("call", norms.astype(rec["output"].dtype), rec["gradient_norms"], "gradients by parameter")
    assert_agrees("call", by_x[:, : rec["gradient_x"].shape[1]], rec["gradient_x"], "gradient by x_t")


@pytest.mark.parametrize("name", CASES)
def test_the_twin(name):
    rec, config, checkpoint, tensors, x_t = read(name)
    back = bridge.to_denoising_diffusion(config, tensors)
    assert back.keys() == checkpoint.keys()
    for key, array in checkpoint.items():
        np.testing.assert_array_equal(back[key], array, key, strict=True)
    twin = twin_models.create("rms_unet", **dataclasses.asdict(config)).to(getattr(torch, str(x_t.dtype))).eval()
    twin.load_state_dict({key: torch.from_numpy(array.copy()) for key, array in tensors.items()})
    x = torch.from_numpy(x_t).requires_grad_()
    output = twin(x, torch.from_numpy(rec["t"]))
    output.square().sum().backward()
    assert_agrees("call", output, rec["output"], "output")
    assert_gradients_agree(rec, config, {key: p.grad for key, p in twin.named_parameters()}, x.grad.numpy())


@pytest.mark.parametrize("name", [WITH_JAX[0], pytest.param(WITH_JAX[1], marks=pytest.mark.slow)])
def test_ours(name):
    rec, config, _, tensors, x_t = read(name)
    model = models.abstract(config)
    bridge.load_torch(model, tensors)
    graphdef, variables = models.split(model)
    t = jnp.asarray(rec["t"], jnp.int32)

    def loss(variables, x):
        output = models.apply(graphdef, variables, x, t)[0]
        return jnp.square(output).sum(), output

    run = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
    # double-precision convolutions are left to XLA's own loops, which take minutes unless they are optimised
    program = jax.jit(run) if x_t.dtype == np.float64 else compiled(run)
    (_, output), (by_parameter, by_x) = program(variables, jnp.asarray(np.moveaxis(x_t, 1, -1)))
    assert_agrees("call", np.moveaxis(np.asarray(output), -1, 1), rec["output"], "output")
    gradients = bridge.to_numpy(model, {"params": by_parameter["params"]})
    assert_gradients_agree(rec, config, gradients, np.moveaxis(np.asarray(by_x), -1, 1))


@pytest.mark.parametrize("num_steps", [50, 1000])
def test_schedules(num_steps):
    """Their sigmoid is computed in float32 at its ends, which the betas near the end feel, at most."""
    tables = record("denoising_diffusion_tables")
    for module in (schedules, twin_schedules):
        ours = module.sigmoid_cumprod(num_steps).betas
        np.testing.assert_allclose(ours, tables[f"sigmoid_{num_steps}"], rtol=2e-5, atol=0)
        np.testing.assert_allclose(ours[: num_steps // 2], tables[f"sigmoid_{num_steps}"][: num_steps // 2], rtol=1e-7)
        np.testing.assert_allclose(module.cosine(num_steps).betas, tables[f"cosine_{num_steps}"], rtol=1e-10)
        linear = module.linear(num_steps, 0.1 / num_steps, 20 / num_steps)
        np.testing.assert_allclose(linear.betas, tables[f"linear_{num_steps}"], rtol=1e-12)
