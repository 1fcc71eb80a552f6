"""Every sampler on a network that costs nothing: what tests/test_numbers.py and tests/parallel_comparisons.py draw."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ddpm_jax import denoisers, noise, processes, samplers, schedules
from ddpm_jax.parallel import ALONE

SHAPE, CLASSES = (4, 4, 1), 3
CHAIN = processes.GaussianDiffusion(schedules.linear(20))
LEARNED = processes.GaussianDiffusion(schedules.linear(20), loss="hybrid", learned_variance=True)
FLOW = processes.FlowMatching()


class Small(nnx.Module):
    """Bends x_t, looks at neighbouring pixels, and is moved by time and class; with a logit of the variance, where asked."""

    def __init__(self, learned=False):
        self.classes = nnx.Param(jnp.linspace(-1.0, 1.0, CLASSES))
        self.learned = learned

    def __call__(self, x_t, t, labels=None, *, rngs=None):
        moved = (0.01 * t + self.classes[labels])[:, None, None, None].astype(x_t.dtype)
        out = jnp.tanh(x_t + 0.3 * jnp.roll(x_t, 1, axis=1) + moved)
        return jnp.concatenate([out, jnp.tanh(x_t)], axis=-1) if self.learned else out


WALKS = {
    "ancestral": (CHAIN, samplers.Ancestral()),
    "ancestral, learned variance": (LEARNED, samplers.Ancestral("learned")),
    "ddim": (CHAIN, samplers.DDIM(eta=0.5)),
    "strided": (CHAIN, samplers.Strided(eta=1.0)),
    "dpmpp_2m": (CHAIN, samplers.DPMSolver()),
    "dpmpp_2m_sde": (CHAIN, samplers.DPMSolver(sde=True)),
    "dpmpp_3m": (CHAIN, samplers.DPMSolver(order=3)),
    "unipc": (CHAIN, samplers.UniPC()),
    "euler": (CHAIN, samplers.Euler()),
    "euler_ancestral": (CHAIN, samplers.Euler(eta=1.0)),
    "heun": (CHAIN, samplers.Heun(churn=3.0)),
    "midpoint": (FLOW, samplers.Midpoint()),
    "flow, ancestral": (FLOW, samplers.Ancestral()),
    "adaptive": (FLOW, samplers.Adaptive()),
}


def drawn(name, count, first=0, layout=ALONE, key=0):
    """(samples, frames) of `count` samples from number `first` on, their classes in turn."""
    process, sampler = WALKS[name]
    of_class = layout.deal((first + np.arange(count, dtype=np.int32)) % CLASSES)
    model = denoisers.of_network(Small(process is LEARNED), process, labels=of_class)
    denoise, keys = denoisers.clipped(model), keys_on(layout, key, count, first)
    return samplers.sample_with_frames(denoise, sampler, keys, (count, *SHAPE), 6, num_frames=3)


def keys_on(layout, key, count, first=0):
    """Keys of samples, which say where they are drawn."""
    return layout.deal(np.asarray(jax.random.key_data(noise.sample_keys(key, count, first))))


@dataclass(frozen=True)
class OnlyNoise(samplers.Sampler):
    """A step that leaves nothing but its noise."""

    def step(self, denoise, x_t, times, noise, memory):
        return samplers.Stepped(noise, denoise(x_t, times[0]))


def noises(count, first=0, layout=ALONE):
    """The noise that a walk of six steps starts with, and that of its steps: (7, count, *SHAPE), the last of them zero."""
    denoise, keys = denoisers.of(CHAIN, lambda x, t: x), keys_on(layout, 0, count, first)
    return samplers.sample_with_frames(denoise, OnlyNoise(), keys, (count, *SHAPE), 6, num_frames=7)[1]
