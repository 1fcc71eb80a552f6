"""The largest batch that fits devices that are not here, by compiling a few."""

import dataclasses
from collections.abc import Callable

from ddpm_jax import progress
from ddpm_jax.compile.estimate import estimate
from ddpm_jax.compile.programs import What
from ddpm_jax.compile.topologies import Topology, topology
from ddpm_jax.errors import UserError
from ddpm_jax.launch import ALL_DEVICES, ParallelConfig
from ddpm_jax.presets import Preset


def largest_batch(
    preset: Preset, where: Topology | str, what: What = "train", *, spread: ParallelConfig = ALL_DEVICES, name: str = ""
) -> int:
    """The largest batch that fits, found by compiling a few, to a sixteenth of itself; 0: none does. Otherwise as `estimate`.

    It is train.batch_size, over all devices, or for what = "sample" sample.num.

    Raises:
        UserError: as `estimate`; the network of FID, which has one batch.
    """
    if what == "fid":
        raise UserError("the network of FID has one batch; the largest one is asked for train or sample.")
    where = topology(where) if isinstance(where, str) else where
    count = spread.devices or where.count

    def fits(size: int) -> bool:
        found = estimate(with_batch(preset, what, size), where, what, spread=spread, name=name)
        told = f"{found.memory.peak / 1e9:.1f} GB" if found.memory.peak else "more than there is"
        progress.say(f"{size} {'fit' if found.fits else 'do not fit'}: {told}")
        return found.fits

    begin = preset.train.batch_size if what == "train" else preset.sample.num
    return largest(fits, begin, count * (preset.train.accumulate if what == "train" else 1))


def with_batch(preset: Preset, what: What, size: int) -> Preset:
    """The preset with so many examples, or samples, at a time."""
    if what == "train":
        return dataclasses.replace(preset, train=dataclasses.replace(preset.train, batch_size=size))
    return dataclasses.replace(preset, sample=dataclasses.replace(preset.sample, num=size))


def largest(fits: Callable[[int], bool], begin: int, unit: int) -> int:
    """The largest multiple of a unit for which fits(size), to a sixteenth of itself, by doubling or halving, then by bisection; 0:
    the unit does not fit either."""
    low, high = 0, max(1, begin // unit)
    while fits(high * unit):
        low, high = high, 2 * high
    while low == 0 and high > 1:
        middle = high // 2
        low, high = (middle, high) if fits(middle * unit) else (0, middle)
    while high - low > max(1, low // 16):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle * unit) else (low, middle)
    return low * unit
