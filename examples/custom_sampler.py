"""A sampler of one's own: a dataclass with one step, run by the library's loop.

A sampler goes from x_t to x_s: it asks the denoiser what x_t is made of (hat.x_0 and hat.eps), looks up the levels (alpha, sigma)
of both times, and mixes the two anew. What it remembers from step to step is a pytree of its own. The loop, the grid of times,
clipping, guidance and compilation are the library's.

This one is the two-step Adams-Bashforth method for the probability flow dy/du = eps in y = x / alpha and u = sigma / alpha
(Karras et al. 2022, section 4).
"""

from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp

from ddpm_jax import figures, presets, samplers, training

STEPS = 20_000
OUT = Path("runs/examples")


@dataclass(frozen=True)
class AdamsBashforth(samplers.Sampler):
    """x_t -> x_s along the slope in the middle of the step, continued by the line through the last two slopes."""

    spacing = "karras"

    def init(self, x_T):
        """The slope before, where it was found, and whether there was one."""
        return jnp.zeros_like(x_T), jnp.zeros((1,) * x_T.ndim), False

    def step(self, denoise, x_t, times, noise, memory):
        """x_t -> x_s."""
        t, s = samplers.levels(denoise.process, times, x_t)
        u_t, u_s = (level.sigma / level.alpha for level in (t, s))
        hat = denoise(x_t, times[0])
        before, u_before, known = memory
        share = jnp.where(known, (u_s - u_t) / (u_t - u_before) / 2, 0)  # the first step is Euler's
        slope = hat.eps + share * (hat.eps - before)
        return samplers.Stepped(s.alpha * (x_t / t.alpha + (u_s - u_t) * slope), hat, (hat.eps, u_t, True))


# A trained network: system 4's, in its own run folder
config = replace(
    presets.preset("spiral"),
    train=presets.TrainConfig(
        steps=STEPS,
        batch_size=64,
        lr=1e-3,
        lr_decay="cosine",
        ema_decay=0.999,
        log_every=1000,
        sample_every=0,
        checkpoint_every=STEPS,
    ),
)
run = training.train(config, OUT / "spiral", overwrite=True).run
denoise = run.denoiser()


def draw(sampler, num_steps):
    """2,000 points from the same noise every time."""
    return run.to_data(samplers.sample(denoise, sampler, jax.random.key(0), (2000, 2), num_steps))


# All three solve the same equation from the same noise, so that the one with many steps says how wrong those with few are
exact = draw(samplers.Heun(), 300)
print("root mean square error of a point after so many steps")
print("steps   Euler    Adams-Bashforth")
for num_steps in (10, 20, 40, 80):
    errors = [
        jnp.sqrt(jnp.mean((draw(sampler, num_steps) - exact) ** 2)) for sampler in (samplers.Euler(), AdamsBashforth())
    ]
    print(f"{num_steps:5} {errors[0]:7.4f} {errors[1]:18.4f}")

points = draw(AdamsBashforth(), 20)
real = run.open_source().points[:2000]
path = figures.save_scatter(OUT / "custom_sampler.png", real, points, heading="Adams-Bashforth, 20 steps")
print(f"samples in {path}")
