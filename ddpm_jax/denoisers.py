"""Denoisers: (x_t, t) -> what x_t is made of. A network with its process is one, and so is whatever wraps one."""

import abc
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from ddpm_jax import display, models
from ddpm_jax.checks import number
from ddpm_jax.errors import UserError
from ddpm_jax.models.functional import config_of, name_of
from ddpm_jax.processes import Estimate, LinearPath, MeanFlow, Process, as_times, check_floats

__all__ = [
    "Denoiser",
    "Wrapper",
    "as_denoiser",
    "classifier_guided",
    "clipped",
    "guided",
    "of",
    "of_network",
    "remedies",
    "reparameterized",
    "self_conditioned",
    "thresholded",
]

Number = Any
"""A number that is a leaf of its denoiser: to change it compiles nothing."""


class Denoiser(abc.ABC):
    """What x_t is believed to be made of: called as denoise(x_t, t) -> Estimate(x_0, eps), x_t (B, ...), t a time or (B,) times of
    the process.

    A pytree: its arrays and numbers are leaves, its structure and process are static. A subclass defines `output` or `__call__`;
    either gives the other.
    """

    process: Process
    """How x_t came about, and what `output` stands for."""

    def __call__(self, x_t: Float[Array, "b *shape"], t: Any) -> Estimate:
        """The pair (x_0, eps) that x_t is believed to be made of.

        Raises:
            UserError: an output of another shape than that of x_t, or a time that the process does not know.
        """
        t = self._times(t, x_t)
        output = self.output(x_t, t)
        channels = x_t.shape[-1] * (2 if getattr(self.process, "learned_variance", False) else 1)
        expected = (*x_t.shape[:-1], channels)
        if getattr(output, "shape", None) != expected:
            raise UserError(
                f"a network's output must have the shape {expected} for x_t {x_t.shape}; got {display.short(output)}."
            )
        return self.process.estimate(x_t, output, t)

    def output(self, x_t: Float[Array, "b *shape"], t: Any) -> Float[Array, "b *out"]:
        """What a network that believes this would say: eps, x_0, v or a velocity, and its word on the variance, if it learns it."""
        t = self._times(t, x_t)
        hat = self(x_t, t)
        mean = self.process.target(hat.x_0, hat.eps, t)
        return mean if hat.variance_logit is None else jnp.concatenate([mean, hat.variance_logit], axis=-1)

    @property
    def labels(self) -> Int[Array, "..."] | None:
        """The classes it is told of, (B,) or one for all; None: of none."""
        return None

    @property
    def null_label(self) -> int | None:
        """The class that stands for none; None: it was not trained without."""
        return None

    @property
    def self_conditioned(self) -> bool:
        """Whether it looks at an earlier estimate of x_0, which `given` hands to it."""
        return False

    @property
    def guess(self) -> Float[Array, "b *shape"] | None:
        """The earlier estimate of x_0 that it was given; None: none."""
        return None

    @abc.abstractmethod
    def with_labels(self, labels: Any) -> "Denoiser":
        """The same for other labels: whole numbers, one for each example or one for all, or None."""

    @abc.abstractmethod
    def given(self, guess: Float[Array, "b *shape"] | None) -> "Denoiser":
        """The same with an earlier estimate of x_0, for what is conditioned on its own; the same where nothing is."""

    @abc.abstractmethod
    def until(self, s: Any) -> "Denoiser":
        """The same of the way from t to the time s, where its process is one of intervals; otherwise the same."""

    @abc.abstractmethod
    def beside(self, shown: Float[Any, "b *shape"]) -> "Denoiser":
        """The same for a network that is shown this too, in channels behind those of x_t."""

    @abc.abstractmethod
    def _paired(self, labels: Int[Array, "n"]) -> "Denoiser":
        """The same for a batch in which each example stands twice, with these labels."""

    def _times(self, t: Any, x_t: jax.Array) -> jax.Array:
        """A time for each example, of the type that the process counts in."""
        check_floats(x_t=x_t)
        found = jnp.asarray(as_times(t))
        if found.shape not in ((), x_t.shape[:1]):
            raise UserError(f"t must be a time, or one for each example {x_t.shape[:1]}; got the shape {found.shape}.")
        if self.process.continuous:
            found = found.astype(x_t.dtype)
        elif not jnp.issubdtype(found.dtype, jnp.integer):
            raise UserError(f"t must be a timestep, a whole number; got {found.dtype}.")
        return jnp.broadcast_to(found, x_t.shape[:1])


