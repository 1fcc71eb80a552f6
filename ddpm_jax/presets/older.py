"""Configs of runs that older versions made, in the terms of this one."""

from collections.abc import Mapping
from typing import Any

Parts = dict[str, dict[str, Any]]
"""The parts of a preset, each as JSON has it."""

OF_DIFFUSION = ("schedule", "zero_terminal_snr", "prediction", "weighting", "p2_gamma", "p2_k", "min_snr_gamma")
"""Options of a diffusion, which formats 2 and 3 kept for every process."""
BETAS = ("beta_start", "beta_end")
WITH_BETAS = ("linear", "quadratic", "sigmoid", "linear_inclusive")
"""Schedules that have them; those formats kept them for every schedule."""
SAMPLERS: Mapping[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "ancestral": ("ancestral", {}, ("variance",)),
    "ddim": ("ddim", {}, ("eta",)),
    "strided": ("strided", {}, ("eta",)),
    "dpmpp_2m": ("dpmpp", {}, ()),
    "dpmpp_2m_sde": ("dpmpp", {"sde": True}, ()),
    "dpmpp_3m": ("dpmpp", {"order": 3}, ()),
    "unipc": ("unipc", {}, ()),
    "euler": ("euler", {}, ()),
    "euler_ancestral": ("euler", {"eta": 1.0}, ()),
    "heun": ("heun", {}, ("churn",)),
    "midpoint": ("midpoint", {}, ()),
    "adaptive": ("adaptive", {}, ("tolerance",)),
}
"""A sampler of formats 2 and 3 -> its name, options that the old name stood for, and the options that it took."""
OF_SAMPLERS = ("eta", "variance", "churn", "tolerance")


def upgraded(parts: Parts) -> tuple[Parts, bool]:
    """The parts of a config of any version as this one has them, and whether its unet is a foreign one by now.

    What is not as an older version wrote it is left as it is, for its reader to refuse.
    """
    model = parts["model"]
    if "times" in parts["process"]:
        aware = parts["process"]["times"] == "loss_aware"
        parts = parts | {
            "process": _process(parts["process"], aware),
            "train": parts["train"] | ({"loss_aware_times": True} if aware else {}),
            "sample": _sample(parts["sample"]),
        }
    # a run from before foreign_unet had its options
    return parts, model.get("network") == "unet" and "widths" in model


def _process(old: dict[str, Any], aware: bool) -> dict[str, Any]:
    gone = {"times"}
    if old.get("schedule") not in WITH_BETAS or old.get("kind") != "diffusion":
        gone.update(BETAS)
    if old.get("kind") != "diffusion":
        gone.update(OF_DIFFUSION)
    return {key: value for key, value in old.items() if key not in gone} | {
        "time_draw": "uniform" if aware else old["times"]
    }


def _sample(old: dict[str, Any]) -> dict[str, Any]:
    name = old.get("sampler")
    if not isinstance(name, str) or name not in SAMPLERS:
        return old
    name, options, own = SAMPLERS[name]
    rest = {key: value for key, value in old.items() if key not in OF_SAMPLERS or key in own}
    return rest | options | {"sampler": name}
