"""Sampling of straight paths by an adaptive ODE solver (diffrax): as many evaluations as a tolerance asks for."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ddpm_jax import models, noise, parallel
from ddpm_jax.errors import NotFiniteError, UserError
from ddpm_jax.parallel import ALONE, Layout
from ddpm_jax.processes import LinearPath, Predict, Process
from ddpm_jax.samplers.loop import Walk, check_shape, denoise

MAX_STEPS = 4096
LEAST_STEP = 1e-7
"""A step that would have to be shorter ends in an error: where the velocity is not finite, every step is too long."""
LAST_STEP = 1e-3
"""Where clipped samples are finished by Euler's step at the latest."""
_SAMPLE = "sample"
"""The axis of the samples, each a system of its own, while they are solved together."""


def solve(
    process: Process,
    predict: Predict,
    x_T: Float[Array, "b *shape"],
    *,
    tolerance: float = 1e-4,
    num_frames: int = 0,
    clip: float | None = None,
) -> tuple[Walk, Int[Array, "b"]]:
    """Integrate dx/dt = eps - x_0 from t = 1 to 0 by Tsit5 (Tsitouras 2011), relative and absolute error per step below tolerance.

    Each sample is a system of its own, with its own steps, so that none depends on what is solved beside it; the network sees all
    of them at once, as long as any is on its way. With clip the velocity (x_t - x_0) / t has no value at t = 0: the last step, as
    long as the tolerance, is Euler's. Returns the samples with num_frames states at even times, and for each how many steps were
    accepted or refused, of six evaluations each. A sample that could not be solved is not finite.

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

    end = 0.0 if clip is None else min(tolerance, LAST_STEP)

    def velocity(t: Any, x: jax.Array, _: Any) -> jax.Array:
        # the network, its labels among it, is of the whole batch
        every_t, every_x = jax.lax.all_gather((jnp.asarray(t, x.dtype), x), _SAMPLE)
        hat = denoise(process, predict, every_x, every_t, clip)
        return (hat.eps - hat.x_0)[jax.lax.axis_index(_SAMPLE)]

    def one(start: jax.Array) -> tuple[jax.Array, jax.Array, dict[str, Any]]:
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(velocity),
            diffrax.Tsit5(),
            t0=1.0,
            t1=end,
            dt0=None,
            y0=start,
            saveat=diffrax.SaveAt(ts=jnp.asarray(np.linspace(1.0, end, max(num_frames, 2)), x_T.dtype)),
            stepsize_controller=diffrax.PIDController(
                rtol=tolerance, atol=tolerance, dtmin=LEAST_STEP, force_dtmin=False
            ),
            max_steps=MAX_STEPS,
            throw=False,
        )
        assert solution.ys is not None
        return solution.ys, solution.result == diffrax.RESULTS.successful, solution.stats

    states, solved, stats = jax.vmap(one, axis_name=_SAMPLE)(x_T)
    if end:
        last = denoise(process, predict, states[:, -1], jnp.full(x_T.shape[:1], end, x_T.dtype), clip).x_0
        states = states.at[:, -1].set(last)
    x_0 = states[:, -1]
    sound = solved & jnp.isfinite(x_0).all(tuple(range(1, x_T.ndim)))
    broke = jnp.where(sound, -1, stats["num_accepted_steps"] + 1)
    return Walk(x_0, jnp.moveaxis(states, 1, 0)[: num_frames or 0], broke), stats["num_steps"]


def _from_noise(key, first, variables, labels, *, process, graphdef, shape, dtype, settings, layout):
    numbers = layout.share(first + jnp.arange(shape[0]))
    predict = models.predictor(graphdef, layout.whole(variables), labels, dtype=dtype)
    x_T, _ = noise.of_walk(key, numbers, shape[1:])
    walk, steps = solve(process, predict, layout.spread(x_T), **dict(settings))
    return *walk, steps


_compiled = parallel.compiled(
    _from_noise,
    ("process", "graphdef", "shape", "dtype", "settings"),
    in_batch=(False, False, False, True),
    out_axes=(0, 1, 0, 0),
)


def sample_adaptively(
    model: models.Model,
    process: Process,
    key: jax.Array,
    shape: tuple[int, ...],
    labels: Int[Array, "b"] | None = None,
    *,
    first: int = 0,
    kept: int | None = None,
    tolerance: float = 1e-4,
    num_frames: int = 0,
    clip: float | None = None,
    dtype: Any = None,
    layout: Layout = ALONE,
) -> tuple[Float[Array, "b *shape"], Float[Array, "k b *shape"], int]:
    """`samplers.sample` by `solve`, in one compiled program; the last thing returned is how many steps the solver took at most.

    Raises:
        UserError: what `solve` raises, labels that do not fit the shape, a batch that the devices do not divide.
        NotFiniteError: samples hold NaN or infinity, or could not be solved to the tolerance.
    """
    check_shape(shape, labels, layout)
    graphdef, variables = models.parts(model)
    settings = (("tolerance", tolerance), ("num_frames", num_frames), ("clip", clip))
    static: dict[str, Any] = {"shape": shape, "dtype": dtype, "settings": settings, "layout": layout}
    x_0, frames, broke, steps = _compiled(
        key, np.int32(first), variables, labels, process=process, graphdef=graphdef, **static
    )
    broken = layout.gather(broke)[:kept]
    if (bad := broken[broken >= 0]).size:
        raise NotFiniteError(
            f"{len(bad)} of {len(broken)} samples could not be solved to the tolerance {tolerance:g}, the first from step "
            f"{bad.min()} on: they hold NaN or infinity, or need more than {MAX_STEPS} steps. "
            "Try a larger tolerance, or sampler = heun."
        )
    return x_0, frames, int(layout.gather(steps)[:kept].max())
