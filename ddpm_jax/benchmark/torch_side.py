"""The PyTorch contenders: the twin, eager and compiled by torch.compile, and the network of diffusers, made to do the same work."""

import contextlib
import dataclasses
import functools
import itertools
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ddpm_jax import models
from ddpm_jax.benchmark.timing import Call, Facts
from ddpm_jax.benchmark.workload import Precision, What, Workload
from ddpm_jax.errors import UserError
from ddpm_jax.presets import SampleConfig
from ddpm_jax.processes import Process
from ddpm_jax.weights.diffusers import to_config


class TorchSide:
    """A workload in PyTorch on one device.

    Args:
        name: "torch", the twin; "torch.compile", its network compiled; "diffusers", their network in the twin's place.
        work: what is to be done.
        device: "cpu" or "cuda".

    Raises:
        UserError: diffusers is not installed, or has no such network.
    """

    def __init__(self, name: str, work: Workload, device: str):
        import torch

        import ddpm_torch_ref.denoisers
        import ddpm_torch_ref.models
        import ddpm_torch_ref.processes
        import ddpm_torch_ref.samplers
        import ddpm_torch_ref.schedules
        import ddpm_torch_ref.training

        self.torch, self.twins = torch, ddpm_torch_ref
        self.name, self.work, self.device = name, work, device
        self.process: Any = twin_process(ddpm_torch_ref, work.config.process)
        torch.manual_seed(work.seed)
        self.model = (self._diffusers() if name == "diffusers" else self._twin()).to(device)
        self.autocast = functools.partial(
            torch.autocast, device, dtype=torch.bfloat16, enabled=work.precision == "bfloat16"
        )

    def call(self, what: What) -> Call:
        """The piece of work, ready to be timed."""
        return {"forward": self._forward, "train": self._train, "sample": self._sample}[what]()

    def _diffusers(self) -> Any:
        config = self.work.config.model
        if not isinstance(config, models.UNetConfig):
            raise UserError(f"diffusers has no {config.network}.")
        options = to_config(config)
        try:
            import diffusers
        except ImportError as error:
            raise UserError('diffusers is not installed: pip install "ddpm-jax[test]".') from error

        class Network(self.torch.nn.Module):  # type: ignore[name-defined]
            def __init__(self) -> None:
                super().__init__()
                self.unet = diffusers.UNet2DModel.from_config(options)

            def forward(self, x_t: Any, t: Any, labels: Any = None) -> Any:
                return self.unet(x_t, t, class_labels=labels).sample

        return Network()

    def _twin(self) -> Any:
        config = self.work.config.model
        return self.twins.models.create(config.network, **vars(config))

    def _fast(self, model: Any) -> Any:
        return self.torch.compile(model) if self.name == "torch.compile" else model

    def _wait(self) -> None:
        if self.device == "cuda":
            self.torch.cuda.synchronize()

    def _batches(self) -> list[dict[str, Any]]:
        """The workload's batches as tensors on the host, channels first."""
        arrays = self.work.batches()
        if arrays["x_0"].ndim == 5:
            arrays["x_0"] = np.ascontiguousarray(np.moveaxis(arrays["x_0"], -1, 2))
        return [
            {name: self.torch.as_tensor(array[i]) for name, array in arrays.items()} for i in range(len(arrays["x_0"]))
        ]

    def _times(self, n: int) -> Any:
        torch, schedule = self.torch, getattr(self.process, "schedule", None)
        if schedule is None:
            return torch.rand(n, device=self.device)
        return torch.randint(schedule.first, schedule.first + schedule.num_steps, (n,), device=self.device)

    def _labels(self, n: int) -> Any:
        classes = self.work.num_classes
        return None if not classes else self.torch.arange(n, device=self.device) % classes

    def _forward(self) -> Call:
        torch, model = self.torch, self._fast(self.model.eval())
        x_t = self._batches()[0]["x_0"].to(self.device)
        t, labels = self.process.network_time(self._times(len(x_t))), self._labels(len(x_t))

        def run() -> None:
            with torch.no_grad(), self.autocast():
                model(x_t, t, labels)
            self._wait()

        return Call(run, len(x_t), lambda: Facts(memory=self._memory(run)))

    def _train(self) -> Call:
        torch, work = self.torch, self.work
        training, config = self.twins.training, work.config.train
        state = training.create_state(self.model, torch.optim.Adam(self.model.parameters(), lr=config.lr))
        state.model = self._fast(state.model)
        options = {"ema": config.ema_decay, "grad_clip": config.grad_clip, "bounded": False}
        step = training.make_step(self.process, **options)
        generator = torch.Generator(self.device).manual_seed(work.seed)
        turn: Iterator[dict[str, Any]] = itertools.cycle(self._batches())

        def run() -> None:
            for _ in range(work.steps_per_call):
                batch = {name: tensor.to(self.device) for name, tensor in next(turn).items()}
                with self.autocast():
                    step(state, batch, generator)
            self._wait()

        return Call(run, work.batch_size * work.steps_per_call, lambda: Facts(memory=self._memory(run)))

    def _sample(self) -> Call:
        torch, work, config = self.torch, self.work, self.work.config.sample
        model, labels = self._fast(self.model.eval()), self._labels(self.work.sample_size)
        height, *rest = work.shape
        shape = (work.sample_size, rest[-1], height, rest[0]) if len(rest) == 2 else (work.sample_size, height)

        def predict(x_t: Any, t: Any) -> Any:
            with self.autocast():
                return model(x_t, t, labels).float()

        def run(walk: Callable[[Any], Any]) -> None:
            with torch.no_grad():
                walk(torch.randn(shape, device=self.device))
            self._wait()

        few = dataclasses.replace(config, steps=min(2, config.steps or 2))  # all steps need the same memory
        whole, short = (functools.partial(run, _walk(self.twins, self.process, predict, c)) for c in (config, few))
        return Call(whole, work.sample_size, lambda: Facts(memory=self._memory(short)))

    def _memory(self, run: Any) -> int:
        """Most bytes that the allocator has handed out at once during a run, beyond those in use before it."""
        torch = self.torch
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            run()
            return torch.cuda.max_memory_allocated() - before
        activities = [torch.profiler.ProfilerActivity.CPU]
        with _without_stderr(), torch.profiler.profile(activities=activities, profile_memory=True) as profile:
            run()
        changes = [event.nbytes() for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
        return max(itertools.accumulate(changes, initial=0))


def set_precision(asked: Precision) -> None:
    """Products of float32 on NVIDIA GPUs are rounded to TF32 if asked for and not otherwise: by default convolutions' are."""
    import torch

    backends: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    for backend in backends:
        backend.allow_tf32 = asked == "tf32"


@contextlib.contextmanager
def _without_stderr() -> Iterator[None]:
    """PyTorch's profiler announces its start and its end there, from C++."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def twin_process(twins: Any, process: Process) -> Any:
    """The twin's form of a process."""
    kind = getattr(twins.processes, type(process).__name__)
    options = {field.name: getattr(process, field.name) for field in dataclasses.fields(kind)}
    if "schedule" in options:
        ours = options["schedule"]
        options["schedule"] = twins.schedules.Schedule(ours.betas, ours.alphas_cumprod, ours.first)
    return kind(**options)


def _walk(twins: Any, process: Any, predict: Any, config: SampleConfig) -> Callable[[Any], Any]:
    """The twin's form of the sampler that the config names, from noise to samples.

    Raises:
        UserError: the comparison has no such sampler.
    """
    ours = config.sampler
    kind = getattr(twins.samplers, type(ours).__name__, None)
    if kind is None:
        raise UserError(f"the PyTorch twin has no sampler {ours.name}, which diffrax walks: choose another.")
    sampler = kind(**vars(ours))
    denoise = twins.denoisers.of(process, predict)
    if config.clip is not None:
        denoise = twins.denoisers.clipped(denoise, config.clip)
    try:
        grid = sampler.grid(process, config.steps, config.spacing)
    except ValueError as error:
        raise UserError(f"the PyTorch twin does not sample so: {error}") from error
    return lambda x_T: twins.samplers.walk(denoise, sampler, x_T, lambda _: x_T.new_empty(x_T.shape).normal_(), grid)