# What all others wrap


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Network:
    """A network for evaluation, as a function of (x_t, t, labels)."""

    variables: models.Variables
    """Its parameters and running statistics."""
    graphdef: nnx.GraphDef[Any] = field(metadata={"static": True})
    """Its structure."""
    dtype: Any = field(metadata={"static": True})
    """What it computes in; None: in the dtype of its parameters."""

    def __repr__(self) -> str:
        computes = {} if self.dtype is None else {"dtype": str(self.dtype)}
        parameters = f"{display.count(self.variables.get('params', {})):,} parameters"
        return display.line(name_of(self.graphdef), parameters, **computes)

    def __call__(self, x_t: jax.Array, t: jax.Array, labels: jax.Array | None = None) -> jax.Array:
        """The network's output, in the dtype of x_t."""
        return models.apply(self.graphdef, self.variables, x_t, t, labels, dtype=self.dtype)[0]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Predicted(Denoiser):
    """What a function of (x_t, network time), or of the labels as well, makes of x_t; `of` and `of_network` make these."""

    function: Callable[..., jax.Array]
    """A callable pytree."""
    classes: Any
    """(B,), one for all, or None."""
    process: Process = field(metadata={"static": True})
    none: int | None = field(metadata={"static": True})
    """The class that stands for none."""
    shown: Any = None
    """(B, ...) in channels behind those of x_t, or None."""
    end: Any = None
    """The time that the way from t leads to; None: t itself."""

    def __repr__(self) -> str:
        told = {} if self.classes is None else {"labels": self.classes}
        told |= {} if self.none is None else {"null_label": self.none}
        function = self.function.func if isinstance(self.function, jax.tree_util.Partial) else self.function
        return display.line("network" if isinstance(function, Network) else "of", function, self.process, **told)

    def output(self, x_t: Float[Array, "b *shape"], t: Any) -> Float[Array, "b *out"]:
        """What the function says."""
        t = self._times(t, x_t)
        seen, process = self.process.network_input(x_t, t), self.process
        if isinstance(process, MeanFlow) and self.end is not None:
            time: jax.Array = process.network_time(t, self._times(self.end, x_t))
        else:
            time = process.network_time(t)
        if self.shown is not None:
            seen = jnp.concatenate([seen, self.shown], axis=-1)
        if self.classes is None:
            return self.function(seen, time)
        if self.classes.shape not in ((), x_t.shape[:1]):
            raise UserError(
                f"labels must have shape {x_t.shape[:1]}, one for each sample, or be one for all; got {self.classes.shape}."
            )
        return self.function(seen, time, jnp.broadcast_to(self.classes, x_t.shape[:1]))

    @property
    def labels(self) -> Int[Array, "..."] | None:
        """The classes that the function is told of."""
        return self.classes

    @property
    def null_label(self) -> int | None:
        """The class that stands for none."""
        return self.none

    def with_labels(self, labels: Any) -> Denoiser:
        """The same function, told other classes."""
        found = _as_labels(labels)
        _check_classes(self.function, labels=found)
        return dataclasses.replace(self, classes=found)

    def given(self, guess: Float[Array, "b *shape"] | None) -> Denoiser:
        """The same: it looks at no guess."""
        return self

    def until(self, s: Any) -> Denoiser:
        """The same function, told of the way to s, of a process of intervals."""
        return dataclasses.replace(self, end=s) if self.process.of_intervals else self

    def beside(self, shown: Float[Any, "b *shape"]) -> Denoiser:
        """The same function, shown this too, behind what it is shown already."""
        together = shown if self.shown is None else jnp.concatenate([self.shown, shown], axis=-1)
        return dataclasses.replace(self, shown=together)

    def _paired(self, labels: Int[Array, "n"]) -> Denoiser:
        shown = None if self.shown is None else jnp.repeat(self.shown, 2, axis=0)
        end = jnp.repeat(self.end, 2) if np.ndim(self.end) else self.end
        return dataclasses.replace(self, classes=labels, shown=shown, end=end)


