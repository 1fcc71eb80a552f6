"""Every network with the CPU's forms and without: the same numbers in float64, and differentiable forwards without."""

import functools
import math
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import cpu_forms, models
from ddpm_jax.compilation import once
from ddpm_jax.cpu_forms import switch

pytestmark = pytest.mark.cpu_forms

SMALL = {
    "annotated_unet": {"dim": 8, "image_size": 8, "dim_mults": (1, 2)},
    "conv_net": {"dim": 5, "image_size": 8},
    "convnext_unet": {"image_size": 16, "num_classes": 3, "expansion": 1},
    "dit": {"image_size": 8, "dim": 8, "depth": 2, "num_heads": 2},
    "double_conv_unet": {"dim": 2, "image_size": 16},
    "edm_unet": {
        "dim": 8,
        "image_size": 8,
        "dim_mults": (1, 2),
        "num_blocks": 1,
        "attention_resolutions": (4,),
        "dropout": 0.0,
    },
    "mlp": {"dim": 8},
    "rms_unet": {"dim": 8, "dim_mults": (1, 2), "image_size": 8, "num_heads": 2, "head_dim": 4},
    "strided_unet_conditional": {"image_size": 16},
    "tiny_unet": {"image_size": 8, "dim": 4},
    "unet": {
        "image_size": 8,
        "attention_resolutions": (4,),
        "dim": 8,
        "dim_mults": (1, 2),
        "num_blocks": 1,
        "norm_groups": 4,
    },
}


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@functools.cache
def network(name):
    """The function of (params, x_t) -> output in training mode, both drawn, and a direction for each and for the output."""
    rng = np.random.default_rng(0)

    def draw(shape, scale=1.0):
        return jnp.asarray(scale * rng.standard_normal(shape))

    graphdef, variables = models.split(models.abstract(models.configure(name, SMALL[name])), training=True)
    params = jax.tree.map(lambda a: draw(a.shape, math.prod(a.shape[:-1]) ** -0.5), variables["params"])
    stats = jax.tree.map(lambda a: jnp.ones(a.shape), variables["batch_stats"])
    config = models.configure(name, SMALL[name])
    x_t, t = draw((2, *config.shape)), jnp.array([3, 188])
    labels = jnp.array([0, 1]) if getattr(config, "num_classes", None) else None

    def function(params, x_t):
        return models.apply(graphdef, {"params": params, "batch_stats": stats}, x_t, t, labels)[0]

    primals = params, x_t
    return function, primals, jax.tree.map(lambda a: draw(a.shape), primals), draw(x_t.shape)


def compiled(function, *args):
    return jax.jit(function, compiler_options=once())(*args)


QUICK = ("conv_net", "mlp")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in SMALL]
)
def test_networks_are_the_same_with_and_without(name):
    """Without, <g, J v> by jvp is <J^T g, v> by vjp: one by the chain rule forwards, the other backwards."""
    function, primals, v, g = network(name)

    def backwards(primals):
        y, pull = jax.vjp(function, *primals)
        return y, pull(g)

    def both(primals):
        return *backwards(primals), jax.jvp(function, primals, v)[1]

    y, gradient = compiled(backwards, primals)
    with cpu_forms.off():
        y_plain, gradient_plain, tangent = compiled(both, primals)
    for found, expected in ((y, y_plain), (gradient, gradient_plain)):
        found, expected = (jnp.concatenate([jnp.ravel(a) for a in jax.tree.leaves(tree)]) for tree in (found, expected))
        assert jnp.abs(found - expected).max() <= 1e-11 * jnp.abs(expected).max()
    backward = sum(jnp.vdot(a, b) for a, b in zip(jax.tree.leaves(gradient_plain), jax.tree.leaves(v), strict=True))
    assert jnp.vdot(g, tangent) == pytest.approx(float(backward), rel=1e-9) and float(jnp.abs(tangent).max()) > 0


def test_a_program_is_traced_anew_where_the_switch_moves():
    function, primals, v, _ = network("conv_net")

    def forwards(primals):
        return jax.jvp(function, primals, v)[1]

    program = jax.jit(forwards, compiler_options=once())
    with cpu_forms.off():
        program(primals)
    with pytest.raises(TypeError, match="custom_vjp"):
        program(primals)


@pytest.mark.parametrize(("value", "form"), [("on", True), ("off", False), (None, True)])
def test_the_environment_switches_all_off(value, form):
    environment = {name: text for name, text in os.environ.items() if name != switch.VARIABLE}
    code = "from ddpm_jax.cpu_forms import switch; print(switch.in_use('gradients'))"
    found = subprocess.run(
        [sys.executable, "-c", code],
        env=environment if value is None else environment | {switch.VARIABLE: value},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == str(form)


def test_what_the_environment_cannot_say(tmp_path):
    command = [sys.executable, "-m", "ddpm_jax", "train", "digits", "--out", str(tmp_path / "run")]
    found = subprocess.run(command, env=os.environ | {switch.VARIABLE: "no"}, capture_output=True, text=True)
    assert found.returncode == 2 and "DDPM_CPU_FORMS must be on or off; got 'no'" in found.stderr
    assert "Traceback" not in found.stderr and not (tmp_path / "run").exists()
