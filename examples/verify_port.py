# %% [markdown]
"""
# Is a port the same function?

A PyTorch network, and it in Flax NNX: right, and with flax's defaults where PyTorch's differ. `verify.compare` gives both the same
weights and inputs, and holds everything that they compute against each other. PyTorch is needed: `pip install "ddpm-jax[torch]"`.
"""

# %%
import numpy as np
import torch
from flax import nnx

from ddpm_jax import verify

DIM = 32


class TorchDenoiser(torch.nn.Module):
    """The original."""

    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(
            torch.nn.Conv2d(1, DIM, 3, padding=1),
            torch.nn.GroupNorm(8, DIM),
            torch.nn.SiLU(),
            torch.nn.Conv2d(DIM, 2 * DIM, 3, stride=2, padding=1),
            torch.nn.SiLU(),
            torch.nn.ConvTranspose2d(2 * DIM, 1, 2, stride=2),
        )
        self.time = torch.nn.Linear(1, 1)

    def forward(self, x_t, t):
        """Images x_t (B, 1, H, W), times t (B,) -> (B, 1, H, W)."""
        return self.net(x_t + self.time(t[:, None].to(x_t.dtype) / 1000)[:, :, None, None])


# %% [markdown]
# ## The port
# Epsilon of the norm, and padding of the convolution with stride 2, are what one gets wrong.


# %%
class Denoiser(nnx.Module):
    """The same, in JAX's order of axes."""

    def __init__(self, epsilon, padding, *, rngs):
        self.first = nnx.Conv(1, DIM, (3, 3), rngs=rngs)
        self.norm = nnx.GroupNorm(DIM, num_groups=8, epsilon=epsilon, rngs=rngs)
        self.down = nnx.Conv(DIM, 2 * DIM, (3, 3), strides=2, padding=padding, rngs=rngs)
        self.up = nnx.ConvTranspose(2 * DIM, 1, (2, 2), strides=2, transpose_kernel=True, rngs=rngs)
        self.time = nnx.Linear(1, 1, rngs=rngs)

    def __call__(self, x_t, t):
        """Images x_t (B, H, W, 1), times t (B,) -> (B, H, W, 1)."""
        x = x_t + self.time(t[:, None].astype(x_t.dtype) / 1000)[:, None, None, :]
        x = nnx.silu(self.norm(self.first(x)))
        return self.up(nnx.silu(self.down(x)))


# %% [markdown]
# ## Compare
# Inputs are in PyTorch's order of axes. Layers that have another name there are mapped.

# %%
rng = np.random.default_rng(0)
inputs = rng.standard_normal((4, 1, 16, 16)), np.array([0, 10, 500, 999])
names = {"first": "net.0", "norm": "net.1", "down": "net.3", "up": "net.5"}

torch.manual_seed(0)
original = TorchDenoiser()
right = Denoiser(epsilon=1e-5, padding=1, rngs=nnx.Rngs(0))
report = verify.compare(right, original, inputs, names=names, title="the right port")
assert report.ok
print(report.table())

# %% [markdown]
# ## Two faults at once
# Each is found at its own layer: every layer is fed what its partner in PyTorch was fed, so that none answers for another's fault.

# %%
wrong = Denoiser(epsilon=1e-6, padding="SAME", rngs=nnx.Rngs(0))
report = verify.compare(wrong, original, inputs, names=names, title="flax's defaults")
assert [fault.name for fault in report.faults] == ["norm", "down"]
print(report.table())

# %% [markdown]
# A report shows itself: both sides beside each other, and the first layer that differs.

# %%
report
