"""A sampler of one's own: one function, run by the library's loop.

A sampler is a pure step x_t -> x_s. It is given x_t, what the network makes of it (hat.x_0 and hat.eps), the levels (alpha,
sigma) of both times, and fresh noise. The loop, the grid of times, clipping, guidance and compilation are the library's.

This one is the two-step Adams-Bashforth method for the probability flow dy/du = eps in y = x / alpha and u = sigma / alpha
(Karras et al. 2022, section 4). It looks back at the state before.
"""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp

from ddpm_jax import figures, presets, samplers, training

STEPS = 20_000
OUT = Path("runs/examples")


@samplers.looks_back(1)
def adams_bashforth_step(x_t, hat, t, s, noise, past):
    """x_t -> x_s along the slope in the middle of the step, continued by the line through the last two slopes."""
    before = past.seen[0]
    u_t, u_s, u_before = (level.sigma / level.alpha for level in (t, s, before.level))
    share = jnp.where(past.taken > 0, (u_s - u_t) / (u_t - u_before) / 2, 0)  # the first step is Euler's
    slope = hat.eps + share * (hat.eps - before.hat.eps)
    return s.alpha * (x_t / t.alpha + (u_s - u_t) * slope)


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
graphdef, variables, _ = run.load()


def draw(step, times):
    """2,000 points from the same noise every time."""
    trained = graphdef, variables
    points, _ = samplers.sample(trained, run.process, jax.random.key(0), (2000, 2), step=step, times=times)
    return run.to_data(points)


# All three solve the same equation from the same noise, so that the one with many steps says how wrong those with few are
ddim = samplers.create("ddim", eta=0.0)
exact = draw(samplers.create("heun"), samplers.times("heun", run.process, 300))
print("root mean square error of a point after so many steps")
print("steps    DDIM    Adams-Bashforth")
for num_steps in (10, 20, 40, 80):
    times = samplers.times("euler", run.process, num_steps)
    errors = [jnp.sqrt(jnp.mean((draw(step, times) - exact) ** 2)) for step in (ddim, adams_bashforth_step)]
    print(f"{num_steps:5} {errors[0]:7.4f} {errors[1]:18.4f}")

points = draw(adams_bashforth_step, samplers.times("euler", run.process, 20))
real = run.open_source().points[:2000]
path = figures.save_scatter(OUT / "custom_sampler.png", real, points, heading="Adams-Bashforth, 20 steps")
print(f"samples in {path}")
