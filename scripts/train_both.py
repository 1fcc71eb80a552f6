"""The same training by both frameworks, to its end: python scripts/train_both.py [spiral mnist-strided] [--source SPEC].

Together: one start, one order of the data, the same draws, so that the loss curves lie over each other as far as rounding lets
them. Apart: each framework's own initialisation, order and draws, from several seeds, whose figures a rank test compares. Every
training leaves a file in --work, so that the command goes on where it stopped and may run twice at once; the figures of all are
written to --out, and a picture of the curves beside the others of the documentation.
"""

import argparse
import dataclasses
import functools
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
import torch
from flax import nnx

import ddpm_torch_ref
import ddpm_torch_ref.denoisers
import ddpm_torch_ref.models
import ddpm_torch_ref.processes
import ddpm_torch_ref.samplers
import ddpm_torch_ref.schedules
import ddpm_torch_ref.training
from ddpm_jax import data, models, presets, processors, progress, samplers, training, weights
from ddpm_jax.benchmark.torch_side import twin_process
from ddpm_jax.compilation import jit
from ddpm_jax.evaluation.cache import cached_classifier
from ddpm_jax.evaluation.distances import frechet_distance
from ddpm_jax.evaluation.points import sliced_wasserstein
from ddpm_jax.files import write_atomically, write_text
from ddpm_jax.training.run import environment

FRAMEWORKS = ("jax", "torch")
HELD_OUT = 2**32
"""Seeds of points that are trained on by nobody."""
LAST = 500
"""Steps over which the loss at the end is a mean."""


@dataclass(frozen=True)
class Task:
    """A preset, and how long it is trained."""

    name: str
    together: int
    """Steps from the same start."""
    apart: int
    """Steps of each of the seeds."""
    every: int
    """Steps to a point of the curve."""
    samples: int
    """How many are drawn at the end."""


TASKS = {
    "spiral": Task("spiral", together=40_000, apart=40_000, every=500, samples=10_000),
    "mnist-strided": Task("mnist-strided", together=10_000, apart=2_500, every=50, samples=500),
}


class Bench:
    """The data of a preset, and what trainings on it are measured by."""

    def __init__(self, task: Task, spec: str | None, held_out: str | None):
        preset = presets.preset(task.name)
        source = data.open_source(spec or preset.data.source)
        train = dataclasses.replace(preset.train, epoch_steps=max(1, len(source) // preset.train.batch_size))
        self.task, self.source = task, source
        self.preset = dataclasses.replace(preset, train=train)
        self.process, self.shape = preset.process, preset.model.shape
        self.twin_process = twin_process(ddpm_torch_ref, preset.process)
        self.scaling = data.scaling_of(source, preset.data.scale, self.shape)
        self.points = len(self.shape) == 1
        self._held_out = held_out

    def batches(self, seed: int) -> Iterator[Any]:
        """Of the pipeline, x_0 alone."""
        found = data.batches(
            self.source, shape=self.shape, batch_size=self.preset.train.batch_size, scaling=self.scaling, seed=seed
        )
        return (batch["x_0"] for batch in found)

    @functools.cached_property
    def all_of_it(self) -> tuple[np.ndarray, np.ndarray]:
        """Every example as the network sees it, or as uint8 images, and the labels."""
        return self._all(self.source)

    def _all(self, source: Any) -> tuple[np.ndarray, np.ndarray]:
        if self.points:
            return self.scaling.apply(source.points).astype(np.float32), np.zeros(len(source), int)
        size, _, channels = self.shape
        elements = [source[index] for index in range(len(source))]
        images = np.stack([data.geometry.fit(element["image"], size, channels) for element in elements])
        return images, np.array([element["label"] for element in elements])

    @functools.cached_property
    def others(self) -> tuple[np.ndarray, np.ndarray]:
        """Examples that nobody trains on."""
        if self.points:
            return self._all(data.PointSource(self.preset.data.source, self.task.samples, HELD_OUT))
        return self._all(data.open_source(self._held_out or self.preset.data.source))

    def measured(self, eps_of: Callable[[np.ndarray, np.ndarray], np.ndarray], drawn: np.ndarray) -> dict[str, float]:
        """The loss of examples that nobody trained on, at fixed times and noise; and how far samples are from them.

        eps_of: the averaged network's estimate of the noise of x_t (B, ...) at t (B,), channels last. drawn: its samples.
        """
        rng = np.random.default_rng(0)
        x_0 = self.others[0][:2_000]
        x_0 = x_0 if self.points else np.asarray(self.scaling.apply(x_0), np.float32)
        noise = rng.standard_normal(x_0.shape).astype(np.float32)
        first, last = self.process.schedule.timesteps[[0, -1]]
        t = rng.integers(first, last + 1, len(x_0))
        x_t = np.asarray(self.process.add_noise(jnp.asarray(x_0), jnp.asarray(noise), jnp.asarray(t)))
        parts = [slice(k, k + 250) for k in range(0, len(x_0), 250)]
        errors = [np.square(eps_of(x_t[part], t[part]) - noise[part]).mean() for part in parts]
        return {"held_out_loss": float(np.mean(errors)), **self._distance(drawn)}

    def _distance(self, drawn: np.ndarray) -> dict[str, float]:
        if self.points:
            reference = self.scaling.undo(self.others[0])
            return {"sliced_wasserstein": sliced_wasserstein(self.scaling.undo(drawn), reference)}
        classifier, reference = self._reference
        return {"frechet_distance": frechet_distance(classifier.features(self.scaling.to_images(drawn)), reference)}

    @functools.cached_property
    def _reference(self) -> tuple[Any, np.ndarray]:
        images, labels = self.all_of_it
        classifier = cached_classifier(images, labels, int(labels.max()) + 1, seed=0)
        return classifier, classifier.features(self.others[0])


def curve(losses: list[float], every: int) -> list[float]:
    """Means of so many losses in a row."""
    return [round(float(np.mean(losses[k : k + every])), 6) for k in range(0, len(losses), every)]


def channels_first(array: Any) -> torch.Tensor:
    """An array of JAX's, or NumPy's, as PyTorch lays images out."""
    array = np.asarray(array)
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(array, -1, 1)) if array.ndim == 4 else np.array(array))


