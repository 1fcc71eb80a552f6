"""Sampling of straight paths by an adaptive ODE solver (diffrax): as many evaluations as a tolerance asks for."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ddpm_jax import models
from ddpm_jax.compilation import jit
from ddpm_jax.errors import UserError
from ddpm_jax.parallel import ALONE, Layout
from ddpm_jax.processes import LinearPath, Predict, Process
from ddpm_jax.samplers.loop import denoise

MAX_STEPS = 4096


def solve(
    process: Process,
    predict: Predict,
    x_T: Float[Array, "b *shape"],
    *,
    tolerance: float = 1e-4,
    num_frames: int = 0,
    clip: float | None = None,
) -> tuple[Float[Array, "b *shape"], Float[Array, "k b *shape"], Int[Array, ""]]:
    """Integrate dx/dt = eps - x_0 from t = 1 to 0 by Tsit5 (Tsitouras 2011), relative and absolute error per step below tolerance.

    The batch is one system: its root mean square error decides on the steps. Returns the samples, num_frames states at even times,
    and the number of accepted and refused steps, of six evaluations each.

    Raises:
        UserError: diffrax is missing, the process has no continuous time, or the tolerance is not positive.
    """
    try:
        import diffrax
    except ImportError as error:
        raise UserError('sampler = adaptive needs diffrax: pip install "ddpm-jax[ode]"') from error
    if not isinstance(process, LinearPath):
        raise UserError("sampler = adaptive needs continuous time: it fits process.kind = flow or blending alone.")
    if not tolerance > 0:
        raise UserError(f"tolerance must be positive; got {tolerance:g}.")

    def velocity(t: Any, x: jax.Array, _: Any) -> jax.Array:
        hat = denoise(process, predict, x, jnp.full(x.shape[:1], t, x.dtype), clip)
        return hat.eps - hat.x_0

    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(velocity),
        diffrax.Tsit5(),
        t0=1.0,
        t1=0.0,
        dt0=None,
        y0=x_T,
        saveat=diffrax.SaveAt(ts=jnp.asarray(np.linspace(1.0, 0.0, max(num_frames, 2)), x_T.dtype)),
        stepsize_controller=diffrax.PIDController(rtol=tolerance, atol=tolerance),
        max_steps=MAX_STEPS,
    )
    assert solution.ys is not None
    return solution.ys[-1], solution.ys[: num_frames or 0], solution.stats["num_steps"]


@functools.partial(jit, static_argnames=("process", "graphdef", "shape", "dtype", "settings", "layout"))
def _compiled(process, graphdef, variables, key, labels, *, shape, dtype, settings, layout):
    predict = models.predictor(graphdef, layout.whole(variables), labels, dtype=dtype)
    return solve(process, predict, layout.spread(jax.random.normal(key, shape)), **dict(settings))


def sample_adaptively(
    model: models.Model,
    process: Process,
    key: jax.Array,
    shape: tuple[int, ...],
    labels: Int[Array, "b"] | None = None,
    *,
    tolerance: float = 1e-4,
    num_frames: int = 0,
    clip: float | None = None,
    dtype: Any = None,
    layout: Layout = ALONE,
) -> tuple[Float[Array, "b *shape"], Float[Array, "k b *shape"], int]:
    """`samplers.sample` by `solve`, in one compiled program; the last thing returned is how many steps the solver took.

    The batch is spread over the layout's devices where they divide it, and is not under pmap: it is one system.
    """
    graphdef, variables = models.parts(model)
    settings = (("tolerance", tolerance), ("num_frames", num_frames), ("clip", clip))
    if layout.mode == "pmap" or shape[0] % layout.size:
        layout = ALONE
    static: dict[str, Any] = {"shape": shape, "dtype": dtype, "settings": settings, "layout": layout}
    x_0, frames, steps = _compiled(process, graphdef, variables, key, labels, **static)
    return x_0, frames, int(steps)
