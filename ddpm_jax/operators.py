"""Linear measurements y = A x of images: what a mask leaves, a blur, fewer pixels, a sum of channels, or any linear function."""

import abc
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ddpm_jax import display
from ddpm_jax.checks import leaf, whole
from ddpm_jax.condition import LUMA
from ddpm_jax.errors import UserError
from ddpm_jax.named import Named

__all__ = ["Blur", "Downsample", "Function", "Gray", "Mask", "Operator", "of"]


class Operator(Named, abc.ABC, family="operator"):
    """A linear function of a batch, called as A(x), x (B, H, W, C) -> y (B, ...), example by example.

    A pytree: its arrays and numbers are leaves, so that another mask or width compiles nothing. A subclass with a name is a form of
    `--operator`.
    """

    __repr__ = display.of_fields

    @abc.abstractmethod
    def __call__(self, x: Float[Array, "b *shape"]) -> Float[Array, "b *measured"]:
        """A x.

        Raises:
            UserError: x has a shape that cannot be measured so.
        """

    def transposed(self, y: Float[Array, "b *measured"], shape: tuple[int, ...]) -> Float[Array, "b *shape"]:
        """A^T y, for an x of that shape, (B, ...)."""
        (x,) = jax.linear_transpose(self, jax.ShapeDtypeStruct(shape, y.dtype))(y)
        return x

    def measured(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of A x for an x of that shape, (B, ...).

        Raises:
            UserError: such x cannot be measured so.
        """
        return jax.eval_shape(self, jax.ShapeDtypeStruct(shape, jnp.float32)).shape


@jax.tree_util.register_dataclass
@dataclass(frozen=True, repr=False)
class Mask(Operator, name="mask"):
    """What a mask leaves: x where it shows, 0 where it hides."""

    hidden: Any = True
    """Boolean, True where nothing is seen; broadcasts against x."""

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """x, 0 where it is hidden."""
        hidden = jnp.asarray(self.hidden, bool)
        try:
            fits = jnp.broadcast_shapes(hidden.shape, x.shape) == x.shape
        except ValueError:
            fits = False
        if not fits:
            raise UserError(f"hidden must broadcast against x {x.shape}; got the shape {hidden.shape}.")
        return x * (~hidden).astype(x.dtype)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, repr=False)
class Blur(Operator, name="blur"):
    """Gaussian blur. A pixel near an edge is the mean of what lies within the image, so that a flat image stays as it is.

    Raises:
        UserError: a width that is not positive.
    """

    sigma: Any = 1.0
    """Standard deviation in pixels."""

    def __post_init__(self) -> None:
        leaf("sigma", self.sigma, lambda sigma: 0 < sigma < float("inf"), "be positive and finite")

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """x, blurred along both axes in turn."""
        _check_images(x)
        rows, columns = (_gaussian(size, self.sigma, x.dtype) for size in x.shape[1:3])
        return jnp.einsum("ih,jw,bhwc->bijc", rows, columns, x)


def _gaussian(size: int, sigma: Any, dtype: Any) -> Float[Array, "n n"]:
    """The matrix of a blur along one axis: each row sums to 1."""
    places = jnp.arange(size, dtype=dtype)
    return jax.nn.softmax(-0.5 * ((places[:, None] - places) / sigma) ** 2, axis=1)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, repr=False)
class Downsample(Operator, name="downsample"):
    """Fewer pixels: each is the mean of factor x factor.

    Raises:
        UserError: a factor below 1.
    """

    factor: int = field(default=2, metadata={"static": True})
    """How many pixels become one, along either axis; it divides height and width."""

    def __post_init__(self) -> None:
        if whole("factor", self.factor) < 1:
            raise UserError(f"factor must be at least 1; got {self.factor}.")

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b i j c"]:
        """The means."""
        _check_images(x)
        b, h, w, c = x.shape
        if h % self.factor or w % self.factor:
            raise UserError(f"factor must divide the size of the image, {h} x {w}; got {self.factor}.")
        return x.reshape(b, h // self.factor, self.factor, w // self.factor, self.factor, c).mean((2, 4))


@jax.tree_util.register_dataclass
@dataclass(frozen=True, repr=False)
class Gray(Operator, name="gray"):
    """A weighted sum of the channels, in one.

    Raises:
        UserError: weights that are no numbers.
    """

    weights: tuple[Any, ...] = LUMA
    """One for each channel; the luma of red, green and blue unless given (ITU-R 601)."""

    def __post_init__(self) -> None:
        if not isinstance(self.weights, tuple) or not self.weights:
            raise UserError(f"weights must be a tuple, a number for each channel; got {self.weights!r}.")
        for weight in self.weights:
            leaf("weights", weight, lambda weight: abs(weight) < float("inf"), "be finite")

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w 1"]:
        """The sum."""
        _check_images(x)
        if x.shape[-1] != len(self.weights):
            raise UserError(
                f"weights must be one for each channel, of which x {x.shape} has {x.shape[-1]}; got {len(self.weights)}."
            )
        return (x * jnp.stack([jnp.asarray(weight, x.dtype) for weight in self.weights])).sum(-1, keepdims=True)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, repr=False)
class Function(Operator):
    """Any linear function; see `of`."""

    function: Callable[..., jax.Array]
    """A callable pytree."""

    def __repr__(self) -> str:
        function = self.function.func if isinstance(self.function, jax.tree_util.Partial) else self.function
        return display.line("of", function)

    def __call__(self, x: Float[Array, "b *shape"]) -> Float[Array, "b *measured"]:
        """What the function says."""
        return self.function(x)


def of(function: Callable[..., Any], shape: tuple[int, ...]) -> Operator:
    """Any linear function of a batch as an operator; it is tried on two random batches.

    function: of x (B, *shape), which gives y (B, ...); a callable pytree keeps its leaves. shape: of one example, as (H, W, C).

    Raises:
        UserError: no function, y that is not one for each example, or a function that is not linear.
    """
    if not callable(function):
        raise UserError(f"function must be called as function(x); got a {type(function).__name__}.")
    a, b = jnp.asarray(np.random.default_rng(0).standard_normal((2, 2, *shape)), jnp.float32)
    y = function(a)
    if getattr(y, "shape", ())[:1] != (2,):
        raise UserError(f"function must give a y for each of 2 examples; got {display.short(y)}.")
    apart = np.abs(np.asarray(function(2.0 * a - 3.0 * b) - (2.0 * y - 3.0 * function(b)))).max(initial=0)
    if not apart <= 1e-4 * max(float(np.abs(np.asarray(y)).max(initial=0)), 1e-30):
        raise UserError(
            f"function must be linear: function(2 a - 3 b) and 2 function(a) - 3 function(b) are {apart:.3g} apart."
        )
    return Function(jax.tree_util.Partial(function) if jax.tree_util.all_leaves([function]) else function)


def _check_images(x: Any) -> None:
    if x.ndim != 4:
        raise UserError(f"x must be images (B, H, W, C); got the shape {x.shape}.")
