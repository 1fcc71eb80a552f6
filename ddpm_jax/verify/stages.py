"""The staged report of a registered network: everything between its schedule and a trajectory, against the PyTorch twin."""

import copy
import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ddpm_jax import denoisers, models, progress, samplers
from ddpm_jax.compilation import compile_for, once
from ddpm_jax.errors import UserError
from ddpm_jax.named import tree_of
from ddpm_jax.presets import SampleConfig, TrainConfig, system_of
from ddpm_jax.processes import GaussianDiffusion, Process
from ddpm_jax.training import Examples, Update, create_state, make_optimizer
from ddpm_jax.training.run import Run
from ddpm_jax.verify.comparison import compare, environment
from ddpm_jax.verify.kinks import SAFE, relu_margin
from ddpm_jax.verify.measure import Measure
from ddpm_jax.verify.options import Options
from ddpm_jax.verify.report import Report, Row
from ddpm_jax.verify.torch_side import import_torch
from ddpm_jax.weights.bridge import IGNORED, layout, load_torch, to_numpy, to_torch

TABLES = (
    "betas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "posterior_variance",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
)
BATCH = 3
"""Examples in a batch: enough for statistics, and few enough to be quick."""
WALK = 8
"""Steps of the trajectory."""
NOISY = 0.1
"""Relative difference from which on a gradient is said to be mostly rounding."""
DRAWS = 24
"""How often inputs are drawn, at most, for a network with ReLUs."""
TRAINING = TrainConfig(lr=5e-4, warmup_steps=2, grad_clip=0.1, ema_decay=0.2)
"""How three steps are made: the rate warms up from 0 in the first two, the average's decay (2/11, then 0.2) in the second."""
STAGES = (
    "schedule",
    "noising",
    "layers",
    "output",
    "statistics",
    "loss",
    "gradients",
    "optimiser",
    "average",
    "sampler step",
    "trajectory",
)
"""The parts of a report; what a network computes in training mode, where that is another thing, bears a star there."""

STAGE_OF = {"layer": "layers", "output": "output", "statistics": "statistics"}
"""quantity of `compare` -> stage."""

SAMPLERS = ("ancestral", "ddim", "strided")
"""Samplers whose steps are compared."""

SMALL: dict[str, dict[str, Any]] = {
    "unet": {
        "image_size": 16,
        "dim": 32,
        "dim_mults": (1, 2),
        "num_blocks": 1,
        "attention_resolutions": (8,),
        "norm_groups": 8,
    },
    "foreign_unet": {
        "image_size": 16,
        "dim": 16,
        "widths": (16, 24),
        "num_blocks": 1,
        "norm_groups": 8,
        "middle": "plain",
        "activation": "gelu",
        "cos_first": True,
        "freq_shift": 0,
        "norm_eps": 1e-5,
    },
    "convnext_unet": {"image_size": 16},
    "convnext_unet_224": {"image_size": 32},
    "tiny_unet": {"image_size": 16},
    "double_conv_unet": {"dim": 16},
    "annotated_unet": {"dim": 16, "image_size": 16},
    "rms_unet": {"dim": 8, "dim_mults": (1, 2), "image_size": 8, "num_heads": 2, "head_dim": 8},
    "dit": {"image_size": 8, "dim": 24, "depth": 3, "num_heads": 2},
    "edm_unet": {"image_size": 8, "dim": 8, "dim_mults": (1, 2), "num_blocks": 1, "attention_resolutions": (4,)},
}
"""Options that make a network quick to verify without changing its kind; a network that is not here is verified as it is."""


