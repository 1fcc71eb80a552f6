"""The times of our grids beside those of other libraries, for every number of steps: what docs/weights.md says of them."""

import itertools
from math import ceil, gcd

import numpy as np
import pytest
from diffusers import DDIMScheduler, DDPMScheduler

from ddpm_jax import models, processes, samplers, schedules
from ddpm_jax.conversion.scheduler import from_scheduler, to_scheduler
from ddpm_jax.errors import UserError
from ddpm_jax.presets import Preset, SampleConfig

T = 1000
SCHEDULERS = {"DDPMScheduler": DDPMScheduler, "DDIMScheduler": DDIMScheduler}
FINAL = {"DDPMScheduler": ({},), "DDIMScheduler": ({"set_alpha_to_one": True}, {"set_alpha_to_one": False})}
CONFIGS = [
    (kind, {"timestep_spacing": spacing, "steps_offset": offset, **final})
    for kind, spacing, offset in itertools.product(SCHEDULERS, ("leading", "linspace", "trailing"), (0, 1))
    for final in FINAL[kind]
]
MAPPED = {
    ("DDPMScheduler", "leading"),
    ("DDPMScheduler", "linspace"),
    ("DDPMScheduler", "trailing"),
    ("DDIMScheduler", "leading"),
    ("DDIMScheduler", "trailing"),
}


def chain(num_steps=T):
    return processes.GaussianDiffusion(schedules.linear(num_steps))


