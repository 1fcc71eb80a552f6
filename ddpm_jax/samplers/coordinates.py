"""The coordinates in which the way of a process is nearly straight, for methods that follow slopes."""

from typing import Any

from ddpm_jax.processes import Estimate, Level, LinearPath, Process


def karras(hat: Estimate, level: Level) -> tuple[Any, Any, Any]:
    """(scale, time, slope) in which a chain is nearly straight: x = scale y, dy/dtime = slope.

    y = x / alpha over sigma / alpha has the slope eps (Karras et al. 2022, section 4).
    """
    return level.alpha, level.sigma / level.alpha, hat.eps


def linear(hat: Estimate, level: Level) -> tuple[Any, Any, Any]:
    """(scale, time, slope) of a linear path: x over t = sigma has the slope eps - x_0, the velocity."""
    return 1, level.sigma, hat.eps - hat.x_0


def coordinates(process: Process) -> Any:
    """Those in which the way of a process is nearly straight: `linear` on a straight path, else `karras`."""
    return linear if isinstance(process, LinearPath) else karras
