"""The equations of a training step: what is drawn, what the network makes of it, and what is changed."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ddpm_torch_ref.processes import GaussianDiffusion, Process
from ddpm_torch_ref.training import averages, loss_aware
from ddpm_torch_ref.training.state import TrainState

Metrics = dict[str, Tensor]
"""loss and grad_norm, scalars that nobody has waited for yet."""


class Examples(NamedTuple):
    """A batch, and what is drawn for each of its examples."""

    x_0: Tensor
    """(B, C, H, W) or (B, D) data."""
    noise: Tensor
    """The same shape, standard normal."""
    t: Tensor
    """(B,) times of the process."""
    labels: Tensor | None = None
    """(B,) classes, for a network that wants them."""
    weights: Tensor | None = None
    """(B,) of the losses; None: all 1."""
    condition: Tensor | None = None
    """(B, C', H, W) what is known of x_0, joined to x_t along the channels, for a network that wants it."""


class Chance(NamedTuple):
    """What is drawn once for a whole step. Dropout's masks are not: nn.Dropout draws them from PyTorch's default generator."""

    guess: bool | None = None
    """For a network whose input is x_t and a guess of x_0 behind it along the channels: False, the guess is zeros; True, it is the
    network's own x_0 from a first pass with zeros, through which no gradient flows (Chen et al. 2023, "Analog Bits", algorithm 1).
    None: the network takes x_t alone."""


NOTHING = Chance()
"""No guess."""


class Gradients(NamedTuple):
    """What the network makes of a batch."""

    losses: Tensor
    """(B,) of the examples, not weighted."""
    params: dict[str, Tensor]
    """Gradients of the losses' (weighted) mean, by the parameter's name."""
    buffers_before: dict[str, Tensor] | None = None
    """Copies from before the batch, where an update may be skipped: BatchNorm changes its statistics as it goes."""


@dataclass(frozen=True)
class Update:
    """One update of a state, in place: `draw`, `gradients`, `apply`, in turn. The optimiser, bound to its parameters, is in the
    state; another precision is torch.autocast's, around the call.
    """

    process: Process
    """Gives times and loss."""
    ema: Any = 0.9999
    """Decay of the moving average, in [0, 1), or lengths of several; `averages.decays` says what each keeps of itself."""
    accumulate: int = 1
    """Parts that a batch is gone through in, one after the other; BatchNorm sees each of them alone."""
    label_dropout: float = 0.0
    """Share of the labels that are replaced by the network's last class, in [0, 1): it learns to do without (Ho & Salimans 2022,
    "Classifier-Free Diffusion Guidance", algorithm 1)."""
    skip_nonfinite: bool = False
    """Leave a state as it is, but for its step, where the loss or the gradients' norm is not finite."""
    grad_clip: float | None = None
    """Largest norm of the gradients; None leaves them. In optax it is a link of the optimiser's chain."""

    def __call__(
        self, state: TrainState, batch: dict[str, Tensor], generator: torch.Generator
    ) -> tuple[TrainState, Metrics]:
        """The state after a batch, and its loss and grad_norm (DDPM, algorithm 1)."""
        return self.with_draws(state, *self.draw(state, batch, generator))

    def with_draws(self, state: TrainState, examples: Examples, chance: Chance = NOTHING) -> tuple[TrainState, Metrics]:
        """The same with everything that is drawn given, as another framework's step can be."""
        return self.apply(state, examples, self.gradients(state, examples, chance))

    def draw(self, state: TrainState, batch: dict[str, Tensor], generator: torch.Generator) -> tuple[Examples, Chance]:
        """What a step takes besides the state, drawn where the generator is.

        Args:
            state: whose network and history decide.
            batch: "x_0" (B, ...), uint8 pixels or what the network sees; for a network of classes "label" (B,); for one with
                condition_channels "condition" (B, C', H, W), of the same kinds as x_0.
            generator: of everything drawn; it goes on from step to step.
        """
        x_0, labels = _signed(batch["x_0"]), batch.get("label")
        size, where = len(x_0), generator.device
        weights = guess = None
        if state.loss_history is None:
            t = self.process.draw_times(generator, size)
        else:
            index, weights = loss_aware.draw(state.loss_history, generator, size)
            t, weights = self.first_time + index, weights.to(x_0)
        t = t.to(x_0.device, x_0.dtype if t.is_floating_point() else None)
        noise = torch.randn(x_0.shape, generator=generator, device=where, dtype=x_0.dtype).to(x_0.device)
        if labels is not None and self.label_dropout:
            hidden = (torch.rand(size, generator=generator, device=where) < self.label_dropout).to(labels.device)
            classes: Any = state.model.num_classes
            labels = torch.where(hidden, classes - 1, labels)
        if getattr(state.model, "self_conditioning", False):
            guess = bool(torch.rand((), generator=generator, device=where) < 0.5)
        condition = batch.get("condition")
        condition = None if condition is None else _signed(condition)
        return Examples(x_0, noise, t, labels, weights, condition), Chance(guess)

    def gradients(self, state: TrainState, examples: Examples, chance: Chance = NOTHING) -> Gradients:
        """Losses and gradients of a batch, gone through in parts where `accumulate` asks for it."""
        state.model.train()
        before = None
        if self.skip_nonfinite:
            before = {name: buffer.clone() for name, buffer in state.model.named_buffers()}
        params = dict(state.model.named_parameters())
        for parameter in params.values():
            parameter.grad = None
        losses = []
        for part in self._parts(examples):
            found = self._losses(state.model, part, chance)
            mean_of(found, part.weights).backward()
            losses.append(found.detach())
        grads = {name: parameter.grad for name, parameter in params.items() if parameter.grad is not None}
        if self.accumulate > 1:
            for grad in grads.values():
                grad /= self.accumulate
        # a part holds every `accumulate`-th example
        return Gradients(losses[0] if len(losses) == 1 else torch.stack(losses, dim=1).flatten(), grads, before)

    def _parts(self, examples: Examples) -> list[Examples]:
        if self.accumulate == 1:
            return [examples]
        return [
            Examples._make(None if a is None else a[part :: self.accumulate] for a in examples)
            for part in range(self.accumulate)
        ]

    def _losses(self, model: nn.Module, examples: Examples, chance: Chance) -> Tensor:
        x_0, noise, t, labels, _, condition = examples

        def predict(x_t: Tensor, network_time: Tensor) -> Tensor:
            known = [x_t] if condition is None else [x_t, condition]
            if chance.guess is None:
                return model(torch.cat(known, dim=1), network_time, labels)
            guess = torch.zeros_like(x_t)
            if chance.guess:
                with torch.no_grad():
                    output = model(torch.cat([*known, guess], dim=1), network_time, labels)
                    guess = self.process.estimate(self.process.add_noise(x_0, noise, t), output, t).x_0
            return model(torch.cat([*known, guess], dim=1), network_time, labels)

        return self.process.loss_per_example(predict, x_0, noise, t)

    def apply(self, state: TrainState, examples: Examples, found: Gradients) -> tuple[TrainState, Metrics]:
        """The state after one step of the optimiser, of the average and of the losses remembered; loss, and grad_norm before
        clipping.
        """
        loss, grad_norm = mean_of(found.losses, examples.weights), _norm(found.params.values())
        state.step += 1
        metrics = {"loss": loss, "grad_norm": grad_norm}
        if self.skip_nonfinite and not (loss.isfinite() and grad_norm.isfinite()):
            for name, buffer in state.model.named_buffers():
                buffer.copy_((found.buffers_before or {})[name])
            return state, metrics
        for name, parameter in state.model.named_parameters():
            parameter.grad = found.params.get(name)
        _clip_gradients(found.params.values(), grad_norm, self.grad_clip)
        state.optimizer.step()
        kept = [state.ema_model, *(state.averages or ())]
        for average, decay in zip(kept, averages.decays(state.step - 1, self.ema), strict=True):
            _update_ema(average, state.model, decay)
        if state.loss_history is not None:
            index = examples.t - self.first_time
            state.loss_history = loss_aware.record(state.loss_history, index, found.losses)
        return state, metrics

    @property
    def first_time(self) -> int:
        """The t that has index 0 where losses are remembered by t.

        Raises:
            ValueError: a process without timesteps.
        """
        if not isinstance(self.process, GaussianDiffusion):
            kind = type(self.process).__name__
            raise ValueError(f"loss_history must be None for a {kind}, which has no timesteps to remember losses of.")
        return self.process.schedule.first


def mean_of(losses: Tensor, weights: Tensor | None) -> Tensor:
    """The (weighted) mean of the examples' losses."""
    return (losses if weights is None else weights * losses).mean()


def _signed(values: Tensor) -> Tensor:
    """uint8 pixels scaled to [-1, 1]; floating point as it is."""
    return values.float() / 127.5 - 1 if values.dtype == torch.uint8 else values


def _norm(gradients: Iterable[Tensor]) -> Tensor:
    """Euclidean norm of all gradients together."""
    return torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients]))


def _clip_gradients(gradients: Iterable[Tensor], norm: Tensor, max_norm: float | None) -> None:
    """Scale all gradients by min(1, max_norm / norm)."""
    if max_norm is not None and norm > max_norm:
        # torch.nn.utils.clip_grad_norm_ adds 1e-6 to the norm: not the same number.
        for gradient in gradients:
            gradient.mul_(max_norm / norm)


@torch.no_grad()
def _update_ema(averaged: nn.Module, model: nn.Module, decay: float) -> None:
    """Average the parameters, copy the buffers."""
    for average, parameter in zip(averaged.parameters(), model.parameters(), strict=True):
        average.copy_(decay * average + (1 - decay) * parameter)
    for copied, buffer in zip(averaged.buffers(), model.buffers(), strict=True):
        copied.copy_(buffer)
