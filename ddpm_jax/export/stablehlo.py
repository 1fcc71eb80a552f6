"""A run's denoiser, or a whole walk of a sampler, as one StableHLO program for CPUs, NVIDIA GPUs and TPUs, weights included."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import jax
import numpy as np
from jax import export

from ddpm_jax import cpu_forms, noise, samplers
from ddpm_jax.errors import UserError
from ddpm_jax.export.description import describe, load
from ddpm_jax.export.description import inputs as told
from ddpm_jax.files import write_atomically
from ddpm_jax.named import tree_of
from ddpm_jax.presets import SampleConfig
from ddpm_jax.training.run import Run
from ddpm_jax.training.samples import Drawing
from ddpm_jax.weights import Which

What = Literal["sample", "denoise"]
"""A whole walk from noise to samples; or one estimate of what x_t is made of, for a sampler of one's own."""
PLATFORMS = ("cpu", "cuda", "tpu")
"""What a program is lowered for, all in one file."""


def to_stablehlo(
    run: Run, path: Path, config: SampleConfig | None = None, what: What = "sample", which: Which = "ema"
) -> int | None:
    """Write a program that jax alone runs, its weights within; returns the size of batch that it is for, None for any.

    sample: called as (seed, numbers), then labels where the run has classes, it gives the samples of these numbers of the seed,
    float32 (B, H, W, C) or (B, D), as the network makes them: those that `ddpm sample` draws with that seed. denoise: called as
    (x_t, t), then guess where the network is self-conditioned, then labels, it gives (x_0, eps), and what the network says of the
    variance where it learns one; guided and bounded as the config says. seed: int32 (). numbers, labels: int32 (B,). t: int32 or
    float32 (B,), the process's own times.

    The file is an npz archive of two arrays of bytes: `program`, for jax.export.deserialize, and `about`, JSON of what it is.

    config: how samples are drawn, None for the run's own. which: the averaged weights of the newest checkpoint, or those being
    trained.

    Raises:
        UserError: another piece of work, no checkpoint, a config that does not fit the run or says what the program has no use for.
    """
    if what not in get_args(What):
        raise UserError(f"what must be one of {', '.join(get_args(What))}; got {what!r}.")
    config = run.config.sample if config is None else config
    _check_used(run, config, what)
    drawing = Drawing(run, config, load(run, which))
    exported, batch = _exported(run, what, {"sample": _sample, "denoise": _denoise}[what](drawing), config.num)
    if batch is None and config.num != run.config.sample.num:
        raise UserError(f"num is the size of a batch that is fixed, and this program takes any; got {config.num}.")
    about = describe(run, which, drawing.step) | {
        "what": what,
        "sample": tree_of(config),
        "layout": "NHWC" if run.holds_images else "NC",
        "inputs": told(run.process, _inputs(run, what, 1)),
        "outputs": ["x_0"] if what == "sample" else ["x_0", "eps", "variance_logit"][: len(exported.out_avals)],
        "batch": batch,
        "computes_in": run.config.train.dtype,
        "platforms": list(PLATFORMS),
        "jax": jax.__version__,
    }
    program, words = (
        np.frombuffer(part, np.uint8) for part in (bytes(exported.serialize()), json.dumps(about).encode())
    )

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:  # to a name, savez would add .npz
            np.savez(file, program=program, about=words)

    write_atomically(path, write)
    return batch


def _check_used(run: Run, config: SampleConfig, what: What) -> None:
    """Refuses what was asked for and would change nothing."""
    for name in ("sampler", "steps", "spacing") if what == "denoise" else ():
        if getattr(config, name) != getattr(run.config.sample, name):
            raise UserError(
                f"{name} belongs to what = sample: a denoiser takes no steps; got {getattr(config, name)!r}."
            )
    if config.stretch != run.config.sample.stretch:
        raise UserError(
            f"stretch is done to samples that are drawn, and a program gives them as the network makes them; got {config.stretch}."
        )


def _inputs(run: Run, what: What, num: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """Every input by its name, in the order that they are given in; num: the size of a batch, a number or a symbol."""
    by_example = jax.ShapeDtypeStruct((num,), np.int32)
    if what == "sample":
        found = {"seed": jax.ShapeDtypeStruct((), np.int32), "numbers": by_example}
    else:
        like = jax.ShapeDtypeStruct((num, *run.shape), np.float32)
        found = {"x_t": like, "t": by_example}
        if run.process.continuous:
            found["t"] = jax.ShapeDtypeStruct((num,), np.float32)
        if getattr(run.config.model, "self_conditioning", False):
            found["guess"] = like
    return found | ({"labels": by_example} if run.class_names else {})


def _sample(drawing: Drawing) -> Callable[..., Any]:
    """(seed, numbers, labels) -> samples."""
    run, config = drawing.run, drawing.config
    steps = None if isinstance(config.sampler, samplers.Adaptive) else config.steps
    grid = config.sampler.grid(run.process, steps, config.spacing)

    def sample(seed: jax.Array, numbers: jax.Array, labels: jax.Array | None = None) -> jax.Array:
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), numbers)
        start, drawn = noise.of_walk(keys, run.shape)
        x_T = run.process.prior(start, grid[0, 0])
        return config.sampler.walk(drawing.denoiser(labels), x_T, drawn, grid).x_0

    return sample


def _denoise(drawing: Drawing) -> Callable[..., Any]:
    """(x_t, t, guess, labels) -> (x_0, eps, variance_logit), without what the network is not given or does not say."""

    def denoise(x_t: jax.Array, t: jax.Array, guess: Any = None, labels: Any = None) -> tuple[jax.Array, ...]:
        hat = drawing.denoiser(labels).given(guess)(x_t, t)
        return tuple(part for part in hat if part is not None)

    return denoise


def _exported(run: Run, what: What, function: Callable[..., Any], num: int) -> tuple[export.Exported, int | None]:
    """The program for all platforms and any size of batch; where something in it has to know the size, for num, and num."""

    def made(size: Any) -> export.Exported:
        inputs = _inputs(run, what, size)
        by_position = jax.jit(lambda *given: function(**dict(zip(inputs, given, strict=True))))
        with cpu_forms.forwards():  # the one context without anything of a platform's own
            return export.export(by_position, platforms=PLATFORMS)(*inputs.values())

    (symbol,) = export.symbolic_shape("batch")
    try:
        return made(symbol), None
    except jax.errors.InconclusiveDimensionOperation:
        return made(num), num