def of_network(
    model: models.Model, process: Process, *, labels: Any = None, null_label: int | None = None, dtype: Any = None
) -> Denoiser:
    """The denoiser of a network.

    model: an NNX module, or what `models.split` made of it. labels: classes of a conditional network, (B,) or one for all.
    null_label: the class that stood for none where labels were hidden in training. dtype: the network's compute dtype, None for
    that of its parameters.

    Raises:
        UserError: no network, no process, or labels that are no whole numbers.
    """
    if not (isinstance(model, nnx.Module) or (isinstance(model, tuple) and len(model) == 2)):
        raise UserError(
            f"model must be an nnx.Module, or what models.split made of one; got a {type(model).__name__}: "
            "write denoisers.of_network(model, process), or denoisers.of(process, function)."
        )
    graphdef, variables = models.parts(model)
    try:
        network = Network(variables, graphdef, None if dtype is None else jnp.dtype(dtype))
    except TypeError as error:
        raise UserError(f"dtype must be a type of numbers, such as bfloat16; got {dtype!r}.") from error
    found = _as_labels(labels)
    _check_classes(network, labels=found, null_label=null_label)
    return Predicted(network, found, _as_process(process), null_label)


def of(
    process: Process, function: Callable[..., Any], *, labels: Any = None, null_label: int | None = None
) -> Denoiser:
    """The denoiser of any function of (x_t, network time), which says what a network of the process would; of (x_t, network time,
    labels) where labels are given.

    function: called with x_t (B, ...) and times (B,) as `Process.network_time` gives them. A callable pytree keeps its leaves;
    any other function is told from others by its identity.

    Raises:
        UserError: no function, no process, or labels that are no whole numbers.
    """
    if isinstance(function, nnx.Module):
        raise UserError("function is a network: write denoisers.of_network(model, process).")
    if not callable(function):
        raise UserError(f"function must be called as function(x_t, t); got a {type(function).__name__}.")
    return Predicted(_as_pytree(function), _as_labels(labels), _as_process(process), null_label)


# What wraps another