def channels_last(tensor: torch.Tensor) -> np.ndarray:
    """The way back."""
    array = tensor.detach().numpy()
    return np.moveaxis(array, 1, -1) if array.ndim == 4 else array


class InJax:
    """A training in JAX."""

    def __init__(self, bench: Bench, seed: int):
        train = bench.preset.train
        self.bench, optimizer = bench, training.make_optimizer(train)
        model = models.build(bench.preset.model, rngs=nnx.Rngs(params=seed))
        self.model, self.state = model, training.create_state(model, optimizer)
        self.step = training.make_step(bench.process, optimizer, ema=train.ema_decay)
        update = training.Update(bench.process, optimizer, train.ema_decay)
        self.draw = jit(update.draw)
        self.with_draws = jit(update.with_draws, donate_argnums=0)

    def result(self, losses: list[float], seed: int) -> dict[str, Any]:
        """Figures at the end."""
        bench, denoise = self.bench, self.state.denoiser(self.bench.process)
        eps = jit(lambda x, t: denoise(x, t).eps)
        shape = (bench.task.samples, *bench.shape)
        drawn = samplers.sample(denoise, bench.preset.sample.sampler, seed, shape)
        found = bench.measured(lambda x, t: np.asarray(eps(x, t)), np.asarray(drawn))
        return {"loss_at_end": float(np.mean(losses[-LAST:])), **found}


