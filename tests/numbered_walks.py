"""Every sampler on a network that costs nothing: what tests/test_numbers.py and tests/parallel_comparisons.py draw."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ddpm_jax import processes, samplers, schedules
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
    "ancestral": (CHAIN, "ancestral", {}),
    "ancestral, learned variance": (LEARNED, "ancestral", {"variance": "learned"}),
    "ddim": (CHAIN, "ddim", {"eta": 0.5}),
    "strided": (CHAIN, "strided", {"eta": 1.0}),
    "dpmpp_2m": (CHAIN, "dpmpp_2m", {}),
    "dpmpp_2m_sde": (CHAIN, "dpmpp_2m_sde", {}),
    "dpmpp_3m": (CHAIN, "dpmpp_3m", {}),
    "unipc": (CHAIN, "unipc", {}),
    "euler": (CHAIN, "euler", {}),
    "euler_ancestral": (CHAIN, "euler_ancestral", {}),
    "heun": (CHAIN, "heun", {"churn": 3.0}),
    "midpoint": (FLOW, "midpoint", {}),
    "flow, ancestral": (FLOW, "ancestral", {}),
    "adaptive": (FLOW, "adaptive", {}),
}


def drawn(name, count, first=0, layout=ALONE, key=0):
    """(samples, frames) of `count` samples from number `first` on, their classes in turn."""
    process, sampler, options = WALKS[name]
    of_class = layout.deal(jnp.asarray((first + np.arange(count)) % CLASSES, jnp.int32))
    model = Small(process is LEARNED)
    common = {"first": first, "clip": 1.0, "num_frames": 3, "layout": layout}
    arguments = model, process, jax.random.key(key), (count, *SHAPE), of_class
    if sampler == "adaptive":
        return samplers.sample_adaptively(*arguments, **common)[:2]
    churn = options.get("churn", 0.0)
    step = samplers.create(sampler, process, **{k: v for k, v in options.items() if k != "churn"})
    return samplers.sample(*arguments, step=step, times=samplers.times(sampler, process, 6, churn=churn), **common)


def only_noise(x_t, hat, t, s, noise):
    """A step that leaves nothing but its noise."""
    return noise


def noises(count, first=0, layout=ALONE):
    """The noise that a walk of six steps starts with, and that of its steps: (7, count, *SHAPE), the last of them zero."""
    of_class = layout.deal(jnp.zeros(count, jnp.int32))
    arguments = Small(), CHAIN, jax.random.key(0), (count, *SHAPE), of_class
    return samplers.sample(*arguments, step=only_noise, num_steps=6, num_frames=7, first=first, layout=layout)[1]