class Wrapper(Denoiser):
    """What hands labels and guesses on to the denoiser within."""

    inner: Denoiser
    """The denoiser within."""

    @property
    def process(self) -> Process:  # type: ignore[override]
        """That of the denoiser within."""
        return self.inner.process

    @property
    def labels(self) -> Int[Array, "..."] | None:
        """Those of the denoiser within."""
        return self.inner.labels

    @property
    def null_label(self) -> int | None:
        """That of the denoiser within."""
        return self.inner.null_label

    @property
    def self_conditioned(self) -> bool:
        """Whether the denoiser within is."""
        return self.inner.self_conditioned

    @property
    def guess(self) -> Float[Array, "b *shape"] | None:
        """What the denoiser within was given."""
        return self.inner.guess

    def with_labels(self, labels: Any) -> Denoiser:
        """The same around the denoiser with other labels."""
        return self._around(self.inner.with_labels(labels))

    def given(self, guess: Float[Array, "b *shape"] | None) -> Denoiser:
        """The same around the denoiser with an earlier estimate of x_0."""
        return self._around(self.inner.given(guess))

    def until(self, s: Any) -> Denoiser:
        """The same around the denoiser of the way to s."""
        return self._around(self.inner.until(s))

    def beside(self, shown: Float[Any, "b *shape"]) -> Denoiser:
        """The same around the denoiser that is shown this too."""
        return self._around(self.inner.beside(shown))

    def _paired(self, labels: Int[Array, "n"]) -> Denoiser:
        return self._around(self.inner._paired(labels))

    def _around(self, inner: Denoiser) -> Denoiser:
        return dataclasses.replace(self, inner=inner)  # type: ignore[type-var]

    def _told(self, name: str, **options: Any) -> str:
        """The function that made it, around the denoiser within."""
        return display.line(name, repr(self.inner), **options)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Guided(Wrapper):
    """See `guided`."""

    inner: Denoiser
    """What it is told to agree with more."""
    other: Denoiser | None
    """What it is led away from; None: the same without labels."""
    scale: Number
    interval: tuple[Number, Number]
    rescale: Number

    def __repr__(self) -> str:
        other = self.other.function if isinstance(self.other, Predicted) else type(self.other)
        options = {"interval": self.interval, "rescale": self.rescale}
        usual = {"interval": "(0, inf)", "rescale": "0"}
        changed = {key: value for key, value in options.items() if display.short(value) != usual[key]}
        changed |= {} if self.other is None else {"other": other}
        return self._told("guided", scale=self.scale, **changed)

    def output(self, x_t: Float[Array, "b *shape"], t: Any) -> Float[Array, "b *out"]:
        """u + scale (c - u) within the interval, c elsewhere."""
        t = self._times(t, x_t)
        if self.other is None:
            conditional, unconditional = self._both(x_t, t)
        else:
            conditional, unconditional = self.inner.output(x_t, t), self.other.output(x_t, t)
        channels = x_t.shape[-1]
        c, u = conditional[..., :channels], unconditional[..., :channels]
        output = u + self.scale * (c - u)
        output = self.rescale * _with_deviation(output, c) + (1 - self.rescale) * output
        first, last = self.interval
        inside = ((first <= t) & (t <= last)).reshape((-1,) + (1,) * (x_t.ndim - 1))
        # what follows says the variance, which stays the conditional one's
        return jnp.concatenate([jnp.where(inside, output, c), conditional[..., channels:]], axis=-1)

    def _both(self, x_t: jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array]:
        """With labels and without, in one batch; the two of an example are neighbours, so that they lie on one device."""
        labels, null_label = self.inner.labels, self.inner.null_label
        assert labels is not None and null_label is not None  # `guided` refuses what has none
        own = jnp.broadcast_to(labels, t.shape)
        pairs = jnp.stack([own, jnp.full_like(own, null_label)], axis=1).reshape(-1)
        both = self.inner._paired(pairs).output(jnp.repeat(x_t, 2, axis=0), jnp.repeat(t, 2))
        both = both.reshape(-1, 2, *both.shape[1:])
        return both[:, 0], both[:, 1]

    def with_labels(self, labels: Any) -> Denoiser:
        """The same for other labels; an other denoiser that has none is still told none."""
        other = self.other if self.other is None or self.other.labels is None else self.other.with_labels(labels)
        return dataclasses.replace(self, inner=self.inner.with_labels(labels), other=other)

    def given(self, guess: Float[Array, "b *shape"] | None) -> Denoiser:
        """The same with an earlier estimate of x_0 for both."""
        other = None if self.other is None else self.other.given(guess)
        return dataclasses.replace(self, inner=self.inner.given(guess), other=other)

    def until(self, s: Any) -> Denoiser:
        """The same of the way to s, of both."""
        other = None if self.other is None else self.other.until(s)
        return dataclasses.replace(self, inner=self.inner.until(s), other=other)

    def beside(self, shown: Float[Any, "b *shape"]) -> Denoiser:
        """The same, with both shown this too."""
        other = None if self.other is None else self.other.beside(shown)
        return dataclasses.replace(self, inner=self.inner.beside(shown), other=other)

    def _paired(self, labels: Int[Array, "n"]) -> Denoiser:
        if self.other is not None:
            raise UserError(
                "guidance by another denoiser cannot itself be guided away from a missing label: give `other`."
            )
        return super()._paired(labels)


def guided(
    denoise: Denoiser,
    scale: float,
    *,
    interval: tuple[float, float] = (0.0, float("inf")),
    rescale: float = 0.0,
    other: Denoiser | None = None,
) -> Denoiser:
    """Led away from what would be said without labels: u + scale (c - u), in the network's output (Ho & Salimans 2022).

    scale: 1 is the conditional denoiser as it is, 0 the unconditional one. interval: of times of the process, both ends included,
    within which to guide; elsewhere the output is the conditional one (Kynkäänniemi et al. 2024). rescale: share, in [0, 1], of the
    guided output that is brought back to the conditional one's standard deviation over each example (Lin et al. 2024, eq. 15-16).
    other: what to be led away from, as a weaker network (Karras et al. 2024), or denoise.with_labels(None); None: the same
    network told `null_label`, asked in one batch with the conditional one. A word on the variance stays the conditional one's.

    Raises:
        UserError: no labels to guide to, a network that knows no missing label, numbers out of range, or another process.
    """
    denoise = as_denoiser(denoise)
    if other is not None:
        other = as_denoiser(other)
        if other.process != denoise.process:
            raise UserError("other must be a denoiser of the same process as the one that is guided; got another.")
    elif denoise.labels is None:
        raise UserError("guidance needs labels to guide to; got labels = None.")
    elif denoise.null_label is None:
        raise UserError(
            "guidance needs a network that was trained with some labels hidden: say which class stood for none by null_label, "
            "or give another denoiser as `other`."
        )
    if np.shape(interval) != (2,):
        raise UserError(f"interval must be two times, the earliest and the latest; got {interval!r}.")
    first, last = (_number("interval", time) for time in interval)
    if _known(first, last) and not first <= last:
        raise UserError(f"interval must be two times in order; got {first:g} and {last:g}.")
    return Guided(
        denoise,
        other,
        _number("scale", scale),
        (first, last),
        _number("rescale", rescale, lambda x: 0 <= x <= 1, "lie in [0, 1]"),
    )