class InTorch:
    """The same in PyTorch."""

    def __init__(self, bench: Bench, seed: int):
        torch.manual_seed(seed)
        self.bench, train, twins = bench, bench.preset.train, ddpm_torch_ref.training
        self.model = ddpm_torch_ref.models.create(bench.preset.model.network, **vars(bench.preset.model))
        rate = twins.learning_rate(train.lr, 0)
        forget = train.steps_in_epoch if train.reset_optimizer else None
        optimizer = twins.make_optimizer(self.model.parameters(), rate, epoch_steps=forget)
        self.update = twins.Update(bench.twin_process, train.ema_decay)
        self.state = twins.create_state(self.model, optimizer)
        self.step = twins.make_step(bench.twin_process, ema=train.ema_decay)

    def result(self, losses: list[float], seed: int) -> dict[str, Any]:
        """Figures at the end."""
        bench, denoise = self.bench, self.state.denoiser(self.bench.twin_process)
        sampler = getattr(ddpm_torch_ref.samplers, type(bench.preset.sample.sampler).__name__)(
            **vars(bench.preset.sample.sampler)
        )
        shape = (bench.task.samples, bench.shape[-1], *bench.shape[:-1])
        generator = torch.Generator().manual_seed(seed)
        drawn = ddpm_torch_ref.samplers.sample(denoise, sampler, generator, shape)

        def eps(x: np.ndarray, t: np.ndarray) -> np.ndarray:
            with torch.no_grad():
                return channels_last(denoise(channels_first(x), torch.from_numpy(t)).eps)

        found = bench.measured(eps, channels_last(drawn))
        return {"loss_at_end": float(np.mean(losses[-LAST:])), **found}


def together(bench: Bench) -> dict[str, Any]:
    """Both from JAX's start, on what JAX draws; the figures of each, and how far the curves are apart."""
    ours, theirs = InJax(bench, seed=0), InTorch(bench, seed=0)
    start = weights.to_torch(ours.model)
    theirs.model.load_state_dict(start, strict=False)
    theirs.state.ema_model.load_state_dict(start, strict=False)
    steps, key, batches = bench.task.together, jax.random.key(0), bench.batches(0)
    losses: dict[str, list[float]] = {name: [] for name in FRAMEWORKS}
    for step in range(steps):
        examples, _ = ours.draw(ours.state, {"x_0": next(batches)}, key)
        given = ddpm_torch_ref.training.Examples(
            channels_first(examples.x_0), channels_first(examples.noise), channels_first(examples.t).long()
        )
        ours.state, metrics = ours.with_draws(ours.state, examples)
        theirs.state, twin_metrics = theirs.update.with_draws(theirs.state, given)
        losses["jax"].append(float(metrics["loss"]))
        losses["torch"].append(float(twin_metrics["loss"]))
        if (step + 1) % (20 * bench.task.every) == 0:
            progress.say(
                f"{bench.task.name} together: step {step + 1}, {losses['jax'][-1]:.6f} {losses['torch'][-1]:.6f}"
            )
    apart = np.abs(np.subtract(losses["jax"], losses["torch"])) / np.abs(losses["torch"])
    beyond = {
        f"{limit:g}": int(np.argmax(apart > limit)) if (apart > limit).any() else None for limit in (1e-5, 1e-3, 1e-1)
    }
    curves = {name: curve(values, bench.task.every) for name, values in losses.items()}
    return {
        "steps": steps,
        "first_step_whose_losses_differ_by_more_than": beyond,
        "curves_apart_at_most": float(np.abs(np.subtract(curves["jax"], curves["torch"])).max()),
        "curves": curves,
        "jax": ours.result(losses["jax"], 0),
        "torch": theirs.result(losses["torch"], 0),
    }


def alone(bench: Bench, framework: str, seed: int) -> dict[str, Any]:
    """One framework's own initialisation, order of the data and draws."""
    side: Any = (InJax if framework == "jax" else InTorch)(bench, seed)
    losses: list[Any] = []
    begun, used = time.perf_counter(), time.process_time()
    if framework == "jax":
        for _, x_0 in zip(range(bench.task.apart), bench.batches(seed), strict=False):
            side.state, metrics = side.step(side.state, {"x_0": x_0}, seed)
            losses.append(metrics["loss"])
    else:
        generator, size = torch.Generator().manual_seed(seed), bench.preset.train.batch_size
        examples = bench.all_of_it[0]
        order = torch.empty(0, dtype=torch.long)
        for _ in range(bench.task.apart):
            if len(order) < size:
                order = torch.cat([order, torch.randperm(len(examples), generator=generator)])
            index, order = order[:size], order[size:]
            x_0 = channels_first(examples[index.numpy()])
            side.state, metrics = side.step(side.state, {"x_0": x_0}, generator)
            losses.append(metrics["loss"])
    losses = [float(loss) for loss in losses]
    took = {"wall_s": round(time.perf_counter() - begun, 1), "processor_s": round(time.process_time() - used, 1)}
    found = side.result(losses, seed)
    return {"seed": seed, "steps": bench.task.apart, **took, **found, "curve": curve(losses, bench.task.every)}