class Verification:
    """One network on both sides, with the same weights, inputs and draws; `run` goes through the stages."""

    def __init__(
        self,
        name: str,
        *,
        options: Mapping[str, Any] | None = None,
        state_dict: Mapping[str, Any] | None = None,
        system: tuple[Process, SampleConfig] | None = None,
        dtype: str = "float64",
        device: str = "cpu",
        seed: int = 0,
    ):
        torch = import_torch()
        import ddpm_torch_ref

        self.twins: Any = ddpm_torch_ref
        kind = models.kind_of(name)  # or a UserError
        if options is None:
            options = SMALL.get(name, {}) if state_dict is None else {}
        if hasattr(kind, "dropout"):  # two frameworks draw no mask alike
            options = {**options, "dropout": 0.0}
        self.name, self.dtype, self.device, self.torch = name, dtype, device, torch
        self.measure = Measure(dtype, device)
        self.rng = np.random.default_rng(seed)
        self.twin = self.twins.models.create(name, **options)
        if state_dict is None:
            self._randomise()
        else:
            tensors = {key: torch.as_tensor(np.asarray(value)) for key, value in state_dict.items()}
            counters = {key: value for key, value in self.twin.state_dict().items() if key.endswith(IGNORED)}
            self.twin.load_state_dict(counters | tensors, strict=True)
        self.config: Any = models.configure(name, options)
        self.model = models.abstract(self.config)
        process, self.sampling = system or system_of(self.config)
        if getattr(self.config, "self_conditioning", False):
            raise UserError(
                "the stages show a network x_t alone, and one with self_conditioning sees its estimate of x_0 too."
            )
        if channels := getattr(self.config, "condition_channels", 0):
            raise UserError(f"the stages show a network x_t alone; got one with condition_channels = {channels}.")
        if not isinstance(process, GaussianDiffusion):
            raise UserError(f"the stages are those of a diffusion; got one of kind {process.name}.")
        if self.sampling.sampler.name not in SAMPLERS:
            self.sampling = system_of(self.config)[1]
        schedule = process.schedule
        twin_schedule = self._twin_schedule(schedule)
        self.learned = bool(getattr(self.config, "learn_variance", False))
        loss = "hybrid" if self.learned else process.loss
        learned: dict[str, Any] = {"learned_variance": self.learned}
        self.process = GaussianDiffusion(schedule, process.prediction, loss, **learned)
        self.twin_process = self.twins.processes.GaussianDiffusion(twin_schedule, process.prediction, loss, **learned)
        *size, channels = self.config.shape
        first, last = schedule.timesteps[[0, -1]]
        if self.learned and len(schedule.timesteps) > 1:
            # the bound's term of the first is a difference of distribution functions, which keeps too few digits
            first += 1
        self.t = np.array([first, (first + last) // 2, last])
        num_classes = getattr(self.config, "num_classes", None)
        self.labels = np.arange(BATCH) % num_classes if num_classes else None
        self._draw_away_from_kinks((BATCH, channels, *size))

    def run(self, stages: Collection[str] = STAGES) -> Report:
        """The report, of some of the stages only if asked for: what takes long is to compile the gradients."""
        unknown = [stage for stage in stages if stage not in STAGES]
        if unknown:
            raise UserError(f"stages must be some of {', '.join(STAGES)}; got {', '.join(unknown)}.")
        report = Report(f"{self.name}, {self.dtype} on {self.device}", environment(self.dtype, self.device))
        parts = {
            self._schedule: {"schedule"},
            self._noising: {"noising"},
            lambda: self._network(report): {"layers", "output", "statistics"},
            self._training: {"loss", "gradients", "optimiser", "average"},
            self._sampler_steps: {"sampler step"},
            self._trajectory: {"trajectory"},
        }
        with jax.enable_x64(True), jax.default_device(jax.devices(self.device)[0]), self._one_thread():
            asked = {part: of for part, of in parts.items() if of & set(stages)}
            for part in progress.each(asked, len(asked), f"{self.name}, {self.dtype}", unit="part"):
                report.rows += [found for found in part() if found.stage.rstrip("*") in stages]
        return report

    @contextmanager
    def _one_thread(self) -> Iterator[None]:
        """PyTorch's threads wait for each other at every small operation, for longer than they save."""
        before = self.torch.get_num_threads()
        self.torch.set_num_threads(1)
        try:
            yield
        finally:
            self.torch.set_num_threads(before)

    def _network(self, report: Report) -> Iterator[Row]:
        x_0, noise = self._jax_images(self.x_0), self._jax_images(self.noise)
        inputs = (self._images(self.process.add_noise(x_0, noise, jnp.asarray(self.t))), self.t, self.labels)
        has_statistics = any(entry.path[0] == "batch_stats" for entry in layout(self.model))
        for training in (False, True) if has_statistics else (False,):
            options = Options(self.dtype, self.device, training=training, gradients=False)
            found = compare(self.model, self.twin, inputs, options)
            report.environment |= found.environment | ({"*": "training mode"} if training else {})
            report.coverage = report.coverage or found.coverage
            report.faults += found.faults
            report.warnings += [warning for warning in found.warnings if warning not in report.warnings]
            report.hidden, report.picture = report.hidden or found.hidden, report.picture or found.picture
            for one in found.rows:
                yield dataclasses.replace(one, stage=STAGE_OF[one.stage] + "*" * training)

    def _schedule(self) -> Iterator[Row]:
        for table in TABLES:
            # a posterior is that of a valid t: before the first, where A may be 1, its quotients mean nothing
            start = self.process.schedule.first if table.startswith("posterior") else 0
            ours, theirs = (
                getattr(process.schedule, table)[start:].astype(self.dtype)
                for process in (self.process, self.twin_process)
            )
            yield self.measure.row("schedule", table, ours, theirs)

    def _noising(self) -> Iterator[Row]:
        t, twin_t = jnp.asarray(self.t), self.torch.as_tensor(self.t)
        ours = self.process.add_noise(self._jax_images(self.x_0), self._jax_images(self.noise), t)
        theirs = self.twin_process.add_noise(self._tensor(self.x_0), self._tensor(self.noise), twin_t)
        yield self.measure.row("process", "x_t", ours, theirs, stage="noising", free=True)

    def _training(self) -> Iterator[Row]:
        """Loss and gradients, then three steps of Adam and of the average, from the same start on the same draws."""
        model = self._jax_model()
        update = Update(self.process, make_optimizer(TRAINING), TRAINING.ema_decay)
        state = create_state(model, update.optimizer)
        labels = None if self.labels is None else jnp.asarray(self.labels)
        x_0, t = self._jax_images(self.x_0), jnp.asarray(self.t)
        examples = Examples(x_0, self._jax_images(self.noise), t, labels)
        gradients = compile_for(3, update.gradients, state, examples)
        apply = jax.jit(update.apply, compiler_options=once())

        twins = self.twins.training
        twin = copy.deepcopy(self.twin).to(getattr(self.torch, self.dtype))
        rate = twins.learning_rate(TRAINING.lr, TRAINING.warmup_steps)
        twin_state = twins.create_state(twin, twins.make_optimizer(twin.parameters(), rate))
        twin_update = twins.Update(self.twin_process, TRAINING.ema_decay, grad_clip=TRAINING.grad_clip)
        twin_labels = None if self.labels is None else self.torch.as_tensor(self.labels)
        history: list[tuple[Any, Any]] = []
        for index in range(3):
            noise = (1 + index) * self.noise  # other gradients each time: Adam does not see a scale that they share
            examples = Examples(x_0, self._jax_images(noise), t, labels)
            found = gradients(state, examples)
            if index == 0:
                yield from self._gradients(model, found.losses.mean(), found.params)
            drawn = twins.Examples(
                self._tensor(self.x_0), self._tensor(noise), self.torch.as_tensor(self.t), twin_labels
            )
            theirs = twin_update.gradients(twin_state, drawn)
            history.append((to_torch(model, {"params": found.params}), copy.deepcopy(theirs.params)))
            state, _ = apply(state, examples, found)
            twin_update.apply(twin_state, drawn, theirs)
        for stage, tree, theirs in (
            ("optimiser", state.params, twin_state.model),
            ("average", state.ema_params, twin_state.ema_model),
        ):
            tensors = dict(theirs.named_parameters())
            for key, tensor in to_torch(model, {"params": tree}).items():
                pair = tensor.numpy(), tensors[key].detach().numpy()
                found = self.measure.row("training", key, *pair, stage=stage)
                grads = [tuple(side[key].numpy() for side in step) for step in history]
                yield (
                    found if found.ok else dataclasses.replace(found, note=_of_rounding(*pair, found.tolerance, grads))
                )

    def _gradients(self, model: nnx.Module, loss: jax.Array, grads: Any) -> Iterator[Row]:
        """Loss and gradients by parameter, in float32 with what float64 says of either side."""
        theirs = self._twin_gradients(self.dtype)
        exact = self._twin_gradients("float64") if self.dtype != "float64" else None
        largest = max(float(np.abs(grad).max()) for name, grad in theirs.items() if name != "loss")
        ours = {"loss": loss} | {key: grad.numpy() for key, grad in to_torch(model, {"params": grads}).items()}
        for name, array in ours.items():
            known: dict[str, Any] = {"oracle": None if exact is None else exact[name]}
            if name == "loss":
                yield self.measure.row("loss", "loss", array, theirs[name], **known)
            else:
                # a gradient that is zero in exact arithmetic (a bias before a norm) holds nothing but rounding
                floor = largest / 100
                yield self.measure.row("gradient", name, array, theirs[name], stage="gradients", floor=floor, **known)

    def _twin_gradients(self, dtype: str) -> dict[str, np.ndarray]:
        twin = copy.deepcopy(self.twin).to(getattr(self.torch, dtype)).train()
        labels = None if self.labels is None else self.torch.as_tensor(self.labels)
        x_0, noise = (self.torch.as_tensor(array.astype(dtype)) for array in (self.x_0, self.noise))
        t = self.torch.as_tensor(self.t)
        losses = self.twin_process.loss_per_example(lambda x_t, t: twin(x_t, t, labels), x_0, noise, t)
        losses.mean().backward()
        zeros = {name: np.zeros(tuple(p.shape), dtype) for name, p in twin.named_parameters() if p.grad is None}
        grads = {name: p.grad.numpy() for name, p in twin.named_parameters() if p.grad is not None}
        return {"loss": losses.mean().detach().numpy(), **zeros, **grads}

    def _sampler_steps(self) -> Iterator[Row]:
        x_t, output, noise = (self.rng.standard_normal(self.x_0.shape) for _ in range(3))
        if self.learned:
            output = np.concatenate([output, self.rng.standard_normal(self.x_0.shape)], axis=1)
        times, twin_times = self._times(self.sampling.steps)
        yield self.measure.row("step", "times", times, twin_times, stage="sampler step")
        sampler, twin_sampler = self.sampling.sampler, self._twin_sampler()
        said = self._jax_images(output)
        denoise = denoisers.of(self.process, lambda x, t: said)
        for index in sorted({0, len(times) // 2, len(times) - 2}):
            t, s = int(times[index]), int(times[index + 1])
            z = noise if s != times[-1] else np.zeros_like(noise)  # a walk's last step takes none
            row_of_times = jnp.array([t, s], jnp.int32)
            ours = sampler.step(denoise, self._jax_images(x_t), row_of_times, self._jax_images(z), ()).x
            x, out, z = map(self._tensor, (x_t, output, z))
            believed = self.twins.denoisers.of(self.twin_process, lambda x, t, out=out: out)
            theirs = twin_sampler.step(believed, x, (t, s), z, ()).x
            yield self.measure.row("step", f"t = {t} -> {s}", ours, theirs, stage="sampler step", free=True)

    def _trajectory(self) -> Iterator[Row]:
        model = self._jax_model()
        noises = self.rng.standard_normal((WALK, *self.x_0.shape))
        graphdef, variables = models.split(model)
        sampler, twin_sampler = self.sampling.sampler, self._twin_sampler()
        times, twin_times = self._times(WALK)
        drawn = jnp.stack([self._jax_images(noise) for noise in noises])

        def walk(variables: models.Variables, x_T: jax.Array) -> Any:
            denoise = denoisers.of_network((graphdef, variables), self.process, labels=self.labels)
            if self.sampling.clip is not None:
                denoise = denoisers.clipped(denoise, self.sampling.clip)
            grid = samplers.rows(times)
            return samplers.walk(denoise, sampler, x_T, lambda i: drawn[i], grid, len(times)).frames

        x_T = self._jax_images(self.noise)
        frames = compile_for(WALK, walk, variables, x_T)(variables, x_T)
        twin = copy.deepcopy(self.twin).to(getattr(self.torch, self.dtype)).eval()
        twin_labels = None if self.labels is None else self.torch.as_tensor(self.labels)
        believed = self.twins.denoisers.of(self.twin_process, twin, labels=twin_labels)
        if self.sampling.clip is not None:
            believed = self.twins.denoisers.clipped(believed, self.sampling.clip)
        twins, their_drawn = self.twins.samplers, [self._tensor(noise) for noise in noises].__getitem__
        x_T = self._tensor(self.noise)
        states = twins.walk(believed, twin_sampler, x_T, their_drawn, twins.rows(twin_times), len(twin_times)).frames
        for index, (ours, theirs) in enumerate(zip(np.asarray(frames), states, strict=True)):
            yield self.measure.row("trajectory", f"after {index} steps", ours, theirs, stage="trajectory", free=True)

    def _twin_schedule(self, schedule: Any) -> Any:
        """The twin's own schedule of the same options."""
        options = tree_of(schedule)
        rescaled = options.pop("zero_terminal_snr")
        twin = getattr(self.twins.schedules, options.pop("schedule"))(**options)
        return self.twins.schedules.zero_terminal_snr(twin) if rescaled else twin

    def _twin_sampler(self) -> Any:
        sampler = self.sampling.sampler
        return getattr(self.twins.samplers, type(sampler).__name__)(**vars(sampler))

    def _times(self, num_steps: int | None) -> tuple[np.ndarray, np.ndarray]:
        """The sampler's grid on either side; num_steps None: the whole chain."""
        num_steps = num_steps or self.process.schedule.num_steps
        grids = (
            np.asarray(sampler.grid(process, num_steps))
            for sampler, process in (
                (self.sampling.sampler, self.process),
                (self._twin_sampler(), self.twin_process),
            )
        )
        ours, theirs = (np.append(grid[:, 0], grid[-1, 1]) for grid in grids)
        return ours, theirs

    def _jax_model(self) -> nnx.Module:
        model = nnx.clone(self.model)
        load_torch(model, copy.deepcopy(self.twin).to(getattr(self.torch, self.dtype)).state_dict())
        return model

    def _draw_away_from_kinks(self, shape: tuple[int, ...]) -> None:
        """Data and noise at which no ReLU is within rounding of its kink, or the best of a few draws."""
        exact = copy.deepcopy(self.twin).double()
        t = self.torch.as_tensor(self.t)
        labels = None if self.labels is None else self.torch.as_tensor(self.labels)
        best = -1.0
        for _ in range(DRAWS):
            x_0, noise = self.rng.standard_normal((2, *shape))
            x_t = self.twin_process.add_noise(self.torch.as_tensor(x_0), self.torch.as_tensor(noise), t)
            margin = min(relu_margin(exact, (x_t, t, labels), training=training) for training in (False, True))
            if margin > best:
                best, self.x_0, self.noise = margin, x_0, noise
            if margin > SAFE:
                break

    def _randomise(self) -> None:
        """Every parameter drawn anew, none of them zero, so that layers which start at zero take part as well."""
        with self.torch.no_grad():
            for key, parameter in self.twin.named_parameters():
                draw = self.rng.standard_normal(tuple(parameter.shape))
                if "norm" in key:
                    draw = 0.2 * draw + key.endswith("weight")
                else:
                    draw /= np.sqrt(parameter[0].numel()) if parameter.ndim > 1 else 5
                parameter.copy_(self.torch.as_tensor(draw))

    def _tensor(self, array: np.ndarray) -> Any:
        return self.torch.as_tensor(array.astype(self.dtype))

    def _jax_images(self, array: np.ndarray) -> jax.Array:
        return jnp.asarray((np.moveaxis(array, 1, -1) if array.ndim == 4 else array).astype(self.dtype))

    def _images(self, array: jax.Array) -> np.ndarray:
        return np.moveaxis(np.asarray(array), -1, 1) if array.ndim == 4 else np.asarray(array)


def _of_rounding(ours: np.ndarray, theirs: np.ndarray, allowed: float, grads: Sequence[tuple[Any, ...]]) -> str:
    """Why parameters part after steps of Adam, where their gradients are mostly rounding: it divides each by its own size.

    grads: of each step, in JAX and in PyTorch.
    """
    off = np.abs(ours - theirs) > allowed * np.abs(theirs).max()
    apart = np.max([np.abs(a - b) / np.maximum(np.abs(b), np.finfo(np.float32).tiny) for a, b in grads], axis=0)[off]
    lost = apart > NOISY
    if not lost.any():
        return ""
    return (
        f"{lost.sum():,} of the {off.sum():,} numbers that differ had a gradient that is mostly rounding (the two sides' differ by "
        f"{apart[lost].min():.0%} or more), and Adam divides a gradient by its own size"
    )


def verify(name: str, **options: Any) -> Report:
    """The staged report of a registered network: `Verification(name, **options).run()`.

    options: of the network, a dict (None: small ones); state_dict: the twin's weights (None: fresh ones); system: how it is
    trained and sampled (None: as its author did; a sampler that is none of SAMPLERS is replaced by its author's); dtype; device;
    seed.

    Raises:
        UserError: an unknown network, weights that do not fit or are not finite, PyTorch missing.
    """
    return Verification(name, **options).run()


def verify_run(run: Run, **options: Any) -> Report:
    """The staged report of a run: its network with the averaged weights of the newest checkpoint, its process and its sampler.

    options: dtype, device, seed.

    Raises:
        UserError: there is no checkpoint, the run is no diffusion's, or PyTorch is missing.
    """
    config = run.config
    return verify(
        config.model.network,
        options=dataclasses.asdict(config.model),
        state_dict=to_numpy(models.abstract(config.model), run.load_variables()[0]),
        system=(config.process, config.sample),
        **options,
    )
