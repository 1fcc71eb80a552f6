"""Training: the times and labels drawn, the learning rate, the moving average, the state, and the one step that changes it."""

import copy
from dataclasses import dataclass
from math import cos, pi

import torch
from torch import Tensor, nn

from ddpm_torch_ref.processes import Process


class LossAwareTimes:
    """Probabilities p_t of drawing each t, in proportion to the root mean square of its last losses.

    Uniform until every t has a full history. A loss at t then counts 1/(T p_t), so that its mean stays what it is by uniform
    draws. Times are counted by index, 0..T-1, as in schedule.timesteps.

    Args:
        num_steps: T, at least 1.
        history: losses remembered of each t, at least 1.
        uniform_share: share of the uniform distribution in p, in [0, 1].

    Raises:
        ValueError: a number out of range.

    Nichol & Dhariwal 2021, "Improved Denoising Diffusion Probabilistic Models", section 3.3, eq. 18.
    """

    def __init__(self, num_steps: int, history: int = 10, uniform_share: float = 0.001) -> None:
        if num_steps < 1:
            raise ValueError(f"num_steps must be at least 1; got {num_steps}.")
        if history < 1:
            raise ValueError(f"history must be at least 1; got {history}.")
        if not 0 <= uniform_share <= 1:
            raise ValueError(f"uniform_share must lie in [0, 1]; got {uniform_share}.")
        self.num_steps = num_steps
        self.history = history
        self.uniform_share = uniform_share
        self.losses: list[list[float]] = [[] for _ in range(num_steps)]
        """The last losses of each t, the oldest first."""

    def update(self, t_index: Tensor, losses: Tensor) -> None:
        """Remember the unweighted loss of each example, (B,), at its time's index, (B,); the oldest go."""
        for i, loss in zip(t_index.tolist(), losses.tolist(), strict=True):
            self.losses[i] = [*self.losses[i], loss][-self.history :]

    def weights(self) -> Tensor:
        """(T,) float64 probabilities p_t, whose sum is 1."""
        uniform = torch.full((self.num_steps,), 1 / self.num_steps, dtype=torch.float64)
        if any(len(losses) < self.history for losses in self.losses):
            return uniform
        roots = torch.tensor(self.losses, dtype=torch.float64).square().mean(1).sqrt()
        return (1 - self.uniform_share) * roots / roots.sum() + self.uniform_share * uniform

    def importance(self, t_index: Tensor) -> Tensor:
        """(B,) float64 the weight 1/(T p_t) of each loss drawn by p."""
        return 1 / (self.num_steps * self.weights()[t_index])


def drop_labels(labels: Tensor, null_label: int, drop: Tensor) -> Tensor:
    """(B,) labels, those where the (B,) boolean `drop` is true replaced by null_label: the network learns to do without.

    Ho & Salimans 2022, "Classifier-Free Diffusion Guidance", algorithm 1.
    """
    return torch.where(drop, torch.full_like(labels, null_label), labels)


def learning_rate(
    step: int,
    base: float,
    warmup_steps: int,
    decay_steps: int | None = None,
    *,
    end: float = 0.0,
    epoch_steps: int = 1,
) -> float:
    """Rise linearly from 0 to base, then stay there, or fall to end along a cosine.

    Args:
        step: updates done so far, from 0.
        base: the highest rate, reached at warmup_steps.
        warmup_steps: length of the rise, at least 0.
        decay_steps: step at which the rate is end, counted from the start; None: it stays at base.
        end: the lowest rate of the cosine.
        epoch_steps: the rate changes every so many steps only.

    Raises:
        ValueError: warmup_steps < 0, decay_steps <= warmup_steps, or epoch_steps < 1.

    Loshchilov & Hutter 2017, "SGDR", eq. 5, without restarts.
    """
    if warmup_steps < 0:
        raise ValueError(f"warmup_steps must be at least 0; got {warmup_steps}.")
    if decay_steps is not None and decay_steps <= warmup_steps:
        raise ValueError(f"decay_steps must exceed warmup_steps = {warmup_steps}; got {decay_steps}.")
    if epoch_steps < 1:
        raise ValueError(f"epoch_steps must be at least 1; got {epoch_steps}.")
    step -= step % epoch_steps
    if step < warmup_steps:
        return base * step / warmup_steps
    if decay_steps is None:
        return base
    progress = min((step - warmup_steps) / (decay_steps - warmup_steps), 1.0)
    return end + (base - end) * (1 + cos(pi * progress)) / 2


