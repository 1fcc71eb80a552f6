"""Fine-tuning: a run that starts from the weights of another one, in a folder of its own."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from ddpm_jax import presets
from ddpm_jax.errors import UserError
from ddpm_jax.launch import ALL_DEVICES, ParallelConfig
from ddpm_jax.parallel import layout_of
from ddpm_jax.presets import Preset
from ddpm_jax.training.loop import How, Outcome, Start, trained
from ddpm_jax.training.objective import check
from ddpm_jax.training.run import Run

Weights = Literal["ema", "params"]


def finetune(
    origin: Run,
    config: Preset,
    folder: Path,
    *,
    weights: Weights = "ema",
    resume: bool = False,
    overwrite: bool = False,
    parallel: ParallelConfig = ALL_DEVICES,
    profile: bool = False,
) -> Outcome:
    """Train from the newest weights of `origin`, averaged or not, with a fresh optimiser, counting steps from 0.

    config: like the origin's, save for data, train and sample. The origin is left as it is; the new run's config.json names it.

    Raises:
        UserError: the origin has no checkpoint; the config changes what the weights were trained for; and as `train`.
    """
    if folder.absolute() == origin.folder.absolute():
        raise UserError(f"--out {folder} is the run to start from; choose another folder.")
    check(config)
    fixed = {
        name: pair
        for name, pair in presets.differences(origin.config, config).items()
        if name.startswith(("model.", "process.")) or name in ("data.scale", "data.labels")
    }
    if fixed:
        told = "; ".join(f"{name}: {before!r} in the run, {after!r} now" for name, (before, after) in fixed.items())
        raise UserError(
            f"the weights of {origin.folder} were trained for something else ({told}). "
            "Fine-tuning may change options of --data, --train and --sample only."
        )
    # whole on every device that there is: `train` lays them out
    layout = replace(layout_of(parallel), mode="data")
    variables, step = origin.load_variables(ema=weights == "ema", layout=layout)
    provenance: dict[str, Any] = {"run": str(origin.folder.absolute()), "step": step, "weights": weights}
    if origin.origin is not None:
        provenance["origin"] = origin.origin
    print(f"start: {origin.folder}, step {step}, {'averaged weights' if weights == 'ema' else 'weights not averaged'}")
    start = Start(variables, origin.scaling, provenance)
    return trained(config, folder, How(resume, overwrite, parallel, profile), start=start)
