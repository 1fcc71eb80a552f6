"""The JAX contender: the package's own compiled programs, as `ddpm train` and `ddpm sample` call them."""

import dataclasses
import functools
import itertools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from ddpm_jax import cpu_forms, denoisers, models, samplers
from ddpm_jax.benchmark.timing import Call, Facts
from ddpm_jax.benchmark.workload import What, Workload
from ddpm_jax.compilation import jit
from ddpm_jax.training import create_state
from ddpm_jax.training.objective import step_of

MATMUL = {"float32": "highest", "tf32": "tensorfloat32", "bfloat16": "default"}
"""What jax.default_matmul_precision is called: on a GPU its own default rounds float32 to TF32."""


@functools.partial(jit, static_argnames=("graphdef", "dtype"))
def forward(
    graphdef: nnx.GraphDef[Any], variables: models.Variables, x_t: jax.Array, t: jax.Array, labels: Any, *, dtype: Any
) -> jax.Array:
    """The network's output in evaluation mode."""
    return models.apply(graphdef, variables, x_t, t, labels, dtype=dtype)[0]


class JaxSide:
    """A workload in JAX on one device."""

    def __init__(self, work: Workload):
        self.work = work
        self.process = work.config.process
        self.dtype = jnp.bfloat16 if work.precision == "bfloat16" else None
        self.model = models.build(work.config.model, rngs=nnx.Rngs(work.seed))
        self.key = jax.random.key(work.seed)

    def call(self, what: What) -> Call:
        """The piece of work, ready to be timed."""
        return {"forward": self._forward, "train": self._train, "sample": self._sample}[what]()

    def _forward(self) -> Call:
        graphdef, variables = models.split(self.model)
        batch = {name: jnp.asarray(array[0]) for name, array in self.work.batches().items()}
        t = self.process.network_time(self.process.draw_times(self.key, self.work.batch_size))
        args = (graphdef, variables, batch["x_0"], t, batch.get("label"))
        call = functools.partial(forward, *args, dtype=self.dtype)
        return Call(
            lambda: jax.block_until_ready(call()),
            self.work.batch_size,
            lambda: _facts(_lowering(forward, *args, dtype=self.dtype)),
        )

    def _train(self) -> Call:
        work, per_call = self.work, self.work.steps_per_call
        config = work.config
        if work.precision == "bfloat16":
            config = dataclasses.replace(config, train=dataclasses.replace(config.train, dtype="bfloat16"))
        step = step_of(config)
        call = step if per_call == 1 else step.many
        state = create_state(self.model, step.update.optimizer)
        abstract = jax.eval_shape(lambda: state)
        batches = work.batches()
        if per_call == 1:
            rounds = [{name: array[i] for name, array in batches.items()} for i in range(len(batches["x_0"]))]
        else:
            rounds = [{name: array[:per_call] for name, array in batches.items()}]
        turn = itertools.cycle(rounds)

        def run() -> None:
            nonlocal state
            state, metrics = call(state, next(turn), self.key)
            jax.block_until_ready((state, metrics))

        return Call(
            run,
            work.batch_size * per_call,
            lambda: _facts(_lowering(step.program(stacked=per_call > 1), abstract, rounds[0], self.key), per_call),
        )

    def _sample(self) -> Call:
        work, config = self.work, self.work.config.sample
        labels = None if not work.num_classes else jnp.arange(work.sample_size) % work.num_classes
        denoise = denoisers.of_network(self.model, self.process, labels=labels, dtype=self.dtype)
        denoise = denoise if config.clip is None else denoisers.clipped(denoise, config.clip)
        sampler, shape = config.sampler, (work.sample_size, *work.shape)
        args = denoise, sampler, self.key, shape, config.steps
        adapts = isinstance(sampler, samplers.Adaptive)  # to its error: nobody knows beforehand in how many steps
        num_steps = None if adapts else len(sampler.grid(self.process, config.steps, config.spacing))

        def lower(**options: Any) -> Any:
            return samplers.lower(*args, spacing=config.spacing, **options)

        return Call(
            lambda: jax.block_until_ready(samplers.sample(*args, spacing=config.spacing)),
            work.sample_size,
            lambda: dataclasses.replace(_facts(lower, num_steps), from_cache_s=None),
        )


def _facts(lower: Callable[..., Any], times: int | None = 1) -> Facts:
    """What the compiler says of the program that lower(platforms=None) gives.

    times: how often its loop's body runs, which the compiler counts once; None: unknown, and so are the operations.
    """
    jax.clear_caches()  # so that the program on disk is what is left of it
    begun = time.perf_counter()
    compiled = lower().compile()
    seconds = time.perf_counter() - begun
    flops = None
    if times is not None:
        with cpu_forms.off():  # as for an accelerator: some forms are loops, whose bodies would count once
            flops = (lower(platforms=("cuda",)).cost_analysis() or {}).get("flops")
    memory = compiled.memory_analysis()
    return Facts(
        flops=None if flops is None or times is None else times * flops,
        memory=None if memory is None else memory.temp_size_in_bytes,
        from_cache_s=seconds,
    )


def _lowering(function: Any, *args: Any, **static: Any) -> Callable[..., Any]:
    return lambda platforms=None: function.trace(*args, **static).lower(lowering_platforms=platforms)
