"""The programs of a preset, traced on shapes alone, for devices that need not be there: no array is made."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from ddpm_jax import cpu_forms, data, display, models, noise, parallel, samplers
from ddpm_jax.errors import UserError
from ddpm_jax.evaluation import inception
from ddpm_jax.parallel import ALONE, AXIS, Layout
from ddpm_jax.presets import Preset, shown_its_condition
from ddpm_jax.training.objective import check, step_of
from ddpm_jax.training.run import Run
from ddpm_jax.training.samples import believed

What = Literal["train", "sample", "fid"]
WHAT: tuple[What, ...] = get_args(What)
"""A step of training; a walk of sample.num samples from noise to the end; the network of FID on a batch of images."""

_ANY_LENGTH = 1_000
"""Steps of an epoch, where they are left to the data: no program depends on them."""


@dataclass(frozen=True)
class Program:
    """A program before it is made one of a platform's."""

    traced: Any
    """jax.stages.Traced."""
    examples: int
    """What it works on at a time, over all devices: images, or points."""
    steps: int = 1
    """Steps of the walk, of sampling."""

    def __repr__(self) -> str:
        return display.line(self, f"{self.examples} examples")

    def lower(self, platform: str | None = None) -> jax.stages.Lowered:
        """As StableHLO for tpu or cuda, whether they are here or not; None: for the devices that its layout names."""
        with cpu_forms.off():
            return self.traced.lower(lowering_platforms=None if platform is None else (platform,))


def trace(preset: Preset, what: What, layout: Layout = ALONE) -> Program:
    """A program of a preset for an accelerator: without the forms that XLA's CPU compiler needs.

    what: one of WHAT. layout: over which devices, those of a topology for one.

    Raises:
        UserError: another piece of work, a preset whose parts do not fit each other, or a batch that the devices do not divide.
    """
    if what not in WHAT:
        raise UserError(f"what must be one of {', '.join(WHAT)}; got {what!r}.")
    kinds: dict[str, Callable[..., Program]] = {"train": _train, "sample": _sample, "fid": _fid}
    with cpu_forms.off():
        return kinds[what](preset, layout)


def as_run(preset: Preset) -> Run:
    """What is trained, as far as programs depend on it: a run in no folder."""
    if preset.train.epoch_steps is None:
        preset = replace(preset, train=replace(preset.train, epoch_steps=_ANY_LENGTH))
    preset = shown_its_condition(preset)
    check(preset)
    count = getattr(preset.model, "num_classes", None) or 0
    return Run(Path("."), preset, tuple(map(str, range(count))), data.Scaling(0.0, 1.0))


def _train(preset: Preset, layout: Layout) -> Program:
    run, train = as_run(preset), preset.train
    parallel.check_batch(layout, train.batch_size, train.accumulate)
    batch: dict[str, Any] = {"x_0": _shared_out(layout, (train.batch_size, *run.shape), jnp.float32)}
    if run.class_names:
        batch["label"] = _shared_out(layout, (train.batch_size,), jnp.int32)
    if run.condition is not None:
        batch["condition"] = _condition(run, layout, train.batch_size)
    state = layout.abstract(run.abstract_state())
    key = _everywhere(layout, jax.eval_shape(lambda: jax.random.key(0)))
    step: Any = step_of(run.config, layout).program(elsewhere=True)
    return Program(step.trace(state, batch, key), train.batch_size)


def _sample(preset: Preset, layout: Layout) -> Program:
    run, config = as_run(preset), preset.sample
    num = layout.rounded_up(config.num)
    labels = _shared_out(layout, (num,), jnp.int32) if run.class_names else None
    dtype = None if preset.train.dtype == "float32" else preset.train.dtype
    variables = _everywhere(layout, run.abstract_state().variables(ema=True))
    shown = None if run.condition is None else _condition(run, layout, num)
    denoise = believed(run.denoiser(labels, variables=variables, dtype=dtype, shown=shown), config)
    keys = jax.eval_shape(lambda: noise.sample_keys(0, num))
    sampler = config.sampler
    steps = None if isinstance(sampler, samplers.Adaptive) else config.steps
    traced = samplers.trace(
        denoise,
        sampler,
        _shared_out(layout, keys.shape, keys.dtype),
        (num, *run.shape),
        steps,
        spacing=config.spacing,
        elsewhere=True,
    )
    return Program(traced, num, len(sampler.grid(run.process, steps, config.spacing)))


def _fid(preset: Preset, layout: Layout) -> Program:
    shape = as_run(preset).shape
    if len(shape) != 3:
        raise UserError(f"FID is of images; {preset.model.network} makes points.")
    num = inception.BATCH * layout.size
    graphdef, variables = models.split(inception.abstract())
    program: Any = inception.apply.elsewhere  # type: ignore[attr-defined]
    images = _shared_out(layout, (num, *shape), jnp.uint8)
    return Program(program.trace(_everywhere(layout, variables), images, graphdef=graphdef), num)


def _condition(run: Run, layout: Layout, num: int) -> jax.ShapeDtypeStruct:
    shape: Any = jax.eval_shape(run.condition.shown, jax.ShapeDtypeStruct(run.shape, jnp.float32)).shape  # type: ignore[union-attr]
    return _shared_out(layout, (num, *shape), jnp.float32)


def _shared_out(layout: Layout, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    sharding = None if layout.mesh is None else NamedSharding(layout.mesh, P(AXIS))
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


def _everywhere(layout: Layout, tree: Any) -> Any:
    sharding = None if layout.mesh is None else NamedSharding(layout.mesh, P())
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), tree)
