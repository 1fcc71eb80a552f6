"""How a comparison is made: one frozen dataclass, whose fields are the keyword arguments of `compare`."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ddpm_jax import display
from ddpm_jax.errors import UserError, meant

DTYPES = ("float64", "float32")
"""What both sides may compute in."""


@dataclass(frozen=True)
class Options:
    """All of `compare`'s keyword arguments."""

    dtype: str = "float64"
    """float64, whose rounding leaves 1e-15: what is larger is a fault; or float32, which is held to float64 runs as well."""
    device: str = "cpu"
    """Where JAX computes; PyTorch stays on the CPU."""
    training: bool = False
    """Statistics of the batch instead of the running ones, which are compared afterwards. Dropout is off all the same."""
    gradients: bool = True
    """Of the loss, by input and, where the weights were carried over, by parameter."""
    names: Mapping[str, str] = field(default_factory=dict)
    """{JAX path: PyTorch path} for layers, or arrays, that are called differently; what lies within them follows. A path may be a
    regular expression, "block_(\\d+)": r"layers.\\1"."""
    rules: Mapping[str, Any] = field(default_factory=dict)
    """{regular expression of a JAX array's path: `weights.Rule`, how it is made of PyTorch's tensors}, before the layers' own."""
    layouts: Mapping[str, Any] = field(default_factory=dict)
    """{input, or layer: order in JAX of PyTorch's axes, or None for as they are}; wildcards are allowed. The rest is found."""
    tolerances: Mapping[str, float] = field(default_factory=dict)
    """{quantity or layer: largest relative error}, instead of the table's; wildcards are allowed."""
    ignore: Sequence[str] = ()
    """Layers and parameters of either side that are left out of the comparison, and need no partner; wildcards and regular
    expressions are allowed."""
    weights: str | Callable[[Mapping[str, Any]], Any] | None = None
    """carried: JAX gets PyTorch's, by names and rules; own: either side keeps its own; or a function from PyTorch's state dict to
    JAX's parameters. None: carried for an NNX module beside a torch module, own otherwise."""
    adapt_inputs: Callable[[Any], Any] | None = None
    """Makes JAX's inputs of the inputs, instead of what is found."""
    adapt_output: Callable[[Any], Any] | None = None
    """Makes of JAX's output what is compared."""
    loss: Callable[[Any], Any] | tuple[Callable[[Any], Any], Callable[[Any], Any]] | None = None
    """Output -> a number, one function for both or (JAX's, PyTorch's); the mean square of all that is returned unless given."""
    dropout: bool = False
    """Leave dropout active where training leaves it: the two sides then draw different masks, and a warning says so."""
    single_step: bool | None = None
    """Feed every JAX layer what its PyTorch partner was fed, so that each fault shows by itself. None: where both sides part."""
    title: str = ""
    """What the report is called; the class of the PyTorch side unless given."""

    __repr__ = display.of_fields

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise UserError(f"dtype must be one of {', '.join(DTYPES)}; got {self.dtype!r}.{meant(self.dtype, DTYPES)}")
        if isinstance(self.weights, str) and self.weights not in ("carried", "own"):
            raise UserError(f'weights must be "carried", "own" or a function; got {self.weights!r}.')

    def but(self, changes: Mapping[str, Any]) -> "Options":
        """These options with some changed.

        Raises:
            UserError: there is no such option.
        """
        known = [part.name for part in dataclasses.fields(self)]
        for name in changes:
            if name not in known:
                raise UserError(f"compare has no option {name!r}; it has {', '.join(known)}.{meant(name, known)}")
        return dataclasses.replace(self, **changes)