def _with_deviation(x: Float[Array, "b *shape"], like: Float[Array, "b *shape"]) -> Float[Array, "b *shape"]:
    """x times what gives each example the standard deviation of `like`; examples of a single value as they are."""
    axes = tuple(range(1, x.ndim))
    std = x.std(axes, keepdims=True)
    # a single value may have a deviation too, of its rounded mean; and a tiny spread none, where its squares underflow
    spread = (x.max(axes, keepdims=True) > x.min(axes, keepdims=True)) & (std > 0)
    return x * jnp.where(spread, like.std(axes, keepdims=True) / jnp.where(spread, std, 1), 1)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ClassifierGuided(Wrapper):
    """See `classifier_guided`."""

    inner: Denoiser
    log_prob: Callable[..., jax.Array]
    """A callable pytree."""
    scale: Number

    def __repr__(self) -> str:
        return self._told("classifier_guided", scale=self.scale)

    def __call__(self, x_t: Float[Array, "b *shape"], t: Any) -> Estimate:
        """eps - scale sigma_t grad log p(y | x_t), and the x_0 that belongs to it."""
        t = self._times(t, x_t)
        hat = self.inner(x_t, t)
        alpha, sigma = self.process.level(t, x_t)
        gradient = jax.grad(lambda x: self.log_prob(x, t).sum())(x_t)
        x_0, eps = hat.x_0 + self.scale * sigma**2 / alpha * gradient, hat.eps - self.scale * sigma * gradient
        return Estimate(x_0, eps, hat.variance_logit)

    def _paired(self, labels: Int[Array, "n"]) -> Denoiser:
        raise UserError("a classifier must guide what is guided by labels already: classifier_guided(guided(…), …).")


def classifier_guided(denoise: Denoiser, log_prob: Callable[..., Any], scale: float = 1.0) -> Denoiser:
    """Led up the gradient of a classifier's log p(y | x_t) (Dhariwal & Nichol 2021, algorithm 2), whatever the prediction.

    log_prob(x_t, t): (B,), of the class wanted of each example, at times t (B,) of the process.

    Raises:
        UserError: x_T holds no data, so that no classifier can know anything of it, and x_0 has no finite shift.
    """
    denoise = as_denoiser(denoise)
    if not callable(log_prob):
        raise UserError(f"log_prob must be called as log_prob(x_t, t); got a {type(log_prob).__name__}.")
    if isinstance(denoise.process, LinearPath):
        raise UserError("a classifier's guidance needs data in x_T, and flow matching begins at noise alone.")
    schedule = getattr(denoise.process, "schedule", None)
    if schedule is not None and schedule.alphas_cumprod[-1] == 0:
        raise UserError(
            "a classifier's guidance needs data in x_T: the schedule's last alphas_cumprod must be above 0; got 0."
        )
    return ClassifierGuided(denoise, _as_pytree(log_prob), _number("scale", scale))


def _with_x_0(process: Process, hat: Estimate, x_0: jax.Array, x_t: jax.Array, t: jax.Array) -> Estimate:
    """An estimate with another x_0, and the noise that takes it to x_t; at the clean end any noise does, so that it stays."""
    _, sigma = process.level(t, x_t)
    eps = jnp.where(sigma > 0, process.eps_given_x_0(x_t, x_0, t), hat.eps)
    return Estimate(x_0, eps, hat.variance_logit)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Clipped(Wrapper):
    """See `clipped`."""

    inner: Denoiser
    bound: Number

    def __repr__(self) -> str:
        return self._told("clipped", bound=self.bound)

    def __call__(self, x_t: Float[Array, "b *shape"], t: Any) -> Estimate:
        """x_0 within the bound, and the eps that belongs to it."""
        t = self._times(t, x_t)
        hat = self.inner(x_t, t)
        x_0 = jnp.clip(hat.x_0, -self.bound, self.bound)
        return _with_x_0(self.process, hat, x_0, x_t, t)