def ema_decay(step: int, decay: float) -> float:
    """min(decay, (1 + step)/(10 + step)), step = updates done before: a young average forgets faster."""
    return min(decay, (1 + step) / (10 + step))


def forget(optimizer: torch.optim.Optimizer) -> None:
    """Adam as it is before its first step; what is done at the beginning of an epoch where each has an optimiser of its own."""
    optimizer.state.clear()


@dataclass
class TrainState:
    """Everything that a training step changes; step counts the updates done."""

    model: nn.Module
    """What is trained."""
    ema_model: nn.Module
    """Its moving average."""
    optimizer: torch.optim.Optimizer
    """Adam over the parameters of `model`."""
    step: int = 0

    @classmethod
    def create(cls, model: nn.Module, lr: float) -> "TrainState":
        """Start from a model: its average is a copy of it, its optimiser Adam (0.9, 0.999, 1e-8) at rate lr.

        Kingma & Ba 2015, "Adam", algorithm 1.
        """
        ema_model = copy.deepcopy(model).requires_grad_(False).eval()
        optimizer = torch.optim.Adam(model.parameters(), lr=lr, betas=(0.9, 0.999), eps=1e-8)
        return cls(model, ema_model, optimizer)


def train_step(
    state: TrainState,
    process: Process,
    x_0: Tensor,
    noise: Tensor,
    t: Tensor,
    labels: Tensor | None = None,
    *,
    ema: float,
    grad_clip: float | None = None,
    lr: float | None = None,
    self_condition: bool | None = None,
) -> dict[str, float]:
    """One update of the state, in place (DDPM algorithm 1, with everything drawn by the caller).

    Args:
        state: changed in place.
        process: gives the loss.
        x_0: (B, C, H, W) images.
        noise: (B, C, H, W) standard normal.
        t: (B,) times.
        labels: (B,) classes, for a network that wants them.
        ema: decay of the moving average, in [0, 1]; ema_decay makes it smaller in early steps.
        grad_clip: largest global norm of the gradient; None leaves it.
        lr: learning rate of this step; None keeps the optimiser's.
        self_condition: for a network whose input is x_t and a guess of x_0, one after the other along the channels: False, the
            guess is zeros; True, it is the network's own x_0 from a first pass with zeros, through which no gradient flows. None:
            the network takes x_t alone. Chen et al. 2023, "Analog Bits", algorithm 1, draw it true half of the time.

    Returns:
        loss, the mean over the batch, and grad_norm, before clipping.
    """
    if lr is not None:
        for group in state.optimizer.param_groups:
            group["lr"] = lr
    state.model.train()
    state.optimizer.zero_grad()

    def predict(x_t: Tensor, network_time: Tensor) -> Tensor:
        if self_condition is None:
            return state.model(x_t, network_time, labels)
        guess = torch.zeros_like(x_t)
        if self_condition:
            with torch.no_grad():
                output = state.model(torch.cat([x_t, guess], dim=1), network_time, labels)
                guess = process.estimate(x_t, output, t).x_0
        return state.model(torch.cat([x_t, guess], dim=1), network_time, labels)

    loss = process.loss_per_example(predict, x_0, noise, t).mean()
    loss.backward()
    grad_norm = _clip_gradients(state.model, grad_clip)
    state.optimizer.step()
    _update_ema(state, ema_decay(state.step, ema))
    state.step += 1
    return {"loss": loss.item(), "grad_norm": grad_norm}


def _clip_gradients(model: nn.Module, max_norm: float | None) -> float:
    """Scale all gradients by min(1, max_norm / norm); their norm before that."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients]))
    if max_norm is not None and norm > max_norm:
        # torch.nn.utils.clip_grad_norm_ adds 1e-6 to the norm: not the same number.
        for gradient in gradients:
            gradient.mul_(max_norm / norm)
    return norm.item()


@torch.no_grad()
def _update_ema(state: TrainState, decay: float) -> None:
    """Average the parameters, copy the buffers."""
    for average, parameter in zip(state.ema_model.parameters(), state.model.parameters(), strict=True):
        average.copy_(decay * average + (1 - decay) * parameter)
    for copied, buffer in zip(state.ema_model.buffers(), state.model.buffers(), strict=True):
        copied.copy_(buffer)