def compared(rows: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Of each figure the mean and spread by framework, and the p of a two-sided rank test (Mann & Whitney, exact)."""
    names = [name for name in rows["jax"][0] if name.endswith(("loss", "loss_at_end", "distance", "wasserstein"))]
    found = {}
    for name in names:
        values = {side: [row[name] for row in rows[side]] for side in FRAMEWORKS}
        p = scipy.stats.mannwhitneyu(*values.values(), method="exact").pvalue
        spread = {side: {"mean": float(np.mean(v)), "least": min(v), "most": max(v)} for side, v in values.items()}
        found[name] = {**spread, "p": float(p)}
    return found


def kept(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a file holds; made, and kept in it, where it is not there."""
    if not path.exists():
        found = make()
        write_text(path, json.dumps(found))
        progress.say(f"{path}: " + ", ".join(f"{k} {v:.4g}" for k, v in found.items() if isinstance(v, float)))
    return json.loads(path.read_text())


def save_picture(path: Path, task: Task, both: dict[str, Any], rows: dict[str, list[dict[str, Any]]]) -> None:
    """The curves from one start over each other, and those of all seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    styles = {"jax": {"color": "tab:blue"}, "torch": {"color": "tab:orange", "linestyle": "--"}}
    for side in FRAMEWORKS:
        values = both["curves"][side]
        left.plot(task.every * np.arange(1, len(values) + 1), values, label=side, **styles[side])
        for index, row in enumerate(rows[side]):
            x = task.every * np.arange(1, len(row["curve"]) + 1)
            right.plot(x, row["curve"], label=side if not index else None, linewidth=0.8, **styles[side])
    left.set(title=f"{task.name}: one start, the same draws", xlabel="step", ylabel=f"loss, mean of {task.every} steps")
    right.set(title=f"{len(rows['jax'])} seeds of each framework's own", xlabel="step")
    for axes in (left, right):
        axes.set_yscale("log")
        axes.locator_params(axis="x", nbins=4)
        axes.grid(alpha=0.3, which="both")
        axes.legend(frameon=False)
    write_atomically(path, lambda p: figure.savefig(p, dpi=100))


def main() -> None:
    """Train what is missing; once all is there, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("names", nargs="*", default=list(TASKS), metavar="PRESET", help=", ".join(TASKS))
    parser.add_argument("--source", help="data of a preset of images; the preset's own unless given")
    parser.add_argument("--held-out", help="data of the same kind that nobody trains on; needed with --source")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", nargs="+", help="together, jax-SEED, torch-SEED: these trainings alone")
    parser.add_argument(
        "--threads", type=int, default=1, help="of PyTorch's; XLA takes those of the processor's affinity"
    )
    parser.add_argument("--work", type=Path, default=Path("runs/both"))
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for name in args.names:
        task = TASKS[name]
        images = len(presets.preset(name).model.shape) == 3
        bench = Bench(task, args.source if images else None, args.held_out if images else None)
        folder = args.work / name
        trainings: dict[str, Callable[[], dict[str, Any]]] = {"together": functools.partial(together, bench)}
        for seed in range(args.seeds):
            for side in FRAMEWORKS:
                trainings[f"{side}-{seed}"] = functools.partial(alone, bench, side, seed)
        wanted = [part for part in trainings if args.only is None or part in args.only]
        found = {part: kept(folder / f"{part}.json", trainings[part]) for part in wanted}
        if len(found) < len(trainings):
            continue
        rows = {side: [found[f"{side}-{seed}"] for seed in range(args.seeds)] for side in FRAMEWORKS}
        figures = {
            "preset": name,
            "command": f"python scripts/train_both.py {name}",
            "environment": environment("float32") | {"torch": torch.__version__, "threads": processors.count()},
            "together": found["together"],
            "apart": compared(rows),
            "rows": rows,
        }
        write_text(args.out / f"both_{name}.json", json.dumps(figures, indent=1) + "\n")
        save_picture(args.out.parent / "images" / f"both-{name}.png", task, found["together"], rows)
        print(json.dumps(figures["apart"], indent=1))


if __name__ == "__main__":
    main()