def clipped(denoise: Denoiser, bound: float = 1.0) -> Denoiser:
    """x_0 kept within [-bound, bound], and eps made to agree with it.

    Raises:
        UserError: a bound that is not positive.
    """
    return Clipped(as_denoiser(denoise), _positive("bound", bound))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Thresholded(Wrapper):
    """See `thresholded`."""

    inner: Denoiser
    quantile: Number
    bound: Number

    def __repr__(self) -> str:
        return self._told("thresholded", quantile=self.quantile, bound=self.bound)

    def __call__(self, x_t: Float[Array, "b *shape"], t: Any) -> Estimate:
        """x_0 within its own quantile, scaled back to the bound, and the eps that belongs to it."""
        t = self._times(t, x_t)
        hat = self.inner(x_t, t)
        axes = tuple(range(1, x_t.ndim))
        largest = jnp.quantile(jnp.abs(hat.x_0), self.quantile, axis=axes, keepdims=True)
        limit = jnp.maximum(largest, self.bound).astype(x_t.dtype)
        x_0 = jnp.clip(hat.x_0, -limit, limit) * (self.bound / limit)
        return _with_x_0(self.process, hat, x_0, x_t, t)


def thresholded(denoise: Denoiser, quantile: float, bound: float = 1.0) -> Denoiser:
    """Dynamic thresholding (Saharia et al. 2022, section 2.3): each example's limit is the larger one of bound and that quantile of
    its |x_0|; x_0 is cut there and scaled back by it to the bound.

    Raises:
        UserError: a quantile outside (0, 1], or a bound that is not positive.
    """
    numbers = _number("quantile", quantile, lambda x: 0 < x <= 1, "lie in (0, 1]"), _positive("bound", bound)
    return Thresholded(as_denoiser(denoise), *numbers)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SelfConditioned(Wrapper):
    """See `self_conditioned`."""

    inner: Denoiser
    earlier: Any
    """An estimate of x_0, of the shape of x_t; None: zeros."""

    def __repr__(self) -> str:
        return self._told("self_conditioned", **({} if self.earlier is None else {"given": self.earlier}))

    def output(self, x_t: Float[Array, "b *shape"], t: Any) -> Float[Array, "b *out"]:
        """What the network says of x_t and the guess, whose channels follow those of x_t."""
        earlier = jnp.zeros_like(x_t) if self.earlier is None else self.earlier
        return self.inner.beside(earlier).output(x_t, t)

    @property
    def self_conditioned(self) -> bool:
        """It is."""
        return True

    @property
    def guess(self) -> Float[Array, "b *shape"] | None:
        """What it was given."""
        return self.earlier

    def given(self, guess: Float[Array, "b *shape"] | None) -> Denoiser:
        """The same with this estimate of x_0."""
        return dataclasses.replace(self, earlier=guess)

    def _paired(self, labels: Int[Array, "n"]) -> Denoiser:
        earlier = None if self.earlier is None else jnp.repeat(self.earlier, 2, axis=0)
        return dataclasses.replace(self, inner=self.inner._paired(labels), earlier=earlier)


def self_conditioned(denoise: Denoiser) -> Denoiser:
    """For a network that is shown an earlier estimate of x_0 beside x_t (Chen et al. 2023): zeros, or what it is `given`.

    A walk gives it the outermost estimate of its last evaluation.
    """
    return SelfConditioned(as_denoiser(denoise), None)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Reparameterized(Wrapper):
    """See `reparameterized`."""

    inner: Denoiser
    path: Process = field(metadata={"static": True})
    """The process whose x_t it is asked of."""

    def __repr__(self) -> str:
        return self._told("reparameterized", process=self.path)

    @property
    def process(self) -> Process:  # type: ignore[override]
        """That whose x_t it is asked of."""
        return self.path

    def __call__(self, x_t: Float[Array, "b *shape"], t: Any) -> Estimate:
        """What the denoiser within makes of x_t on its own path, where sigma / alpha is the same."""
        t = self._times(t, x_t)
        own, here = self.inner.process, self.path.level(t, x_t)
        u = own.time_at((here.sigma / here.alpha).reshape(-1))
        there = own.level(u, x_t)
        hat = self.inner(there.alpha / here.alpha * x_t, u)
        # 1 but where a chain has no such level
        ratio = there.sigma / there.alpha / (here.sigma / here.alpha)
        logit = hat.variance_logit if getattr(self.path, "learned_variance", False) else None
        return Estimate(hat.x_0, ratio * hat.eps, logit)


