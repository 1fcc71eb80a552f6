"""The equations of a training step: pure functions of the state and of what is drawn, which know of no device."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ddpm_jax import display, models
from ddpm_jax.errors import UserError
from ddpm_jax.processes import GaussianDiffusion, Process
from ddpm_jax.training import averages, loss_aware
from ddpm_jax.training.state import TrainState


class Examples(NamedTuple):
    """What a step learns from: a batch, and what is drawn for each of its examples."""

    x_0: Any
    """(B, ...) data."""
    noise: Any
    """(B, ...) standard normal."""
    t: Any
    """(B,) times of the process."""
    labels: Any = None
    """(B,) classes, or None."""
    weights: Any = None
    """(B,) of the losses; None: all 1."""
    condition: Any = None
    """(B, ..., C') what the network is shown in channels behind those of x_t, as it sees it; None: nothing."""

    def __repr__(self) -> str:
        return display.of_fields(self)


class Chance(NamedTuple):
    """What is drawn once for a whole step."""

    key: Any = None
    """What dropout's masks are drawn from; None where there is no dropout."""
    guess: Any = None
    """For a self-conditioned network, a boolean scalar: whether it is shown its own estimate of x_0, found without one and without
    gradient (Chen et al. 2023, section 3.2), or zeros."""

    def __repr__(self) -> str:
        return display.of_fields(self)


NOTHING = Chance()
"""No dropout, and no self-conditioning."""


class Gradients(NamedTuple):
    """What the network makes of a batch."""

    losses: Any
    """(B,) of the examples, not weighted."""
    params: Any
    """Gradients of the losses' (weighted) mean, by parameter."""
    batch_stats: Any
    """Running statistics after the batch."""

    def __repr__(self) -> str:
        return display.of_fields(self)


@dataclass(frozen=True)
class Update:
    """One update of a state: `draw`, `gradients`, `apply`, in turn; moments and average stay in the dtype of the parameters."""

    process: Process
    """What is learned."""
    optimizer: optax.GradientTransformation
    """How the parameters move."""
    ema: Any = 0.9999
    """Decay of the parameters' average once it is warm, in [0, 1); or lengths of power-function averages, as in `averages`."""
    accumulate: int = 1
    """Parts that a batch is gone through in, one after the other; BatchNorm sees each of them alone, and dropout's masks are
    others."""
    label_dropout: float = 0.0
    """Share of the labels that are replaced by the network's last class, which then stands for none, in [0, 1)."""
    dtype: Any = None
    """What the network computes in; None: the dtype of its parameters."""
    skip_nonfinite: bool = False
    """Leave a state as it is, but for its step, where the loss or the gradients' norm is not finite."""
    gather: Callable[[Any], Any] = lambda params: params
    """Brings parameters together that lie in shares."""

    def __repr__(self) -> str:
        return display.line(self, self.process, **display.changed(self, "process", "optimizer", "gather"))

    def __call__(
        self, state: TrainState, batch: dict[str, jax.Array], key: jax.Array
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """The state after a batch, and its loss and grad_norm; what is drawn is drawn from the key folded with the state's step."""
        return self.with_draws(state, *self.draw(state, batch, key))

    def with_draws(
        self, state: TrainState, examples: Examples, chance: Chance = NOTHING
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """The same with everything that is drawn given, as another framework's step can be."""
        return self.apply(state, examples, self.gradients(state, examples, chance))

    def draw(self, state: TrainState, batch: dict[str, jax.Array], key: jax.Array) -> tuple[Examples, Chance]:
        """What a step takes besides the state.

        batch: "x_0" (B, ...), uint8 pixels or what the network sees; for a network of classes "label" (B,), and for one
        that is shown an image "condition" (B, ..., C'), uint8 pixels or as the network sees it.
        """
        key = jax.random.fold_in(key, state.step)
        times, noise, dropout = jax.random.split(key, 3)
        x_0, labels = _seen(batch["x_0"]), batch.get("label")
        shown = _seen(batch["condition"]) if "condition" in batch else None
        size = len(x_0)
        network = models.merge(state.graphdef, state.variables(ema=False))
        weights = guess = None
        if state.loss_history is None:
            t = self.process.draw_times(times, size)
        else:
            index, weights = loss_aware.draw(state.loss_history, times, size)
            t = self.first_time + index
        if labels is not None and self.label_dropout:
            hidden = jax.random.bernoulli(jax.random.fold_in(key, 0), self.label_dropout, (size,))
            labels = jnp.where(hidden, models.fact(network, "num_classes") - 1, labels)
        if models.fact(network, "self_conditioning"):
            guess = jax.random.bernoulli(jax.random.fold_in(key, 1))
        drawn = jax.random.normal(noise, x_0.shape)
        return Examples(x_0, drawn, t, labels, weights, shown), Chance(dropout, guess)

    def gradients(self, state: TrainState, examples: Examples, chance: Chance = NOTHING) -> Gradients:
        """Losses, gradients and statistics of a batch, gone through in parts where `accumulate` asks for it."""
        variables = state.variables(ema=False)
        if self.accumulate == 1:
            return self._gradients(state, variables, examples, chance)
        parts = self.accumulate

        def cut(a: jax.Array) -> jax.Array:  # every parts-th example, so that each device keeps its own
            return a.reshape(-1, parts, *a.shape[1:]).swapaxes(0, 1)

        def add(carry: Any, part: Any) -> Any:
            total, batch_stats = carry
            index, examples = part
            key = None if chance.key is None else jax.random.fold_in(chance.key, index)
            before = variables | {"batch_stats": batch_stats}
            found = self._gradients(state, before, examples, chance._replace(key=key))
            return (jax.tree.map(jnp.add, total, found.params), found.batch_stats), found.losses

        start = jax.tree.map(jnp.zeros_like, state.params), state.batch_stats
        each = jnp.arange(parts), jax.tree.map(cut, examples)
        (total, batch_stats), losses = jax.lax.scan(add, start, each)
        return Gradients(losses.T.reshape(-1), jax.tree.map(lambda g: g / parts, total), batch_stats)

    def _gradients(
        self, state: TrainState, variables: models.Variables, examples: Examples, chance: Chance
    ) -> Gradients:
        x_0, noise, t, labels, weights, condition = examples
        graphdef = models.for_training(state.graphdef, variables)

        def mean_loss(params: Any) -> Any:
            whole = variables | {"params": self.gather(params)}
            batch_stats = variables["batch_stats"]

            def call(x: jax.Array, time: jax.Array) -> Any:
                return models.apply(graphdef, whole, x, time, labels, key=chance.key, dtype=self.dtype)

            def predict(x_t: jax.Array, time: jax.Array) -> jax.Array:
                nonlocal batch_stats
                if condition is not None:
                    x_t = jnp.concatenate([x_t, condition], axis=-1)
                if chance.guess is not None:
                    nothing = jnp.zeros_like(x_0)

                    def first_guess() -> jax.Array:
                        output, _ = call(jnp.concatenate([x_t, nothing], axis=-1), time)
                        noised = self.process.add_noise(x_0, noise, t)
                        return jax.lax.stop_gradient(self.process.estimate(noised, output, t).x_0)

                    seen = jax.lax.cond(chance.guess, first_guess, lambda: nothing)
                    x_t = jnp.concatenate([x_t, seen], axis=-1)
                output, batch_stats = call(x_t, time)
                return output

            losses = self.process.loss_per_example(predict, x_0, noise, t)
            return mean_of(losses, weights), (losses, batch_stats)

        (_, (losses, batch_stats)), grads = jax.value_and_grad(mean_loss, has_aux=True)(variables["params"])
        return Gradients(losses, grads, batch_stats)

    def apply(self, state: TrainState, examples: Examples, found: Gradients) -> tuple[TrainState, dict[str, jax.Array]]:
        """The state after one step of the optimiser, of the average and of the losses remembered; loss and grad_norm."""
        losses, grads, batch_stats = found
        loss, grad_norm = mean_of(losses, examples.weights), optax.tree.norm(grads)
        optimizer = optax.with_extra_args_support(self.optimizer)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params, value=loss)
        params = optax.apply_updates(state.params, updates)
        kept = [state.ema_params, *(state.averages or ())]
        for index, decay in enumerate(averages.decays(state.step, self.ema)):
            kept[index] = jax.tree.map(
                lambda e, p, decay=decay: (decay * e + (1 - decay) * p).astype(e.dtype), kept[index], params
            )
        history = state.loss_history
        if history is not None:
            history = loss_aware.record(history, examples.t - self.first_time, losses)
        new = dataclasses.replace(
            state,
            step=state.step + 1,
            params=params,
            batch_stats=batch_stats,
            ema_params=kept[0],
            averages=tuple(kept[1:]) or None,
            opt_state=opt_state,
            loss_history=history,
        )
        if self.skip_nonfinite:
            sound = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
            unchanged = dataclasses.replace(state, step=new.step)
            new = jax.tree.map(lambda after, before: jnp.where(sound, after, before), new, unchanged)
        return new, {"loss": loss, "grad_norm": grad_norm}

    @property
    def first_time(self) -> int:
        """The t that has index 0 where losses are remembered by timestep."""
        if not isinstance(self.process, GaussianDiffusion):
            raise UserError(
                f"losses are remembered by timestep, which a {type(self.process).__name__} has not: leave loss_history out."
            )
        return self.process.schedule.first


def _seen(values: jax.Array) -> jax.Array:
    """uint8 pixels scaled to [-1, 1], as the pipeline scales them; floats as they are."""
    return (values.astype(jnp.float32) - 127.5) / 127.5 if values.dtype == jnp.uint8 else values


def mean_of(losses: jax.Array, weights: jax.Array | None) -> jax.Array:
    """The (weighted) mean of the examples' losses."""
    return (losses if weights is None else weights * losses).mean()
