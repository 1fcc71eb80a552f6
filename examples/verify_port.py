"""Is a port the same function? A PyTorch network, and it in Flax NNX twice: right, and with flax's defaults where PyTorch's differ.

verify.compare gives both the PyTorch weights and the same inputs, and holds everything that they compute against each other. The
first layer that differs is the one to look at: those after it may only have inherited its error. It needs PyTorch: pip install
"ddpm-jax[torch]".
"""

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


class Denoiser(nnx.Module):
    """The port; epsilon of the norm, and padding of the convolution with stride 2, are what one gets wrong."""

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


# PyTorch's order of axes, images and integers alike; and the layers that have another name there
rng = np.random.default_rng(0)
inputs = rng.standard_normal((4, 1, 16, 16)), np.array([0, 10, 500, 999])
names = {"first": "net.0", "norm": "net.1", "down": "net.3", "up": "net.5"}

torch.manual_seed(0)
original = TorchDenoiser()
ports = {
    "right": Denoiser(epsilon=1e-5, padding=1, rngs=nnx.Rngs(0)),
    "wrong padding": Denoiser(epsilon=1e-5, padding="SAME", rngs=nnx.Rngs(0)),
    "wrong epsilon, wrong padding": Denoiser(epsilon=1e-6, padding="SAME", rngs=nnx.Rngs(0)),
}
reports = {title: verify.compare(port, original, inputs, names=names, title=title) for title, port in ports.items()}
for report in reports.values():
    print(report.table(), end="\n\n")

assert reports["right"].ok
assert reports["wrong padding"].first_divergence.name == "down"
assert reports["wrong epsilon, wrong padding"].first_divergence.name == "norm"