def reparameterized(denoise: Denoiser, process: Process) -> Denoiser:
    """The same belief, asked of the x_t of another process: a denoiser of a chain as one of EDM, and back.

    x_t / alpha_t = x_0 + (sigma_t / alpha_t) eps is the same on every path, so that only the scale of x_t and the time change
    (Karras et al. 2022, section 2 and table 1). A chain is asked at the timestep whose sigma / alpha is nearest, and exact
    at its own.

    Raises:
        UserError: no denoiser, no process, or a process that learns a variance which the denoiser says nothing of.
    """
    denoise, process = as_denoiser(denoise), _as_process(process)
    if getattr(process, "learned_variance", False) and not getattr(denoise.process, "learned_variance", False):
        raise UserError("process must not learn the variance where the denoiser does not; got learned_variance = True.")
    return Reparameterized(denoise, process)


def remedies(denoise: Denoiser) -> list[str]:
    """What to try where what is drawn with it is not finite."""
    tries, bounded = [], False
    while isinstance(denoise, Wrapper):
        tries += ["a lower guidance"] if isinstance(denoise, Guided | ClassifierGuided) else []
        bounded |= isinstance(denoise, Clipped | Thresholded)
        denoise = denoise.inner
    tries += [] if bounded else ["clip = 1, where data lies in [-1, 1]"]
    network = denoise.function if isinstance(denoise, Predicted) else None
    if isinstance(network, Network) and network.dtype is not None and network.dtype.itemsize < 4:
        tries.append("float32")
    return tries


# The door


def as_denoiser(found: Any) -> Denoiser:
    """What was given where a denoiser goes.

    Raises:
        UserError: it is none; says how to make one of it.
    """
    if isinstance(found, Denoiser):
        return found
    if callable(getattr(found, "denoiser", None)):
        how = "take its own: run.denoiser()"
    elif isinstance(found, nnx.Module | tuple):
        how = "write denoisers.of_network(model, process)"
    else:
        how = "write denoisers.of(process, function), or denoisers.of_network(model, process)"
    raise UserError(f"a denoiser is needed; got a {type(found).__name__}: {how}.")


def _as_process(found: Any) -> Process:
    if not isinstance(found, Process):
        raise UserError(f"process must be one of ddpm_jax.processes; got a {type(found).__name__}.")
    return found


def _as_pytree(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that jit can be given: one with leaves as it is, any other by its identity."""
    return jax.tree_util.Partial(function) if jax.tree_util.all_leaves([function]) else function


def _as_labels(labels: Any) -> Any:
    if labels is None:
        return None
    array = labels if hasattr(labels, "dtype") else np.asarray(labels)
    if not jnp.issubdtype(array.dtype, jnp.integer) or array.ndim > 1:
        raise UserError(
            f"labels must be whole numbers, one for each example or one for all; got {array.dtype} of shape {array.shape}."
        )
    return jnp.asarray(array, jnp.int32) if isinstance(array, np.ndarray | np.generic) else array


def _check_classes(network: Any, **labels: Any) -> None:
    """Refuses classes that a network does not have, which would be taken for its last one; what is not known yet is trusted."""
    config = config_of(network.graphdef) if isinstance(network, Network) else None
    count = getattr(config, "num_classes", None)
    for name, array in labels.items():
        if count is None or array is None or not _known(array) or not getattr(array, "is_fully_addressable", True):
            continue
        found = np.asarray(array)
        if found.size and not (found.min() >= 0 and found.max() < count):
            raise UserError(f"{name} must lie in 0..{count - 1}, the network's classes; got {display.short(array)}.")


def _number(
    name: str,
    value: Any,
    allowed: Callable[[float], bool] = lambda x: x == x,  # not NaN
    words: str = "be a number",
) -> Number:
    """A number of a denoiser; one that is traced is trusted."""
    if not _known(value):
        return value
    found = number(name, value)
    if not allowed(found):
        raise UserError(f"{name} must {words}; got {found:g}.")
    return found


def _positive(name: str, value: Any) -> Number:
    return _number(name, value, lambda x: x > 0, "be positive")


def _known(*values: Any) -> bool:
    return not any(isinstance(value, jax.core.Tracer | jax.ShapeDtypeStruct) for value in values)
