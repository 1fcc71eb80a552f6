"""Error by evaluations of every sampler, with an exact network and with a run's: `python scripts/compare_samplers.py [RUN]`.

Leaves a chart and a JSON file in --out; the page docs/samplers.md is made of them.
"""

import argparse
import dataclasses
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ddpm_jax import denoisers, figures, processes, samplers, schedules
from ddpm_jax.evaluation import evaluate_run, sliced_wasserstein
from ddpm_jax.files import write_text
from ddpm_jax.training import Drawing, open_run

EVALUATIONS = (6, 10, 15, 25, 50, 100, 250)
"""Evaluations of the network; methods of two a step take half as many steps."""
SAMPLERS: dict[str, tuple[samplers.Sampler, Any]] = {
    "ancestral": (samplers.Ancestral(), None),
    "ddim": (samplers.DDIM(), "log_snr"),
    "euler --eta 1": (samplers.Euler(eta=1.0), None),
    "euler": (samplers.Euler(), None),
    "heun": (samplers.Heun(), None),
    "dpmpp": (samplers.DPMSolver(), "log_snr"),
    "dpmpp --sde": (samplers.DPMSolver(sde=True), "log_snr"),
    "dpmpp --order 3": (samplers.DPMSolver(order=3), "log_snr"),
    "unipc": (samplers.UniPC(), "log_snr"),
}
"""What is typed after --sampler -> the sampler, and its spacing."""
CENTRES, WIDTH = np.array([[-1.0, -0.6], [1.0, -0.6], [0.0, 1.1]]), 0.15
POINTS, DRAWS = 10_000, 4
"""Points in a draw of the clusters; figures are means of so many draws."""


def steps_of(name: str, evaluations: int) -> int:
    """How many steps of a sampler cost so many evaluations."""
    return (evaluations + 1) // 2 if name == "heun" else evaluations


def exact(process: processes.Process) -> denoisers.Denoiser:
    """The denoiser that is exactly right for three equally likely round clusters in the plane."""

    def predict(x_t: jax.Array, t: jax.Array) -> jax.Array:
        alpha, sigma = process.level(t, x_t)
        variance = alpha**2 * WIDTH**2 + sigma**2
        away = x_t[:, None, :] - alpha[..., None] * CENTRES
        share = jax.nn.softmax(-0.5 * (away**2).sum(-1) / variance, axis=1)[..., None]
        return (share * sigma[..., None] * away / variance[..., None]).sum(1)

    return denoisers.of(process, predict)


def draw_clusters(seed: int) -> np.ndarray:
    """Points of the three clusters."""
    rng = np.random.default_rng(seed)
    noise = WIDTH * rng.standard_normal((POINTS, 2))
    return (CENTRES[rng.integers(3, size=POINTS)] + noise).astype(np.float32)


def on_clusters(names: list[str], counts: list[int]) -> dict[str, Any]:
    """Sliced Wasserstein distance to held-out points, of each sampler by evaluations; beside that of other real points."""
    process = processes.GaussianDiffusion(schedules.Linear(1000))
    denoise, real = exact(process), draw_clusters(1)
    found: dict[str, list[float]] = {}
    for name in names:
        found[name] = []
        for evaluations in counts:
            (sampler, spacing), steps = SAMPLERS[name], steps_of(name, evaluations)
            drawn = [
                samplers.sample(denoise, sampler, seed, (POINTS, 2), steps, spacing=spacing) for seed in range(DRAWS)
            ]
            distances = [sliced_wasserstein(np.asarray(points), real) for points in drawn]
            found[name].append(float(np.mean(distances)))
        print(f"{name:<18}" + "".join(f"{value:>9.4f}" for value in found[name]), flush=True)
    apart = float(np.mean([sliced_wasserstein(draw_clusters(2 + k), real) for k in range(DRAWS)]))
    return {"sliced_wasserstein": found, "real_against_real": apart}


def on_run(folder: Path, num: int, names: list[str], counts: list[int]) -> dict[str, Any]:
    """Class agreement and Fréchet distance of samples of a run, of each sampler by evaluations; beside those of real images."""
    found: dict[str, Any] = {"class_agreement": {}, "frechet_distance": {}}
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / folder.name  # an evaluation writes into its run's folder
        shutil.copytree(folder, copy)
        run = open_run(copy)
        for name in names:
            rows: dict[str, list[float]] = {key: [] for key in found if key != "real"}
            for evaluations in counts:
                sampler, spacing = SAMPLERS[name]
                config = dataclasses.replace(
                    run.config.sample, sampler=sampler, steps=steps_of(name, evaluations), num=num, spacing=spacing
                )
                evaluation, _ = evaluate_run(Drawing(run, config, batch_size=num))
                metrics = {metric.name: metric for metric in evaluation.metrics}
                for key in rows:
                    rows[key].append(metrics[key].samples)
                found["real"] = {key: metrics[key].real for key in rows}
            for key, values in rows.items():
                found[key][name] = values
            print(f"{name:<18}" + "".join(f"{value:>9.3f}" for value in rows["frechet_distance"]), flush=True)
    return found


def main() -> None:
    """Measure, write, and print where to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "run", type=Path, nargs="?", help="folder of a run of labelled images; none: the clusters alone"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("samplers"), help="folder of chart and JSON (default: samplers)"
    )
    parser.add_argument("--num", type=int, default=1000, help="samples of the run for each figure (default: 1000)")
    parser.add_argument("--samplers", nargs="+", choices=SAMPLERS, default=list(SAMPLERS), help="which (default: all)")
    parser.add_argument("--evaluations", nargs="+", type=int, default=list(EVALUATIONS), help="of the network, a walk")
    arguments = parser.parse_args()
    names, counts = arguments.samplers, arguments.evaluations
    print(f"{'evaluations':<18}" + "".join(f"{count:>9}" for count in counts))
    found: dict[str, Any] = {"evaluations": counts, "clusters": on_clusters(names, counts)}
    x = np.array(counts, float)
    curves = {name: np.array(values) for name, values in found["clusters"]["sliced_wasserstein"].items()}
    charts = {
        "clusters": (curves, found["clusters"]["real_against_real"], "sliced Wasserstein distance, three clusters")
    }
    if arguments.run is not None:
        found["run"] = {
            "name": arguments.run.name,
            "num": arguments.num,
            **on_run(arguments.run, arguments.num, names, counts),
        }
        curves = {name: np.array(values) for name, values in found["run"]["frechet_distance"].items()}
        charts["run"] = (curves, found["run"]["real"]["frechet_distance"], f"Fréchet distance, {arguments.run.name}")
    for name, (curves, real, heading) in charts.items():
        curves["real data"] = np.full(len(x), real)
        print(figures.save_curves(arguments.out / f"{name}.png", x, curves, heading=heading, xlabel="evaluations"))
    text = json.dumps(found, indent=2) + "\n"
    print(write_text(arguments.out / "samplers.json", text))


if __name__ == "__main__":
    main()