def rows_of(scheduler, n):
    """Where a scheduler asks the network, and the level that each step leads to; -1: clean data."""
    scheduler.set_timesteps(n)
    times = scheduler.timesteps.numpy()
    if isinstance(scheduler, DDPMScheduler):
        leads_to = np.append(times[1:], -1)
    else:  # of whatever comes next it knows nothing
        leads_to = np.maximum(times - scheduler.config.num_train_timesteps // n, -1)
    return np.stack([times, leads_to], axis=1)


@pytest.mark.parametrize(("kind", "options"), CONFIGS)
def test_an_imported_scheduler_walks_the_same_times(kind, options):
    """For every number of steps, or its import is refused."""
    config = {"_class_name": kind, "num_train_timesteps": T, **options}
    spacing = options["timestep_spacing"]
    if (kind, spacing) not in MAPPED or options["steps_offset"] or not options.get("set_alpha_to_one", True):
        with pytest.raises(UserError, match="has no counterpart here because of"):
            from_scheduler(config, models.UNetConfig())
        return
    process, sample = from_scheduler(config, models.UNetConfig())
    assert sample.spacing == spacing
    of = Preset(process=process, sample=sample).process
    theirs = SCHEDULERS[kind].from_config(config)
    one_too_many = 0
    for n in range(1, T + 1):
        found, wanted = sample.sampler.grid(of, n, sample.spacing), rows_of(theirs, n)
        if spacing == "trailing" and len(wanted) == n + 1:
            # their float arithmetic gives the time -1 too, where there is no network to ask
            assert wanted[-1, 0] == -1
            one_too_many, wanted = one_too_many + 1, wanted[:-1]
        np.testing.assert_array_equal(found[:, 0], wanted[:, 0])
        if (kind, spacing) != ("DDIMScheduler", "trailing"):
            np.testing.assert_array_equal(found[:, 1], wanted[:, 1])
        else:  # the levels that it steps down to are those of its next times where these are as far apart as it says
            assert (found[:, 1] == wanted[:, 1]).all() == (T % n == 0)
            assert np.abs(found[:, 1] - wanted[:, 1]).max() <= 1
    assert one_too_many == (62 if spacing == "trailing" else 0)


@pytest.mark.parametrize("sampler", ["ddim", "ancestral"])
@pytest.mark.parametrize("spacing", [None, "even", "leading", "linspace", "trailing"])
@pytest.mark.filterwarnings("ignore:the pipeline samples in another way")
def test_an_exported_scheduler_walks_the_same_times(sampler, spacing):
    """For every number of steps; `even` but for times halfway between two timesteps. What has no counterpart is told, below."""
    sample = SampleConfig(sampler, spacing=spacing)
    written = to_scheduler(Preset(sample=sample))
    theirs = SCHEDULERS[written["_class_name"]].from_config(written)
    told = (sampler, spacing) == ("ddim", "linspace")
    assert written["timestep_spacing"] == ("trailing" if told or spacing in (None, "even") else spacing)
    for n in range(1, T + 1):
        found = sample.sampler.grid(chain(), n, spacing)[:, 0]
        wanted = rows_of(theirs, n)[:n, 0]
        if spacing in (None, "even") and n // gcd(n, T) % 2 == 0:
            assert np.abs(found - wanted).max() <= 1
        elif not told:
            np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(
    ("sample", "told"),
    [
        (SampleConfig("dpmpp"), "DDPMScheduler .*trailing.*no counterpart of sample.sampler = dpmpp"),
        (SampleConfig("ddim", spacing="quadratic"), "DDIMScheduler .*trailing.*of sample.spacing = quadratic"),
        (SampleConfig("ddim", spacing="linspace"), "DDIMScheduler .*trailing.*of sample.spacing = linspace"),
    ],
)
def test_a_way_of_sampling_without_a_counterpart_is_told(sample, told):
    with pytest.warns(UserWarning, match=told):
        to_scheduler(Preset(sample=sample))


@pytest.mark.filterwarnings("error")
def test_a_way_of_sampling_with_a_counterpart_is_not():
    for spacing in (None, "even", "leading", "trailing"):
        for sampler in ("ancestral", "ddim"):
            to_scheduler(Preset(sample=SampleConfig(sampler, spacing=spacing)))


# OpenAI's libraries, whose option is timestep_respacing, and denoising-diffusion-pytorch


def respaced(total, n):
    """timestep_respacing = "n": a running sum of fractional strides from 0 to the last timestep, each rounded."""
    stride = (total - 1) / (n - 1) if n > 1 else 1
    return [round(at) for at in itertools.accumulate([0.0] + [stride] * (n - 1))][::-1]


def respaced_for_ddim(total, n):
    """timestep_respacing = "ddimn": the whole stride that gives n times from 0 on; None: there is none."""
    strides = [stride for stride in range(1, total) if ceil(total / stride) == n]
    return list(range(0, total, strides[0]))[::-1] if strides else None


@pytest.mark.parametrize("total", [1000, 4000])
def test_linspace_is_openais_respacing(total):
    """But for times halfway between two timesteps, which a running sum may round the other way."""
    usual = {25, 50, 100, 250, 500, total}
    for n in range(1, total + 1, 1 if total == 1000 else 3):
        _compare(respaced(total, n), samplers.times(chain(total), n, "linspace"), n - 1, total - 1, n in usual)
    for n in usual:
        assert samplers.times(chain(total), n, "linspace")[:-1].tolist() == respaced(total, n)


def _compare(theirs, ours, parts, whole, exact):
    found = ours[:-1]
    if parts and parts // gcd(parts, whole) % 2 == 0 and not exact:
        assert len(theirs) == len(found) and np.abs(found - theirs).max() <= 1
    else:
        np.testing.assert_array_equal(found, theirs)


def test_leading_is_openais_respacing_for_ddim_where_it_divides():
    """Elsewhere there is none, or its stride is one longer."""
    for n in range(2, T + 1):
        theirs, ours = respaced_for_ddim(T, n), samplers.times(chain(), n, "leading")[:-1].tolist()
        if T % n == 0:
            assert ours == theirs
        elif theirs is not None:
            assert theirs[-1] == ours[-1] == 0 and theirs[-2] == ours[-2] + 1


@pytest.mark.parametrize("spacing", ["even", "trailing"])
def test_even_times_are_denoising_diffusion_pytorchs_where_they_divide(spacing):
    """Elsewhere it rounds all of them down. Both go from each time to the next, and from the last to clean data."""
    for n in range(1, T + 1):
        theirs = [T * (n - i) // n - 1 for i in range(n + 1)]
        ours = samplers.times(chain(), n, spacing)
        assert ours[0] == theirs[0] and ours[-1] == theirs[-1] == -1
        difference = ours - theirs
        assert (difference == 0).all() if T % n == 0 else ((difference == 0) | (difference == 1)).all()
